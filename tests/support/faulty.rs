//! A store that fails, loses or delays chosen calls of another, and can keep its changes to itself:
//! for tests of what stands on a store.

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
    crypto::chain::Head,
    model::{
        Audience, AudienceRecord, Client, ClientId, EpochOf, Event, Family, FamilyId, Keyset,
        Place, Record, Stamp, TenantId, Timestamp, event::Filter, revocation::Revocation,
    },
    store::{
        AudienceStore, AuditStore, Change, ClientStore, CounterStore, Creation, FamilyStore,
        Follower, FoundAudience, KeyStore, Listed, Proof, ProofStore, ProvenWrite, Result,
        RevocationStore, Rotate, Rotation, SecretUse, Snapshot, Spent, Store, StoreError, Write,
        Writer,
    },
};
use tokio::{
    sync::{Semaphore, broadcast},
    time::Instant,
};

/// What becomes of a call.
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

/// Which failure.
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
const BY_ITSELF: [&str; 9] =
    ["note_uses", "sweep", "count", "keyset", "chains", "head", "writer", "witnesses", "time"];

/// Counts the calls, from 1, and does to them what was planned. Idle until something is.
pub(crate) struct FaultyStore {
    inner: Arc<dyn Store>,
    calls: AtomicU64,
    asked: AtomicU64,
    /// How many times a client was read.
    pub(crate) reads: AtomicU64,
    plan: Mutex<Plan>,
    feeds: Mutex<Vec<Arc<Feed>>>,
    by_hand: AtomicBool,
    keyset: Mutex<Option<Keyset>>,
    holds: Mutex<Vec<(&'static str, Side, Arc<Hold>)>>,
}

/// Where a call is held.
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
        let arrived = tokio::time::timeout(Duration::from_secs(60), self.arrived.acquire()).await;
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

/// What stands between the inner store and one who follows it through this one.
struct Feed {
    follower: Arc<dyn Follower>,
    /// Changes that are held back, while they are.
    held: Mutex<Option<Vec<Change>>>,
    /// Whether only the test says how far everything has been told.
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

    /// Holds the next call of a verb that is named below.
    pub(crate) fn hold(&self, verb: &'static str, side: Side) -> Arc<Hold> {
        let hold = Arc::new(Hold { arrived: Semaphore::new(0), released: Semaphore::new(0) });
        self.holds.lock().unwrap().push((verb, side, hold.clone()));
        hold
    }

