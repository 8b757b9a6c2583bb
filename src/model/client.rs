//! Registered machines and their credentials.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    audience::Audience,
    id::{ClientId, PlanName, Role, SecretId, TenantId},
    mac::Mac,
    scope::{Scope, Scopes},
    time::Timestamp,
    weight,
};

/// The most secrets a client may have alive at once: the current one and its successor.
pub const MAX_LIVE_SECRETS: usize = 2;

/// A registered machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// Unique in the whole service.
    pub id: ClientId,
    /// The tenant it belongs to, for ever.
    pub tenant: TenantId,
    /// For people, at most 200 characters.
    pub display_name: String,
    /// Scopes that it may ask for.
    pub scopes: Scopes,
    /// Scopes that it gets when it asks for none. Empty: `scopes` without the reserved ones.
    pub default_scopes: Scopes,
    /// Copied into its tokens.
    pub roles: Vec<Role>,
    /// Audiences that its tokens may be for; the first is the default. Empty: this service.
    pub audiences: Vec<Audience>,
    /// Audiences that it answers for when it introspects.
    pub serves: Vec<Audience>,
    /// Grants that it may use.
    pub grants: Grants,
    /// Lifetime of its access tokens; `None` means the configured one.
    pub access_ttl: Option<Duration>,
    /// Absolute lifetime of its refresh families; `None` means the configured one.
    pub refresh_ttl: Option<Duration>,
    /// Time that its families live unused; `None` means the configured one.
    pub refresh_idle: Option<Duration>,
    /// Rate plan.
    pub rate_plan: PlanName,
    /// True if it is refused.
    pub disabled: bool,
    /// Credentials that it authenticates with, oldest first; expired ones are dropped at the next
    /// write.
    pub credentials: Vec<ClientCredential>,
    /// Counts the writes, from 1: the etag.
    pub revision: u64,
    /// Time of registration.
    pub created_at: Timestamp,
    /// Time of the last write.
    pub updated_at: Timestamp,
    /// Proof that this service wrote the record, made and checked by `store::authentic`.
    #[serde(default)]
    pub mac: Mac,
}

impl Client {
    /// Returns the scopes that it gets when it asks for none.
    pub fn scopes_by_default(&self) -> Scopes {
        if self.default_scopes.is_empty() {
            self.scopes.without_reserved()
        } else {
            self.default_scopes.clone()
        }
    }

    /// Returns true if this is a later or earlier form of the same registration, and not another
    /// client that got its id after it was deleted.
    pub fn is_registration_of(&self, other: &Self) -> bool {
        self.id == other.id && self.tenant == other.tenant && self.created_at == other.created_at
    }

    /// Bytes of memory that it takes.
    pub fn weight(&self) -> usize {
        let scopes = |scopes: &Scopes| {
            weight::texts::<Scope>(scopes.iter().count(), scopes.iter().map(Scope::as_str))
        };
        let audiences = |list: &Vec<Audience>| {
            weight::texts::<Audience>(list.capacity(), list.iter().map(Audience::as_str))
        };
        let ids = [
            self.id.as_str(),
            self.tenant.as_str(),
            self.rate_plan.as_str(),
            self.display_name.as_str(),
        ];
        weight::shared(size_of::<Self>())
            + ids.map(weight::text).iter().sum::<usize>()
            + scopes(&self.scopes)
            + scopes(&self.default_scopes)
            + weight::texts::<Role>(self.roles.capacity(), self.roles.iter().map(Role::as_str))
            + audiences(&self.audiences)
            + audiences(&self.serves)
            + weight::shared(self.credentials.capacity() * size_of::<ClientCredential>())
            + self.credentials.iter().map(ClientCredential::weight).sum::<usize>()
    }

