//! Private signing keys: generated, sealed, opened and used, never shown.

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
        RsaKeyPair, RsaPublicKeyComponents,
    },
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{
    DecodingKey,
    jwk::{Jwk, PublicKeyUse, ThumbprintHash},
};
use zeroize::Zeroizing;

use super::seal::Sealer;
use crate::model::{KeyState, Kid, SigningKey, Timestamp, keyset::Algorithm};

/// Purpose of sealed private keys; the id is their `kid`.
const PURPOSE: &str = "signing key";

/// Modulus of generated RSA keys, and the minimum of opened ones.
const RSA_BYTES: usize = 384;

/// Reason that a signing key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The key does not open under this master key, or is not the key of its id.
    #[error("cannot decrypt signing key {0}: it was altered, or sealed under another master key")]
    Sealed(Kid),
    /// The sealed part is not a private key of its algorithm, or is too weak (K05).
    #[error("signing key {0} is not an acceptable {1} key")]
    Unacceptable(Kid, &'static str),
}

/// Generates a key pair: its id, which is its thumbprint (RFC 7638), and its private part in
/// PKCS#8. An RSA key has 3,072 bits and takes up to a second: not on a thread that serves calls.
///
/// # Panics
///
/// The system has no randomness or no memory left.
#[expect(
    clippy::expect_used,
    reason = "nothing but a system out of randomness or memory stops it, and no key is no way on"
)]
pub fn make_key(alg: Algorithm) -> (Kid, Zeroizing<Vec<u8>>) {
    let made = Pair::generate(alg).and_then(|(pair, pkcs8)| Some((pair.kid()?, pkcs8)));
    made.expect("a fresh key pair")
}

/// Generates a key for a keyset: sealed, and prepared without an activation time.
pub fn make(alg: Algorithm, sealer: &Sealer, now: Timestamp) -> SigningKey {
    let (kid, pkcs8) = make_key(alg);
    let sealed = URL_SAFE_NO_PAD.encode(sealer.seal(PURPOSE, kid.as_str(), &pkcs8));
    SigningKey {
        kid,
        alg,
        state: KeyState::Prepared { activate_at: None },
        created_at: now,
        sealed,
    }
}

/// A parsed private key.
pub(super) enum Pair {
    Ed(Ed25519KeyPair),
    Es(EcdsaKeyPair),
    Rs(RsaKeyPair),
}

impl Pair {
    /// Opens and parses the private part of `key`.
    pub(super) fn open(key: &SigningKey, sealer: &Sealer) -> Result<Self, KeyError> {
        let sealed = || KeyError::Sealed(key.kid.clone());
        let bytes = URL_SAFE_NO_PAD.decode(&key.sealed).map_err(|_| sealed())?;
        let pkcs8 = sealer.open(PURPOSE, key.kid.as_str(), &bytes).map_err(|_| sealed())?;
        Self::parse(key.alg, &pkcs8)
            .ok_or_else(|| KeyError::Unacceptable(key.kid.clone(), key.alg.as_str()))
    }

    fn parse(alg: Algorithm, pkcs8: &[u8]) -> Option<Self> {
        match alg {
            Algorithm::EdDsa => Ed25519KeyPair::from_pkcs8(pkcs8).ok().map(Self::Ed),
            Algorithm::Es256 => {
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8).ok().map(Self::Es)
            }
            Algorithm::Rs256 => RsaKeyPair::from_pkcs8(pkcs8)
                .ok()
                .filter(|pair| pair.public_modulus_len() >= RSA_BYTES)
                .map(Self::Rs),
        }
    }

    fn generate(alg: Algorithm) -> Option<(Self, Zeroizing<Vec<u8>>)> {
        let pkcs8 = match alg {
            Algorithm::EdDsa => {
                Ed25519KeyPair::generate().ok()?.to_pkcs8v1().ok()?.as_ref().to_vec()
            }
            Algorithm::Es256 => EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
                .ok()?
                .to_pkcs8v1()
                .ok()?
                .as_ref()
                .to_vec(),
            Algorithm::Rs256 => {
                let pair = RsaKeyPair::generate(KeySize::Rsa3072).ok()?;
                let der: Pkcs8V1Der<'_> = pair.as_der().ok()?;
                der.as_ref().to_vec()
            }
        };
        let pkcs8 = Zeroizing::new(pkcs8);
        Some((Self::parse(alg, &pkcs8)?, pkcs8))
    }

    /// Returns its algorithm.
    pub(super) const fn alg(&self) -> Algorithm {
        match self {
            Self::Ed(_) => Algorithm::EdDsa,
            Self::Es(_) => Algorithm::Es256,
            Self::Rs(_) => Algorithm::Rs256,
        }
    }

    /// Signs `message`, in the format of a JWS (RFC 7518 section 3, RFC 8037 section 3.1).
    pub(super) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        match self {
            Self::Ed(pair) => {
                pair.try_sign(message).ok().map(|signature| signature.as_ref().to_vec())
            }
            Self::Es(pair) => {
                pair.sign(&random, message).ok().map(|signature| signature.as_ref().to_vec())
            }
            Self::Rs(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .ok()
                    .map(|()| signature)
            }
        }
    }

    /// Returns the public key. It is built from public parts only, so nothing private can get into
    /// it.
    pub(super) fn jwk(&self) -> Option<Jwk> {
        let (key, alg) = match self {
            Self::Ed(pair) => (
                DecodingKey::from_ed_der(pair.public_key().as_ref()),
                jsonwebtoken::Algorithm::EdDSA,
            ),
            Self::Es(pair) => (
                DecodingKey::from_ec_der(pair.public_key().as_ref()),
                jsonwebtoken::Algorithm::ES256,
            ),
            Self::Rs(pair) => {
                let public = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                (
                    DecodingKey::from_rsa_raw_components(&public.n, &public.e),
                    jsonwebtoken::Algorithm::RS256,
                )
            }
        };
        let mut jwk = Jwk::from_decoding_key(&key, Some(alg)).ok()?;
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        jwk.common.key_id = Some(jwk.thumbprint(ThumbprintHash::SHA256).ok()?);
        Some(jwk)
    }

    fn kid(&self) -> Option<Kid> {
        self.jwk()?.common.key_id?.parse().ok()
    }
}
