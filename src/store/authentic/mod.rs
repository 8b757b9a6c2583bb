//! Store wrapper that authenticates records of clients and audiences: each carries a MAC under a
//! key from the master key, made with every write and checked with every read. A client's record
//! with a wrong MAC is no client: it reads as absent, a listing names it and goes on, its id stays
//! taken, and an alarm is raised. An audience's record with a wrong MAC reads as not authentic, so
//! that no tenant gets the audience. An older record that was restored as a whole has a right MAC
//! and is not noticed.
//!
//! Rules and servers take this type: an open store is available in no other.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;

use super::{
    AudienceStore, ClientStore, Creation, FoundAudience, Listed, Proof, ProofStore, ProvenWrite,
    Result, SecretUse, Spent, Store, StoreError, Wrapper, Write,
};
use crate::{
    crypto::records::RecordKey,
    model::{Audience, AudienceRecord, Client, ClientId, Event, TenantId},
};

/// Most ids that wait to be reported; a database may hold any number of forged records.
const ALARMS: usize = 100;

/// Record that this service did not write, or that cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Forged {
    /// Record under the id of a client.
    Client(ClientId),
    /// Record under an audience.
    Audience(Audience),
}

impl fmt::Display for Forged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(id) => write!(f, "client {id}"),
            Self::Audience(audience) => write!(f, "audience {audience}"),
        }
    }
}

/// Store that seals every record it writes and checks every record it reads.
pub struct Authentic {
    inner: Arc<dyn Store>,
    key: RecordKey,
    /// Forged records since the last report, and how often each was read.
    alarms: Mutex<BTreeMap<Forged, u64>>,
}

impl Authentic {
    /// Wraps a store, with the key that its records are sealed with.
    pub fn new(inner: Arc<dyn Store>, key: RecordKey) -> Self {
        Self { inner, key, alarms: Mutex::default() }
    }

    /// Takes the forged records since the last call, and how often each was read.
    pub fn take_alarms(&self) -> BTreeMap<Forged, u64> {
        std::mem::take(&mut *self.alarms())
    }

    /// Returns the client, if this service wrote it under this id.
    fn checked(&self, id: &ClientId, client: Client) -> Option<Client> {
        if client.id == *id && self.key.is_authentic(&client) {
            return Some(client);
        }
        self.alarm(Forged::Client(id.clone()));
        None
    }

    /// Returns the record of an audience, as authentic only if this service wrote it.
    fn checked_audience(&self, found: FoundAudience) -> FoundAudience {
        let audience = match found {
            FoundAudience::Owned(record) if self.key.is_authentic_audience(&record) => {
                return FoundAudience::Owned(record);
            }
            FoundAudience::Owned(AudienceRecord { audience, .. })
            | FoundAudience::NotAuthentic(audience) => audience,
        };
        self.alarm(Forged::Audience(audience.clone()));
        FoundAudience::NotAuthentic(audience)
    }

    fn alarm(&self, forged: Forged) {
        crate::metrics::METRICS.records_not_authentic.inc();
        let mut alarms = self.alarms();
        if alarms.contains_key(&forged) || alarms.len() < ALARMS {
            alarms.entry(forged).and_modify(|times| *times = times.saturating_add(1)).or_insert(1);
        }
    }

    fn alarms(&self) -> MutexGuard<'_, BTreeMap<Forged, u64>> {
        self.alarms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wrapper for Authentic {
    type Wrapped = dyn Store;

    fn wrapped(&self) -> &Self::Wrapped {
        &*self.inner
    }
}

// Verbs that need no MAC: their records are sealed otherwise, or grant no access.
pass_verbs!(
    [] Authentic: FamilyStore, RevocationStore, AuditStore, RetentionStore, KeyStore,
    CounterStore, Store
);

#[async_trait]
impl ClientStore for Authentic {
    async fn client(&self, id: &ClientId) -> Result<Option<Client>> {
        let found = self.inner.client(id).await.inspect_err(|error| {
            // This service left no record that cannot be decoded.
            if matches!(error, StoreError::Corrupt(_)) {
                self.alarm(Forged::Client(id.clone()));
            }
        })?;
        Ok(found.and_then(|client| self.checked(id, client)))
    }

    async fn clients(
        &self,
        tenant: Option<&TenantId>,
        after: Option<&ClientId>,
        limit: usize,
    ) -> Result<Vec<Listed>> {
        let check = |listed| match listed {
            Listed::Client(client) => {
                let id = client.id.clone();
                self.checked(&id, *client)
                    .map_or(Listed::NotAuthentic(id), |client| Listed::Client(Box::new(client)))
            }
            Listed::NotAuthentic(id) => {
                self.alarm(Forged::Client(id.clone()));
                Listed::NotAuthentic(id)
            }
        };
        Ok(self.inner.clients(tenant, after, limit).await?.into_iter().map(check).collect())
    }

    async fn create_client(&self, client: &Client, event: Event) -> Result<Creation> {
        self.inner.create_client(&self.key.seal_client(client.clone()), event).await
    }

    async fn create_client_of_any(&self, client: &Client, event: Event) -> Result<Creation> {
        self.inner.create_client_of_any(&self.key.seal_client(client.clone()), event).await
    }

    async fn replace_client(&self, client: &Client, event: Event) -> Result<Write> {
        self.inner.replace_client(&self.key.seal_client(client.clone()), event).await
    }

    async fn end_client(&self, client: &Client, events: Vec<Event>, ended: Event) -> Result<Write> {
        self.inner.end_client(&self.key.seal_client(client.clone()), events, ended).await
    }

    async fn delete_client(&self, client: &Client, event: Event) -> Result<Write> {
        self.inner.delete_client(client, event).await
    }

    async fn record_secret_uses(&self, uses: &[SecretUse]) -> Result<()> {
        self.inner.record_secret_uses(uses).await
    }
}

#[async_trait]
impl AudienceStore for Authentic {
    async fn audience(&self, audience: &Audience) -> Result<Option<FoundAudience>> {
        Ok(self.inner.audience(audience).await?.map(|found| self.checked_audience(found)))
    }

    async fn audiences(
        &self,
        tenant: Option<&TenantId>,
        after: Option<&Audience>,
        limit: usize,
    ) -> Result<Vec<FoundAudience>> {
        let listed = self.inner.audiences(tenant, after, limit).await?;
        Ok(listed.into_iter().map(|found| self.checked_audience(found)).collect())
    }

    async fn claim_audience(&self, record: &AudienceRecord, event: Event) -> Result<Creation> {
        self.inner.claim_audience(&self.key.seal_audience(record.clone()), event).await
    }

    async fn replace_audience(&self, record: &AudienceRecord, event: Event) -> Result<Write> {
        self.inner.replace_audience(&self.key.seal_audience(record.clone()), event).await
    }

    async fn release_audience(&self, record: &AudienceRecord, event: Event) -> Result<Write> {
        self.inner.release_audience(record, event).await
    }
}

#[async_trait]
impl ProofStore for Authentic {
    async fn spend(&self, proof: Proof, write: ProvenWrite) -> Result<Spent> {
        let proof = proof.checked_with(&self.key);
        if let ProvenWrite::MoveAudience { from: None, record, .. } = &write {
            // An authentic record that was stored meanwhile is not overwritten.
            if !matches!(
                self.audience(&record.audience).await?,
                Some(FoundAudience::NotAuthentic(_))
            ) {
                return Ok(Spent::Stale);
            }
        }
        let write = write.map_client(|client| self.key.seal_client(client));
        self.inner.spend(proof, write.map_audience(|record| self.key.seal_audience(record))).await
    }
}
