//! Refresh tokens: derived, never stored. A token is its family, its generation and a MAC over
//! both, with the family's salt, under a server key; so the same successor can be returned twice,
//! and a copy of the store yields no token.

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::SecretString;
use uuid::Uuid;

use super::root::Root;
use crate::model::FamilyId;

/// Prefix of every refresh token.
pub const PREFIX: &str = "jrt_";

/// The only version so far.
const VERSION: u8 = 1;
/// Length of version, family, generation and MAC, in bytes.
const TOKEN_BYTES: usize = 1 + 16 + 4 + 32;
/// Length of these bytes in base64url without padding.
const TOKEN_CHARS: usize = (TOKEN_BYTES * 8).div_ceil(6);

/// Key that mints and verifies refresh tokens.
pub struct RefreshKey(hmac::Key);

impl RefreshKey {
    /// Derives the key under the label "refresh token".
    pub fn new(root: &Root) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, root.derive("refresh token").as_slice()))
    }

    /// Returns the only token of this generation of this family.
    pub fn mint(&self, family: FamilyId, generation: u32, salt: &[u8; 32]) -> SecretString {
        let mac = hmac::sign(&self.0, &signed(family, generation, salt));
        let token = [&head(family, generation), mac.as_ref()].concat();
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(token)).into()
    }

    /// Returns true if this key minted `presented` for a family with this salt; in constant time.
    pub fn verify(&self, presented: &Presented, salt: &[u8; 32]) -> bool {
        hmac::verify(&self.0, &signed(presented.family, presented.generation, salt), &presented.mac)
            .is_ok()
    }
}

fn head(family: FamilyId, generation: u32) -> [u8; 21] {
    let mut head = [VERSION; 21];
    let (_, rest) = head.split_at_mut(1);
    let (family_bytes, generation_bytes) = rest.split_at_mut(16);
    family_bytes.copy_from_slice(family.0.as_bytes());
    generation_bytes.copy_from_slice(&generation.to_be_bytes());
    head
}

fn signed(family: FamilyId, generation: u32, salt: &[u8; 32]) -> Vec<u8> {
    [head(family, generation).as_slice(), salt].concat()
}

/// A well-formed refresh token, not verified: see [`RefreshKey::verify`].
#[derive(Clone)]
pub struct Presented {
    /// Claimed family.
    pub family: FamilyId,
    /// Claimed generation.
    pub generation: u32,
    mac: [u8; 32],
}

impl Presented {
    /// Parses a token; `None` unless it has this prefix, length and version in canonical base64url.
    pub fn parse(text: &str) -> Option<Self> {
        let encoded = text.strip_prefix(PREFIX).filter(|encoded| encoded.len() == TOKEN_CHARS)?;
        let bytes = URL_SAFE_NO_PAD.decode(encoded).ok()?;
        let (version, rest) = bytes.split_first()?;
        let (family, rest) = rest.split_first_chunk::<16>()?;
        let (generation, rest) = rest.split_first_chunk::<4>()?;
        let mac = <[u8; 32]>::try_from(rest).ok()?;
        (*version == VERSION).then(|| Self {
            family: FamilyId(Uuid::from_bytes(*family)),
            generation: u32::from_be_bytes(*generation),
            mac,
        })
    }
}

/// Prints the token without its MAC.
impl std::fmt::Debug for Presented {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Presented")
            .field("family", &self.family)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use secrecy::ExposeSecret;

    use super::*;
    use crate::{crypto::seal::Sealer, model::Keyset};

    const SALT: [u8; 32] = [9; 32];

    fn key() -> RefreshKey {
        let sealer = Sealer::new([3; 32]);
        let keyset = Keyset {
            revision: 1,
            keys: Vec::new(),
            sealed_root: Root::make(&sealer),
            mac: String::new(),
        };
        RefreshKey::new(&Root::open(&keyset, &sealer).unwrap())
    }

    fn is_accepted(key: &RefreshKey, text: &str) -> bool {
        Presented::parse(text).is_some_and(|presented| key.verify(&presented, &SALT))
    }

    #[test]
    fn a_token_says_its_family_and_generation_and_is_always_the_same() {
        let (key, family) = (key(), FamilyId::new());
        let token = key.mint(family, 7, &SALT);
        assert_eq!(token.expose_secret(), key.mint(family, 7, &SALT).expose_secret());
        assert_eq!(token.expose_secret().len(), PREFIX.len() + 71);
        let presented = Presented::parse(token.expose_secret()).unwrap();
        assert_eq!((presented.family, presented.generation), (family, 7));
        assert!(key.verify(&presented, &SALT));
    }

