//! Reading and verification of the audit trail for administrators.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;

pub use super::witness::Known;
use super::{AdminAuthenticator, Administrator, tail::Tail, witness::witnessed};
use crate::{
    crypto::chain::{ChainKey, Claim, Problem, START, Walk},
    error::Result,
    model::{Place, Record, Timestamp, event::Filter},
    store::{AuditStore, EventPage, Store, StoreError, Writer},
};

/// Records per read.
const STRIDE: usize = 2_000;

/// Records per read of a list that is merged of several.
const MERGED: usize = 500;

/// The verification of one chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Its name.
    pub chain: Arc<str>,
    /// Number of records read.
    pub checked: u64,
    /// The first record that is wrong or missing, and how.
    pub flaw: Option<(u64, String)>,
    /// True if the last record is certainly the last one written: its node runs, or has closed the
    /// chain.
    pub is_end_sure: bool,
    /// The newest record of it that another chain holds a witness of; 0 where none does.
    pub witnessed: u64,
    /// The last record that was removed by a cut; 0 where the chain is whole.
    pub cut: u64,
    /// The newest sealed record and its hash.
    pub head: (u64, [u8; 32]),
}

/// Reads the audit trail for administrators.
pub struct AuditReader {
    pub(crate) gate: Arc<AdminAuthenticator>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) chain: Arc<ChainKey>,
    /// Time after which a page is returned as far as it is.
    pub(crate) patience: Duration,
}

impl AuditReader {
    /// A page of records, newest first, confined to what the administrator can_access_tenant.
    pub async fn events(
        &self,
        admin: &Administrator,
        filter: Filter,
        before: Option<&Place>,
        limit: usize,
    ) -> Result<EventPage> {
        let tenant = admin.tenant_filter(filter.tenant.clone())?;
        let filter = Filter { tenant, ..filter };
        let alternatives = filter.alternatives();
        if alternatives == [filter.clone()] {
            return Ok(self.store.page(&filter, before, limit, self.patience).await?);
        }
        self.merged(&filter, &alternatives, before, limit).await
    }

    /// Merges the records of filters that together admit what `filter` admits. What is older than
    /// the place that one of them has reached waits for a later page.
    async fn merged(
        &self,
        filter: &Filter,
        alternatives: &[Filter],
        before: Option<&Place>,
        limit: usize,
    ) -> Result<EventPage> {
        let began = Instant::now();
        let mut page = EventPage { records: Vec::new(), next: before.cloned() };
        loop {
            let (mut found, mut reached) = (BTreeMap::new(), None::<Place>);
            for alternative in alternatives {
                let before = page.next.as_ref();
                let part = self.store.page(alternative, before, MERGED, self.patience / 4).await?;
                let admitted =
                    part.records.into_iter().filter(|record| filter.admits(&record.event));
                found.extend(admitted.map(|record| (record.place(), record)));
                reached = reached.max(part.next);
            }
            if let Some(reached) = &reached {
                found.retain(|place, _| place >= reached);
            }
            page.records.extend(found.into_values().rev());
            page.next = reached;
            if page.records.len() > limit {
                page.records.truncate(limit);
                page.next = page.records.last().map(Record::place);
            }
            let is_done = page.next.is_none() || page.records.len() >= limit;
            if is_done || began.elapsed() >= self.patience / 2 {
                return Ok(page);
            }
        }
    }

    /// Returns the time up to which records were cut, of any chain; `None` if all chains are whole,
    /// or if the filter admits only later records.
    pub async fn cut_until(&self, filter: &Filter) -> Result<Option<Timestamp>> {
        let marks = self.store.cut_marks().await?;
        let valid = marks.iter().filter(|(chain, mark)| self.chain.check_cut(chain, mark));
        let newest = valid.map(|(_, mark)| mark.place.at).max();
        Ok(newest.filter(|newest| filter.from.is_none_or(|from| from <= *newest)))
    }

