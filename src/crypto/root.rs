//! Root of the server's symmetric keys. Each use has a key of its own, derived under its own label,
//! so that one key reveals nothing about another.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use super::{
    kdf::derive,
    random,
    seal::{SealError, Sealer},
};
use crate::model::Keyset;

/// Purpose of the sealed root.
const PURPOSE: &str = "root";

/// 32 random bytes that never leave this module.
pub struct Root(Zeroizing<[u8; 32]>);

impl Root {
    /// Generates a root and returns it sealed, for [`Keyset::sealed_root`].
    pub fn make(sealer: &Sealer) -> String {
        let root = Zeroizing::new(random::bytes::<32>());
        URL_SAFE_NO_PAD.encode(sealer.seal(PURPOSE, "", &*root))
    }

    /// Opens the root of `keyset`.
    ///
    /// # Errors
    ///
    /// It was altered, or sealed under another master key.
    pub fn open(keyset: &Keyset, sealer: &Sealer) -> Result<Self, SealError> {
        let sealed = URL_SAFE_NO_PAD.decode(&keyset.sealed_root).map_err(|_| SealError)?;
        let root = sealer.open(PURPOSE, "", &sealed)?;
        let root = <[u8; 32]>::try_from(root.as_slice()).map_err(|_| SealError)?;
        Ok(Self(Zeroizing::new(root)))
    }

    /// Derives the key of one use (RFC 5869). Labels in use: "refresh token", "client secret",
    /// "page token".
    pub fn derive(&self, label: &str) -> Zeroizing<[u8; 32]> {
        derive(&self.0, "root", label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyset(sealed_root: String) -> Keyset {
        Keyset { revision: 1, keys: Vec::new(), sealed_root, mac: String::new() }
    }

    #[test]
    fn each_label_has_a_key_of_its_own_that_stays_the_same() {
        let sealer = Sealer::new([7; 32]);
        let keyset = keyset(Root::make(&sealer));
        let [once, again] =
            [Root::open(&keyset, &sealer).unwrap(), Root::open(&keyset, &sealer).unwrap()];
        assert_eq!(once.derive("refresh token"), again.derive("refresh token"));
        assert_ne!(once.derive("refresh token"), once.derive("client secret"));
        assert_ne!(once.derive("refresh token"), once.0);
    }

    /// K06: the root at rest is not the root, and another master key does not open it.
    #[test]
    fn another_master_key_does_not_open_the_root() {
        let sealer = Sealer::new([7; 32]);
        let keyset = keyset(Root::make(&sealer));
        assert!(Root::open(&keyset, &Sealer::new([8; 32])).is_err());
    }
}
