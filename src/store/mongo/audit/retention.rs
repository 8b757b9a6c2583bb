//! Cuts of the audit trail. The mark is in the node's document:
//!
//! | `cut.recorded` | rows below the mark | next |
//! |--|--|--|
//! | false | all | the event is appended, then it is true |
//! | true | some, until `cut.removed` | rows are deleted |
//!
//! A process that ends in between leaves a state from which any node goes on. The event may then
//! be recorded twice, and is never left out.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use mongodb::{
    bson::{Bson, Document, doc},
    options::ReturnDocument,
};

use super::{
    AuditLog,
    records::{PAGE_RECORDS, decoded, last_record, read_records, record_id, sealed},
    size,
    time_reset::TimeBounds,
};
use crate::{
    crypto::chain::{ChainKey, ChainPlace, CutMark},
    model::{Action, Event, Stamp, Timestamp, digits::hex},
    store::{
        AuditStore as _, Result, RetentionStore, Surplus, Write, Writer,
        mongo::driver::{
            codec::{Fields, bytes, count, uuid},
            connection::Connection,
            error::MongoError,
            schema::{AUDIT_LOGS, META, NODES},
        },
    },
};

/// Field of a node's document with the mark of its chain.
const CUT: &str = "cut";

/// Interval of places in a chain that still grows, so that each pass cuts a part worth a file.
const PLACED_EVERY: u64 = 1_000;

/// Time for which a node may cut after it last asked, in milliseconds.
const HELD_MS: i64 = 120_000;

/// Id of the document that names the node that cuts.
const HOLDER: &str = "retention";

#[async_trait]
impl RetentionStore for AuditLog {
    async fn sealed_place(
        &self,
        chain: &str,
        after: u64,
        until: Timestamp,
        limit: u64,
    ) -> Result<Option<ChainPlace>> {
        let newest = last_record(&self.connection, chain).await?;
        let newest = newest.as_ref().and_then(super::records::shown);
        let Some(last) = newest.map(|record| record.sequence.saturating_sub(1)) else {
            return Ok(None);
        };
        let every = match self.writer(chain).await? {
            Writer::This | Writer::Another => PLACED_EVERY,
            Writer::NotRunning => 1,
        };
        let last = last.min(after.saturating_add(limit));
        let node = self.node_of(chain).await?;
        let bounds = node.as_ref().map(TimeBounds::of).transpose()?.unwrap_or_default();
        // The newest record that is old enough, by halves.
        let (mut low, mut high) = (after.div_euclid(every), last.div_euclid(every));
        while low < high {
            let middle = low.midpoint(high).saturating_add(1).min(high);
            let sequence = middle.saturating_mul(every);
            match self.time_of(chain, sequence).await? {
                Some(at) if bounds.judged(sequence, at) <= until => low = middle,
                Some(_) | None => high = middle.saturating_sub(1),
            }
        }
        let sequence = low.saturating_mul(every);
        if sequence <= after {
            return Ok(None);
        }
        let found = read_records(&self.connection, chain, sequence.saturating_sub(1), 1).await?;
        let Some(document) = found.first() else { return Ok(None) };
        let head = sealed(document)?;
        if head.sequence != sequence || !self.node.key.check(&head) {
            let problem = format!("record {sequence}: the seal is invalid");
            return Err(MongoError::malformed("audit chain", problem).into());
        }
        let at = bounds.judged(sequence, decoded(document)?.event.at);
        Ok((at <= until).then_some(ChainPlace { sequence, hash: head.hash, at }))
    }

    async fn cut(&self, chain: &str, after: u64, mark: &CutMark, event: Event) -> Result<Write> {
        let nodes = self.connection.collection(NODES);
        let filter = if after == 0 {
            doc! { "_id": chain, CUT: { "$exists": false } }
        } else {
            doc! { "_id": chain, "cut.sequence": count(after), "cut.recorded": true }
        };
        let update = doc! { "$set": { CUT: encode_cut(mark) } };
        let write = async move { Ok(nodes.update_one(filter, update).await?) };
        if self.connection.call(write).await?.matched_count == 0 {
            return Ok(Write::Stale);
        }
        self.append_event(event).await?;
        self.set(chain, mark, "recorded").await?;
        Ok(Write::Done)
    }