    /// Records as they are committed, of those that the administrator may see: from now on, or after
    /// the positions `after`.
    pub async fn tail(
        &self,
        admin: &Administrator,
        filter: Filter,
        after: BTreeMap<Arc<str>, u64>,
    ) -> Result<Tail> {
        let tenant = admin.tenant_filter(filter.tenant.clone())?;
        Tail::begin(Arc::clone(&self.store), Filter { tenant, ..filter }, after).await
    }

    /// Walks every chain, or only the one asked for: see [`verify`].
    pub async fn verify(
        &self,
        admin: &Administrator,
        only: Option<&str>,
        known: &[Known],
    ) -> Result<Vec<Verdict>> {
        admin.must_be_operator()?;
        let verdicts = verify(self.store.as_ref(), &self.chain, only, known).await?;
        // Walking takes long.
        self.gate.still_administers(admin).await?;
        Ok(verdicts)
    }
}

/// Walks every chain of a store, or `only` one, each up to the head that was sealed when its walk
/// began, and holds it against the heads that are `known` and those that other chains hold
/// witnesses of. Verdicts come in the order of the chains' names; a chain of which there is such a
/// head and that is not there is a flaw of it.
pub async fn verify<S: AuditStore + ?Sized>(
    store: &S,
    key: &ChainKey,
    only: Option<&str>,
    known: &[Known],
) -> Result<Vec<Verdict>> {
    let mut pins = BTreeMap::<Arc<str>, Pins>::new();
    // Before the heads: what was witnessed by then, each chain has reached.
    for known in witnessed(store).await? {
        let pins = pins.entry(known.chain).or_default();
        pins.witnessed = pins.witnessed.max(known.sequence);
        pins.all.push((known.sequence, known.hash, DIFFERS_FROM_A_WITNESS));
    }
    for known in known {
        pins.entry(known.chain.clone()).or_default().all.push((
            known.sequence,
            known.hash,
            DIFFERS_FROM_KNOWN,
        ));
    }
    for name in store.chains().await? {
        pins.entry(name).or_default();
    }
    let mut verdicts = Vec::new();
    for (name, mut pins) in
        pins.into_iter().filter(|(name, _)| only.is_none_or(|only| only == &**name))
    {
        pins.all.sort_unstable();
        pins.all.dedup();
        verdicts.push(verify_one(store, key, name, &pins).await?);
    }
    Ok(verdicts)
}

const DIFFERS_FROM_KNOWN: &str = "differs from the hash of a known head";
const DIFFERS_FROM_A_WITNESS: &str = "differs from the hash witnessed in another chain";

