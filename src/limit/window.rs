//! Calls of accounts, counted across nodes and restarts: in the store's counters, by windows,
//! flushed in batches. The budgets in memory apply first; this limits the sum of all nodes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use papaya::HashMap;

use crate::{
    config::Rate,
    model::{AccountKey, Timestamp},
    store::{CounterStore, StoreError},
};

/// Length of a window. A plan admits its rate for this time, and once its burst.
pub(super) const WINDOW: Duration = Duration::from_secs(10);

/// Calls of the accounts with recent calls.
pub(super) struct Windows<A> {
    by_account: HashMap<A, Arc<Window>>,
    /// End of the window of the last flush, in milliseconds.
    last_window_end: AtomicI64,
}

#[derive(Default)]
struct Window {
    /// Calls not yet sent to the store.
    pending: AtomicU64,
    /// Calls of a flush that failed in this window: sent again in the same window only.
    unconfirmed: AtomicU64,
    /// Calls that the account's plan allows in a window.
    budget: AtomicU64,
    /// Time up to which the window is used up, in milliseconds.
    over_until: AtomicI64,
}

impl<A> Default for Windows<A> {
    fn default() -> Self {
        Self { by_account: HashMap::new(), last_window_end: AtomicI64::default() }
    }
}

impl<A: AccountKey> Windows<A> {
    /// Counts a call's work; the error is the rest of the window, if it is used up.
    pub(super) fn count(
        &self,
        account: &A,
        rate: Rate,
        work: u32,
        now: Timestamp,
    ) -> Result<(), Duration> {
        let windows = self.by_account.pin();
        let window = windows.get_or_insert_with(account.clone(), Arc::default);
        let until = Timestamp::from_millis(window.over_until.load(Relaxed));
        if now < until {
            return Err(until.since(now));
        }
        let budget = u64::from(rate.per_second)
            .saturating_mul(WINDOW.as_secs())
            .saturating_add(rate.burst.into());
        window.budget.store(budget, Relaxed);
        window.pending.fetch_add(work.into(), Relaxed);
        Ok(())
    }

    /// Sends the calls since the last flush to the store and reads the totals of all nodes; if the
    /// store fails, the calls are kept until the window ends. `cluster_now` is the time `now` on
    /// the common clock, which defines the windows. Accounts without a call since the last flush
    /// are removed.
    pub(super) async fn flush(
        &self,
        store: &(impl CounterStore + ?Sized),
        now: Timestamp,
        cluster_now: Timestamp,
    ) -> Result<(), StoreError> {
        let until = end(cluster_now);
        let same = self.last_window_end.swap(until.millis(), Relaxed) == until.millis();
        let (hits, windows) = self.take(now, same);
        if hits.is_empty() {
            return Ok(());
        }
        let totals = match store.count(&hits, until).await {
            Ok(totals) => totals,
            Err(error) => {
                for (window, (_, count)) in windows.iter().zip(&hits) {
                    window.unconfirmed.fetch_add(*count, Relaxed);
                }
                return Err(error);
            }
        };
        let until = now + until.since(cluster_now);
        for (window, total) in windows.iter().zip(totals) {
            if total > window.budget.load(Relaxed) {
                window.over_until.store(until.millis(), Relaxed);
            }
        }
        Ok(())
    }

    /// Takes the calls to send. In the `same` window as the last flush, calls of a failed flush are
    /// sent again; in a later one they are dropped, because they may be counted already.
    fn take(&self, now: Timestamp, same: bool) -> (Vec<(String, u64)>, Vec<Arc<Window>>) {
        let windows = self.by_account.pin();
        let mut taken = (Vec::new(), Vec::new());
        for (account, window) in &windows {
            let unconfirmed = window.unconfirmed.swap(0, Relaxed);
            match window.pending.swap(0, Relaxed) + if same { unconfirmed } else { 0 } {
                0 if Timestamp::from_millis(window.over_until.load(Relaxed)) <= now => {
                    windows.remove(account);
                }
                0 => {}
                count => {
                    taken.0.push((format!("{}/{}", A::KIND, account.as_str()), count));
                    taken.1.push(window.clone());
                }
            }
        }
        taken
    }
}

