//! Budgets of presented secrets. A unit is acquired before a secret is compared and returned if it
//! was right: wrong secrets are paid for, and concurrent callers cannot exceed the budget.
//!
//! | budget of the peer | budget of the peer at this secret | comparison | reply to a wrong one |
//! |--|--|--|--|
//! | acquired | - | also by argon2id | INVALID_CLIENT |
//! | empty | acquired | cheap ones only: a generated or a remembered secret | SLOW_DOWN |
//! | empty | empty, or there is no such client | none | SLOW_DOWN |
//!
//! The reply depends on the peer alone, so that it does not reveal which names exist (A02). With
//! the second budget, guesses at other names neither hide guesses at a client nor lock out other
//! clients of the address.

use std::{
    sync::atomic::{AtomicI64, Ordering::Relaxed},
    time::Duration,
};

use papaya::HashMap;

use super::budget::{Budgets, Ticks};
use crate::{
    config::Rate,
    error::Error,
    model::{ClientId, Peer, PeerKey, SecretId, Timestamp},
};

/// A secret of an existing account that a caller claims to have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GuessTarget {
    /// A secret of a client.
    Client {
        /// The client.
        id: ClientId,
        /// Id of the secret, if it names a valid one.
        secret: Option<SecretId>,
    },
}

/// Payment for comparing one presented secret.
#[must_use]
pub struct Guess {
    payer: Payer,
    /// Time until the peer's budget has one again, if it has none.
    retry_after: Option<Duration>,
}

enum Payer {
    /// This process itself needs no budget.
    Local,
    Peer(PeerKey),
    Target(PeerKey, GuessTarget),
    None,
}

impl Guess {
    /// Returns true if the secret may be compared with generated and remembered ones.
    pub const fn may_compare(&self) -> bool {
        !matches!(self.payer, Payer::None)
    }

    /// Returns true if the secret may be compared by argon2id too.
    pub const fn may_hash(&self) -> bool {
        self.retry_after.is_none()
    }

    /// Returns the error of a refused secret, compared or not.
    pub const fn refusal(&self) -> Error {
        match self.retry_after {
            Some(retry_after) => Error::Throttled { retry_after },
            None => Error::InvalidClient,
        }
    }
}

pub(super) struct SecretGuesses {
    peers: Budgets<PeerKey>,
    targets: Budgets<(PeerKey, GuessTarget)>,
    failures: Failures,
}

/// Time of the last wrong secret from each network, in milliseconds. By network, because a caller
/// may have 65,536 of the /64 that budgets use.
struct Failures {
    by_network: HashMap<PeerKey, AtomicI64>,
    cap: usize,
}

impl Failures {
    /// Records a failure. If the table is full, new networks are not recorded: they are queued like
    /// networks without a failure, under the same budgets.
    fn note(&self, network: PeerKey, now: Timestamp) {
        let table = self.by_network.pin();
        if table.len() >= self.cap && !table.contains_key(&network) {
            crate::metrics::METRICS.limiter_full.inc();
            return;
        }
        table.get_or_insert_with(network, || AtomicI64::new(i64::MIN)).store(now.millis(), Relaxed);
    }

    fn is_within(&self, period: Duration, network: PeerKey, now: Timestamp) -> bool {
        let last = self
            .by_network
            .pin()
            .get(&network)
            .map(|last| Timestamp::from_millis(last.load(Relaxed)));
        last.is_some_and(|last| now.since(last) < period)
    }

    fn sweep(&self, period: Duration, now: Timestamp) {
        self.by_network
            .pin()
            .retain(|_, last| now.since(Timestamp::from_millis(last.load(Relaxed))) < period);
    }
}

impl SecretGuesses {
    pub(super) fn new(rate: Rate, cap: usize, ticks: &Ticks) -> Self {
        let failures = Failures { by_network: HashMap::new(), cap };
        Self {
            peers: Budgets::new(rate, cap, ticks),
            targets: Budgets::new(rate, cap, ticks),
            failures,
        }
    }

