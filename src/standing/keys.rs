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
        keyring::{Keyring, KeyringError},
        keyset_mac::KeysetError,
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
    Foreign(KeyringError),
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
    Unread(KeyringError),
}

/// The keyring in use and every kid that was ever known to be revoked.
pub(super) struct Keys {
    current: ArcSwap<Keyring>,
    opening: Opening,
    /// Grows by one for each revocation of a key while this process runs.
    revoked: HashSet<Kid>,
}

impl Keys {
    pub(super) fn new(keyset: &Keyset, opening: Opening) -> Result<Self, KeyringError> {
        let current = ArcSwap::from_pointee(opening.keyring(keyset)?);
        let keys = Self { current, opening, revoked: HashSet::new() };
        keys.remember(keyset);
        Ok(keys)
    }

    pub(super) fn load(&self) -> Guard<Arc<Keyring>> {
        self.current.load()
    }

    /// Takes the keys of a later revision into use; an earlier one, or the same again, comes late
    /// and changes nothing.
    pub(super) fn take(&self, keyset: &Keyset) -> Taken {
        if self.load().revision() >= keyset.revision {
            return Taken::InUse;
        }
        if let Err(refused) = self.admit(keyset) {
            return Taken::Refused(refused);
        }
        match self.opening.keyring(keyset).map(Arc::new) {
            Ok(keyring) => {
                self.remember(keyset);
                let newer = |known: &Arc<Keyring>| {
                    if known.revision() < keyring.revision() { &keyring } else { known }.clone()
                };
                self.current.rcu(newer);
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
        let known = self.load().revision();
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

const fn is_revoked(state: KeyState) -> bool {
    matches!(state, KeyState::Revoked { .. })
}
