//! The keys of the service as ONE record, so that every step of a rotation is one conditional
//! write: there is never a moment, nor a crash, with no active key or with two.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{id::Kid, time::Timestamp};

/// A JWS algorithm a key signs with; a key never has another (RFC 8725 section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Algorithm {
    /// Ed25519 (RFC 8037).
    #[serde(rename = "EdDSA")]
    EdDsa,
    /// ECDSA on P-256 with SHA-256.
    #[serde(rename = "ES256")]
    Es256,
    /// RSASSA-PKCS1-v1_5 with SHA-256, 3072 bits.
    #[serde(rename = "RS256")]
    Rs256,
}

impl Algorithm {
    /// The name in a JWS header.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EdDsa => "EdDSA",
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
        }
    }
}

/// State of a key in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum KeyState {
    /// Published, not yet used; `activate_at` is set once a rotation has been asked for.
    Prepared {
        /// Time at which it becomes the signing key.
        activate_at: Option<Timestamp>,
    },
    /// Signs.
    Active {
        /// Time of activation.
        since: Timestamp,
    },
    /// Verifies only.
    Retiring {
        /// Time at which the last token it signed has expired.
        remove_at: Timestamp,
    },
    /// Revoked: no token of it is valid. Kept, unpublished and without its private part, until
    /// `remove_at`.
    Revoked {
        /// Time at which the last token it signed would have expired.
        remove_at: Timestamp,
    },
}

/// A signing key, its private part sealed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigningKey {
    /// Its id.
    pub kid: Kid,
    /// Its one algorithm.
    pub alg: Algorithm,
    /// State.
    #[serde(flatten)]
    pub state: KeyState,
    /// Time of creation.
    pub created_at: Timestamp,
    /// PKCS#8 private key under the master key, base64url. Empty: the key is revoked, and its
    /// private part destroyed.
    pub sealed: String,
}

/// Hides the sealed part.
impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey")
            .field("kid", &self.kid)
            .field("alg", &self.alg)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// All keys of the service.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyset {
    /// Counts the writes, from 1.
    pub revision: u64,
    /// Signing keys, oldest first; exactly one is active.
    pub keys: Vec<SigningKey>,
    /// 32 random bytes under the master key, base64url: the root of the server's symmetric keys
    /// (refresh tokens, client secrets, page tokens), each derived from it under its own label.
    pub sealed_root: String,
    /// HMAC over everything else, under a key from the master key, base64url.
    #[serde(default)]
    pub mac: String,
}

/// Hides the sealed root.
impl std::fmt::Debug for Keyset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyset")
            .field("revision", &self.revision)
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

/// The times of a key's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyPolicy {
    /// Time that a key signs before it is replaced by itself.
    pub rotate_every: Duration,
    /// Time that a key is published before it signs: at least what caches of the JWKS keep.
    pub publish_ahead: Duration,
    /// Time that a key verifies after it last signed: the longest access token lifetime and the
    /// clock skew.
    pub verify_after: Duration,
}
