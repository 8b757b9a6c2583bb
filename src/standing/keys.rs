//! The keys in use. A keyset comes from the store, where somebody without the master key may have
//! written it, or put an older one back: such a keyset is refused, and the last genuine one stays
//! in use.
//!
//! What the store holds when a process starts is all that it knows: an older keyset with its own
//! right MAC, put back while no process runs, is not noticed here.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use papaya::HashSet;

use super::Opening;
use crate::{
    crypto::{
        keyset_mac::KeysetError,
        signing_keys::{SigningKeys, SigningKeysError},
        verifying_keys::VerifyingKeys,
    },
    model::{KeyState, Keyset, Kid},
};

/// Why a keyset of the store is not used.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// No holder of the master key wrote it.
    #[error(transparent)]
    Forged(#[from] KeysetError),
    /// The root of the symmetric keys is not one of this master key.
    #[error(transparent)]
    Foreign(SigningKeysError),
    /// It is older than the one in use.
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

/// Outcome of offering a keyset of a later revision.
pub(super) enum Taken {
    /// It is in use, or one as late was before.
    InUse,
    /// It is not genuine: the last one stays in use.
    Refused(Refused),
    /// It is genuine and cannot be opened: it may have revoked a key that is in use.
    Unread(SigningKeysError),
}

/// The keys in use and every kid that was ever known to be revoked.
pub(super) struct Keys {
    verifying: ArcSwap<VerifyingKeys>,
    signing: ArcSwap<SigningKeys>,
    opening: Opening,
    /// Grows by one for each revocation of a key while this process runs.
    revoked: HashSet<Kid>,
}

impl Keys {
    pub(super) fn new(keyset: &Keyset, opening: Opening) -> Result<Self, SigningKeysError> {
        let (signing, verifying) = opening.open(keyset)?;
        let (signing, verifying) =
            (ArcSwap::from_pointee(signing), ArcSwap::from_pointee(verifying));
        let keys = Self { verifying, signing, opening, revoked: HashSet::new() };
        keys.remember(keyset);
        Ok(keys)
    }

    pub(super) fn verifying(&self) -> Guard<Arc<VerifyingKeys>> {
        self.verifying.load()
    }

    pub(super) fn signing(&self) -> Guard<Arc<SigningKeys>> {
        self.signing.load()
    }

    /// Takes the keys of a later revision into use; an earlier one, or the same again, comes late
    /// and changes nothing.
    pub(super) fn take(&self, keyset: &Keyset) -> Taken {
        if self.signing().revision() >= keyset.revision {
            return Taken::InUse;
        }
        if let Err(refused) = self.admit(keyset) {
            return Taken::Refused(refused);
        }
        match self.opening.open(keyset) {
            Ok((signing, verifying)) => {
                self.remember(keyset);
                // The signing keys first: a key that this change revokes signs nothing any more
                // once its tokens are refused. The one that signs next was published before, and so
                // is known.
                advance(&self.signing, signing, SigningKeys::revision);
                advance(&self.verifying, verifying, VerifyingKeys::revision);
                Taken::InUse
            }
            Err(error) if error.is_forgery() => Taken::Refused(Refused::Foreign(error)),
            Err(error) => Taken::Unread(error),
        }
    }

    /// Checks that a keyset is genuine, not older than the one in use, and takes no revocation
    /// back.
    pub(super) fn admit(&self, keyset: &Keyset) -> Result<(), Refused> {
        keyset.check(&self.opening.sealer)?;
        let known = self.signing().revision();
        if keyset.revision < known {
            return Err(Refused::Older { stored: keyset.revision, known });
        }
        let revoked = self.revoked.pin();
        let mut standing = keyset.keys.iter().filter(|key| !is_revoked(key.state));
        match standing.find(|key| revoked.contains(&key.kid)) {
            Some(key) => Err(Refused::Unrevoked(key.kid.clone())),
            None => Ok(()),
        }
    }

    fn remember(&self, keyset: &Keyset) {
        let revoked = self.revoked.pin();
        for key in keyset.keys.iter().filter(|key| is_revoked(key.state)) {
            revoked.insert(key.kid.clone());
        }
    }
}

/// Replaces keys by those of a later revision.
fn advance<K>(keys: &ArcSwap<K>, newer: K, revision: fn(&K) -> u64) {
    let newer = Arc::new(newer);
    keys.rcu(|known| if revision(known) < revision(&newer) { &newer } else { known }.clone());
}

const fn is_revoked(state: KeyState) -> bool {
    matches!(state, KeyState::Revoked { .. })
}
