//! A replica set of real mongods for tests: members are killed, frozen and slowed down; the ways
//! between them, and from clients to them, are cut apart.
//!
//! Each member stands behind a proxy of its own, and the configuration names the proxies: members
//! and clients know no other address. The binary comes from `MONGOD` (see `.ci/with-mongodb`);
//! everything ends with the set. The proxies have a runtime of their own, so a test may block its.

mod member;
mod proxy;
mod secrets;

use std::{
    env,
    path::PathBuf,
    sync::{Arc, LazyLock, Mutex, MutexGuard, atomic::Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use mongodb::{
    Client,
    bson::{Bson, Document, doc},
    options::{
        Acknowledgment, AuthMechanism, ClientOptions, Credential, ServerAddress, Tls, TlsOptions,
        WriteConcern,
    },
};
use tempfile::TempDir;
use tokio::{
    runtime::Runtime,
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

use member::Member;
pub(crate) use member::{pause, until};
pub(crate) use proxy::Cut;
use proxy::Network;
pub(crate) use proxy::{Source, Toward};
use secrets::Secrets;

const NAME: &str = "jeton";
/// Of the harness's own connections; jeton's are named `jeton`, and `fail_command` hits those only.
const APP_NAME: &str = "harness";
/// The user that may read and write.
pub(crate) const USER: &str = "jeton";
/// The password, which must never be in a log.
pub(crate) const PASSWORD: &str = "canary-of-the-database";
/// Longest time of a member to answer the harness.
const ANSWER: Duration = Duration::from_secs(30);
/// The same for what a set is begun with, when nothing keeps a member from answering but a busy
/// machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Sets that run at the same time: one where there are figures, or they would be of each other.
static PLACES: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(if is_long() { 1 } else { 2 }));

/// True if the long forms of tests run, which judge the clock.
fn is_long() -> bool {
    env::var("JETON_TEST_LONG").is_ok_and(|value| value == "1")
}

/// Options of a set.
pub(crate) struct Options {
    pub(crate) members: usize,
    /// Members know each other by a key file, and clients must authenticate.
    pub(crate) auth: bool,
    /// Certificates for 127.0.0.1, of an authority made for the set.
    pub(crate) tls: bool,
    /// mongod's own election settings (10 s, a heartbeat every 2 s and within 10 s) instead of
    /// those we recommend (2 s, 0.5 s, 2 s).
    pub(crate) defaults: bool,
    /// A minute passes before members that hear nothing from their primary elect another.
    pub(crate) calm: bool,
    /// Directory of the data: `member-0` and so on, which are made where they are missing.
    pub(crate) dir: Option<PathBuf>,
    /// Further arguments of every member.
    pub(crate) arguments: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            members: 3,
            auth: false,
            tls: false,
            defaults: false,
            calm: false,
            dir: None,
            arguments: Vec::new(),
        }
    }
}

pub(crate) struct ReplicaSet {
    members: Vec<Arc<Mutex<Member>>>,
    /// The ports that the members are known by.
    doors: Vec<u16>,
    network: Arc<Network>,
    clients: Mutex<Vec<Option<(u16, Client)>>>,
    mongod: PathBuf,
    options: Options,
    secrets: Secrets,
    /// Always there until the end.
    runtime: Option<Runtime>,
    _dir: TempDir,
    _place: SemaphorePermit<'static>,
}

impl ReplicaSet {
    /// Returns when there is a primary, and the others are its secondaries. A test has at most one
    /// set.
    pub(crate) async fn start(options: Options) -> Self {
        let place = PLACES.acquire().await.unwrap();
        let since = Instant::now();
        let mongod =
            env::var_os("MONGOD").expect("MONGOD names the binary: see .ci/with-mongodb").into();
        let dir = tempfile::Builder::new().prefix("jeton-replica-").tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let network = Network::new(options.members);
        let secrets = Secrets::new(dir.path());
        let (mut members, mut doors) = (Vec::new(), Vec::new());
        for index in 0..options.members {
            let home = options
                .dir
                .as_deref()
                .unwrap_or_else(|| dir.path())
                .join(format!("member-{index}"));
            let log = dir.path().join(format!("member-{index}.log"));
            secrets.certify(index, DAY);
            let member = Member::new(home, log, arguments(&options, &secrets, index));
            let (opener, port) = (network.clone(), member.port.clone());
            doors.push(runtime.spawn(async move { opener.open(index, port).await }).await.unwrap());
            members.push(Arc::new(Mutex::new(member)));
        }
        let set = Self {
            clients: Mutex::new(vec![None; options.members]),
            runtime: Some(runtime),
            _dir: dir,
            _place: place,
            members,
            doors,
            network,
            mongod,
            options,
            secrets,
        };
        join_all((0..set.members.len()).map(|index| set.spawn(index))).await;
        set.initiate().await;
        set.settled().await;
        println!(
            "a replica set of {} after {:.1} s",
            set.members.len(),
            since.elapsed().as_secs_f64()
        );
        set
    }

