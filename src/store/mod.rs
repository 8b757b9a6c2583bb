//! RECORDS: small traits, one verb for each intent. Each verb is one atomic, conditional, durable
//! write, made together with its audit event: when it returns, both are on disk; when it fails
//! with [`StoreError::Unavailable`], either both are or neither is, and a retry is safe. In a shared
//! store the event becomes a record of the chain a moment later, once unless a node returns after others
//! have recorded its events for it; readers of the trail on the same node wait for it.
//!
//! Absence is an outcome, never an error, and a driver's error is never "not found". Expiry is
//! decided in the verb from the given time: an expired record that is still on disk reads as
//! absent.

#[macro_use]
mod verbs;

mod audiences;
pub mod authentic;
mod chain_reader;
mod changes;
pub mod embedded;
pub mod metered;
#[cfg(feature = "mongodb")]
pub mod mongo;
mod proof;
mod retention;
mod rotation;
pub mod shared;
mod trail_size;
pub mod transfer;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
pub use audiences::{AudienceStore, FoundAudience};
pub use proof::{Proof, ProofStore, ProvenWrite, Spent};
use tokio::sync::broadcast;

pub use self::{
    chain_reader::ChainReader,
    changes::{Change, Follower, Snapshot},
    retention::{RetentionStore, Surplus},
    rotation::{Decision, LastRotation, Rotate, Rotation},
    trail_size::{GROWTH_SPAN, TrailSize},
    verbs::Wrapper,
};
use crate::model::{
    Client, ClientId, EpochOf, Event, Family, FamilyId, Keyset, Place, Record, SecretId, Stamp,
    TenantId, Timestamp,
    event::Filter,
    revocation::{Revocation, Revoked},
};

/// Reason that a store could not execute a verb.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store cannot be reached or cannot write; the outcome is unknown and a retry is safe.
    #[error("store unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// There is no disk space left for writes; reads go on.
    #[error("store is full")]
    Full(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A stored record cannot be decoded.
    #[error("store is corrupt")]
    Corrupt(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Result of a store verb.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Outcome of creating a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creation {
    /// Created.
    Created,
    /// The id is taken; nothing was changed.
    Taken,
}

/// Outcome of a compare-and-set write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Applied.
    Done,
    /// The stored revision differs, or the record is gone; nothing was changed.
    Stale,
}

/// Uses of a secret since they were last recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretUse {
    /// Client of the secret.
    pub client: ClientId,
    /// Id of the secret.
    pub secret: SecretId,
    /// Time of the last use.
    pub at: Timestamp,
    /// Number of uses.
    pub count: u64,
}

/// Entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    /// Client that this service wrote.
    Client(Box<Client>),
    /// Record under this id that cannot be decoded or that this service did not write: it is no
    /// client.
    NotAuthentic(ClientId),
}

impl Listed {
    /// Returns the id it is listed under.
    pub fn id(&self) -> &ClientId {
        match self {
            Self::Client(client) => &client.id,
            Self::NotAuthentic(id) => id,
        }
    }
}

/// Page of audit records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventPage {
    /// Records, newest first.
    pub records: Vec<Record>,
    /// Place before which the next page begins; `None` if there are no more records.
    pub next: Option<Place>,
}

/// State of the servers of a shared store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreShape {
    /// Number of members of the replica set; `None` if it is none.
    pub members: Option<u64>,
    /// Time by which a majority of the members is behind the last write.
    pub lag_ms: Option<u64>,
    /// Number of the election that made the primary: each election raises it.
    pub election_term: Option<u64>,
    /// Version of the schema.
    pub schema: Option<i64>,
    /// Number of indexes that differ from those needed.
    pub index_defects: u64,
}

/// Node that writes an audit chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// This process.
    This,
    /// Another node that is running, by its sealed heartbeat.
    Another,
    /// No node that is known to be running.
    NotRunning,
}

