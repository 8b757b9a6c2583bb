//! Verification of audit chains, some records at a time: its caller can report progress, wait and
//! stop in between.
//!
//! | state | event | next |
//! |--|--|--|
//! | between two chains | [`Verification::step`], there is another chain | its walk begins behind its cut, or after the newest head in `from` |
//! | in a chain | `step`: records follow | the same, further on |
//! | in a chain | `step`: a record does not follow, a later cut covers it | the walk goes on behind the cut |
//! | in a chain | `step`: a record does not follow, or the end is reached | [`Step::Chain`], between two chains |
//! | between two chains | `step`, there is none | [`Step::End`] |

use std::{
    collections::{BTreeMap, btree_map},
    sync::Arc,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::witness::{Known, witnessed};
use crate::{
    crypto::chain::{ChainKey, Claim, CutMark, Head, Problem, START, Walk},
    error::{Error, Result},
    model::Record,
    store::{ChainReader, StoreError, Writer},
};

/// Records of a step.
const STRIDE: usize = 1_000;
/// Heads that are read at the same time.
const HEADS_AT_ONCE: usize = 16;
/// Witnesses of one chain that are compared. Of more, every second is left out: the newest one fixes
/// all records before it.
const WITNESSES_MAX: usize = 100_000;

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

/// Chains to verify, and the heads that they are compared with.
#[derive(Clone, Debug, Default)]
pub struct VerifyRequest {
    /// Only this chain; `None` means all.
    pub only: Option<Arc<str>>,
    /// Only chains after this name; `None` means all.
    pub after_chain: Option<Arc<str>>,
    /// Heads that were saved outside the store.
    pub known: Vec<Known>,
    /// Heads up to which chains are verified already: their walks begin there.
    pub from: Vec<Known>,
}

/// Progress of a verification.
#[derive(Debug)]
pub enum Step {
    /// Some records were read.
    Records,
    /// A chain is done.
    Chain(Verdict),
    /// All chains are done.
    End,
}

/// Verifies chains in one go: see [`Verification`].
///
/// # Errors
///
/// The store fails, or there is no such chain.
pub async fn verify<S: ChainReader + ?Sized>(
    store: &S,
    key: &ChainKey,
    only: Option<&str>,
    known: &[Known],
) -> Result<Vec<Verdict>> {
    let (only, known) = (only.map(Arc::from), known.to_vec());
    let request = VerifyRequest { only, known, ..VerifyRequest::default() };
    let mut verification = Verification::begin(store, key, request).await?;
    let mut verdicts = Vec::new();
    loop {
        match verification.step().await? {
            Step::Records => {}
            Step::Chain(verdict) => verdicts.push(verdict),
            Step::End => return Ok(verdicts),
        }
    }
}

const DIFFERS_FROM_KNOWN: &str = "differs from the hash of a known head";
const DIFFERS_FROM_A_WITNESS: &str = "differs from the hash witnessed in another chain";
const MISSING: &str = "the whole chain is missing";
const OTHER_NAME: &str = "starts a chain of another name";
const UNREADABLE: &str = "unreadable";

/// Record that a chain must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pin {
    sequence: u64,
    hash: [u8; 32],
    /// True if the caller knows it, false if another chain has a witness of it.
    is_known: bool,
}

impl Pin {
    const fn differs(&self) -> &'static str {
        if self.is_known { DIFFERS_FROM_KNOWN } else { DIFFERS_FROM_A_WITNESS }
    }

    /// Returns the fault of a chain that ends with the record `last`, before this one.
    fn truncated(&self, last: u64) -> (u64, String) {
        let by = if self.is_known { "of a known head" } else { "witnessed in another chain" };
        match last {
            0 => (1, MISSING.to_owned()),
            last => (last.saturating_add(1), format!("truncated before the sequence {by}")),
        }
    }
}

/// Records that a chain must have.
#[derive(Default)]
struct Pins {
    all: Vec<Pin>,
    /// The newest witness.
    newest: Option<Pin>,
    /// Head up to which the chain is verified already.
    from: Option<Pin>,
}

impl Pins {
    fn add_witness(&mut self, Known { sequence, hash, .. }: Known) {
        let pin = Pin { sequence, hash, is_known: false };
        self.newest = self.newest.max(Some(pin));
        if self.all.len() >= WITNESSES_MAX {
            let mut is_left_out = false;
            self.all.retain(|_| {
                is_left_out = !is_left_out;
                !is_left_out
            });
        }
        self.all.push(pin);
    }