    async fn initiate(&self) {
        let members = self.doors.iter().enumerate();
        let members: Vec<Bson> = members
            .map(|(index, door)| {
                doc! { "_id": index as i32, "host": format!("127.0.0.1:{door}") }.into()
            })
            .collect();
        let mut configuration = doc! { "_id": NAME, "version": 1, "members": members };
        if !self.options.defaults {
            let (election, heartbeat) = if self.options.calm { (60_000, 60) } else { (2_000, 2) };
            let settings = doc! { "electionTimeoutMillis": election, "heartbeatIntervalMillis": 500, "heartbeatTimeoutSecs": heartbeat };
            configuration.insert("settings", settings);
        }
        self.command_within(PATIENCE, 0, doc! { "replSetInitiate": configuration }).await.unwrap();
        // Left alone, they wait for an election timeout. Refused until enough of them have the
        // configuration.
        until("a first primary", async || {
            self.command(0, doc! { "replSetStepUp": 1 }).await.is_ok()
        })
        .await;
        if self.options.auth {
            let user =
                doc! { "createUser": USER, "pwd": PASSWORD, "roles": ["readWriteAnyDatabase"] };
            self.command_within(PATIENCE, self.primary().await, user).await.unwrap();
        }
    }

    /// Waits until there is one primary and every other member that answers is its secondary.
    pub(crate) async fn settled(&self) {
        until("a primary and its secondaries", async || {
            let hellos: Vec<Document> =
                self.hellos().await.into_iter().map(|(_, hello)| hello).collect();
            let count = |state| hellos.iter().filter(|hello| is(hello, state)).count();
            let answering =
                self.members.iter().filter(|member| member.lock().unwrap().answers()).count();
            count(PRIMARY) == 1 && count(SECONDARY) == answering - 1
        })
        .await;
    }

    /// Address for clients: without a database, with `USER` and `PASSWORD` where there are users.
    pub(crate) fn uri(&self) -> String {
        self.uri_of("")
    }

    /// The same with this database.
    pub(crate) fn uri_of(&self, database: &str) -> String {
        self.uri_as(database, USER, PASSWORD)
    }

    /// The same with other credentials.
    pub(crate) fn uri_as(&self, database: &str, user: &str, password: &str) -> String {
        let hosts: Vec<String> =
            self.doors.iter().map(|door| format!("127.0.0.1:{door}")).collect();
        let user = if self.options.auth { format!("{user}:{password}@") } else { String::new() };
        let mut uri = format!("mongodb://{user}{}/{database}?replicaSet={NAME}", hosts.join(","));
        if self.options.auth {
            uri += "&authSource=admin";
        }
        if self.options.tls {
            uri += &format!("&tls=true&tlsCAFile={}", self.secrets.authority_file().display());
        }
        uri
    }

    /// The primary; waits for one. Where two think they are, the one elected last.
    pub(crate) async fn primary(&self) -> usize {
        self.primary_but(None).await
    }

    /// A primary other than this member; waits for one.
    pub(crate) async fn next_primary(&self, old: usize) -> usize {
        self.primary_but(Some(old)).await
    }

    async fn primary_but(&self, old: Option<usize>) -> usize {
        let mut primary = None;
        until("a primary", async || {
            let hellos = self.hellos().await.into_iter().filter(|(_, hello)| is(hello, PRIMARY));
            // The term is in it.
            primary = hellos
                .max_by_key(|(_, hello)| hello.get_object_id("electionId").unwrap())
                .map(|(index, _)| index);
            primary.is_some() && primary != old
        })
        .await;
        primary.unwrap()
    }

    /// SIGKILL; returns when it is gone.
    pub(crate) fn kill(&self, index: usize) {
        self.member(index).kill();
    }

    /// SIGTERM; returns when it ended, after it handed over and told its clients so.
    pub(crate) async fn stop_cleanly(&self, index: usize) {
        self.member(index).signal("-TERM");
        until("a clean end", async || self.member(index).ended()).await;
    }

    /// Waits until it ended by itself, as for want of room.
    pub(crate) async fn ends(&self, index: usize) {
        until("an end", async || self.member(index).ended()).await;
    }

    /// Starts a member that ended, with the data it had; returns when it is a primary or a
    /// secondary.
    pub(crate) async fn restart(&self, index: usize) {
        self.spawn(index).await;
        until("a member again", async || {
            self.hello(index)
                .await
                .is_some_and(|hello| is(&hello, PRIMARY) || is(&hello, SECONDARY))
        })
        .await;
    }

