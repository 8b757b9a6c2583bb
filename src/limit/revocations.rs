//! How many revocations of each client are remembered. Each takes memory of every node, and a row, until what it ended would have
//! expired.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::model::{ClientId, Timestamp};

/// Counts in two windows, each as long as a revocation is remembered: of those made in the last window's length none is left out.
pub(super) struct Revocations {
    by_client: Mutex<HashMap<ClientId, Count>>,
    /// Of one client.
    max: u32,
    /// Clients counted at once.
    cap: usize,
}

struct Count {
    since: Timestamp,
    length: Duration,
    now: u32,
    before: u32,
}

impl Count {
    fn advance(&mut self, now: Timestamp) {
        let windows = now.since(self.since).as_secs().checked_div(self.length.as_secs()).unwrap_or(u64::MAX);
        if windows > 0 {
            self.before = if windows == 1 { self.now } else { 0 };
            (self.since, self.now) = (now, 0);
        }
    }
}

impl Revocations {
    pub(super) fn new(max: u32, cap: usize) -> Self {
        Self { by_client: Mutex::default(), max, cap }
    }

    /// Counts a revocation that is remembered for at most `length`; false, and not counted, where the client has its fill.
    pub(super) fn admit(&self, client: &ClientId, now: Timestamp, length: Duration) -> bool {
        let mut by_client = self.by_client.lock().unwrap_or_else(PoisonError::into_inner);
        if !by_client.contains_key(client) && by_client.len() >= self.cap {
            metrics::counter!("jeton_limiter_full_total").increment(1);
            return false;
        }
        let count = by_client.entry(client.clone()).or_insert(Count { since: now, length, now: 0, before: 0 });
        count.advance(now);
        let is_free = count.now.saturating_add(count.before) < self.max;
        count.now += u32::from(is_free);
        is_free
    }

    pub(super) fn sweep(&self, now: Timestamp) {
        let mut by_client = self.by_client.lock().unwrap_or_else(PoisonError::into_inner);
        by_client.retain(|_, count| {
            count.advance(now);
            count.now + count.before > 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_000_000);
    const LENGTH: Duration = Duration::from_secs(4_000);

    fn id(name: &str) -> ClientId {
        name.parse().unwrap()
    }

    /// AUDIT TL14: however a client times its revocations, no more than its share are remembered at any moment, and what has
    /// expired makes room again.
    #[test]
    fn no_client_has_more_than_its_share_at_any_moment() {
        let revocations = Revocations::new(100, 10);
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
    fn the_table_is_bounded_and_forgets() {
        let revocations = Revocations::new(100, 2);
        let admitted = (0..100).filter(|n| revocations.admit(&id(&format!("client-{n}")), NOW, LENGTH)).count();
        assert_eq!(admitted, 2);
        revocations.sweep(NOW + LENGTH);
        assert!(!revocations.admit(&id("c"), NOW + LENGTH, LENGTH), "what may still be remembered counts");
        revocations.sweep(NOW + LENGTH * 2);
        assert!(revocations.admit(&id("c"), NOW + LENGTH * 2, LENGTH));
    }
}
