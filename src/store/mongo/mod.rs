//! Store shared by many nodes: a MongoDB replica set, or a sharded cluster.
//!
//! Each operation is one compare-and-set write of one document, acknowledged by the majority and
//! its journals. Changes reach all nodes over a change stream (`feed`). Audit records follow in the
//! node's own chain (`audit::outbox`).
//!
//! | collection | content |
//! |--|--|
//! | `clients`, `audiences`, `tokens`, `revocations`, `epochs`, `signing_keys` | data that operations change, each document with an outbox |
//! | `audit_logs`, `nodes` | one chain for each node; its sealed head and heartbeat |
//! | `rate_limits` | counters by window |
//! | `meta` | version of the schema |
//!
//! Tables of states: an outbox entry in `audit::outbox`, the mark of a rotation in
//! `collections::rotation`, the position in the change stream in `feed`, a node's lease in
//! `audit::node_lease`, a flight in `collections::coalesce`.

mod admin;
mod audit;
mod collections;
mod driver;
mod feed;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use mongodb::bson::{Document, doc};
use tokio::{sync::oneshot, time::timeout};

use self::{
    admin::topology,
    audit::{
        chain_writer::ChainHandle,
        node_lease::{self, HEARTBEAT_INTERVAL, Node},
        outbox::{AuditedChange, Entry, OutboxOwner},
        outbox_cleaner::OutboxCleaner,
        records::{self, ChainTip},
        recovery::{self, Recovery},
    },
    collections::{coalesce::Coalescer, counters::LocalCounts},
    driver::{
        codec::Fields,
        connection::{Connection, pause},
        error::MongoError,
        schema,
    },
    feed::Feed,
};
pub use self::{
    admin::{
        export::Export,
        import::Import,
        inspect::{Defect, Inspection, NodeSeen, ReplicaSettings, inspect},
        topology::{Member, Role, ServerState},
    },
    driver::error::OpenError,
};
use crate::{
    crypto::chain::ChainKey,
    model::{Event, Timestamp},
    store::{Change, Result, Store},
};

/// Deadline of an operation, unless the configuration says otherwise.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// Oldest server with all features that are needed: MongoDB 4.4.
const WIRE_VERSION: i32 = 9;
/// Oldest server with snapshot reads: MongoDB 5.0.
const SNAPSHOT_WIRE_VERSION: i32 = 13;
/// Shards order their changes by clocks that synchronise only by messages, of which this node's
/// heartbeats send two a second: a heartbeat may come before changes that are up to this much
/// older.
const SHARD_CLOCK_MARGIN: Duration = Duration::from_secs(2);
/// Timeout of work that no caller waits for.
const BACKGROUND_TIMEOUT: Duration = Duration::from_secs(60);

/// Store in a MongoDB database.
pub struct Mongo {
    shared: Arc<Shared>,
}

/// State that the store's operations and its tasks share.
struct Shared {
    connection: Arc<Connection>,
    node: Arc<Node>,
    chain: ChainHandle,
    feed: Feed,
    cleaner: OutboxCleaner,
    local_counts: LocalCounts,
    /// Single-flight reads and rotations of families.
    family_reads: Coalescer,
    family_rotations: Coalescer,
    /// True if the server is not a member of a replica set.
    is_standalone: bool,
    /// Clock difference between the shards whose changes the stream merges.
    clock_margin: Duration,
    /// True while the records of other nodes are followed.
    tailing: AtomicBool,
    /// True once the log reports that the keyset cannot be read.
    keyset_unread: AtomicBool,
}

impl Mongo {
    /// Opens the database that `uri` names (`jeton` if it names none), creates or repairs
    /// collections and indexes, and starts the change feed. `node` is this node's name, which only
    /// one process may use at a time; `key` seals its audit chain; `deadline` bounds every call.
    ///
    /// A standalone server, without a replica set, is supported with a warning: its durability is
    /// that of its one disk, and changes of other nodes are polled once a second.
    ///
    /// # Errors
    ///
    /// A problem of the address, its servers, their replies or the stored data; never the address
    /// itself.
    pub async fn open(
        uri: &str,
        node: &str,
        key: ChainKey,
        deadline: Duration,
    ) -> Result<Self, OpenError> {
        match Self::open_registered(uri, node, key, deadline).await {
            Err(error) => Err(topology::diagnose_connect_error(uri, error).await),
            opened => opened,
        }
    }

