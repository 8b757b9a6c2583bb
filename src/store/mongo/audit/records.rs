//! Documents of `audit_logs`: their form, their order, and the tip of a chain.

use futures_util::TryStreamExt as _;
use mongodb::bson::{Bson, Document, RawDocumentBuf, doc};
use uuid::Uuid;

use crate::{
    crypto::chain::{ChainKey, Claim, Head, START, Walk},
    model::{Event, Place, Record, Timestamp},
    store::mongo::driver::{
        codec::{Fields, bytes, encode, lenient, uuid},
        connection::Connection,
        error::MongoError,
        schema::AUDIT_LOGS,
    },
};

/// Field into which a listing projects the time of a record.
pub(super) const TIME_FIELD: &str = "time";

/// Time of a record whose own cannot be read: such records come last.
pub(super) const UNREADABLE_TIME: i64 = i64::MIN;

/// Records read at once.
pub(super) const PAGE_RECORDS: usize = 1_000;

/// Field that marks a record whose caller had, or may have had, an unknown outcome when it was
/// written.
pub(super) const LATE_FIELD: &str = "late";

/// Last record of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChainTip {
    pub(crate) sequence: u64,
    pub(crate) hash: [u8; 32],
    /// Newest time of the records that this node's own clock stamped.
    pub(crate) newest_time: Timestamp,
}

impl ChainTip {
    pub(crate) const GENESIS: Self =
        Self { sequence: 0, hash: START, newest_time: Timestamp::EPOCH };

    /// Newest time including one more event. An event recovered from another node has that node's
    /// time and does not count.
    pub(super) fn newest_time_with(&self, node: &str, event: &Event) -> Timestamp {
        let is_own = event.recovered_from.as_deref().is_none_or(|from| from == node);
        if is_own { self.newest_time.max(event.at) } else { self.newest_time }
    }
}

/// Encodes a record. The seal shows that a node with the key wrote it, and from which outbox entry.
pub(crate) fn encoded(
    record: &Record,
    entry: Uuid,
    key: &ChainKey,
) -> Result<Document, MongoError> {
    let claim = Claim::Record { entry: entry.into_bytes() };
    let seal = key.seal(&record.node, record.sequence, record.hash, claim);
    Ok(doc! {
        "_id": record_id(&record.chain, record.sequence),
        "node": record.node.as_ref(),
        "event": encode("audit record", &record.event)?,
        "hash": bytes(&record.hash),
        "seal": bytes(&seal.seal),
        "entry": uuid(entry),
    })
}

/// `_id` of a record.
pub(crate) fn record_id(chain: &str, sequence: u64) -> Document {
    doc! { "chain": chain, "sequence": i64::try_from(sequence).unwrap_or(i64::MAX) }
}

pub(crate) fn decoded(document: &Document) -> Result<Record, MongoError> {
    let fields = Fields::of("audit record", document);
    let id = fields
        .get("_id")?
        .as_document()
        .ok_or_else(|| MongoError::malformed("audit record", "malformed _id"))?;
    let id = Fields::of("audit record", id);
    let event: Event = fields.part("event")?;
    // Queries read the stored fields, and would pass over an event that is written in another way.
    if encode("audit record", &event)? != *fields.get("event")? {
        return Err(MongoError::malformed("audit record", "not as a node writes it"));
    }
    Ok(Record {
        chain: id.text("chain")?.into(),
        sequence: id.count("sequence")?,
        node: fields.text("node")?.into(),
        event,
        hash: fields.hash("hash")?,
    })
}

/// Record for readers: an unreadable one has only its position. `None` for a document without a
/// position in a chain.
pub(crate) fn shown(document: &Document) -> Option<Record> {
    let id = document.get_document("_id").ok()?;
    let is_place = id.keys().eq(["chain", "sequence"])
        && id.get_i64("sequence").is_ok_and(|sequence| sequence > 0);
    let id = is_place.then(|| Fields::of("audit record", id))?;
    if let Ok(record) = decoded(document) {
        return Some(record);
    }
    let at = document.get_document("event").ok().and_then(|event| event.get("at"));
    let at = at.or_else(|| document.get(TIME_FIELD)).and_then(millis);
    let at = Timestamp::from_millis(at.unwrap_or(UNREADABLE_TIME));
    Some(Record::unreadable(Place {
        at,
        chain: id.text("chain").ok()?.into(),
        sequence: id.count("sequence").ok()?,
    }))
}

/// Number as a time, whatever its BSON type; rounded down, so that paging never skips a record.
fn millis(value: &Bson) -> Option<i64> {
    let number =
        value.as_f64().filter(|number| !number.is_nan()).map(|number| number.floor() as i64);
    value.as_i64().or_else(|| value.as_i32().map(i64::from)).or(number)
}

