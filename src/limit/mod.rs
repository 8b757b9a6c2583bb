//! Rate limits: calls of each peer and each client, and wrong secrets.

mod alarm;
mod budget;
mod places;
mod revocations;
mod secret_guesses;
mod window;

use std::{collections::HashMap as Plans, time::Duration};

use self::{
    alarm::Alarm,
    budget::{Budgets, Ticks, throttled},
    places::Places,
    revocations::RevocationCounts,
    secret_guesses::SecretGuesses,
    window::Windows,
};
pub use self::{
    places::ReadPlace,
    secret_guesses::{Guess, GuessTarget},
};
use crate::{
    config::{self, Rate},
    error::Error,
    model::{ClientId, Peer, PeerKey, PlanName, Timestamp},
    store::{CounterStore, StoreError},
};

/// All budgets of a node.
pub struct Limits {
    peers: Budgets<PeerKey>,
    secret_guesses: SecretGuesses,
    alarm: Alarm<ClientId>,
    places: Places,
    revocations: RevocationCounts<ClientId>,
    plans: Plans<String, (Rate, Budgets<ClientId>)>,
    shared: Windows<ClientId>,
}

impl Limits {
    /// Creates the configured budgets; `plans` contains "standard".
    pub fn new(config: &config::Limits) -> Self {
        let ticks = Ticks::default();
        let cap = config.tracked_keys;
        Self {
            peers: Budgets::new(config.per_peer, cap, &ticks),
            secret_guesses: SecretGuesses::new(config.failed_authentication, cap, &ticks),
            alarm: Alarm::new(cap),
            places: Places::default(),
            revocations: RevocationCounts::new(config.revocations_per_client, cap),
            plans: config
                .plans
                .iter()
                .map(|(name, rate)| (name.clone(), (*rate, Budgets::new(*rate, cap, &ticks))))
                .collect(),
            shared: Windows::default(),
        }
    }

    /// Counts a call of a peer. The listener decides whose headers name another one (L11).
    pub fn peer(&self, peer: Peer, now: Timestamp) -> Result<(), Error> {
        peer.key().map_or(Ok(()), |key| self.peers.acquire(&key, now)).map_err(throttled)
    }

    /// Counts a call of an authenticated client under its plan; a plan that is no longer configured
    /// counts as "standard".
    pub fn client(&self, client: &ClientId, plan: &PlanName, now: Timestamp) -> Result<(), Error> {
        self.client_many(client, plan, 1, now)
    }

    /// Counts a call that does the work of many; more than the plan's burst counts as the whole
    /// burst.
    pub fn client_many(
        &self,
        client: &ClientId,
        plan: &PlanName,
        work: u32,
        now: Timestamp,
    ) -> Result<(), Error> {
        let Some((rate, budgets)) = self.plan(plan) else { return Ok(()) };
        budgets.acquire_many(client, work, now).map_err(throttled)?;
        self.shared.count(client, *rate, work, now).map_err(throttled)
    }

    /// Returns the rate of a plan; one that is no longer configured counts as "standard". `None` if
    /// that is missing too.
    pub fn rate_of(&self, plan: &PlanName) -> Option<Rate> {
        self.plan(plan).map(|(rate, _)| *rate)
    }

    fn plan(&self, plan: &PlanName) -> Option<&(Rate, Budgets<ClientId>)> {
        self.plans.get(plan.as_str()).or_else(|| self.plans.get(PlanName::standard().as_str()))
    }

    /// Returns the names of the rate plans, separated by commas.
    pub fn plan_names(&self) -> String {
        let mut names: Vec<&str> = self.plans.keys().map(AsRef::as_ref).collect();
        names.sort_unstable();
        names.join(", ")
    }

    /// Returns true if there is a plan of this name.
    pub fn has_plan(&self, plan: &PlanName) -> bool {
        self.plans.contains_key(plan.as_str())
    }

    /// Waits until an unauthenticated caller may read from the store; the number of concurrent
    /// reads of one network is bounded.
    pub async fn read_place(&self, peer: Peer) -> ReadPlace {
        self.places.take(peer).await
    }

    /// Pays for the comparison of one presented secret, in advance; `target` is `None` if there is
    /// no such client.
    pub fn guess(&self, peer: Peer, target: Option<GuessTarget>, now: Timestamp) -> Guess {
        self.secret_guesses.acquire(peer, target, now)
    }

    /// Refunds the payment for a secret that was right, or that was not compared.
    pub fn give_back(&self, guess: Guess) {
        self.secret_guesses.give_back(guess);
    }

    /// Records that a secret from a peer's network was wrong.
    pub fn failed(&self, peer: Peer, now: Timestamp) {
        self.secret_guesses.failed(peer, now);
    }

    /// Returns true if a recent secret from a peer's network was wrong.
    pub fn failed_lately(&self, peer: Peer, now: Timestamp) -> bool {
        self.secret_guesses.failed_lately(peer, now)
    }

    /// Counts a wrong secret of an existing client, from any peer; returns true once an hour, if
    /// there are too many.
    pub fn is_under_attack(&self, client: &ClientId, now: Timestamp) -> bool {
        self.alarm.failed(client, now)
    }

    /// Counts a revocation of a client's token or family that is kept for at most `length`. Returns
    /// false if the client has too many: then revoke all of its tokens instead, which needs no
    /// memory.
    pub fn remembers_revocation(
        &self,
        client: &ClientId,
        now: Timestamp,
        length: Duration,
    ) -> bool {
        self.revocations.admit(client, now, length)
    }

    /// Removes a counted revocation that the store did not accept.
    pub fn forgets_revocation(&self, client: &ClientId) {
        self.revocations.give_back(client);
    }

    /// Removes budgets that are full again; every few seconds, outside of calls.
    pub fn sweep(&self, now: Timestamp) {
        self.peers.sweep(now);
        self.secret_guesses.sweep(now);
        self.alarm.sweep(now);
        self.revocations.sweep(now);
        for (_, budgets) in self.plans.values() {
            budgets.sweep(now);
        }
    }

    /// Adds the calls since the last flush to the store's counters, and reads the totals of all
    /// nodes: once a second, so that each node admits at most a second's calls and a burst more
    /// than the window allows. `cluster_now` is the time `now` on the common clock.
    pub async fn share(
        &self,
        store: &(impl CounterStore + ?Sized),
        now: Timestamp,
        cluster_now: Timestamp,
    ) -> Result<(), StoreError> {
        self.shared.flush(store, now, cluster_now).await
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, sync::Arc, time::Duration};

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
        let Err(Error::Throttled { retry_after }) = limits.peer(peer("10.0.0.1"), clock.now())
        else {
            panic!("granted")
        };
        assert!(
            retry_after <= Duration::from_secs(1) && retry_after > Duration::ZERO,
            "{retry_after:?}"
        );
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
            assert!(
                limits
                    .peer(Peer::Ip(IpAddr::from((n + 0x0b00_0000).to_be_bytes())), clock.now())
                    .is_err()
            );
        }
        assert_eq!(limits.peers.len(), 2);
        limits.sweep(clock.now());
        assert!(limits.peer(peer("10.0.0.1"), clock.now()).is_err(), "still empty");
        clock.advance(Duration::from_secs(60));
        limits.sweep(clock.now());
        assert!(limits.peer(peer("11.0.0.1"), clock.now()).is_ok(), "there is room again");
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
