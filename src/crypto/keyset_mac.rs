//! MAC of the keyset: HMAC-SHA-256 under a key of its own derived from the master key, over the
//! whole keyset. State, times and revision of a signing key are plain text in the store; without a
//! MAC, write access to the store would be enough to undo a revocation.

use std::collections::HashSet;

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;

use super::seal::Sealer;
use crate::model::{KeyState, Keyset, Kid, SigningKey};

/// Label of the key that is derived from the master key.
const LABEL: &str = "keyset";

/// Prefix of the authenticated bytes, so that this MAC is valid for this purpose only.
const PREFIX: &[u8] = b"jeton keyset v1\0";

/// Reason that a keyset is rejected as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysetError {
    /// The MAC does not match: its writer did not have this master key.
    #[error(
        "the keyset's MAC is invalid: the keyset was altered, or written under another master key"
    )]
    Mac,
    /// The number of active keys is not one.
    #[error("the keyset has {0} active keys instead of one")]
    Active(usize),
    /// Two keys have the same id, revoked ones included.
    #[error("the keyset contains key {0} twice")]
    Twice(Kid),
}

/// All fields except the MAC, in the order in which they are authenticated.
#[derive(Serialize)]
struct Covered<'a> {
    revision: u64,
    keys: &'a [SigningKey],
    sealed_root: &'a str,
}

impl Keyset {
    /// Returns the keyset with the MAC of its content under this master key.
    pub fn with_mac(self, sealer: &Sealer) -> Self {
        let tag = hmac::sign(&key(sealer), &self.covered());
        Self { mac: URL_SAFE_NO_PAD.encode(tag), ..self }
    }

    /// Checks that a holder of the master key wrote this keyset, that no kid occurs twice in it,
    /// and that one key is active. Every keyset that was read from a store or a file is checked
    /// before it is used or changed.
    ///
    /// # Errors
    ///
    /// One of these conditions does not hold.
    pub fn check(&self, sealer: &Sealer) -> Result<(), KeysetError> {
        let mut kids = HashSet::new();
        if let Some(twice) = self.keys.iter().find(|key| !kids.insert(&key.kid)) {
            return Err(KeysetError::Twice(twice.kid.clone()));
        }
        let active =
            self.keys.iter().filter(|key| matches!(key.state, KeyState::Active { .. })).count();
        if active != 1 {
            return Err(KeysetError::Active(active));
        }
        let tag = URL_SAFE_NO_PAD.decode(&self.mac).map_err(|_| KeysetError::Mac)?;
        hmac::verify(&key(sealer), &self.covered(), &tag).map_err(|_| KeysetError::Mac)
    }

    #[expect(clippy::expect_used, reason = "numbers, strings and lists of them are always JSON")]
    fn covered(&self) -> Vec<u8> {
        let covered =
            Covered { revision: self.revision, keys: &self.keys, sealed_root: &self.sealed_root };
        let mut bytes = PREFIX.to_vec();
        serde_json::to_writer(&mut bytes, &covered).expect("a keyset as JSON");
        bytes
    }
}

fn key(sealer: &Sealer) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &*sealer.derive(LABEL))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        crypto::keys::make,
        model::{Timestamp, keyset::Algorithm},
    };

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

    fn sealer() -> Sealer {
        Sealer::new([7; 32])
    }

    fn keyset() -> Keyset {
        Keyset::first(NOW, &sealer(), || make(Algorithm::EdDsa, &sealer(), NOW))
    }

    #[test]
    fn a_keyset_that_was_written_and_read_checks_under_its_master_key_only() {
        let read: Keyset =
            serde_json::from_str(&serde_json::to_string(&keyset()).unwrap()).unwrap();
        assert_eq!(read.check(&sealer()), Ok(()));
        assert_eq!(read.check(&Sealer::new([8; 32])), Err(KeysetError::Mac));
    }

    /// K03, O04: every field is under the MAC: revision, root, and of each key its state, times,
    /// algorithm, id, private part and place.
    #[test]
    fn nothing_of_a_keyset_can_be_altered() {
        let later = NOW + Duration::from_secs(86_400);
        let alterations: [fn(&mut Keyset, Timestamp); 12] = [
            |keyset, _| keyset.revision += 1,
            |keyset, _| keyset.sealed_root.push('A'),
            |keyset, _| keyset.mac = String::new(),
            |keyset, _| keyset.mac.truncate(42),
            |keyset, later| keyset.keys[1].state = KeyState::Retiring { remove_at: later },
            |keyset, later| keyset.keys[1].state = KeyState::Prepared { activate_at: Some(later) },
            |keyset, later| keyset.keys[0].state = KeyState::Active { since: later },
            |keyset, later| keyset.keys[1].created_at = later,
            |keyset, _| keyset.keys[1].alg = Algorithm::Es256,
            |keyset, _| keyset.keys[1].kid = "other".parse().unwrap(),
            |keyset, _| keyset.keys[1].sealed.clear(),
            |keyset, _| keyset.keys.swap(0, 1),
        ];
        for (number, alter) in alterations.into_iter().enumerate() {
            let mut altered = keyset();
            alter(&mut altered, later);
            assert_eq!(altered.check(&sealer()), Err(KeysetError::Mac), "alteration {number}");
        }
    }

    /// K07: a kid twice, revoked ones included, and zero or two active keys are refused, also under
    /// a right MAC.
    #[test]
    fn kids_are_unique_and_one_key_is_active() {
        let good = keyset();
        let kid = good.keys[0].kid.clone();
        let mut twice = good.clone();
        let revoked = KeyState::Revoked { remove_at: NOW };
        twice.keys.insert(0, SigningKey { state: revoked, ..good.keys[0].clone() });
        assert_eq!(twice.with_mac(&sealer()).check(&sealer()), Err(KeysetError::Twice(kid)));
        let mut two = good.clone();
        two.keys[1].state = KeyState::Active { since: NOW };
        assert_eq!(two.with_mac(&sealer()).check(&sealer()), Err(KeysetError::Active(2)));
        let mut none = good;
        none.keys[0].state = revoked;
        assert_eq!(none.with_mac(&sealer()).check(&sealer()), Err(KeysetError::Active(0)));
    }
}