    fn add_known(&mut self, Known { sequence, hash, .. }: Known) {
        self.all.push(Pin { sequence, hash, is_known: true });
    }

    fn start_after(&mut self, Known { sequence, hash, .. }: Known) {
        self.from = self.from.max(Some(Pin { sequence, hash, is_known: true }));
    }

    /// Sorts the records, after the last one was added.
    fn sort(&mut self) {
        self.all.extend(self.newest);
        self.all.sort_unstable();
        self.all.dedup();
        self.all.shrink_to_fit();
    }
}

/// Verification of chains in progress, each up to the head that was sealed when its walk began. A
/// chain is compared with the heads that are known and those that other chains hold witnesses of.
/// Verdicts are in the order of the chains' names; a chain of which there is such a head, and that
/// is not there, is broken. Between two steps nothing of the store is held.
pub struct Verification<'a, S: ?Sized> {
    store: &'a S,
    key: &'a ChainKey,
    rest: btree_map::IntoIter<Arc<str>, Pins>,
    open: Option<OpenChain>,
    /// Names of all chains and the places where their walks begin, until they are measured.
    starts: Vec<(Arc<str>, u64)>,
    checked: u64,
    total: u64,
}

/// A chain that is being read.
struct OpenChain {
    verdict: Verdict,
    head: Option<Head>,
    /// Last record to read.
    end: u64,
    walk: Walk,
    /// Records that the walk must reach, last one first.
    pins: Vec<Pin>,
    stride: usize,
}

impl<'a, S: ChainReader + ?Sized> Verification<'a, S> {
    /// Begins a verification.
    ///
    /// # Errors
    ///
    /// The store fails, or there is no chain of the name `only`, nor a head of it.
    pub async fn begin(
        store: &'a S,
        key: &'a ChainKey,
        VerifyRequest { only, after_chain, known, from }: VerifyRequest,
    ) -> Result<Self> {
        let is_wanted = |name: &Arc<str>| {
            only.as_ref().is_none_or(|only| only == name)
                && after_chain.as_ref().is_none_or(|after| name > after)
        };
        let mut pins = BTreeMap::<Arc<str>, Pins>::new();
        // Before the heads: what was witnessed by then, each chain has reached.
        let visit = |witness: Known| {
            if is_wanted(&witness.chain) {
                pins.entry(Arc::clone(&witness.chain)).or_default().add_witness(witness);
            }
        };
        witnessed(store, visit).await?;
        for known in known.into_iter().filter(|known| is_wanted(&known.chain)) {
            pins.entry(Arc::clone(&known.chain)).or_default().add_known(known);
        }
        for head in from.into_iter().filter(|head| is_wanted(&head.chain)) {
            pins.entry(Arc::clone(&head.chain)).or_default().start_after(head);
        }
        for name in store.chains().await?.into_iter().filter(is_wanted) {
            pins.entry(name).or_default();
        }
        if only.is_some() && pins.is_empty() {
            return Err(Error::NotFound("chain"));
        }
        pins.values_mut().for_each(Pins::sort);
        let start = |(name, pins): (&Arc<str>, &Pins)| {
            (Arc::clone(name), pins.from.map_or(0, |from| from.sequence))
        };
        let starts = pins.iter().map(start).collect();
        Ok(Self { store, key, rest: pins.into_iter(), open: None, starts, checked: 0, total: 0 })
    }