    /// A call of a verb that tests name.
    async fn pass_held<T>(
        &self,
        verb: &'static str,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
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

    /// Plans for the next call of a verb that is named below.
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

    async fn pass<T>(&self, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
        self.carry_out("", call).await
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

#[async_trait]
impl ClientStore for FaultyStore {
    async fn client(&self, id: &ClientId) -> Result<Option<Client>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.pass_held("client", self.inner.client(id)).await
    }

    async fn clients(
        &self,
        tenant: Option<&TenantId>,
        after: Option<&ClientId>,
        limit: usize,
    ) -> Result<Vec<Listed>> {
        self.pass_held("clients", self.inner.clients(tenant, after, limit)).await
    }

    async fn create_client(&self, client: &Client, event: Event) -> Result<Creation> {
        self.pass(self.inner.create_client(client, event)).await
    }

    async fn create_client_of_any(&self, client: &Client, event: Event) -> Result<Creation> {
        self.pass(self.inner.create_client_of_any(client, event)).await
    }

    async fn replace_client(&self, client: &Client, event: Event) -> Result<Write> {
        self.pass_held("replace_client", self.inner.replace_client(client, event)).await
    }

    async fn end_client(&self, client: &Client, events: Vec<Event>, ended: Event) -> Result<Write> {
        self.pass_held("end_client", self.inner.end_client(client, events, ended)).await
    }

    async fn delete_client(&self, client: &Client, event: Event) -> Result<Write> {
        self.pass(self.inner.delete_client(client, event)).await
    }

    async fn note_uses(&self, uses: &[SecretUse]) -> Result<()> {
        self.pass_held("note_uses", self.inner.note_uses(uses)).await
    }
}

#[async_trait]
impl AudienceStore for FaultyStore {
    async fn audience(&self, audience: &Audience) -> Result<Option<FoundAudience>> {
        self.pass_held("audience", self.inner.audience(audience)).await
    }

    async fn audiences(
        &self,
        tenant: Option<&TenantId>,
        after: Option<&Audience>,
        limit: usize,
    ) -> Result<Vec<FoundAudience>> {
        self.pass(self.inner.audiences(tenant, after, limit)).await
    }

    async fn claim_audience(&self, record: &AudienceRecord, event: Event) -> Result<Creation> {
        self.pass(self.inner.claim_audience(record, event)).await
    }

    async fn replace_audience(&self, record: &AudienceRecord, event: Event) -> Result<Write> {
        self.pass(self.inner.replace_audience(record, event)).await
    }

    async fn release_audience(&self, record: &AudienceRecord, event: Event) -> Result<Write> {
        self.pass(self.inner.release_audience(record, event)).await
    }
}

#[async_trait]
impl FamilyStore for FaultyStore {
    async fn open_family(&self, family: &Family, event: Event) -> Result<Creation> {
        self.pass_held("open_family", self.inner.open_family(family, event)).await
    }

    async fn family(&self, id: FamilyId, now: Timestamp) -> Result<Option<Family>> {
        self.pass(self.inner.family(id, now)).await
    }

    async fn rotate(&self, rotate: &Rotate, stamp: &Stamp, jti: &str) -> Result<Rotation> {
        self.pass_held("rotate", self.inner.rotate(rotate, stamp, jti)).await
    }

    async fn end_family(
        &self,
        id: FamilyId,
        now: Timestamp,
        until: Timestamp,
        event: Event,
    ) -> Result<()> {
        self.pass_held("end_family", self.inner.end_family(id, now, until, event)).await
    }
}

#[async_trait]
impl RevocationStore for FaultyStore {
    async fn revoke(&self, revocation: &Revocation, event: Event) -> Result<()> {
        self.pass(self.inner.revoke(revocation, event)).await
    }

    async fn raise_epoch(&self, of: &EpochOf, event: Event) -> Result<u64> {
        self.pass(self.inner.raise_epoch(of, event)).await
    }

    async fn follow(&self, now: Timestamp, follower: Arc<dyn Follower>) -> Result<Snapshot> {
        let by_hand = self.by_hand.load(Ordering::SeqCst);
        let feed = Arc::new(Feed { follower, held: Mutex::default(), by_hand });
        self.feeds.lock().unwrap().push(feed.clone());
        self.pass(self.inner.follow(now, feed)).await
    }

    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize> {
        self.pass_held("sweep", self.inner.sweep(now, limit)).await
    }
}

#[async_trait]
impl AuditStore for FaultyStore {
    async fn append(&self, event: Event) -> Result<()> {
        self.pass_held("append", self.inner.append(event)).await
    }

    async fn append_soon(&self, event: Event) -> Result<()> {
        self.pass_held("append_soon", self.inner.append_soon(event)).await
    }

    async fn events(
        &self,
        filter: &Filter,
        before: Option<&Place>,
        limit: usize,
    ) -> Result<Vec<Record>> {
        self.pass(self.inner.events(filter, before, limit)).await
    }

    async fn chains(&self) -> Result<Vec<Arc<str>>> {
        self.pass_held("chains", self.inner.chains()).await
    }

    async fn chain(&self, name: &str, after: u64, limit: usize) -> Result<Vec<Record>> {
        self.pass(self.inner.chain(name, after, limit)).await
    }

    async fn head(&self, chain: &str) -> Result<Option<Head>> {
        self.pass_held("head", self.inner.head(chain)).await
    }

    async fn writer(&self, chain: &str) -> Result<Writer> {
        self.pass_held("writer", self.inner.writer(chain)).await
    }

    async fn witnesses(&self, after: Option<&Place>, limit: usize) -> Result<Vec<Record>> {
        self.pass_held("witnesses", self.inner.witnesses(after, limit)).await
    }

    fn tail(&self) -> broadcast::Receiver<Option<Arc<Record>>> {
        self.inner.tail()
    }
}

#[async_trait]
impl KeyStore for FaultyStore {
    async fn keyset(&self) -> Result<Option<Keyset>> {
        let stored = self.pass_held("keyset", self.inner.keyset()).await?;
        Ok(self.keyset.lock().unwrap().clone().or(stored))
    }

    async fn replace_keyset(&self, keyset: &Keyset, event: Event) -> Result<Write> {
        self.pass(self.inner.replace_keyset(keyset, event)).await
    }
}

#[async_trait]
impl CounterStore for FaultyStore {
    async fn count(&self, hits: &[(String, u64)], until: Timestamp) -> Result<Vec<u64>> {
        self.pass_held("count", self.inner.count(hits, until)).await
    }
}

#[async_trait]
impl ProofStore for FaultyStore {
    async fn spend(&self, proof: Proof, write: ProvenWrite) -> Result<Spent> {
        self.pass_held("spend", self.inner.spend(proof, write)).await
    }
}

#[async_trait]
impl Store for FaultyStore {
    async fn ready(&self) -> Result<()> {
        self.pass(self.inner.ready()).await
    }

    /// Closes for good, whatever is planned.
    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }

    fn newest(&self) -> Timestamp {
        self.inner.newest()
    }

    async fn time(&self) -> Result<Option<Timestamp>> {
        self.pass_held("time", self.inner.time()).await
    }
}
