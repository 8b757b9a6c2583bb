//! Limit on the revocations of each account that are kept. Each takes memory on every node, and a
//! row, until the revoked token or family would have expired.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::model::{AccountKey, Timestamp};

/// Counters in two windows, each as long as a revocation is kept, so that no revocation of the last
/// window's length is missed.
///
/// In a full table a new account replaces the one with the lowest count and continues from that
/// count (Space-Saving, Metwally et al. 2005). So no account exceeds its share, and no account is
/// overestimated by more than the lowest count in the table.
pub(super) struct RevocationCounts<A> {
    by_account: Mutex<HashMap<A, RevocationCount>>,
    /// Maximum revocations of one account.
    max: u32,
    /// Maximum accounts in the table.
    cap: usize,
}

struct RevocationCount {
    since: Timestamp,
    length: Duration,
    now: u32,
    before: u32,
}

impl RevocationCount {
    const fn total(&self) -> u32 {
        self.now.saturating_add(self.before)
    }

    fn advance(&mut self, now: Timestamp) {
        let windows =
            now.since(self.since).as_secs().checked_div(self.length.as_secs()).unwrap_or(u64::MAX);
        if windows > 0 {
            self.before = if windows == 1 { self.now } else { 0 };
            (self.since, self.now) = (now, 0);
        }
    }
}

impl<A: AccountKey> RevocationCounts<A> {
    pub(super) fn new(max: u32, cap: usize) -> Self {
        Self { by_account: Mutex::default(), max, cap }
    }

    /// Counts a revocation that is kept for at most `length`; returns false, without counting, if
    /// the account has reached its maximum.
    pub(super) fn admit(&self, account: &A, now: Timestamp, length: Duration) -> bool {
        let mut by_account = self.by_account.lock().unwrap_or_else(PoisonError::into_inner);
        if !by_account.contains_key(account) && by_account.len() >= self.cap {
            crate::metrics::METRICS.limiter_full.inc();
            let Some(least) =
                least(&by_account).filter(|(_, count)| *count < self.max).map(|(id, _)| id.clone())
            else {
                return false;
            };
            if let Some(count) = by_account.remove(&least) {
                by_account.insert(account.clone(), count);
            }
        }
        let count = by_account.entry(account.clone()).or_insert(RevocationCount {
            since: now,
            length,
            now: 0,
            before: 0,
        });
        count.advance(now);
        let is_free = count.total() < self.max;
        count.now += u32::from(is_free);
        is_free
    }

    /// Removes one that was admitted and was not kept.
    pub(super) fn give_back(&self, account: &A) {
        let mut by_account = self.by_account.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_account.get_mut(account) {
            // In the previous window, if a new one has begun meanwhile.
            let counted = if count.now > 0 { &mut count.now } else { &mut count.before };
            *counted = counted.saturating_sub(1);
        }
    }

    pub(super) fn sweep(&self, now: Timestamp) {
        let mut by_account = self.by_account.lock().unwrap_or_else(PoisonError::into_inner);
        by_account.retain(|_, count| {
            count.advance(now);
            count.total() > 0
        });
    }
}

/// Returns an account with the lowest count, and that count.
fn least<A>(by_account: &HashMap<A, RevocationCount>) -> Option<(&A, u32)> {
    let mut least: Option<(&A, u32)> = None;
    for (id, count) in by_account {
        let total = count.total();
        if least.is_none_or(|(_, fewest)| total < fewest) {
            least = Some((id, total));
        }
        // A lower count hardly occurs.
        if total <= 1 {
            break;
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ClientId;

    const NOW: Timestamp = Timestamp::from_seconds(1_000_000);
    const LENGTH: Duration = Duration::from_secs(4_000);

    fn id(name: &str) -> ClientId {
        name.parse().unwrap()
    }

    /// AUDIT TL14: however a client times its revocations, no more than its share are remembered at
    /// any moment, and what has expired makes room again.
    #[test]
    fn no_client_has_more_than_its_share_at_any_moment() {
        let revocations = RevocationCounts::new(100, 10);
        let mut made: Vec<Timestamp> = Vec::new();
        for second in 0..20_000 {
            let now = NOW + Duration::from_secs(second);
            if second % 4_000 > 3_500 && revocations.admit(&id("a"), now, LENGTH) {
                made.push(now);
            }
            made.retain(|at| *at + LENGTH > now);
            assert!(made.len() <= 100, "{second}: {}", made.len());
        }
        assert_eq!(made.len(), 100);
        assert!(revocations.admit(&id("b"), NOW, LENGTH), "another client has its own");
        assert!(revocations.admit(&id("a"), NOW + Duration::from_secs(30_000), LENGTH));
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let revocations = RevocationCounts::new(3, 10);
        let admit =
            |seconds| revocations.admit(&id("a"), NOW + Duration::from_secs(seconds), LENGTH);
        for _ in 0..10 {
            assert!(admit(0));
            revocations.give_back(&id("a"));
        }
        assert!(admit(0) && admit(0) && admit(4_000) && !admit(4_000));
        revocations.give_back(&id("a"));
        revocations.give_back(&id("a"));
        assert!(admit(4_000) && admit(4_000) && !admit(4_000), "one of either window");
        revocations.give_back(&id("b"));
    }

    /// A full table of others costs a stranger nothing, and no client gets more than its share by
    /// it.
    #[test]
    fn a_full_table_ends_no_stranger_and_forgets_no_client_that_has_many() {
        let revocations = RevocationCounts::new(100, 5);
        let count = |name: &str, times: usize| {
            (0..times).filter(|_| revocations.admit(&id(name), NOW, LENGTH)).count()
        };
        assert_eq!(count("many", 500), 100);
        for n in 0..300 {
            assert_eq!(count(&format!("client-{n}"), 1), 1, "{n}");
        }
        assert_eq!((count("many", 1), revocations.by_account.lock().unwrap().len()), (0, 5));
        // 301 clients have 400: past that each is at its share, as far as is known.
        let more = (0..300).map(|n| count(&format!("client-{n}"), 100)).sum::<usize>();
        assert!(more <= 100, "{more}");
        revocations.sweep(NOW + LENGTH);
        assert!(
            !revocations.admit(&id("many"), NOW + LENGTH, LENGTH),
            "what may still be remembered counts"
        );
        revocations.sweep(NOW + LENGTH * 2);
        assert!(revocations.admit(&id("many"), NOW + LENGTH * 2, LENGTH));
    }
}
