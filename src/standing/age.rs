//! Age of the token state.

use std::{
    sync::atomic::{
        AtomicI64, AtomicU64,
        Ordering::{Acquire, Release},
    },
    time::Duration,
};

use tokio::time::Instant;

/// The token state is too old to verify tokens: another node may have revoked one since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this node's revocation data is stale")]
pub struct Stale;

/// The age is not tracked (yet): every change arrives in its commit.
const NOT_TRACKED: i64 = i64::MIN;

/// The time up to which every change is known. Read for every token, so it takes no lock.
pub(super) struct Age {
    /// Origin of the times below. On the monotonic clock: a step of the wall clock does not change
    /// an age.
    base: Instant,
    /// In milliseconds since `base`, rounded down, so that an age is never too low.
    known: AtomicI64,
    /// Revision of a received keyset that could not be decoded; 0 for none.
    undecodable: AtomicU64,
    max: Duration,
}

impl Age {
    pub(super) fn new(max: Duration) -> Self {
        Self {
            base: Instant::now(),
            known: AtomicI64::new(NOT_TRACKED),
            undecodable: AtomicU64::new(0),
            max,
        }
    }

    /// Records that every change before `at` is known. Never moves back.
    pub(super) fn advance_to(&self, at: Instant) {
        // Stored with Release ordering: readers of this value see the changes before it.
        self.known.fetch_max(self.millis(at), Release);
    }

    /// Returns the time since `known`; `None` if it is not tracked.
    pub(super) fn age(&self) -> Option<Duration> {
        let known = self.known.load(Acquire);
        (known != NOT_TRACKED).then(|| {
            Duration::from_millis(
                self.millis(Instant::now()).saturating_sub(known).max(0).unsigned_abs(),
            )
        })
    }

    /// Returns an error if the state is too old to verify tokens.
    pub(super) fn ensure_fresh(&self) -> Result<(), Stale> {
        let young =
            self.undecodable.load(Acquire) == 0 && self.age().is_none_or(|age| age <= self.max);
        if young { Ok(()) } else { Err(Stale) }
    }

    /// Marks the state stale for good.
    pub(super) fn disconnected(&self) {
        // No keyset reaches this revision.
        self.undecodable_keyset(u64::MAX);
    }

    /// Marks the state stale until keys of this revision or a later one are in use.
    pub(super) fn undecodable_keyset(&self, revision: u64) {
        self.undecodable.fetch_max(revision, Release);
    }

    /// Records that keys of this revision are in use: an earlier undecodable keyset no longer
    /// matters.
    pub(super) fn keyset_in_use(&self, revision: u64) {
        let _ = self.undecodable.fetch_update(Release, Acquire, |undecodable| {
            (undecodable != 0 && undecodable <= revision).then_some(0)
        });
    }

    fn millis(&self, at: Instant) -> i64 {
        let millis = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        match at.checked_duration_since(self.base) {
            Some(after) => millis(after),
            // Rounded down here too, and never to the value for "not tracked".
            None => (-millis(self.base.saturating_duration_since(at)))
                .saturating_sub(1)
                .max(NOT_TRACKED + 1),
        }
    }
}