    /// SIGSTOP: it is there and silent.
    pub(crate) fn pause(&self, index: usize) {
        self.member(index).signal("-STOP");
    }

    /// SIGCONT.
    pub(crate) fn resume(&self, index: usize) {
        self.member(index).signal("-CONT");
    }

    /// The primary hands over; returns the new one.
    pub(crate) async fn step_down(&self) -> usize {
        let old = self.primary().await;
        // Refused while those that could follow have stepped down themselves a moment ago.
        let order = doc! { "replSetStepDown": 2, "secondaryCatchUpPeriodSecs": 1 };
        until("somebody to hand over to", async || self.command(old, order.clone()).await.is_ok())
            .await;
        self.next_primary(old).await
    }

    /// Cuts a way, until `heal`.
    pub(crate) fn cut(&self, cut: Cut) {
        self.network.cut(cut);
    }

    /// Heals every way; what was sent meanwhile arrives.
    pub(crate) fn heal(&self) {
        self.network.heal();
    }

    /// Ends the connections that stand on this way; new ones are lawful.
    pub(crate) fn reset(&self, way: Cut) {
        self.network.reset(way);
    }

    /// Number of open connections on this way.
    pub(crate) fn connections(&self, way: Cut) -> usize {
        self.network.connections(way)
    }

    /// Every sync of this member takes so much longer, until it is told zero. Returns once it is
    /// so. Takes `strace`.
    pub(crate) async fn delay_sync(&self, index: usize, delay: Duration) {
        self.member(index).delay_sync(delay);
        until("a tracer", async || delay.is_zero() || self.member(index).delayed()).await;
    }

    /// Commands fail on this member as `failCommand` does it,
    /// `{ mode: …, data: { failCommands: […], … } }`: those of the application `jeton`, unless
    /// `data` has another `appName`.
    pub(crate) async fn fail_command(&self, index: usize, point: Document) {
        let mut command = doc! { "configureFailPoint": "failCommand" };
        command.extend(point);
        let data = command.get_document_mut("data").expect("what fails");
        if !data.contains_key("appName") {
            data.insert("appName", "jeton");
        }
        self.command(index, command).await.unwrap();
    }

    /// No command fails any more on the members that answer.
    pub(crate) async fn clear_failpoints(&self) {
        for index in 0..self.members.len() {
            if self.member(index).answers() {
                self.command(index, doc! { "configureFailPoint": "failCommand", "mode": "off" })
                    .await
                    .unwrap();
            }
        }
    }

    /// Gives the member a certificate that soon expires, waits until it has, and ends its clients'
    /// connections.
    pub(crate) async fn expire_certificate(&self, index: usize) {
        // Not one that has expired: a member that is given such a one ends.
        let validity = Duration::from_secs(2);
        self.certify(index, validity).await;
        // Certificates know whole seconds.
        pause(validity + Duration::from_secs(1)).await;
        self.reset(Cut::Clients(index));
    }

    /// Gives the member a certificate that stands.
    pub(crate) async fn renew_certificate(&self, index: usize) {
        self.certify(index, DAY).await;
    }

    async fn certify(&self, index: usize, validity: Duration) {
        self.secrets.certify(index, validity);
        self.command(index, doc! { "rotateCertificates": 1 }).await.unwrap();
    }

    /// The process; a member that ended has none.
    pub(crate) fn pid(&self, index: usize) -> u32 {
        self.member(index).pid().expect("it runs")
    }

    /// Its log.
    pub(crate) fn log(&self, index: usize) -> String {
        self.member(index).log()
    }

    /// A client of the present primary, past its proxy, that may do everything and waits for the
    /// majority: for looking at the data.
    pub(crate) async fn client(&self) -> Client {
        let primary = self.primary().await;
        Client::with_options(self.options_of(primary)).unwrap()
    }

    /// Answer of this member to a command on `admin`, past its proxy; the failure in words.
    pub(crate) async fn command(
        &self,
        index: usize,
        command: Document,
    ) -> Result<Document, String> {
        self.command_within(ANSWER, index, command).await
    }

    async fn command_within(
        &self,
        time: Duration,
        index: usize,
        command: Document,
    ) -> Result<Document, String> {
        // A task of its own: the driver does not want its futures dropped.
        let client = self.client_of(index);
        let asked = self
            .runtime()
            .spawn(async move { client.database("admin").run_command(command).await });
        let answer = tokio::time::timeout(time, asked)
            .await
            .map_err(|_| format!("no answer in {time:?}"))?;
        answer.unwrap().map_err(|error| error.to_string())
    }