    #[test]
    fn another_salt_key_family_or_generation_is_another_token() {
        let (one, family) = (key(), FamilyId::new());
        let token = one.mint(family, 7, &SALT);
        let mut presented = Presented::parse(token.expose_secret()).unwrap();
        assert!(!one.verify(&presented, &[8; 32]));
        assert!(!key().verify(&presented, &SALT));
        presented.generation = 8;
        assert!(!one.verify(&presented, &SALT));
        presented.generation = 7;
        presented.family = FamilyId::new();
        assert!(!one.verify(&presented, &SALT));
    }

    /// J19: truncated at every length, and extended by anything.
    #[test]
    fn no_other_length_is_accepted() {
        let key = key();
        let token = key.mint(FamilyId::new(), 0, &SALT);
        let token = token.expose_secret();
        for length in 0..token.len() {
            assert!(!is_accepted(&key, &token[..length]), "{length}");
            assert!(!is_accepted(&key, &token[length + 1..]), "without its first {}", length + 1);
        }
        for extra in ["A", "=", "==", " ", "\n", "\0", ".", "AAAA", token] {
            assert!(!is_accepted(&key, &format!("{token}{extra}")), "{extra:?} after");
            assert!(!is_accepted(&key, &format!("{extra}{token}")), "{extra:?} before");
        }
        for end in ["=", "==", " ", "\n", "\0", ".", "*"] {
            assert!(
                !is_accepted(&key, &format!("{}{end}", &token[..token.len() - end.len()])),
                "{end:?} in place of its end"
            );
        }
    }

    /// J19: one bit flipped at any position, in the bytes and in the text.
    #[test]
    fn no_flipped_bit_is_accepted() {
        let key = key();
        let token = key.mint(FamilyId::new(), 1, &SALT);
        let token = token.expose_secret();
        let bytes = URL_SAFE_NO_PAD.decode(&token[PREFIX.len()..]).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(
                !is_accepted(&key, &format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(flipped))),
                "bit {bit}"
            );
        }
        for bit in 0..token.len() * 8 {
            let mut flipped = token.as_bytes().to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // What is no longer UTF-8 cannot even be sent.
            if let Ok(text) = std::str::from_utf8(&flipped) {
                assert!(!is_accepted(&key, text), "bit {bit} of the text");
            }
        }
    }

    /// J19: another case or another prefix.
    #[test]
    fn no_other_case_or_prefix_is_accepted() {
        let key = key();
        let token = key.mint(FamilyId::new(), 1, &SALT);
        let token = token.expose_secret();
        assert!(!is_accepted(&key, &token.to_uppercase()));
        assert!(!is_accepted(&key, &token.to_lowercase()));
        for (at, letter) in token.char_indices().filter(|(_, letter)| letter.is_ascii_alphabetic())
        {
            let other = if letter.is_ascii_lowercase() {
                letter.to_ascii_uppercase()
            } else {
                letter.to_ascii_lowercase()
            };
            assert!(
                !is_accepted(&key, &format!("{}{other}{}", &token[..at], &token[at + 1..])),
                "{at}"
            );
        }
        for prefix in ["", "jcs_", "JRT_", "jrt", "jrt-", "jrt_jrt_", " jrt_"] {
            assert!(!is_accepted(&key, &token.replacen(PREFIX, prefix, 1)), "{prefix:?}");
        }
    }

    /// J19: unused bits at the end and other alphabets do not make a second spelling of a token.
    #[test]
    fn a_token_has_one_spelling() {
        let key = key();
        let token = key.mint(FamilyId::new(), u32::MAX, &SALT);
        let (rest, last) = token.expose_secret().split_at(PREFIX.len() + 70);
        let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_+/=";
        let spellings = alphabet
            .chars()
            .filter(|other| is_accepted(&key, &format!("{rest}{other}")))
            .collect::<String>();
        assert_eq!(spellings, last);
    }

    /// O01: what is printed of a presented token does not let anybody present it.
    #[test]
    fn debug_does_not_show_the_mac() {
        let token = key().mint(FamilyId::new(), 1, &SALT);
        let presented = Presented::parse(token.expose_secret()).unwrap();
        assert!(!format!("{presented:?}").contains("mac"));
    }

    proptest! {
        /// J19: no text but a minted one.
        #[test]
        fn nothing_made_up_is_accepted(text in "(jrt_)?[A-Za-z0-9_-]{0,80}", any in ".*") {
            let key = key();
            prop_assert!(!is_accepted(&key, &text));
            prop_assert!(!is_accepted(&key, &any));
        }
    }
}
