//! A store whose records of clients and audiences are this service's own: each carries a code under
//! a key from the master key, made with every write and checked with every read. A client's record
//! that does not check is no client: it reads as absent, a listing names it and goes on, its id
//! stays taken, and an alarm says so. An audience's record that does not check is found as not
//! authentic, so that no tenant gets the audience. An older record that was put back whole carries
//! a code that was right and is not noticed.
//!
//! Rules and servers take this type: no other can be had from a store that was opened.

mod rest;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;

use super::{
    AudienceStore, ClientStore, Creation, FoundAudience, Listed, Proof, ProofStore, ProvenWrite,
    Result, SecretUse, Spent, Store, StoreError, Write,
};
use crate::{
    crypto::records::RecordKey,
    model::{Audience, AudienceRecord, Client, ClientId, Event, TenantId},
};

/// The most ids that wait to be reported; there may be as many forged records as a database holds.
const ALARMS: usize = 100;

/// A record that this service did not write, or that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Forged {
    /// Under the id of a client.
    Client(ClientId),
    /// Under an audience.
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

/// Seals what is written to the store inside and checks what is read from it.
pub struct Authentic {
    inner: Arc<dyn Store>,
    key: RecordKey,
    /// Records that did not check since they were last reported, and how often.
    alarms: Mutex<BTreeMap<Forged, u64>>,
}

impl Authentic {
    /// Over a store, under the key that its records are sealed with.
    pub fn new(inner: Arc<dyn Store>, key: RecordKey) -> Self {
        Self { inner, key, alarms: Mutex::default() }
    }

    /// Records that did not check since the last time, and how often each was read.
    pub fn take_alarms(&self) -> BTreeMap<Forged, u64> {
        std::mem::take(&mut *self.alarms())
    }

    /// The client, if it is what was written under this id.
    fn checked(&self, id: &ClientId, client: Client) -> Option<Client> {
        if client.id == *id && self.key.is_authentic(&client) {
            return Some(client);
        }
        self.alarm(Forged::Client(id.clone()));
        None
    }

    /// The record of an audience, if this service wrote it.
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
        metrics::counter!("jeton_records_not_authentic_total").increment(1);
        let mut alarms = self.alarms();
        if alarms.contains_key(&forged) || alarms.len() < ALARMS {
            alarms.entry(forged).and_modify(|times| *times = times.saturating_add(1)).or_insert(1);
        }
    }

    fn alarms(&self) -> MutexGuard<'_, BTreeMap<Forged, u64>> {
        self.alarms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl ClientStore for Authentic {
    async fn client(&self, id: &ClientId) -> Result<Option<Client>> {
        let found = self.inner.client(id).await.inspect_err(|error| {
            // A record that cannot even be read was not left so by this service.
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

    async fn note_uses(&self, uses: &[SecretUse]) -> Result<()> {
        self.inner.note_uses(uses).await
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
            // A record that was put right meanwhile is not written over.
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
