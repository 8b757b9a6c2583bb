//! Proof that an export was not altered: a MAC over its lines, under a key of its own derived from
//! the master key, and the SHA-256 of the file.

use aws_lc_rs::{digest, hmac};
use subtle::ConstantTimeEq;

use super::seal::Sealer;

/// Label of the key that is derived from the master key.
const LABEL: &str = "export";

/// Running HMAC-SHA-256 over the lines of an export.
#[derive(Clone)]
pub struct ExportMac(hmac::Context);

impl ExportMac {
    /// Creates the MAC of no lines.
    pub fn new(sealer: &Sealer) -> Self {
        let key = sealer.derive(LABEL);
        Self(hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &*key)))
    }

    /// Adds a line with its break.
    pub fn update(&mut self, line: &[u8]) {
        self.0.update(line);
    }

    /// Returns the MAC of the lines so far.
    pub fn finish(self) -> [u8; 32] {
        array(self.0.sign().as_ref())
    }

    /// Returns true if `mac` is the MAC of the lines so far.
    pub fn check(self, mac: &[u8]) -> bool {
        bool::from(self.finish().as_slice().ct_eq(mac))
    }
}

/// Running SHA-256 of a file.
pub struct FileHash(digest::Context);

impl FileHash {
    /// Creates the digest of an empty file.
    pub fn new() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Returns the hash of the added bytes.
    pub fn finish(self) -> [u8; 32] {
        array(self.0.finish().as_ref())
    }
}

impl Default for FileHash {
    fn default() -> Self {
        Self::new()
    }
}

fn array(bytes: &[u8]) -> [u8; 32] {
    let mut array = [0; 32];
    array.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    array
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(master: u8, lines: &[&str]) -> ExportMac {
        let mut mac = ExportMac::new(&Sealer::new([master; 32]));
        lines.iter().for_each(|line| mac.update(line.as_bytes()));
        mac
    }

    #[test]
    fn lines_have_one_mac_and_only_under_their_master_key() {
        let tag = mac(7, &["one\n", "two\n"]).finish();
        assert!(mac(7, &["one\ntwo\n"]).check(&tag));
        for other in
            [&["one\n"][..], &["two\n", "one\n"], &["one\n", "two"], &["one\n", "two\n", "\n"], &[]]
        {
            assert!(!mac(7, other).check(&tag), "{other:?}");
        }
        assert!(!mac(8, &["one\n", "two\n"]).check(&tag));
        assert!(!mac(7, &["one\n", "two\n"]).check(&tag[..31]));
        assert!(!mac(7, &["one\n", "two\n"]).check(&[]));
    }

    #[test]
    fn a_file_has_the_hash_that_sha256sum_prints() {
        let mut hash = FileHash::new();
        hash.update(b"ab");
        hash.update(b"c");
        assert_eq!(hash.finish()[..4], [0xba, 0x78, 0x16, 0xbf]);
    }
}
