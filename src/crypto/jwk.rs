//! Policy of JSON Web Keys (RFC 7517): acceptable keys, and the one algorithm of each (RFC 8725
//! section 3.1).

use std::collections::HashSet;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey,
    VerificationAlgorithm,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{
    Algorithm,
    jwk::{
        AlgorithmParameters, EllipticCurve, EllipticCurveKeyParameters, Jwk, KeyAlgorithm,
        KeyOperations, OctetKeyPairParameters, OctetKeyParameters, PublicKeyUse, RSAKeyParameters,
    },
};
use serde::Deserialize;

use super::present::Present;

/// Smallest RSA modulus that is accepted, in bits (RFC 7518 section 3.3).
const MIN_RSA_BITS: usize = 2_048;
/// Largest RSA modulus, in bits; beyond it a signature is too expensive to verify.
const MAX_RSA_BITS: usize = 8_192;
/// Maximum keys in one set.
const MAX_KEYS: usize = 100;

/// Reason that a key is rejected, for the caller that registered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("key rejected: {0}")]
pub struct Refused(pub &'static str);

/// Parses a JWK set (RFC 7517 section 5) for verification.
///
/// # Errors
///
/// The set contains a private member of an asymmetric key, two keys share a `kid`, symmetric and
/// asymmetric keys are mixed, there are more than 100, or [`admit`] rejects one of them.
pub fn parse_set(json: &str) -> Result<Vec<Jwk>, Refused> {
    let private: Set<Private> = serde_json::from_str(json).map_err(|_| Refused("not a JWK set"))?;
    let set: Set<Jwk> = serde_json::from_str(json).map_err(|_| Refused("not a JWK set"))?;
    if set.keys.len() > MAX_KEYS {
        return Err(Refused("more than 100 keys"));
    }
    if private.keys.iter().any(Private::is_there) {
        return Err(Refused("it contains a private key"));
    }
    let mut kids = HashSet::new();
    if !set.keys.iter().filter_map(|key| key.common.key_id.as_deref()).all(|kid| kids.insert(kid)) {
        return Err(Refused("two keys have the same kid"));
    }
    let symmetric = set
        .keys
        .iter()
        .filter(|key| matches!(key.algorithm, AlgorithmParameters::OctetKey(_)))
        .count();
    if symmetric != 0 && symmetric != set.keys.len() {
        return Err(Refused("symmetric and asymmetric keys are mixed"));
    }
    set.keys.iter().try_for_each(|key| admit(key).map(drop))?;
    Ok(set.keys)
}

#[derive(Deserialize)]
struct Set<K> {
    keys: Vec<K>,
}

/// Members of RFC 7518 section 6 that only a private key has.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Private {
    d: Present,
    p: Present,
    q: Present,
    dp: Present,
    dq: Present,
    qi: Present,
    oth: Present,
}

impl Private {
    fn is_there(&self) -> bool {
        [self.d, self.p, self.q, self.dp, self.dq, self.qi, self.oth]
            .iter()
            .any(|Present(there)| *there)
    }
}

/// Returns the one algorithm that `jwk` verifies signatures with. An RSA or symmetric key must name
/// it; a curve implies it.
///
/// # Errors
///
/// The key is not for signatures, is too weak, is not on its curve, or names an algorithm of
/// another key type.
pub fn admit(jwk: &Jwk) -> Result<Algorithm, Refused> {
    if jwk.common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature)
    {
        return Err(Refused("its use is not sig"));
    }
    if jwk
        .common
        .key_operations
        .as_ref()
        .is_some_and(|operations| !operations.contains(&KeyOperations::Verify))
    {
        return Err(Refused("verify is not among its key_ops"));
    }
    let named = jwk.common.key_algorithm.map(named).transpose()?;
    let admitted: &[Algorithm] = match &jwk.algorithm {
        AlgorithmParameters::EllipticCurve(point) => check_point(point)?,
        AlgorithmParameters::OctetKeyPair(point) => check_edwards(point)?,
        AlgorithmParameters::RSA(key) => check_rsa(key)?,
        AlgorithmParameters::OctetKey(key) => check_octets(key)?,
        AlgorithmParameters::Other(_) | _ => return Err(Refused("its kty is not supported")),
    };
    match (named, admitted) {
        (Some(named), admitted) if admitted.contains(&named) => Ok(named),
        (None, [only]) => Ok(*only),
        (None, _) => Err(Refused("it must name its alg")),
        (Some(_), _) => Err(Refused("its alg does not match its key type")),
    }
}

