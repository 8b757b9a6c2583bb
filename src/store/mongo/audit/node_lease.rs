//! This node among others: its document in `nodes`. It names the process that writes the node's
//! audit chain, holds the chain's sealed head, and carries the heartbeat by which the node measures
//! how old its knowledge is.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering::SeqCst},
    },
    time::Duration,
};

use std::sync::Arc;

use futures_util::TryStreamExt as _;
use mongodb::{
    bson::{Bson, Document, doc},
    options::ReturnDocument,
};
use tokio::time::Instant;
use uuid::Uuid;

use super::records::ChainTip;
use crate::{
    crypto::chain::{ChainKey, Claim, Head},
    model::Timestamp,
    store::mongo::driver::{
        codec::{Fields, bytes, count, date, uuid},
        connection::Connection,
        error::MongoError,
        schema::NODES,
    },
};

/// Between two heartbeats.
pub(crate) const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);
/// Heartbeats that may be on their way.
const PENDING_HEARTBEATS_MAX: usize = 256;

/// This node, and the process that is it.
pub(crate) struct Node {
    pub(crate) name: Arc<str>,
    session: Uuid,
    pub(crate) key: ChainKey,
    chain_tip: Mutex<ChainTip>,
    /// The newest time that any verb acted on, and the newest that is kept.
    pub(crate) observed_time: AtomicI64,
    pub(crate) persisted_time: AtomicI64,
    /// MongoDB's clock at the last heartbeat: the time under the seal of the next one.
    cluster_time: AtomicI64,
    /// Whether the chain takes no more records: every head from now on is closed.
    is_chain_closed: AtomicBool,
    heartbeats: Mutex<Heartbeats>,
}

/// Heartbeats sent and not yet heard.
#[derive(Default)]
struct Heartbeats {
    last: i64,
    sent: Vec<SentHeartbeat>,
}

struct SentHeartbeat {
    number: i64,
    /// The moment before it was sent, and the one when the majority had it.
    sent_at: Instant,
    acknowledged_at: Option<Instant>,
}

impl Node {
    /// Takes a node's name for this process, at the time `cluster_time` of MongoDB's clock; one that had
    /// it before notices and stops.
    pub(crate) async fn register(
        connection: &Connection,
        name: &str,
        key: ChainKey,
        cluster_time: Timestamp,
    ) -> Result<(Self, Option<Document>), MongoError> {
        let session = Uuid::new_v4();
        let (nodes, id) = (connection.collection(NODES), name.to_owned());
        let register = async move {
            let set = doc! { "$set": { "session": uuid(session), "beat": 0_i64 } };
            let before = nodes.find_one_and_update(doc! { "_id": id }, set).upsert(true);
            Ok(before.return_document(ReturnDocument::Before).await?)
        };
        let before = connection.call(register).await?;
        let newest = match &before {
            Some(before) => {
                Fields::of("node", before).find_time("newest")?.unwrap_or(Timestamp::EPOCH)
            }
            None => Timestamp::EPOCH,
        };
        let node = Self {
            name: name.into(),
            session,
            key,
            chain_tip: Mutex::new(ChainTip::GENESIS),
            observed_time: AtomicI64::new(newest.millis()),
            persisted_time: AtomicI64::new(newest.millis()),
            cluster_time: AtomicI64::new(cluster_time.millis()),
            is_chain_closed: AtomicBool::new(false),
            // Not from 1: an earlier process of this name counted from elsewhere.
            heartbeats: Mutex::new(Heartbeats {
                last: i64::try_from(session.as_u128() >> 68).unwrap_or_default(),
                sent: Vec::new(),
            }),
        };
        Ok((node, before))
    }

    /// The process.
    pub(crate) const fn session(&self) -> Uuid {
        self.session
    }

    /// Whether the name is still this process's.
    pub(super) async fn holds_name(&self, connection: &Connection) -> Result<bool, MongoError> {
        let (nodes, filter) = (connection.collection(NODES), self.own_document());
        Ok(connection.call(async move { Ok(nodes.find_one(filter).await?) }).await?.is_some())
    }

    /// The chain ends here now. The head in `nodes` follows with the next heartbeat.
    pub(crate) fn set_chain_tip(&self, tip: &ChainTip) {
        self.persisted_time.fetch_max(tip.newest_time.millis(), SeqCst);
        *self.chain_tip.lock().unwrap_or_else(PoisonError::into_inner) = tip.clone();
    }

    /// The chain takes no more records.
    pub(crate) fn set_chain_closed(&self) {
        self.is_chain_closed.store(true, SeqCst);
    }