    async fn hello(&self, index: usize) -> Option<Document> {
        self.command(index, doc! { "hello": 1 }).await.ok()
    }

    /// Of those that answer.
    async fn hellos(&self) -> Vec<(usize, Document)> {
        let answering = (0..self.members.len()).filter(|&index| self.member(index).answers());
        let hellos =
            join_all(answering.map(async |index| Some((index, self.hello(index).await?)))).await;
        hellos.into_iter().flatten().collect()
    }

    async fn spawn(&self, index: usize) {
        for last in [false, false, true] {
            let (member, mongod) = (self.members[index].clone(), self.mongod.clone());
            // On a thread that lives as long as the set.
            self.runtime()
                .spawn(async move { member.lock().unwrap().spawn(&mongod) })
                .await
                .unwrap();
            self.network.introduce(index, self.pid(index));
            let mut ended = false;
            until("a member that listens", async || {
                ended = self.member(index).ended();
                ended || self.member(index).listens()
            })
            .await;
            if !ended {
                return;
            }
            // Somebody may have taken the port since it was free.
            assert!(!last, "mongod ended: {}", self.log(index));
        }
    }

    /// The harness's client of this member, with tasks in its runtime.
    fn client_of(&self, index: usize) -> Client {
        let options = self.options_of(index);
        let ServerAddress::Tcp { port: Some(port), .. } = options.hosts[0] else {
            unreachable!("made so")
        };
        let _inside = self.runtime().enter();
        let mut clients = self.clients.lock().unwrap();
        match &clients[index] {
            Some((known, client)) if *known == port => client.clone(),
            _ => {
                let client = Client::with_options(options).unwrap();
                clients[index] = Some((port, client.clone()));
                client
            }
        }
    }

    fn options_of(&self, index: usize) -> ClientOptions {
        let port = Some(self.member(index).port.load(Ordering::SeqCst));
        // A member itself, as the key file shows: there before any user is.
        let system =
            Credential::builder().username("__system".to_owned()).password(secrets::KEY.to_owned());
        let system =
            system.source("local".to_owned()).mechanism(AuthMechanism::ScramSha256).build();
        // Also when the certificate has expired: the harness is not what is tested.
        let tls = TlsOptions::builder().allow_invalid_certificates(true).build();
        ClientOptions::builder()
            .hosts(vec![ServerAddress::Tcp { host: "127.0.0.1".into(), port }])
            .direct_connection(true)
            .app_name(APP_NAME.to_owned())
            .server_selection_timeout(Duration::from_secs(2))
            .connect_timeout(Duration::from_secs(2))
            .write_concern(
                WriteConcern::builder().w(Acknowledgment::Majority).journal(true).build(),
            )
            .credential(self.options.auth.then_some(system))
            .tls(self.options.tls.then_some(Tls::Enabled(tls)))
            .build()
    }

    fn member(&self, index: usize) -> MutexGuard<'_, Member> {
        self.members[index].lock().unwrap()
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().unwrap()
    }
}

impl Drop for ReplicaSet {
    fn drop(&mut self) {
        for member in &self.members {
            member.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).kill();
        }
        if let Some(runtime) = self.runtime.take() {
            let _inside = runtime.enter();
            self.clients.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clear();
            drop(_inside);
            runtime.shutdown_background();
        }
    }
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Answer of a member to `hello`.
const PRIMARY: &str = "isWritablePrimary";
const SECONDARY: &str = "secondary";

fn is(hello: &Document, state: &str) -> bool {
    hello.get_bool(state).unwrap_or(false)
}

fn arguments(options: &Options, secrets: &Secrets, index: usize) -> Vec<String> {
    let mut arguments = format!(
        "--replSet {NAME} --bind_ip 127.0.0.1 --nounixsocket --wiredTigerCacheSizeGB 0.25 --quiet"
    );
    for parameter in
        ["enableTestCommands=1", "ttlMonitorEnabled=false", "diagnosticDataCollectionEnabled=false"]
    {
        arguments += &format!(" --setParameter {parameter}");
    }
    let mut arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
    let mut file = |name: &str, path: PathBuf| {
        arguments.extend([name.to_owned(), path.to_str().unwrap().to_owned()])
    };
    if options.auth {
        file("--keyFile", secrets.key_file());
    }
    if options.tls {
        file("--tlsCAFile", secrets.authority_file());
        file("--tlsCertificateKeyFile", secrets.member_file(index));
        arguments.extend(
            ["--tlsMode", "requireTLS", "--tlsAllowConnectionsWithoutCertificates"]
                .map(str::to_owned),
        );
    }
    arguments.extend(options.arguments.iter().cloned());
    arguments
}
