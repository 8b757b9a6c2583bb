//! Budgets: so many calls for a peer, for a client, and a small one for failed authentication. Each is a `governor` limiter per
//! key in a table of bounded size; past the bound new keys are refused and old ones keep their state (L16).

mod window;

use std::{
    collections::HashMap as Plans,
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
    state::{InMemoryState, NotKeyed},
};
use papaya::HashMap;

use self::window::Windows;
use crate::{
    config::{self, Rate},
    error::Error,
    model::{ClientId, Peer, PlanName, Site, Timestamp},
    store::{CounterStore, StoreError},
};

/// The limiters' clock: the newest time that a call brought along, in nanoseconds.
#[derive(Clone, Default)]
struct Ticks(Arc<AtomicU64>);

impl Ticks {
    fn reach(&self, now: Timestamp) {
        let nanos = u64::try_from(now.millis()).unwrap_or(0).saturating_mul(1_000_000);
        // Read first: most calls come within the same millisecond, and then no core takes the line from the others.
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

type Limiter = RateLimiter<NotKeyed, InMemoryState, Ticks, NoOpMiddleware<Nanos>>;

/// One key's budget.
struct Budget {
    limiter: Limiter,
    /// When it was last drawn on, in milliseconds.
    used: AtomicI64,
    /// Until when it is known to be empty, in milliseconds.
    empty_until: AtomicI64,
}

/// Budgets of one kind, by key.
struct Budgets<K> {
    quota: Quota,
    /// A budget not drawn on for this long is full again, and as good as new.
    refill: Duration,
    cap: usize,
    ticks: Ticks,
    by_key: HashMap<K, Arc<Budget>>,
}

impl<K: Hash + Eq + Clone> Budgets<K> {
    fn new(rate: Rate, cap: usize, ticks: &Ticks) -> Self {
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

    /// Draws one; the error says when it is worth asking again.
    fn draw(&self, key: &K, now: Timestamp) -> Result<(), Error> {
        self.draw_many(key, 1, now)
    }

    fn draw_many(&self, key: &K, work: u32, now: Timestamp) -> Result<(), Error> {
        self.ticks.reach(now);
        let Some(budget) = self.budget(key) else {
            metrics::counter!("jeton_limiter_full_total").increment(1);
            return Err(Error::Throttled { retry_after: self.refill });
        };
        budget.used.store(now.millis(), Relaxed);
        let work = NonZeroU32::new(work.min(self.quota.burst_size().get())).unwrap_or(NonZeroU32::MIN);
        let wait: Duration = match budget.limiter.check_n(work) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(until)) => until.earliest_possible().duration_since(self.ticks.now()).into(),
            // More than the burst, which was ruled out.
            Err(_) => self.refill,
        };
        let retry_after = wait.max(Duration::from_millis(1));
        budget.empty_until.store((now + retry_after).millis(), Relaxed);
        Err(Error::Throttled { retry_after })
    }

    /// Whether the key's budget was found empty and cannot have refilled yet.
    fn is_empty(&self, key: &K, now: Timestamp) -> Option<Duration> {
        let budget = self.by_key.pin().get(key).cloned()?;
        let until = Timestamp::from_millis(budget.empty_until.load(Relaxed));
        (now < until).then(|| until.since(now))
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
            Arc::new(Budget {
                limiter: RateLimiter::direct_with_clock(self.quota, self.ticks.clone()),
                used: AtomicI64::new(0),
                empty_until: AtomicI64::new(0),
            })
        };
        Some(table.get_or_insert_with(key.clone(), fresh).clone())
    }

    /// Forgets budgets that are full again.
    fn sweep(&self, now: Timestamp) {
        self.by_key.pin().retain(|_, budget| now.since(Timestamp::from_millis(budget.used.load(Relaxed))) < self.refill);
    }
}

/// All budgets of a node.
pub struct Limits {
    peers: Budgets<Site>,
    failures: Budgets<Site>,
    guesses: Budgets<(Site, ClientId)>,
    plans: Plans<String, (Rate, Budgets<ClientId>)>,
    shared: Windows,
}

