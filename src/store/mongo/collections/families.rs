//! Refresh families: one document each, in the collection `tokens`. An ended family keeps the time
//! until which its end must be remembered, so that ending it and revoking it are one write.

use std::sync::Arc;

use async_trait::async_trait;
use mongodb::{
    bson::{Document, doc},
    options::ReturnDocument,
};
use tokio::time::timeout;

use super::{
    coalesce::Join,
    family_document::{decoded, encoded, end, ended_until, owner},
    rotation::RefreshCall,
};
use crate::{
    model::{Event, Family, FamilyId, Stamp, Timestamp, revocation::Revocation},
    store::{
        Change, Creation, FamilyStore, Result, Rotate, Rotation, ended,
        mongo::{
            Mongo, Shared,
            audit::outbox::{AuditedChange, CallerAlive},
            driver::{
                codec::{Fields, uuid},
                error::MongoError,
                query::{delete_limited, expired_filter, find_limited},
                schema::TOKENS,
            },
            run_detached,
        },
    },
};

/// Ended families that one sweep moves, one by one.
const MOVED_MAX: usize = 200;

#[async_trait]
impl FamilyStore for Mongo {
    async fn open_family(&self, family: &Family, event: Event) -> Result<Creation> {
        let (shared, family) = (self.shared.clone(), family.clone());
        run_detached(&self.shared, async move { shared.open_family(&family, event).await }).await
    }

    async fn family(&self, id: FamilyId, now: Timestamp) -> Result<Option<Family>> {
        self.shared.observe_time(now);
        let deadline = self.shared.connection.deadline();
        let found = timeout(deadline, self.shared.find(id))
            .await
            .map_err(|_| MongoError::Timeout(deadline))??;
        let family = found.as_deref().map(decoded).transpose()?;
        Ok(family.filter(|family| now < family.ends_at()))
    }

    async fn rotate(&self, rotate: &Rotate, stamp: &Stamp, jti: &str) -> Result<Rotation> {
        self.shared.observe_time(rotate.now);
        let (shared, rotate, stamp, jti) =
            (self.shared.clone(), rotate.clone(), stamp.clone(), jti.to_owned());
        let family = rotate.family;
        // Dropped with this future: after the answer, on timeout, or when the caller disconnects.
        let caller = Arc::new(());
        let alive = CallerAlive::from_guard(&caller);
        let verb = async move {
            shared
                .rotate(&RefreshCall { rotate: &rotate, stamp: &stamp, jti: &jti, caller: &alive })
                .await
        };
        let (rotation, entry) = run_detached(&self.shared, verb).await?;
        drop(caller);
        if let Some(entry) = entry {
            self.shared.cleaner.answered(owner(family), entry);
        }
        Ok(rotation)
    }

    async fn end_family(
        &self,
        id: FamilyId,
        now: Timestamp,
        until: Timestamp,
        event: Event,
    ) -> Result<()> {
        self.shared.observe_time(now);
        let shared = self.shared.clone();
        run_detached(&self.shared, async move { shared.end_family(id, now, until, event).await })
            .await
    }
}

impl Shared {
    async fn open_family(&self, family: &Family, event: Event) -> Result<Creation, MongoError> {
        let audited = self.audited_change([event])?;
        let mut document = encoded(family)?;
        document.extend([
            ("op".to_owned(), audited.operation()),
            ("outbox".to_owned(), audited.outbox_entries(&owner(family.id))),
        ]);
        let tokens = self.connection.collection(TOKENS);
        match self.connection.call(async move { Ok(tokens.insert_one(document).await?) }).await {
            Err(fault) if fault.is_duplicate() => {
                self.confirm_durable(owner(family.id)).await?;
                return Ok(Creation::Taken);
            }
            outcome => drop(outcome?),
        }
        self.record(audited, owner(family.id)).await?;
        Ok(Creation::Created)
    }

    pub(super) async fn end_family(
        &self,
        id: FamilyId,
        now: Timestamp,
        until: Timestamp,
        event: Event,
    ) -> Result<(), MongoError> {
        let audited = self.audited_change([event])?;
        let update = end(id, &audited, Some(now), until);
        self.end(id, update, ended(id, until), audited).await
    }

