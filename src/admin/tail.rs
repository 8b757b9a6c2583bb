//! The audit trail as it grows, from a position in each chain on, without gap or repetition.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::broadcast::{self, error::RecvError};

use crate::{
    error::{Error, Result},
    model::{Record, event::Filter},
    store::Store,
};

/// Records per read.
const STRIDE: usize = 500;
/// Heads that are read at the same time.
const HEADS_AT_ONCE: usize = 16;
/// Heads that are read before a caller can do something else.
const HEADS_PER_STEP: usize = 256;

/// A reader of the trail as it grows. What the live records lack is read from the store: the records
/// before the first of them, those that a slow reader did not take in time, and those of other nodes
/// while the stream of their records was interrupted.
pub struct Tail {
    store: Arc<dyn Store>,
    filter: Filter,
    live: broadcast::Receiver<Option<Arc<Record>>>,
    /// Sequence of the last record of each chain that was passed on or left out by the filter.
    reached: BTreeMap<Arc<str>, u64>,
    /// Chains that are read from the store, each up to this sequence.
    behind: BTreeMap<Arc<str>, u64>,
    /// A live record that follows those that are read from the store.
    waiting: Option<Arc<Record>>,
    /// True if live records were missed, in any chain.
    has_missed: bool,
    /// Chains whose heads are to be read, since live records of them may have been missed.
    unsure: Vec<Arc<str>>,
    /// Chains whose position moved since it was last reported.
    moved: BTreeSet<Arc<str>>,
}

/// Error of a reader that was behind a cut: it would miss records without a notice.
fn was_cut(chain: &str, reached: u64, cut: u64) -> Error {
    let first = reached.saturating_add(1);
    Error::precondition(format!(
        "records {first} to {cut} of the chain {chain} were cut by audit.keep: read them from its \
         archive, and go on after {cut}"
    ))
}

impl Tail {
    /// Begins after the positions `after`, in all other chains with the first record; with new
    /// records if there are no positions.
    pub async fn begin(
        store: Arc<dyn Store>,
        filter: Filter,
        after: BTreeMap<Arc<str>, u64>,
    ) -> Result<Self> {
        // Before the heads: what is committed meanwhile is in the one or the other.
        let live = store.tail();
        let mut tail = Self {
            store,
            filter,
            live,
            reached: after,
            behind: BTreeMap::new(),
            waiting: None,
            has_missed: false,
            unsure: Vec::new(),
            moved: BTreeSet::new(),
        };
        let is_new = tail.reached.is_empty();
        let marks: BTreeMap<_, _> = tail.store.cut_marks().await?.into_iter().collect();
        let chains = tail.store.chains().await?;
        for (chain, head) in tail.heads(chains).await? {
            if is_new {
                tail.reached.insert(chain, head);
                continue;
            }
            // A chain that the caller has no position of begins with its first record.
            let reached = *tail.reached.entry(Arc::clone(&chain)).or_default();
            if reached > head {
                let problem = format!("the chain {chain} ends at {head}, before {reached}");
                return Err(Error::field("after", problem));
            }
            let cut = marks.get(&chain).map_or(0, |mark| mark.place.sequence);
            if cut > reached {
                return Err(was_cut(&chain, reached, cut));
            }
            tail.catch_up(chain, head);
        }
        tail.moved = tail.reached.keys().cloned().collect();
        Ok(tail)
    }

    /// Returns the next records that the filter admits; there may be none among those that were
    /// read. Nothing is lost if the call is dropped before it is ready.
    pub async fn next(&mut self) -> Result<Vec<Arc<Record>>> {
        if let Some((chain, end)) = self.behind.first_key_value() {
            let (chain, end) = (Arc::clone(chain), *end);
            return self.read(chain, end).await;
        }
        if let Some(record) = self.waiting.take() {
            return Ok(self.take(record));
        }
        if self.has_missed {
            self.unsure = self.store.chains().await?;
            self.has_missed = false;
        }
        if !self.unsure.is_empty() {
            self.look_again().await?;
            return Ok(Vec::new());
        }
        match self.live.recv().await {
            Ok(Some(record)) => return Ok(self.take(record)),
            // Of other nodes, or of a reader that was too slow: the store has them.
            Ok(None) | Err(RecvError::Lagged(_)) => self.has_missed = true,
            Err(RecvError::Closed) => return Err(Error::Stopping),
        }
        Ok(Vec::new())
    }

