//! RECORDS: small traits whose verbs are intents. Each verb is one atomic, conditional, durable
//! write, made together with its audit record: when it answers, both are on disk; when it fails
//! with [`StoreError::Unavailable`], either both are or neither is, and asking again is safe.
//!
//! Absent is an outcome, never an error, and a driver's error is never "not found". Expiry is
//! judged in the verb from the time given; what has expired and is still on disk reads as absent.

mod audiences;
pub mod authentic;
mod changes;
pub mod embedded;
pub mod metered;
pub mod mongo;
mod proof;
mod rotation;
pub mod transfer;

use std::sync::Arc;

use async_trait::async_trait;
pub use audiences::{AudienceStore, FoundAudience};
pub use proof::{Proof, ProofStore, ProvenWrite, Spent};
use tokio::sync::broadcast;

pub use self::{
    changes::{Change, Follower, Snapshot},
    rotation::{Last, Rotate, Rotation, Verdict},
};
use crate::model::{
    Client, ClientId, EpochOf, Event, Family, FamilyId, Keyset, Place, Record, SecretId, Stamp,
    TenantId, Timestamp,
    event::Filter,
    revocation::{Revocation, Revoked},
};

/// Why a store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached or cannot write; the outcome is unknown and asking again is safe.
    #[error("store unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// There is no room left to write; reading goes on.
    #[error("store is full")]
    Full(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// What is there cannot be understood.
    #[error("store is corrupt")]
    Corrupt(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What a store's verb comes to.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Whether something new could be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creation {
    /// It was.
    Created,
    /// Its id is taken; nothing was changed.
    Taken,
}

/// Whether a change found what it was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// It did, and is done.
    Done,
    /// Somebody else wrote in between, or removed it; nothing was changed.
    Stale,
}

/// A secret's use, to be counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretUse {
    /// Whose.
    pub client: ClientId,
    /// Which.
    pub secret: SecretId,
    /// When last.
    pub at: Timestamp,
    /// How often since the last note.
    pub count: u64,
}

/// An entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    /// A client.
    Client(Box<Client>),
    /// A record under this id that cannot be read or that this service did not write: it is no
    /// client.
    NotAuthentic(ClientId),
}

impl Listed {
    /// The id it is listed under.
    pub fn id(&self) -> &ClientId {
        match self {
            Self::Client(client) => &client.id,
            Self::NotAuthentic(id) => id,
        }
    }
}

/// The node that writes an audit chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// This process.
    This,
    /// Another node that runs, as its sealed heartbeat says.
    Another,
    /// None that is known to run.
    Nobody,
}

/// Clients.
#[async_trait]
pub trait ClientStore: Send + Sync {
    /// One client, with the noted uses of its secrets.
    async fn client(&self, id: &ClientId) -> Result<Option<Client>>;
    /// Up to `limit` entries in the order of their ids' bytes, those after `after`, of one tenant
    /// or of all. One that cannot be read is named and does not keep the others from being listed.
    async fn clients(
        &self,
        tenant: Option<&TenantId>,
        after: Option<&ClientId>,
        limit: usize,
    ) -> Result<Vec<Listed>>;
    /// Registers a client unless its id is taken; ids that differ in case are different. The id of
    /// a client that was deleted stays its tenant's, and is taken for others.
    async fn create_client(&self, client: &Client, event: Event) -> Result<Creation>;
    /// The same, where the id of a deleted client may be any tenant's: for the operator.
    async fn create_client_of_any(&self, client: &Client, event: Event) -> Result<Creation>;
    /// Writes `client` if the stored one has its tenant, its time of creation and the revision
    /// before: a client that was deleted meanwhile is not brought back over the next one of its id.
    async fn replace_client(&self, client: &Client, event: Event) -> Result<Write>;
    /// Writes `client` as [`Self::replace_client`] does and raises its epoch in the same commit:
    /// all that was issued to it ends with it, whatever becomes of the caller. Leaves all records,
    /// `events` first, and followers get the client, then the epoch.
    async fn end_client(&self, client: &Client, events: Vec<Event>, ended: Event) -> Result<Write>;
    /// Removes the stored client if it has the tenant, the time of creation and the revision of
    /// `client`, with the uses of its secrets, and keeps whose its id was in the same write. Its
    /// families stay until they expire: there may be very many. A client is ended first
    /// ([`Self::end_client`]), so that a later client of its name cannot use them.
    async fn delete_client(&self, client: &Client, event: Event) -> Result<Write>;
    /// Adds to the use counts of secrets and moves `last_used_at` forward, never back. Not audited.
    /// Uses of what has been removed are dropped.
    async fn note_uses(&self, uses: &[SecretUse]) -> Result<()>;
}

