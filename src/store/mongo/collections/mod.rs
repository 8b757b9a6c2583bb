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

/// Notifies this node's followers of a change that was written, and records it. The change
/// stream notifies other nodes, and this one once more: every change may be applied twice, and in any
/// order.
async fn record_and_notify(
    audit: &AuditLog,
    feed: &ChangeFeed,
    audited: AuditedChange,
    owner: OutboxOwner,
    changes: &[Change],
) -> Result<(), MongoError> {
    // First: a change that could not be recorded in time is still a change.
    feed.notify(changes);
    audit.record(audited, owner).await
}

/// Waits until the document that a write found is durable: see [`query::confirm_durable`].
async fn confirm_durable(connection: &Connection, owner: OutboxOwner) -> Result<(), MongoError> {
    query::confirm_durable(connection, owner.collection, owner.id).await
}
