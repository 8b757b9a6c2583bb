//! One budget per key: a `governor` limiter each, in a table of bounded size. If the table is full,
//! new keys are refused and existing ones keep their state (L16).

use std::{
    hash::Hash,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, Reference},
    middleware::NoOpMiddleware,
    nanos::Nanos,
    state::{NotKeyed, StateStore},
};
use papaya::HashMap;

use crate::{config::Rate, error::Error, model::Timestamp};

/// Clock of the limiters: the latest time of any call, in nanoseconds.
#[derive(Clone, Default)]
pub(super) struct Ticks(Arc<AtomicU64>);

impl Ticks {
    fn advance(&self, now: Timestamp) {
        let nanos = u64::try_from(now.millis()).unwrap_or(0).saturating_mul(1_000_000);
        // Read first: most calls are in the same millisecond, and a read does not take the cache
        // line from other cores.
        if self.0.load(Relaxed) < nanos {
            self.0.fetch_max(nanos, Relaxed);
        }
    }
}

impl governor::clock::Clock for Ticks {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::new(self.0.load(Relaxed))
    }
}

/// State of one limiter: the time at which it is full again, in nanoseconds from its start.
/// `governor`'s own state has no refund.
#[derive(Clone, Default)]
struct Spent(Arc<AtomicU64>);

impl Spent {
    fn give_back(&self, by: Duration) {
        let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        let _ = self.0.fetch_update(Relaxed, Relaxed, |full_at| Some(full_at.saturating_sub(by)));
    }
}

impl StateStore for Spent {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut before = self.0.load(Relaxed);
        loop {
            let (decision, after) = decide(Some(Nanos::new(before)))?;
            match self.0.compare_exchange_weak(before, after.as_u64(), Relaxed, Relaxed) {
                Ok(_) => return Ok(decision),
                Err(newer) => before = newer,
            }
        }
    }
}

type Limiter = RateLimiter<NotKeyed, Spent, Ticks, NoOpMiddleware<Nanos>>;

/// One key's budget.
struct Budget {
    limiter: Limiter,
    spent: Spent,
    /// Time of the last use, in milliseconds.
    used: AtomicI64,
}

/// Budgets of one kind, by key.
pub(super) struct Budgets<K> {
    quota: Quota,
    /// Time after which an unused budget is full again, and the same as a new one.
    refill: Duration,
    cap: usize,
    ticks: Ticks,
    by_key: HashMap<K, Arc<Budget>>,
}

impl<K: Hash + Eq + Clone> Budgets<K> {
    pub(super) fn new(rate: Rate, cap: usize, ticks: &Ticks) -> Self {
        let per_second = NonZeroU32::new(rate.per_second).unwrap_or(NonZeroU32::MIN);
        let burst = NonZeroU32::new(rate.burst).unwrap_or(NonZeroU32::MIN);
        Self {
            quota: Quota::per_second(per_second).allow_burst(burst),
            refill: Duration::from_secs(u64::from(burst.get() / per_second.get()) + 1),
            cap,
            ticks: ticks.clone(),
            by_key: HashMap::new(),
        }
    }

    /// Acquires one unit; the error is the time to wait.
    pub(super) fn acquire(&self, key: &K, now: Timestamp) -> Result<(), Duration> {
        self.acquire_many(key, 1, now)
    }

    pub(super) fn acquire_many(&self, key: &K, work: u32, now: Timestamp) -> Result<(), Duration> {
        self.ticks.advance(now);
        let Some(budget) = self.budget(key) else {
            crate::metrics::METRICS.limiter_full.inc();
            return Err(self.refill);
        };
        budget.used.store(now.millis(), Relaxed);
        let work =
            NonZeroU32::new(work.min(self.quota.burst_size().get())).unwrap_or(NonZeroU32::MIN);
        let wait: Duration = match budget.limiter.check_n(work) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(until)) => until.earliest_possible().duration_since(self.ticks.now()).into(),
            // Cannot occur: the work is at most the burst.
            Err(_) => self.refill,
        };
        Err(wait.max(Duration::from_millis(1)))
    }

    /// Returns one unit. A budget that was removed meanwhile is full anyway.
    pub(super) fn give_back(&self, key: &K) {
        if let Some(budget) = self.by_key.pin().get(key) {
            budget.spent.give_back(self.quota.replenish_interval());
        }
    }

    /// Returns the time that an empty budget takes to be full again.
    pub(super) const fn refill(&self) -> Duration {
        self.refill
    }

    fn budget(&self, key: &K) -> Option<Arc<Budget>> {
        let table = self.by_key.pin();
        if let Some(budget) = table.get(key) {
            return Some(budget.clone());
        }
        if table.len() >= self.cap {
            return None;
        }
        let fresh = || {
            let spent = Spent::default();
            let limiter = RateLimiter::new(self.quota, spent.clone(), self.ticks.clone());
            Arc::new(Budget { limiter, spent, used: AtomicI64::new(0) })
        };
        Some(table.get_or_insert_with(key.clone(), fresh).clone())
    }

    /// Removes budgets that are full again.
    pub(super) fn sweep(&self, now: Timestamp) {
        self.by_key.pin().retain(|_, budget| {
            now.since(Timestamp::from_millis(budget.used.load(Relaxed))) < self.refill
        });
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }
}

/// Returns the error of a budget that is used up.
pub(super) fn throttled(retry_after: Duration) -> Error {
    Error::Throttled { retry_after }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(seconds)
    }

    #[test]
    fn a_draw_that_is_given_back_can_be_drawn_again_and_never_more() {
        let budgets = Budgets::new(Rate { per_second: 1, burst: 3 }, 10, &Ticks::default());
        for _ in 0..100 {
            assert_eq!(budgets.acquire(&"a", at(1_000)), Ok(()));
            budgets.give_back(&"a");
        }
        budgets.give_back(&"a");
        budgets.give_back(&"unknown");
        let drawn = (0..5).filter(|_| budgets.acquire(&"a", at(1_000)).is_ok()).count();
        assert_eq!(drawn, 3, "giving back makes no budget larger");
        budgets.give_back(&"a");
        assert_eq!((0..5).filter(|_| budgets.acquire(&"a", at(1_000)).is_ok()).count(), 1);
    }

    /// Drawn before the work and given back after it: many at once never get more than there is.
    #[test]
    fn many_at_once_hold_no_more_than_there_is() {
        let budgets = Budgets::new(Rate { per_second: 1, burst: 4 }, 10, &Ticks::default());
        let (held, most) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        let drawn =
                            (0..3).filter(|_| budgets.acquire(&"a", at(1_000)).is_ok()).count();
                        let now = held.fetch_add(drawn as u64, Relaxed) + drawn as u64;
                        most.fetch_max(now, Relaxed);
                        held.fetch_sub(drawn as u64, Relaxed);
                        (0..drawn).for_each(|_| budgets.give_back(&"a"));
                    }
                });
            }
        });
        assert!(most.load(Relaxed) <= 4, "{most:?}");
        assert_eq!((0..9).filter(|_| budgets.acquire(&"a", at(1_000)).is_ok()).count(), 4);
    }
}