    async fn open_registered(
        uri: &str,
        node: &str,
        key: ChainKey,
        deadline: Duration,
    ) -> Result<Self, OpenError> {
        let connection = Arc::new(Connection::new(uri, deadline).await?);
        let ServerInfo { is_standalone, sharded, time, .. } = handshake(&connection).await?;
        schema::prepare(&connection).await?;
        // A start under another master key must not take the name of a running node.
        if node_lease::stored_head(&connection, node).await?.is_some_and(|head| !key.check(&head)) {
            return Err(OpenError::MasterKey(format!("the head of the audit chain {node}")));
        }
        // Nor may a new name start under another key: outbox entries of other nodes would look
        // forged, and be removed.
        if !node_lease::is_cluster_key(&connection, &key).await? {
            return Err(OpenError::MasterKey("every audit chain of this database".to_owned()));
        }
        let (node, before) = Node::register(&connection, node, key.clone(), time).await?;
        // After our own registration: an import looks for that after its own mark.
        if schema::is_importing(&connection).await? {
            return Err(unfinished_import());
        }
        let tip = resume_chain(&connection, &node, &key, before.as_ref()).await?;
        let node = Arc::new(node);
        let cleaner = OutboxCleaner::start(connection.clone());
        let chain = ChainHandle::start(connection.clone(), node.clone(), key, tip, cleaner.clone());
        let shared = Arc::new(Shared {
            connection,
            node,
            chain,
            feed: Feed::default(),
            cleaner,
            local_counts: LocalCounts::default(),
            family_reads: Coalescer::default(),
            family_rotations: Coalescer::default(),
            is_standalone,
            clock_margin: if sharded { SHARD_CLOCK_MARGIN } else { Duration::ZERO },
            tailing: AtomicBool::new(false),
            keyset_unread: AtomicBool::new(false),
        });
        let store = Self { shared };
        // The head of an earlier process may be closed; from here on the chain grows.
        store.shared.node.heartbeat(&store.shared.connection, false).await?;
        store.start_feed().await?;
        let mut recovery = Recovery::default();
        // Before any change of this process: entries with this node's name are of an earlier one.
        recovery.run(&store.shared, true).await?;
        store.spawn_background_tasks(recovery);
        Ok(store)
    }

    /// Starts the change feed.
    async fn start_feed(&self) -> Result<(), MongoError> {
        if self.shared.is_standalone {
            tracing::warn!(
                "MongoDB is standalone: revocations of other nodes arrive up to a second late, and \
                 a disk failure loses acknowledged writes; use a replica set"
            );
            tokio::spawn(feed::poll(self.shared.clone()));
            return Ok(());
        }
        let (opened, answer) = oneshot::channel();
        tokio::spawn(feed::run(self.shared.clone(), opened));
        timeout(BACKGROUND_TIMEOUT, answer)
            .await
            .map_err(|_| MongoError::Timeout(BACKGROUND_TIMEOUT))?
            .map_err(|_| MongoError::Closed)?
    }

    /// Spawns the heartbeat, the watch for a taken name, and recovery.
    fn spawn_background_tasks(&self, mut recovery: Recovery) {
        let shared = self.shared.clone();
        tokio::spawn(async move {
            if shared.connection.closed().await {
                shared.feed.lost();
            }
        });
        let shared = self.shared.clone();
        tokio::spawn(async move {
            while !shared.connection.is_closed() {
                match shared.node.heartbeat(&shared.connection, false).await {
                    Err(MongoError::NodeNameTaken) => {
                        tracing::error!(
                            node = %shared.node.name,
                            "another process uses this node's name, stopping"
                        );
                        shared.connection.close_name_taken();
                    }
                    Err(fault) if !shared.connection.is_closed() => {
                        tracing::debug!(%fault, "heartbeat failed")
                    }
                    Ok(()) | Err(_) => {}
                }
                pause(HEARTBEAT_INTERVAL).await;
            }
        });
        let shared = self.shared.clone();
        tokio::spawn(async move {
            loop {
                pause(recovery::INTERVAL).await;
                if shared.connection.is_closed() {
                    return;
                }
                if let Err(fault) = recovery.run(&shared, false).await {
                    tracing::warn!(%fault, "cannot check for orphaned audit events");
                }
            }
        });
    }
}

/// Tip of this node's chain: not before the stored head, and verified record by record after it.
async fn resume_chain(
    connection: &Connection,
    node: &Node,
    key: &ChainKey,
    before: Option<&Document>,
) -> Result<ChainTip, OpenError> {
    let name = &node.name;
    let noted = before.map(node_lease::decode_head).transpose()?.flatten();
    let start = match &noted {
        Some(head) if !key.check(head) => {
            return Err(OpenError::MasterKey(format!("the head of the audit chain {name}")));
        }
        Some(head) => ChainTip { sequence: head.sequence, hash: head.hash, ..ChainTip::GENESIS },
        None => ChainTip::GENESIS,
    };
    let noted = start.sequence;
    let last = records::last_record(connection, name)
        .await?
        .as_ref()
        .map(records::decoded)
        .transpose()?
        .map_or(0, |record| record.sequence);
    if last < noted {
        return Err(OpenError::Corrupt(format!(
            "the audit chain {name} ends at record {last}, expected {noted} or later"
        )));
    }
    let tip = records::verify_tip(connection, key, name, start).await?;
    if tip.sequence > 0 {
        node.set_chain_tip(&tip);
    }
    Ok(tip)
}

/// Description of the server at the address.
struct ServerInfo {
    /// Standalone server.
    is_standalone: bool,
    /// Router of a sharded cluster.
    sharded: bool,
    /// True if it supports snapshot reads.
    shows_snapshots: bool,
    /// Time by its clock.
    time: Timestamp,
}

