//! Fair queue of a bounded pool. Its keys are networks for unauthenticated callers, and tenants for
//! administrators. No key can fill the pool against others.
//!
//! | rule | why |
//! |--|--|
//! | a key runs one call at a time | a peer with many callers does not take all cores |
//! | a key gets at most a quarter of the queue | one address cannot fill it |
//! | keys of the second class get at most half of the queue | addresses that guess cannot fill it |
//! | keys of the second class run after the others | guesses do not delay other callers |
//! | keys take turns | many callers of a key get no more turns than few |

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// The queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many password hashes in progress")]
pub struct Busy;

/// Priority of a waiting key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// May use the whole queue.
    #[default]
    First,
    /// May use half of the queue, after the others.
    Second,
}

/// The pool.
pub(super) struct Lanes<K: Hash + Eq + Clone>(Arc<Mutex<LaneState<K>>>);

struct LaneState<K> {
    parallel: usize,
    queue: usize,
    running: usize,
    by_key: HashMap<K, Lane>,
    /// Keys with a waiting caller, the next one first.
    turns: VecDeque<K>,
}

#[derive(Default)]
struct Lane {
    running: bool,
    class: Class,
    waiting: VecDeque<oneshot::Sender<()>>,
}

/// The right to run, released on drop.
pub(super) struct Permit<K: Hash + Eq + Clone> {
    lanes: Arc<Mutex<LaneState<K>>>,
    key: K,
}

