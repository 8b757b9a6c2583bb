//! Queries used by several collections.

use futures_util::TryStreamExt as _;
use mongodb::{
    bson::{Bson, Document, RawDocumentBuf, doc},
    options::{ReadConcern, ReturnDocument},
};

use super::{
    codec::{date, lenient},
    connection::Connection,
    error::MongoError,
};
use crate::model::Timestamp;

/// Attempts at an upsert that races with the creation of the same document.
const UPSERT_ATTEMPTS_MAX: usize = 8;

/// Filter for documents that have expired by both this node's clock and MongoDB's: one wrong clock
/// must not delete data for all nodes.
pub(crate) fn expired_filter(field: &str, now: Timestamp, and: Document) -> Document {
    let mut filter = and;
    filter.insert(field, doc! { "$lte": date(now) });
    filter.insert("$expr", doc! { "$lte": [format!("${field}"), "$$NOW"] });
    filter
}

/// Finds up to `limit` documents, without their outboxes.
pub(crate) async fn find_limited(
    connection: &Connection,
    collection: &'static str,
    filter: Document,
    limit: usize,
) -> Result<Vec<Document>, MongoError> {
    if limit == 0 {
        return Ok(Vec::new());
    }
    let from = connection.collection(collection);
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
    connection.call(read).await
}

/// Deletes up to `limit` documents; one with an entry in its outbox stays for the next sweep.
pub(crate) async fn delete_limited(
    connection: &Connection,
    collection: &'static str,
    filter: Document,
    limit: usize,
) -> Result<usize, MongoError> {
    let filter = doc! { "$and": [filter, { "outbox.id": { "$exists": false } }] };
    let ids = ids(&find_limited(connection, collection, filter.clone(), limit).await?);
    if ids.is_empty() {
        return Ok(0);
    }
    let from = connection.collection(collection);
    let filter = doc! { "$and": [{ "_id": { "$in": ids } }, filter] };
    let deleted = connection.call(async move { Ok(from.delete_many(filter).await?) }).await?;
    Ok(usize::try_from(deleted.deleted_count).unwrap_or(usize::MAX))
}

/// Reads these fields of up to `limit` documents in order, readable or not: see [`lenient`].
pub(crate) async fn find_sorted(
    connection: &Connection,
    collection: &'static str,
    filter: Document,
    sort: Document,
    fields: Document,
    limit: usize,
) -> Result<Vec<Document>, MongoError> {
    if limit == 0 && !connection.is_closed() {
        return Ok(Vec::new());
    }
    let from = connection.collection(collection).clone_with_type::<RawDocumentBuf>();
    let deadline = connection.deadline();
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let read = async move {
        let found = from.find(filter).sort(sort).limit(limit).projection(fields);
        // The server too gives up when the caller has given up.
        let found = found.max_time(deadline).await?;
        Ok(found.map_ok(|raw| lenient(&raw)).try_collect().await?)
    };
    connection.call(read).await
}

/// `_id` of each document.
pub(crate) fn ids(documents: &[Document]) -> Vec<Bson> {
    documents.iter().filter_map(|document| document.get("_id").cloned()).collect()
}

/// Reads the one document that matches a filter; no later read can return an older version. With
/// read concern majority, a newly elected primary may briefly return a version from before a change
/// that was already notified; linearizable rules that out.
pub(crate) async fn find_latest(
    connection: &Connection,
    collection: &'static str,
    filter: Document,
) -> Result<Option<Document>, MongoError> {
    let documents = connection.collection(collection);
    let concern = if connection.is_standalone() {
        ReadConcern::majority()
    } else {
        ReadConcern::linearizable()
    };
    connection
        .call(async move { Ok(documents.find_one(filter).read_concern(concern).await?) })
        .await
}

/// Waits until a document that a write found is durable: a duplicate key may come from a write that
/// is lost with its primary. A write that changes nothing waits for the majority.
pub(crate) async fn confirm_durable(
    connection: &Connection,
    collection: &'static str,
    id: Bson,
) -> Result<(), MongoError> {
    let documents = connection.collection(collection);
    let nothing = vec![doc! { "$set": { "_id": "$_id" } }];
    connection
        .call(async move { Ok(documents.update_one(doc! { "_id": id }, nothing).await?) })
        .await
        .map(drop)
}

/// Upserts a document; returns it after the update, without its outbox.
pub(crate) async fn upsert(
    connection: &Connection,
    collection: &'static str,
    filter: Document,
    update: Document,
) -> Result<Document, MongoError> {
    for _ in 0..UPSERT_ATTEMPTS_MAX {
        let (owner, filter, update) =
            (connection.collection(collection), filter.clone(), update.clone());
        let write = async move {
            let after = owner
                .find_one_and_update(filter, update)
                .upsert(true)
                .return_document(ReturnDocument::After);
            Ok(after.projection(doc! { "outbox": 0 }).await?)
        };
        match connection.call(write).await {
            // Two upserts created it at once: the next attempt finds it.
            Err(fault) if fault.is_duplicate() => {}
            outcome => {
                return outcome?.ok_or_else(|| {
                    MongoError::malformed(collection, "an upsert returned no document")
                });
            }
        }
    }
    Err(MongoError::TooManyPending)
}
