//! The root of the server's symmetric keys. Each use has a key of its own, derived under its own
//! label, so that what is made with one says nothing about another.

use aws_lc_rs::hkdf;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use super::{
    random,
    seal::{SealError, Sealer},
};
use crate::model::Keyset;

/// What the root is sealed for.
const PURPOSE: &str = "root";

/// 32 random bytes that never leave this room.
pub struct Root(Zeroizing<[u8; 32]>);

impl Root {
    /// A new root, sealed: for [`Keyset::sealed_root`].
    pub fn make(sealer: &Sealer) -> String {
        let root = Zeroizing::new(random::bytes::<32>());
        URL_SAFE_NO_PAD.encode(sealer.seal(PURPOSE, "", &*root))
    }

    /// Opens the root of `keyset`.
    ///
    /// # Errors
    ///
    /// When it was sealed under another master key, or altered since.
    pub fn open(keyset: &Keyset, sealer: &Sealer) -> Result<Self, SealError> {
        let sealed = URL_SAFE_NO_PAD.decode(&keyset.sealed_root).map_err(|_| SealError)?;
        let root = sealer.open(PURPOSE, "", &sealed)?;
        let root = <[u8; 32]>::try_from(root.as_slice()).map_err(|_| SealError)?;
        Ok(Self(Zeroizing::new(root)))
    }

    /// The key for one use (RFC 5869). In use: "refresh token", "client secret", "page token".
    pub fn derive(&self, label: &str) -> Zeroizing<[u8; 32]> {
        derive(&self.0, "root", label)
    }
}

/// HKDF-SHA-256 of `secret` under a domain and a label; neither may hold a NUL, which separates
/// them.
#[expect(clippy::expect_used, reason = "32 bytes are within the 8,160 that HKDF-SHA-256 yields")]
pub(super) fn derive(secret: &[u8; 32], domain: &str, label: &str) -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0; 32]);
    let info = [b"jeton\0".as_slice(), domain.as_bytes(), b"\0", label.as_bytes()];
    hkdf::Salt::new(hkdf::HKDF_SHA256, b"jeton")
        .extract(secret)
        .expand(&info, hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(key.as_mut_slice()))
        .expect("32 bytes of HKDF-SHA-256");
    key
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

    #[test]
    fn domains_and_labels_do_not_run_into_each_other() {
        assert_ne!(derive(&[1; 32], "a", "bc"), derive(&[1; 32], "ab", "c"));
    }
}