    async fn remove_cut(&self, now: Timestamp, limit: usize) -> Result<usize> {
        let mut removed = 0_usize;
        let unfinished = doc! { "cut.removed": false };
        for (chain, mark, is_recorded) in marks_where(&self.connection, unfinished).await? {
            // A forged mark removes nothing.
            if removed >= limit || !self.node.key.check_cut(&chain, &mark) {
                continue;
            }
            if !is_recorded {
                let target = format!("{chain}:{}:{}", mark.place.sequence, hex(&mark.place.hash));
                let event = Stamp::internal(now).done(Action::TrailCut, target);
                self.append_event(event.because("recorded after an interruption".to_owned()))
                    .await?;
                self.set(&chain, &mark, "recorded").await?;
            }
            let room = limit.saturating_sub(removed);
            let (gone, is_last) = self.remove(&chain, mark.place.sequence, room).await?;
            removed = removed.saturating_add(gone);
            if is_last {
                self.set(&chain, &mark, "removed").await?;
            }
        }
        Ok(removed)
    }

    async fn surplus(&self, bytes: u64) -> Result<Option<Surplus>> {
        Ok(size::surplus(&self.connection, bytes).await?)
    }

    async fn recorded_before(
        &self,
        until: Timestamp,
        from: Timestamp,
    ) -> Result<Option<Timestamp>> {
        Ok(size::recorded_before(&self.connection, until, from).await?)
    }

    async fn shrink(&self) -> Result<bool> {
        Ok(false)
    }

    async fn hold_retention(&self) -> Result<bool> {
        let (meta, session) = (self.connection.collection(META), uuid(self.node.session()));
        // No `until` yet is less than every date.
        let is_free = doc! { "$or": [
            { "$eq": ["$session", session.clone()] },
            { "$lt": ["$until", "$$NOW"] },
        ] };
        let until = doc! { "$add": ["$$NOW", HELD_MS] };
        let update = vec![doc! { "$set": {
            "session": { "$cond": [is_free.clone(), session.clone(), "$session"] },
            "until": { "$cond": [is_free, until, "$until"] },
        } }];
        let write = async move {
            let held = meta.find_one_and_update(doc! { "_id": HOLDER }, update).upsert(true);
            Ok(held.return_document(ReturnDocument::After).await?)
        };
        match self.connection.call(write).await {
            // Another node created it at the same moment.
            Err(fault) if fault.is_duplicate() => Ok(false),
            Err(fault) => Err(fault.into()),
            Ok(held) => Ok(held.and_then(|held| held.get("session").cloned()) == Some(session)),
        }
    }
}

/// Mark of a chain, valid or not. An unreadable one is an invalid one.
pub(super) async fn mark_of(
    connection: &Connection,
    chain: &str,
) -> Result<Option<CutMark>, MongoError> {
    let filter = doc! { "_id": chain, CUT: { "$exists": true } };
    let found = marks_where(connection, filter).await?;
    Ok(found.into_iter().next().map(|(_, mark, _)| mark))
}

/// Marks of all chains, valid or not.
pub(super) async fn all_marks(
    connection: &Connection,
) -> Result<Vec<(Arc<str>, CutMark)>, MongoError> {
    let found = marks_where(connection, doc! { CUT: { "$exists": true } }).await?;
    Ok(found.into_iter().map(|(chain, mark, _)| (chain, mark)).collect())
}

/// Sequences up to which chains are cut by a valid mark, of some chains.
pub(super) async fn cuts_of(
    connection: &Connection,
    key: &ChainKey,
    chains: Vec<&str>,
) -> Result<BTreeMap<Arc<str>, u64>, MongoError> {
    let filter = doc! { "_id": { "$in": chains }, CUT: { "$exists": true } };
    let found = marks_where(connection, filter).await?;
    let valid = found.into_iter().filter(|(chain, mark, _)| key.check_cut(chain, mark));
    Ok(valid.map(|(chain, mark, _)| (chain, mark.place.sequence)).collect())
}

/// Sequence up to which a chain is cut by a valid mark; 0 for a whole chain.
pub(super) async fn cut_at(
    connection: &Connection,
    key: &ChainKey,
    chain: &str,
) -> Result<u64, MongoError> {
    Ok(cuts_of(connection, key, vec![chain]).await?.into_values().next().unwrap_or(0))
}

impl AuditLog {
    /// Mark of a chain: see [`mark_of`].
    pub(super) async fn mark_of(&self, chain: &str) -> Result<Option<CutMark>, MongoError> {
        mark_of(&self.connection, chain).await
    }

