//! A server in this process, and the callers a test needs.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use jeton::{
    clock::{Clock, ManualClock},
    config::Config,
    model::Timestamp,
    proto::{
        admin::{
            Client, CreateClientRequest, Event, Principal,
            audience_service_client::AudienceServiceClient,
            audit_service_client::AuditServiceClient, client_service_client::ClientServiceClient,
            key_service_client::KeyServiceClient, principal::Kind,
            revocation_service_client::RevocationServiceClient,
        },
        token::{
            IntrospectRequest, IntrospectResponse, RefreshRequest, RefreshResponse, RevokeRequest,
            TokenRequest, TokenResponse, token_service_client::TokenServiceClient,
        },
    },
    server::{self, Options},
    store::Store,
};
use secrecy::ExposeSecret;
use tokio::{sync::oneshot, task::JoinHandle};
use tonic::{Request, Status, metadata::MetadataValue, transport::Channel};
use tonic_types::StatusExt;

use crate::service::home::{Home, on_mongodb};

/// The issuer of every test's server.
pub const ISSUER: &str = "https://jeton.test";
/// When every test begins.
pub const START: i64 = 1_800_000_000;

/// A caller with its credentials.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    pub id: String,
    pub secret: String,
}

/// A running server.
pub struct World {
    pub clock: Arc<ManualClock>,
    pub address: SocketAddr,
    pub admin: Caller,
    pub channel: Channel,
    pub home: Arc<Home>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl World {
    /// With the default configuration.
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// With a configuration that `change` has changed.
    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::beginning(Home::new(), change, None).await
    }

