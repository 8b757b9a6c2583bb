//! Several servers on one store.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use jeton::{
    clock::{Clock, SystemClock},
    model::Timestamp,
    proto::{
        admin::{
            ChainState, Event, ListEventsRequest, VerifyChainRequest,
            audit_service_client::AuditServiceClient,
        },
        token::{TokenRequest, token_service_client::TokenServiceClient},
    },
};
use tempfile::TempDir;
use tokio::{task::block_in_place, time::timeout};
use tonic::{Request, Status, transport::Channel};

use crate::{
    fleet::{
        history::{BUSY, Chain, Line, Record, Run, SECOND, Sample},
        machine_load::LoadWatcher,
        recorder::{Caller, PATIENCE, Recorder},
    },
    support::{
        process::{self, Home, Server, endpoint, pause},
        seed::{Chance, long},
    },
};

/// A server that keeps its address and its directory when it is started again.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) home: Home,
    address: SocketAddr,
    server: Mutex<Option<Server>>,
    /// Connects by itself whenever the server is there.
    pub(crate) channel: Channel,
}

/// Options of a fleet.
pub(crate) struct Plan {
    pub(crate) scenario: &'static str,
    pub(crate) nodes: usize,
    /// Further settings of each node: its number, and its home.
    pub(crate) prepare: Box<dyn Fn(usize, Home) -> Home>,
    /// Rules of the run, made from the usual ones.
    pub(crate) terms: Box<dyn Fn(&mut Run)>,
}

/// All of them.
pub(crate) struct Fleet {
    pub(crate) nodes: Vec<Arc<Node>>,
    pub(crate) recorder: Arc<Recorder>,
    /// The first client, which may do everything.
    pub(crate) first: Caller,
    /// An access token of its.
    pub(crate) bearer: String,
    /// Files that every node reads.
    _shared: TempDir,
}

/// Time in which a spent refresh token may be repeated, in seconds: the default of a node that is not told
/// otherwise.
const GRACE: u64 = 10;
/// Age of a node's knowledge past which it refuses to answer: `store.max_staleness_seconds`.
pub(crate) const STALE: u64 = 5 * SECOND;
/// Name of the time in which a node was stopped and started again.
const RESTARTED: &str = "a node is restarted";

impl Plan {
    pub(crate) fn new(scenario: &'static str, nodes: usize) -> Self {
        Self { scenario, nodes, prepare: Box::new(|_, home| home), terms: Box::new(|_| {}) }
    }

    pub(crate) fn with(self, prepare: impl Fn(usize, Home) -> Home + 'static) -> Self {
        let before = self.prepare;
        Self {
            prepare: Box::new(move |number, home| prepare(number, before(number, home))),
            ..self
        }
    }

    pub(crate) fn on(self, terms: impl Fn(&mut Run) + 'static) -> Self {
        let before = self.terms;
        Self {
            terms: Box::new(move |run| {
                before(run);
                terms(run);
            }),
            ..self
        }
    }

    fn run(&self, seed: u64) -> Run {
        let wall = SystemClock::starting_at(Timestamp::EPOCH).now().millis();
        let mut run = Run {
            scenario: self.scenario.to_owned(),
            seed,
            wall: u64::try_from(wall).unwrap() * 1_000,
            timed: long(),
            longest: 2_500_000,
            delta: if long() { SECOND } else { STALE },
            stale: STALE,
            grace: GRACE * SECOND,
            leeway: SECOND,
            resident: 192 * 1_024,
            growth: None,
            descriptors: 10,
            limits: Vec::new(),
        };
        (self.terms)(&mut run);
        run
    }
}

