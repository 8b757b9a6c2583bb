//! Uses of client secrets, counted in memory and noted in the store every few seconds.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
};

use papaya::HashMap;

use super::Authority;
use crate::{
    error::Result,
    model::{ClientId, SecretId, Timestamp},
    store::SecretUse,
};

/// Counts since the last note; one entry per secret in use.
#[derive(Default)]
pub(super) struct Uses {
    by_secret: HashMap<(ClientId, SecretId), Arc<Count>>,
}

#[derive(Default)]
struct Count {
    uses: AtomicU64,
    last: AtomicI64,
}

impl Uses {
    pub(super) fn note(&self, client: &ClientId, secret: &SecretId, now: Timestamp) {
        let counts = self.by_secret.pin();
        let count = counts.get_or_insert_with((client.clone(), secret.clone()), Arc::default);
        count.uses.fetch_add(1, Relaxed);
        count.last.fetch_max(now.millis(), Relaxed);
    }

    fn take(&self) -> Vec<SecretUse> {
        let counts = self.by_secret.pin();
        let taken = counts.iter().filter_map(|((client, secret), count)| {
            let uses = count.uses.swap(0, Relaxed);
            let at = Timestamp::from_millis(count.last.load(Relaxed));
            (uses > 0).then(|| SecretUse { client: client.clone(), secret: secret.clone(), at, count: uses })
        });
        taken.collect()
    }

    /// Puts back what could not be noted.
    fn give_back(&self, uses: &[SecretUse]) {
        let counts = self.by_secret.pin();
        for lost in uses {
            if let Some(count) = counts.get(&(lost.client.clone(), lost.secret.clone())) {
                count.uses.fetch_add(lost.count, Relaxed);
            }
        }
    }
}

impl Authority {
    /// Notes the uses of secrets since the last time; what the store cannot take now is kept for the next.
    pub async fn note_uses(&self) -> Result<()> {
        let uses = self.uses.take();
        if uses.is_empty() {
            return Ok(());
        }
        let noted = self.store.note_uses(&uses).await;
        if noted.is_err() {
            self.uses.give_back(&uses);
        }
        Ok(noted?)
    }
}
