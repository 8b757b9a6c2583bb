//! Cache of chosen secrets that this process has verified: argon2id runs once for each.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Mutex, PoisonError},
};

use aws_lc_rs::hmac;

use super::random;
use crate::model::ClaimedAccount;

/// A bounded set of keyed digests of verified secrets. The key belongs to this process and the set
/// contains no secrets, so the memory of the process reveals no more than the stored hashes.
/// Failures are never remembered.
pub struct Remembered {
    key: hmac::Key,
    capacity: usize,
    known: Mutex<RememberedSet>,
}

#[derive(Default)]
struct RememberedSet {
    digests: HashSet<[u8; 32]>,
    /// Hash that each was verified against.
    hashes: HashSet<[u8; 32]>,
    oldest_first: VecDeque<VerifiedDigest>,
}

/// Digest of one presented secret of one account against one hash. Another hash has another digest,
/// so a replaced secret is never found.
#[derive(Clone, Copy)]
pub struct VerifiedDigest {
    whole: [u8; 32],
    /// The same without the presented secret.
    hash: [u8; 32],
}

impl Remembered {
    /// Creates a set of at most `capacity` digests; the oldest is removed first.
    pub fn new(capacity: usize) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &random::bytes::<32>());
        Self { key, capacity, known: Mutex::default() }
    }

    /// Returns the digest of this combination in this process.
    pub fn digest(
        &self,
        account: ClaimedAccount<'_>,
        id: &str,
        phc: &str,
        presented: &str,
    ) -> VerifiedDigest {
        let (kind, name) = (account.kind(), account.name());
        VerifiedDigest {
            whole: self.mac(&[kind, name, id, phc, presented]),
            hash: self.mac(&[kind, name, id, phc]),
        }
    }

    fn mac(&self, parts: &[&str]) -> [u8; 32] {
        let mut mac = hmac::Context::with_key(&self.key);
        for part in parts {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(mac.sign().as_ref());
        digest
    }

    /// Returns true if it was verified before.
    pub fn knows(&self, digest: &VerifiedDigest) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).digests.contains(&digest.whole)
    }

    /// Returns true if a secret that was verified against this hash is remembered.
    pub fn knows_one_of(&self, account: ClaimedAccount<'_>, id: &str, phc: &str) -> bool {
        let hash = self.mac(&[account.kind(), account.name(), id, phc]);
        self.known.lock().unwrap_or_else(PoisonError::into_inner).hashes.contains(&hash)
    }

    /// Adds the digest of a verified secret.
    pub fn learn(&self, digest: VerifiedDigest) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if self.capacity == 0 || !known.digests.insert(digest.whole) {
            return;
        }
        known.hashes.insert(digest.hash);
        known.oldest_first.push_back(digest);
        if known.oldest_first.len() > self.capacity
            && let Some(oldest) = known.oldest_first.pop_front()
        {
            known.digests.remove(&oldest.whole);
            // No other text matches the same hash.
            known.hashes.remove(&oldest.hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(remembered: &Remembered, [client, id, phc, presented]: [&str; 4]) -> VerifiedDigest {
        remembered.digest(ClaimedAccount::client(client), id, phc, presented)
    }

    #[test]
    fn only_the_exact_combination_is_known() {
        let remembered = Remembered::new(10);
        remembered.learn(digest(&remembered, ["ab", "c", "phc", "secret"]));
        assert!(remembered.knows(&digest(&remembered, ["ab", "c", "phc", "secret"])));
        for other in [
            ["a", "bc", "phc", "secret"],
            ["ab", "d", "phc", "secret"],
            ["ab", "c", "phd", "secret"],
            ["ab", "c", "phcs", "ecret"],
            ["ab", "c", "phc", "Secret"],
        ] {
            assert!(!remembered.knows(&digest(&remembered, other)), "{other:?}");
        }
    }

    #[test]
    fn it_knows_which_hashes_have_a_secret_that_is_remembered() {
        let remembered = Remembered::new(1);
        remembered.learn(digest(&remembered, ["a", "b", "phc", "secret"]));
        let knows =
            |client, id, phc| remembered.knows_one_of(ClaimedAccount::client(client), id, phc);
        assert!(knows("a", "b", "phc"));
        assert!(!knows("a", "b", "phd") && !knows("b", "a", "phc"));
        remembered.learn(digest(&remembered, ["a", "b", "phd", "secret"]));
        assert!(knows("a", "b", "phd") && !knows("a", "b", "phc"), "the oldest is forgotten");
        assert_eq!(remembered.known.lock().unwrap().hashes.len(), 1);
    }

    #[test]
    fn it_holds_no_more_than_its_capacity() {
        let remembered = Remembered::new(100);
        let digests: Vec<_> = (0..1_000)
            .map(|n| digest(&remembered, ["a", "b", &format!("phc-{n}"), "secret"]))
            .collect();
        for one in &digests {
            remembered.learn(*one);
            remembered.learn(*one);
        }
        assert_eq!(digests.iter().filter(|one| remembered.knows(one)).count(), 100);
        assert!(remembered.knows(&digests[999]) && !remembered.knows(&digests[899]));
        let known = remembered.known.lock().unwrap();
        assert_eq!((known.oldest_first.len(), known.hashes.len()), (100, 100));
    }

    #[test]
    fn another_process_has_other_digests() {
        let [one, other] = [Remembered::new(10), Remembered::new(10)];
        let parts = ["a", "b", "phc", "secret"];
        assert_ne!(digest(&one, parts).whole, digest(&other, parts).whole);
    }
}