impl Fleet {
    /// Starts one node after another.
    pub(crate) async fn start(plan: Plan, chance: &mut Chance) -> Self {
        let recorder = Recorder::new(plan.run(chance.seed()));
        let shared = tempfile::tempdir().unwrap();
        let key = shared.path().join("master.key");
        let bytes = [(); 4].map(|()| chance.next().to_be_bytes());
        let master = BASE64_STANDARD.encode(bytes.as_flattened());
        fs::write(&key, &master).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        recorder.keep_secret(&master);
        let mut nodes = Vec::new();
        let mut secret = None;
        for number in 1..=plan.nodes {
            let name = format!("node-{number}");
            let home = Home::new()
                .setting("JETON_NODE", &name)
                .setting("JETON_MASTER_KEY_FILE", key.to_str().unwrap())
                .setting("JETON_LOG__LEVEL", "info")
                .setting("JETON_TOKEN__ACCESS_LIFETIME_SECONDS", "3600")
                // Of the call as a whole: as long as one call of the store may take.
                .setting("JETON_LIMITS__DEADLINE_SECONDS", "2")
                .setting("JETON_LIMITS__PLANS__STANDARD__PER_SECOND", "1000000")
                .setting("JETON_LIMITS__PLANS__STANDARD__BURST", "1000000")
                .setting("JETON_LIMITS__PER_PEER__PER_SECOND", "1000000")
                .setting("JETON_LIMITS__PER_PEER__BURST", "1000000");
            let node = Node::start(name, (plan.prepare)(number, home));
            secret = secret.or_else(|| {
                node.server.lock().unwrap().as_ref().and_then(|server| server.secret.clone())
            });
            nodes.push(Arc::new(node));
        }
        let secret = secret.expect("the first node makes the first client");
        recorder.keep_secret(&secret);
        let first = Caller { id: "bootstrap".to_owned(), secret };
        let bearer = nodes[0].bearer(&first).await;
        recorder.keep_secret(&bearer);
        let fleet = Self { nodes, recorder, first, bearer, _shared: shared };
        for node in &fleet.nodes {
            // Whoever connects now has done so before the first sample.
            while fleet.recorder.introspect(node, &fleet.first, &fleet.bearer).await.is_err() {}
        }
        fleet
    }

    /// A node by its number, from 0.
    pub(crate) fn node(&self, number: usize) -> &Arc<Node> {
        &self.nodes[number]
    }

    /// One of them.
    pub(crate) fn any(&self, chance: &mut Chance) -> &Arc<Node> {
        &self.nodes[usize::try_from(chance.within(0..self.nodes.len() as u64)).unwrap()]
    }

    /// Writes down what each node uses.
    pub(crate) fn sample(&self) {
        for node in &self.nodes {
            if let Some((resident, descriptors)) = node.usage() {
                let (at, node) = (self.recorder.now(), node.name.clone());
                self.recorder.write(&Line::Sample(Sample { at, node, resident, descriptors }));
            }
        }
    }

    /// Writes down the whole audit trail, and whether it verifies.
    pub(crate) async fn export_trail(&self) {
        let mut service = AuditServiceClient::new(self.node(0).channel.clone());
        let mut page_token = String::new();
        loop {
            let message = ListEventsRequest { page_size: 1_000, page_token, filter: None };
            let page = service.list_events(self.administer(message)).await.unwrap().into_inner();
            for event in page.events {
                self.recorder.write(&Line::Record(record(event)));
            }
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        for node in &self.nodes {
            let message = VerifyChainRequest::default();
            let mut service = AuditServiceClient::new(node.channel.clone());
            let verdict =
                service.verify_chain(self.administer(message)).await.unwrap().into_inner();
            let is_broken =
                |state: ChainState| !matches!(state, ChainState::Intact | ChainState::EndNotSure);
            let broken = verdict.chains.iter().filter(|chain| is_broken(chain.state()));
            let problems = broken.map(|chain| {
                format!("{} {}: {}", chain.chain, chain.first_bad_sequence, chain.problem)
            });
            let problem = problems.collect::<Vec<_>>().join(", ");
            let chain =
                Chain { by: node.name.clone(), intact: !is_broken(verdict.state()), problem };
            self.recorder.write(&Line::Chain(chain));
        }
    }

    /// Stops every node and starts it again: with its chain go the records of changes whose answers
    /// were given up on.
    pub(crate) async fn restart(&self) {
        for node in &self.nodes {
            node.renew(&self.first).await;
        }
        // What was left behind is looked for at the start.
        pause(Duration::from_secs(2)).await;
    }

    /// The same while callers are at work, who find one node after the other away.
    pub(crate) async fn restart_under_traffic(&self) {
        for node in &self.nodes {
            let begin = self.recorder.now();
            node.renew(&self.first).await;
            self.recorder.fault(RESTARTED, Some(&node.name), begin, Duration::from_secs(3));
        }
        pause(Duration::from_secs(2)).await;
    }

    fn administer<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("authorization", format!("Bearer {}", self.bearer).parse().unwrap());
        request
    }
}

