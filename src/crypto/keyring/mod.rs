//! The keys in use, parsed once: signs access tokens and judges them. Only here do claims become
//! [`VerifiedClaims`].

use std::{collections::HashMap, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::{Jwk, JwkSet};

use super::{
    jws::{self, Jws, MAX_TOKEN, Verifier},
    keys::{KeyError, Pair},
    keyset_mac::KeysetError,
    root::Root,
    seal::Sealer,
};
use crate::model::{Claims, KeyState, Keyset, Kid, SigningKey, Timestamp, weight};

/// Bounds on what a token may say of time.
#[derive(Clone, Copy, Debug)]
pub struct Judging {
    /// No token lives longer than this: the longest lifetime this service gives.
    pub max_lifetime: Duration,
    /// How far `iat` and `nbf` may lie ahead, for the clocks of the other nodes. `exp` has no
    /// leeway.
    pub skew: Duration,
}

/// Why the keyset cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The keyset as a whole.
    #[error(transparent)]
    Keyset(#[from] KeysetError),
    /// A signing key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The root of the symmetric keys.
    #[error("the root key: {0}")]
    Root(#[from] super::seal::SealError),
}

impl KeyringError {
    /// Returns true if no holder of this master key wrote the keyset.
    pub const fn is_forgery(&self) -> bool {
        matches!(self, Self::Keyset(_) | Self::Root(_))
    }
}

/// Why a token could not be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// It would be longer than anybody looks at: see [`MAX_TOKEN`].
    #[error("the token would be longer than {MAX_TOKEN} bytes")]
    TooLong,
    /// The claims cannot be written as JSON.
    #[error("cannot encode the claims")]
    Claims(#[source] serde_json::Error),
    /// The key does not sign.
    #[error("signing failed")]
    Signature,
}

/// What a token says, after its signature and its bounds were found good. Private fields: only
/// [`Keyring::verify`] makes one.
#[derive(Debug)]
pub struct VerifiedClaims {
    claims: Claims,
    kid: Kid,
}

impl VerifiedClaims {
    /// What the token says.
    pub const fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Bytes of memory that they take.
    pub fn weight(&self) -> usize {
        weight::shared(size_of::<Self>()) + self.claims.weight() + weight::text(self.kid.as_str())
    }

    /// The key that signed it: [`Keyring::stands`] is to be asked again whenever the claims are
    /// used again.
    pub const fn kid(&self) -> &Kid {
        &self.kid
    }
}

/// The keys of one revision of the keyset.
pub struct Keyring {
    revision: u64,
    issuer: String,
    judging: Judging,
    root: Root,
    signer: Signer,
    /// Every key whose tokens may stand. There is no other place a key id is ever looked up in
    /// (J06).
    keys: HashMap<Kid, Known>,
    jwks: serde_json::Value,
}

/// The key that signs.
struct Signer {
    kid: Kid,
    pair: Pair,
    /// The header in base64url, with its dot.
    header: String,
}

/// A key that verifies.
struct Known {
    verifier: Verifier,
    /// When the last token it signed has expired, once it no longer signs.
    until: Option<Timestamp>,
}

impl Keyring {
    /// Opens every key of `keyset` that is not revoked.
    ///
    /// # Errors
    ///
    /// When the keyset does not [check](Keyset::check), or a key or the root does not open under
    /// this master key or is unacceptable.
    pub fn open(
        keyset: &Keyset,
        sealer: &Sealer,
        issuer: &str,
        judging: Judging,
    ) -> Result<Self, KeyringError> {
        let root = Root::open(keyset, sealer)?;
        keyset.check(sealer)?;
        let mut signer = None;
        let mut keys = HashMap::new();
        let mut public = Vec::new();
        for key in keyset.keys.iter().filter(|key| !matches!(key.state, KeyState::Revoked { .. })) {
            let pair = Pair::open(key, sealer)?;
            let (jwk, verifier) = published(key, &pair)?;
            let until = if let KeyState::Retiring { remove_at } = key.state {
                Some(remove_at)
            } else {
                None
            };
            keys.insert(key.kid.clone(), Known { verifier, until });
            public.push(jwk);
            if matches!(key.state, KeyState::Active { .. }) {
                signer = Some(Signer::new(key.kid.clone(), pair));
            }
        }
        let signer = signer.ok_or(KeysetError::Active(0))?;
        let jwks = serde_json::json!(JwkSet { keys: public });
        Ok(Self {
            revision: keyset.revision,
            issuer: issuer.to_owned(),
            judging,
            root,
            signer,
            keys,
            jwks,
        })
    }

    /// Signs an access token (RFC 9068) with the active key.
    ///
    /// # Errors
    ///
    /// When the token would be too long to be verified again.
    pub fn sign(&self, claims: &Claims) -> Result<String, SignError> {
        let payload = serde_json::to_vec(claims).map_err(SignError::Claims)?;
        let mut token =
            String::with_capacity(self.signer.header.len() + payload.len() * 4 / 3 + 600);
        token.push_str(&self.signer.header);
        URL_SAFE_NO_PAD.encode_string(&payload, &mut token);
        let signature = self.signer.pair.sign(token.as_bytes()).ok_or(SignError::Signature)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(&signature, &mut token);
        if token.len() > MAX_TOKEN { Err(SignError::TooLong) } else { Ok(token) }
    }

    /// The claims of `token`, if it is an access token of this issuer, signed by a key that stands,
    /// and within its time at `now`. Does no I/O. Why a token was refused is nobody's business.
    pub fn verify(&self, token: &str, now: Timestamp) -> Option<VerifiedClaims> {
        let (claims, kid, known) = self.read(token)?;
        if known.until.is_some_and(|until| now >= until) {
            return None;
        }
        self.judging.in_time(&claims, now).then_some(VerifiedClaims { claims, kid })
    }

    /// The claims of `token`, if it is an access token of this issuer, signed by a key that is not
    /// revoked or removed, whatever the time: a clock that is wrong must not keep a token from
    /// being revoked.
    pub fn recognise(&self, token: &str) -> Option<Claims> {
        self.read(token).map(|(claims, ..)| claims)
    }

    fn read(&self, token: &str) -> Option<(Claims, Kid, &Known)> {
        let jws = Jws::parse(token).ok()?;
        // RFC 9068 section 4; "application/" may be left out (RFC 7515 section 4.1.9).
        if !matches!(jws.typ(), Some("at+jwt" | "application/at+jwt")) {
            return None;
        }
        let kid: Kid = jws.kid()?.parse().ok()?;
        let known = self.keys.get(&kid)?;
        let claims: Claims = jws::object(known.verifier.verify(&jws)?)?;
        let good = claims.iss == self.issuer
            && !claims.aud.is_empty()
            && self.judging.is_no_longer(&claims);
        good.then_some((claims, kid, known))
    }

    /// The moment that it may still be elsewhere.
    pub fn earliest(&self, now: Timestamp) -> Timestamp {
        let skew = i64::try_from(self.judging.skew.as_millis()).unwrap_or(i64::MAX);
        Timestamp::from_millis(now.millis().saturating_sub(skew))
    }

    /// Of the keyset it was opened from.
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether tokens of this key may stand: it is neither revoked nor removed.
    pub fn stands(&self, kid: &Kid) -> bool {
        self.keys.contains_key(kid)
    }

    /// The public keys (RFC 7517 section 5): prepared, active and retiring ones.
    pub const fn jwks(&self) -> &serde_json::Value {
        &self.jwks
    }

    /// The root of the symmetric keys.
    pub const fn root(&self) -> &Root {
        &self.root
    }

    /// The key that signs.
    pub const fn active_kid(&self) -> &Kid {
        &self.signer.kid
    }
}

impl Judging {
    /// RFC 7519 section 4.1.4 to 4.1.6. A token expires at `exp` itself.
    fn in_time(&self, claims: &Claims, now: Timestamp) -> bool {
        let [issued, begins, expires] =
            [claims.iat, claims.nbf, claims.exp].map(Timestamp::from_seconds);
        let ahead = now + self.skew;
        now < expires && issued <= ahead && begins <= ahead
    }

    /// Whether its lifetime is one that this service gives.
    fn is_no_longer(&self, claims: &Claims) -> bool {
        let [issued, expires] = [claims.iat, claims.exp].map(Timestamp::from_seconds);
        issued < expires && expires.since(issued) <= self.max_lifetime
    }
}

impl Signer {
    fn new(kid: Kid, pair: Pair) -> Self {
        let header = format!(r#"{{"typ":"at+jwt","alg":"{}","kid":"{kid}"}}"#, pair.alg().as_str());
        let header = format!("{}.", URL_SAFE_NO_PAD.encode(header));
        Self { kid, pair, header }
    }
}

/// The public part of a key, held to the same policy as everybody else's. Its id must be its own
/// thumbprint.
fn published(key: &SigningKey, pair: &Pair) -> Result<(Jwk, Verifier), KeyError> {
    let unacceptable = || KeyError::Unacceptable(key.kid.clone(), key.alg.as_str());
    let jwk = pair.jwk().ok_or_else(unacceptable)?;
    if jwk.common.key_id.as_deref() != Some(key.kid.as_str()) {
        return Err(KeyError::Sealed(key.kid.clone()));
    }
    let verifier = Verifier::from_jwk(&jwk).map_err(|_| unacceptable())?;
    Ok((jwk, verifier))
}

/// Shows which keys, not the keys.
impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring")
            .field("active", &self.signer.kid)
            .field("keys", &self.keys.keys())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
