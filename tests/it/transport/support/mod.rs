//! A port with a puppet behind it, and clients that misbehave.

pub(crate) mod frames;
pub(crate) mod http;
pub(crate) mod scripted;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use jeton::{
    api::{
        guard::{Admit, Guard, Methods},
        http::{Published, app},
        listen::{self, Heartbeats, Options, Proxies, Summary},
    },
    clock::ManualClock,
    model::Timestamp,
};
use serde_json::json;
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};
use tonic::service::Routes;
use tonic_health::ServingStatus;

use self::scripted::ScriptedPeer;
pub(crate) use crate::support::until::{HANG, until};
use jeton::proto::token::token_service_server::TokenServiceServer;

/// The service of the puppet.
pub(crate) const SERVICE: &str = "/jeton.token.v1.TokenService";
/// A method that the puppet answers.
pub(crate) const TOKEN: &str = "/jeton.token.v1.TokenService/Token";
/// A stream that never ends.
pub(crate) const WATCH: &str = "/grpc.health.v1.Health/Watch";
/// The longest message, in bytes.
pub(crate) const MAX_MESSAGE: usize = 64 * 1024;
/// The time of the server's clock.
pub(crate) const NOW: Timestamp = Timestamp::from_millis(1_763_769_600_000);

/// A server on a port of its own.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) methods: &'static Methods,
    pub(crate) puppet: ScriptedPeer,
    /// Peers of the calls, in their order.
    pub(crate) peers: Arc<Mutex<Vec<String>>>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<std::io::Result<Summary>>,
}

/// Generous, so that a busy machine keeps within them: what a test waits for it sets itself.
pub(crate) fn options() -> Options {
    Options {
        connections: 10_000,
        connections_per_peer: 10_000,
        streams_per_connection: 200,
        // Longer than any wait of a test: a connection that is closed was closed for another reason.
        handshake: HANG * 5,
        unread: HANG * 5,
        idle: Duration::from_secs(600),
        age: Duration::from_secs(3_600),
        drain: Duration::from_secs(5),
        workers: 2,
        tls: None,
        heartbeats: Heartbeats::default(),
        proxies: Proxies::default(),
    }
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(options(), Duration::from_secs(60)).await
    }

    pub(crate) async fn with(options: Options, deadline: Duration) -> Self {
        let methods =
            Methods::leaked(&[jeton::proto::DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET])
                .unwrap();
        // The tests open more connections than a process may by default.
        listen::raise_limit();
        let puppet = ScriptedPeer::default();
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_service_status("", ServingStatus::Serving).await;
        let token = TokenServiceServer::new(puppet.clone()).max_decoding_message_size(MAX_MESSAGE);
        let routes = Routes::new(health_service).add_service(token).into_axum_router();
        let clock = Arc::new(ManualClock::at(NOW));
        let chief = puppet.clone();
        let peers = Arc::<Mutex<Vec<String>>>::default();
        let seen = Arc::clone(&peers);
        let admit: Admit = Arc::new(move |call| {
            seen.lock().unwrap().push(call.peer.to_string());
            chief.admit()
        });
        let guard = Guard::new(app(routes, published(&puppet)), clock, deadline, methods, admit);
        let listener = listen::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(listen::serve(listener, guard, options, async {
            let _ = stopped.await;
        }));
        Self { address, methods, puppet, peers, stop: Some(stop), task }
    }

    /// Tells it to stop and does not wait.
    pub(crate) fn begin_stop(&mut self) {
        drop(self.stop.take());
    }

    /// Stops it.
    pub(crate) async fn stop(mut self) -> Summary {
        self.begin_stop();
        self.task.await.unwrap().unwrap()
    }
}

fn published(puppet: &ScriptedPeer) -> Published {
    let (puppet, keeper, prober) = (puppet.clone(), puppet.clone(), puppet.clone());
    Published {
        issuer: "https://issuer.example".into(),
        jwks: Arc::new(move || json!({ "keys": [{ "kty": "OKP", "kid": keeper.key() }] })),
        jwks_max_age: Duration::from_secs(300),
        grpc_services: ["jeton.token.v1.TokenService".to_owned()].into(),
        alive: Arc::new(move || !prober.is_stuck()),
        ready: Arc::new(move || {
            let puppet = puppet.clone();
            Box::pin(async move { puppet.is_ready() })
        }),
    }
}

/// A connection from another address of this machine: another peer.
pub(crate) async fn connect_from(peer: [u8; 4], address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((peer, 0).into()).unwrap();
    socket.connect(address).await.unwrap()
}
