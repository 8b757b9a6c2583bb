//! Cache of verified tokens, by the hash of their text.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use arc_swap::ArcSwapOption;
use aws_lc_rs::digest::{SHA256, digest};

use crate::{crypto::verifying_keys::VerifiedClaims, model::weight};

/// Number of slots, each for one token's claims: 800 bytes for most tokens, up to 11 KiB.
const SLOTS: usize = 1 << 16;

/// Maximum bytes of all claims.
const BYTES_MAX: usize = 64 << 20;

/// A table of fixed size: a token has one slot and replaces its content. Bounded in slots and in
/// bytes; only verified tokens are inserted; read without a lock.
pub(super) struct VerifiedCache {
    slots: Box<[ArcSwapOption<CachedToken>]>,
    /// Bytes of the content; counted before the insertion, so never too low.
    weight: AtomicUsize,
    /// Slot that is emptied next if bytes are needed.
    hand: AtomicUsize,
}

struct CachedToken {
    digest: [u8; 32],
    claims: Arc<VerifiedClaims>,
    weight: usize,
}

impl Default for VerifiedCache {
    fn default() -> Self {
        Self {
            slots: (0..SLOTS).map(|_| ArcSwapOption::empty()).collect(),
            weight: AtomicUsize::new(0),
            hand: AtomicUsize::new(0),
        }
    }
}

impl VerifiedCache {
    /// Hashes the whole text: a token that differs in one byte is another.
    pub(super) fn digest(token: &str) -> [u8; 32] {
        let mut out = [0; 32];
        out.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        out
    }

    pub(super) fn get(&self, digest: &[u8; 32]) -> Option<Arc<VerifiedClaims>> {
        let entry = self.slot(digest)?.load();
        entry.as_ref().filter(|entry| entry.digest == *digest).map(|entry| entry.claims.clone())
    }

    pub(super) fn insert(&self, digest: [u8; 32], claims: Arc<VerifiedClaims>) {
        let Some(slot) = self.slot(&digest) else { return };
        let weight = weight::shared(size_of::<CachedToken>()) + claims.weight();
        self.weight.fetch_add(weight, Relaxed);
        self.count_out(slot.swap(Some(Arc::new(CachedToken { digest, claims, weight }))));
        // At most one round: other threads may fill the slots that are emptied here.
        for _ in 0..SLOTS {
            if self.weight.load(Relaxed) <= BYTES_MAX {
                return;
            }
            let at = self.hand.fetch_add(1, Relaxed) % SLOTS;
            self.slots.get(at).into_iter().for_each(|slot| self.empty(slot));
        }
    }

    /// Removes tokens that are no longer active, and returns how many.
    pub(super) fn sweep(&self, is_active: impl Fn(&VerifiedClaims) -> bool) -> usize {
        let inactive = |slot: &&ArcSwapOption<CachedToken>| {
            slot.load().as_ref().is_some_and(|entry| !is_active(&entry.claims))
        };
        // A token inserted in between is removed too: it is verified once more at its next use.
        self.slots.iter().filter(inactive).map(|slot| self.empty(slot)).count()
    }

    fn empty(&self, slot: &ArcSwapOption<CachedToken>) {
        if slot.load().is_some() {
            self.count_out(slot.swap(None));
        }
    }

    fn count_out(&self, entry: Option<Arc<CachedToken>>) {
        if let Some(entry) = entry {
            self.weight.fetch_sub(entry.weight, Relaxed);
        }
    }

    fn slot(&self, digest: &[u8; 32]) -> Option<&ArcSwapOption<CachedToken>> {
        let [low, high, ..] = *digest;
        self.slots.get(usize::from(u16::from_le_bytes([low, high])))
    }
}

#[cfg(test)]
impl VerifiedCache {
    pub(super) const BYTES_MAX: usize = BYTES_MAX;

    /// Bytes as they are counted, and as they are.
    pub(super) fn weights(&self) -> (usize, usize) {
        let held = self
            .slots
            .iter()
            .filter_map(|slot| slot.load().as_ref().map(|entry| entry.weight))
            .sum();
        (self.weight.load(Relaxed), held)
    }
}
