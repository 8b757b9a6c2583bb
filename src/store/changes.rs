//! Changes that a store reports to its followers.

use std::sync::Arc;

use tokio::time::Instant;

use crate::model::{ClientId, EpochOf, Keyset, revocation::Revocation};

/// Something committed that judgements depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A token or family was ended.
    Revoked(Revocation),
    /// An epoch stands at this value now.
    Epoch(EpochOf, u64),
    /// A client was written or removed.
    Client(ClientId),
    /// The keyset was written.
    Keyset(Arc<Keyset>),
    /// Changes may have been missed: whatever can be read again must be. That is clients;
    /// everything else that stands now (revocations, epochs, the keyset) is told again by the
    /// store.
    Missed,
}

/// Everything that judgements depend on, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// What was ended and must still be remembered.
    pub revocations: Vec<Revocation>,
    /// Every epoch above 0.
    pub epochs: Vec<(EpochOf, u64)>,
}

/// Hears of every change: on the node that wrote it, before the verb answers. A store of one node
/// tells them in the order of the commits, each once; one that nodes share may tell a change twice,
/// late, and in another order.
pub trait Follower: Send + Sync {
    /// Takes a change in. Must not block: the store's writer waits.
    fn apply(&self, change: &Change);
    /// Everything that was committed before `at`, by any node, has been applied: where it was read
    /// from, `at` is the moment before the question, not that of the answer. A store that never
    /// says so is never behind: its changes are heard in the commit. One that will ever say so says
    /// it first before [`RevocationStore::follow`](super::RevocationStore::follow) answers; what the answer holds is applied before
    /// anything is judged.
    fn knows_up_to(&self, at: Instant) {
        let _ = at;
    }
    /// Nothing will be heard any more: what is known is too old from now on.
    fn lost(&self) {}
}
