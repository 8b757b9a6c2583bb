//! A store that measures another: how long each verb takes and what it comes to.

use std::{future::Future, sync::Arc};

use async_trait::async_trait;
use tokio::{sync::broadcast, time::Instant};

use super::{
    AudienceStore, AuditStore, ClientStore, CounterStore, Creation, FamilyStore, Follower,
    FoundAudience, KeyStore, Listed, Proof, ProofStore, ProvenWrite, Result, RevocationStore,
    Rotate, Rotation, SecretUse, Snapshot, Spent, Store, StoreError, Write, Writer,
};
use crate::{
    crypto::chain::Head,
    model::{
        Audience, AudienceRecord, Client, ClientId, EpochOf, Event, Family, FamilyId, Keyset,
        Place, Record, Stamp, TenantId, Timestamp, event::Filter, revocation::Revocation,
    },
};

/// Records `store_call_seconds{verb,outcome}` for every verb of the store inside.
#[derive(Clone, Debug)]
pub struct Metered<S>(S);

impl<S> Metered<S> {
    /// Measures `inner`.
    pub const fn new(inner: S) -> Self {
        Self(inner)
    }

    /// The store inside.
    pub const fn inner(&self) -> &S {
        &self.0
    }
}

async fn measure<T>(verb: &'static str, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
    let start = Instant::now();
    let result = call.await;
    let outcome = match &result {
        Ok(_) => "ok",
        Err(StoreError::Unavailable(_)) => "unavailable",
        Err(StoreError::Full(_)) => "full",
        Err(StoreError::Corrupt(_)) => "corrupt",
    };
    metrics::histogram!("store_call_seconds", "verb" => verb, "outcome" => outcome)
        .record(start.elapsed());
    result
}

#[async_trait]
impl<S: Store> ClientStore for Metered<S> {
    async fn client(&self, id: &ClientId) -> Result<Option<Client>> {
        measure("client", self.0.client(id)).await
    }

    async fn clients(
        &self,
        tenant: Option<&TenantId>,
        after: Option<&ClientId>,
        limit: usize,
    ) -> Result<Vec<Listed>> {
        measure("clients", self.0.clients(tenant, after, limit)).await
    }

    async fn create_client(&self, client: &Client, event: Event) -> Result<Creation> {
        measure("create_client", self.0.create_client(client, event)).await
    }

    async fn create_client_of_any(&self, client: &Client, event: Event) -> Result<Creation> {
        measure("create_client_of_any", self.0.create_client_of_any(client, event)).await
    }

    async fn replace_client(&self, client: &Client, event: Event) -> Result<Write> {
        measure("replace_client", self.0.replace_client(client, event)).await
    }

    async fn end_client(&self, client: &Client, events: Vec<Event>, ended: Event) -> Result<Write> {
        measure("end_client", self.0.end_client(client, events, ended)).await
    }

    async fn delete_client(&self, client: &Client, event: Event) -> Result<Write> {
        measure("delete_client", self.0.delete_client(client, event)).await
    }

    async fn note_uses(&self, uses: &[SecretUse]) -> Result<()> {
        measure("note_uses", self.0.note_uses(uses)).await
    }
}

#[async_trait]
impl<S: Store> AudienceStore for Metered<S> {
    async fn audience(&self, audience: &Audience) -> Result<Option<FoundAudience>> {
        measure("audience", self.0.audience(audience)).await
    }

    async fn audiences(
        &self,
        tenant: Option<&TenantId>,
        after: Option<&Audience>,
        limit: usize,
    ) -> Result<Vec<FoundAudience>> {
        measure("audiences", self.0.audiences(tenant, after, limit)).await
    }

    async fn claim_audience(&self, record: &AudienceRecord, event: Event) -> Result<Creation> {
        measure("claim_audience", self.0.claim_audience(record, event)).await
    }

    async fn replace_audience(&self, record: &AudienceRecord, event: Event) -> Result<Write> {
        measure("replace_audience", self.0.replace_audience(record, event)).await
    }

    async fn release_audience(&self, record: &AudienceRecord, event: Event) -> Result<Write> {
        measure("release_audience", self.0.release_audience(record, event)).await
    }
}

