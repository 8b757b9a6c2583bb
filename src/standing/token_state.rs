//! Token state: everything that decides whether an access token is active, in memory.

use std::{sync::Arc, time::Duration};

use arc_swap::{ArcSwap, Guard};
use papaya::HashMap;
use tokio::time::Instant;

use super::{
    age::{Age, Stale},
    verified_cache::VerifiedCache,
};
use crate::{
    crypto::verifying_keys::{VerifiedClaims, VerifyingKeys},
    model::{
        Claims, ClientId, EpochOf, Epochs, FamilyId, Jti, Revocation, Revoked, Subject, TenantId,
        Timestamp,
    },
};

/// Reason that an access token is not active, with the claims of one that this service issued.
#[derive(Debug)]
pub enum Inactive {
    /// It is no access token of this service, or its key was revoked or removed.
    Invalid,
    /// It has expired, or its times lie ahead.
    Expired(Box<Claims>),
    /// It was revoked by itself, or with its family, client, tenant, subject or key.
    Revoked(Box<Claims>),
}

/// State that access tokens are verified against: public keys, revocations, epochs, their age, and
/// the tokens verified before.
///
/// Holds no secret and reads no store: its holder can verify tokens and sign none. It is fed by
/// [`Self::revoke`], [`Self::raise_epoch`] and [`Self::replace_keys`], in any order and any number
/// of times: a change that is late or repeated changes nothing.
///
/// Callers cannot forget to check its age: [`Self::verify_active`], [`Self::is_active`] and
/// [`Self::epochs`] return [`Stale`] themselves.
pub struct TokenState {
    verifying_keys: ArcSwap<VerifyingKeys>,
    revoked: HashMap<Revoked, Timestamp>,
    tenant_epochs: HashMap<TenantId, u64>,
    client_epochs: HashMap<ClientId, u64>,
    subject_epochs: HashMap<Subject, u64>,
    verified: VerifiedCache,
    age: Age,
}

impl TokenState {
    /// Creates a state with keys and nothing else. Once its age is tracked ([`Self::advance_to`]),
    /// no token is verified while it is older than `max_staleness`.
    pub fn new(keys: VerifyingKeys, max_staleness: Duration) -> Self {
        Self {
            verifying_keys: ArcSwap::from_pointee(keys),
            revoked: HashMap::new(),
            tenant_epochs: HashMap::new(),
            client_epochs: HashMap::new(),
            subject_epochs: HashMap::new(),
            verified: VerifiedCache::default(),
            age: Age::new(max_staleness),
        }
    }

    /// Returns the age: the time since the state was complete. `None` if it is not tracked, because
    /// every change arrives in its commit: such a state is never stale.
    pub fn age(&self) -> Option<Duration> {
        self.age.age()
    }

    /// Returns an error while the state is too old to verify tokens by. Call it before reading
    /// anything: what is read afterwards is at least as new.
    pub fn ensure_fresh(&self) -> Result<(), Stale> {
        self.age.ensure_fresh()
    }

    /// Returns the claims of an access token that is active at `now`; `None` for every other text,
    /// whatever is wrong with it. The signature of a token is verified once, but everything that
    /// can change is checked each time. While the state is [`Stale`] every text gets the error: one
    /// that seems invalid may be signed by a key that has not arrived yet.
    pub fn verify_active(
        &self,
        token: &str,
        now: Timestamp,
    ) -> Result<Option<Arc<VerifiedClaims>>, Stale> {
        self.verify_or_explain(token, now).map(Result::ok)
    }

    /// Verifies a token as [`Self::verify_active`] does. The inner error is the reason that it is
    /// not active, which is for the operator and no caller (I04).
    pub fn verify_or_explain(
        &self,
        token: &str,
        now: Timestamp,
    ) -> Result<Result<Arc<VerifiedClaims>, Inactive>, Stale> {
        self.ensure_fresh()?;
        let digest = VerifiedCache::digest(token);
        let claims = match self.verified.get(&digest) {
            Some(claims) => claims,
            None => match self.verifying_keys.load().verify_or_explain(token, now) {
                Ok(claims) => {
                    let claims = Arc::new(claims);
                    self.verified.insert(digest, claims.clone());
                    claims
                }
                Err(claims) => {
                    return Ok(Err(claims.map_or(Inactive::Invalid, Inactive::Expired)));
                }
            },
        };
        if self.known_active(&claims, now) {
            return Ok(Ok(claims));
        }
        let claims = Box::new(claims.claims().clone());
        let is_expired = claims.exp <= now.seconds();
        Ok(Err(if is_expired { Inactive::Expired(claims) } else { Inactive::Revoked(claims) }))
    }

    /// Returns true if claims that were verified before are active at `now`.
    pub fn is_active(&self, verified: &VerifiedClaims, now: Timestamp) -> Result<bool, Stale> {
        self.ensure_fresh()?;
        Ok(self.known_active(verified, now))
    }

