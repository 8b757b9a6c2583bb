//! Tokens that were verified before, by the hash of their text.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use aws_lc_rs::digest::{SHA256, digest};

use crate::crypto::keyring::VerifiedClaims;

/// Slots; each holds one token's claims, about 700 bytes, so all of them stay under 50 MiB.
const SLOTS: usize = 1 << 16;

/// A table of fixed size: a token goes to one slot and replaces what was there. Bounded whatever callers send, since only what
/// verified is kept, and read without a lock.
pub(super) struct Seen {
    slots: Box<[ArcSwapOption<Entry>]>,
}

struct Entry {
    digest: [u8; 32],
    claims: Arc<VerifiedClaims>,
}

impl Default for Seen {
    fn default() -> Self {
        Self { slots: (0..SLOTS).map(|_| ArcSwapOption::empty()).collect() }
    }
}

impl Seen {
    /// The whole text counts: a token that differs in one byte is another.
    pub(super) fn digest(token: &str) -> [u8; 32] {
        let mut out = [0; 32];
        out.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        out
    }

    pub(super) fn recall(&self, digest: &[u8; 32]) -> Option<Arc<VerifiedClaims>> {
        let entry = self.slot(digest)?.load();
        entry.as_ref().filter(|entry| entry.digest == *digest).map(|entry| entry.claims.clone())
    }

    pub(super) fn remember(&self, digest: [u8; 32], claims: Arc<VerifiedClaims>) {
        if let Some(slot) = self.slot(&digest) {
            slot.store(Some(Arc::new(Entry { digest, claims })));
        }
    }

    fn slot(&self, digest: &[u8; 32]) -> Option<&ArcSwapOption<Entry>> {
        let [low, high, ..] = *digest;
        self.slots.get(usize::from(u16::from_le_bytes([low, high])))
    }
}
