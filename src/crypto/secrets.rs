//! Client secrets that this service generates: 256 random bits, stored only as an HMAC under a
//! server key. A random secret needs no slow hash.

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret, SecretString};

use super::{random, root::Root};
use crate::model::{Digest, Secret, SecretId};

/// Prefix of every generated secret.
pub const PREFIX: &str = "jcs_";

/// Length of the id inside a secret.
const ID_CHARS: usize = 12;
/// Length of 256 bits in base64url without padding.
const RANDOM_CHARS: usize = 43;

/// Generator and verifier of client secrets.
pub struct ClientSecrets {
    key: hmac::Key,
    /// Digest in the format of a stored one, of no secret.
    decoy: String,
}

impl ClientSecrets {
    /// Derives the key under the label "client secret".
    pub fn new(root: &Root) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, root.derive("client secret").as_slice()),
            decoy: URL_SAFE_NO_PAD.encode(random::bytes::<32>()),
        }
    }

    /// Generates a secret: its id, its value `jcs_<id>_<random>` to be shown once, and the digest
    /// to store.
    pub fn generate(&self) -> (SecretId, SecretString, Digest) {
        let id = new_id();
        let value = SecretString::from(format!(
            "{PREFIX}{id}_{}",
            URL_SAFE_NO_PAD.encode(random::bytes::<32>())
        ));
        let mac = hmac::sign(&self.key, value.expose_secret().as_bytes());
        let digest = Digest::Keyed { hmac: URL_SAFE_NO_PAD.encode(mac) };
        (id, value, digest)
    }

    /// Returns true if `presented` is the stored `secret`; in constant time. False for a chosen or
    /// imported one: see [`super::passwords`].
    pub fn matches(&self, presented: &str, secret: &Secret) -> bool {
        match &secret.digest {
            Digest::Keyed { hmac } => self.verify(presented, hmac),
            Digest::Argon2id { .. } => {
                self.burn(presented);
                false
            }
        }
    }

    /// Does the work of [`Self::matches`] if there is no stored secret (A02).
    pub fn burn(&self, presented: &str) {
        std::hint::black_box(self.verify(presented, &self.decoy));
    }

    /// Compares with a stored HMAC; one that cannot be decoded costs the same.
    fn verify(&self, presented: &str, kept: &str) -> bool {
        #[cfg(test)]
        tests::MACS.with(|macs| macs.set(macs.get() + 1));
        let mut mac = [0; 32];
        let read =
            URL_SAFE_NO_PAD.decode_slice(kept, &mut mac).is_ok_and(|length| length == mac.len());
        hmac::verify(&self.key, presented.as_bytes(), &mac).is_ok() && read
    }
}

/// Returns true if a presented secret has the prefix of a generated one: it is then compared only
/// with generated ones, whatever its client.
pub fn is_generated(presented: &str) -> bool {
    presented.starts_with(PREFIX)
}

/// Returns the id inside a secret in the format of a generated one.
pub fn secret_id_of(presented: &str) -> Option<SecretId> {
    let (id, random) = presented.strip_prefix(PREFIX)?.split_at_checked(ID_CHARS)?;
    let random = random.strip_prefix('_').filter(|random| random.len() == RANDOM_CHARS)?;
    URL_SAFE_NO_PAD.decode(random).ok()?;
    id.parse().ok()
}

