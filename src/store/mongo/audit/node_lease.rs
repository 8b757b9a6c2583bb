//! Lease of a node's name: its document in `nodes`. It names the process that writes the node's
//! audit chain, holds the sealed head of the chain, and carries the heartbeat by which a node
//! measures the age of its data.
//!
//! | state of the name | event | next | written where |
//! |--|--|--|--|
//! | free, or held by another process | a process registers: new `session`, `beat` 0 | held by that process | [`Node::register`] |
//! | held | heartbeat, if `session` is its own and `beat` is lower | held, open head of the chain with the time of the last heartbeat | [`Node::heartbeat`] |
//! | held | the store closes, all records are durable | closed head: the end of the chain is certain | [`Node::set_chain_closed`], last [`Node::heartbeat`] |
//! | held | another process registers | taken: [`MongoError::NodeNameTaken`] for every call, followers are disconnected | heartbeat task, `ChainWriter::write` |
//! | held | the process dies | still held; from 30 s on its open head no longer counts as the end of the chain, and other nodes record its outbox entries | `query::is_sure`, `recovery` |
//!
//! No time takes a name away: only a registration does, which makes `session` the fence of all
//! later writes of the former holder.

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
        schema::{META, NODES},
    },
};

/// Interval between two heartbeats.
pub(crate) const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);
/// Field of a node's document: MongoDB's time of its first registration.
pub(super) const BORN_FIELD: &str = "born_at";
/// Id of the document in `meta` with the key of the first start, and the text under its MAC.
const FIRST_KEY: &str = "key";
const FIRST_KEY_NOTE: &[u8] = b"the key of this database";
/// Heartbeats remembered until the change stream shows them.
const PENDING_HEARTBEATS_MAX: usize = 256;

/// This node, and the process that holds its name.
pub(crate) struct Node {
    pub(crate) name: Arc<str>,
    session: Uuid,
    pub(crate) key: ChainKey,
    chain_tip: Mutex<ChainTip>,
    /// Latest time that any operation used, and the latest time that is durable; the clock never
    /// starts before the latter.
    pub(crate) observed_time: AtomicI64,
    pub(crate) persisted_time: AtomicI64,
    /// MongoDB's clock at the last heartbeat: the time under the seal of the next one.
    cluster_time: AtomicI64,
    /// True once the chain accepts no more records: every later head is a closed one.
    is_chain_closed: AtomicBool,
    heartbeats: Mutex<Heartbeats>,
}

/// Heartbeats sent and not yet seen on the change stream.
#[derive(Default)]
struct Heartbeats {
    last: i64,
    sent: Vec<SentHeartbeat>,
}

struct SentHeartbeat {
    number: i64,
    /// Time before it was sent, and time of the majority's acknowledgement.
    sent_at: Instant,
    acknowledged_at: Option<Instant>,
}

impl Node {
    /// Takes a node's name for this process, at MongoDB's time `cluster_time`. A process that held
    /// it before finds out and stops.
    pub(crate) async fn register(
        connection: &Connection,
        name: &str,
        key: ChainKey,
        cluster_time: Timestamp,
    ) -> Result<(Self, Option<Document>), MongoError> {
        let session = Uuid::new_v4();
        let (nodes, id) = (connection.collection(NODES), name.to_owned());
        let register = async move {
            let set = doc! {
                "$set": { "session": uuid(session), "beat": 0_i64 },
                "$setOnInsert": { BORN_FIELD: date(cluster_time) },
            };
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
        Ok((Self::of_session(name, session, key, newest, cluster_time), before))
    }

    /// A node that holds no name.
    #[cfg(test)]
    pub(super) fn unregistered(name: &str, key: ChainKey) -> Self {
        Self::of_session(name, Uuid::new_v4(), key, Timestamp::EPOCH, Timestamp::EPOCH)
    }

    fn of_session(
        name: &str,
        session: Uuid,
        key: ChainKey,
        newest: Timestamp,
        cluster_time: Timestamp,
    ) -> Self {
        Self {
            name: name.into(),
            session,
            key,
            chain_tip: Mutex::new(ChainTip::GENESIS),
            observed_time: AtomicI64::new(newest.millis()),
            persisted_time: AtomicI64::new(newest.millis()),
            cluster_time: AtomicI64::new(cluster_time.millis()),
            is_chain_closed: AtomicBool::new(false),
            // Not from 1: an earlier process of this name may have used those numbers.
            heartbeats: Mutex::new(Heartbeats {
                last: i64::try_from(session.as_u128() >> 68).unwrap_or_default(),
                sent: Vec::new(),
            }),
        }
    }

    /// Id of the process.
    pub(crate) const fn session(&self) -> Uuid {
        self.session
    }

    /// Returns true if this process still holds the name.
    pub(super) async fn holds_name(&self, connection: &Connection) -> Result<bool, MongoError> {
        let (nodes, filter) = (connection.collection(NODES), self.own_document());
        Ok(connection.call(async move { Ok(nodes.find_one(filter).await?) }).await?.is_some())
    }

    /// Sets the chain tip; persisted to `nodes` by the next heartbeat.
    pub(crate) fn set_chain_tip(&self, tip: &ChainTip) {
        self.persisted_time.fetch_max(tip.newest_time.millis(), SeqCst);
        *self.chain_tip.lock().unwrap_or_else(PoisonError::into_inner) = tip.clone();
    }

    /// Makes every later head a closed one.
    pub(crate) fn set_chain_closed(&self) {
        self.is_chain_closed.store(true, SeqCst);
    }

    /// Writes a heartbeat and the head of the chain. Fails with [`MongoError::NodeNameTaken`] if
    /// another process holds the name.
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
        // A late heartbeat must not restore an earlier head.
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
                // Also back: by a head of a time that lies ahead the node would seem not to run for
                // as long as the clock of MongoDB was ahead.
                self.cluster_time.store(at.millis(), SeqCst);
            }
            None if !self.holds_name(connection).await? => return Err(MongoError::NodeNameTaken),
            None => {}
        }
        if let Some(beat) = self.heartbeats().sent.iter_mut().find(|sent| sent.number == beat) {
            beat.acknowledged_at = Some(Instant::now());
        }
        Ok(())
    }

    /// Notes that the change stream has shown a heartbeat, and with it every change committed
    /// before it. Returns the time before it was sent.
    pub(crate) fn heartbeat_seen(&self, beat: i64) -> Option<Instant> {
        let mut heartbeats = self.heartbeats();
        let sent = heartbeats.sent.iter().find(|sent| sent.number == beat).map(|sent| sent.sent_at);
        heartbeats.sent.retain(|sent| sent.number > beat);
        sent
    }

    /// Returns true if the majority acknowledged a heartbeat more than `min_age` ago that the
    /// stream has not shown: the stream then reads from a server that lags behind or was
    /// partitioned.
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