/// Verbs on clients.
#[async_trait]
pub trait ClientStore: Send + Sync {
    /// Returns a client, with the recorded uses of its secrets.
    async fn client(&self, id: &ClientId) -> Result<Option<Client>>;
    /// Returns up to `limit` entries in byte order of their ids, those after `after`, of one tenant
    /// or of all. One that cannot be decoded is named and does not keep the others from being
    /// listed.
    async fn clients(
        &self,
        tenant: Option<&TenantId>,
        after: Option<&ClientId>,
        limit: usize,
    ) -> Result<Vec<Listed>>;
    /// Registers a client unless its id is taken; ids that differ in case are different. The id of
    /// a deleted client stays reserved for its tenant, and is taken for others.
    async fn create_client(&self, client: &Client, event: Event) -> Result<Creation>;
    /// Registers a client as [`Self::create_client`] does, also under the id of another tenant's
    /// deleted client: for the operator.
    async fn create_client_of_any(&self, client: &Client, event: Event) -> Result<Creation>;
    /// Writes `client` if the stored one has its tenant, its time of creation and the previous
    /// revision: a late change of a deleted client does not overwrite the next one of its id.
    async fn replace_client(&self, client: &Client, event: Event) -> Result<Write>;
    /// Writes `client` as [`Self::replace_client`] does and raises its epoch in the same commit:
    /// everything issued to it is revoked, even if the caller is gone. Appends all records,
    /// `events` first; followers receive the client, then the epoch.
    async fn end_client(&self, client: &Client, events: Vec<Event>, ended: Event) -> Result<Write>;
    /// Removes the stored client if it has the tenant, the time of creation and the revision of
    /// `client`, with the uses of its secrets, and reserves its id for its tenant in the same
    /// write. Its families stay until they expire: there may be very many. A client is ended first
    /// ([`Self::end_client`]), so that a later client of its id cannot use them.
    async fn delete_client(&self, client: &Client, event: Event) -> Result<Write>;
    /// Adds to the use counts of secrets and moves `last_used_at` forward, never back. Not audited.
    /// Uses of removed secrets are dropped.
    async fn record_secret_uses(&self, uses: &[SecretUse]) -> Result<()>;
}

/// Verbs on refresh families, one record each.
#[async_trait]
pub trait FamilyStore: Send + Sync {
    /// Opens a family.
    async fn open_family(&self, family: &Family, event: Event) -> Result<Creation>;
    /// Returns a family, also an ended one while it is kept. Expired ones read as absent.
    async fn family(&self, id: FamilyId, now: Timestamp) -> Result<Option<Family>>;
    /// Decides on a presented token and executes the decision in one write, by [`Rotate::decide`],
    /// and records it by [`Rotate::event`]. An outcome that changes nothing
    /// ([`Rotation::unrecorded`]) is not recorded: a client could cause any number of them, so the
    /// caller counts them.
    async fn rotate(&self, rotate: &Rotate, stamp: &Stamp, jti: &str) -> Result<Rotation>;
    /// Ends a family and revokes everything issued from it, until `until`; a repetition changes
    /// nothing and returns the same.
    async fn end_family(
        &self,
        id: FamilyId,
        now: Timestamp,
        until: Timestamp,
        event: Event,
    ) -> Result<()>;
}

/// Verbs on revocations and epochs.
#[async_trait]
pub trait RevocationStore: Send + Sync {
    /// Revokes a single token; idempotent.
    async fn revoke(&self, revocation: &Revocation, event: Event) -> Result<()>;
    /// Raises an epoch by one and returns its new value.
    async fn raise_epoch(&self, of: &EpochOf, event: Event) -> Result<u64>;
    /// Registers `follower` and returns a snapshot of all live revocations and epochs. Every change
    /// committed after the snapshot is passed to `follower`, none is skipped; it may be repeated.
    async fn follow(&self, now: Timestamp, follower: Arc<dyn Follower>) -> Result<Snapshot>;
    /// Deletes up to `limit` revocations, families and counters that nothing depends on any more;
    /// returns their number. Validity never depends on it.
    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize>;
}