    /// Returns the positions that moved since the last call; at first all.
    pub fn moved(&mut self) -> Vec<(Arc<str>, u64)> {
        let moved = std::mem::take(&mut self.moved);
        let position = |chain| {
            let reached = self.reached.get(&chain).copied()?;
            Some((chain, reached))
        };
        moved.into_iter().filter_map(position).collect()
    }

    /// Reads the sequences of heads.
    async fn heads(&self, chains: Vec<Arc<str>>) -> Result<Vec<(Arc<str>, u64)>> {
        let head = |chain: Arc<str>| async move {
            let head = self.store.head(&chain).await?;
            Ok((chain, head.map_or(0, |head| head.sequence)))
        };
        stream::iter(chains).map(head).buffered(HEADS_AT_ONCE).try_collect().await
    }

    /// Reads heads of chains whose live records may have been missed.
    async fn look_again(&mut self) -> Result<()> {
        let rest = self.unsure.len().saturating_sub(HEADS_PER_STEP);
        let chains = self.unsure.get(rest..).unwrap_or_default().to_vec();
        for (chain, head) in self.heads(chains).await? {
            self.catch_up(chain, head);
        }
        self.unsure.truncate(rest);
        Ok(())
    }

    /// Has a chain read from the store up to `end`, if it is behind.
    fn catch_up(&mut self, chain: Arc<str>, end: u64) {
        if end > self.reached.get(&chain).copied().unwrap_or_default() {
            self.behind.insert(chain, end);
        }
    }

    /// Reads records of a chain that is behind.
    async fn read(&mut self, chain: Arc<str>, end: u64) -> Result<Vec<Arc<Record>>> {
        let reached = self.reached.get(&chain).copied().unwrap_or_default();
        let mut records = self.store.chain(&chain, reached, STRIDE).await?;
        records.retain(|record| record.sequence <= end);
        let last = records.last().map_or(end, |record| record.sequence);
        let count = u64::try_from(records.len()).unwrap_or(u64::MAX);
        if count < last.saturating_sub(reached) {
            // The mark of a cut is there before its first record is gone.
            let mark = self.store.cut_mark(&chain).await?;
            if let Some(cut) = mark.map(|mark| mark.place.sequence).filter(|cut| *cut > reached) {
                return Err(was_cut(&chain, reached, cut));
            }
            // Other records that are missing are passed over; the verification of the chain
            // reports them.
        }
        if last >= end {
            self.behind.remove(&chain);
        }
        self.reached.insert(Arc::clone(&chain), last);
        self.moved.insert(chain);
        Ok(self.pass(records.into_iter().map(Arc::new).collect()))
    }

    /// Takes a live record, unless it was read from the store before.
    fn take(&mut self, record: Arc<Record>) -> Vec<Arc<Record>> {
        let reached = self.reached.get(&record.chain).copied().unwrap_or_default();
        if record.sequence <= reached {
            return Vec::new();
        }
        if record.sequence > reached.saturating_add(1) {
            self.catch_up(Arc::clone(&record.chain), record.sequence.saturating_sub(1));
            self.waiting = Some(record);
            return Vec::new();
        }
        self.pass(vec![record])
    }

    /// Moves the positions to these records, and leaves out what the filter does not admit.
    fn pass(&mut self, mut records: Vec<Arc<Record>>) -> Vec<Arc<Record>> {
        for record in &records {
            self.reached.insert(Arc::clone(&record.chain), record.sequence);
            self.moved.insert(Arc::clone(&record.chain));
        }
        records.retain(|record| self.filter.admits(&record.event));
        records
    }
}