/// Generates an id: 12 of `[A-Za-z0-9]`, each equally likely.
#[expect(clippy::expect_used, reason = "the alphabet is that of SecretId")]
fn new_id() -> SecretId {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let letters = std::iter::repeat_with(random::bytes::<32>)
        .flatten()
        // 248 is the last multiple of 62: bytes above it would favour the first letters.
        .filter(|byte| *byte < 248)
        .filter_map(|byte| ALPHABET.get(usize::from(byte % 62)).copied().map(char::from));
    letters.take(ID_CHARS).collect::<String>().parse().expect("12 letters and digits")
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::{
        crypto::seal::Sealer,
        model::{Keyset, Timestamp},
    };

    thread_local! {
        /// MACs that were compared on this thread: what a presented secret costs.
        pub(super) static MACS: Cell<u32> = const { Cell::new(0) };
    }

    fn secrets() -> ClientSecrets {
        let sealer = Sealer::new([3; 32]);
        let keyset = Keyset {
            revision: 1,
            keys: Vec::new(),
            sealed_root: Root::make(&sealer),
            mac: String::new(),
        };
        ClientSecrets::new(&Root::open(&keyset, &sealer).unwrap())
    }

    fn kept(id: SecretId, digest: Digest) -> Secret {
        Secret {
            id,
            digest,
            created_at: Timestamp::EPOCH,
            expires_at: None,
            last_used_at: None,
            use_count: 0,
        }
    }

    #[test]
    fn a_secret_matches_itself_and_says_its_id() {
        let secrets = secrets();
        let (id, value, digest) = secrets.generate();
        let value = value.expose_secret();
        assert_eq!(value.len(), 60);
        assert!(is_generated(value));
        assert_eq!(secret_id_of(value), Some(id.clone()));
        assert!(secrets.matches(value, &kept(id, digest)));
    }

    #[test]
    fn ids_and_values_do_not_repeat() {
        let secrets = secrets();
        let made: Vec<_> = (0..200).map(|_| secrets.generate()).collect();
        let ids: std::collections::HashSet<_> = made.iter().map(|(id, ..)| id.as_str()).collect();
        let values: std::collections::HashSet<_> =
            made.iter().map(|(_, value, _)| value.expose_secret()).collect();
        assert_eq!((ids.len(), values.len()), (200, 200));
    }

    /// J19, A01: every other text is refused, one flipped bit or one letter less is enough.
    #[test]
    fn nothing_else_matches() {
        let secrets = secrets();
        let (id, value, digest) = secrets.generate();
        let (_, other, _) = secrets.generate();
        let kept = kept(id, digest);
        let value = value.expose_secret();
        assert!(!secrets.matches(other.expose_secret(), &kept));
        for length in 0..value.len() {
            assert!(!secrets.matches(&value[..length], &kept), "{length}");
        }
        for bit in 0..value.len() * 8 {
            let mut flipped = value.as_bytes().to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(text) = std::str::from_utf8(&flipped) {
                assert!(!secrets.matches(text, &kept), "bit {bit}");
            }
        }
        for wrong in
            [format!("{value} "), format!("{value}="), value.to_uppercase(), format!(" {value}")]
        {
            assert!(!secrets.matches(&wrong, &kept), "{wrong}");
        }
    }

    /// A04: what differs only after the 72nd byte differs.
    #[test]
    fn secrets_that_differ_late_are_different() {
        let secrets = secrets();
        for length in [73, 128, 1_024] {
            let [one, other] = ["1", "2"].map(|end| format!("jcs_{}{end}", "x".repeat(length - 5)));
            let mac = hmac::sign(&secrets.key, one.as_bytes());
            let kept =
                kept("a".parse().unwrap(), Digest::Keyed { hmac: URL_SAFE_NO_PAD.encode(mac) });
            assert!(secrets.matches(&one, &kept));
            assert!(!secrets.matches(&other, &kept), "{length}");
        }
    }

    #[test]
    fn a_digest_of_another_server_or_kind_or_none_at_all_matches_nothing() {
        let (here, there) = (secrets(), secrets());
        let (id, value, digest) = here.generate();
        let value = value.expose_secret();
        assert!(!there.matches(value, &kept(id.clone(), digest)));
        let phc = format!("$argon2id$v=19$m=19456,t=2,p=1${}${}", "A".repeat(22), "A".repeat(43));
        assert!(!here.matches(value, &kept(id.clone(), Digest::Argon2id { phc })));
        for hmac in ["", "AAAA", "*", &"A".repeat(43), &"A".repeat(44)] {
            assert!(
                !here.matches(value, &kept(id.clone(), Digest::Keyed { hmac: hmac.to_owned() })),
                "{hmac}"
            );
        }
    }

    #[test]
    fn a_digest_that_lost_its_end_matches_nothing() {
        let secrets = secrets();
        let digests = std::iter::repeat_with(|| secrets.generate()).map(|(id, value, digest)| {
            let Digest::Keyed { hmac } = &digest else { panic!("a secret made here") };
            (id, value, URL_SAFE_NO_PAD.decode(hmac).unwrap())
        });
        // One whose last byte is what a buffer holds that was not written to.
        let (id, value, mac) = digests.into_iter().find(|(.., mac)| mac[31] == 0).unwrap();
        let hmac = URL_SAFE_NO_PAD.encode(&mac[..31]);
        assert!(!secrets.matches(value.expose_secret(), &kept(id, Digest::Keyed { hmac })));
    }

    #[test]
    fn only_the_exact_shape_has_an_id() {
        let (_, value, _) = secrets().generate();
        let value = value.expose_secret();
        for wrong in [
            "",
            "jcs_",
            "jcs_abc",
            &value[..59],
            &format!("{value}A"),
            &value.replacen("jcs_", "jrt_", 1),
            "jcs_ééééééé",
        ] {
            assert_eq!(secret_id_of(wrong), None, "{wrong}");
        }
        assert_eq!(
            secret_id_of(&format!("jcs_abcdefghij_k_{}", "A".repeat(43))),
            None,
            "no underscore in an id"
        );
    }

    /// A02: an unknown client, a wrong secret, a client without a secret of this kind and one whose
    /// secret cannot be read cost the same: one MAC over what was presented.
    #[test]
    fn an_unknown_client_costs_as_much_as_a_wrong_secret() {
        let secrets = secrets();
        let (id, _, digest) = secrets.generate();
        let (_, wrong, _) = secrets.generate();
        let presented = wrong.expose_secret();
        let kept_as = |digest| kept(id.clone(), digest);
        let damaged = Digest::Keyed { hmac: "?".to_owned() };
        let classes: [&dyn Fn(); 4] = [
            &|| secrets.burn(presented),
            &|| assert!(!secrets.matches(presented, &kept_as(digest.clone()))),
            &|| {
                assert!(
                    !secrets.matches(presented, &kept_as(Digest::Argon2id { phc: String::new() }))
                )
            },
            &|| assert!(!secrets.matches(presented, &kept_as(damaged.clone()))),
        ];
        for (class, work) in classes.iter().enumerate() {
            MACS.set(0);
            work();
            assert_eq!(MACS.get(), 1, "class {class}");
        }
    }

    /// O01: what is kept is not the secret.
    #[test]
    fn the_digest_does_not_hold_the_secret() {
        let (_, value, digest) = secrets().generate();
        let kept = serde_json::to_string(&digest).unwrap();
        assert!(!kept.contains(&value.expose_secret()[17..]));
    }
}