impl Limits {
    /// As configured; `plans` holds "standard".
    pub fn new(config: &config::Limits) -> Self {
        let ticks = Ticks::default();
        let cap = config.tracked_keys;
        Self {
            peers: Budgets::new(config.per_peer, cap, &ticks),
            failures: Budgets::new(config.failed_authentication, cap, &ticks),
            guesses: Budgets::new(config.failed_authentication, cap, &ticks),
            plans: config.plans.iter().map(|(name, rate)| (name.clone(), (*rate, Budgets::new(*rate, cap, &ticks)))).collect(),
            shared: Windows::default(),
        }
    }

    /// A call from a peer; forwarded headers never count (L11).
    pub fn peer(&self, peer: Peer, now: Timestamp) -> Result<(), Error> {
        match peer {
            Peer::Ip(address) => self.peers.draw(&address.into(), now),
            Peer::Local => Ok(()),
        }
    }

    /// A call of an authenticated client under its plan; a plan that is no longer configured counts as "standard".
    pub fn client(&self, client: &ClientId, plan: &PlanName, now: Timestamp) -> Result<(), Error> {
        self.client_many(client, plan, 1, now)
    }

    /// A call that does the work of many; one that is more than the plan's burst counts as the whole burst.
    pub fn client_many(&self, client: &ClientId, plan: &PlanName, work: u32, now: Timestamp) -> Result<(), Error> {
        let plan = self.plans.get(plan.as_str()).or_else(|| self.plans.get(PlanName::standard().as_str()));
        let Some((rate, budgets)) = plan else { return Ok(()) };
        budgets.draw_many(client, work, now)?;
        self.shared.count(client, *rate, work, now).map_err(|retry_after| Error::Throttled { retry_after })
    }

    /// Whether there is a plan of this name.
    pub fn has_plan(&self, plan: &PlanName) -> bool {
        self.plans.contains_key(plan.as_str())
    }

    /// A failed authentication: the error replaces the answer once the peer's budget for them is used up.
    pub fn failed(&self, peer: Peer, now: Timestamp) -> Result<(), Error> {
        match peer {
            Peer::Ip(address) => self.failures.draw(&address.into(), now),
            Peer::Local => Ok(()),
        }
    }

    /// Refuses a peer that has guessed this client's secret too often: asked before one that was chosen by a person is tried.
    /// Only this peer's guesses at this client count, so that no neighbour can lock a client out.
    pub fn may_guess(&self, peer: Peer, client: &ClientId, now: Timestamp) -> Result<(), Error> {
        let Peer::Ip(address) = peer else { return Ok(()) };
        match self.guesses.is_empty(&(address.into(), client.clone()), now) {
            Some(retry_after) => Err(Error::Throttled { retry_after }),
            None => Ok(()),
        }
    }

    /// Counts a wrong guess at a secret that was chosen by a person; whether there is such a client does not matter.
    pub fn guessed(&self, peer: Peer, client: &ClientId, now: Timestamp) {
        if let Peer::Ip(address) = peer {
            // Drawn dry or not, the answer is the caller's to give; the next guess is refused.
            let _ = self.guesses.draw(&(address.into(), client.clone()), now);
        }
    }

    /// Forgets what is full again; every few seconds, off the request path.
    pub fn sweep(&self, now: Timestamp) {
        self.peers.sweep(now);
        self.failures.sweep(now);
        self.guesses.sweep(now);
        for (_, budgets) in self.plans.values() {
            budgets.sweep(now);
        }
    }