    /// Acquires the budget of one secret; `target` is `None` if there is no such client. A full
    /// table acquires nothing.
    pub(super) fn acquire(&self, peer: Peer, target: Option<GuessTarget>, now: Timestamp) -> Guess {
        let Some(peer) = peer.key() else {
            return Guess { payer: Payer::Local, retry_after: None };
        };
        let Err(retry_after) = self.peers.acquire(&peer, now) else {
            return Guess { payer: Payer::Peer(peer), retry_after: None };
        };
        let paid = target
            .map(|target| (peer, target))
            .filter(|key| self.targets.acquire(key, now).is_ok());
        let payer = paid.map_or(Payer::None, |(peer, target)| Payer::Target(peer, target));
        Guess { payer, retry_after: Some(retry_after) }
    }

    /// Returns the budget of a secret that was right, or that was not compared.
    pub(super) fn give_back(&self, guess: Guess) {
        match guess.payer {
            Payer::Local | Payer::None => {}
            Payer::Peer(peer) => self.peers.give_back(&peer),
            Payer::Target(peer, target) => self.targets.give_back(&(peer, target)),
        }
    }

    /// Records that a secret from the peer's network was wrong.
    pub(super) fn failed(&self, peer: Peer, now: Timestamp) {
        if let Some(network) = peer.network() {
            self.failures.note(network, now);
        }
    }

    /// Returns true if a secret from the peer's network was wrong within the time in which a budget
    /// refills.
    pub(super) fn failed_lately(&self, peer: Peer, now: Timestamp) -> bool {
        peer.network()
            .is_some_and(|network| self.failures.is_within(self.peers.refill(), network, now))
    }

