//! Store wrapper that measures the duration and outcome of every verb.

use std::future::Future;

use async_trait::async_trait;
use tokio::time::Instant;

use super::{Proof, ProofStore, ProvenWrite, Result, Spent, Store, StoreError, Wrapper};
use crate::metrics::METRICS;

/// Store whose verbs are recorded as `jeton_store_call_seconds{verb,outcome}`.
#[derive(Clone, Debug)]
pub struct Metered<S>(S);

impl<S> Metered<S> {
    /// Measures `inner`.
    pub const fn new(inner: S) -> Self {
        Self(inner)
    }

    /// Returns the wrapped store.
    pub const fn inner(&self) -> &S {
        &self.0
    }
}

impl<S: Store> Wrapper for Metered<S> {
    type Wrapped = S;

    fn wrapped(&self) -> &S {
        &self.0
    }

    async fn around<T: Send>(
        &self,
        verb: &'static str,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let start = Instant::now();
        let result = call.await;
        let outcome = match &result {
            Ok(_) => "ok",
            Err(StoreError::Unavailable(_)) => "unavailable",
            Err(StoreError::Full(_)) => "full",
            Err(StoreError::Corrupt(_)) => "corrupt",
        };
        METRICS.store_calls(verb, outcome).record(start.elapsed());
        result
    }
}

pass_verbs!(
    [S: Store] Metered<S>: ClientStore, AudienceStore, FamilyStore, RevocationStore, AuditStore,
    RetentionStore, KeyStore, CounterStore, Store
);

#[async_trait]
impl<S: Store> ProofStore for Metered<S> {
    /// Makes the change, measured as the verb that it makes conditional.
    async fn spend(&self, proof: Proof, write: ProvenWrite) -> Result<Spent> {
        self.around(write.verb(), self.0.spend(proof, write)).await
    }
}