    /// Counts the records to read, by the heads of the chains; for a caller that reports progress.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn measure(&mut self) -> Result<()> {
        let cuts: BTreeMap<Arc<str>, u64> = (self.store.cut_marks().await?.into_iter())
            .map(|(chain, mark)| (chain, mark.place.sequence))
            .collect();
        let starts = std::mem::take(&mut self.starts);
        let length = |(chain, start): (Arc<str>, u64)| {
            let start = start.max(cuts.get(&chain).copied().unwrap_or(0));
            let store = self.store;
            async move {
                let head = store.head(&chain).await?.map_or(0, |head| head.sequence);
                Ok::<_, Error>(head.saturating_sub(start))
            }
        };
        let lengths: Vec<u64> =
            stream::iter(starts).map(length).buffered(HEADS_AT_ONCE).try_collect().await?;
        self.total = lengths.into_iter().fold(0, u64::saturating_add);
        Ok(())
    }

    /// Returns the number of records that were read, and of those to read if they were measured.
    pub const fn progress(&self) -> (u64, u64) {
        (self.checked, self.total)
    }

    /// Returns the last valid record of the chain that is being read.
    pub fn reached(&self) -> Option<Known> {
        let OpenChain { verdict, walk, .. } = self.open.as_ref()?;
        let (sequence, hash) = (walk.sequence(), walk.hash());
        (sequence > 0).then(|| Known { chain: Arc::clone(&verdict.chain), sequence, hash })
    }

    /// Reads the next records.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn step(&mut self) -> Result<Step> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => match self.rest.next() {
                Some((chain, pins)) => self.begin_chain(chain, pins).await?,
                None => return Ok(Step::End),
            },
        };
        let before = open.verdict.checked;
        let is_done = open.verdict.flaw.is_some() || self.read(&mut open).await?;
        self.checked = self.checked.saturating_add(open.verdict.checked.saturating_sub(before));
        if is_done {
            return Ok(Step::Chain(open.verdict));
        }
        self.open = Some(open);
        Ok(Step::Records)
    }

    async fn begin_chain(&self, chain: Arc<str>, pins: Pins) -> Result<OpenChain> {
        // Before the head: a node that stops meanwhile leaves a closed one.
        let writer = self.store.writer(&chain).await?;
        let head = self.store.head(&chain).await?;
        let mark = self.store.cut_mark(&chain).await?;
        let forged = mark.filter(|mark| !self.key.check_cut(&chain, mark));
        let mut all = pins.all;
        all.reverse();
        let mut open = OpenChain {
            verdict: Verdict {
                chain,
                checked: 0,
                flaw: forged.map(|mark| (mark.place.sequence, Problem::ForgedCut.to_string())),
                is_end_sure: writer != Writer::NotRunning
                    || head.as_ref().is_none_or(|head| head.claim == Claim::Closed),
                witnessed: pins.newest.map_or(0, |newest| newest.sequence),
                cut: mark.map_or(0, |mark| mark.place.sequence),
                head: head.as_ref().map_or((0, START), |head| (head.sequence, head.hash)),
            },
            end: head.as_ref().map_or(u64::MAX, |head| head.sequence),
            head,
            walk: Walk::behind(mark.as_ref()),
            pins: all,
            stride: STRIDE,
        };
        if open.verdict.flaw.is_some() {
            return Ok(open);
        }
        match pins.from {
            // A later cut covers it.
            Some(from) if from.sequence < open.walk.sequence() => {}
            Some(from) if from.sequence == open.walk.sequence() => open.pins.push(from),
            Some(from) => open.verdict.flaw = self.start_after(&mut open, from).await?,
            None => {}
        }
        if open.verdict.flaw.is_none() {
            open.verdict.flaw = open.pass_pins();
        }
        Ok(open)
    }

    /// Begins a walk after a record that the chain must have; returns the problem if it does not.
    async fn start_after(&self, open: &mut OpenChain, from: Pin) -> Result<Option<(u64, String)>> {
        let last = open.verdict.head.0;
        if from.sequence > last {
            return Ok(Some(from.truncated(last)));
        }
        let before = from.sequence.saturating_sub(1);
        let found = match self.store.chain(&open.verdict.chain, before, 1).await {
            Ok(found) => found.into_iter().next(),
            Err(StoreError::Corrupt(_)) => {
                return Ok(Some((from.sequence, UNREADABLE.to_owned())));
            }
            Err(error @ (StoreError::Unavailable(_) | StoreError::Full(_))) => {
                return Err(error.into());
            }
        };
        let problem = match found.filter(|record| record.sequence == from.sequence) {
            None => {
                if self.pass_later_cut(open).await? {
                    return Ok(open.verdict.flaw.take());
                }
                Problem::Removed.to_string()
            }
            Some(record) if record.is_unreadable() => UNREADABLE.to_owned(),
            Some(record) if record.hash != from.hash => from.differs().to_owned(),
            Some(record) => {
                open.walk = Walk::after(record.sequence, record.hash);
                return Ok(None);
            }
        };
        Ok(Some((from.sequence, problem)))
    }

    /// Reads the next records of a chain. Returns true if it is done.
    async fn read(&self, open: &mut OpenChain) -> Result<bool> {
        let after = open.walk.sequence();
        if after < open.end {
            let records = match self.store.chain(&open.verdict.chain, after, open.stride).await {
                Ok(records) => records,
                // One of them cannot be read: continue one by one to name it.
                Err(StoreError::Corrupt(_)) if open.stride > 1 => {
                    open.stride = 1;
                    return Ok(false);
                }
                Err(StoreError::Corrupt(_)) => {
                    open.verdict.flaw = Some((after.saturating_add(1), UNREADABLE.to_owned()));
                    return Ok(true);
                }
                Err(error @ (StoreError::Unavailable(_) | StoreError::Full(_))) => {
                    return Err(error.into());
                }
            };
            if let Some(flaw) = open.take(&records) {
                // Records that were cut since the walk began are missing to it.
                if !self.pass_later_cut(open).await? {
                    open.verdict.flaw = Some(flaw);
                }
                return Ok(open.verdict.flaw.is_some());
            }
            if records.len() >= open.stride && open.walk.sequence() < open.end {
                return Ok(false);
            }
        }
        open.verdict.flaw = match open.walk.finish(self.key, open.head.as_ref()) {
            Err(flaw) => Some((flaw.sequence, flaw.problem.to_string())),
            Ok(()) => open.pins.first().map(|newest| newest.truncated(open.walk.sequence())),
        };
        Ok(true)
    }

    /// Continues behind a cut that was made since the walk began; returns false if there is none.
    async fn pass_later_cut(&self, open: &mut OpenChain) -> Result<bool> {
        let is_later = |mark: &CutMark| {
            mark.place.sequence > open.walk.sequence()
                && self.key.check_cut(&open.verdict.chain, mark)
        };
        let mark = self.store.cut_mark(&open.verdict.chain).await?;
        let Some(mark) = mark.filter(is_later) else { return Ok(false) };
        open.verdict.cut = mark.place.sequence;
        open.walk = Walk::behind(Some(&mark));
        open.verdict.flaw = open.pass_pins();
        Ok(true)
    }
}

