//! The keyset: one document.

use std::sync::{Arc, atomic::Ordering::SeqCst};

use async_trait::async_trait;
use mongodb::bson::{Document, doc};

use crate::{
    model::{Event, Keyset},
    store::{
        Change, KeyStore, Result, Write,
        mongo::{
            Mongo, Shared,
            audit::outbox::OutboxOwner,
            driver::{
                codec::{Fields, before, count, encode},
                error::MongoError,
                schema::SIGNING_KEYS,
            },
            run_detached,
        },
    },
};

/// `_id` of the keyset.
pub(crate) const KEYSET: &str = "keyset";

#[async_trait]
impl KeyStore for Mongo {
    async fn keyset(&self) -> Result<Option<Keyset>> {
        let keys = self.shared.connection.collection(SIGNING_KEYS);
        let found = self
            .shared
            .connection
            .call(async move { Ok(keys.find_one(doc! { "_id": KEYSET }).await?) })
            .await?;
        Ok(found.as_ref().map(decoded).transpose()?)
    }

    async fn replace_keyset(&self, keyset: &Keyset, event: Event) -> Result<Write> {
        let (shared, keyset) = (self.shared.clone(), keyset.clone());
        run_detached(&self.shared, async move { shared.replace_keyset(&keyset, event).await }).await
    }
}

impl Shared {
    /// Keyset that was read; `None` for an unreadable one, which is logged once: the last authentic
    /// keyset stays in use.
    pub(crate) fn readable(&self, keyset: Result<Keyset, MongoError>) -> Option<Keyset> {
        let is_known = self.keyset_unread.swap(keyset.is_err(), SeqCst);
        keyset
            .inspect_err(|fault| {
                if !is_known {
                    log_refused(fault)
                }
            })
            .ok()
    }

    pub(super) async fn replace_keyset(
        &self,
        keyset: &Keyset,
        event: Event,
    ) -> Result<Write, MongoError> {
        let Some(before) = before(keyset.revision) else { return Ok(Write::Stale) };
        let audited = self.audited_change([event])?;
        // No keyset has revision 0: the first one is inserted, unless there is one, which then has
        // its `_id`.
        let filter = doc! { "_id": KEYSET, "revision": count(before) };
        let set = doc! { "revision": count(keyset.revision), "keyset": encode("keyset", keyset)?, "op": audited.operation() };
        let owner = OutboxOwner { collection: SIGNING_KEYS, id: KEYSET.into() };
        let update = doc! { "$set": set, "$push": { "outbox": audited.push(&owner) } };
        let (keys, first) = (self.connection.collection(SIGNING_KEYS), before == 0);
        match self
            .connection
            .call(async move { Ok(keys.update_one(filter, update).upsert(first).await?) })
            .await
        {
            Err(fault) if fault.is_duplicate() => {
                self.confirm_durable(owner).await?;
                return Ok(Write::Stale);
            }
            outcome => {
                let written = outcome?;
                if written.matched_count == 0 && written.upserted_id.is_none() {
                    return Ok(Write::Stale);
                }
            }
        }
        self.record_and_notify(audited, owner, vec![Change::Keyset(Arc::new(keyset.clone()))])
            .await?;
        Ok(Write::Done)
    }
}

/// Counts and logs a document that is no authentic keyset.
pub(crate) fn log_refused(fault: &MongoError) {
    metrics::counter!("jeton_keyset_refused_total").increment(1);
    tracing::error!(%fault, "rejected the keyset of the store, still using the last authentic one");
}

pub(crate) fn decoded(document: &Document) -> Result<Keyset, MongoError> {
    Fields::of("keyset", document).part("keyset")
}