fn record(event: Event) -> Record {
    let Event { chain, sequence, action, outcome, target, request_id: request, family, .. } = event;
    Record { chain, sequence, action, outcome, target, family, request }
}

impl Node {
    /// Starts a server on a port of its own.
    fn start(name: String, home: Home) -> Self {
        let server = block_in_place(|| home.start());
        let address = server.address;
        let server = Mutex::new(Some(server));
        let channel = endpoint(address).connect_timeout(PATIENCE).timeout(PATIENCE).connect_lazy();
        Self { name, home, address, server, channel }
    }

    /// kill -9.
    pub(crate) fn kill(&self) {
        if let Some(server) = self.server.lock().unwrap().take() {
            block_in_place(|| server.kill());
        }
    }

    /// Starts it again where it was.
    pub(crate) fn restart(&self) {
        let server = block_in_place(|| self.home.start_at(self.address));
        *self.server.lock().unwrap() = Some(server);
    }

    /// Stops it, starts it again, and waits until it serves.
    async fn renew(&self, first: &Caller) {
        self.stop().await;
        self.restart();
        self.bearer(first).await;
    }

    /// Asks it to stop, and waits until it has.
    async fn stop(&self) {
        let server = self.server.lock().unwrap().take();
        if let Some(server) = server {
            server.terminate();
            server.ended(process::PATIENCE).await;
        }
    }

    /// An access token of the first client's, by which it administers, as soon as there is one; not
    /// written down.
    async fn bearer(&self, first: &Caller) -> String {
        let patience = timeout(process::PATIENCE, async {
            loop {
                match self.ask(first).await {
                    Ok(token) => break token,
                    Err(_) => pause(Duration::from_millis(50)).await,
                }
            }
        });
        patience.await.expect("it was started and does not serve")
    }

    async fn ask(&self, first: &Caller) -> Result<String, Status> {
        let scopes = vec!["jeton:admin".to_owned()];
        let (client_id, client_secret) = (first.id.clone(), first.secret.clone());
        let message = TokenRequest { client_id, client_secret, scopes, ..TokenRequest::default() };
        let answer = TokenServiceClient::new(self.channel.clone()).token(message).await?;
        Ok(answer.into_inner().access_token)
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.server.lock().unwrap().as_ref().map(Server::pid)
    }

    /// Resident memory in KiB, and descriptors; none while it is stopped.
    fn usage(&self) -> Option<(u64, u64)> {
        let process = PathBuf::from(format!("/proc/{}", self.pid()?));
        let status = fs::read_to_string(process.join("status")).ok()?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let resident = resident.trim().trim_end_matches(" kB").parse().ok()?;
        Some((resident, fs::read_dir(process.join("fd")).ok()?.count() as u64))
    }
}

/// Samples what the nodes use, and whether the machine is ours, as often as this, until it is
/// dropped.
pub(crate) async fn watch(fleet: Arc<Fleet>, every: Duration) {
    let mut weather = LoadWatcher::default();
    loop {
        let begin = fleet.recorder.now();
        fleet.sample();
        if weather.is_bad() {
            // What was begun before may have waited, too, and what waits now has yet to come to its
            // end.
            fleet.recorder.fault(
                BUSY,
                None,
                begin.saturating_sub(3 * SECOND),
                Duration::from_secs(3),
            );
        }
        pause(every).await;
    }
}
