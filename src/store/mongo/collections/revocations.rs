//! What was ended: single tokens and families that are gone in `revocations`, families that are
//! there in `tokens`, and epochs.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use mongodb::{
    bson::{Bson, Document, doc},
    options::ReturnDocument,
};
use tokio::time::Instant;
use uuid::Uuid;

use super::{clients, families};
use crate::{
    model::{EpochOf, Event, FamilyId, Jti, Revoked, Timestamp, revocation::Revocation},
    store::{
        Change, Follower, Result, RevocationStore, Snapshot,
        mongo::{
            Mongo, Shared,
            audit::outbox::{Deed, Owner},
            driver::{
                codec::{Fields, date},
                error::Fault,
                schema::{CLIENTS, EPOCHS, RATE_LIMITS, REVOCATIONS, TOKENS},
            },
            feed::snapshot::Known,
            whole,
        },
    },
};

/// How far the clocks of nodes may be apart.
const SKEW_MS: i64 = 3_600_000;
/// How often a write is tried again that met another one making the same document.
const ATTEMPTS: usize = 8;

#[async_trait]
impl RevocationStore for Mongo {
    async fn revoke(&self, revocation: &Revocation, event: Event) -> Result<()> {
        let (shared, revocation) = (self.shared.clone(), *revocation);
        whole(&self.shared, async move { shared.revoke(revocation, event).await }).await
    }

    async fn raise_epoch(&self, of: &EpochOf, event: Event) -> Result<u64> {
        let (shared, of) = (self.shared.clone(), of.clone());
        whole(&self.shared, async move { shared.raise_epoch(&of, event).await }).await
    }

    async fn follow(&self, now: Timestamp, follower: Arc<dyn Follower>) -> Result<Snapshot> {
        self.shared.brings(now);
        // First among the hearers, then the state as it is behind a write of our own: what is
        // committed in between is heard.
        self.shared.feed.join(follower.clone());
        let at = Instant::now();
        let Known { standing: mut snapshot, keyset } = self.shared.known().await?;
        if let Some(keyset) = keyset {
            follower.apply(&Change::Keyset(Arc::new(keyset)));
        }
        follower.knows_up_to(at);
        snapshot.revocations.retain(|revocation| now < revocation.until);
        Ok(snapshot)
    }

    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize> {
        self.shared.brings(now);
        let shared = self.shared.clone();
        whole(&self.shared, async move { shared.sweep(now, limit).await }).await
    }
}

impl Shared {
    pub(super) async fn revoke(&self, revocation: Revocation, event: Event) -> Result<(), Fault> {
        let deed = self.deed([event])?;
        match revocation.revoked {
            Revoked::Token(_) => self.remember(revocation, deed).await,
            Revoked::Family(id) => {
                let update = families::end(id, &deed, None, revocation.until);
                self.end(id, update, revocation, deed).await
            }
        }
    }

    pub(super) async fn raise_epoch(&self, of: &EpochOf, event: Event) -> Result<u64, Fault> {
        let deed = self.deed([event])?;
        let (collection, id, field) = place_of(of);
        let owner = Owner { collection, id: id.clone().into() };
        let outbox = deed.push(&owner);
        let mut update = doc! { "$inc": { field: 1_i64 }, "$set": { "op": deed.operation() }, "$push": { "outbox": outbox } };
        if collection == CLIENTS {
            // A client that is not there has an epoch all the same: whoever takes its name begins
            // behind it.
            update.insert("$setOnInsert", doc! { "deleted": true });
        }
        let found = self.upsert(collection, doc! { "_id": id }, update).await?;
        let value = Fields::of("epoch", &found).count(field)?;
        self.record_heard(deed, owner, vec![Change::Epoch(of.clone(), value)]).await?;
        Ok(value)
    }

    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize, Fault> {
        self.settle.flush().await;
        self.saw(now);
        let mut gone = delete_some(self, REVOCATIONS, over("until", now, doc! {}), limit).await?;
        gone = gone.saturating_add(self.forget_ends(now, limit.saturating_sub(gone)).await?);
        gone = gone.saturating_add(self.sweep_families(now, limit.saturating_sub(gone)).await?);
        let counters = self.link.collection(RATE_LIMITS);
        // A node whose clock is ahead must not take the windows that others still count in.
        let mut past = over("until", now, doc! {});
        past.insert("$expr", doc! { "$lte": ["$until", { "$subtract": ["$$NOW", SKEW_MS] }] });
        let swept = self.link.call(async move { Ok(counters.delete_many(past).await?) }).await?;
        Ok(gone.saturating_add(usize::try_from(swept.deleted_count).unwrap_or(usize::MAX)))
    }

