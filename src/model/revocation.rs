//! Revocations: single tokens and families by id, everything wider by an epoch.

use serde::{Deserialize, Serialize};

use super::{
    id::{ClientId, FamilyId, Jti, Subject, TenantId},
    time::Timestamp,
};

/// A token or a family that was ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", content = "id", rename_all = "snake_case")]
pub enum Revoked {
    /// One access token.
    Token(Jti),
    /// A refresh family and its access tokens.
    Family(FamilyId),
}

/// Owner of an epoch. Raising it revokes every token minted under a lower value: one write, however
/// many tokens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", content = "id", rename_all = "snake_case")]
pub enum EpochOf {
    /// A whole tenant.
    Tenant(TenantId),
    /// A client.
    Client(ClientId),
    /// A subject.
    Subject(Subject),
}

/// A revocation with the time until which it must be remembered: no token it covers lives longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// Token or family.
    pub revoked: Revoked,
    /// Time at which it may be forgotten.
    pub until: Timestamp,
}
