//! Uses of client secrets, counted in memory and noted in the store every few seconds.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
};

use papaya::HashMap;

use super::ClientAuthenticator;
use crate::{
    error::Result,
    model::{ClientId, SecretId, Timestamp},
    store::SecretUse,
};

/// Uses of secrets since they were last recorded; one entry per secret that was used since then.
#[derive(Default)]
pub struct SecretUses {
    by_secret: HashMap<(ClientId, SecretId), Arc<Count>>,
}

#[derive(Default)]
struct Count {
    uses: AtomicU64,
    last: AtomicI64,
}

impl SecretUses {
    pub(super) fn note(&self, client: &ClientId, secret: &SecretId, now: Timestamp) {
        let counts = self.by_secret.pin();
        let count = counts.get_or_insert_with((client.clone(), secret.clone()), Arc::default);
        count.uses.fetch_add(1, Relaxed);
        count.last.fetch_max(now.millis(), Relaxed);
    }

    /// The counts since the last time. Secrets that were not used since are forgotten: a use in the
    /// very moment in which its entry goes may be lost, and no table grows with every secret that
    /// ever was.
    fn take(&self) -> Vec<SecretUse> {
        let counts = self.by_secret.pin();
        counts.retain(|_, count| count.uses.load(Relaxed) > 0);
        let taken = counts.iter().filter_map(|((client, secret), count)| {
            let uses = count.uses.swap(0, Relaxed);
            let at = Timestamp::from_millis(count.last.load(Relaxed));
            (uses > 0).then(|| SecretUse {
                client: client.clone(),
                secret: secret.clone(),
                at,
                count: uses,
            })
        });
        taken.collect()
    }

    /// Puts back what could not be noted.
    fn give_back(&self, uses: &[SecretUse]) {
        let counts = self.by_secret.pin();
        for lost in uses {
            let count =
                counts.get_or_insert_with((lost.client.clone(), lost.secret.clone()), Arc::default);
            count.uses.fetch_add(lost.count, Relaxed);
            count.last.fetch_max(lost.at.millis(), Relaxed);
        }
    }
}

impl ClientAuthenticator {
    /// Notes the uses of secrets since the last time; what the store cannot take now is kept for
    /// the next.
    pub async fn note_uses(&self) -> Result<()> {
        let uses = self.uses.take();
        if uses.is_empty() {
            return Ok(());
        }
        let noted = self.store.record_secret_uses(&uses).await;
        if noted.is_err() {
            self.uses.give_back(&uses);
        }
        Ok(noted?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

    /// TL6, TL14: the table holds what was used lately, not every secret that ever was; nothing
    /// that was counted is lost by it.
    #[test]
    fn secrets_that_are_not_used_are_forgotten() {
        let uses = SecretUses::default();
        let client: ClientId = "a".parse().unwrap();
        let secret = |n: usize| format!("s{n}").parse::<SecretId>().unwrap();
        for n in 0..1_000 {
            uses.note(&client, &secret(n), NOW);
        }
        let taken = uses.take();
        assert_eq!((taken.len(), taken.iter().map(|used| used.count).sum::<u64>()), (1_000, 1_000));
        uses.note(&client, &secret(7), NOW);
        assert_eq!(uses.take().len(), 1);
        assert_eq!(uses.by_secret.pin().len(), 1);
        assert!(uses.take().is_empty() && uses.by_secret.pin().is_empty());
        // The store could not take the first ones: they come back with their time.
        uses.give_back(&taken);
        let mut again = uses.take();
        again.sort_by(|one, other| one.secret.as_str().cmp(other.secret.as_str()));
        let mut expected = taken;
        expected.sort_by(|one, other| one.secret.as_str().cmp(other.secret.as_str()));
        assert_eq!(again, expected);
    }
}
