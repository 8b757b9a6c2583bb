//! Public keys of the service, parsed once: they verify access tokens. Only this module creates
//! [`VerifiedClaims`].
//!
//! The input is public JWKs alone ([`PublicKey`]), without a master key, keyset or private key, so
//! that a process that only verifies holds nothing that could sign. The secret half is
//! [`SigningKeys`](super::signing_keys::SigningKeys).

use std::{collections::HashMap, time::Duration};

use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, JwkSet, ThumbprintHash};

use super::{
    jwk::Refused,
    jws::{self, Jws, Verifier},
};
use crate::model::{Claims, Kid, Timestamp, VERIFIER_BEHIND, weight};

/// Limits of the times in claims.
#[derive(Clone, Copy, Debug)]
pub struct ClaimLimits {
    /// Maximum lifetime of a token: the longest that this service issues.
    pub max_lifetime: Duration,
    /// Time that `iat` and `nbf` may lie ahead, for the clocks of the other nodes. `exp` has no
    /// leeway.
    pub skew: Duration,
}

/// Claims of a token whose signature and times are valid. Private fields: only
/// [`VerifyingKeys::verify`] creates one.
#[derive(Debug)]
pub struct VerifiedClaims {
    claims: Claims,
    kid: Kid,
}

impl VerifiedClaims {
    /// The claims.
    pub const fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Returns the bytes of memory that they use.
    pub fn weight(&self) -> usize {
        weight::shared(size_of::<Self>()) + self.claims.weight() + weight::text(self.kid.as_str())
    }

    /// Returns the key that signed them. Check [`VerifyingKeys::contains`] whenever the claims are
    /// used again.
    pub const fn kid(&self) -> &Kid {
        &self.kid
    }
}

/// The public part of one signing key, and the time until which it verifies.
pub struct PublicKey {
    kid: Kid,
    jwk: Jwk,
    verifier: Verifier,
    until: Option<Timestamp>,
}

impl PublicKey {
    /// Admits a key by the policy for keys of other issuers. `until` is the expiry of the last
    /// token that it signed, if it no longer signs.
    ///
    /// # Errors
    ///
    /// The key is symmetric, [cannot be admitted](super::jwk::admit), or its id is not its
    /// thumbprint (RFC 7638).
    pub fn new(jwk: Jwk, until: Option<Timestamp>) -> Result<Self, Refused> {
        if matches!(jwk.algorithm, AlgorithmParameters::OctetKey(_)) {
            return Err(Refused("it is not a public key"));
        }
        let verifier = Verifier::from_jwk(&jwk)?;
        let thumbprint =
            jwk.thumbprint(ThumbprintHash::SHA256).map_err(|_| Refused("it cannot be read"))?;
        let kid = jwk.common.key_id.as_deref().filter(|kid| *kid == thumbprint);
        let kid = kid.and_then(|kid| kid.parse().ok());
        let kid = kid.ok_or(Refused("its kid is not its thumbprint"))?;
        Ok(Self { kid, jwk, verifier, until })
    }

    /// The key's id.
    pub const fn kid(&self) -> &Kid {
        &self.kid
    }
}

/// The public keys of one revision of the keyset.
pub struct VerifyingKeys {
    revision: u64,
    issuer: String,
    claim_limits: ClaimLimits,
    /// Every key whose tokens may be active: the only place in which key ids are searched (J06).
    keys: HashMap<Kid, VerifyingKey>,
    jwks: serde_json::Value,
}

/// A key that verifies.
struct VerifyingKey {
    verifier: Verifier,
    /// Expiry of the last token that it signed, if it no longer signs.
    until: Option<Timestamp>,
}

impl VerifyingKeys {
    /// Creates the keys that verify tokens of `issuer`: prepared, active and retiring ones, no
    /// revoked one.
    pub fn new(
        revision: u64,
        issuer: &str,
        claim_limits: ClaimLimits,
        public: impl IntoIterator<Item = PublicKey>,
    ) -> Self {
        let (mut keys, mut jwks) = (HashMap::new(), Vec::new());
        for PublicKey { kid, jwk, verifier, until } in public {
            keys.insert(kid, VerifyingKey { verifier, until });
            jwks.push(jwk);
        }
        let jwks = serde_json::json!(JwkSet { keys: jwks });
        Self { revision, issuer: issuer.to_owned(), claim_limits, keys, jwks }
    }

    /// Returns the claims of `token` if it is an access token of this issuer, signed by a valid
    /// key, and within its times at `now`. Does no I/O. The reason of a refusal is not returned.
    pub fn verify(&self, token: &str, now: Timestamp) -> Option<VerifiedClaims> {
        self.verify_or_explain(token, now).ok()
    }

    /// Verifies a token as [`Self::verify`] does. The error has the claims of a token that is only
    /// out of its times, for the operator: they are not verified claims.
    ///
    /// # Errors
    ///
    /// The token is not verified.
    pub fn verify_or_explain(
        &self,
        token: &str,
        now: Timestamp,
    ) -> Result<VerifiedClaims, Option<Box<Claims>>> {
        let Some((claims, kid, known)) = self.read(token) else { return Err(None) };
        let is_retired = known.until.is_some_and(|until| now >= until);
        if is_retired || !self.claim_limits.is_in_time(&claims, now) {
            return Err(Some(Box::new(claims)));
        }
        Ok(VerifiedClaims { claims, kid })
    }

    /// Returns the claims of `token` if it is an access token of this issuer, signed by a key that
    /// is not revoked or removed, at any time: a wrong clock must not prevent the revocation of a
    /// token.
    pub fn verify_at_any_time(&self, token: &str) -> Option<Claims> {
        self.read(token).map(|(claims, ..)| claims)
    }

    fn read(&self, token: &str) -> Option<(Claims, Kid, &VerifyingKey)> {
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
            && self.claim_limits.has_allowed_lifetime(&claims);
        good.then_some((claims, kid, known))
    }

    /// Returns the earliest time that the clock of another node may still read.
    pub fn earliest_node_time(&self, now: Timestamp) -> Timestamp {
        let skew = i64::try_from(self.claim_limits.skew.as_millis()).unwrap_or(i64::MAX);
        Timestamp::from_millis(now.millis().saturating_sub(skew))
    }

    /// Revision of the keyset that the keys are from.
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// Returns true if tokens of this key may be active: it is neither revoked nor removed.
    pub fn contains(&self, kid: &Kid) -> bool {
        self.keys.contains_key(kid)
    }

    /// Returns the public keys (RFC 7517 section 5): prepared, active and retiring ones.
    pub const fn jwks(&self) -> &serde_json::Value {
        &self.jwks
    }
}

impl ClaimLimits {
    /// Returns true if the times are valid (RFC 7519 section 4.1.4 to 4.1.6). A token is expired at
    /// `exp` itself.
    fn is_in_time(&self, claims: &Claims, now: Timestamp) -> bool {
        let [issued, begins, expires] =
            [claims.iat, claims.nbf, claims.exp].map(Timestamp::from_seconds);
        let ahead = now + self.skew;
        now < expires && issued <= ahead && begins <= ahead
    }

    /// Returns true if the lifetime is one that this service issues. It is counted from the moment of
    /// issue, which is after `iat`.
    fn has_allowed_lifetime(&self, claims: &Claims) -> bool {
        let [issued, expires] = [claims.iat, claims.exp].map(Timestamp::from_seconds);
        issued < expires && expires.since(issued) <= self.max_lifetime + VERIFIER_BEHIND
    }
}

/// Prints the ids of the keys.
impl std::fmt::Debug for VerifyingKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VerifyingKeys").field("keys", &self.keys.keys()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