    /// Writes the heartbeat and the chain's head; [`MongoError::NodeNameTaken`] if the name is another
    /// process's.
    pub(crate) async fn heartbeat(
        &self,
        connection: &Connection,
        closing: bool,
    ) -> Result<(), MongoError> {
        let beat = {
            let mut heartbeats = self.heartbeats();
            heartbeats.last = heartbeats.last.saturating_add(1);
            let beat = heartbeats.last;
            heartbeats.sent.push(SentHeartbeat {
                number: beat,
                sent_at: Instant::now(),
                acknowledged_at: None,
            });
            let surplus = heartbeats.sent.len().saturating_sub(PENDING_HEARTBEATS_MAX);
            heartbeats.sent.drain(..surplus);
            beat
        };
        let tip = self.chain_tip.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let newest = if closing {
            self.observed_time.load(SeqCst).max(self.persisted_time.load(SeqCst))
        } else {
            self.persisted_time.load(SeqCst)
        };
        let mut set = doc! { "beat": beat };
        let at = Timestamp::from_millis(self.cluster_time.load(SeqCst));
        let claim =
            if self.is_chain_closed.load(SeqCst) { Claim::Closed } else { Claim::Open { at } };
        set.extend(encode_head(&self.key.seal(&self.name, tip.sequence, tip.hash, claim)));
        let (nodes, mut filter) = (connection.collection(NODES), self.own_document());
        // One that comes late must not bring back an earlier head.
        filter.insert("beat", doc! { "$lt": beat });
        let newest = doc! { "newest": date(Timestamp::from_millis(newest)) };
        let update = doc! { "$set": set, "$max": newest, "$currentDate": { "seen_at": true } };
        let write = async move {
            let written =
                nodes.find_one_and_update(filter, update).projection(doc! { "seen_at": 1 });
            Ok(written.return_document(ReturnDocument::After).await?)
        };
        match connection.call(write).await? {
            Some(written) => {
                let at = Fields::of("node", &written).time("seen_at")?;
                self.cluster_time.fetch_max(at.millis(), SeqCst);
            }
            None if !self.holds_name(connection).await? => return Err(MongoError::NodeNameTaken),
            None => {}
        }
        if let Some(beat) = self.heartbeats().sent.iter_mut().find(|sent| sent.number == beat) {
            beat.acknowledged_at = Some(Instant::now());
        }
        Ok(())
    }

    /// A heartbeat came back over the feed: everything before it has come too. The moment before it
    /// was sent.
    pub(crate) fn heartbeat_seen(&self, beat: i64) -> Option<Instant> {
        let mut heartbeats = self.heartbeats();
        let sent = heartbeats.sent.iter().find(|sent| sent.number == beat).map(|sent| sent.sent_at);
        heartbeats.sent.retain(|sent| sent.number > beat);
        sent
    }

    /// Whether a heartbeat that the majority has had for so long was not heard: then the stream
    /// comes from a server that is behind, or has been left behind.
    pub(crate) fn has_unseen_heartbeat(&self, min_age: Duration) -> bool {
        self.heartbeats()
            .sent
            .iter()
            .filter_map(|sent| sent.acknowledged_at)
            .any(|acknowledged_at| acknowledged_at.elapsed() > min_age)
    }

    fn heartbeats(&self) -> std::sync::MutexGuard<'_, Heartbeats> {
        self.heartbeats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn own_document(&self) -> Document {
        doc! { "_id": self.name.as_ref(), "session": uuid(self.session) }
    }
}

/// The noted head of a chain.
pub(crate) async fn stored_head(
    connection: &Connection,
    name: &str,
) -> Result<Option<Head>, MongoError> {
    let (nodes, id) = (connection.collection(NODES), name.to_owned());
    let found =
        connection.call(async move { Ok(nodes.find_one(doc! { "_id": id }).await?) }).await?;
    Ok(found.as_ref().map(decode_head).transpose()?.flatten())
}

/// Returns true if any chain of the database was sealed with `key`, or none was sealed yet. One
/// head is enough: one that was put there keeps nobody out.
pub(crate) async fn is_cluster_key(
    connection: &Connection,
    key: &ChainKey,
) -> Result<bool, MongoError> {
    let nodes = connection.collection(NODES);
    let read = async move { Ok(nodes.find(doc! {}).await?.try_collect::<Vec<Document>>().await?) };
    let documents = connection.call(read).await?;
    let heads: Vec<Head> = documents
        .iter()
        .filter_map(|document| decode_sealed_head(document).ok().flatten())
        .collect();
    Ok(heads.is_empty() || heads.iter().any(|head| key.check(head)))
}

/// The fields of a sealed head.
pub(crate) fn encode_head(head: &Head) -> Document {
    let sealed_at = if let Claim::Open { at } = head.claim { date(at) } else { Bson::Null };
    doc! {
        "sealed_by": head.node.as_ref(),
        "sequence": count(head.sequence),
        "hash": bytes(&head.hash),
        "seal": bytes(&head.seal),
        // Of a chain that its node may go on with; null is a closed one.
        "sealed_at": sealed_at,
    }
}

/// The sealed head of a chain; `None` before its first record.
pub(crate) fn decode_head(document: &Document) -> Result<Option<Head>, MongoError> {
    Ok(decode_sealed_head(document)?.filter(|head| head.sequence > 0))
}

/// The sealed head of a chain, also before its first record; `None` before the first heartbeat.
pub(super) fn decode_sealed_head(document: &Document) -> Result<Option<Head>, MongoError> {
    let fields = Fields::of("head", document);
    if fields.find("sequence").is_none() {
        return Ok(None);
    }
    // Another chain's head is sealed as well: it says nothing about this one.
    if fields.text("sealed_by")? != fields.text("_id")? {
        return Err(MongoError::malformed("head", "it is another chain's"));
    }
    let claim = match fields.find_time("sealed_at")? {
        Some(at) => Claim::Open { at },
        None => Claim::Closed,
    };
    Ok(Some(Head {
        node: fields.text("sealed_by")?.into(),
        sequence: fields.count("sequence")?,
        hash: fields.hash("hash")?,
        claim,
        seal: fields.hash("seal")?,
    }))
}
