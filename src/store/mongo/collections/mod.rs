//! Verbs of the store, one file for each collection that they change.

pub(super) mod audiences;
pub(super) mod clients;
mod coalesce;
pub(super) mod counters;
pub(super) mod families;
pub(super) mod keys;
pub(super) mod proof;
pub(super) mod revocation_list;
pub(super) mod revocations;
mod rotation;

use std::sync::Arc;

use super::{
    audit::{
        AuditLog,
        outbox::{AuditedChange, OutboxOwner},
    },
    driver::{connection::Connection, error::MongoError, query},
    feed::ChangeFeed,
};
use crate::store::Change;

/// Handles of a collection whose changes are recorded and notified.
type Handles = (Arc<Connection>, Arc<AuditLog>, Arc<ChangeFeed>);

/// Records a change that was written, and waits until this node's followers are notified of it.
async fn record_and_notify(
    audit: &AuditLog,
    feed: &ChangeFeed,
    audited: AuditedChange,
    owner: OutboxOwner,
    changes: Vec<Change>,
) -> Result<(), MongoError> {
    let operation = audited.operation;
    // Both, whatever the outcome of either: a change that could not be recorded in time is still a
    // change.
    let (recorded, ()) =
        tokio::join!(audit.record(audited, owner), feed.await_own_change(operation, &changes));
    recorded
}

/// Waits until the document that a write found is durable: see [`query::confirm_durable`].
async fn confirm_durable(connection: &Connection, owner: OutboxOwner) -> Result<(), MongoError> {
    query::confirm_durable(connection, owner.collection, owner.id).await
}
