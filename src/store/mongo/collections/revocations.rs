//! Revocations: single tokens and deleted families in `revocations`, stored families in `tokens`,
//! and epochs.

use std::sync::Arc;

use async_trait::async_trait;
use mongodb::{
    bson::{Document, doc},
    options::ReturnDocument,
};
use tokio::time::Instant;

use super::{
    family_document::end,
    revocation_document::{document_id, epoch_location},
};
use crate::{
    model::{EpochOf, Event, Revoked, Timestamp, revocation::Revocation},
    store::{
        Change, Follower, Result, RevocationStore, Snapshot,
        mongo::{
            Mongo, Shared,
            audit::outbox::{AuditedChange, OutboxOwner},
            driver::{
                codec::{Fields, date},
                error::MongoError,
                query::{delete_limited, expired_filter, find_limited, ids},
                schema::{CLIENTS, RATE_LIMITS, REVOCATIONS, TOKENS},
            },
            feed::snapshot::FullSnapshot,
            run_detached,
        },
    },
};

/// Clock difference that is allowed between nodes.
const SKEW_MS: i64 = 3_600_000;
/// Attempts at an upsert that races with the creation of the same document.
const ATTEMPTS_MAX: usize = 8;

#[async_trait]
impl RevocationStore for Mongo {
    async fn revoke(&self, revocation: &Revocation, event: Event) -> Result<()> {
        let (shared, revocation) = (self.shared.clone(), *revocation);
        run_detached(&self.shared, async move { shared.revoke(revocation, event).await }).await
    }

    async fn raise_epoch(&self, of: &EpochOf, event: Event) -> Result<u64> {
        let (shared, of) = (self.shared.clone(), of.clone());
        run_detached(&self.shared, async move { shared.raise_epoch(&of, event).await }).await
    }

    async fn follow(&self, now: Timestamp, follower: Arc<dyn Follower>) -> Result<Snapshot> {
        self.shared.observe_time(now);
        // Subscribed before the snapshot is read behind a write of our own: a change that is
        // committed in between is notified.
        self.shared.feed.subscribe(follower.clone());
        let at = Instant::now();
        let FullSnapshot { mut snapshot, keyset } = self.shared.read_snapshot().await?;
        if let Some(keyset) = keyset {
            follower.apply(&Change::Keyset(Arc::new(keyset)));
        }
        follower.knows_up_to(at);
        snapshot.revocations.retain(|revocation| now < revocation.until);
        Ok(snapshot)
    }

    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize> {
        self.shared.observe_time(now);
        let shared = self.shared.clone();
        run_detached(&self.shared, async move { shared.sweep(now, limit).await }).await
    }
}

impl Shared {
    pub(super) async fn revoke(
        &self,
        revocation: Revocation,
        event: Event,
    ) -> Result<(), MongoError> {
        let audited = self.audited_change([event])?;
        match revocation.revoked {
            Revoked::Token(_) => self.insert_revocation(revocation, audited).await,
            Revoked::Family(id) => {
                let update = end(id, &audited, None, revocation.until);
                self.end(id, update, revocation, audited).await
            }
        }
    }

