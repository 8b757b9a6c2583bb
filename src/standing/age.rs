//! How old what is known is.

use std::{
    sync::atomic::{
        AtomicI64, AtomicU64,
        Ordering::{Acquire, Release},
    },
    time::Duration,
};

use tokio::time::Instant;

/// What this node knows is too old to judge by: another node may have ended something since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this node's revocation data is stale")]
pub struct Behind;

/// Nobody has said yet how far it is known: the store tells every change in its commit.
const NEVER: i64 = i64::MIN;

/// Up to which moment everything is known. Read by every judgement, so it takes no lock.
pub(super) struct Age {
    /// What moments are counted from. By the monotonic clock: a step of the wall clock makes
    /// nothing younger or older.
    base: Instant,
    /// In milliseconds since `base`, rounded down: nothing is taken for younger than it is.
    known: AtomicI64,
    /// The revision of a keyset that was heard of and could not be opened; 0 for none.
    unread: AtomicU64,
    max: Duration,
}

impl Age {
    pub(super) fn new(max: Duration) -> Self {
        Self { base: Instant::now(), known: AtomicI64::new(NEVER), unread: AtomicU64::new(0), max }
    }

    /// Everything before `at` is known. What was said of a later moment stays said.
    pub(super) fn reach(&self, at: Instant) {
        // Released after the changes it speaks of: who reads it finds them applied.
        self.known.fetch_max(self.millis(at), Release);
    }

    /// `None` where nobody says.
    pub(super) fn age(&self) -> Option<Duration> {
        let known = self.known.load(Acquire);
        (known != NEVER).then(|| {
            Duration::from_millis(
                self.millis(Instant::now()).saturating_sub(known).max(0).unsigned_abs(),
            )
        })
    }

    /// Whether it may be judged by.
    pub(super) fn fresh(&self) -> Result<(), Behind> {
        let young = self.unread.load(Acquire) == 0 && self.age().is_none_or(|age| age <= self.max);
        if young { Ok(()) } else { Err(Behind) }
    }

    /// Nothing will be said any more: what is known is too old, and stays so.
    pub(super) fn lost(&self) {
        // No keyset comes to this revision.
        self.unread(u64::MAX);
    }

    /// A keyset was heard of that says nothing to us.
    pub(super) fn unread(&self, revision: u64) {
        self.unread.fetch_max(revision, Release);
    }

    /// Keys of this revision are in use: what could not be opened before it no longer matters.
    pub(super) fn keys_stand_at(&self, revision: u64) {
        let _ = self.unread.fetch_update(Release, Acquire, |unread| {
            (unread != 0 && unread <= revision).then_some(0)
        });
    }

    fn millis(&self, at: Instant) -> i64 {
        let millis = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        match at.checked_duration_since(self.base) {
            Some(after) => millis(after),
            // Rounded down here too, and never to what stands for "nobody said".
            None => {
                (-millis(self.base.saturating_duration_since(at))).saturating_sub(1).max(NEVER + 1)
            }
        }
    }
}
