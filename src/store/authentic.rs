//! A store whose client records are this service's own: each carries a code under a key from the master key, made with every write
//! and checked with every read. A record that does not check is no client: it reads as absent, a listing names it and goes on, its
//! id stays taken, and an alarm says so. An older record that was put back whole carries a code that was right and is not noticed.
//!
//! Rules and servers take this type: no other can be had from a store that was opened.

mod rest;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;

use super::{
    ClientStore, Creation, Listed, Proof, ProofStore, ProvenWrite, Result, SecretUse, Spent, Store, StoreError, Write,
};
use crate::{
    crypto::records::RecordKey,
    model::{Client, ClientId, Event, TenantId},
};

/// The most ids that wait to be reported; there may be as many forged records as a database holds.
const ALARMS: usize = 100;

/// Seals what is written to the store inside and checks what is read from it.
pub struct Authentic {
    inner: Arc<dyn Store>,
    key: RecordKey,
    /// Records that did not check since they were last reported, and how often.
    alarms: Mutex<BTreeMap<ClientId, u64>>,
}

impl Authentic {
    /// Over a store, under the key that its records are sealed with.
    pub fn new(inner: Arc<dyn Store>, key: RecordKey) -> Self {
        Self { inner, key, alarms: Mutex::default() }
    }

    /// Ids of records that did not check since the last time, and how often each was read.
    pub fn take_alarms(&self) -> BTreeMap<ClientId, u64> {
        std::mem::take(&mut *self.alarms())
    }

    /// The client, if it is what was written under this id.
    fn checked(&self, id: &ClientId, client: Client) -> Option<Client> {
        if client.id == *id && self.key.is_authentic(&client) {
            return Some(client);
        }
        self.alarm(id);
        None
    }

    fn alarm(&self, id: &ClientId) {
        metrics::counter!("jeton_records_not_authentic_total").increment(1);
        let mut alarms = self.alarms();
        if alarms.contains_key(id) || alarms.len() < ALARMS {
            alarms.entry(id.clone()).and_modify(|times| *times = times.saturating_add(1)).or_insert(1);
        }
    }

    fn alarms(&self) -> MutexGuard<'_, BTreeMap<ClientId, u64>> {
        self.alarms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl ClientStore for Authentic {
    async fn client(&self, id: &ClientId) -> Result<Option<Client>> {
        let found = self.inner.client(id).await.inspect_err(|error| {
            // A record that cannot even be read was not left so by this service.
            if matches!(error, StoreError::Corrupt(_)) {
                self.alarm(id);
            }
        })?;
        Ok(found.and_then(|client| self.checked(id, client)))
    }

    async fn clients(&self, tenant: Option<&TenantId>, after: Option<&ClientId>, limit: usize) -> Result<Vec<Listed>> {
        let check = |listed| match listed {
            Listed::Client(client) => {
                let id = client.id.clone();
                self.checked(&id, *client).map_or(Listed::NotAuthentic(id), |client| Listed::Client(Box::new(client)))
            }
            Listed::NotAuthentic(id) => {
                self.alarm(&id);
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

    async fn end_client(&self, client: &Client, event: Event, ended: Event) -> Result<Write> {
        self.inner.end_client(&self.key.seal_client(client.clone()), event, ended).await
    }

    async fn delete_client(&self, id: &ClientId, revision: u64, event: Event) -> Result<Write> {
        self.inner.delete_client(id, revision, event).await
    }

    async fn note_uses(&self, uses: &[SecretUse]) -> Result<()> {
        self.inner.note_uses(uses).await
    }
}

#[async_trait]
impl ProofStore for Authentic {
    async fn spend(&self, proof: Proof, write: ProvenWrite) -> Result<Spent> {
        let proof = proof.checked_with(&self.key);
        self.inner.spend(proof, write.map_client(|client| self.key.seal_client(client))).await
    }
}
