//! Verbs that cut the audit trail.

use async_trait::async_trait;

use super::{Result, Write};
use crate::{
    crypto::chain::{ChainPlace, CutMark},
    model::{Event, Timestamp},
};

/// Part of the trail that is too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surplus {
    /// Time of its newest record.
    pub until: Timestamp,
    /// Number of its records: records of a false time must not take more with them.
    pub records: u64,
}

/// Verbs that cut the audit trail: see `server::retention`, which archives before it cuts.
///
/// | state of a chain | event | next | written |
/// |--|--|--|--|
/// | whole, or cut at a mark | [`Self::cut`] | cut at the later mark, rows below it left | mark and event |
/// | rows below the mark | [`Self::remove_cut`], repeated | cut at a mark | fewer rows |
///
/// A row below the mark does not count: no reader returns it.
#[async_trait]
pub trait RetentionStore: Send + Sync {
    /// Returns the newest place of a chain whose seal is valid, after the sequence `after` and at
    /// most `limit` records behind it, whose record is not newer than `until`. Never the last
    /// record of a chain: that one stays.
    async fn sealed_place(
        &self,
        chain: &str,
        after: u64,
        until: Timestamp,
        limit: u64,
    ) -> Result<Option<ChainPlace>>;
    /// Writes the mark if the chain is cut at `after` now, 0 for a whole one, and appends the
    /// event. Both are durable when it returns.
    async fn cut(&self, chain: &str, after: u64, mark: &CutMark, event: Event) -> Result<Write>;
    /// Removes up to `limit` records below marks with a valid seal, and returns their number.
    /// Appends the event of a mark whose process ended before it did, with the time `now`.
    async fn remove_cut(&self, now: Timestamp, limit: usize) -> Result<usize>;
    /// Returns the part that must go so that the trail fits into `bytes`; `None` if it does.
    async fn surplus(&self, bytes: u64) -> Result<Option<Surplus>>;
    /// Returns the time of the oldest record from `from` to before `until`, else of the newest record
    /// before `from`; `None` if there is no record before `until`. In all chains.
    async fn recorded_before(&self, until: Timestamp, from: Timestamp)
    -> Result<Option<Timestamp>>;
    /// Returns a bounded part of the free space to the file system; true if there is more.
    async fn shrink(&self) -> Result<bool>;
    /// Returns true if this process may cut now: one of the nodes of a shared store.
    async fn hold_retention(&self) -> Result<bool>;
}
