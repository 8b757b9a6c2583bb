//! The server under test, in this process: started on a port of its own, with a clock that a test
//! moves by hand. What it is kept in is a directory of its own, or with `JETON_TEST_STORE=mongodb` a
//! database of its own on the server that `JETON_TEST_MONGODB` names.
//!
//! | to | method | file |
//! |--|--|--|
//! | start | `start`, `start_with` (configuration), `start_unlimited`, `start_without_grace` | `mod` |
//! | start over a given store | `start_on`, [`prepare`] (a [`FaultyStore`](super::faulty::FaultyStore) that fails as planned) | `mod`, `faulty` |
//! | run several nodes | `start_shared`, then `join` | `mod` |
//! | stop and start again | `end`, `restart`, `restart_with`, `restart_killed` | `mod` |
//! | move time | `advance`, `now` | `mod` |
//! | call as a client | `token`, `refresh`, `revoke`, `introspect`, … | `calls` |
//! | call any RPC of a service | `tokens()`, `clients()`, `audiences()`, `keys()`, `revocations()`, `audit()` | `calls` |
//! | administrate | `register`, `change`, `disable`, `assign`, `rotate_keys`, `revoke_all`, `as_admin`, … | `admin` |
//! | read the trail | `trail`, `trail_of`, `events_of`, `verify_chain`, … | `trail` |
//! | walk every RPC of administration | [`Rpc::ALL`], `call_rpc`, `rpc_target` | `rpcs` |
//! | sign what a server never would, or change its store | [`TamperableServer`] | `tampering` |
//! | look into what a server kept | [`StoreDir`] | `store_dir` |
//! | make requests, and read answers | `bearer`, `basic`, `refreshing`; `reason`, `blamed`, `shape`, … | `requests`, `answers` |

mod admin;
mod answers;
mod calls;
mod faulty;
mod requests;
mod rpcs;
mod store_dir;
mod tampering;
mod trail;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use jeton::{
    clock::{Clock, ManualClock},
    config::Config,
    model::Timestamp,
    server::{self, Options},
    store::Store,
};
use secrecy::ExposeSecret;
use tokio::{sync::oneshot, task::JoinHandle};
use tonic::transport::Channel;

pub use self::{
    admin::RpcTarget,
    answers::{
        INACTIVE, Shape, assert_invalid_grant, blamed, bytes, client_of, decoded, kid_of, reason,
        seconds, secret_of, shape,
    },
    calls::RATE_WINDOW,
    faulty::{PreparedServer, prepare},
    requests::{
        aimed_at, basic, bearer, client, refreshing, serving, texts, unlimited, with_authorization,
    },
    rpcs::Rpc,
    store_dir::{
        MAX_STALENESS, StoreDir, adopt, has_no_files, on_mongodb, samples_cases, tolerance,
    },
    tampering::{TamperableServer, changed},
};

/// The issuer of every test's server.
pub const ISSUER: &str = "https://jeton.test";
/// Time at which every test begins.
pub const START: i64 = 1_800_000_000;

/// A caller with its credentials.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    pub id: String,
    pub secret: String,
}

/// A running server.
pub struct TestServer {
    pub clock: Arc<ManualClock>,
    pub address: SocketAddr,
    pub admin: Caller,
    pub channel: Channel,
    pub home: Arc<StoreDir>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl TestServer {
    /// With the default configuration.
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// With a configuration that `change` has changed.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        Self::beginning(StoreDir::new(), change, None).await
    }

    /// The first of several servers over one database, with a configuration that `change` has
    /// changed.
    pub async fn start_shared(change: impl FnOnce(&mut Config)) -> Self {
        Self::beginning(StoreDir::shared(), change, None).await
    }

    /// One more server over this one's database, under its master key and by its clock; `store` if
    /// one is open already.
    pub async fn join(
        &self,
        node: &str,
        change: impl FnOnce(&mut Config),
        store: Option<Arc<dyn Store>>,
    ) -> Self {
        let change = |config: &mut Config| {
            node.clone_into(&mut config.node);
            change(config);
        };
        Self::launch(self.home.clone(), self.clock.clone(), self.admin.clone(), change, store).await
    }

