//! argon2id: our parameters, the parameters of imported hashes, and extra work for cheaper ones.

use argon2::{
    Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version,
    password_hash::phc::{PasswordHash, Salt},
};

use super::random;
use crate::model::Invalid;

/// Memory of new hashes in KiB, passes and lanes: OWASP's choice for argon2id.
const MEMORY: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// Blocks of 1 KiB that a hash of ours fills.
pub(super) const OWN_BLOCKS: u64 = MEMORY as u64 * PASSES as u64;
/// Minimum memory of argon2id with one lane, in KiB.
const LEAST: u64 = 8;

/// Outcome of comparing with one hash.
pub(super) struct Verified {
    pub(super) fits: bool,
    /// The cost.
    pub(super) blocks: u64,
}

pub(super) fn hash(secret: &[u8]) -> Option<String> {
    let params = Params::new(MEMORY, PASSES, LANES, None).ok()?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2.hash_password_with_salt(secret, &random::bytes::<16>()).ok().map(|phc| phc.to_string())
}

/// Verifies a secret against a hash. The parameters are checked again: those of a damaged or forged
/// row may require gigabytes.
pub(super) fn verify(phc: &str, secret: &[u8]) -> Verified {
    match checked(phc) {
        Ok((phc, cost)) => Verified {
            fits: Argon2::default().verify_password(secret, &phc).is_ok(),
            blocks: cost.blocks(),
        },
        Err(_) => Verified { fits: false, blocks: 0 },
    }
}

/// Fills about this many blocks, and returns how many it filled.
pub(super) fn burn(blocks: u64, decoy: &str, secret: &[u8]) -> u64 {
    if blocks == OWN_BLOCKS {
        return verify(decoy, secret).blocks;
    }
    let Some(memory) = u32::try_from(blocks).ok().filter(|_| blocks >= LEAST) else { return 0 };
    let Ok(params) = Params::new(memory, 1, 1, None) else { return 0 };
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let burnt = argon2.hash_password_with_salt(secret, &random::bytes::<16>());
    std::hint::black_box(burnt).map_or(0, |_| Cost { m: memory, t: 1, p: 1 }.blocks())
}

/// Returns true if a hash was made with our own parameters.
pub(super) fn is_own_cost(phc: &str) -> bool {
    checked(phc).is_ok_and(|(_, cost)| cost == Cost { m: MEMORY, t: PASSES, p: LANES })
}

/// Checks that a hash may be imported: argon2id, version 19, from OWASP's weakest choice
/// (m=7168,t=5, or more memory and fewer passes) to the cost of our own (m * t at most 19456 * 2),
/// at most 4 lanes; salt of at least 8 bytes, hash of 16 to 64. The time of a more expensive one
/// would reveal that the client exists (A02), and it would use a core longer than any other.
///
/// # Errors
///
/// The problem, never the hash itself.
pub fn check_import(phc: &str) -> Result<(), Invalid> {
    checked(phc).map(drop)
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Cost {
    m: u32,
    t: u32,
    p: u32,
}

impl Cost {
    /// Returns the blocks: memory is rounded down to a multiple of four blocks a lane (RFC 9106
    /// section 3.2).
    fn blocks(self) -> u64 {
        let segment = self.p.saturating_mul(4).max(1);
        u64::from(self.m - self.m % segment) * u64::from(self.t)
    }
}

fn checked(text: &str) -> Result<(PasswordHash, Cost), Invalid> {
    let phc = PasswordHash::new(text).map_err(|_| Invalid("the hash must be a PHC string"))?;
    if phc.algorithm != argon2::ARGON2ID_IDENT || phc.version != Some(19) {
        return Err(Invalid("the hash must be argon2id, version 19"));
    }
    let named = |name| {
        phc.params
            .get_decimal(name)
            .ok_or(Invalid("the hash must have exactly the parameters m, t and p"))
    };
    let [m, t, p] = [named("m")?, named("t")?, named("p")?];
    if phc.params.iter().count() != 3 {
        return Err(Invalid("the hash must have exactly the parameters m, t and p"));
    }
    let blocks = u64::from(m) * u64::from(t);
    if m < 7_168 || blocks < 5 * 7_168 {
        return Err(Invalid(
            "the hash is too weak: it must have at least m=7168,t=5, or more memory",
        ));
    }
    if blocks > OWN_BLOCKS || p == 0 || p > 4 {
        return Err(Invalid(
            "the hash is too expensive to verify: m * t must be at most 38912 (m=19456,t=2), and p \
             1 to 4",
        ));
    }
    if phc.salt.as_ref().is_none_or(|salt: &Salt| salt.len() < 8) {
        return Err(Invalid("the hash must have a salt of at least 8 bytes"));
    }
    if !phc.hash.as_ref().is_some_and(|hash| (16..=64).contains(&hash.len())) {
        return Err(Invalid("the hash must have 16 to 64 bytes"));
    }
    Ok((phc, Cost { m, t, p }))
}
