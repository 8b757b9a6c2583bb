//! Audiences: one document each, with the tenant that it belongs to. A released audience leaves its
//! outbox behind, so that the record of the release is not lost with it.

use std::sync::Arc;

use async_trait::async_trait;
use mongodb::bson::{Document, doc};

use super::confirm_durable;
use crate::{
    model::{Audience, AudienceRecord, Event, TenantId},
    store::{
        AudienceStore, Creation, FoundAudience, Result, Write,
        mongo::{
            audit::{
                AuditLog,
                outbox::{AuditedChange, OutboxOwner},
            },
            documents::audience::{decoded, encoded},
            driver::{
                codec::{Fields, before, count, encode},
                connection::Connection,
                error::MongoError,
                query::{find_latest, find_sorted},
                schema::AUDIENCES,
            },
        },
    },
};

/// The collection `audiences`.
#[derive(Clone)]
pub(crate) struct Audiences {
    connection: Arc<Connection>,
    audit: Arc<AuditLog>,
}

impl Audiences {
    pub(crate) const fn new(connection: Arc<Connection>, audit: Arc<AuditLog>) -> Self {
        Self { connection, audit }
    }
}

#[async_trait]
impl AudienceStore for Audiences {
    async fn audience(&self, audience: &Audience) -> Result<Option<FoundAudience>> {
        let document = find_latest(
            &self.connection,
            AUDIENCES,
            doc! { "_id": audience.as_str(), "released": { "$ne": true } },
        )
        .await?;
        Ok(document.map(|document| found(audience.clone(), &document)))
    }

    async fn audiences(
        &self,
        tenant: Option<&TenantId>,
        after: Option<&Audience>,
        limit: usize,
    ) -> Result<Vec<FoundAudience>> {
        Ok(self.list(tenant, after, limit).await?)
    }

    async fn claim_audience(&self, record: &AudienceRecord, event: Event) -> Result<Creation> {
        let (audiences, record) = (self.clone(), record.clone());
        self.connection.run_detached(async move { audiences.claim(&record, event).await }).await
    }

    async fn replace_audience(&self, record: &AudienceRecord, event: Event) -> Result<Write> {
        let (audiences, record) = (self.clone(), record.clone());
        self.connection.run_detached(async move { audiences.replace(&record, event).await }).await
    }

    async fn release_audience(&self, record: &AudienceRecord, event: Event) -> Result<Write> {
        let (audiences, record) = (self.clone(), record.clone());
        self.connection.run_detached(async move { audiences.release(&record, event).await }).await
    }
}

impl Audiences {
    pub(super) async fn claim(
        &self,
        record: &AudienceRecord,
        event: Event,
    ) -> Result<Creation, MongoError> {
        let (audited, owner) = (self.audit.change([event])?, owner(&record.audience));
        // The document of a released audience is reused; any other blocks the upsert by its `_id`.
        let filter = doc! { "_id": record.audience.as_str(), "released": true };
        let update = doc! { "$set": encoded(record)?, "$push": { "outbox": audited.push(&owner) } };
        let audiences = self.connection.collection(AUDIENCES);
        match self
            .connection
            .call(async move { Ok(audiences.update_one(filter, update).upsert(true).await?) })
            .await
        {
            Err(fault) if fault.is_duplicate() => {
                confirm_durable(&self.connection, owner).await?;
                return Ok(Creation::Taken);
            }
            outcome => drop(outcome?),
        }
        self.audit.record(audited, owner).await?;
        Ok(Creation::Created)
    }

    pub(super) async fn replace(
        &self,
        record: &AudienceRecord,
        event: Event,
    ) -> Result<Write, MongoError> {
        let Some(before) = before(record.revision) else { return Ok(Write::Stale) };
        let audited = self.audit.change([event])?;
        let update = doc! { "$set": encoded(record)?, "$push": { "outbox": audited.push(&owner(&record.audience)) } };
        self.change(record, before, update, audited).await
    }

