//! Derivation of keys: one for each use from a secret, so that a key reveals nothing about another.

use aws_lc_rs::hkdf;
use zeroize::Zeroizing;

/// Returns the HKDF-SHA-256 of `secret` under a domain and a label; neither may contain a NUL,
/// which separates them.
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

    #[test]
    fn domains_and_labels_do_not_run_into_each_other() {
        assert_ne!(derive(&[1; 32], "a", "bc"), derive(&[1; 32], "ab", "c"));
    }
}
