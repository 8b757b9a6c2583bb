//! Reading the audit trail: what an administrator may see of it, and whether it is whole.

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::broadcast;

use super::{Administrator, Authority};
use crate::{
    crypto::chain::{ChainKey, START, Walk},
    error::Result,
    model::{Place, Record, event::Filter},
    store::{AuditStore, StoreError},
};

/// How many records are read at once.
const STRIDE: usize = 2_000;

/// A record's place and hash that were noted elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The chain.
    pub chain: Arc<str>,
    /// The record.
    pub sequence: u64,
    /// Its hash.
    pub hash: [u8; 32],
}

/// What the verification of one chain came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Its name.
    pub chain: Arc<str>,
    /// How many records were read.
    pub checked: u64,
    /// The first record that is wrong or missing, and how.
    pub flaw: Option<(u64, String)>,
    /// The newest sealed record and its hash.
    pub head: (u64, [u8; 32]),
}

impl Authority {
    /// A page of records, newest first, confined to what the administrator governs.
    pub async fn events(
        &self,
        admin: &Administrator,
        filter: Filter,
        before: Option<&Place>,
        limit: usize,
    ) -> Result<Vec<Record>> {
        let tenant = admin.confined_to(filter.tenant.clone())?;
        Ok(self.store.events(&Filter { tenant, ..filter }, before, limit).await?)
    }

    /// Records as they are committed, and the filter that says which of them the administrator may see.
    pub fn tail(&self, admin: &Administrator, filter: Filter) -> Result<(broadcast::Receiver<Option<Arc<Record>>>, Filter)> {
        let tenant = admin.confined_to(filter.tenant.clone())?;
        Ok((self.store.tail(), Filter { tenant, ..filter }))
    }

    /// Walks every chain, or only the one asked for: see [`verify`].
    pub async fn verify_trail(
        &self,
        admin: &Administrator,
        key: &ChainKey,
        only: Option<&str>,
        known: &[Known],
    ) -> Result<Vec<Verdict>> {
        admin.must_govern_all()?;
        verify(self.store(), key, only, known).await
    }
}

/// Walks every chain of a store, or `only` one, each up to the head that was sealed when its walk began. Verdicts come in the
/// order of the chains' names; a chain of which something is `known` and that is not there is a flaw of it.
pub async fn verify<S: AuditStore + ?Sized>(
    store: &S,
    key: &ChainKey,
    only: Option<&str>,
    known: &[Known],
) -> Result<Vec<Verdict>> {
    let there = store.chains().await?.into_iter();
    let names: BTreeSet<Arc<str>> = there.chain(known.iter().map(|known| known.chain.clone())).collect();
    let mut verdicts = Vec::new();
    for name in names.into_iter().filter(|name| only.is_none_or(|only| only == &**name)) {
        let known: Vec<_> = known.iter().filter(|known| known.chain == name).collect();
        verdicts.push(verify_one(store, key, name, &known).await?);
    }
    Ok(verdicts)
}

async fn verify_one<S: AuditStore + ?Sized>(store: &S, key: &ChainKey, chain: Arc<str>, known: &[&Known]) -> Result<Verdict> {
    let head = store.head(&chain).await?;
    let mut verdict =
        Verdict { chain, checked: 0, flaw: None, head: head.as_ref().map_or((0, START), |head| (head.sequence, head.hash)) };
    let end = head.as_ref().map_or(u64::MAX, |head| head.sequence);
    let mut walk = Walk::from_start();
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
                verdict.flaw = Some((walk.sequence() + 1, "cannot be read".to_owned()));
                return Ok(verdict);
            }
            Err(error @ (StoreError::Unavailable(_) | StoreError::Full(_))) => return Err(error.into()),
        };
        for record in records.iter().take_while(|record| record.sequence <= end) {
            if let Err(flaw) = step(&mut walk, &verdict.chain, record, known) {
                verdict.flaw = Some(flaw);
                return Ok(verdict);
            }
            verdict.checked += 1;
        }
        if records.len() < stride || walk.sequence() >= end {
            break;
        }
    }
    verdict.flaw = match walk.finish(key, head.as_ref()) {
        Err(flaw) => Some((flaw.sequence, flaw.problem.to_string())),
        Ok(()) => ending(&walk, known),
    };
    Ok(verdict)
}

/// One record more; else what is wrong with it, and where.
fn step(walk: &mut Walk, chain: &str, record: &Record, known: &[&Known]) -> Result<(), (u64, String)> {
    let flaw = |problem: &str| Err((record.sequence, problem.to_owned()));
    if let Err(flaw) = walk.record(record) {
        return Err((flaw.sequence, flaw.problem.to_string()));
    }
    // No hash covers the chain's name, but each covers the name of who wrote the record.
    if record.sequence == 1 && *record.node != *chain {
        return flaw("begins a chain of another name");
    }
    if known.iter().any(|known| known.sequence == record.sequence && known.hash != record.hash) {
        return flaw("differs from the hash noted elsewhere");
    }
    Ok(())
}

/// What is missing behind a walk without a flaw, by what was noted elsewhere.
fn ending(walk: &Walk, known: &[&Known]) -> Option<(u64, String)> {
    known.iter().any(|known| known.sequence > walk.sequence()).then(|| match walk.sequence() {
        0 => (1, "the whole chain is missing".to_owned()),
        last => (last.saturating_add(1), "cut off before the sequence noted elsewhere".to_owned()),
    })
}
