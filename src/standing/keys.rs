//! The secret keys in use. A process without the master key may have written the keyset in the
//! store, or restored an older one: such a keyset is refused, and the last genuine one stays in
//! use.
//!
//! A process compares only with the keyset of its start: an older keyset with a valid MAC, restored
//! while no process runs, is not detected here.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use papaya::HashSet;

use super::TokenState;
use crate::{
    crypto::{
        keyset_mac::KeysetError,
        seal::Sealer,
        signing_keys::{SigningKeys, SigningKeysError},
        verifying_keys::{ClaimLimits, VerifyingKeys},
    },
    model::{KeyState, Keyset, Kid},
};

/// Parameters that a keyset is opened with.
pub struct Opening {
    /// The master key.
    pub sealer: Arc<Sealer>,
    /// The `iss` of every token.
    pub issuer: Arc<str>,
    /// Bounds on claims.
    pub claim_limits: ClaimLimits,
}

impl Opening {
    pub(super) fn open(
        &self,
        keyset: &Keyset,
    ) -> Result<(SigningKeys, VerifyingKeys), SigningKeysError> {
        let (signing, public) = SigningKeys::open(keyset, &self.sealer)?;
        let verifying =
            VerifyingKeys::new(keyset.revision, &self.issuer, self.claim_limits, public);
        Ok((signing, verifying))
    }
}

/// Reason that a keyset of the store is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The writer did not hold the master key.
    #[error(transparent)]
    Forged(#[from] KeysetError),
    /// The root of the symmetric keys is not one of this master key.
    #[error(transparent)]
    Foreign(SigningKeysError),
    /// The keyset is older than the one in use.
    #[error(
        "the keyset in the store has revision {stored} and revision {known} is in use: the store \
         was rolled back"
    )]
    Older {
        /// Revision in the store.
        stored: u64,
        /// Revision in use.
        known: u64,
    },
    /// A key that was revoked is not revoked in it.
    #[error("key {0} is revoked here and not revoked in the keyset of the store")]
    Unrevoked(Kid),
}

/// The secret keys of a node, every revoked kid that it has seen, and the token state with the
/// public keys.
pub struct NodeKeys {
    signing: ArcSwap<SigningKeys>,
    opening: Opening,
    tokens: Arc<TokenState>,
    /// Revoked kids. Grows by one for each revocation of a key while this process runs.
    revoked: HashSet<Kid>,
}

impl NodeKeys {
    pub(super) fn new(
        keyset: &Keyset,
        signing: SigningKeys,
        opening: Opening,
        tokens: Arc<TokenState>,
    ) -> Self {
        let signing = ArcSwap::from_pointee(signing);
        let keys = Self { signing, opening, tokens, revoked: HashSet::new() };
        keys.remember_revoked(keyset);
        keys
    }

    /// Returns the secret keys in use.
    pub fn signing_keys(&self) -> Guard<Arc<SigningKeys>> {
        self.signing.load()
    }

    /// Uses the keys of a later revision; the same or an earlier revision changes nothing.
    pub(super) fn apply(&self, keyset: &Keyset) {
        let revision = keyset.revision;
        if self.signing_keys().revision() >= revision {
            return;
        }
        let refused = match self.admit(keyset).map(|()| self.opening.open(keyset)) {
            Ok(Ok((signing, verifying))) => return self.replace(keyset, signing, verifying),
            Ok(Err(error)) if error.is_forgery() => {
                count_refused();
                Refused::Foreign(error)
            }
            // A key that this change revokes would stay valid here: no token is verified until a
            // keyset can be opened.
            Ok(Err(error)) => {
                tracing::error!(%error, revision, "cannot open the new keyset");
                return self.tokens.undecodable_keyset(revision);
            }
            Err(refused) => refused,
        };
        tracing::error!(
            error = %refused,
            revision,
            "rejected the keyset of the store, still using the last authentic one"
        );
    }

    /// Replaces the signing keys first, so that a revoked key signs no token after its tokens are
    /// refused. The next signing key is known to verifiers, because it was published before.
    fn replace(&self, keyset: &Keyset, signing: SigningKeys, verifying: VerifyingKeys) {
        self.remember_revoked(keyset);
        let signing = Arc::new(signing);
        self.signing.rcu(|known| {
            if known.revision() < signing.revision() { &signing } else { known }.clone()
        });
        self.tokens.replace_keys(verifying);
    }

    /// Checks that the store's keyset may be used and changed: it is genuine, not older than the
    /// one in use, and undoes no revocation of a key.
    ///
    /// # Errors
    ///
    /// It is refused; counted as `jeton_keyset_refused_total`.
    pub fn admit(&self, keyset: &Keyset) -> Result<(), Refused> {
        self.check(keyset).inspect_err(|_| count_refused())
    }

    fn check(&self, keyset: &Keyset) -> Result<(), Refused> {
        keyset.check(&self.opening.sealer)?;
        let known = self.signing_keys().revision();
        if keyset.revision < known {
            return Err(Refused::Older { stored: keyset.revision, known });
        }
        let revoked = self.revoked.pin();
        let mut valid = keyset.keys.iter().filter(|key| !is_revoked(key.state));
        match valid.find(|key| revoked.contains(&key.kid)) {
            Some(key) => Err(Refused::Unrevoked(key.kid.clone())),
            None => Ok(()),
        }
    }

    fn remember_revoked(&self, keyset: &Keyset) {
        let revoked = self.revoked.pin();
        for key in keyset.keys.iter().filter(|key| is_revoked(key.state)) {
            revoked.insert(key.kid.clone());
        }
    }
}

fn count_refused() {
    crate::metrics::METRICS.keyset_refused.inc();
}

const fn is_revoked(state: KeyState) -> bool {
    matches!(state, KeyState::Revoked { .. })
}
