//! The verbs that need no code: their records are sealed otherwise, or decide nothing about who may
//! do what.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::broadcast;

use super::Authentic;
use crate::{
    crypto::chain::Head,
    model::{
        EpochOf, Event, Family, FamilyId, Keyset, Place, Record, Stamp, Timestamp, event::Filter,
        revocation::Revocation,
    },
    store::{
        AuditStore, CounterStore, Creation, FamilyStore, Follower, KeyStore, Result,
        RevocationStore, Rotate, Rotation, Snapshot, Store, Write, Writer,
    },
};

#[async_trait]
impl FamilyStore for Authentic {
    async fn open_family(&self, family: &Family, event: Event) -> Result<Creation> {
        self.inner.open_family(family, event).await
    }

    async fn family(&self, id: FamilyId, now: Timestamp) -> Result<Option<Family>> {
        self.inner.family(id, now).await
    }

    async fn rotate(&self, rotate: &Rotate, stamp: &Stamp, jti: &str) -> Result<Rotation> {
        self.inner.rotate(rotate, stamp, jti).await
    }

    async fn end_family(
        &self,
        id: FamilyId,
        now: Timestamp,
        until: Timestamp,
        event: Event,
    ) -> Result<()> {
        self.inner.end_family(id, now, until, event).await
    }
}

#[async_trait]
impl RevocationStore for Authentic {
    async fn revoke(&self, revocation: &Revocation, event: Event) -> Result<()> {
        self.inner.revoke(revocation, event).await
    }

    async fn raise_epoch(&self, of: &EpochOf, event: Event) -> Result<u64> {
        self.inner.raise_epoch(of, event).await
    }

    async fn follow(&self, now: Timestamp, follower: Arc<dyn Follower>) -> Result<Snapshot> {
        self.inner.follow(now, follower).await
    }

    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize> {
        self.inner.sweep(now, limit).await
    }
}

#[async_trait]
impl AuditStore for Authentic {
    async fn append(&self, event: Event) -> Result<()> {
        self.inner.append(event).await
    }

    async fn append_soon(&self, event: Event) -> Result<()> {
        self.inner.append_soon(event).await
    }

    async fn events(
        &self,
        filter: &Filter,
        before: Option<&Place>,
        limit: usize,
    ) -> Result<Vec<Record>> {
        self.inner.events(filter, before, limit).await
    }

    async fn chains(&self) -> Result<Vec<Arc<str>>> {
        self.inner.chains().await
    }

    async fn chain(&self, name: &str, after: u64, limit: usize) -> Result<Vec<Record>> {
        self.inner.chain(name, after, limit).await
    }

    async fn head(&self, chain: &str) -> Result<Option<Head>> {
        self.inner.head(chain).await
    }

    async fn writer(&self, chain: &str) -> Result<Writer> {
        self.inner.writer(chain).await
    }

    async fn witnesses(&self, after: Option<&Place>, limit: usize) -> Result<Vec<Record>> {
        self.inner.witnesses(after, limit).await
    }

    fn tail(&self) -> broadcast::Receiver<Option<Arc<Record>>> {
        self.inner.tail()
    }
}

#[async_trait]
impl KeyStore for Authentic {
    async fn keyset(&self) -> Result<Option<Keyset>> {
        self.inner.keyset().await
    }

    async fn replace_keyset(&self, keyset: &Keyset, event: Event) -> Result<Write> {
        self.inner.replace_keyset(keyset, event).await
    }
}

#[async_trait]
impl CounterStore for Authentic {
    async fn count(&self, hits: &[(String, u64)], until: Timestamp) -> Result<Vec<u64>> {
        self.inner.count(hits, until).await
    }
}

#[async_trait]
impl Store for Authentic {
    async fn ready(&self) -> Result<()> {
        self.inner.ready().await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }

    fn newest(&self) -> Timestamp {
        self.inner.newest()
    }

    async fn time(&self) -> Result<Option<Timestamp>> {
        self.inner.time().await
    }
}