#[async_trait]
impl<S: Store> FamilyStore for Metered<S> {
    async fn open_family(&self, family: &Family, event: Event) -> Result<Creation> {
        measure("open_family", self.0.open_family(family, event)).await
    }

    async fn family(&self, id: FamilyId, now: Timestamp) -> Result<Option<Family>> {
        measure("family", self.0.family(id, now)).await
    }

    async fn rotate(&self, rotate: &Rotate, stamp: &Stamp, jti: &str) -> Result<Rotation> {
        measure("rotate", self.0.rotate(rotate, stamp, jti)).await
    }

    async fn end_family(
        &self,
        id: FamilyId,
        now: Timestamp,
        until: Timestamp,
        event: Event,
    ) -> Result<()> {
        measure("end_family", self.0.end_family(id, now, until, event)).await
    }
}

#[async_trait]
impl<S: Store> RevocationStore for Metered<S> {
    async fn revoke(&self, revocation: &Revocation, event: Event) -> Result<()> {
        measure("revoke", self.0.revoke(revocation, event)).await
    }

    async fn raise_epoch(&self, of: &EpochOf, event: Event) -> Result<u64> {
        measure("raise_epoch", self.0.raise_epoch(of, event)).await
    }

    async fn follow(&self, now: Timestamp, follower: Arc<dyn Follower>) -> Result<Snapshot> {
        measure("follow", self.0.follow(now, follower)).await
    }

    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize> {
        measure("sweep", self.0.sweep(now, limit)).await
    }
}

#[async_trait]
impl<S: Store> AuditStore for Metered<S> {
    async fn append(&self, event: Event) -> Result<()> {
        measure("append", self.0.append(event)).await
    }

    async fn append_soon(&self, event: Event) -> Result<()> {
        measure("append_soon", self.0.append_soon(event)).await
    }

    async fn events(
        &self,
        filter: &Filter,
        before: Option<&Place>,
        limit: usize,
    ) -> Result<Vec<Record>> {
        measure("events", self.0.events(filter, before, limit)).await
    }

    async fn chains(&self) -> Result<Vec<Arc<str>>> {
        measure("chains", self.0.chains()).await
    }

    async fn chain(&self, name: &str, after: u64, limit: usize) -> Result<Vec<Record>> {
        measure("chain", self.0.chain(name, after, limit)).await
    }

    async fn head(&self, chain: &str) -> Result<Option<Head>> {
        measure("head", self.0.head(chain)).await
    }

    async fn writer(&self, chain: &str) -> Result<Writer> {
        measure("writer", self.0.writer(chain)).await
    }

    async fn witnesses(&self, after: Option<&Place>, limit: usize) -> Result<Vec<Record>> {
        measure("witnesses", self.0.witnesses(after, limit)).await
    }

    fn tail(&self) -> broadcast::Receiver<Option<Arc<Record>>> {
        self.0.tail()
    }
}

#[async_trait]
impl<S: Store> KeyStore for Metered<S> {
    async fn keyset(&self) -> Result<Option<Keyset>> {
        measure("keyset", self.0.keyset()).await
    }

    async fn replace_keyset(&self, keyset: &Keyset, event: Event) -> Result<Write> {
        measure("replace_keyset", self.0.replace_keyset(keyset, event)).await
    }
}

#[async_trait]
impl<S: Store> CounterStore for Metered<S> {
    async fn count(&self, hits: &[(String, u64)], until: Timestamp) -> Result<Vec<u64>> {
        measure("count", self.0.count(hits, until)).await
    }
}

#[async_trait]
impl<S: Store> ProofStore for Metered<S> {
    async fn spend(&self, proof: Proof, write: ProvenWrite) -> Result<Spent> {
        measure(write.verb(), self.0.spend(proof, write)).await
    }
}

#[async_trait]
impl<S: Store> Store for Metered<S> {
    async fn ready(&self) -> Result<()> {
        measure("ready", self.0.ready()).await
    }

    async fn close(&self) -> Result<()> {
        measure("close", self.0.close()).await
    }

    fn newest(&self) -> Timestamp {
        self.0.newest()
    }

    async fn time(&self) -> Result<Option<Timestamp>> {
        measure("time", self.0.time()).await
    }
}
