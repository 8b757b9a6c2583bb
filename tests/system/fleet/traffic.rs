//! Callers that do everything at once, as honest ones do: who does not know the outcome of a call
//! makes it again.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{task::JoinSet, time::timeout};

use crate::{
    fleet::{
        nodes::{Fleet, Node},
        recorder::{Answer, Caller, Failure, Grant},
    },
    support::{
        process::pause,
        seed::{Chance, long},
    },
};

/// Number of workers of each kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Workers that refresh, with all that can happen to a family.
    pub(crate) chains: u64,
    /// Workers that revoke everything of a client.
    pub(crate) wide: u64,
    /// Workers that revoke single tokens, and introspect them.
    pub(crate) revokers: u64,
    /// Workers that introspect any token that was given out.
    pub(crate) judges: u64,
    /// Workers that create clients and disable them.
    pub(crate) administrators: u64,
}

impl Default for Load {
    fn default() -> Self {
        let (chains, others) = if long() { (6, 2) } else { (3, 1) };
        Self { chains, wide: 1, revokers: others, judges: others, administrators: 1 }
    }
}

/// All of them, at work.
pub(crate) struct Traffic {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

struct Shared {
    fleet: Arc<Fleet>,
    stop: AtomicBool,
    /// Access tokens that were given out.
    held: Mutex<Vec<String>>,
    names: AtomicU64,
}

/// Time after the last fault within which every worker must have finished.
const PATIENCE: Duration = Duration::from_secs(180);

impl Traffic {
    /// Registers the clients and sets them to work.
    pub(crate) async fn start(fleet: &Arc<Fleet>, chance: &mut Chance, load: Load) -> Self {
        let (fleet, held) = (fleet.clone(), Mutex::default());
        let shared = Arc::new(Shared {
            fleet,
            stop: AtomicBool::new(false),
            held,
            names: AtomicU64::new(0),
        });
        let mut tasks = JoinSet::new();
        for _ in 0..load.chains {
            let mut worker = shared.worker(chance).await;
            tasks.spawn(async move { worker.refreshes().await });
        }
        for _ in 0..load.wide {
            let mut worker = shared.worker(chance).await;
            tasks.spawn(async move { worker.ends_everything().await });
        }
        for _ in 0..load.revokers {
            let mut worker = shared.worker(chance).await;
            tasks.spawn(async move { worker.revokes().await });
        }
        for _ in 0..load.judges {
            let mut worker = shared.worker(chance).await;
            tasks.spawn(async move { worker.judges().await });
        }
        for _ in 0..load.administrators {
            let mut worker = shared.worker(chance).await;
            tasks.spawn(async move { worker.administers().await });
        }
        Self { shared, tasks }
    }