fn named(alg: KeyAlgorithm) -> Result<Algorithm, Refused> {
    Algorithm::try_from(alg).map_err(|_| Refused("its alg is not a supported signature algorithm"))
}

fn decode(value: &str) -> Result<Vec<u8>, Refused> {
    URL_SAFE_NO_PAD.decode(value).map_err(|_| Refused("a value is not base64url"))
}

fn on_curve(parser: &'static dyn VerificationAlgorithm, point: &[u8]) -> Result<(), Refused> {
    ParsedPublicKey::new(parser, point)
        .map(drop)
        .map_err(|_| Refused("it is not a point of its curve"))
}

fn check_point(point: &EllipticCurveKeyParameters) -> Result<&'static [Algorithm], Refused> {
    let (parser, size, algs): (&'static dyn VerificationAlgorithm, _, _) = match point.curve {
        EllipticCurve::P256 => (&ECDSA_P256_SHA256_FIXED, 32, &[Algorithm::ES256]),
        EllipticCurve::P384 => (&ECDSA_P384_SHA384_FIXED, 48, &[Algorithm::ES384]),
        EllipticCurve::P521 | EllipticCurve::Ed25519 | _ => {
            return Err(Refused("its curve is not supported"));
        }
    };
    let [x, y] = [decode(&point.x)?, decode(&point.y)?];
    if x.len() != size || y.len() != size {
        return Err(Refused("its coordinates do not have the curve's size"));
    }
    on_curve(parser, &[&[4], x.as_slice(), &y].concat())?;
    Ok(algs)
}

fn check_edwards(point: &OctetKeyPairParameters) -> Result<&'static [Algorithm], Refused> {
    let x = decode(&point.x)?;
    if point.curve != EllipticCurve::Ed25519 || x.len() != 32 {
        return Err(Refused("it is not an Ed25519 key of 32 bytes"));
    }
    on_curve(&ED25519, &x)?;
    Ok(&[Algorithm::EdDSA])
}

/// Checks a symmetric key: at least as long as the hash (RFC 7518 section 3.2).
fn check_octets(key: &OctetKeyParameters) -> Result<&'static [Algorithm], Refused> {
    match decode(&key.value)?.len() {
        ..32 => Err(Refused("it is shorter than its hash")),
        32..48 => Ok(&[Algorithm::HS256]),
        48..64 => Ok(&[Algorithm::HS256, Algorithm::HS384]),
        64.. => Ok(&[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512]),
    }
}

fn check_rsa(key: &RSAKeyParameters) -> Result<&'static [Algorithm], Refused> {
    let [modulus, exponent] = [decode(&key.n)?, decode(&key.e)?];
    let bits = match modulus.first() {
        Some(first) if *first != 0 => modulus.len() * 8 - first.leading_zeros() as usize,
        _ => return Err(Refused("its modulus is empty or begins with zero")),
    };
    if !(MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits) {
        return Err(Refused("its modulus must have 2048 to 8192 bits"));
    }
    // FIPS 186-5 section 5.1: odd, above 2^16; longer ones than 32 bits only cost time.
    let value = exponent.iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    if exponent.len() > 4 || value < 65_537 || value % 2 == 0 {
        return Err(Refused("its exponent must be odd, at least 65537 and at most 32 bits"));
    }
    if modulus.last().is_none_or(|last| last % 2 == 0) || is_roca(&modulus) {
        return Err(Refused("its modulus is known to be weak"));
    }
    Ok(&[
        Algorithm::RS256,
        Algorithm::RS384,
        Algorithm::RS512,
        Algorithm::PS256,
        Algorithm::PS384,
        Algorithm::PS512,
    ])
}

/// Returns true if a modulus has the fingerprint of CVE-2017-15361: modulo every small prime it is
/// a power of 65537. The probability of that is below 2^-25 for a sound modulus.
fn is_roca(modulus: &[u8]) -> bool {
    const PRIMES: [u32; 38] = [
        3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89,
        97, 101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
    ];
    PRIMES.iter().all(|prime| {
        let rest = modulus.iter().fold(0, |rest, byte| (rest << 8 | u32::from(*byte)) % prime);
        let mut powers =
            std::iter::successors(Some(1), |power| Some(power * (65_537 % prime) % prime))
                .take(*prime as usize);
        powers.any(|power| power == rest)
    })
}
