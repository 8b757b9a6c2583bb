//! Latest time of all nodes, and its return to an earlier one (OPERATORS 3.2).
//!
//! A node starts at the latest time of its document in `nodes`, of the records that follow the head
//! there, and of its entries in outboxes: a node that died left some. So a reset records all entries,
//! in the chain of the node that resets, and notes the last record of each chain: later registrations
//! take no time from records up to it.

use std::sync::atomic::Ordering::SeqCst;

use futures_util::TryStreamExt as _;
use mongodb::bson::{Document, doc};

use super::{
    AuditLog,
    node_lease::{BORN_FIELD, decode_head},
    records::{ChainTip, last_record, shown, verify_tip},
    recovery,
};
use crate::{
    model::{Event, Timestamp},
    store::mongo::driver::{
        codec::{Fields, count, date},
        connection::Connection,
        error::MongoError,
        schema::NODES,
    },
};

/// Field of a node's document: sequence of the last record before a reset of its time.
pub(super) const RESET_FIELD: &str = "reset_at";
/// Field of a node's document: time to which it was reset.
const RESET_TO_FIELD: &str = "reset_to";

impl AuditLog {
    /// Returns the latest time that any node used.
    pub(crate) async fn latest_time(&self) -> Result<Timestamp, MongoError> {
        let own = self.node.observed_time.load(SeqCst).max(self.node.persisted_time.load(SeqCst));
        let mut latest = Timestamp::from_millis(own);
        for node in nodes(&self.connection).await? {
            let newest = Fields::of("node", &node).find_time("newest")?;
            latest = latest.max(newest.unwrap_or(Timestamp::EPOCH));
            latest = latest.max(self.newest_after_head(&node).await?);
        }
        Ok(latest)
    }

    /// Newest time of the records that follow the head in a node's document. A damaged chain has none:
    /// its node does not start either.
    async fn newest_after_head(&self, node: &Document) -> Result<Timestamp, MongoError> {
        let name = Fields::of("node", node).text("_id")?;
        let tip = decode_head(node)?.map_or(ChainTip::GENESIS, |head| ChainTip {
            sequence: head.sequence,
            hash: head.hash,
            ..ChainTip::GENESIS
        });
        match verify_tip(&self.connection, &self.node.key, name, tip, reset_at(node)?).await {
            Ok(tip) => Ok(tip.newest_time),
            Err(MongoError::Malformed { .. }) => Ok(Timestamp::EPOCH),
            Err(fault) => Err(fault),
        }
    }

    /// Appends `event` and lowers the latest time of every node to `to`.
    pub(crate) async fn reset_time(&self, to: Timestamp, event: Event) -> Result<(), MongoError> {
        recovery::record_all(self).await?;
        self.append_event(event).await?;
        for node in nodes(&self.connection).await? {
            let fields = Fields::of("node", &node);
            let name = fields.text("_id")?.to_owned();
            let is_born_ahead = fields.find_time(BORN_FIELD)?.is_some_and(|born| born > to);
            let last = last_record(&self.connection, &name).await?;
            let sequence = last.as_ref().and_then(shown).map_or(0, |record| record.sequence);
            let nodes = self.connection.collection(NODES);
            let mut set = doc! { RESET_FIELD: count(sequence), RESET_TO_FIELD: date(to) };
            if is_born_ahead {
                set.insert(BORN_FIELD, date(to));
            }
            let update = doc! { "$min": { "newest": date(to) }, "$set": set };
            let write = async move { Ok(nodes.update_one(doc! { "_id": name }, update).await?) };
            self.connection.call(write).await?;
        }
        self.node.persisted_time.store(to.millis(), SeqCst);
        self.node.observed_time.store(to.millis(), SeqCst);
        Ok(())
    }
}

/// Bounds of the true times of a chain's records. Those of a node whose clock was wrong lie outside.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TimeBounds {
    /// MongoDB's time when the node first registered: none of its records is older.
    born: Timestamp,
    /// Last record before a reset, and its time: no record up to it is newer.
    reset: Option<(u64, Timestamp)>,
}

impl TimeBounds {
    /// Bounds of the chain of a node.
    pub(super) fn of(node: &Document) -> Result<Self, MongoError> {
        let fields = Fields::of("node", node);
        let born = fields.find_time(BORN_FIELD)?.unwrap_or(Timestamp::EPOCH);
        let to = fields.find_time(RESET_TO_FIELD)?;
        let sequence = reset_at(node)?;
        Ok(Self { born, reset: to.map(|to| (sequence, to)) })
    }

    /// Time by which a record is judged.
    pub(super) fn judged(&self, sequence: u64, at: Timestamp) -> Timestamp {
        let at = match self.reset {
            Some((last, to)) if sequence <= last => at.min(to),
            Some(_) | None => at,
        };
        at.max(self.born)
    }
}

/// Returns the sequence of the last record before the time of a node was reset; 0 if it never was.
pub(super) fn reset_at(node: &Document) -> Result<u64, MongoError> {
    let fields = Fields::of("node", node);
    fields.find(RESET_FIELD).map_or(Ok(0), |_| fields.count(RESET_FIELD))
}

async fn nodes(connection: &Connection) -> Result<Vec<Document>, MongoError> {
    let nodes = connection.collection(NODES);
    connection.call(async move { Ok(nodes.find(doc! {}).await?.try_collect().await?) }).await
}
