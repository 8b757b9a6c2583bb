//! The collection `revocations`: revoked tokens, and ended families whose documents are deleted.

use std::sync::Arc;

use mongodb::bson::doc;

use super::{Handles, record_and_notify};
use crate::{
    model::{Timestamp, revocation::Revocation},
    store::{
        Change,
        mongo::{
            audit::{
                AuditLog,
                outbox::{AuditedChange, OutboxOwner},
            },
            documents::revocation::document_id,
            driver::{
                codec::{Fields, date},
                connection::Connection,
                error::MongoError,
                query::{delete_limited, expired_filter, upsert},
                schema::REVOCATIONS,
            },
            feed::ChangeFeed,
        },
    },
};

/// The collection `revocations`.
#[derive(Clone)]
pub(crate) struct RevocationList {
    connection: Arc<Connection>,
    audit: Arc<AuditLog>,
    feed: Arc<ChangeFeed>,
}

impl RevocationList {
    pub(crate) fn new((connection, audit, feed): Handles) -> Self {
        Self { connection, audit, feed }
    }

    /// Stores a revocation that no family document carries.
    pub(super) async fn insert(
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
        let found =
            upsert(&self.connection, REVOCATIONS, doc! { "_id": owner.id.clone() }, update).await?;
        let revocation =
            Revocation { until: Fields::of("revocation", &found).time("until")?, ..revocation };
        record_and_notify(
            &self.audit,
            &self.feed,
            audited,
            owner,
            vec![Change::Revoked(revocation)],
        )
        .await
    }

    /// Stores a revocation without record or notification: both happened when the family was ended.
    pub(super) async fn keep(&self, revocation: Revocation) -> Result<(), MongoError> {
        let update = doc! { "$max": { "until": date(revocation.until) } };
        upsert(
            &self.connection,
            REVOCATIONS,
            doc! { "_id": document_id(revocation.revoked) },
            update,
        )
        .await
        .map(drop)
    }

    /// Deletes up to `limit` revocations of tokens that have expired.
    pub(super) async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize, MongoError> {
        let expired = expired_filter("until", now, doc! {});
        delete_limited(&self.connection, REVOCATIONS, expired, limit).await
    }
}