    /// The first of several servers over one database, with a configuration that `change` has
    /// changed.
    pub async fn first(change: impl FnOnce(&mut Config)) -> Self {
        Self::beginning(Home::shared(), change, None).await
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
    pub async fn over(
        home: Arc<Home>,
        change: impl FnOnce(&mut Config),
        store: Arc<dyn Store>,
    ) -> Self {
        Self::beginning(home, change, Some(store)).await
    }

    async fn beginning(
        home: Arc<Home>,
        change: impl FnOnce(&mut Config),
        store: Option<Arc<dyn Store>>,
    ) -> Self {
        let clock = Arc::new(ManualClock::at(Timestamp::from_seconds(START)));
        Self::launch(home, clock, Caller::default(), change, store).await
    }

    async fn launch(
        home: Arc<Home>,
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

    /// The data directory.
    pub fn data_dir(&self) -> std::path::PathBuf {
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

    pub fn tokens(&self) -> TokenServiceClient<Channel> {
        TokenServiceClient::new(self.channel.clone())
    }

    pub fn clients(&self) -> ClientServiceClient<Channel> {
        ClientServiceClient::new(self.channel.clone())
    }

    pub fn audiences(&self) -> AudienceServiceClient<Channel> {
        AudienceServiceClient::new(self.channel.clone())
    }

    pub fn keys(&self) -> KeyServiceClient<Channel> {
        KeyServiceClient::new(self.channel.clone())
    }

    pub fn revocations(&self) -> RevocationServiceClient<Channel> {
        RevocationServiceClient::new(self.channel.clone())
    }

    pub fn audit(&self) -> AuditServiceClient<Channel> {
        AuditServiceClient::new(self.channel.clone())
    }

    /// Registers a client; an empty id lets the server choose.
    pub async fn register(&self, client: Client) -> Caller {
        let request =
            self.as_admin(CreateClientRequest { client: Some(client), secret: None }).await;
        let created = self.clients().create_client(request).await.unwrap().into_inner();
        Caller { id: created.client.unwrap().client_id, secret: created.client_secret }
    }

    /// A message with the administrator's access token.
    pub async fn as_admin<T>(&self, message: T) -> Request<T> {
        let token = self.token(&self.admin, &["jeton:admin"]).await.unwrap();
        bearer(message, &token.access_token)
    }

    pub async fn token(&self, caller: &Caller, scopes: &[&str]) -> Result<TokenResponse, Status> {
        let scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        let Caller { id, secret } = caller.clone();
        let request = TokenRequest {
            client_id: id,
            client_secret: secret,
            scopes,
            ..TokenRequest::default()
        };
        self.tokens().token(request).await.map(tonic::Response::into_inner)
    }

    pub async fn refresh(
        &self,
        caller: &Caller,
        refresh_token: &str,
    ) -> Result<RefreshResponse, Status> {
        let Caller { id, secret } = caller.clone();
        let refresh_token = refresh_token.to_owned();
        let request = RefreshRequest {
            client_id: id,
            client_secret: secret,
            refresh_token,
            scopes: Vec::new(),
        };
        self.tokens().refresh(request).await.map(tonic::Response::into_inner)
    }

    pub async fn revoke(&self, caller: &Caller, token: &str) -> Result<(), Status> {
        let Caller { id, secret } = caller.clone();
        let request = RevokeRequest {
            client_id: id,
            client_secret: secret,
            token: token.to_owned(),
            ..RevokeRequest::default()
        };
        self.tokens().revoke(request).await.map(drop)
    }

    /// What the administrator, who may see any token, is told of one.
    pub async fn introspect(&self, token: &str) -> IntrospectResponse {
        self.introspect_as(&self.admin, token).await.unwrap()
    }

    pub async fn introspect_as(
        &self,
        caller: &Caller,
        token: &str,
    ) -> Result<IntrospectResponse, Status> {
        let Caller { id, secret } = caller.clone();
        let request = IntrospectRequest {
            client_id: id,
            client_secret: secret,
            token: token.to_owned(),
            ..IntrospectRequest::default()
        };
        self.tokens().introspect(request).await.map(tonic::Response::into_inner)
    }

    pub async fn is_active(&self, token: &str) -> bool {
        self.introspect(token).await.active.expect("active is always there")
    }
}

/// A message with an access token in its metadata.
pub fn bearer<T>(message: T, token: &str) -> Request<T> {
    with_authorization(message, &format!("Bearer {token}"))
}

/// A message with this `authorization`.
pub fn with_authorization<T>(message: T, value: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", MetadataValue::try_from(value).unwrap());
    request
}

/// The reason in a status' `ErrorInfo`: the OAuth error code in upper case.
pub fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// A client that may refresh, with two scopes.
pub fn refreshing() -> Client {
    use jeton::proto::admin::GrantType;
    Client {
        scopes: vec!["orders:read".to_owned(), "orders:write".to_owned()],
        grant_types: vec![GrantType::ClientCredentials.into(), GrantType::RefreshToken.into()],
        ..Client::default()
    }
}

/// Party that acts: a client.
pub fn client(id: &str) -> Option<Principal> {
    Some(Principal { kind: Some(Kind::ClientId(id.to_owned())) })
}

/// Id of the client that acted; empty if none did.
pub fn client_of(event: &Event) -> &str {
    match event.actor.as_ref().and_then(|actor| actor.kind.as_ref()) {
        Some(Kind::ClientId(id)) => id,
        Some(Kind::Node(_)) | None => "",
    }
}

/// Id of the client secret that the caller of an event authenticated with; empty if none.
pub fn secret_of(event: &Event) -> &str {
    let auth = event.auth.as_ref().filter(|auth| auth.method == "client_secret");
    auth.map_or("", |auth| &auth.id)
}

/// Whether `needle` is in `bytes`: by a search that is fast in a debug build too.
pub fn holds(bytes: &[u8], needle: &str) -> bool {
    String::from_utf8_lossy(bytes).contains(needle)
}

/// Whether `needle` is in any file below `dir`.
pub fn is_on_disk(dir: &Path, needle: &str) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return is_on_disk(&path, needle);
        }
        holds(&std::fs::read(&path).unwrap_or_default(), needle)
    })
}

impl World {
    /// A server that runs elsewhere, by its own clock.
    pub async fn at(address: SocketAddr, admin: Caller) -> Self {
        let channel =
            Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let clock = Arc::new(ManualClock::at(Timestamp::from_seconds(START)));
        Self {
            clock,
            address,
            admin,
            channel,
            home: Home::new(),
            stop: None,
            task: tokio::spawn(async {}),
        }
    }

    /// Another server on what is kept at this moment: what one finds that comes after a kill. On
    /// MongoDB it takes the node's name away from the first, which then can write no more.
    pub async fn killed(mut self) -> Self {
        let left = if on_mongodb() { self.home.clone() } else { self.home.copy() };
        let next = Self::launch(left, self.clock.clone(), self.admin.clone(), |_| {}, None).await;
        self.end().await;
        next
    }
}