    pub(super) async fn raise_epoch(&self, of: &EpochOf, event: Event) -> Result<u64, MongoError> {
        let audited = self.audited_change([event])?;
        let (collection, id, field) = epoch_location(of);
        let owner = OutboxOwner { collection, id: id.clone().into() };
        let outbox = audited.push(&owner);
        let mut update = doc! { "$inc": { field: 1_i64 }, "$set": { "op": audited.operation() }, "$push": { "outbox": outbox } };
        if collection == CLIENTS {
            // A client that does not exist has an epoch all the same: the next client of its id
            // continues after it.
            update.insert("$setOnInsert", doc! { "deleted": true });
        }
        let found = self.upsert(collection, doc! { "_id": id }, update).await?;
        let value = Fields::of("epoch", &found).count(field)?;
        self.record_and_notify(audited, owner, vec![Change::Epoch(of.clone(), value)]).await?;
        Ok(value)
    }

    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize, MongoError> {
        self.cleaner.flush().await;
        self.persist_time(now);
        let mut gone = delete_limited(
            &self.connection,
            REVOCATIONS,
            expired_filter("until", now, doc! {}),
            limit,
        )
        .await?;
        gone =
            gone.saturating_add(self.forget_ended_families(now, limit.saturating_sub(gone)).await?);
        gone = gone.saturating_add(self.sweep_families(now, limit.saturating_sub(gone)).await?);
        let counters = self.connection.collection(RATE_LIMITS);
        // A node whose clock is ahead must not delete windows that others still count in.
        let mut expired = expired_filter("until", now, doc! {});
        expired.insert("$expr", doc! { "$lte": ["$until", { "$subtract": ["$$NOW", SKEW_MS] }] });
        let swept =
            self.connection.call(async move { Ok(counters.delete_many(expired).await?) }).await?;
        Ok(gone.saturating_add(usize::try_from(swept.deleted_count).unwrap_or(usize::MAX)))
    }

    /// Stores a revocation that no family document carries.
    pub(super) async fn insert_revocation(
        &self,
        revocation: Revocation,
        audited: AuditedChange,
    ) -> Result<(), MongoError> {
        let owner =
            OutboxOwner { collection: REVOCATIONS, id: document_id(revocation.revoked).into() };
        let update = doc! {
            "$max": { "until": date(revocation.until) },
            "$set": { "op": audited.operation() },
            "$push": { "outbox": audited.push(&owner) },
        };
        let found = self.upsert(REVOCATIONS, doc! { "_id": owner.id.clone() }, update).await?;
        let revocation =
            Revocation { until: Fields::of("revocation", &found).time("until")?, ..revocation };
        self.record_and_notify(audited, owner, vec![Change::Revoked(revocation)]).await
    }

    /// Stores a revocation without record or notification: both happened when the family was ended.
    pub(crate) async fn keep_revocation(&self, revocation: Revocation) -> Result<(), MongoError> {
        let update = doc! { "$max": { "until": date(revocation.until) } };
        self.upsert(REVOCATIONS, doc! { "_id": document_id(revocation.revoked) }, update)
            .await
            .map(drop)
    }

    /// Upserts a document; returns it after the update.
    async fn upsert(
        &self,
        collection: &'static str,
        filter: Document,
        update: Document,
    ) -> Result<Document, MongoError> {
        for _ in 0..ATTEMPTS_MAX {
            let (owner, filter, update) =
                (self.connection.collection(collection), filter.clone(), update.clone());
            let write = async move {
                let after = owner
                    .find_one_and_update(filter, update)
                    .upsert(true)
                    .return_document(ReturnDocument::After);
                Ok(after.projection(doc! { "outbox": 0 }).await?)
            };
            match self.connection.call(write).await {
                // Two upserts created it at once: the next attempt finds it.
                Err(fault) if fault.is_duplicate() => {}
                outcome => {
                    return outcome?.ok_or_else(|| {
                        MongoError::malformed(collection, "an upsert returned no document")
                    });
                }
            }
        }
        Err(MongoError::TooManyPending)
    }

    /// Clears the end of families whose tokens have all expired.
    async fn forget_ended_families(
        &self,
        now: Timestamp,
        limit: usize,
    ) -> Result<usize, MongoError> {
        let expired = expired_filter("ended_until", now, doc! {});
        let ids = ids(&find_limited(&self.connection, TOKENS, expired.clone(), limit).await?);
        if ids.is_empty() {
            return Ok(0);
        }
        let tokens = self.connection.collection(TOKENS);
        let filter = doc! { "$and": [{ "_id": { "$in": ids } }, expired] };
        let update = doc! { "$unset": { "ended_until": 1 }, "$set": { "ended": false } };
        let updated = self
            .connection
            .call(async move { Ok(tokens.update_many(filter, update).await?) })
            .await?;
        Ok(usize::try_from(updated.matched_count).unwrap_or(usize::MAX))
    }
}