impl OpenChain {
    /// Walks records; returns the problem of the first that does not follow.
    fn take(&mut self, records: &[Record]) -> Option<(u64, String)> {
        let end = self.end;
        for record in records.iter().take_while(|record| record.sequence <= end) {
            let flaw = |problem: &str| Some((record.sequence, problem.to_owned()));
            if record.is_unreadable() && record.sequence == self.walk.sequence().saturating_add(1) {
                return flaw(UNREADABLE);
            }
            if let Err(flaw) = self.walk.record(record) {
                return Some((flaw.sequence, flaw.problem.to_string()));
            }
            // No hash covers the chain's name, but each covers the name of the node that wrote the
            // record.
            if record.sequence == 1 && *record.node != *self.verdict.chain {
                return flaw(OTHER_NAME);
            }
            if let Some(flaw) = self.pass_pins() {
                return Some(flaw);
            }
            self.verdict.checked = self.verdict.checked.saturating_add(1);
        }
        None
    }

    /// Passes over the pins up to the place of the walk; returns the problem if the one at that place
    /// differs. Earlier ones were cut or verified before.
    fn pass_pins(&mut self) -> Option<(u64, String)> {
        let (sequence, hash) = (self.walk.sequence(), self.walk.hash());
        while let Some(pin) = self.pins.pop_if(|pin| pin.sequence <= sequence) {
            if pin.sequence == sequence && pin.hash != hash {
                return Some((sequence, pin.differs().to_owned()));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_very_many_witnesses_the_newest_is_compared() {
        let chain: Arc<str> = "node".into();
        let mut pins = Pins::default();
        let last = 3 * WITNESSES_MAX as u64;
        for sequence in [last].into_iter().chain(1..last) {
            pins.add_witness(Known { chain: Arc::clone(&chain), sequence, hash: [1; 32] });
        }
        pins.add_known(Known { chain: Arc::clone(&chain), sequence: 2, hash: [2; 32] });
        pins.sort();
        assert!(pins.all.len() <= WITNESSES_MAX + 2, "{}", pins.all.len());
        assert_eq!(pins.all.last().unwrap().sequence, last);
        assert!(pins.all.iter().any(|pin| pin.is_known));
        assert!(pins.all.is_sorted());
    }
}