/// Sends `hello`; refuses a server that is too old.
async fn handshake(connection: &Connection) -> Result<ServerInfo, OpenError> {
    let database = connection.database().clone();
    let hello = connection
        .within(BACKGROUND_TIMEOUT.min(connection.deadline().saturating_mul(5)), async move {
            Ok(database.run_command(doc! { "hello": 1 }).await?)
        });
    let hello = hello.await?;
    let found = hello.get_i32("maxWireVersion").unwrap_or_default();
    if found < WIRE_VERSION {
        return Err(OpenError::TooOld { found, needed: WIRE_VERSION });
    }
    let sharded = hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid");
    let is_standalone = !sharded && hello.get_str("setName").is_err();
    let time = Fields::of("hello", &hello).time("localTime")?;
    Ok(ServerInfo {
        is_standalone,
        sharded,
        time,
        shows_snapshots: !is_standalone && found >= SNAPSHOT_WIRE_VERSION,
    })
}

fn unfinished_import() -> OpenError {
    OpenError::Corrupt("an import was interrupted: drop the database and import again".to_owned())
}

impl Shared {
    /// Builds the operation id and outbox entries for one document write.
    fn audited_change(
        &self,
        events: impl IntoIterator<Item = Event>,
    ) -> Result<AuditedChange, MongoError> {
        let audited = AuditedChange::new(&self.node, self.chain.sequence(), events)?;
        audited.entries.iter().for_each(|entry| self.observe_time(entry.event.at));
        Ok(audited)
    }

    /// Records a change that was written.
    async fn record(&self, audited: AuditedChange, owner: OutboxOwner) -> Result<(), MongoError> {
        self.chain.append(audited.entries, Some(owner)).await
    }

    /// Records a change that was written, and waits until this node's followers are notified of it.
    async fn record_and_notify(
        &self,
        audited: AuditedChange,
        owner: OutboxOwner,
        changes: Vec<Change>,
    ) -> Result<(), MongoError> {
        let notified = self.feed.await_own_change(audited.operation, &changes);
        // Both, whatever the outcome of either: a change that could not be recorded in time is
        // still a change.
        let (recorded, ()) =
            tokio::join!(self.chain.append(audited.entries, Some(owner)), notified);
        recorded
    }

    /// Waits until a document that a write found is durable: a duplicate key may come from a write
    /// that is lost with its primary. A write that changes nothing waits for the majority.
    async fn confirm_durable(&self, owner: OutboxOwner) -> Result<(), MongoError> {
        let documents = self.connection.collection(owner.collection);
        let nothing = vec![doc! { "$set": { "_id": "$_id" } }];
        self.connection
            .call(async move { Ok(documents.update_one(doc! { "_id": owner.id }, nothing).await?) })
            .await
            .map(drop)
    }

    /// Records an event that comes with no change.
    async fn append(&self, event: Event) -> Result<(), MongoError> {
        self.observe_time(event.at);
        self.chain.append(vec![Entry::new(event)?], None).await
    }

    /// Records the latest time that any operation used.
    fn observe_time(&self, now: Timestamp) {
        self.node.observed_time.fetch_max(now.millis(), SeqCst);
    }

    /// Records the latest time that is durable.
    fn persist_time(&self, now: Timestamp) {
        self.node.persisted_time.fetch_max(now.millis(), SeqCst);
    }
}

/// Runs an operation to completion even if its caller is dropped: no change is left without its
/// record because a caller disconnected. The caller waits for the whole operation no longer than
/// for a single call.
async fn run_detached<T: Send + 'static>(
    shared: &Shared,
    verb: impl Future<Output = Result<T, MongoError>> + Send + 'static,
) -> Result<T> {
    let deadline = shared.connection.deadline();
    let verb =
        timeout(deadline, tokio::spawn(verb)).await.map_err(|_| MongoError::Timeout(deadline))?;
    Ok(verb.map_err(|_| MongoError::Closed)??)
}

#[async_trait]
impl Store for Mongo {
    async fn ready(&self) -> Result<()> {
        Ok(self.shared.node.heartbeat(&self.shared.connection, false).await?)
    }

    async fn close(&self) -> Result<()> {
        if self.shared.connection.is_closed() {
            return Ok(());
        }
        if self.shared.chain.close().await {
            self.shared.node.set_chain_closed();
        }
        self.shared.cleaner.flush().await;
        let last = self.shared.node.heartbeat(&self.shared.connection, true).await;
        self.shared.connection.close();
        Ok(last?)
    }

    fn newest_time(&self) -> Timestamp {
        Timestamp::from_millis(self.shared.node.persisted_time.load(SeqCst))
    }

    async fn time(&self) -> Result<Option<Timestamp>> {
        let database = self.shared.connection.database().clone();
        let hello = self
            .shared
            .connection
            .call(async move { Ok(database.run_command(doc! { "hello": 1 }).await?) })
            .await?;
        Ok(Fields::of("hello", &hello).find_time("localTime")?)
    }
}

impl Drop for Mongo {
    fn drop(&mut self) {
        // The tasks notice and end.
        self.shared.connection.close();
    }
}
