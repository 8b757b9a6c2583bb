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
    Handles,
    coalesce::{Coalescer, Join},
    confirm_durable, record_and_notify,
    revocation_list::RevocationList,
};
use crate::{
    model::{Event, Family, FamilyId, Stamp, Timestamp, revocation::Revocation},
    store::{
        Change, Creation, FamilyStore, Result, Rotate, Rotation, ended,
        mongo::{
            audit::{
                AuditLog,
                outbox::{AuditedChange, CallerGuard, CallerWatch},
            },
            documents::family::{decoded, encoded, end_update, ended_until, owner},
            driver::{
                codec::{Fields, uuid},
                connection::Connection,
                error::MongoError,
                group_commands::{Inserted, Inserts, Statement, Updated, Updates},
                group_commit::GroupCommit,
                query::{delete_limited, expired_filter, find_limited, ids},
                schema::TOKENS,
            },
            feed::ChangeFeed,
        },
    },
};

/// Attempts to end a family that a read finds unchanged.
const END_ATTEMPTS_MAX: usize = 4;
/// Ended families that one sweep moves, one by one.
const MOVED_MAX: usize = 200;

/// The collection `tokens`.
#[derive(Clone)]
pub(crate) struct Families {
    pub(super) connection: Arc<Connection>,
    pub(super) audit: Arc<AuditLog>,
    pub(super) feed: Arc<ChangeFeed>,
    revocations: RevocationList,
    inserts: Arc<GroupCommit<Inserts>>,
    updates: Arc<GroupCommit<Updates>>,
    /// Single-flight reads and rotations of families.
    reads: Arc<Coalescer>,
    pub(super) rotations: Arc<Coalescer>,
}

/// Call of Refresh in progress.
pub(super) struct RefreshCall<'a> {
    pub(super) rotate: &'a Rotate,
    pub(super) stamp: &'a Stamp,
    pub(super) jti: &'a str,
    /// The caller, which may give up while the operation runs on.
    pub(super) caller: &'a CallerWatch,
}

impl RefreshCall<'_> {
    pub(super) fn is_abandoned(&self) -> bool {
        self.caller.is_abandoned()
    }
}

#[async_trait]
impl FamilyStore for Families {
    async fn open_family(&self, family: &Family, event: Event) -> Result<Creation> {
        let (families, family) = (self.clone(), family.clone());
        self.connection.run_detached(async move { families.insert(&family, event).await }).await
    }

    async fn family(&self, id: FamilyId, now: Timestamp) -> Result<Option<Family>> {
        self.audit.observe_time(now);
        let deadline = self.connection.deadline();
        let found =
            timeout(deadline, self.find(id)).await.map_err(|_| MongoError::Timeout(deadline))??;
        let family = found.as_deref().map(decoded).transpose()?;
        Ok(family.filter(|family| now < family.ends_at()))
    }

    async fn rotate(&self, rotate: &Rotate, stamp: &Stamp, jti: &str) -> Result<Rotation> {
        self.audit.observe_time(rotate.now);
        let (families, rotate, stamp, jti) =
            (self.clone(), rotate.clone(), stamp.clone(), jti.to_owned());
        let family = rotate.family;
        // Dropped with this future, on timeout or when the caller disconnects.
        let guard = CallerGuard::new();
        let caller = guard.watch();
        let verb = async move {
            let call = RefreshCall { rotate: &rotate, stamp: &stamp, jti: &jti, caller: &caller };
            families.refresh(&call).await
        };
        let (rotation, entry) = self.connection.run_detached(verb).await?;
        guard.answered();
        if let Some(entry) = entry {
            self.audit.answered(owner(family), entry);
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
        self.audit.observe_time(now);
        let families = self.clone();
        self.connection.run_detached(async move { families.end(id, now, until, event).await }).await
    }
}

impl Families {
    pub(crate) fn new((connection, audit, feed): Handles, revocations: RevocationList) -> Self {
        let (reads, rotations) = <(Arc<Coalescer>, Arc<Coalescer>)>::default();
        let inserts = Arc::new(GroupCommit::new(connection.clone(), Inserts(TOKENS)));
        let updates = Arc::new(GroupCommit::new(connection.clone(), Updates(TOKENS)));
        Self { connection, audit, feed, revocations, inserts, updates, reads, rotations }
    }

