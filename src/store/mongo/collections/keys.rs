//! The keyset: one document.

use std::sync::Arc;

use async_trait::async_trait;
use mongodb::bson::doc;

use super::{Handles, confirm_durable, record_and_notify};
use crate::{
    model::{Event, Keyset},
    store::{
        Change, KeyStore, Result, Write,
        mongo::{
            audit::{AuditLog, outbox::OutboxOwner},
            documents::keyset::{KEYSET, decoded},
            driver::{
                codec::{before, count, encode},
                connection::Connection,
                error::MongoError,
                schema::SIGNING_KEYS,
            },
            feed::ChangeFeed,
        },
    },
};

/// The collection `signing_keys`.
#[derive(Clone)]
pub(crate) struct StoredKeyset {
    connection: Arc<Connection>,
    audit: Arc<AuditLog>,
    feed: Arc<ChangeFeed>,
}

impl StoredKeyset {
    pub(crate) fn new((connection, audit, feed): Handles) -> Self {
        Self { connection, audit, feed }
    }
}

#[async_trait]
impl KeyStore for StoredKeyset {
    async fn keyset(&self) -> Result<Option<Keyset>> {
        let keys = self.connection.collection(SIGNING_KEYS);
        let found = self
            .connection
            .call(async move { Ok(keys.find_one(doc! { "_id": KEYSET }).await?) })
            .await?;
        Ok(found.as_ref().map(decoded).transpose()?)
    }

    async fn replace_keyset(&self, keyset: &Keyset, event: Event) -> Result<Write> {
        let (keys, keyset) = (self.clone(), keyset.clone());
        self.connection.run_detached(async move { keys.replace(&keyset, event).await }).await
    }
}

impl StoredKeyset {
    pub(super) async fn replace(&self, keyset: &Keyset, event: Event) -> Result<Write, MongoError> {
        let Some(before) = before(keyset.revision) else { return Ok(Write::Stale) };
        let audited = self.audit.change([event])?;
        // No keyset has revision 0: the first one is inserted, unless there is one, which then has
        // its `_id`.
        let filter = doc! { "_id": KEYSET, "revision": count(before) };
        let set = doc! { "revision": count(keyset.revision), "keyset": encode("keyset", keyset)? };
        let owner = OutboxOwner { collection: SIGNING_KEYS, id: KEYSET.into() };
        let update = doc! { "$set": set, "$push": { "outbox": audited.push(&owner) } };
        let (keys, first) = (self.connection.collection(SIGNING_KEYS), before == 0);
        match self
            .connection
            .call(async move { Ok(keys.update_one(filter, update).upsert(first).await?) })
            .await
        {
            Err(fault) if fault.is_duplicate() => {
                confirm_durable(&self.connection, owner).await?;
                return Ok(Write::Stale);
            }
            outcome => {
                let written = outcome?;
                if written.matched_count == 0 && written.upserted_id.is_none() {
                    return Ok(Write::Stale);
                }
            }
        }
        record_and_notify(
            &self.audit,
            &self.feed,
            audited,
            owner,
            &[Change::Keyset(Arc::new(keyset.clone()))],
        )
        .await?;
        Ok(Write::Done)
    }
}