    /// Keeps a revocation where no family keeps it.
    pub(super) async fn remember(&self, revocation: Revocation, deed: Deed) -> Result<(), Fault> {
        let owner = Owner { collection: REVOCATIONS, id: key_of(revocation.revoked).into() };
        let update = doc! {
            "$max": { "until": date(revocation.until) },
            "$set": { "op": deed.operation() },
            "$push": { "outbox": deed.push(&owner) },
        };
        let found = self.upsert(REVOCATIONS, doc! { "_id": owner.id.clone() }, update).await?;
        let revocation =
            Revocation { until: Fields::of("revocation", &found).time("until")?, ..revocation };
        self.record_heard(deed, owner, vec![Change::Revoked(revocation)]).await
    }

    /// The same without a record and without telling: it was told when the family was ended.
    pub(crate) async fn keep(&self, revocation: Revocation) -> Result<(), Fault> {
        let update = doc! { "$max": { "until": date(revocation.until) } };
        self.upsert(REVOCATIONS, doc! { "_id": key_of(revocation.revoked) }, update).await.map(drop)
    }

    /// The document as it is after the update, made if it was not there.
    async fn upsert(
        &self,
        collection: &'static str,
        filter: Document,
        update: Document,
    ) -> Result<Document, Fault> {
        for _ in 0..ATTEMPTS {
            let (owner, filter, update) =
                (self.link.collection(collection), filter.clone(), update.clone());
            let write = async move {
                let after = owner
                    .find_one_and_update(filter, update)
                    .upsert(true)
                    .return_document(ReturnDocument::After);
                Ok(after.projection(doc! { "outbox": 0 }).await?)
            };
            match self.link.call(write).await {
                // Two made it at once: the second time it is there.
                Err(fault) if fault.is_duplicate() => {}
                outcome => {
                    return outcome?
                        .ok_or_else(|| Fault::row(collection, "an upsert gave nothing back"));
                }
            }
        }
        Err(Fault::Crowded)
    }

    /// Forgets that families were ended, where no token of theirs can stand any more.
    async fn forget_ends(&self, now: Timestamp, limit: usize) -> Result<usize, Fault> {
        let over = over("ended_until", now, doc! {});
        let ids = ids(&some(self, TOKENS, over.clone(), limit).await?);
        if ids.is_empty() {
            return Ok(0);
        }
        let tokens = self.link.collection(TOKENS);
        let filter = doc! { "$and": [{ "_id": { "$in": ids } }, over] };
        let update = doc! { "$unset": { "ended_until": 1 }, "$set": { "ended": false } };
        let updated =
            self.link.call(async move { Ok(tokens.update_many(filter, update).await?) }).await?;
        Ok(usize::try_from(updated.matched_count).unwrap_or(usize::MAX))
    }
}

/// What is over by this node's clock and by MongoDB's: one clock that was set wrong must not decide
/// for everybody what is forgotten.
pub(crate) fn over(field: &str, now: Timestamp, and: Document) -> Document {
    let mut filter = and;
    filter.insert(field, doc! { "$lte": date(now) });
    filter.insert("$expr", doc! { "$lte": [format!("${field}"), "$$NOW"] });
    filter
}