/// Heads that a chain is held against.
#[derive(Default)]
struct Pins {
    /// By sequence, each with what it is if the chain differs.
    all: Vec<(u64, [u8; 32], &'static str)>,
    /// The newest that a chain holds a witness of.
    witnessed: u64,
}

async fn verify_one<S: AuditStore + ?Sized>(
    store: &S,
    key: &ChainKey,
    chain: Arc<str>,
    pins: &Pins,
) -> Result<Verdict> {
    // Before the head: a node that stops meanwhile leaves a closed one.
    let writer = store.writer(&chain).await?;
    let head = store.head(&chain).await?;
    let mark = store.cut_mark(&chain).await?;
    let mut verdict = Verdict {
        chain,
        checked: 0,
        flaw: None,
        is_end_sure: writer != Writer::NotRunning
            || head.as_ref().is_none_or(|head| head.claim == Claim::Closed),
        witnessed: pins.witnessed,
        cut: mark.map_or(0, |mark| mark.place.sequence),
        head: head.as_ref().map_or((0, START), |head| (head.sequence, head.hash)),
    };
    let end = head.as_ref().map_or(u64::MAX, |head| head.sequence);
    if let Some(mark) = mark.filter(|mark| !key.check_cut(&verdict.chain, mark)) {
        verdict.flaw = Some((mark.place.sequence, Problem::ForgedCut.to_string()));
        return Ok(verdict);
    }
    let (mut walk, mut pins) = (Walk::behind(mark.as_ref()), pins.all.as_slice());
    if let Some(flaw) = pass_pins(&walk, &mut pins) {
        verdict.flaw = Some(flaw);
        return Ok(verdict);
    }
    let mut stride = STRIDE;
    loop {
        let records = match store.chain(&verdict.chain, walk.sequence(), stride).await {
            Ok(records) => records,
            // One of them cannot be read: go on one by one to say which.
            Err(StoreError::Corrupt(_)) if stride > 1 => {
                stride = 1;
                continue;
            }
            Err(StoreError::Corrupt(_)) => {
                verdict.flaw = Some((walk.sequence() + 1, UNREADABLE.to_owned()));
                return Ok(verdict);
            }
            Err(error @ (StoreError::Unavailable(_) | StoreError::Full(_))) => {
                return Err(error.into());
            }
        };
        let mut flaw = None;
        for record in records.iter().take_while(|record| record.sequence <= end) {
            flaw = step(&mut walk, &verdict.chain, record, &mut pins).err();
            if flaw.is_some() {
                break;
            }
            verdict.checked += 1;
        }
        if flaw.is_some() {
            // Records that were cut since the walk began are missing to it.
            let mark = store.cut_mark(&verdict.chain).await?;
            let later = mark.filter(|mark| {
                mark.place.sequence > walk.sequence() && key.check_cut(&verdict.chain, mark)
            });
            if let Some(mark) = later {
                verdict.cut = mark.place.sequence;
                walk = Walk::behind(Some(&mark));
                flaw = pass_pins(&walk, &mut pins);
            }
            if flaw.is_some() {
                verdict.flaw = flaw;
                return Ok(verdict);
            }
            continue;
        }
        if records.len() < stride || walk.sequence() >= end {
            break;
        }
    }
    verdict.flaw = match walk.finish(key, head.as_ref()) {
        Err(flaw) => Some((flaw.sequence, flaw.problem.to_string())),
        Ok(()) => ending(&walk, pins),
    };
    Ok(verdict)
}

const UNREADABLE: &str = "unreadable";

/// One record more; else what is wrong with it, and where.
fn step(
    walk: &mut Walk,
    chain: &str,
    record: &Record,
    pins: &mut &[(u64, [u8; 32], &'static str)],
) -> Result<(), (u64, String)> {
    let flaw = |problem: &str| Err((record.sequence, problem.to_owned()));
    if record.is_unreadable() && record.sequence == walk.sequence().saturating_add(1) {
        return flaw(UNREADABLE);
    }
    if let Err(flaw) = walk.record(record) {
        return Err((flaw.sequence, flaw.problem.to_string()));
    }
    // No hash covers the chain's name, but each covers the name of who wrote the record.
    if record.sequence == 1 && *record.node != *chain {
        return flaw("starts a chain of another name");
    }
    while let Some(((sequence, hash, differs), rest)) = pins.split_first() {
        if *sequence > record.sequence {
            break;
        }
        if *sequence == record.sequence && *hash != record.hash {
            return flaw(differs);
        }
        *pins = rest;
    }
    Ok(())
}

/// Passes over heads that a cut removed: the mark covers them. The one at the cut must match it.
fn pass_pins(walk: &Walk, pins: &mut &[(u64, [u8; 32], &'static str)]) -> Option<(u64, String)> {
    while let Some(((sequence, hash, differs), rest)) = pins.split_first() {
        if *sequence > walk.sequence() {
            break;
        }
        if *sequence == walk.sequence() && *hash != walk.hash() {
            return Some((*sequence, (*differs).to_owned()));
        }
        *pins = rest;
    }
    None
}

/// Returns the fault of a walk that ended before a known or witnessed head.
fn ending(walk: &Walk, pins: &[(u64, [u8; 32], &'static str)]) -> Option<(u64, String)> {
    let (_, _, differs) = pins.last()?;
    let by = if *differs == DIFFERS_FROM_KNOWN {
        "of a known head"
    } else {
        "witnessed in another chain"
    };
    Some(match walk.sequence() {
        0 => (1, "the whole chain is missing".to_owned()),
        last => (last.saturating_add(1), format!("truncated before the sequence {by}")),
    })
}
