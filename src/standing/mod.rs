//! TOKEN STATE: everything that verifying a token depends on, in memory, fed by the store.
//! Introspect reads only this: no I/O, and no lock.
//!
//! | part | contents | source | held by |
//! |--|--|--|--|
//! | [`TokenState`] | public keys, revocations, epochs, claims | changes | nodes, sidecars |
//! | [`ClientCache`] | clients with digests of their secrets | reads of the store | nodes |
//! | [`NodeKeys`] | master key, private keys, root of the symmetric keys | keysets | nodes |
//!
//! A [`NodeState`] is the three of them behind a store. A sidecar holds a [`TokenState`] and none
//! of the others: it can then verify every token and neither sign one nor learn a secret.
//!
//! If nodes share a store, changes of other nodes arrive late, may be repeated, and not always in
//! order: a late or repeated change has no effect. They may also not arrive at all. So the token
//! state has an age, and beyond `max_staleness` no token is verified, neither as active nor as
//! inactive: [`Stale`]. Clients are then read from the store each time.
//!
//! Two things need no age: a known revocation stays true ([`TokenState::is_token_revoked`]), and
//! the public keys are served as they are ([`TokenState::verifying_keys`]).

mod age;
mod client_cache;
mod keys;
#[cfg(test)]
mod tests;
mod token_state;
mod verified_cache;

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

pub use self::{
    age::Stale,
    client_cache::ClientCache,
    keys::{NodeKeys, Opening, Refused},
    token_state::{Inactive, TokenState},
};
use crate::{
    crypto::signing_keys::SigningKeysError,
    model::{EpochOf, Keyset, Timestamp},
    store::{Change, Follower, Snapshot},
};

/// Tolerance for the clocks of other machines and steps of this one's: a revocation is kept this
/// much longer than any token that it covers (V07).
pub const SLACK: Duration = Duration::from_secs(3_600);

/// State of one node, fed by the changes of its store.
pub struct NodeState {
    /// State that tokens are verified against.
    pub tokens: Arc<TokenState>,
    /// Cache of clients.
    pub clients: Arc<ClientCache>,
    /// The secret keys.
    pub keys: Arc<NodeKeys>,
}

impl NodeState {
    /// State that knows the keys of `keyset` and nothing else yet. Once the store has said how far
    /// it is known ([`Follower::knows_up_to`]), no token is verified while that is longer than
    /// `max_staleness` ago.
    pub fn new(
        keyset: &Keyset,
        opening: Opening,
        max_staleness: Duration,
    ) -> Result<Self, SigningKeysError> {
        let (signing, verifying) = opening.open(keyset)?;
        let tokens = Arc::new(TokenState::new(verifying, max_staleness));
        Ok(Self {
            clients: Arc::new(ClientCache::new(tokens.clone())),
            keys: Arc::new(NodeKeys::new(keyset, signing, opening, tokens.clone())),
            tokens,
        })
    }

    /// Takes in everything that was valid when the store began to be followed.
    pub fn load(&self, snapshot: Snapshot) {
        for revocation in snapshot.revocations {
            self.apply(&Change::Revoked(revocation));
        }
        for (of, value) in snapshot.epochs {
            self.apply(&Change::Epoch(of, value));
        }
    }

    /// Forgets what is no longer needed, and returns how many revocations went.
    pub fn sweep(&self, now: Timestamp) -> usize {
        self.clients.sweep();
        self.tokens.sweep(now)
    }
}

impl Follower for NodeState {
    fn apply(&self, change: &Change) {
        match change {
            Change::Revoked(revocation) => self.tokens.revoke(revocation),
            Change::Epoch(of, value) => {
                if let EpochOf::Client(client) = of {
                    // Readers that find the raised epoch must not find the record from before it
                    // (see `ClientAuthenticator::admit`), also where the record's own change
                    // arrives after this one.
                    self.clients.forget(client);
                }
                self.tokens.raise_epoch(of, *value);
            }
            Change::Client(id) => self.clients.forget(id),
            Change::Missed => self.clients.forget_all(),
            Change::Keyset(keyset) => self.keys.apply(keyset),
        }
    }

    fn knows_up_to(&self, at: Instant) {
        self.tokens.advance_to(at);
    }

    fn lost(&self) {
        self.tokens.disconnected();
    }
}
