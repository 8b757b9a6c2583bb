//! Sealing at rest: AES-256-GCM under the master key. Sealed bytes open only for their purpose and
//! id.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use zeroize::Zeroizing;

use super::kdf::derive;

/// The only version of sealed bytes so far: this byte, the nonce, the ciphertext, the tag.
const VERSION: u8 = 1;

/// Sealed bytes that do not open: altered, or sealed under another master key, purpose or id. The
/// cause cannot be determined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot decrypt sealed data: it was altered, moved, or sealed under another master key")]
pub struct SealError;

/// Holds the master key.
pub struct Sealer {
    master: Zeroizing<[u8; 32]>,
    key: RandomizedNonceKey,
}

impl Sealer {
    /// Creates a sealer from the master key: 32 random bytes, see [`super::master::load_or_make`].
    #[expect(clippy::expect_used, reason = "32 bytes are an AES-256 key")]
    pub fn new(master: impl Into<Zeroizing<[u8; 32]>>) -> Self {
        let master = master.into();
        let key = derive(&master, "master", "seal");
        let key = RandomizedNonceKey::new(&AES_256_GCM, &*key).expect("an AES-256 key");
        Self { master, key }
    }

    /// Seals `plain` for `purpose` and `id`, under a random nonce. After 2^32 seals under one
    /// master key the probability of a repeated nonce reaches 2^-32 (NIST SP 800-38D section 8.3):
    /// seal keys, never rows.
    #[expect(clippy::expect_used, reason = "only more than 64 GiB at once would not seal")]
    pub fn seal(&self, purpose: &str, id: &str, plain: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::with_capacity(plain.len() + AES_256_GCM.tag_len());
        sealed.extend_from_slice(plain);
        let nonce = self
            .key
            .seal_in_place_append_tag(aad(purpose, id), &mut sealed)
            .expect("less than 64 GiB");
        [&[VERSION], nonce.as_ref().as_slice(), &sealed].concat()
    }

    /// Opens the bytes that [`Sealer::seal`] returned for the same purpose and id.
    ///
    /// # Errors
    ///
    /// All other bytes.
    pub fn open(
        &self,
        purpose: &str,
        id: &str,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (version, rest) = sealed.split_first().ok_or(SealError)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>().ok_or(SealError)?;
        if *version != VERSION {
            return Err(SealError);
        }
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let mut plain = Zeroizing::new(sealed.to_vec());
        let length = self
            .key
            .open_in_place(nonce, aad(purpose, id), &mut plain)
            .map_err(|_| SealError)?
            .len();
        plain.truncate(length);
        Ok(plain)
    }

    /// Derives the key of one use other than sealing (RFC 5869). Labels in use: "audit head",
    /// "client record", "export", "keyset".
    pub fn derive(&self, label: &str) -> Zeroizing<[u8; 32]> {
        derive(&self.master, "derived", label)
    }
}

/// Returns purpose and id, each after its length, so that two pairs never have the same bytes.
fn aad(purpose: &str, id: &str) -> Aad<Vec<u8>> {
    let mut framed = vec![VERSION];
    for part in [purpose, id] {
        framed.extend_from_slice(&(part.len() as u64).to_be_bytes());
        framed.extend_from_slice(part.as_bytes());
    }
    Aad::from(framed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &[u8] = b"canary-4711-private-key";

    #[test]
    fn what_was_sealed_opens() {
        let sealer = Sealer::new([1; 32]);
        let sealed = sealer.seal("signing key", "k1", PLAIN);
        assert_eq!(sealer.open("signing key", "k1", &sealed).unwrap().as_slice(), PLAIN);
        assert_eq!(sealer.open("p", "", &sealer.seal("p", "", b"")).unwrap().as_slice(), b"");
    }

    /// K06: no trace of the plain text in the sealed bytes, nor twice the same bytes.
    #[test]
    fn sealed_bytes_tell_nothing() {
        let sealer = Sealer::new([1; 32]);
        let sealed = sealer.seal("signing key", "k1", PLAIN);
        assert!(!sealed.windows(6).any(|window| window == &PLAIN[..6]));
        assert_ne!(sealed, sealer.seal("signing key", "k1", PLAIN), "nonces are fresh");
    }

    /// K06: sealed bytes moved to another row, another purpose or another service do not open.
    #[test]
    fn it_opens_for_its_purpose_id_and_master_key_only() {
        let sealer = Sealer::new([1; 32]);
        let sealed = sealer.seal("ab", "c", PLAIN);
        for (purpose, id) in [("a", "bc"), ("abc", ""), ("ab", "d"), ("c", "ab"), ("", "abc")] {
            assert_eq!(sealer.open(purpose, id, &sealed), Err(SealError), "{purpose} {id}");
        }
        assert_eq!(Sealer::new([2; 32]).open("ab", "c", &sealed), Err(SealError));
    }

    #[test]
    fn every_flipped_bit_and_every_length_but_its_own_is_refused() {
        let sealer = Sealer::new([1; 32]);
        let sealed = sealer.seal("p", "i", PLAIN);
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(sealer.open("p", "i", &flipped), Err(SealError), "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert_eq!(sealer.open("p", "i", &sealed[..length]), Err(SealError), "length {length}");
        }
        assert_eq!(sealer.open("p", "i", &[sealed.as_slice(), &[0]].concat()), Err(SealError));
    }

    #[test]
    fn derived_keys_differ_by_label_and_from_the_sealing_key() {
        let sealer = Sealer::new([1; 32]);
        assert_eq!(sealer.derive("audit head"), sealer.derive("audit head"));
        assert_ne!(sealer.derive("audit head"), sealer.derive("other"));
        assert_ne!(sealer.derive("seal"), derive(&sealer.master, "master", "seal"));
    }
}
