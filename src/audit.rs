//! The audit trail as rules use it: what is recorded before the answer, and what may come after.

use std::sync::Arc;

use crate::{
    config::Issue,
    error::{Error, Result},
    model::Event,
    store::Store,
};

/// Writes events that come with no other change of the store.
pub struct Trail {
    store: Arc<dyn Store>,
    issue: Issue,
}

impl Trail {
    /// Over a store; `issue` says when the record of an issued token is durable.
    pub fn new(store: Arc<dyn Store>, issue: Issue) -> Self {
        Self { store, issue }
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

    /// Records that a call is refused with `error`, and hands the error on; fails closed where it cannot be recorded.
    pub async fn refusal(&self, event: Event, error: Error) -> Error {
        self.soon(event).await.err().unwrap_or(error)
    }
}
