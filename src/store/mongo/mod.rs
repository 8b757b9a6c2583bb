//! The store that many nodes share: a MongoDB replica set, or a sharded cluster.
//!
//! Each verb is one conditional write of one document, kept by the majority and on its disks before
//! it is answered. What one node ends, all hear of over a change stream. Its audit records follow
//! in the node's own chain: see `audit::outbox`.
//!
//! | collection | what |
//! |--|--|
//! | `clients`, `audiences`, `tokens`, `revocations`, `epochs`, `signing_keys` | what verbs change, each document with an outbox |
//! | `audit_logs`, `nodes` | a chain for each node; its sealed head and heartbeat |
//! | `rate_limits` | counters by window |
//! | `meta` | the schema's version |

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

/// How long a verb waits for MongoDB, unless the configuration says otherwise.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// The oldest server that does all that is asked of it: MongoDB 4.4.
const WIRE_VERSION: i32 = 9;
/// MongoDB 5.0.
const SNAPSHOT_WIRE_VERSION: i32 = 13;
/// Shards put their changes in order by clocks that learn of each other only by messages: those of
/// this node come by twice a second, so a heartbeat may stand before changes that are up to this
/// much older.
const SHARD_CLOCK_MARGIN: Duration = Duration::from_secs(2);
/// For what no caller waits for.
const BACKGROUND_TIMEOUT: Duration = Duration::from_secs(60);

/// A store in a MongoDB database.
pub struct Mongo {
    shared: Arc<Shared>,
}

/// What the store's verbs and its tasks both see.
struct Shared {
    connection: Arc<Connection>,
    node: Arc<Node>,
    chain: ChainHandle,
    feed: Feed,
    cleaner: OutboxCleaner,
    local_counts: LocalCounts,
    /// Who reads a family, and who rotates one.
    family_reads: Coalescer,
    family_rotations: Coalescer,
    /// Whether the server is one without a replica set.
    is_standalone: bool,
    /// How far the clocks of a sharded cluster may be apart that its stream is put in order by.
    clock_margin: Duration,
    /// Whether the trail of the other nodes is being followed.
    tailing: AtomicBool,
    /// True once the log says that the keyset cannot be read.
    keyset_unread: AtomicBool,
}

impl Mongo {
    /// Opens the database that `uri` names (`jeton` where it names none), makes or mends
    /// collections and indexes, and begins to hear what other nodes do. `node` is this node's name,
    /// of which there must be only one at a time; `key` seals its audit chain; `deadline` bounds
    /// every call.
    ///
    /// A server alone, without a replica set, is served too, and said so: its answers are worth
    /// what its one disk is, and other nodes' changes are looked for once a second.
    ///
    /// # Errors
    ///
    /// What is wrong with the address, the servers it names, their answers or what is kept there;
    /// never the address itself.
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
        // A start under another master key must not take the name from a node that lives.
        if node_lease::stored_head(&connection, node).await?.is_some_and(|head| !key.check(&head)) {
            return Err(OpenError::MasterKey(format!("the head of the audit chain {node}")));
        }
        // Nor may a new name: what the other nodes left in outboxes would look forged under another
        // key, and be thrown away.
        if !node_lease::is_cluster_key(&connection, &key).await? {
            return Err(OpenError::MasterKey("every audit chain of this database".to_owned()));
        }
        let (node, before) = Node::register(&connection, node, key.clone(), time).await?;
        // Behind our own mark: an import looks for that once it has made its own.
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
        // The head of an earlier life may be closed; from here on the chain grows.
        store.shared.node.heartbeat(&store.shared.connection, false).await?;
        store.start_feed().await?;
        let mut recovery = Recovery::default();
        // Before any change of this life: what is there now and bears this node's name is of an
        // earlier one.
        recovery.run(&store.shared, true).await?;
        store.spawn_background_tasks(recovery);
        Ok(store)
    }

    /// Starts to hear changes.
    async fn start_feed(&self) -> Result<(), MongoError> {
        if self.shared.is_standalone {
            tracing::warn!(
                "MongoDB runs without a replica set: no change streams, so what other nodes end is \
                 seen up to a second later, and what was acknowledged is lost with its one disk"
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

    /// Heartbeats, and events that were left behind.
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
                        tracing::error!(node = %shared.node.name, "another process runs under this \
                            node's name, this one stops");
                        shared.connection.close_name_taken();
                    }
                    Err(fault) if !shared.connection.is_closed() => {
                        tracing::debug!(%fault, "no heartbeat")
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
                    tracing::warn!(%fault, "cannot look for events left behind");
                }
            }
        });
    }
}