    /// Sets a flag of a mark that is still the mark of the chain.
    async fn set(&self, chain: &str, mark: &CutMark, flag: &str) -> Result<(), MongoError> {
        let nodes = self.connection.collection(NODES);
        let filter = doc! { "_id": chain, "cut.sequence": count(mark.place.sequence) };
        let update = doc! { "$set": { format!("cut.{flag}"): true } };
        let write = async move { Ok(nodes.update_one(filter, update).await?) };
        self.connection.call(write).await.map(drop)
    }

    /// Time of one record of a chain.
    async fn time_of(&self, chain: &str, sequence: u64) -> Result<Option<Timestamp>, MongoError> {
        let (logs, id) = (self.connection.collection(AUDIT_LOGS), record_id(chain, sequence));
        let read = async move {
            let found = logs.find_one(doc! { "_id": id });
            Ok(found.projection(doc! { "_id": 0, "event.at": 1 }).await?)
        };
        let found = self.connection.call(read).await?;
        let event = found.as_ref().and_then(|found| found.get_document("event").ok());
        Ok(event.and_then(|event| event.get_i64("at").ok()).map(Timestamp::from_millis))
    }

    /// Removes up to `limit` records of a chain up to a sequence, oldest first; returns their
    /// number, and true if none is left.
    async fn remove(
        &self,
        chain: &str,
        last: u64,
        limit: usize,
    ) -> Result<(usize, bool), MongoError> {
        let logs = self.connection.collection(AUDIT_LOGS);
        let limit = limit.clamp(1, PAGE_RECORDS);
        let below = doc! { "_id": { "$gte": record_id(chain, 0), "$lte": record_id(chain, last) } };
        let wanted = i64::try_from(limit).unwrap_or(i64::MAX);
        let read = async move {
            let found = logs.find(below).sort(doc! { "_id": 1 }).limit(wanted);
            Ok(found.projection(doc! { "_id": 1 }).await?.try_collect::<Vec<Document>>().await?)
        };
        let found = self.connection.call(read).await?;
        let ids: Vec<Bson> = found.iter().filter_map(|found| found.get("_id").cloned()).collect();
        if ids.is_empty() {
            return Ok((0, true));
        }
        let (logs, gone, is_last) =
            (self.connection.collection(AUDIT_LOGS), ids.len(), ids.len() < limit);
        let delete = async move { Ok(logs.delete_many(doc! { "_id": { "$in": ids } }).await?) };
        self.connection.call(delete).await?;
        Ok((gone, is_last))
    }
}

/// Fields of a mark whose event is not recorded and whose records are not removed.
pub(crate) fn encode_cut(mark: &CutMark) -> Document {
    let CutMark { place, seal } = mark;
    doc! {
        "sequence": count(place.sequence),
        "hash": bytes(&place.hash),
        "at": place.at.millis(),
        "seal": bytes(seal),
        "recorded": false,
        "removed": false,
    }
}

/// Mark in a node's document, valid or not.
pub(crate) fn decode_cut(node: &Document) -> Option<CutMark> {
    let cut = node.get_document(CUT).ok()?;
    let fields = Fields::of("cut", cut);
    let unreadable = ChainPlace { sequence: 0, hash: [0; 32], at: Timestamp::EPOCH };
    let read = || {
        let at = Timestamp::from_millis(cut.get_i64("at").ok()?);
        let (sequence, hash) = (fields.count("sequence").ok()?, fields.hash("hash").ok()?);
        let place = ChainPlace { sequence, hash, at };
        Some(CutMark { place, seal: fields.hash("seal").ok()? })
    };
    Some(read().unwrap_or(CutMark { place: unreadable, seal: [0; 32] }))
}

async fn marks_where(
    connection: &Connection,
    filter: Document,
) -> Result<Vec<(Arc<str>, CutMark, bool)>, MongoError> {
    let nodes = connection.collection(NODES);
    let read = async move {
        let found = nodes.find(filter).sort(doc! { "_id": 1 }).projection(doc! { CUT: 1 });
        Ok(found.await?.try_collect::<Vec<Document>>().await?)
    };
    let found = connection.call(read).await?;
    let marks = found.iter().filter_map(|node| {
        let chain = node.get_str("_id").ok()?;
        let recorded = node.get_document(CUT).ok()?.get_bool("recorded").unwrap_or(false);
        Some((chain.into(), decode_cut(node)?, recorded))
    });
    Ok(marks.collect())
}