/// Returns the end of the window that `now` lies in, the same on every node.
fn end(now: Timestamp) -> Timestamp {
    let millis = i64::try_from(WINDOW.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millis((now.millis().div_euclid(millis) + 1).saturating_mul(millis))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::model::ClientId;

    /// Counters in memory, as two nodes share them.
    #[derive(Default)]
    struct Counters(Mutex<std::collections::HashMap<(String, Timestamp), u64>>);

    #[async_trait::async_trait]
    impl CounterStore for Counters {
        async fn count(
            &self,
            hits: &[(String, u64)],
            until: Timestamp,
        ) -> Result<Vec<u64>, StoreError> {
            let mut counters = self.0.lock().unwrap();
            let add = |(key, count): &(String, u64)| {
                let total = counters.entry((key.clone(), until)).or_default();
                *total += count;
                *total
            };
            Ok(hits.iter().map(add).collect())
        }
    }

    /// L12: two nodes that share counters stop a client together, and let it in again with the next
    /// window.
    #[tokio::test]
    async fn what_two_nodes_let_through_is_bounded_together() {
        let (counters, nodes) =
            (Counters::default(), [Windows::<ClientId>::default(), Windows::<ClientId>::default()]);
        let client: ClientId = "a".parse().unwrap();
        let rate = Rate { per_second: 1, burst: 5 };
        let now = Timestamp::from_seconds(1_000);
        let mut granted = 0;
        for _ in 0..10 {
            for node in &nodes {
                granted += (0..2).filter(|_| node.count(&client, rate, 1, now).is_ok()).count();
                node.flush(&counters, now, now).await.unwrap();
            }
        }
        // The budget of a window is 15; each node may let through what it has not yet sent.
        assert!((15..=15 + 4).contains(&granted), "{granted}");
        assert_eq!(nodes[0].count(&client, rate, 1, now), Err(Duration::from_secs(10)));
        assert!(nodes[0].count(&client, rate, 1, now + WINDOW).is_ok());
    }

    /// S2: a node that starts afresh learns what was used of the window before.
    #[tokio::test]
    async fn a_restart_does_not_forget_the_window() {
        let counters = Counters::default();
        let client: ClientId = "a".parse().unwrap();
        let rate = Rate { per_second: 1, burst: 1 };
        let now = Timestamp::from_seconds(1_000);
        let before = Windows::<ClientId>::default();
        for _ in 0..11 {
            before.count(&client, rate, 1, now).unwrap();
        }
        before.flush(&counters, now, now).await.unwrap();
        let after = Windows::<ClientId>::default();
        after.count(&client, rate, 1, now).unwrap();
        after.flush(&counters, now, now).await.unwrap();
        assert!(after.count(&client, rate, 1, now).is_err());
    }

    /// Takes what it is sent and returns an error, or the window's counters.
    struct Failing<'c>(&'c Mutex<Vec<(u64, Timestamp)>>, bool);

    #[async_trait::async_trait]
    impl CounterStore for Failing<'_> {
        async fn count(
            &self,
            hits: &[(String, u64)],
            until: Timestamp,
        ) -> Result<Vec<u64>, StoreError> {
            self.0.lock().unwrap().extend(hits.iter().map(|(_, by)| (*by, until)));
            if self.1 {
                Err(StoreError::Unavailable("a planned fault".into()))
            } else {
                Ok(vec![0; hits.len()])
            }
        }
    }

    /// M7, C2: what a store failed to take is sent again in its own window and in no other, and
    /// windows go by the common clock.
    #[tokio::test]
    async fn what_was_not_taken_is_owed_for_as_long_as_its_window_lasts() {
        let (sent, windows) = (Mutex::default(), Windows::<ClientId>::default());
        let rate = Rate { per_second: 1, burst: 1 };
        // This node is a minute ahead.
        let (now, cluster_now) = (Timestamp::from_seconds(1_060), Timestamp::from_seconds(1_000));
        let call = |seconds| {
            windows
                .count(&"a".parse().unwrap(), rate, 1, now + Duration::from_secs(seconds))
                .unwrap()
        };
        let flush = async |seconds, fails| {
            let by = Duration::from_secs(seconds);
            windows.flush(&Failing(&sent, fails), now + by, cluster_now + by).await.is_err()
        };
        call(0);
        assert!(flush(1, true).await);
        call(2);
        assert!(flush(3, true).await);
        call(12);
        assert!(!flush(13, false).await);
        let (first, second) = (Timestamp::from_seconds(1_010), Timestamp::from_seconds(1_020));
        assert_eq!(*sent.lock().unwrap(), [(1, first), (2, first), (1, second)]);
    }

    #[tokio::test]
    async fn clients_that_do_not_call_are_forgotten() {
        let (counters, windows) = (Counters::default(), Windows::<ClientId>::default());
        let now = Timestamp::from_seconds(1_000);
        windows.count(&"a".parse().unwrap(), Rate { per_second: 1, burst: 1 }, 1, now).unwrap();
        windows.flush(&counters, now, now).await.unwrap();
        assert_eq!(windows.by_account.len(), 1);
        windows.flush(&counters, now, now).await.unwrap();
        assert_eq!(windows.by_account.len(), 0);
    }
}