    pub(super) async fn release(
        &self,
        record: &AudienceRecord,
        event: Event,
    ) -> Result<Write, MongoError> {
        let audited = self.audit.change([event])?;
        let update = doc! {
            "$set": { "released": true },
            "$unset": { "tenant": 1, "revision": 1, "record": 1 },
            "$push": { "outbox": audited.push(&owner(&record.audience)) },
        };
        self.change(record, record.revision, update, audited).await
    }

    /// Replaces the record `from`; without one, replaces whatever is stored.
    pub(super) async fn assign(
        &self,
        from: Option<&AudienceRecord>,
        record: &AudienceRecord,
        events: Vec<Event>,
    ) -> Result<Write, MongoError> {
        let (audited, owner) = (self.audit.change(events)?, owner(&record.audience));
        let update = doc! { "$set": encoded(record)?, "$push": { "outbox": audited.push(&owner) } };
        if let Some(from) = from {
            return self.change(from, from.revision, update, audited).await;
        }
        let filter = doc! { "_id": record.audience.as_str() };
        let audiences = self.connection.collection(AUDIENCES);
        self.connection
            .call(async move { Ok(audiences.update_one(filter, update).upsert(true).await?) })
            .await?;
        self.audit.record(audited, owner).await?;
        Ok(Write::Done)
    }

    /// Changes the record of this tenant and revision (compare-and-set).
    async fn change(
        &self,
        record: &AudienceRecord,
        revision: u64,
        update: Document,
        audited: AuditedChange,
    ) -> Result<Write, MongoError> {
        let filter = doc! {
            "_id": record.audience.as_str(),
            "released": false,
            "tenant": record.tenant.as_str(),
            "revision": count(revision),
            // Revisions start at 1 again after a release.
            "record.created_at": encode("audience", &record.created_at)?,
        };
        let audiences = self.connection.collection(AUDIENCES);
        if self
            .connection
            .call(async move { Ok(audiences.update_one(filter, update).await?) })
            .await?
            .matched_count
            == 0
        {
            return Ok(Write::Stale);
        }
        self.audit.record(audited, owner(&record.audience)).await?;
        Ok(Write::Done)
    }

    /// Lists records in order; a document whose `_id` is no valid audience is left out.
    async fn list(
        &self,
        tenant: Option<&TenantId>,
        after: Option<&Audience>,
        limit: usize,
    ) -> Result<Vec<FoundAudience>, MongoError> {
        let (mut listed, mut last) =
            (Vec::new(), after.map_or_else(String::new, ToString::to_string));
        loop {
            let mut filter = doc! { "released": { "$ne": true }, "_id": { "$gt": &last } };
            if let Some(tenant) = tenant {
                filter.insert("tenant", tenant.as_str());
            }
            let missing = limit.saturating_sub(listed.len());
            let page = find_sorted(
                &self.connection,
                AUDIENCES,
                filter,
                doc! { "_id": 1 },
                doc! { "outbox": 0 },
                missing,
            )
            .await?;
            let Some(end) = page.last() else { return Ok(listed) };
            Fields::of("audience", end).text("_id")?.clone_into(&mut last);
            for document in &page {
                let Ok(audience) = Fields::of("audience", document).parse::<Audience>("_id") else {
                    continue;
                };
                listed.push(found(audience, document).listed_for(tenant));
            }
            if page.len() < missing || listed.len() >= limit {
                return Ok(listed);
            }
        }
    }
}

fn owner(audience: &Audience) -> OutboxOwner {
    OutboxOwner { collection: AUDIENCES, id: audience.as_str().into() }
}

/// Record in the document of `audience`, if it is authentic.
fn found(audience: Audience, document: &Document) -> FoundAudience {
    match decoded(document) {
        Ok(record) => FoundAudience::Owned(record),
        Err(_) => FoundAudience::NotAuthentic(audience),
    }
}
