//! Turns at a bounded pool, shared fairly among sites: no address fills it against others.
//!
//! | rule | why |
//! |--|--|
//! | one site runs one at a time | a site with many callers leaves the other cores to others |
//! | one site waits with a quarter of the queue at most | one address cannot fill it |
//! | sites that lately failed wait with half of the queue at most, and after the others | nor can some addresses |
//! | sites take turns | many callers get no more turns than few |

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::model::Site;

/// More are waiting than may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many password hashes at once")]
pub struct Busy;

/// A caller as the pool sees it.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// Its network, for an IPv6 customer has 65,536 of the /64 that budgets go by; `None` for this process itself.
    pub network: Option<Site>,
    /// Whether a secret from there was wrong lately.
    pub failed_lately: bool,
}

/// The pool.
pub(super) struct Lanes(Arc<Mutex<State>>);

struct State {
    parallel: usize,
    queue: usize,
    running: usize,
    by_site: HashMap<Option<Site>, Lane>,
    /// Sites with somebody waiting, the next one first.
    turns: VecDeque<Option<Site>>,
}

#[derive(Default)]
struct Lane {
    running: bool,
    failed_lately: bool,
    waiting: VecDeque<oneshot::Sender<()>>,
}

/// The right to run, given back when it is dropped.
pub(super) struct Permit {
    lanes: Arc<Mutex<State>>,
    site: Option<Site>,
}