    fn known_active(&self, verified: &VerifiedClaims, now: Timestamp) -> bool {
        let claims = verified.claims();
        claims.exp > now.seconds()
            && self.verifying_keys.load().contains(verified.kid())
            && !self.is_revoked(&Revoked::Token(claims.jti))
            && claims.fam.is_none_or(|family| !self.is_revoked(&Revoked::Family(family)))
            && self.covers(claims)
    }

    fn covers(&self, claims: &Claims) -> bool {
        claims.ep.covers(self.known_epochs(&claims.tenant, &claims.client_id, &claims.sub))
    }

    pub(super) fn is_revoked(&self, revoked: &Revoked) -> bool {
        self.revoked.pin().contains_key(revoked)
    }

    /// Returns true if this family was revoked, which a read of the store that other nodes share
    /// may not show yet. `false` may be stale, `true` is never wrong.
    pub fn is_family_revoked(&self, family: FamilyId) -> bool {
        self.is_revoked(&Revoked::Family(family))
    }

    /// Returns true if this token was revoked by itself. `false` may be stale, `true` is never
    /// wrong.
    pub fn is_token_revoked(&self, jti: Jti) -> bool {
        self.is_revoked(&Revoked::Token(jti))
    }

    /// Returns true if one of these epochs was raised since. `false` may be stale, `true` is never
    /// wrong.
    pub fn is_outdated(
        &self,
        epochs: &Epochs,
        tenant: &TenantId,
        client: &ClientId,
        subject: &Subject,
    ) -> bool {
        !epochs.covers(self.known_epochs(tenant, client, subject))
    }

    /// Returns the epochs that a token minted now must carry. Read them before anything else about
    /// the client: what is raised in between then revokes the token.
    pub fn epochs(
        &self,
        tenant: &TenantId,
        client: &ClientId,
        subject: &Subject,
    ) -> Result<Epochs, Stale> {
        self.ensure_fresh()?;
        Ok(self.known_epochs(tenant, client, subject))
    }

    fn known_epochs(&self, tenant: &TenantId, client: &ClientId, subject: &Subject) -> Epochs {
        Epochs {
            tenant: self.tenant_epochs.pin().get(tenant).copied().unwrap_or(0),
            client: self.client_epochs.pin().get(client).copied().unwrap_or(0),
            subject: self.subject_epochs.pin().get(subject).copied().unwrap_or(0),
        }
    }

    /// Returns the public keys in use, at any age: verifiers cache a JWK set for its `max-age`
    /// anyway, and longer if the server does not answer.
    pub fn verifying_keys(&self) -> Guard<Arc<VerifyingKeys>> {
        self.verifying_keys.load()
    }

    /// Records a revocation, until the latest of its times.
    pub fn revoke(&self, &Revocation { revoked, until }: &Revocation) {
        self.revoked.pin().update_or_insert(revoked, |known| (*known).max(until), until);
    }

    /// Raises an epoch. Combined by max: a change that arrives late never lowers it (V06).
    pub fn raise_epoch(&self, of: &EpochOf, value: u64) {
        match of {
            EpochOf::Tenant(tenant) => raise(&self.tenant_epochs, tenant, value),
            EpochOf::Client(client) => raise(&self.client_epochs, client, value),
            EpochOf::Subject(subject) => raise(&self.subject_epochs, subject, value),
        }
    }

    /// Replaces the public keys by those of a later revision; the same or an earlier revision
    /// changes nothing.
    pub fn replace_keys(&self, newer: VerifyingKeys) {
        let newer = Arc::new(newer);
        self.verifying_keys
            .rcu(|known| if known.revision() < newer.revision() { &newer } else { known }.clone());
        self.age.keyset_in_use(self.verifying_keys().revision());
    }

    /// Marks the state stale because the keyset of this revision cannot be decoded: it may revoke a
    /// key that is in use. The next keys of this revision or a later one clear the mark.
    pub fn undecodable_keyset(&self, revision: u64) {
        self.age.undecodable_keyset(revision);
        self.age.keyset_in_use(self.verifying_keys().revision());
    }

    /// Records that every change committed before `at` has been applied.
    pub fn advance_to(&self, at: Instant) {
        self.age.advance_to(at);
    }

    /// Marks the state stale for good: no change will arrive any more.
    pub fn disconnected(&self) {
        self.age.disconnected();
    }

    /// Removes expired revocations, and returns how many. Removes verified tokens that are no
    /// longer active too.
    pub fn sweep(&self, now: Timestamp) -> usize {
        self.verified.sweep(|claims| self.known_active(claims, now));
        let revoked = self.revoked.pin();
        let before = revoked.len();
        revoked.retain(|_, until| *until > now);
        before.saturating_sub(revoked.len())
    }

    #[cfg(test)]
    pub(super) const fn verified(&self) -> &VerifiedCache {
        &self.verified
    }
}

fn raise<K: Clone + Eq + std::hash::Hash>(epochs: &HashMap<K, u64>, of: &K, value: u64) {
    epochs.pin().update_or_insert(of.clone(), |known| (*known).max(value), value);
}
