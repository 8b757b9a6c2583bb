//! A store that fails, loses or delays chosen calls of another, and can keep its changes to itself:
//! for tests of what stands on a store.

use crate::support::until::HANG;
use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use jeton::{
    model::{EpochOf, Event, Keyset, Revocation, Timestamp},
    store::{
        Change, Follower, KeyStore, Result, RevocationStore, Snapshot, Store, StoreError, Wrapper,
        Write,
    },
};
use tokio::{sync::Semaphore, time::Instant};

/// Fate of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// It fails before the inner store hears of it.
    FailBefore(Kind),
    /// The inner store carries it out, and the caller hears of a failure.
    FailAfter(Kind),
    /// It reaches the inner store late.
    DelayBefore(Duration),
    /// Its answer comes late.
    DelayAfter(Duration),
}

/// The failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Unavailable,
    Full,
    Corrupt,
}

impl Kind {
    fn error(self) -> StoreError {
        let source = || "a planned fault".into();
        match self {
            Self::Unavailable => StoreError::Unavailable(source()),
            Self::Full => StoreError::Full(source()),
            Self::Corrupt => StoreError::Corrupt(source()),
        }
    }
}

/// Verbs that a server calls for no caller, as time passes.
const BY_ITSELF: [&str; 9] = [
    "record_secret_uses",
    "sweep",
    "count",
    "keyset",
    "chains",
    "head",
    "writer",
    "witnesses",
    "time",
];

/// Counts the calls, from 1, and does to them what was planned. Idle until something is.
pub(crate) struct FaultyStore {
    inner: Arc<dyn Store>,
    calls: AtomicU64,
    asked: AtomicU64,
    /// Number of reads of a client.
    pub(crate) reads: AtomicU64,
    plan: Mutex<Plan>,
    feeds: Mutex<Vec<Arc<Feed>>>,
    by_hand: AtomicBool,
    keyset: Mutex<Option<Keyset>>,
    holds: Mutex<Vec<(&'static str, Side, Arc<Hold>)>>,
}

/// Point at which a call is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Before the inner store hears of it.
    Before,
    /// With its answer in hand.
    After,
}

/// A call that is held until the test lets it go.
#[derive(Debug)]
pub(crate) struct Hold {
    arrived: Semaphore,
    released: Semaphore,
}

impl Hold {
    /// Waits until the call is here.
    pub(crate) async fn arrived(&self) {
        let arrived = tokio::time::timeout(HANG, self.arrived.acquire()).await;
        arrived.unwrap().unwrap().forget();
    }

    pub(crate) fn release(&self) {
        self.released.add_permits(1);
    }

    async fn wait(&self) {
        self.arrived.add_permits(1);
        self.released.acquire().await.unwrap().forget();
    }
}

/// Link between the inner store and a follower of this one.
struct Feed {
    follower: Arc<dyn Follower>,
    /// Changes that are held back, while they are.
    held: Mutex<Option<Vec<Change>>>,
    /// True if only the test reports how far all changes are known.
    by_hand: bool,
}

impl Follower for Feed {
    fn apply(&self, change: &Change) {
        match self.held.lock().unwrap().as_mut() {
            Some(held) => held.push(change.clone()),
            None => self.follower.apply(change),
        }
    }

    fn knows_up_to(&self, at: Instant) {
        if !self.by_hand {
            self.follower.knows_up_to(at);
        }
    }

    fn lost(&self) {
        self.follower.lost();
    }
}

#[derive(Default)]
struct Plan {
    at: BTreeMap<u64, Act>,
    of: Vec<(&'static str, Act)>,
    always: Option<Act>,
}

impl FaultyStore {
    /// Over `inner`, with nothing planned.
    pub(crate) fn new(inner: Arc<dyn Store>) -> Self {
        Self {
            inner,
            calls: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            plan: Mutex::default(),
            feeds: Mutex::default(),
            by_hand: AtomicBool::new(false),
            keyset: Mutex::default(),
            holds: Mutex::default(),
        }
    }

    /// Holds the next call of a verb.
    pub(crate) fn hold(&self, verb: &'static str, side: Side) -> Arc<Hold> {
        let hold = Arc::new(Hold { arrived: Semaphore::new(0), released: Semaphore::new(0) });
        self.holds.lock().unwrap().push((verb, side, hold.clone()));
        hold
    }

    /// Number of calls so far.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// Number of calls so far, without those that a server makes for no caller.
    pub(crate) fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }

    /// Plans for the `nth` call from now on, the next being the first; returns its number. A server
    /// makes calls for no caller too, whenever it is time: one of these may be that call.
    pub(crate) fn plan(&self, nth: u64, act: Act) -> u64 {
        // Counted under the lock: a call that comes meanwhile finds its plan.
        let mut plan = self.plan.lock().unwrap();
        let number = self.calls() + nth;
        plan.at.insert(number, act);
        number
    }

    /// Plans for the next call of a verb.
    pub(crate) fn plan_verb(&self, verb: &'static str, act: Act) {
        self.plan.lock().unwrap().of.push((verb, act));
    }

    /// Takes back the plans for verbs that were not called.
    pub(crate) fn forget_plans(&self) {
        self.plan.lock().unwrap().of.clear();
    }

    /// Plans for every call that has no other plan; `None` for nothing.
    pub(crate) fn always(&self, act: Option<Act>) {
        self.plan.lock().unwrap().always = act;
    }