    pub(super) fn sweep(&self, now: Timestamp) {
        self.peers.sweep(now);
        self.targets.sweep(now);
        self.failures.sweep(self.peers.refill(), now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_000_000);

    fn guesses(cap: usize) -> SecretGuesses {
        SecretGuesses::new(Rate { per_second: 1, burst: 3 }, cap, &Ticks::default())
    }

    fn peer(last: u8) -> Peer {
        Peer::Ip([10, 0, 0, last].into())
    }

    fn at(client: &str, secret: Option<&str>) -> Option<GuessTarget> {
        let secret = secret.map(|secret| secret.parse().unwrap());
        Some(GuessTarget::Client { id: client.parse().unwrap(), secret })
    }

    /// Counts of `count` secrets: those compared by argon2id, and those compared at all.
    fn judged(
        guesses: &SecretGuesses,
        peer: Peer,
        target: impl Fn() -> Option<GuessTarget>,
        count: usize,
    ) -> (usize, usize) {
        let drawn: Vec<Guess> = (0..count).map(|_| guesses.acquire(peer, target(), NOW)).collect();
        (
            drawn.iter().filter(|one| one.may_hash()).count(),
            drawn.iter().filter(|one| one.may_compare()).count(),
        )
    }

    /// AZ1, TL2: a new name for each guess is no new budget.
    #[test]
    fn invented_names_share_the_budget_of_their_peer() {
        let guesses = guesses(1_000);
        assert_eq!(judged(&guesses, peer(1), || None, 60), (3, 3));
        assert_eq!(judged(&guesses, peer(2), || None, 60), (3, 3), "another peer has its own");
        assert_eq!(
            (guesses.peers.len(), guesses.targets.len()),
            (2, 0),
            "and they take no place of a client"
        );
    }

    /// AZ7: noise at other names leaves guesses at a client a budget, and past that nothing is
    /// compared.
    #[test]
    fn a_client_has_a_budget_of_its_own_at_each_peer() {
        let guesses = guesses(1_000);
        let _ = judged(&guesses, peer(1), || None, 60);
        assert_eq!(judged(&guesses, peer(1), || at("orders", None), 60), (0, 3));
        assert_eq!(judged(&guesses, peer(1), || at("billing", None), 60), (0, 3), "another client");
        assert_eq!(
            judged(&guesses, peer(1), || at("orders", Some("s1")), 60),
            (0, 3),
            "a secret that is valid"
        );
        assert_eq!(judged(&guesses, peer(2), || at("orders", None), 60), (3, 6), "another peer");
    }

    /// A02: whether there is such a client changes nothing in the answer, whatever came before.
    #[test]
    fn the_answer_does_not_tell_which_names_exist() {
        let answers = |target: &dyn Fn() -> Option<GuessTarget>| {
            let guesses = guesses(1_000);
            let times = (0..200).map(|n| NOW + Duration::from_millis(n * 70));
            let answers: Vec<_> =
                times.map(|now| guesses.acquire(peer(1), target(), now).retry_after).collect();
            answers
        };
        assert_eq!(answers(&|| None), answers(&|| at("orders", None)));
    }

    /// L15: right secrets cost nothing, however many.
    #[test]
    fn what_is_given_back_can_be_drawn_again() {
        let guesses = guesses(1_000);
        for _ in 0..100 {
            let guess = guesses.acquire(peer(1), at("orders", None), NOW);
            assert!(guess.may_hash());
            guesses.give_back(guess);
        }
        let _ = judged(&guesses, peer(1), || None, 3);
        for _ in 0..100 {
            let guess = guesses.acquire(peer(1), at("orders", None), NOW);
            assert!(guess.may_compare() && !guess.may_hash());
            guesses.give_back(guess);
        }
    }

    /// TL9, L16: a full table pays for nothing that it does not know.
    #[test]
    fn a_full_table_fails_closed() {
        let guesses = guesses(2);
        assert_eq!(judged(&guesses, peer(1), || None, 3), (3, 3));
        assert_eq!(judged(&guesses, peer(2), || None, 2), (2, 2));
        assert_eq!(judged(&guesses, peer(3), || None, 100), (0, 0), "no room for another peer");
        assert_eq!(judged(&guesses, peer(1), || at("a", None), 9), (0, 3));
        assert_eq!(judged(&guesses, peer(1), || at("b", None), 9), (0, 3));
        assert_eq!(
            judged(&guesses, peer(1), || at("victim", None), 100),
            (0, 0),
            "nor for another client"
        );
        assert_eq!(
            judged(&guesses, peer(2), || None, 9),
            (1, 1),
            "who is known keeps what is left"
        );
        guesses.sweep(NOW + Duration::from_secs(60));
        assert_eq!(judged(&guesses, peer(3), || at("victim", None), 100), (3, 6));
    }

    #[test]
    fn a_peer_is_known_to_have_failed_until_its_budget_is_full_again() {
        let guesses = guesses(10);
        guesses.give_back(guesses.acquire(peer(1), None, NOW));
        assert!(!guesses.failed_lately(peer(1), NOW), "it was right");
        guesses.failed(peer(1), NOW);
        assert!(guesses.failed_lately(peer(1), NOW) && !guesses.failed_lately(peer(2), NOW));
        assert!(!guesses.failed_lately(peer(1), NOW + Duration::from_secs(4)));
    }

    /// AZ1: another /64 of the same /48 is the same caller.
    #[test]
    fn a_network_that_failed_is_known_by_all_of_its_peers() {
        let guesses = guesses(2);
        let at = |address: &str| Peer::Ip(address.parse().unwrap());
        guesses.failed(at("2001:db8:1:1::1"), NOW);
        assert!(guesses.failed_lately(at("2001:db8:1:ffff::1"), NOW));
        assert!(!guesses.failed_lately(at("2001:db8:2:1::1"), NOW), "another network");
        for n in 0..50 {
            guesses.failed(at(&format!("2001:db8:{n}::1")), NOW);
        }
        assert_eq!(guesses.failures.by_network.len(), 2);
        assert!(guesses.failed_lately(at("2001:db8:1:2::1"), NOW), "who is known stays known");
        guesses.sweep(NOW + Duration::from_secs(4));
        assert!(guesses.failures.by_network.is_empty());
    }

    #[test]
    fn this_process_itself_has_no_budget() {
        let guesses = guesses(1);
        assert_eq!(judged(&guesses, Peer::Local, || at("orders", None), 100), (100, 100));
    }
}