/// Up to `limit` documents without their outboxes.
pub(crate) async fn some(
    shared: &Shared,
    collection: &'static str,
    filter: Document,
    limit: usize,
) -> Result<Vec<Document>, Fault> {
    if limit == 0 {
        return Ok(Vec::new());
    }
    let from = shared.link.collection(collection);
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let read = async move {
        Ok(from
            .find(filter)
            .limit(limit)
            .projection(doc! { "outbox": 0 })
            .await?
            .try_collect()
            .await?)
    };
    shared.link.call(read).await
}

/// Deletes up to `limit` documents; one whose event is still on its way stays for the next time.
pub(super) async fn delete_some(
    shared: &Shared,
    collection: &'static str,
    filter: Document,
    limit: usize,
) -> Result<usize, Fault> {
    let filter = doc! { "$and": [filter, { "outbox.id": { "$exists": false } }] };
    let ids = ids(&some(shared, collection, filter.clone(), limit).await?);
    if ids.is_empty() {
        return Ok(0);
    }
    let from = shared.link.collection(collection);
    let filter = doc! { "$and": [{ "_id": { "$in": ids } }, filter] };
    let deleted = shared.link.call(async move { Ok(from.delete_many(filter).await?) }).await?;
    Ok(usize::try_from(deleted.deleted_count).unwrap_or(usize::MAX))
}

fn ids(documents: &[Document]) -> Vec<Bson> {
    documents.iter().filter_map(|document| document.get("_id").cloned()).collect()
}

/// Until when the end of a family must be remembered; `None` if it was not ended.
pub(crate) fn ended_until(document: &Document) -> Result<Option<Timestamp>, Fault> {
    Fields::of("refresh family", document).find_time("ended_until")
}

/// The `_id` of a revocation: with its kind, so that a token and a family of one id are two things
/// (N04).
pub(crate) fn key_of(revoked: Revoked) -> String {
    match revoked {
        Revoked::Token(Jti(id)) => format!("token:{id}"),
        Revoked::Family(FamilyId(id)) => format!("family:{id}"),
    }
}

pub(crate) fn revoked_of(key: &str) -> Result<Revoked, Fault> {
    let wrong = || Fault::row("revocation", "its _id is not ours");
    let (kind, id) = key.split_once(':').ok_or_else(wrong)?;
    let id = Uuid::parse_str(id).map_err(|_| wrong())?;
    match kind {
        "token" => Ok(Revoked::Token(Jti(id))),
        "family" => Ok(Revoked::Family(FamilyId(id))),
        _ => Err(wrong()),
    }
}

/// Where an epoch is kept: collection, `_id` and field.
pub(crate) fn place_of(of: &EpochOf) -> (&'static str, String, &'static str) {
    match of {
        EpochOf::Tenant(tenant) => (EPOCHS, format!("tenant:{tenant}"), "value"),
        EpochOf::Client(client) => (CLIENTS, client.as_str().to_owned(), clients::EPOCH),
        EpochOf::Subject(subject) => (EPOCHS, format!("subject:{subject}"), "value"),
    }
}

/// Whose epoch a document of `epochs` is.
pub(crate) fn epoch_of(key: &str) -> Result<EpochOf, Fault> {
    let wrong = || Fault::row("epoch", "its _id is not ours");
    match key.split_once(':').ok_or_else(wrong)? {
        ("tenant", id) => id.parse().map(EpochOf::Tenant).map_err(|_| wrong()),
        ("subject", id) => id.parse().map(EpochOf::Subject).map_err(|_| wrong()),
        _ => Err(wrong()),
    }
}

pub(crate) fn revocation_of(document: &Document) -> Result<Revocation, Fault> {
    let fields = Fields::of("revocation", document);
    Ok(Revocation { revoked: revoked_of(fields.text("_id")?)?, until: fields.time("until")? })
}

/// What a family that is still there and was ended stands for.
pub(crate) fn revocation_of_family(document: &Document) -> Result<Revocation, Fault> {
    let fields = Fields::of("refresh family", document);
    Ok(Revocation {
        revoked: Revoked::Family(FamilyId(fields.uuid("_id")?)),
        until: fields.time("ended_until")?,
    })
}
