//! Revocations of tokens, families and epochs, in whichever collection has them.

use std::sync::Arc;

use async_trait::async_trait;
use mongodb::bson::doc;
use tokio::time::Instant;

use super::{
    Handles, counters::Counters, families::Families, record_and_notify,
    revocation_list::RevocationList,
};
use crate::{
    model::{EpochOf, Event, Revoked, Timestamp, revocation::Revocation},
    store::{
        Change, Follower, Result, RevocationStore, Snapshot,
        mongo::{
            audit::{AuditLog, outbox::OutboxOwner},
            documents::revocation::epoch_location,
            driver::{
                codec::Fields, connection::Connection, error::MongoError, query::upsert,
                schema::CLIENTS,
            },
            feed::{ChangeFeed, snapshot::FullSnapshot},
        },
    },
};

/// Everything by which a token can be revoked.
#[derive(Clone)]
pub(crate) struct TokenRevocations {
    connection: Arc<Connection>,
    audit: Arc<AuditLog>,
    feed: Arc<ChangeFeed>,
    list: RevocationList,
    families: Families,
    counters: Counters,
}

#[async_trait]
impl RevocationStore for TokenRevocations {
    async fn revoke(&self, revocation: &Revocation, event: Event) -> Result<()> {
        let (revocations, revocation) = (self.clone(), *revocation);
        let verb = async move { revocations.add(revocation, event).await };
        self.connection.run_detached(verb).await
    }

    async fn raise_epoch(&self, of: &EpochOf, event: Event) -> Result<u64> {
        let (revocations, of) = (self.clone(), of.clone());
        let verb = async move { revocations.raise(&of, event).await };
        self.connection.run_detached(verb).await
    }

    async fn follow(&self, now: Timestamp, follower: Arc<dyn Follower>) -> Result<Snapshot> {
        self.audit.observe_time(now);
        // Subscribed before the snapshot is read behind a write of our own: a change that is
        // committed in between is notified.
        self.feed.subscribe(follower.clone());
        let at = Instant::now();
        let FullSnapshot { mut snapshot, keyset } = self.feed.read_snapshot().await?;
        if let Some(keyset) = keyset {
            follower.apply(&Change::Keyset(Arc::new(keyset)));
        }
        follower.knows_up_to(at);
        snapshot.revocations.retain(|revocation| now < revocation.until);
        Ok(snapshot)
    }

    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize> {
        self.audit.observe_time(now);
        let revocations = self.clone();
        let verb = async move { revocations.sweep_all(now, limit).await };
        self.connection.run_detached(verb).await
    }
}

impl TokenRevocations {
    pub(crate) fn new(
        (connection, audit, feed): Handles,
        list: RevocationList,
        families: Families,
        counters: Counters,
    ) -> Self {
        Self { connection, audit, feed, list, families, counters }
    }

    pub(super) async fn add(&self, revocation: Revocation, event: Event) -> Result<(), MongoError> {
        let audited = self.audit.change([event])?;
        match revocation.revoked {
            Revoked::Token(_) => self.list.insert(revocation, audited).await,
            Revoked::Family(id) => self.families.revoke(id, revocation, audited).await,
        }
    }

    pub(super) async fn raise(&self, of: &EpochOf, event: Event) -> Result<u64, MongoError> {
        let audited = self.audit.change([event])?;
        let (collection, id, field) = epoch_location(of);
        let owner = OutboxOwner { collection, id: id.clone().into() };
        let outbox = audited.push(&owner);
        let mut update = doc! { "$inc": { field: 1_i64 }, "$push": { "outbox": outbox } };
        if collection == CLIENTS {
            // A client that does not exist has an epoch all the same: the next client of its id
            // continues after it.
            update.insert("$setOnInsert", doc! { "deleted": true });
        }
        let found = upsert(&self.connection, collection, doc! { "_id": id }, update).await?;
        let value = Fields::of("epoch", &found).count(field)?;
        record_and_notify(
            &self.audit,
            &self.feed,
            audited,
            owner,
            &[Change::Epoch(of.clone(), value)],
        )
        .await?;
        Ok(value)
    }

    async fn sweep_all(&self, now: Timestamp, limit: usize) -> Result<usize, MongoError> {
        self.audit.flush().await;
        self.audit.persist_time(now);
        let mut gone = self.list.sweep(now, limit).await?;
        let families = &self.families;
        gone = gone.saturating_add(families.forget_ended(now, limit.saturating_sub(gone)).await?);
        gone = gone.saturating_add(families.sweep(now, limit.saturating_sub(gone)).await?);
        Ok(gone.saturating_add(self.counters.sweep(now).await?))
    }
}
