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

/// A refresh family as it stands in the store.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Family {
    /// Time-ordered.
    pub id: FamilyId,
    /// The tenant of its client.
    pub tenant: TenantId,
    /// Whose it is: nobody else can refresh it.
    pub client: ClientId,
    /// On whose behalf.
    pub subject: Subject,
    /// The most any access token of it can carry.
    pub scopes: Scopes,
    /// Who its access tokens are for.
    pub audience: Vec<Audience>,
    /// What its refresh tokens are derived with, besides the server's key.
    pub salt: [u8; 32],
    /// The epochs it was opened under: it ends when one of them is passed.
    pub epochs: Epochs,
    /// When it was opened.
    pub opened_at: Timestamp,
    /// From when on it does not stand, however often it is refreshed.
    pub expires_at: Timestamp,
    /// It does not stand when it was last refreshed this long ago.
    pub idle: Duration,
    /// The generation of the token that is valid now, from 0.
    pub generation: u32,
    /// When that generation was given out.
    pub rotated_at: Timestamp,
    /// The calls that were given that generation.
    pub answers: Answers,
    /// When it was ended, if it was.
    pub ended_at: Option<Timestamp>,
}

/// How often a spent token yields its successor again: an answer is lost once or twice.
pub const REPETITIONS: u32 = 3;
/// Generations running that may not all be given out more than once.
pub const RUNNING: u32 = 3;

/// The calls that were given a family's current refresh token. Kept in the family's record, since
/// the next verdict depends on them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    /// How many: 1, and one for each repetition.
    pub given: u32,
    /// How many generations running, up to the one before this, were answered more than once.
    pub running: u32,
    /// Peer address of the call that made this generation.
    pub rotated_by: Arc<str>,
    /// Peer address of the last repetition. Empty: there was none.
    pub repeated_by: Arc<str>,
}

impl Answers {
    /// Of the first generation, given to a caller at `peer`.
    pub fn first(peer: &Arc<str>) -> Self {
        Self { given: 1, running: 0, rotated_by: peer.clone(), repeated_by: "".into() }
    }

    /// Of the next generation, given to a caller at `peer`, when `answered` calls were answered
    /// with this one.
    pub fn rotated(&self, answered: u32, peer: &Arc<str>) -> Self {
        let running = if answered > 1 { self.running.saturating_add(1) } else { 0 };
        Self { running, ..Self::first(peer) }
    }

    /// With a repetition, given to a caller at `peer`.
    pub fn repeated(&self, peer: &Arc<str>) -> Self {
        Self { given: self.given.saturating_add(1), repeated_by: peer.clone(), ..self.clone() }
    }

    /// Whether, with so many calls answered, this is the last of [`RUNNING`] generations that were
    /// each answered more than once.
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
    /// When it ends unless it is refreshed before. No access token of it lives longer, so that what
    /// can no longer be revoked by its family does not stand either.
    pub fn ends_at(&self) -> Timestamp {
        self.expires_at.min(self.rotated_at + self.idle)
    }

    /// Whether a refresh token of it can be used at `now`: not ended, not past either bound.
    pub fn stands(&self, now: Timestamp) -> bool {
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
