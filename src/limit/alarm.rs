//! Wrong secrets of each account from all peers together, which the budget of one peer cannot
//! count.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::model::{AccountKey, Timestamp};

/// Failures of one account within [`PERIOD`] that raise the alarm. A client that retries a wrong
/// secret every few seconds stays below.
const THRESHOLD: u32 = 1_000;
const PERIOD: Duration = Duration::from_secs(3_600);

pub(super) struct Alarm<A> {
    by_account: Mutex<HashMap<A, Failures>>,
    cap: usize,
}

struct Failures {
    since: Timestamp,
    count: u32,
}

impl<A: AccountKey> Alarm<A> {
    pub(super) fn new(cap: usize) -> Self {
        Self { by_account: Mutex::default(), cap }
    }

    /// Counts one failure; returns true once a period, if there are too many.
    pub(super) fn failed(&self, account: &A, now: Timestamp) -> bool {
        let mut by_account = self.by_account.lock().unwrap_or_else(PoisonError::into_inner);
        if !by_account.contains_key(account) && by_account.len() >= self.cap {
            crate::metrics::METRICS.limiter_full.inc();
            return false;
        }
        let failures =
            by_account.entry(account.clone()).or_insert(Failures { since: now, count: 0 });
        if now.since(failures.since) >= PERIOD {
            *failures = Failures { since: now, count: 0 };
        }
        failures.count = failures.count.saturating_add(1);
        failures.count == THRESHOLD
    }

    pub(super) fn sweep(&self, now: Timestamp) {
        let mut by_account = self.by_account.lock().unwrap_or_else(PoisonError::into_inner);
        by_account.retain(|_, failures| now.since(failures.since) < PERIOD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ClientId;

    const NOW: Timestamp = Timestamp::from_seconds(1_000_000);

    /// AZ7: once a period, for each client by itself; a slow trickle raises nothing.
    #[test]
    fn too_many_failures_raise_the_alarm_once_a_period() {
        let alarm = Alarm::new(10);
        let (orders, billing): (ClientId, ClientId) =
            ("orders".parse().unwrap(), "billing".parse().unwrap());
        let raised = |client: &ClientId, now: Timestamp, count: u32| {
            (0..count).filter(|_| alarm.failed(client, now)).count()
        };
        assert_eq!(raised(&orders, NOW, THRESHOLD - 1), 0);
        assert_eq!(raised(&billing, NOW, THRESHOLD - 1), 0);
        assert_eq!(raised(&orders, NOW, 5 * THRESHOLD), 1);
        assert_eq!(raised(&orders, NOW + PERIOD, THRESHOLD - 1), 0);
        assert_eq!(raised(&orders, NOW + PERIOD, 1), 1);
        let trickle = (0..10 * THRESHOLD)
            .filter(|n| alarm.failed(&billing, NOW + PERIOD + Duration::from_secs(4) * *n));
        assert_eq!(trickle.count(), 0);
    }

    #[test]
    fn the_table_is_bounded() {
        let alarm = Alarm::<ClientId>::new(2);
        for n in 0..100 {
            alarm.failed(&format!("client-{n}").parse().unwrap(), NOW);
        }
        assert_eq!(alarm.by_account.lock().unwrap().len(), 2);
        alarm.sweep(NOW + PERIOD);
        assert!(alarm.by_account.lock().unwrap().is_empty());
    }
}
