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
mod documents;
mod driver;
mod feed;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

pub use self::{
    admin::{
        export::Export,
        import::Import,
        inspect::{Defect, Inspection, NodeSeen, ReplicaSettings, inspect},
        topology::{Member, Role, ServerState},
    },
    audit::StoredChains,
    driver::error::OpenError,
};
use self::{
    admin::{shape, topology},
    audit::{AuditLog, recovery},
    collections::{
        audiences::Audiences, clients::Clients, counters::Counters, families::Families,
        keys::StoredKeyset, proof::Proofs, revocation_list::RevocationList,
        revocations::TokenRevocations,
    },
    driver::{
        connection::Connection,
        handshake::{ServerInfo, handshake, server_time},
        schema,
    },
    feed::ChangeFeed,
};
use crate::{
    crypto::chain::ChainKey,
    model::{Event, Timestamp},
    store::{Result, Store, StoreShape},
};

/// Deadline of an operation, unless the configuration says otherwise.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// Shards order their changes by clocks that synchronise only by messages, of which this node's
/// heartbeats send two a second: a heartbeat may come before changes that are up to this much
/// older.
const SHARD_CLOCK_MARGIN: Duration = Duration::from_secs(2);

/// Store in a MongoDB database: its collections, this node's audit log and its change feed.
pub struct Mongo {
    connection: Arc<Connection>,
    audit: Arc<AuditLog>,
    feed: Arc<ChangeFeed>,
    clients: Clients,
    audiences: Audiences,
    families: Families,
    revocations: TokenRevocations,
    keys: StoredKeyset,
    counters: Counters,
    proofs: Proofs,
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
        let ServerInfo { sharded, time, .. } = handshake(&connection).await?;
        schema::prepare(&connection).await?;
        let audit = AuditLog::open(connection.clone(), node, key, time).await?;
        let clock_margin = if sharded { SHARD_CLOCK_MARGIN } else { Duration::ZERO };
        // Whatever fails from here on, the tasks end with this store.
        let store = Self::compose(connection, audit, clock_margin);
        // The head of an earlier process may be closed; from here on the chain grows.
        store.audit.heartbeat().await?;
        store.feed.start().await?;
        // Before any change of this process: entries with this node's name are of an earlier one.
        recovery::start(&store.audit).await?;
        store.audit.start_heartbeats();
        Ok(store)
    }

    fn compose(connection: Arc<Connection>, audit: AuditLog, clock_margin: Duration) -> Self {
        let audit = Arc::new(audit);
        let feed =
            Arc::new(ChangeFeed::new(connection.clone(), audit.node().clone(), clock_margin));
        let handles = || (connection.clone(), audit.clone(), feed.clone());
        let (clients, keys) = (Clients::new(handles()), StoredKeyset::new(handles()));
        let audiences = Audiences::new(connection.clone(), audit.clone());
        let counters = Counters::new(connection.clone(), audit.node());
        let list = RevocationList::new(handles());
        let families = Families::new(handles(), list.clone());
        let revocations =
            TokenRevocations::new(handles(), list, families.clone(), counters.clone());
        let proofs = Proofs {
            connection: connection.clone(),
            audit: audit.clone(),
            clients: clients.clone(),
            audiences: audiences.clone(),
            families: families.clone(),
            revocations: revocations.clone(),
            keys: keys.clone(),
        };
        Self {
            connection,
            audit,
            feed,
            clients,
            audiences,
            families,
            revocations,
            keys,
            counters,
            proofs,
        }
    }
}

pass_verbs!({ clients } Mongo: ClientStore);
pass_verbs!({ audiences } Mongo: AudienceStore);
pass_verbs!({ families } Mongo: FamilyStore);
pass_verbs!({ revocations } Mongo: RevocationStore);
pass_verbs!({ audit } Mongo: AuditStore);
pass_verbs!({ audit } Mongo: RetentionStore);
pass_verbs!({ keys } Mongo: KeyStore);
pass_verbs!({ counters } Mongo: CounterStore);
pass_verbs!({ proofs } Mongo: ProofStore);

#[async_trait]
impl Store for Mongo {
    async fn ready(&self) -> Result<()> {
        Ok(self.audit.heartbeat().await?)
    }

    async fn close(&self) -> Result<()> {
        if self.connection.is_closed() {
            return Ok(());
        }
        let closed = self.audit.close().await;
        self.connection.close();
        Ok(closed?)
    }

    fn newest_time(&self) -> Timestamp {
        self.audit.newest_time()
    }

    async fn latest_time(&self) -> Result<Timestamp> {
        Ok(self.audit.latest_time().await?)
    }

    async fn reset_time(&self, to: Timestamp, event: Event) -> Result<()> {
        Ok(self.audit.reset_time(to, event).await?)
    }

    async fn time(&self) -> Result<Option<Timestamp>> {
        Ok(server_time(&self.connection).await?)
    }

    async fn shape(&self) -> Result<Option<StoreShape>> {
        Ok(Some(shape::read(&self.connection).await?))
    }
}

impl Drop for Mongo {
    fn drop(&mut self) {
        // The tasks notice and end.
        self.connection.close();
    }
}