    /// Returns true if `next` may not have what tokens of this one carry, or may not use a grant
    /// that this one may.
    pub fn loses_by(&self, next: &Self) -> bool {
        next.scopes.lacks(&self.scopes).is_some()
            || self.audiences.iter().any(|audience| !next.audiences.contains(audience))
            || self.roles.iter().any(|role| !next.roles.contains(role))
            || (self.grants.client_credentials && !next.grants.client_credentials)
            || (self.grants.refresh_token && !next.grants.refresh_token)
    }

    /// Returns its secrets, oldest first.
    pub fn secrets(&self) -> impl Iterator<Item = &Secret> {
        self.credentials.iter().filter_map(ClientCredential::secret)
    }

    /// Returns its secrets, oldest first.
    pub fn secrets_mut(&mut self) -> impl Iterator<Item = &mut Secret> {
        self.credentials.iter_mut().filter_map(ClientCredential::secret_mut)
    }

    /// Returns the secrets that work at `now`.
    pub fn live_secrets(&self, now: Timestamp) -> impl Iterator<Item = &Secret> {
        self.secrets().filter(move |secret| secret.is_valid(now))
    }

    /// Drops the credentials that do not work at `now`.
    pub fn drop_expired(&mut self, now: Timestamp) {
        self.credentials.retain(|credential| credential.is_valid(now));
    }

    /// Returns the record without the uses of its secrets, which stores keep beside it.
    pub fn without_secret_uses(&self) -> Self {
        let mut client = self.clone();
        for secret in client.secrets_mut() {
            (secret.last_used_at, secret.use_count) = (None, 0);
        }
        client
    }
}

/// The grants a client may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grants {
    /// RFC 6749 section 4.4.
    pub client_credentials: bool,
    /// RFC 6749 section 6; also decides whether refresh tokens are given out at all.
    pub refresh_token: bool,
}

/// Credential that a client authenticates with. A kind that is not listed here cannot be decoded,
/// so that a record with one is no client's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientCredential {
    /// A secret that it shares with this service (RFC 6749 section 2.3.1).
    Secret(Secret),
}

impl ClientCredential {
    /// Returns true if it works at `now`.
    pub fn is_valid(&self, now: Timestamp) -> bool {
        match self {
            Self::Secret(secret) => secret.is_valid(now),
        }
    }

    /// Returns the secret, if it is one.
    pub const fn secret(&self) -> Option<&Secret> {
        match self {
            Self::Secret(secret) => Some(secret),
        }
    }

    const fn secret_mut(&mut self) -> Option<&mut Secret> {
        match self {
            Self::Secret(secret) => Some(secret),
        }
    }

    /// Bytes of memory that it refers to.
    fn weight(&self) -> usize {
        match self {
            Self::Secret(Secret { id, digest, .. }) => {
                let (Digest::Keyed { hmac: kept } | Digest::Argon2id { phc: kept }) = digest;
                weight::text(id.as_str()) + weight::text(kept)
            }
        }
    }
}

/// A client's secret, without the secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// Unique within the client.
    pub id: SecretId,
    /// Digest that a presented value is compared with.
    pub digest: Digest,
    /// Time of addition.
    pub created_at: Timestamp,
    /// Time from which on it does not work.
    pub expires_at: Option<Timestamp>,
    /// Kept beside the client by the store: see `ClientStore::record_secret_uses`.
    pub last_used_at: Option<Timestamp>,
    /// Kept beside the client by the store.
    pub use_count: u64,
}

impl Secret {
    /// Returns true if it works at `now`; at `expires_at` itself it does not.
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|end| now < end)
    }
}

/// Form in which a secret is kept.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Digest {
    /// HMAC-SHA-256 of a secret made by this service, under a server key.
    Keyed {
        /// The 32 bytes, base64url.
        hmac: String,
    },
    /// argon2id of an imported or chosen secret (RFC 9106), in PHC form.
    Argon2id {
        /// The PHC string.
        phc: String,
    },
}

/// Says the kind only: a digest is no secret, and still does not belong in a log.
impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Keyed { .. } => f.write_str("Keyed"),
            Self::Argon2id { .. } => f.write_str("Argon2id"),
        }
    }
}