    /// Lets everybody finish what they do, and judges all that was ever given out on every node.
    pub(crate) async fn stop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        let ended = async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.unwrap();
            }
        };
        timeout(PATIENCE, ended).await.expect("somebody is never answered");
        timeout(PATIENCE, self.judge_all()).await.expect("not everything is ever judged");
    }

    /// Judges all that was ever given out on every node.
    pub(crate) async fn judge_all(&self) {
        let held = self.shared.held.lock().unwrap().clone();
        let fleet = &self.shared.fleet;
        for node in &fleet.nodes {
            for tokens in held.chunks(500) {
                // One that fails is written down; what counts is that in the end each is judged.
                while fleet.recorder.introspect_all(node, &fleet.first, tokens).await.is_err() {
                    pause(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Shared {
    async fn worker(self: &Arc<Self>, chance: &mut Chance) -> Worker {
        let fleet = &self.fleet;
        let caller = loop {
            // Where nobody knows whether it was made, nobody knows its secret either.
            let id = format!("client-{}", self.names.fetch_add(1, Relaxed));
            if let Ok(caller) =
                fleet.recorder.create(fleet.node(0), &fleet.bearer, &id, "standard", None).await
            {
                break caller;
            }
        };
        Worker { shared: self.clone(), chance: chance.split(), caller, repeated: false }
    }
}

/// Request of a worker, of or by its client.
enum Change {
    Token,
    Refresh(String),
    Revoke(String),
    RevokeAll,
    Create,
    Disable,
}

/// One of them.
struct Worker {
    shared: Arc<Shared>,
    chance: Chance,
    caller: Caller,
    /// True if the newest refresh token may have been given more than once. In three generations
    /// running that is theft.
    repeated: bool,
}

impl Worker {
    fn fleet(&self) -> &Arc<Fleet> {
        &self.shared.fleet
    }

    fn node(&mut self) -> Arc<Node> {
        self.shared.fleet.clone().any(&mut self.chance).clone()
    }

    fn goes_on(&self) -> bool {
        !self.shared.stop.load(Relaxed)
    }

    async fn rest(&mut self, least: u64, most: u64) {
        pause(Duration::from_millis(self.chance.within(least..most))).await;
    }

    /// Makes a call, on this node.
    async fn ask(&self, node: &Node, change: &Change) -> Answer<Option<Grant>> {
        let (fleet, caller) = (self.fleet(), &self.caller);
        let (recorder, bearer) = (&fleet.recorder, &fleet.bearer);
        let grant = match change {
            Change::Token => Some(recorder.token(node, caller).await?),
            Change::Refresh(token) => Some(recorder.refresh(node, caller, token).await?),
            Change::Revoke(token) => recorder.revoke(node, caller, token).await.map(|()| None)?,
            Change::RevokeAll => {
                recorder.revoke_all(node, bearer, &caller.id).await.map(|()| None)?
            }
            Change::Create => recorder
                .create(node, bearer, &caller.id, "standard", Some(&caller.secret))
                .await
                .map(|_| None)?,
            Change::Disable => recorder.disable(node, bearer, &caller.id).await.map(|()| None)?,
        };
        if let Some(grant) = &grant {
            self.shared.held.lock().unwrap().push(grant.access.clone());
        }
        Ok(grant)
    }

    /// Makes it again, on any node, until its outcome is known; the error is the reason of a
    /// refusal.
    async fn insist(&mut self, change: Change) -> Result<Option<Grant>, String> {
        loop {
            let node = self.node();
            match self.ask(&node, &change).await {
                Ok(done) => return Ok(done),
                Err(Failure::Refused(reason)) => return Err(reason),
                Err(Failure::Unknown) => {
                    self.repeated |= matches!(change, Change::Refresh(_));
                    self.rest(50, 250).await;
                }
            }
        }
    }

    async fn get(&mut self) -> Result<Grant, String> {
        self.insist(Change::Token).await.map(|grant| grant.expect("a token"))
    }

    async fn refresh(&mut self, token: &str) -> Result<Grant, String> {
        self.repeated = false;
        self.insist(Change::Refresh(token.to_owned())).await.map(|grant| grant.expect("a token"))
    }

    async fn revoke(&mut self, token: &str) {
        // A refusal is written down like everything else, and judged later.
        let _ = self.insist(Change::Revoke(token.to_owned())).await;
    }

    async fn look(&mut self, token: &str) {
        let node = self.node();
        // Whatever it is told is written down and judged later.
        let _ = self.fleet().recorder.introspect(&node, &self.fleet().first, token).await;
    }

    /// Lives the life of refresh families, one after the other.
    async fn refreshes(&mut self) {
        while self.goes_on() {
            let Ok(mut grant) = self.get().await else { return };
            for _ in 0..self.chance.within(3..40) {
                if !self.goes_on() {
                    break;
                }
                self.rest(2, 30).await;
                let next = match self.chance.within(0..100) {
                    0..70 => self.refresh(&grant.refresh).await.ok(),
                    // An honest client does not do so again and again.
                    70..80 if !self.repeated => self.race(&grant.refresh).await,
                    70..80 => self.refresh(&grant.refresh).await.ok(),
                    80..88 => {
                        self.revoke(&grant.access.clone()).await;
                        self.look(&grant.access.clone()).await;
                        Some(grant.clone())
                    }
                    88..93 => self.steal(&grant.refresh).await,
                    93..96 => self.race_the_end(&grant.refresh).await,
                    _ => {
                        self.revoke(&grant.refresh.clone()).await;
                        None
                    }
                };
                self.look(&grant.access.clone()).await;
                let Some(next) = next else { break };
                grant = next;
            }
            // Whatever happened: the newest of the family is good, or there is a reason.
            let _ = self.refresh(&grant.refresh).await;
        }
    }

    /// R02: the same token on two nodes at once.
    async fn race(&mut self, token: &str) -> Option<Grant> {
        let (one, other) = (self.node(), self.node());
        let refresh = Change::Refresh(token.to_owned());
        let (first, second) = tokio::join!(self.ask(&one, &refresh), self.ask(&other, &refresh));
        let raced = match first.or(second) {
            Ok(grant) => grant,
            Err(_) => self.refresh(token).await.ok(),
        };
        self.repeated = true;
        raced
    }

    /// R03: a token that was spent, after its successor was used.
    async fn steal(&mut self, token: &str) -> Option<Grant> {
        let next = self.refresh(token).await.ok()?;
        let newest = self.refresh(&next.refresh).await.ok()?;
        let stolen = self.refresh(token).await;
        assert!(stolen.is_err(), "a spent token was taken");
        self.look(&newest.access).await;
        None
    }

    /// R05: Refresh on one node and Revoke on another, at once.
    async fn race_the_end(&mut self, token: &str) -> Option<Grant> {
        let (one, other) = (self.node(), self.node());
        let (refresh, revoke) =
            (Change::Refresh(token.to_owned()), Change::Revoke(token.to_owned()));
        let (refreshed, _) = tokio::join!(self.ask(&one, &refresh), self.ask(&other, &revoke));
        self.revoke(token).await;
        if let Ok(Some(grant)) = refreshed {
            self.look(&grant.access).await;
        }
        None
    }

    /// Gets tokens and ends all of them at once.
    async fn ends_everything(&mut self) {
        while self.goes_on() {
            let mut grants = Vec::new();
            for _ in 0..self.chance.within(1..4) {
                let Ok(grant) = self.get().await else { return };
                grants.push(grant);
            }
            let _ = self.insist(Change::RevokeAll).await;
            for grant in &grants {
                self.look(&grant.access).await;
            }
            let refreshed = self.refresh(&grants[0].refresh).await;
            if let Ok(grant) = refreshed {
                self.look(&grant.access).await;
            }
            self.rest(20, 150).await;
        }
    }

    /// Gets tokens, ends them one by one, and looks on the node that took it, then on all.
    async fn revokes(&mut self) {
        while self.goes_on() {
            let Ok(Grant { access: token, .. }) = self.get().await else { return };
            self.look(&token).await;
            loop {
                let node = self.node();
                if self.ask(&node, &Change::Revoke(token.clone())).await.is_ok() {
                    let _ =
                        self.fleet().recorder.introspect(&node, &self.fleet().first, &token).await;
                    break;
                }
                self.rest(50, 250).await;
            }
            for node in self.fleet().nodes.clone() {
                let _ = self.fleet().recorder.introspect(&node, &self.fleet().first, &token).await;
            }
            self.rest(5, 50).await;
        }
    }

    /// Looks at tokens of long ago and of just now.
    async fn judges(&mut self) {
        while self.goes_on() {
            self.rest(2, 20).await;
            let count = self.shared.held.lock().unwrap().len() as u64;
            if count == 0 {
                continue;
            }
            let recent = count.saturating_sub(50) * self.chance.within(0..2);
            let at = usize::try_from(self.chance.within(recent..count)).unwrap();
            let token = self.shared.held.lock().unwrap()[at].clone();
            self.look(&token).await;
        }
    }

    /// Makes clients, which get a token, and disables them.
    async fn administers(&mut self) {
        while self.goes_on() {
            let id = format!("made-{}", self.shared.names.fetch_add(1, Relaxed));
            let secret = format!("a secret of {id}, {:x}", self.chance.next());
            let caller = Caller { id, secret };
            let mut made = Self {
                shared: self.shared.clone(),
                chance: self.chance.split(),
                caller,
                repeated: false,
            };
            // Where the first attempt was done and not heard of, the next one is told that it
            // exists.
            let _ = made.insist(Change::Create).await;
            let token = made.get().await;
            let _ = made.insist(Change::Disable).await;
            if let Ok(token) = token {
                self.look(&token.access).await;
            }
            let _ = made.get().await;
            self.rest(200, 600).await;
        }
    }
}
