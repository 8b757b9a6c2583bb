//! A refresh family: ONE record with a generation counter, however often it is refreshed.

use std::{net::IpAddr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    audience::Audience,
    claims::Epochs,
    id::{ClientId, FamilyId, Subject, TenantId},
    peer_key::PeerKey,
    scope::Scopes,
    time::Timestamp,
};

/// A refresh family as it is stored.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Family {
    /// Time-ordered.
    pub id: FamilyId,
    /// The tenant of its client.
    pub tenant: TenantId,
    /// Its client: no other can refresh it.
    pub client: ClientId,
    /// On whose behalf.
    pub subject: Subject,
    /// The most any access token of it can carry.
    pub scopes: Scopes,
    /// Audiences of its access tokens.
    pub audience: Vec<Audience>,
    /// Salt that its refresh tokens are derived with, besides the server's key.
    pub salt: [u8; 32],
    /// The epochs it was opened under: it ends when one of them is passed.
    pub epochs: Epochs,
    /// Time of opening.
    pub opened_at: Timestamp,
    /// Time from which on it is invalid, however often it is refreshed.
    pub expires_at: Timestamp,
    /// Time since the last refresh after which it is invalid.
    pub idle: Duration,
    /// The generation of the token that is valid now, from 0.
    pub generation: u32,
    /// Time at which that generation was given out.
    pub rotated_at: Timestamp,
    /// The calls that were given that generation.
    pub answers: Answers,
    /// Time of its end, if it was ended.
    pub ended_at: Option<Timestamp>,
}

/// Number of times that a spent token yields its successor again: an answer is lost once or twice.
pub const REPETITIONS: u32 = 3;
/// Generations running that may not all be given out more than once.
pub const RUNNING: u32 = 3;

/// The calls that were given a family's current refresh token. Kept in the family's record, since
/// the next verdict depends on them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    /// Count of answers: 1, and one for each repetition.
    pub given: u32,
    /// Count of generations in a row, up to the one before this, that were answered more than once.
    pub running: u32,
    /// Peer address of the call that made this generation.
    pub rotated_by: Arc<str>,
    /// Peer address of the last repetition. Empty: there was none.
    pub repeated_by: Arc<str>,
}

impl Answers {
    /// Answers of the first generation, given to a caller at `peer`.
    pub fn first(peer: &Arc<str>) -> Self {
        Self { given: 1, running: 0, rotated_by: peer.clone(), repeated_by: "".into() }
    }

    /// Answers of the next generation, given to a caller at `peer`, when `answered` calls were
    /// answered with this one.
    pub fn rotated(&self, answered: u32, peer: &Arc<str>) -> Self {
        let running = if answered > 1 { self.running.saturating_add(1) } else { 0 };
        Self { running, ..Self::first(peer) }
    }

    /// Adds a repetition, given to a caller at `peer`.
    pub fn repeated(&self, peer: &Arc<str>) -> Self {
        Self { given: self.given.saturating_add(1), repeated_by: peer.clone(), ..self.clone() }
    }

    /// Returns true if, with this many calls answered, this is the last of [`RUNNING`] generations
    /// that were each answered more than once.
    pub const fn is_shared(&self, answered: u32) -> bool {
        answered > 1 && self.running.saturating_add(1) >= RUNNING
    }

    /// Returns true if `peer` is counted as another peer than the one that rotated.
    pub fn is_from_elsewhere(&self, peer: &str) -> bool {
        let key = |address: &str| {
            address.parse::<IpAddr>().map(PeerKey::from).map_err(|_| address.to_owned())
        };
        key(peer) != key(&self.rotated_by)
    }
}

impl Family {
    /// Returns its end unless it is refreshed before. No access token of it lives longer, so that
    /// none is active that can no longer be revoked by its family.
    pub fn ends_at(&self) -> Timestamp {
        self.expires_at.min(self.rotated_at + self.idle)
    }

    /// Returns true if a refresh token of it can be used at `now`: not ended, not past either
    /// bound.
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.ended_at.is_none() && now < self.ends_at()
    }
}

/// Without the salt.
impl std::fmt::Debug for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Family")
            .field("id", &self.id)
            .field("client", &self.client)
            .field("generation", &self.generation)
            .field("ended_at", &self.ended_at)
            .finish_non_exhaustive()
    }
}