impl<K: Hash + Eq + Clone> Lanes<K> {
    /// Creates a pool that runs up to `parallel` calls (at least one) and queues up to `queue`.
    pub(super) fn new(parallel: usize, queue: usize) -> Self {
        let state = LaneState {
            parallel: parallel.max(1),
            queue,
            running: 0,
            by_key: HashMap::new(),
            turns: VecDeque::new(),
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Waits for a turn.
    ///
    /// # Errors
    ///
    /// The queue is full; returned at once.
    pub(super) async fn enter(&self, key: K, class: Class) -> Result<Permit<K>, Busy> {
        let given = {
            let mut state = lock(&self.0);
            let given = state.queue(&key, class)?;
            state.give_turns();
            given
        };
        Turn { given: Some(given), lanes: Arc::clone(&self.0), key }.wait().await
    }
}

/// A place in the queue. A caller that disconnects passes on the turn that it just got.
struct Turn<K: Hash + Eq + Clone> {
    given: Option<oneshot::Receiver<()>>,
    lanes: Arc<Mutex<LaneState<K>>>,
    key: K,
}

impl<K: Hash + Eq + Clone> Turn<K> {
    async fn wait(mut self) -> Result<Permit<K>, Busy> {
        if let Some(given) = &mut self.given {
            given.await.map_err(|_| Busy)?;
        }
        self.given = None;
        Ok(Permit { lanes: Arc::clone(&self.lanes), key: self.key.clone() })
    }
}

impl<K: Hash + Eq + Clone> Drop for Turn<K> {
    fn drop(&mut self) {
        let Some(mut given) = self.given.take() else { return };
        given.close();
        if given.try_recv().is_ok() {
            drop(Permit { lanes: Arc::clone(&self.lanes), key: self.key.clone() });
        }
    }
}

impl<K: Hash + Eq + Clone> Drop for Permit<K> {
    fn drop(&mut self) {
        let mut state = lock(&self.lanes);
        state.release(&self.key);
        state.give_turns();
    }
}

impl<K: Hash + Eq + Clone> LaneState<K> {
    fn queue(&mut self, key: &K, class: Class) -> Result<oneshot::Receiver<()>, Busy> {
        if !self.has_room(key, class) {
            // Callers that disconnected while they waited are removed only here and at their turn.
            self.forget_gone();
            if !self.has_room(key, class) {
                return Err(Busy);
            }
        }
        let (sender, turn) = oneshot::channel();
        let lane = self.by_key.entry(key.clone()).or_default();
        // Kept as long as a caller of its key runs or waits.
        lane.class = lane.class.max(class);
        if lane.waiting.is_empty() {
            self.turns.push_back(key.clone());
        }
        lane.waiting.push_back(sender);
        Ok(turn)
    }

    fn has_room(&self, key: &K, class: Class) -> bool {
        let lane = self.by_key.get(key);
        if self.running < self.parallel && lane.is_none() {
            return true;
        }
        let waiting = |from: Class| -> usize {
            let lanes = self.by_key.values().filter(|lane| lane.class >= from);
            lanes.map(|lane| lane.waiting.len()).sum()
        };
        let share = self.queue.div_ceil(4);
        lane.map_or(0, |lane| lane.waiting.len()) < share
            && waiting(Class::First) < self.queue
            && (class == Class::First || waiting(Class::Second) < self.queue.div_ceil(2))
    }

    fn forget_gone(&mut self) {
        self.by_key.retain(|_, lane| {
            lane.waiting.retain(|sender| !sender.is_closed());
            lane.running || !lane.waiting.is_empty()
        });
        let by_key = &self.by_key;
        self.turns.retain(|key| by_key.get(key).is_some_and(|lane| !lane.waiting.is_empty()));
    }

    fn give_turns(&mut self) {
        while self.running < self.parallel {
            let first = |class: Class| {
                let lane_is_next = |lane: &Lane| !lane.running && lane.class == class;
                self.turns.iter().position(|key| self.by_key.get(key).is_some_and(lane_is_next))
            };
            let next = first(Class::First).or_else(|| first(Class::Second));
            let Some(key) = next.and_then(|at| self.turns.remove(at)) else { return };
            let Some(lane) = self.by_key.get_mut(&key) else { continue };
            while let Some(sender) = lane.waiting.pop_front() {
                if sender.send(()).is_ok() {
                    lane.running = true;
                    self.running += 1;
                    break;
                }
            }
            if !lane.waiting.is_empty() {
                self.turns.push_back(key);
            } else if !lane.running {
                self.by_key.remove(&key);
            }
        }
    }

    fn release(&mut self, key: &K) {
        self.running = self.running.saturating_sub(1);
        if let Some(lane) = self.by_key.get_mut(key) {
            lane.running = false;
            if lane.waiting.is_empty() {
                self.by_key.remove(key);
            }
        }
    }
}

fn lock<K>(state: &Mutex<LaneState<K>>) -> MutexGuard<'_, LaneState<K>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{future::Future, net::IpAddr, pin::Pin};

    use futures_util::FutureExt;

    use super::*;
    use crate::model::PeerKey;

    type Origin = (PeerKey, Class);
    type Waiting<'a> = Pin<Box<dyn Future<Output = Result<Permit<PeerKey>, Busy>> + 'a>>;

    fn from(address: &str) -> Origin {
        (PeerKey::network(address.parse::<IpAddr>().unwrap()), Class::First)
    }

    fn failed(address: &str) -> Origin {
        (from(address).0, Class::Second)
    }

    /// Enters and looks once: a permit, a refusal, or a place in the queue.
    fn enter(
        lanes: &Lanes<PeerKey>,
        (peer, class): Origin,
    ) -> (Option<Result<Permit<PeerKey>, Busy>>, Waiting<'_>) {
        let mut waiting: Waiting<'_> = Box::pin(lanes.enter(peer, class));
        let now = waiting.as_mut().now_or_never();
        (now, waiting)
    }

    fn runs(lanes: &Lanes<PeerKey>, origin: Origin) -> Permit<PeerKey> {
        enter(lanes, origin).0.expect("at once").expect("a permit")
    }

    fn waits(lanes: &Lanes<PeerKey>, origin: Origin) -> Waiting<'_> {
        let (now, waiting) = enter(lanes, origin);
        assert!(now.is_none(), "it waits");
        waiting
    }

    fn is_refused(lanes: &Lanes<PeerKey>, origin: Origin) -> bool {
        matches!(enter(lanes, origin).0, Some(Err(Busy)))
    }

    fn has_turn(waiting: &mut Waiting<'_>) -> Option<Permit<PeerKey>> {
        waiting.as_mut().now_or_never().map(|permit| permit.expect("a permit"))
    }