    async fn insert(&self, family: &Family, event: Event) -> Result<Creation, MongoError> {
        let audited = self.audit.change([event])?;
        let mut document = encoded(family)?;
        document.insert("outbox", audited.outbox_entries(&owner(family.id)));
        if self.inserts.run(document).await? == Inserted::Taken {
            confirm_durable(&self.connection, owner(family.id)).await?;
            return Ok(Creation::Taken);
        }
        self.audit.record(audited, owner(family.id)).await?;
        Ok(Creation::Created)
    }

    pub(super) async fn end(
        &self,
        id: FamilyId,
        now: Timestamp,
        until: Timestamp,
        event: Event,
    ) -> Result<(), MongoError> {
        let audited = self.audit.change([event])?;
        self.apply_end(id, Some(now), ended(id, until), audited).await
    }

    /// Reads a family, once for all callers at the same time.
    async fn find(&self, id: FamilyId) -> Result<Option<Arc<Document>>, MongoError> {
        let lead = match self.reads.join(id, |_| true).await {
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
                None if !self.connection.is_standalone() => self.read_durable(id).await,
                found => Ok(found),
            }
        })
        .await
    }

    /// Reads a family by a write that changes nothing: its result is what the majority has once it
    /// returns. It has the ids of the entries in its outbox.
    pub(super) async fn read_durable(&self, id: FamilyId) -> Result<Option<Document>, MongoError> {
        let tokens = self.connection.collection(TOKENS);
        let read = async move {
            let nothing = vec![doc! { "$set": { "_id": "$_id" } }];
            let after = tokens
                .find_one_and_update(doc! { "_id": uuid(id.0) }, nothing)
                .return_document(ReturnDocument::After);
            Ok(after.projection(doc! { "outbox.event": 0 }).await?)
        };
        self.connection.call(read).await
    }

    /// Applies an update to a family that matches `filter`, which no family does after it.
    pub(super) async fn update(
        &self,
        id: FamilyId,
        filter: Document,
        update: Vec<Document>,
        audited: &AuditedChange,
    ) -> Result<Updated, MongoError> {
        let entry = audited.first_entry()?;
        self.updates.run(Statement { id: uuid(id.0), filter, update, entry }).await
    }

    /// Revokes a family for as long as `revocation` says.
    pub(super) async fn revoke(
        &self,
        id: FamilyId,
        revocation: Revocation,
        audited: AuditedChange,
    ) -> Result<(), MongoError> {
        self.apply_end(id, None, revocation, audited).await
    }

    /// Ends a stored family, or stores the revocation of a deleted one.
    async fn apply_end(
        &self,
        id: FamilyId,
        ended_at: Option<Timestamp>,
        revocation: Revocation,
        audited: AuditedChange,
    ) -> Result<(), MongoError> {
        let update = end_update(id, &audited, ended_at, revocation.until);
        let entry = audited.first_entry()?;
        // An end applies to any state of a family: the entry is what makes a repetition match
        // nothing.
        let filter = doc! { "_id": uuid(id.0), "outbox.id": { "$ne": uuid(entry) } };
        for _ in 0..END_ATTEMPTS_MAX {
            if self.update(id, filter.clone(), update.clone(), &audited).await? == Updated::Applied
            {
                return self.ended(id, revocation, audited).await;
            }
            match self.read_durable(id).await? {
                None => return self.revocations.insert(revocation, audited).await,
                Some(found) if audited.is_in(&found) => {
                    return self.ended(id, revocation, audited).await;
                }
                Some(_) => {}
            }
        }
        Err(MongoError::TooManyPending)
    }

    /// Notifies followers of an end that was written, and records it. If the end of the family is
    /// remembered longer already, they were notified of that.
    pub(super) async fn ended(
        &self,
        id: FamilyId,
        revocation: Revocation,
        audited: AuditedChange,
    ) -> Result<(), MongoError> {
        let changes = [Change::Revoked(revocation)];
        record_and_notify(&self.audit, &self.feed, audited, owner(id), &changes).await
    }

    /// Deletes up to `limit` families that can never be valid again. If the end of one must be
    /// remembered longer, its revocation is written before the family is deleted, so that a crash
    /// in between leaves both.
    pub(super) async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize, MongoError> {
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
                self.revocations.keep(ended(id, until)).await?;
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

    /// Clears the end of families whose tokens have all expired.
    pub(super) async fn forget_ended(
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
