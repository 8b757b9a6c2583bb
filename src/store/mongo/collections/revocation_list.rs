//! The collection `revocations`: revoked tokens, and ended families whose documents are deleted.

use std::sync::Arc;

use mongodb::bson::{Bson, doc};

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
                codec::date,
                connection::Connection,
                error::MongoError,
                group_commands::{Inserted, Inserts},
                group_commit::GroupCommit,
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
    inserts: Arc<GroupCommit<Inserts>>,
}

impl RevocationList {
    pub(crate) fn new((connection, audit, feed): Handles) -> Self {
        let inserts = Arc::new(GroupCommit::new(connection.clone(), Inserts(REVOCATIONS)));
        Self { connection, audit, feed, inserts }
    }

    /// Stores a revocation that no family document carries.
    pub(super) async fn insert(
        &self,
        revocation: Revocation,
        audited: AuditedChange,
    ) -> Result<(), MongoError> {
        let id = Bson::from(document_id(revocation.revoked));
        let owner = OutboxOwner { collection: REVOCATIONS, id: id.clone() };
        let document = doc! {
            "_id": &id,
            "until": date(revocation.until),
            "outbox": audited.outbox_entries(&owner),
        };
        if self.inserts.run(document).await? == Inserted::Taken {
            let update = doc! {
                "$max": { "until": date(revocation.until) },
                "$push": { "outbox": audited.push(&owner) },
            };
            upsert(&self.connection, REVOCATIONS, doc! { "_id": id }, update).await?;
        }
        // If it is remembered longer already, followers were notified of that.
        let changes = [Change::Revoked(revocation)];
        record_and_notify(&self.audit, &self.feed, audited, owner, &changes).await
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