    /// Holds back what changes from now on.
    pub(crate) fn hold_changes(&self) {
        self.feeds(|feed| {
            feed.held.lock().unwrap().get_or_insert_default();
        });
    }

    /// Tells what was held back, and everything else again as it comes.
    pub(crate) fn release_changes(&self) {
        self.feeds(|feed| {
            let mut held = feed.held.lock().unwrap();
            held.take().unwrap_or_default().iter().for_each(|change| feed.follower.apply(change));
        });
    }

    /// Forgets what was held back, and says that something may have been missed.
    pub(crate) fn lose_changes(&self) {
        self.feeds(|feed| {
            *feed.held.lock().unwrap() = None;
            feed.follower.apply(&Change::Missed);
        });
    }

    /// Those who follow from here on hear from [`Self::say`] alone how far everything has been
    /// told, whatever the inner store says.
    pub(crate) fn say_by_hand(&self) {
        self.by_hand.store(true, Ordering::SeqCst);
    }

    /// Shows this keyset in the place of the stored one, to followers too, as if somebody had
    /// written it; `None`: the stored one again.
    pub(crate) fn show_keyset(&self, keyset: Option<Keyset>) {
        if let Some(keyset) = &keyset {
            let change = Change::Keyset(Arc::new(keyset.clone()));
            self.feeds(|feed| feed.follower.apply(&change));
        }
        *self.keyset.lock().unwrap() = keyset;
    }

    /// Says that everything from before `at` has been told.
    pub(crate) fn say(&self, at: Instant) {
        self.feeds(|feed| feed.follower.knows_up_to(at));
    }

    fn feeds(&self, act: impl Fn(&Feed)) {
        self.feeds.lock().unwrap().iter().for_each(|feed| act(feed));
    }

    async fn carry_out<T>(
        &self,
        verb: &'static str,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let number = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        if !BY_ITSELF.contains(&verb) {
            self.asked.fetch_add(1, Ordering::SeqCst);
        }
        let act = {
            let mut plan = self.plan.lock().unwrap();
            let of_verb = plan
                .of
                .iter()
                .position(|(planned, _)| *planned == verb)
                .map(|at| plan.of.remove(at).1);
            of_verb.or_else(|| plan.at.remove(&number)).or(plan.always)
        };
        match act {
            None => call.await,
            Some(Act::FailBefore(kind)) => Err(kind.error()),
            Some(Act::FailAfter(kind)) => {
                let _ = call.await;
                Err(kind.error())
            }
            Some(Act::DelayBefore(by)) => {
                pause(by).await;
                call.await
            }
            Some(Act::DelayAfter(by)) => {
                let result = call.await;
                pause(by).await;
                result
            }
        }
    }
}

/// By the runtime's clock, which tests may have paused.
async fn pause(by: Duration) {
    let _ = tokio::time::timeout(by, std::future::pending::<()>()).await;
}

impl Wrapper for FaultyStore {
    type Wrapped = dyn Store;

    fn wrapped(&self) -> &Self::Wrapped {
        &*self.inner
    }

    async fn around<T: Send>(
        &self,
        verb: &'static str,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        match verb {
            // Closes for good, whatever is planned.
            "close" => return call.await,
            "client" => {
                self.reads.fetch_add(1, Ordering::SeqCst);
            }
            _ => {}
        }
        let held = {
            let mut holds = self.holds.lock().unwrap();
            holds.iter().position(|(held, ..)| *held == verb).map(|at| holds.remove(at))
        };
        match held {
            None => self.carry_out(verb, call).await,
            Some((_, Side::Before, hold)) => {
                hold.wait().await;
                self.carry_out(verb, call).await
            }
            Some((_, Side::After, hold)) => {
                let result = self.carry_out(verb, call).await;
                hold.wait().await;
                result
            }
        }
    }
}

jeton::pass_verbs!(
    [] FaultyStore: ClientStore, AudienceStore, FamilyStore, AuditStore, RetentionStore, CounterStore,
    ProofStore, Store
);

#[async_trait]
impl RevocationStore for FaultyStore {
    async fn revoke(&self, revocation: &Revocation, event: Event) -> Result<()> {
        self.around("revoke", self.inner.revoke(revocation, event)).await
    }

    async fn raise_epoch(&self, of: &EpochOf, event: Event) -> Result<u64> {
        self.around("raise_epoch", self.inner.raise_epoch(of, event)).await
    }

    async fn follow(&self, now: Timestamp, follower: Arc<dyn Follower>) -> Result<Snapshot> {
        let by_hand = self.by_hand.load(Ordering::SeqCst);
        let feed = Arc::new(Feed { follower, held: Mutex::default(), by_hand });
        self.feeds.lock().unwrap().push(feed.clone());
        self.around("follow", self.inner.follow(now, feed)).await
    }

    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize> {
        self.around("sweep", self.inner.sweep(now, limit)).await
    }
}

#[async_trait]
impl KeyStore for FaultyStore {
    async fn keyset(&self) -> Result<Option<Keyset>> {
        let stored = self.around("keyset", self.inner.keyset()).await?;
        Ok(self.keyset.lock().unwrap().clone().or(stored))
    }

    async fn replace_keyset(&self, keyset: &Keyset, event: Event) -> Result<Write> {
        self.around("replace_keyset", self.inner.replace_keyset(keyset, event)).await
    }
}