/// Where this node's chain ends: not before the head that was noted, and from there on record by
/// record.
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
            "the audit chain {name} ends at {last} and was at {noted}"
        )));
    }
    let tip = records::verify_tip(connection, key, name, start).await?;
    if tip.sequence > 0 {
        node.set_chain_tip(&tip);
    }
    Ok(tip)
}

/// What answers at the address.
struct ServerInfo {
    /// One server without a replica set.
    is_standalone: bool,
    /// The router of a sharded cluster.
    sharded: bool,
    /// Whether it can show one moment for as long as it takes to read everything.
    shows_snapshots: bool,
    /// What its clock says.
    time: Timestamp,
}

/// Says hello; refuses a server that is too old.
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
    OpenError::Corrupt(
        "an import has begun and not ended: drop the database and import again".to_owned(),
    )
}

impl Shared {
    /// A change in the making, with its events.
    fn audited_change(
        &self,
        events: impl IntoIterator<Item = Event>,
    ) -> Result<AuditedChange, MongoError> {
        let audited = AuditedChange::new(&self.node, self.chain.sequence(), events)?;
        audited.entries.iter().for_each(|entry| self.observe_time(entry.event.at));
        Ok(audited)
    }

    /// Records a change that was made.
    async fn record(&self, audited: AuditedChange, owner: OutboxOwner) -> Result<(), MongoError> {
        self.chain.append(audited.entries, Some(owner)).await
    }

    /// Records a change that was made, and sees to it that this node's followers have heard of it.
    async fn record_and_notify(
        &self,
        audited: AuditedChange,
        owner: OutboxOwner,
        changes: Vec<Change>,
    ) -> Result<(), MongoError> {
        let notified = self.feed.await_own_change(audited.operation, &changes);
        // Both, whatever becomes of either: a change that could not be recorded in time is a change
        // all the same.
        let (recorded, ()) =
            tokio::join!(self.chain.append(audited.entries, Some(owner)), notified);
        recorded
    }

    /// That a document is there is true only once the majority has it: a key that is taken may be
    /// taken by a write that is lost with its primary. A write that changes nothing waits for that.
    async fn confirm_durable(&self, owner: OutboxOwner) -> Result<(), MongoError> {
        let documents = self.connection.collection(owner.collection);
        let nothing = vec![doc! { "$set": { "_id": "$_id" } }];
        self.connection
            .call(async move { Ok(documents.update_one(doc! { "_id": owner.id }, nothing).await?) })
            .await
            .map(drop)
    }

    /// Records what comes with no change.
    async fn append(&self, event: Event) -> Result<(), MongoError> {
        self.observe_time(event.at);
        self.chain.append(vec![Entry::new(event)?], None).await
    }

    /// A verb acts on this time.
    fn observe_time(&self, now: Timestamp) {
        self.node.observed_time.fetch_max(now.millis(), SeqCst);
    }

    /// This time is kept.
    fn persist_time(&self, now: Timestamp) {
        self.node.persisted_time.fetch_max(now.millis(), SeqCst);
    }
}

/// Carries a verb out to its end, whatever becomes of the caller: a change is not left without its
/// record because somebody hung up. The caller waits for the verb as a whole no longer than for any
/// single call.
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

    fn newest(&self) -> Timestamp {
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
        // The tasks see it and end.
        self.shared.connection.close();
    }
}
