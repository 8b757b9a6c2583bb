//! Size and growth of the trail, without a scan: by the statistics of the collection and a bounded
//! part of the index by time.

use mongodb::bson::{Document, doc};

use crate::{
    model::Timestamp,
    store::{
        GROWTH_SPAN, Surplus, TrailSize,
        mongo::driver::{connection::Connection, error::MongoError, schema::AUDIT_LOGS},
    },
};

/// Most index keys that are read to measure the growth.
const RECENT_MAX: u64 = 20_000;

/// Most index keys that are skipped to find the records that must go: the next pass goes on.
const SKIPPED_MAX: u64 = 200_000;

/// Number of records from which on the size of the files says what a record takes.
const TYPICAL: u64 = 10_000;

/// Bytes of a record in the indexes, for a collection that is too small to measure it.
const INDEX_BYTES: u64 = 200;

/// Returns the size of the trail, and what all nodes added until `now`.
pub(crate) async fn of_trail(
    connection: &Connection,
    now: Timestamp,
) -> Result<TrailSize, MongoError> {
    let database = connection.database().clone();
    let stats = connection
        .call(async move { Ok(database.run_command(doc! { "collStats": AUDIT_LOGS }).await?) })
        .await?;
    let records = number(&stats, "count");
    let files = number(&stats, "storageSize").saturating_add(number(&stats, "totalIndexSize"));
    let record_bytes = if records >= TYPICAL {
        files.checked_div(records).unwrap_or_default()
    } else {
        number(&stats, "avgObjSize").saturating_add(INDEX_BYTES)
    };
    let since = now - GROWTH_SPAN;
    let (recent, oldest) = recent(connection, since).await?;
    let recent_ms = oldest.map_or(0, |oldest| now.since(oldest).as_millis());
    let recent_ms = u64::try_from(recent_ms).unwrap_or(u64::MAX);
    Ok(TrailSize { records, record_bytes, recent, recent_ms })
}

/// Returns the part that must go so that the trail fits into `bytes`, as it is before compression;
/// `None` if it does. The files of the database are not measured: they keep their size after a
/// removal.
pub(crate) async fn surplus(
    connection: &Connection,
    bytes: u64,
) -> Result<Option<Surplus>, MongoError> {
    let database = connection.database().clone();
    let stats = connection
        .call(async move { Ok(database.run_command(doc! { "collStats": AUDIT_LOGS }).await?) })
        .await?;
    let record = number(&stats, "avgObjSize").saturating_add(INDEX_BYTES);
    let surplus = number(&stats, "count").saturating_mul(record).saturating_sub(bytes);
    if surplus == 0 {
        return Ok(None);
    }
    let skip = surplus.div_ceil(record).saturating_sub(1).min(SKIPPED_MAX);
    let all = doc! { "event.at": { "$gte": i64::MIN } };
    let until = time_of(connection, all, doc! { "event.at": 1, "_id": 1 }, skip).await?;
    Ok(until.map(|until| Surplus { until, records: skip.saturating_add(1) }))
}

/// Returns the time of the oldest record from `from` to before `until`, else of the newest before
/// `from`.
pub(crate) async fn recorded_before(
    connection: &Connection,
    until: Timestamp,
    from: Timestamp,
) -> Result<Option<Timestamp>, MongoError> {
    let (until, from) = (until.millis(), from.millis());
    let after = doc! { "event.at": { "$gte": from, "$lt": until } };
    let oldest = time_of(connection, after, doc! { "event.at": 1, "_id": 1 }, 0).await?;
    if oldest.is_some() {
        return Ok(oldest);
    }
    let before = doc! { "event.at": { "$gte": i64::MIN, "$lt": from } };
    time_of(connection, before, doc! { "event.at": -1, "_id": -1 }, 0).await
}

/// Returns a number of new records, and the time since when they were written; `None`: there are
/// none.
async fn recent(
    connection: &Connection,
    since: Timestamp,
) -> Result<(u64, Option<Timestamp>), MongoError> {
    let newest_first = doc! { "event.at": -1, "_id": -1 };
    let later = doc! { "event.at": { "$gte": since.millis() } };
    let last = RECENT_MAX.saturating_sub(1);
    if let Some(at) = time_of(connection, later.clone(), newest_first, last).await? {
        return Ok((RECENT_MAX, Some(at)));
    }
    let logs = connection.collection(AUDIT_LOGS);
    let counted = later.clone();
    let recent = async move { Ok(logs.count_documents(counted).limit(RECENT_MAX).await?) };
    let recent = connection.call(recent).await?;
    let oldest_first = doc! { "event.at": 1, "_id": 1 };
    let earlier = doc! { "event.at": { "$gte": i64::MIN, "$lt": since.millis() } };
    let is_older = time_of(connection, earlier, oldest_first.clone(), 0).await?.is_some();
    let first =
        if is_older { Some(since) } else { time_of(connection, later, oldest_first, 0).await? };
    Ok((recent, first))
}

/// Returns the time of one record of an order.
async fn time_of(
    connection: &Connection,
    filter: Document,
    sort: Document,
    skip: u64,
) -> Result<Option<Timestamp>, MongoError> {
    let logs = connection.collection(AUDIT_LOGS);
    let read = async move {
        let found = logs.find_one(filter).sort(sort).skip(skip);
        Ok(found.projection(doc! { "_id": 0, "event.at": 1 }).await?)
    };
    let found = connection.call(read).await?;
    let event = found.as_ref().and_then(|found| found.get_document("event").ok());
    Ok(event.and_then(|event| event.get_i64("at").ok()).map(Timestamp::from_millis))
}

/// Reads a number of the statistics, of whatever type.
fn number(stats: &Document, field: &str) -> u64 {
    let value = stats.get(field);
    let whole = value.and_then(|value| value.as_i64().or_else(|| value.as_i32().map(i64::from)));
    let real = || value.and_then(mongodb::bson::Bson::as_f64).map(|value| value as i64);
    u64::try_from(whole.or_else(real).unwrap_or_default()).unwrap_or_default()
}