impl Lanes {
    /// Lets up to `parallel` run at once, at least one, and up to `queue` wait.
    pub(super) fn new(parallel: usize, queue: usize) -> Self {
        let state = State { parallel: parallel.max(1), queue, running: 0, by_site: HashMap::new(), turns: VecDeque::new() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Waits for a turn.
    ///
    /// # Errors
    ///
    /// At once, where too many are waiting.
    pub(super) async fn enter(&self, origin: Origin) -> Result<Permit, Busy> {
        let site = origin.network;
        let given = {
            let mut state = lock(&self.0);
            let given = state.queue(site, origin.failed_lately)?;
            state.give_turns();
            given
        };
        Turn { given: Some(given), lanes: Arc::clone(&self.0), site }.wait().await
    }
}

/// A place in the queue. A caller that hangs up passes on the turn it was just given.
struct Turn {
    given: Option<oneshot::Receiver<()>>,
    lanes: Arc<Mutex<State>>,
    site: Option<Site>,
}

impl Turn {
    async fn wait(mut self) -> Result<Permit, Busy> {
        if let Some(given) = &mut self.given {
            given.await.map_err(|_| Busy)?;
        }
        self.given = None;
        Ok(Permit { lanes: Arc::clone(&self.lanes), site: self.site })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(mut given) = self.given.take() else { return };
        given.close();
        if given.try_recv().is_ok() {
            drop(Permit { lanes: Arc::clone(&self.lanes), site: self.site });
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = lock(&self.lanes);
        state.release(self.site);
        state.give_turns();
    }
}

impl State {
    fn queue(&mut self, site: Option<Site>, failed_lately: bool) -> Result<oneshot::Receiver<()>, Busy> {
        if !self.has_room(site, failed_lately) {
            // Callers that hung up while they waited leave their places only here and at their turn.
            self.forget_gone();
            if !self.has_room(site, failed_lately) {
                return Err(Busy);
            }
        }
        let (sender, turn) = oneshot::channel();
        let lane = self.by_site.entry(site).or_default();
        // By network: a caller who changes the /64 with each guess does not clear the mark of its lane.
        lane.failed_lately |= failed_lately;
        if lane.waiting.is_empty() {
            self.turns.push_back(site);
        }
        lane.waiting.push_back(sender);
        Ok(turn)
    }

    fn has_room(&self, site: Option<Site>, failed_lately: bool) -> bool {
        let lane = self.by_site.get(&site);
        if self.running < self.parallel && lane.is_none() {
            return true;
        }
        let waiting = |failed: bool| -> usize {
            let lanes = self.by_site.values().filter(|lane| lane.failed_lately || !failed);
            lanes.map(|lane| lane.waiting.len()).sum()
        };
        let share = self.queue.div_ceil(4);
        lane.map_or(0, |lane| lane.waiting.len()) < share
            && waiting(false) < self.queue
            && (!failed_lately || waiting(true) < self.queue.div_ceil(2))
    }

    fn forget_gone(&mut self) {
        self.by_site.retain(|_, lane| {
            lane.waiting.retain(|sender| !sender.is_closed());
            lane.running || !lane.waiting.is_empty()
        });
        let by_site = &self.by_site;
        self.turns.retain(|site| by_site.get(site).is_some_and(|lane| !lane.waiting.is_empty()));
    }

    fn give_turns(&mut self) {
        while self.running < self.parallel {
            let first = |failed: bool| {
                let lane_is_next = |lane: &Lane| !lane.running && lane.failed_lately == failed;
                self.turns.iter().position(|site| self.by_site.get(site).is_some_and(lane_is_next))
            };
            let Some(site) = first(false).or_else(|| first(true)).and_then(|at| self.turns.remove(at)) else { return };
            let Some(lane) = self.by_site.get_mut(&site) else { continue };
            while let Some(sender) = lane.waiting.pop_front() {
                if sender.send(()).is_ok() {
                    lane.running = true;
                    self.running += 1;
                    break;
                }
            }
            if !lane.waiting.is_empty() {
                self.turns.push_back(site);
            } else if !lane.running {
                self.by_site.remove(&site);
            }
        }
    }

    fn release(&mut self, site: Option<Site>) {
        self.running = self.running.saturating_sub(1);
        if let Some(lane) = self.by_site.get_mut(&site) {
            lane.running = false;
            if lane.waiting.is_empty() {
                self.by_site.remove(&site);
            }
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{future::Future, net::IpAddr, pin::Pin};

    use futures_util::FutureExt;

    use super::*;

    type Waiting<'a> = Pin<Box<dyn Future<Output = Result<Permit, Busy>> + 'a>>;

    fn from(address: &str) -> Origin {
        Origin { network: Some(Site::network(address.parse::<IpAddr>().unwrap())), failed_lately: false }
    }

    fn failed(address: &str) -> Origin {
        Origin { failed_lately: true, ..from(address) }
    }

    /// Enters and looks once: a permit, a refusal, or a place in the queue.
    fn enter(lanes: &Lanes, origin: Origin) -> (Option<Result<Permit, Busy>>, Waiting<'_>) {
        let mut waiting: Waiting<'_> = Box::pin(lanes.enter(origin));
        let now = waiting.as_mut().now_or_never();
        (now, waiting)
    }

    fn runs(lanes: &Lanes, origin: Origin) -> Permit {
        enter(lanes, origin).0.expect("at once").expect("a permit")
    }

    fn waits(lanes: &Lanes, origin: Origin) -> Waiting<'_> {
        let (now, waiting) = enter(lanes, origin);
        assert!(now.is_none(), "it waits");
        waiting
    }

    fn is_refused(lanes: &Lanes, origin: Origin) -> bool {
        matches!(enter(lanes, origin).0, Some(Err(Busy)))
    }

    fn has_turn(waiting: &mut Waiting<'_>) -> Option<Permit> {
        waiting.as_mut().now_or_never().map(|permit| permit.expect("a permit"))
    }

    /// AZ1, TL2, L14: sixty callers of one address hold one core and a quarter of the queue; another address runs at once.
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
        let mut guessing: Vec<_> = (2..6).map(|n| waits(&lanes, failed(&format!("10.0.0.{n}")))).collect();
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

    /// The queue as a whole is bounded, whoever waits in it.
    #[test]
    fn many_sites_fill_the_queue_and_no_more() {
        let lanes = Lanes::new(1, 4);
        let _core = runs(&lanes, from("10.0.0.1"));
        let _waiting: Vec<_> = (2..6).map(|n| waits(&lanes, from(&format!("10.0.0.{n}")))).collect();
        assert!(is_refused(&lanes, from("10.0.0.6")));
        let none = Lanes::new(1, 0);
        let core = runs(&none, from("10.0.0.1"));
        assert!(is_refused(&none, from("10.0.0.2")));
        drop(core);
        let _core = runs(&none, from("10.0.0.2"));
    }

    /// L14: callers that hang up leave neither a place nor a turn behind, also one that was just given its turn.
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
        assert_eq!(lock(&lanes.0).by_site.len(), 2);
    }
}