/// Seal of the record itself.
pub(crate) fn sealed(document: &Document) -> Result<Head, MongoError> {
    let Record { sequence, node, hash, .. } = decoded(document)?;
    let fields = Fields::of("audit record", document);
    let claim = Claim::Record { entry: fields.uuid("entry")?.into_bytes() };
    Ok(Head { node, sequence, hash, claim, seal: fields.hash("seal")? })
}

/// Reads up to `limit` records of a chain in order, after the sequence `after`, readable or not:
/// see [`lenient`].
pub(crate) async fn read_records(
    connection: &Connection,
    chain: &str,
    after: u64,
    limit: usize,
) -> Result<Vec<Document>, MongoError> {
    let logs = connection.collection(AUDIT_LOGS).clone_with_type::<RawDocumentBuf>();
    if limit == 0 && !connection.is_closed() {
        return Ok(Vec::new());
    }
    let (filter, limit) = (records_after(chain, after), i64::try_from(limit).unwrap_or(i64::MAX));
    let read = async move {
        let found = logs.find(filter).sort(doc! { "_id": 1 }).limit(limit).await?;
        Ok(found.map_ok(|raw| lenient(&raw)).try_collect().await?)
    };
    connection.within(connection.deadline().saturating_mul(5), read).await
}

/// Filter for the records of a chain after a sequence.
pub(crate) fn records_after(chain: &str, after: u64) -> Document {
    let mut filter = doc! { "_id": { "$gt": record_id(chain, after), "$lt": chain_end_id(chain) } };
    filter.extend(has_position());
    filter
}

/// `_id` after every record of a chain and before those of the next.
pub(crate) fn chain_end_id(chain: &str) -> Document {
    doc! { "chain": chain, "sequence": Bson::MaxKey }
}

/// Filter for documents with a position in a chain. Nodes write no others, and readers see no
/// others, since those have no order.
pub(crate) fn has_position() -> Document {
    doc! {
        "_id.chain": { "$type": "string" },
        "_id.sequence": { "$type": "long", "$gte": 1_i64 },
        "$expr": { "$eq": ["$_id", { "chain": "$_id.chain", "sequence": "$_id.sequence" }] },
    }
}

/// Last record of a chain, if there is one.
pub(crate) async fn last_record(
    connection: &Connection,
    chain: &str,
) -> Result<Option<Document>, MongoError> {
    let (logs, filter) = (
        connection.collection(AUDIT_LOGS).clone_with_type::<RawDocumentBuf>(),
        records_after(chain, 0),
    );
    let newest = connection
        .call(async move { Ok(logs.find_one(filter).sort(doc! { "_id": -1 }).await?) })
        .await?;
    Ok(newest.map(|raw| lenient(&raw)))
}

/// Verifies the records after `tip` and returns the new tip: each must link to the one before and
/// carry a valid seal. Records up to the sequence `reset` do not count for its time.
pub(crate) async fn verify_tip(
    connection: &Connection,
    key: &ChainKey,
    chain: &str,
    mut tip: ChainTip,
    reset: u64,
) -> Result<ChainTip, MongoError> {
    let mut walk = Walk::after(tip.sequence, tip.hash);
    loop {
        let found = read_records(connection, chain, walk.sequence(), PAGE_RECORDS).await?;
        for document in &found {
            let record = decoded(document)?;
            walk.record(&record).map_err(|flaw| MongoError::malformed("audit chain", flaw))?;
            if !key.check(&sealed(document)?) {
                return Err(MongoError::malformed(
                    "audit chain",
                    format!("record {}: the seal is invalid", record.sequence),
                ));
            }
            let newest_time = if record.sequence <= reset {
                tip.newest_time
            } else {
                tip.newest_time_with(chain, &record.event)
            };
            tip = ChainTip { sequence: record.sequence, hash: record.hash, newest_time };
        }
        if found.is_empty() {
            return Ok(tip);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Action, Stamp};

    /// AZ6: an event in other words is no record, also where they mean the same; nor is a document
    /// before the first record of a chain.
    #[test]
    fn a_record_is_read_as_it_is_written_only() {
        let event = Stamp::internal(Timestamp::EPOCH).done(Action::ServerStarted, "");
        let record =
            Record { chain: "a".into(), sequence: 1, node: "a".into(), event, hash: [1; 32] };
        let key = ChainKey::new([7; 32]);
        let document = encoded(&record, Uuid::nil(), &key).unwrap();
        assert_eq!(decoded(&document).unwrap(), record);
        for (field, value) in [
            ("actor", Bson::from(doc! { "node": 1 })),
            ("action", doc! { "server.started": Bson::Null }.into()),
            ("at", 0.0.into()),
            ("more", 1.into()),
        ] {
            let mut other = document.clone();
            other.get_document_mut("event").unwrap().insert(field, value);
            assert!(decoded(&other).is_err(), "{field}");
            assert!(shown(&other).is_some_and(|record| record.is_unreadable()), "{field}");
        }
        let mut before = document;
        before.insert("_id", record_id("a", 0));
        assert!(shown(&before).is_none());
    }
}