/// Audit trail: a chain of records for this node and, in a shared store, for each of the others. A
/// chain has the name of the node that began it, even if a node of another name continues it.
#[async_trait]
pub trait AuditStore: Send + Sync {
    /// Appends an event without any other change; durable when it returns.
    async fn append(&self, event: Event) -> Result<()>;
    /// Appends an event with one of the next commits, at most 50 ms later; returns before that,
    /// except on a full disk: then it is like [`Self::append`].
    async fn append_soon(&self, event: Event) -> Result<()>;
    /// Returns up to `limit` records of all chains that `filter` admits, newest first ([`Place`]),
    /// those before `before`. A record that cannot be decoded is returned as
    /// [`Record::unreadable`], here, by [`Self::chain`] and by [`Self::tail`]. After `patience` the
    /// page is returned as far as it is: short, or empty, with the place where it continues.
    async fn page(
        &self,
        filter: &Filter,
        before: Option<&Place>,
        limit: usize,
        patience: Duration,
    ) -> Result<EventPage>;
    /// Returns records as [`Self::page`] does, however long that takes.
    async fn events(
        &self,
        filter: &Filter,
        before: Option<&Place>,
        limit: usize,
    ) -> Result<Vec<Record>> {
        let mut page = self.page(filter, before, limit, Duration::MAX).await?;
        while let Some(next) = page.next.take()
            && page.records.len() < limit
        {
            let wanted = limit.saturating_sub(page.records.len());
            let more = self.page(filter, Some(&next), wanted, Duration::MAX).await?;
            page.records.extend(more.records);
            page.next = more.next;
        }
        Ok(page.records)
    }
    /// Returns the names of all chains that have a record or a head, in byte order.
    async fn chains(&self) -> Result<Vec<Arc<str>>>;
    /// Returns up to `limit` records of the chain `name` in order, those after `after`. Empty:
    /// there are none, or no such chain.
    async fn chain(&self, name: &str, after: u64, limit: usize) -> Result<Vec<Record>>;
    /// Returns the sealed head of a chain, see `crypto::chain`; `None` if there is no such chain.
    /// If records follow the head that was stored last, the seal of the newest one, valid or not.
    async fn head(&self, chain: &str) -> Result<Option<crate::crypto::chain::Head>>;
    /// Returns the node that writes a chain now.
    async fn writer(&self, chain: &str) -> Result<Writer>;
    /// Returns up to `limit` records of `audit.heads_witnessed` in the order of chains and
    /// sequences, those after the place `after`, whose time is ignored. In a store whose records
    /// have seals, one with a wrong seal is left out.
    async fn witnesses(&self, after: Option<&Place>, limit: usize) -> Result<Vec<Record>>;
    /// Returns the mark of the cut before the first record of a chain, valid or not; `None` if the
    /// chain is whole. No verb returns records that it covers.
    async fn cut_mark(&self, chain: &str) -> Result<Option<crate::crypto::chain::CutMark>>;
    /// Returns the marks of all chains, valid or not, with the names of the chains.
    async fn cut_marks(&self) -> Result<Vec<(Arc<str>, crate::crypto::chain::CutMark)>>;
    /// Returns the size of the trail and its growth until `now`, without a scan.
    async fn trail_size(&self, now: Timestamp) -> Result<TrailSize>;
    /// Subscribes to records from now on, as they are committed; those of other nodes arrive a
    /// moment later. A receiver that lags more than 1,024 records behind gets an error. `None`: other
    /// nodes' records from before now may have been missed, and are in the store.
    fn tail(&self) -> broadcast::Receiver<Option<Arc<Record>>>;
}

/// Verbs on the service's keyset, one record.
#[async_trait]
pub trait KeyStore: Send + Sync {
    /// Returns the keyset, once there is one.
    async fn keyset(&self) -> Result<Option<Keyset>>;
    /// Writes `keyset` if the stored revision is `keyset.revision - 1`; revision 1 requires that
    /// there is none.
    async fn replace_keyset(&self, keyset: &Keyset, event: Event) -> Result<Write>;
}

/// Verbs on shared rate-limit counters.
#[async_trait]
pub trait CounterStore: Send + Sync {
    /// Adds to counters of the window that ends at `until` and returns their values. Durable within
    /// a second, not at once. After its window was swept, the value of a counter is undefined.
    async fn count(&self, hits: &[(String, u64)], until: Timestamp) -> Result<Vec<u64>>;
}

/// Everything the service keeps.
#[async_trait]
pub trait Store:
    ClientStore
    + AudienceStore
    + FamilyStore
    + RevocationStore
    + AuditStore
    + RetentionStore
    + KeyStore
    + CounterStore
    + ProofStore
{
    /// Checks that the store can write now.
    async fn ready(&self) -> Result<()>;
    /// Finishes queued writes and closes; later verbs return [`StoreError::Unavailable`].
    async fn close(&self) -> Result<()>;
    /// Returns the latest time that is durable: the clock never reads less (see `clock`).
    fn newest_time(&self) -> Timestamp;
    /// Returns the latest time that any node of this store used.
    async fn latest_time(&self) -> Result<Timestamp>;
    /// Lowers the latest time of every node to `to` and appends `event`. No other node may run, and
    /// everything that had expired must have been revoked before: its expiry is forgotten.
    async fn reset_time(&self, to: Timestamp, event: Event) -> Result<()>;
    /// Returns the time by the clock that all nodes of this store have in common; `None` for a
    /// store of one node.
    async fn time(&self) -> Result<Option<Timestamp>>;
    /// Returns the state of the servers; `None` for a store of one node.
    async fn shape(&self) -> Result<Option<StoreShape>>;
}

/// Builds the revocation of an ended family.
pub fn ended(id: FamilyId, until: Timestamp) -> Revocation {
    Revocation { revoked: Revoked::Family(id), until }
}