    /// Reads a family, once for all callers at the same time.
    async fn find(&self, id: FamilyId) -> Result<Option<Arc<Document>>, MongoError> {
        let lead = match self.family_reads.join(id, |_| true).await {
            Join::Shared(found) => return Ok(found),
            Join::Lead(lead) => lead,
        };
        let tokens = self.connection.collection(TOKENS);
        let read = self
            .connection
            .call(async move { Ok(tokens.find_one(doc! { "_id": uuid(id.0) }).await?) });
        lead.run(async {
            match read.await? {
                // A missing family must not be reported on weak evidence: a partitioned or newly
                // elected primary may not show what was acknowledged. A write that changes nothing
                // is certain.
                None if !self.is_standalone => self.read_durable(id).await,
                found => Ok(found),
            }
        })
        .await
    }

    /// Reads a family by a write that changes nothing: its result is what the majority has once it
    /// returns.
    pub(super) async fn read_durable(&self, id: FamilyId) -> Result<Option<Document>, MongoError> {
        self.change_family(doc! { "_id": uuid(id.0) }, vec![doc! { "$set": { "_id": "$_id" } }])
            .await
    }

    /// Applies an update; returns the family after it.
    pub(super) async fn change_family(
        &self,
        filter: Document,
        update: Vec<Document>,
    ) -> Result<Option<Document>, MongoError> {
        let tokens = self.connection.collection(TOKENS);
        let change = async move {
            let after =
                tokens.find_one_and_update(filter, update).return_document(ReturnDocument::After);
            Ok(after.projection(doc! { "outbox": 0 }).await?)
        };
        self.connection.call(change).await
    }

    /// Ends a stored family, or stores the revocation of a deleted one.
    pub(crate) async fn end(
        &self,
        id: FamilyId,
        update: Vec<Document>,
        revocation: Revocation,
        audited: AuditedChange,
    ) -> Result<(), MongoError> {
        let Some(found) = self.change_family(doc! { "_id": uuid(id.0) }, update).await? else {
            return self.insert_revocation(revocation, audited).await;
        };
        let revocation =
            Revocation { until: ended_until(&found)?.unwrap_or(revocation.until), ..revocation };
        self.record_and_notify(audited, owner(id), vec![Change::Revoked(revocation)]).await
    }
}

impl Shared {
    /// Deletes up to `limit` families that can never be valid again. If the end of one must be
    /// remembered longer, its revocation is written before the family is deleted, so that a crash
    /// in between leaves both.
    pub(super) async fn sweep_families(
        &self,
        now: Timestamp,
        limit: usize,
    ) -> Result<usize, MongoError> {
        let gone = delete_limited(
            &self.connection,
            TOKENS,
            expired_filter("ends_at", now, doc! { "ended": false }),
            limit,
        )
        .await?;
        let room = limit.saturating_sub(gone);
        if room == 0 {
            return Ok(gone);
        }
        // Those with an entry in the outbox stay for the next sweep.
        let dead = expired_filter(
            "ends_at",
            now,
            doc! { "ended": true, "outbox.id": { "$exists": false } },
        );
        let room = room.min(MOVED_MAX);
        let found = find_limited(&self.connection, TOKENS, dead, room).await?;
        for document in &found {
            let id = FamilyId(Fields::of("refresh family", document).uuid("_id")?);
            if let Some(until) = ended_until(document)?.filter(|until| now < *until) {
                self.keep_revocation(ended(id, until)).await?;
            }
            // A concurrent revocation may have extended the time: then the family stays for the
            // next sweep.
            let filter = doc! {
                "_id": uuid(id.0),
                "ended_until": document.get("ended_until").cloned(),
                "outbox.id": { "$exists": false },
            };
            let tokens = self.connection.collection(TOKENS);
            self.connection.call(async move { Ok(tokens.delete_one(filter).await?) }).await?;
        }
        Ok(gone.saturating_add(found.len()))
    }
}
