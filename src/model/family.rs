//! A refresh family: ONE record with a generation counter, however often it is refreshed.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    audience::Audience,
    claims::Epochs,
    id::{ClientId, FamilyId, Subject, TenantId},
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
    /// When it was ended, if it was.
    pub ended_at: Option<Timestamp>,
}

impl Family {
    /// When it ends unless it is refreshed before. No access token of it lives longer, so that what can no longer be revoked by
    /// its family does not stand either.
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