    /// AZ1, TL2, L14: sixty callers of one address hold one core and a quarter of the queue;
    /// another address runs at once.
    #[test]
    fn one_site_leaves_room_for_the_others() {
        let lanes = Lanes::new(2, 32);
        let _core = runs(&lanes, from("10.0.0.1"));
        let _waiting: Vec<_> = (0..8).map(|_| waits(&lanes, from("10.0.0.1"))).collect();
        for _ in 0..60 {
            assert!(is_refused(&lanes, from("10.0.0.1")));
        }
        let _other = runs(&lanes, from("10.0.0.2"));
        let _waits = waits(&lanes, from("10.0.0.3"));
    }

    /// A flood of many callers gets no more turns than a single one.
    #[test]
    fn sites_take_turns() {
        let lanes = Lanes::new(1, 32);
        let core = runs(&lanes, from("10.0.0.1"));
        let mut flood: Vec<_> = (0..8).map(|_| waits(&lanes, from("10.0.0.1"))).collect();
        let mut other = waits(&lanes, from("10.0.0.2"));
        drop(core);
        // The flood was first in the queue.
        let core = has_turn(&mut flood[0]).expect("its turn");
        assert!(has_turn(&mut other).is_none());
        drop(core);
        let core = has_turn(&mut other).expect("its turn, though seven came before");
        assert!(has_turn(&mut flood[1]).is_none());
        drop(core);
        assert!(has_turn(&mut flood[1]).is_some());
    }

    /// L15: addresses that guess leave half of the queue to those that do not, and the next turn.
    #[test]
    fn sites_that_failed_lately_come_after_the_others() {
        let lanes = Lanes::new(1, 8);
        let core = runs(&lanes, failed("10.0.0.1"));
        let mut guessing: Vec<_> =
            (2..6).map(|n| waits(&lanes, failed(&format!("10.0.0.{n}")))).collect();
        assert!(is_refused(&lanes, failed("10.0.0.7")), "they have half of the queue");
        let mut right = waits(&lanes, from("10.0.1.1"));
        drop(core);
        assert!(guessing.iter_mut().all(|one| has_turn(one).is_none()));
        let core = has_turn(&mut right).expect("its turn");
        drop(core);
        assert!(has_turn(&mut guessing[0]).is_some());
    }

    /// IPv6: a /48 is one customer, however many of its /64 it uses.
    #[test]
    fn a_slash_48_is_one_site() {
        let lanes = Lanes::new(2, 4);
        let _core = runs(&lanes, from("2001:db8:1:1::1"));
        let _waits = waits(&lanes, from("2001:db8:1:2::1"));
        assert!(is_refused(&lanes, from("2001:db8:1:3::1")));
        let _other = runs(&lanes, from("2001:db8:2:1::1"));
    }

    /// The queue as a whole is bounded, whichever callers wait in it.
    #[test]
    fn many_sites_fill_the_queue_and_no_more() {
        let lanes = Lanes::new(1, 4);
        let _core = runs(&lanes, from("10.0.0.1"));
        let _waiting: Vec<_> =
            (2..6).map(|n| waits(&lanes, from(&format!("10.0.0.{n}")))).collect();
        assert!(is_refused(&lanes, from("10.0.0.6")));
        let none = Lanes::new(1, 0);
        let core = runs(&none, from("10.0.0.1"));
        assert!(is_refused(&none, from("10.0.0.2")));
        drop(core);
        let _core = runs(&none, from("10.0.0.2"));
    }

    /// L14: callers that hang up leave neither a place nor a turn behind, also one that was just
    /// given its turn.
    #[test]
    fn callers_that_hang_up_leave_nothing_behind() {
        let lanes = Lanes::new(1, 4);
        for _ in 0..20 {
            let core = runs(&lanes, from("10.0.0.1"));
            let gone = waits(&lanes, from("10.0.0.2"));
            let also_gone = waits(&lanes, from("10.0.0.3"));
            let mut last = waits(&lanes, from("10.0.0.4"));
            drop(also_gone);
            drop(core);
            assert!(has_turn(&mut last).is_none());
            drop(gone);
            assert!(has_turn(&mut last).is_some());
        }
        // Places of those that are gone are free at once.
        let _core = runs(&lanes, from("10.0.0.1"));
        let gone: Vec<_> = (2..6).map(|n| waits(&lanes, from(&format!("10.0.0.{n}")))).collect();
        drop(gone);
        let _waits = waits(&lanes, from("10.0.0.6"));
        assert_eq!(lock(&lanes.0).by_key.len(), 2);
    }
}