/// Head of a chain as it is stored in `nodes`.
pub(crate) async fn stored_head(
    connection: &Connection,
    name: &str,
) -> Result<Option<Head>, MongoError> {
    let (nodes, id) = (connection.collection(NODES), name.to_owned());
    let found =
        connection.call(async move { Ok(nodes.find_one(doc! { "_id": id }).await?) }).await?;
    Ok(found.as_ref().map(decode_head).transpose()?.flatten())
}

/// Returns true if any chain of the database was sealed with `key`. One head is enough: a forged one
/// must not keep every node from starting. Before the first head it is the key of the node that
/// started first.
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
    if heads.is_empty() {
        return is_first_key(connection, key).await;
    }
    Ok(heads.iter().any(|head| key.check(head)))
}

/// Notes `key` for a database without a sealed head, unless a key is noted; returns true if it is
/// this one. Of two nodes that start at the same moment under different keys one is refused before it
/// has sealed anything, or taken entries of the other for forged ones.
async fn is_first_key(connection: &Connection, key: &ChainKey) -> Result<bool, MongoError> {
    let note = bytes(&key.mac_note(FIRST_KEY_NOTE));
    for _ in 0..2 {
        let (meta, set) = (connection.collection(META), doc! { "$setOnInsert": { "mac": &note } });
        let write = async move {
            let noted = meta.find_one_and_update(doc! { "_id": FIRST_KEY }, set).upsert(true);
            Ok(noted.return_document(ReturnDocument::After).await?)
        };
        match connection.call(write).await {
            // Another node wrote it at the same moment.
            Err(fault) if fault.is_duplicate() => {}
            noted => return Ok(noted?.and_then(|noted| noted.get("mac").cloned()) == Some(note)),
        }
    }
    Ok(false)
}

/// Fields of a sealed head.
pub(crate) fn encode_head(head: &Head) -> Document {
    let sealed_at = if let Claim::Open { at } = head.claim { date(at) } else { Bson::Null };
    doc! {
        "sealed_by": head.node.as_ref(),
        "sequence": count(head.sequence),
        "hash": bytes(&head.hash),
        "seal": bytes(&head.seal),
        // Time of an open head; null in a closed one.
        "sealed_at": sealed_at,
    }
}

/// Decodes the sealed head of a chain; `None` before its first record.
pub(crate) fn decode_head(document: &Document) -> Result<Option<Head>, MongoError> {
    Ok(decode_sealed_head(document)?.filter(|head| head.sequence > 0))
}

/// Decodes the sealed head of a chain, also before its first record; `None` before the first
/// heartbeat.
pub(super) fn decode_sealed_head(document: &Document) -> Result<Option<Head>, MongoError> {
    let fields = Fields::of("head", document);
    if fields.find("sequence").is_none() {
        return Ok(None);
    }
    // The head of another chain is validly sealed too, but not for this one.
    if fields.text("sealed_by")? != fields.text("_id")? {
        return Err(MongoError::malformed("head", "it belongs to another chain"));
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