    /// Over a store of `home` that is open already.
    pub async fn start_on(
        home: Arc<StoreDir>,
        change: impl FnOnce(&mut Config),
        store: Arc<dyn Store>,
    ) -> Self {
        Self::beginning(home, change, Some(store)).await
    }

    pub async fn beginning(
        home: Arc<StoreDir>,
        change: impl FnOnce(&mut Config),
        store: Option<Arc<dyn Store>>,
    ) -> Self {
        let clock = Arc::new(ManualClock::at(Timestamp::from_seconds(START)));
        Self::launch(home, clock, Caller::default(), change, store).await
    }

    pub async fn launch(
        home: Arc<StoreDir>,
        clock: Arc<ManualClock>,
        known: Caller,
        change: impl FnOnce(&mut Config),
        store: Option<Arc<dyn Store>>,
    ) -> Self {
        let mut config = Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            metrics_listen: String::new(),
            issuer: ISSUER.to_owned(),
            ..Config::default()
        };
        home.furnish(&mut config);
        change(&mut config);
        let options = Options {
            config,
            dev: true,
            bootstrap: true,
            accept_rollback: false,
            store,
            clock: Some(clock.clone()),
        };
        let (stop, stopped) = oneshot::channel();
        let (send, started) = oneshot::channel();
        let task = tokio::spawn(async move {
            let report = move |started: &server::Started| {
                let bootstrap = started.bootstrap.as_ref().expect("a first client");
                let secret = bootstrap
                    .client_secret
                    .as_ref()
                    .map(|secret| secret.expose_secret().to_owned());
                let _ = send.send((started.address, bootstrap.client_id.to_string(), secret));
                Ok(())
            };
            let until = async move {
                let _ = stopped.await;
            };
            server::run(options, report, until).await.expect("the server runs");
        });
        let (address, id, secret) = started.await.expect("the server starts");
        // The server has silenced panics; here they say what failed.
        std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
        let admin = Caller { id, secret: secret.unwrap_or(known.secret) };
        let channel =
            Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Self { clock, address, admin, channel, home, stop: Some(stop), task }
    }

    /// Stops, and starts again on what it kept.
    pub async fn restart(self) -> Self {
        self.restart_with(|_| {}).await
    }

    /// Stops, and starts again with a configuration that `change` has changed.
    pub async fn restart_with(mut self, change: impl FnOnce(&mut Config)) -> Self {
        self.end().await;
        Self::launch(self.home.clone(), self.clock.clone(), self.admin.clone(), change, None).await
    }

    /// Stops and waits until everything is on disk.
    pub async fn end(&mut self) {
        self.channel = Channel::from_static("http://127.0.0.1:1").connect_lazy();
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
            (&mut self.task).await.unwrap();
        }
    }

    /// A server that runs elsewhere, by its own clock.
    pub async fn remote(address: SocketAddr, admin: Caller) -> Self {
        let channel =
            Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let clock = Arc::new(ManualClock::at(Timestamp::from_seconds(START)));
        Self {
            clock,
            address,
            admin,
            channel,
            home: StoreDir::new(),
            stop: None,
            task: tokio::spawn(async {}),
        }
    }

    /// Another server on what is kept at this moment: what one finds that comes after a kill. On
    /// MongoDB it takes the node's name away from the first, which then can write no more.
    pub async fn restart_killed(mut self) -> Self {
        let left = if on_mongodb() { self.home.clone() } else { self.home.copy() };
        let next = Self::launch(left, self.clock.clone(), self.admin.clone(), |_| {}, None).await;
        self.end().await;
        next
    }

    /// A server whose budgets are out of the way.
    pub async fn start_unlimited() -> Self {
        Self::start_with(unlimited).await
    }

    /// A server whose refresh tokens are spent at once.
    pub async fn start_without_grace() -> Self {
        Self::start_with(|config| {
            unlimited(config);
            config.token.refresh_grace_seconds = 0;
        })
        .await
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.home.data_dir()
    }

    /// Moves the clock.
    pub fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    /// The time in whole seconds.
    pub fn now(&self) -> i64 {
        self.clock.now().seconds()
    }
}
