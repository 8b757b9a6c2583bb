//! The audit trail as rules use it: what is recorded before the answer, and what may come after.

mod refusals;

use std::sync::Arc;

use self::refusals::{Refusals, TRACKED};
use crate::{
    config::Issue,
    error::{Error, Result},
    model::{Event, PeerKey, Timestamp},
    store::Store,
};

/// Writes events that come with no other change of the store.
pub struct Trail {
    store: Arc<dyn Store>,
    issue: Issue,
    refusals: Refusals,
}

impl Trail {
    /// Over a store; `issue` says when the record of an issued token is durable.
    pub fn new(store: Arc<dyn Store>, issue: Issue) -> Self {
        Self { store, issue, refusals: Refusals::new(TRACKED) }
    }

    /// Durable when it answers.
    pub async fn record(&self, event: Event) -> Result<()> {
        Ok(self.store.append(event).await?)
    }

    /// Durable at most 50 ms after it answers.
    pub async fn soon(&self, event: Event) -> Result<()> {
        Ok(self.store.append_soon(event).await?)
    }

    /// A token's issue, as configured.
    pub async fn issued(&self, event: Event) -> Result<()> {
        match self.issue {
            Issue::Durable => self.record(event).await,
            Issue::Batched => self.soon(event).await,
        }
    }

    /// Records that an authenticated call is refused with `error`, and hands the error on; fails
    /// closed where it cannot be recorded. Equal refusals of a minute are counted.
    pub async fn refusal(&self, event: Event, error: Error) -> Error {
        self.counted(None, event).await.err().unwrap_or(error)
    }

    /// Records a refusal like [`Self::soon`] if it is the first of its kind in a minute, and counts
    /// the others for the record of that minute. `peer` is that of a caller who is not
    /// authenticated.
    pub async fn counted(&self, peer: Option<PeerKey>, event: Event) -> Result<()> {
        match self.refusals.count(peer, event) {
            Some(first) => self.kept(peer, first).await,
            None => Ok(()),
        }
    }

    /// [`Self::soon`] for a refusal or an alarm. One that the store does not take is counted, and
    /// recorded later all the same.
    pub async fn kept(&self, peer: Option<PeerKey>, event: Event) -> Result<()> {
        let recorded = self.soon(event.clone()).await;
        if recorded.is_err() {
            self.refusals.keep(peer, event);
        }
        recorded
    }

    /// Records the counts of refusals whose minute is over, or at the end of the process all of
    /// them. What the store does not take stays for the next time.
    pub async fn record_counts(&self, now: Timestamp, all: bool) -> Result<()> {
        let due = self.refusals.due(now, all);
        let last = due.len().saturating_sub(1);
        for (at, due) in due.iter().enumerate() {
            // One wait for all: records are kept in their order, so that the last one carries the
            // others.
            if at == last {
                self.record(due.event.clone()).await?
            } else {
                self.soon(due.event.clone()).await?
            }
            self.refusals.written(due, now);
        }
        Ok(())
    }
}