/// Refresh families: one record each.
#[async_trait]
pub trait FamilyStore: Send + Sync {
    /// Opens a family.
    async fn open_family(&self, family: &Family, event: Event) -> Result<Creation>;
    /// A family, ended ones too while they are kept. Expired ones read as absent.
    async fn family(&self, id: FamilyId, now: Timestamp) -> Result<Option<Family>>;
    /// Judges and acts on a presented token in one write, by [`Rotate::judge`], and records it by
    /// [`Rotate::event`]. What changes nothing ([`Rotation::unrecorded`]) is not recorded: it may
    /// come as often as a caller likes, so its caller counts it.
    async fn rotate(&self, rotate: &Rotate, stamp: &Stamp, jti: &str) -> Result<Rotation>;
    /// Ends a family and what came of it, remembered until `until`; ending it again changes nothing
    /// and answers the same.
    async fn end_family(
        &self,
        id: FamilyId,
        now: Timestamp,
        until: Timestamp,
        event: Event,
    ) -> Result<()>;
}

/// What was ended.
#[async_trait]
pub trait RevocationStore: Send + Sync {
    /// Ends a single token; again is the same.
    async fn revoke(&self, revocation: &Revocation, event: Event) -> Result<()>;
    /// Raises an epoch by one and says where it stands.
    async fn raise_epoch(&self, of: &EpochOf, event: Event) -> Result<u64>;
    /// Delivers everything that stands to `follower.apply`-able form and from then on every change,
    /// without a gap.
    async fn follow(&self, now: Timestamp, follower: Arc<dyn Follower>) -> Result<Snapshot>;
    /// Forgets revocations, families and counters that nothing depends on any more; how many went.
    /// Housekeeping only.
    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize>;
}

/// The audit trail: a chain of records for this node and, where nodes share a store, for each of
/// the others. A chain has the name of the node that began it, also if a node of another name goes
/// on with it.
#[async_trait]
pub trait AuditStore: Send + Sync {
    /// Appends an event that comes with no other change; durable when it answers.
    async fn append(&self, event: Event) -> Result<()>;
    /// Appends an event with one of the next commits, at most 50 ms later; the answer comes before
    /// that, except on a full disk: there it is as [`Self::append`].
    async fn append_soon(&self, event: Event) -> Result<()>;
    /// Up to `limit` records of all chains that `filter` admits, newest first ([`Place`]), those
    /// before `before`. A record that cannot be read is given as [`Record::unreadable`], here, by
    /// [`Self::chain`] and by [`Self::tail`].
    async fn events(
        &self,
        filter: &Filter,
        before: Option<&Place>,
        limit: usize,
    ) -> Result<Vec<Record>>;
    /// The names of all chains that have a record or a head, in the order of their bytes.
    async fn chains(&self) -> Result<Vec<Arc<str>>>;
    /// Up to `limit` records of the chain `name` in order, those after `after`; none where there is
    /// no such chain.
    async fn chain(&self, name: &str, after: u64, limit: usize) -> Result<Vec<Record>>;
    /// The sealed end of a chain, see `crypto::chain`; none where there is no such chain. Where
    /// records lie behind the head that was noted last, the newest one's own seal, right or wrong.
    async fn head(&self, chain: &str) -> Result<Option<crate::crypto::chain::Head>>;
    /// The node that writes a chain now.
    async fn writer(&self, chain: &str) -> Result<Writer>;
    /// Up to `limit` records of `audit.heads_witnessed` in the order of chains and sequences, those
    /// after the place `after`, whose time does not count. One whose own seal is wrong is left out,
    /// where records have seals.
    async fn witnesses(&self, after: Option<&Place>, limit: usize) -> Result<Vec<Record>>;
    /// Records as they are committed from now on, those of other nodes from a moment later on; one
    /// that lags more than 1,024 behind is told so. `None` where some of other nodes may have been
    /// missed.
    fn tail(&self) -> broadcast::Receiver<Option<Arc<Record>>>;
}

/// The service's keys: one record.
#[async_trait]
pub trait KeyStore: Send + Sync {
    /// The keyset, once there is one.
    async fn keyset(&self) -> Result<Option<Keyset>>;
    /// Writes `keyset` if the stored one's revision is `keyset.revision - 1`; revision 1 demands
    /// that there is none.
    async fn replace_keyset(&self, keyset: &Keyset, event: Event) -> Result<Write>;
}

/// Shared rate-limit counters.
#[async_trait]
pub trait CounterStore: Send + Sync {
    /// Adds to counters of the window that ends at `until` and says where each stands. Durable
    /// within a second, not at once. A window that was swept is over: where its counters would
    /// stand then is not promised.
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
    + KeyStore
    + CounterStore
    + ProofStore
{
    /// Whether it can write now.
    async fn ready(&self) -> Result<()>;
    /// Finishes what is waiting and closes; later verbs answer [`StoreError::Unavailable`].
    async fn close(&self) -> Result<()>;
    /// The newest time the store has kept: the clock never reads less (see `clock`).
    fn newest(&self) -> Timestamp;
    /// The time by the clock that all nodes of this store have in common; `None` where there is
    /// only one node.
    async fn time(&self) -> Result<Option<Timestamp>>;
}

/// What a family that was ended leaves behind.
pub fn ended(id: FamilyId, until: Timestamp) -> Revocation {
    Revocation { revoked: Revoked::Family(id), until }
}
