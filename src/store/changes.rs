//! Changes that a store reports to its followers.

use std::sync::Arc;

use tokio::time::Instant;

use crate::model::{ClientId, EpochOf, Keyset, revocation::Revocation};

/// Committed change on which decisions depend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A token or family was revoked.
    Revoked(Revocation),
    /// An epoch has this value now.
    Epoch(EpochOf, u64),
    /// A client was written or removed.
    Client(ClientId),
    /// The keyset was written.
    Keyset(Arc<Keyset>),
    /// Changes may have been missed: everything that can be read again must be. That is clients;
    /// the store reports everything else (revocations, epochs, the keyset) again.
    Missed,
}

/// State on which decisions depend, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Revocations that are still in force.
    pub revocations: Vec<Revocation>,
    /// Every epoch above 0.
    pub epochs: Vec<(EpochOf, u64)>,
}

/// Receiver of every change; on the node that wrote it, before the verb returns. A store of one
/// node reports changes in the order of commits, each once; a shared one may repeat, delay and
/// reorder them.
pub trait Follower: Send + Sync {
    /// Applies a change. Must not block: the store's writer waits.
    fn apply(&self, change: &Change);
    /// Reports that everything committed before `at`, by any node, has been applied. If it was
    /// read, `at` is the time before the query, not that of its result. A store that never calls
    /// this is never stale: its changes are reported in the commit. A store that does calls it
    /// first before [`RevocationStore::follow`](super::RevocationStore::follow) returns; the
    /// snapshot is applied before any decision is made.
    fn knows_up_to(&self, at: Instant) {
        let _ = at;
    }
    /// Reports that no more changes will follow: everything known is stale from now on.
    fn lost(&self) {}
}