    /// Tells the store's counters of the calls since the last time, and learns what other nodes let through: once a second, so
    /// that each node lets through at most a second's calls and a burst more than the window has. `agreed` is the moment `now` by
    /// the clock that all nodes have in common.
    pub async fn share(
        &self,
        store: &(impl CounterStore + ?Sized),
        now: Timestamp,
        agreed: Timestamp,
    ) -> Result<(), StoreError> {
        self.shared.flush(store, now, agreed).await
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::clock::{Clock, ManualClock};

    fn limits(cap: usize) -> (Arc<ManualClock>, Limits) {
        let clock = Arc::new(ManualClock::at(Timestamp::from_seconds(1_000_000)));
        let rate = Rate { per_second: 1, burst: 3 };
        let config = config::Limits {
            per_peer: rate,
            failed_authentication: rate,
            tracked_keys: cap,
            plans: [("standard".to_owned(), rate)].into(),
            ..crate::config::Config::default().limits
        };
        (clock, Limits::new(&config))
    }

    fn peer(text: &str) -> Peer {
        Peer::Ip(text.parse().unwrap())
    }

    #[test]
    fn a_burst_is_granted_and_then_the_rate() {
        let (clock, limits) = limits(10);
        let drawn = (0..5).filter(|_| limits.peer(peer("10.0.0.1"), clock.now()).is_ok()).count();
        assert_eq!(drawn, 3);
        clock.advance(Duration::from_secs(2));
        let drawn = (0..5).filter(|_| limits.peer(peer("10.0.0.1"), clock.now()).is_ok()).count();
        assert_eq!(drawn, 2);
        let Err(Error::Throttled { retry_after }) = limits.peer(peer("10.0.0.1"), clock.now()) else { panic!("granted") };
        assert!(retry_after <= Duration::from_secs(1) && retry_after > Duration::ZERO, "{retry_after:?}");
    }

    /// L11: addresses of one /64 share a budget.
    #[test]
    fn a_slash_64_is_one_peer() {
        let (clock, limits) = limits(10);
        for n in 0..3 {
            assert!(limits.peer(peer(&format!("2001:db8:0:1::{n}")), clock.now()).is_ok());
        }
        assert!(limits.peer(peer("2001:db8:0:1:ffff::1"), clock.now()).is_err());
        assert!(limits.peer(peer("2001:db8:0:2::1"), clock.now()).is_ok());
    }

    /// L16: past the bound new keys are refused; a hot key is not reset by them, nor by the sweep.
    #[test]
    fn the_table_is_bounded_and_keeps_hot_keys() {
        let (clock, limits) = limits(2);
        for _ in 0..4 {
            let _ = limits.peer(peer("10.0.0.1"), clock.now());
        }
        assert!(limits.peer(peer("10.0.0.2"), clock.now()).is_ok());
        for n in 0..1_000_u32 {
            assert!(limits.peer(Peer::Ip(IpAddr::from((n + 0x0b00_0000).to_be_bytes())), clock.now()).is_err());
        }
        assert_eq!(limits.peers.by_key.len(), 2);
        limits.sweep(clock.now());
        assert!(limits.peer(peer("10.0.0.1"), clock.now()).is_err(), "still empty");
        clock.advance(Duration::from_secs(60));
        limits.sweep(clock.now());
        assert!(limits.peer(peer("11.0.0.1"), clock.now()).is_ok(), "there is room again");
    }

    #[test]
    fn failures_have_a_budget_of_their_own_that_refills() {
        let (clock, limits) = limits(10);
        let thief = peer("10.0.0.9");
        let answered = (0..4).filter(|_| limits.failed(thief, clock.now()).is_ok()).count();
        assert_eq!(answered, 3);
        assert!(limits.peer(thief, clock.now()).is_ok(), "calls are counted apart");
        clock.advance(Duration::from_secs(2));
        assert!(limits.failed(thief, clock.now()).is_ok());
    }

    /// L15: guesses at one client lock nobody else out, neither another client here nor the same client elsewhere.
    #[test]
    fn guesses_count_against_who_guesses_and_what_is_guessed() {
        let (clock, limits) = limits(10);
        let (here, there) = (peer("10.0.0.9"), peer("10.0.0.8"));
        let (one, other): (ClientId, ClientId) = ("one".parse().unwrap(), "other".parse().unwrap());
        assert!(limits.may_guess(here, &one, clock.now()).is_ok());
        for _ in 0..4 {
            limits.guessed(here, &one, clock.now());
        }
        assert!(limits.may_guess(here, &one, clock.now()).is_err());
        assert!(limits.may_guess(here, &other, clock.now()).is_ok());
        assert!(limits.may_guess(there, &one, clock.now()).is_ok());
        clock.advance(Duration::from_secs(2));
        assert!(limits.may_guess(here, &one, clock.now()).is_ok());
    }

    #[test]
    fn clients_are_counted_by_their_plan_and_unknown_plans_as_standard() {
        let (clock, limits) = limits(10);
        let id: ClientId = "a".parse().unwrap();
        let gone: PlanName = "gone".parse().unwrap();
        assert_eq!((0..5).filter(|_| limits.client(&id, &gone, clock.now()).is_ok()).count(), 3);
        assert!(!limits.has_plan(&gone));
        assert!(limits.client(&"b".parse().unwrap(), &PlanName::standard(), clock.now()).is_ok());
    }
}
