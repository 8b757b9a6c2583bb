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
    node_lease::decode_head,
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
            let name = Fields::of("node", &node).text("_id")?.to_owned();
            let last = last_record(&self.connection, &name).await?;
            let sequence = last.as_ref().and_then(shown).map_or(0, |record| record.sequence);
            let nodes = self.connection.collection(NODES);
            let update = doc! {
                "$min": { "newest": date(to) },
                "$set": { RESET_FIELD: count(sequence) },
            };
            let write = async move { Ok(nodes.update_one(doc! { "_id": name }, update).await?) };
            self.connection.call(write).await?;
        }
        self.node.persisted_time.store(to.millis(), SeqCst);
        self.node.observed_time.store(to.millis(), SeqCst);
        Ok(())
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
