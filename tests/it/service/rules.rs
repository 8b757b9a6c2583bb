//! Rules over a store, without a port, so that nothing else works on the store: what a call costs
//! and what it leaves can be counted.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use argon2::{Algorithm, Argon2, Params, PasswordHasher, Version};
use jeton::{
    admin::{AdminScope, Administrator, Conditions, NewSecret, Settings, keys},
    clock::{Clock, ClockOffset, ManualClock},
    config::{Config, Issue, Limits as Configured, Rate},
    crypto::{
        chain::ChainKey, passwords::Passwords, records::RecordKey, seal::Sealer,
        verifying_keys::ClaimLimits,
    },
    error::Error,
    limit::Limits,
    model::{Action, Call, Event, Peer, Stamp, Timestamp, event::Filter, keyset::KeyPolicy},
    oauth::{Credentials, Issued, Terms, token_endpoint::Request},
    services::{Parts, Services},
    standing::{NodeState, Opening},
    store::{AuditStore, Change, KeyStore, RevocationStore, authentic::Authentic},
};
use secrecy::ExposeSecret;
use tokio::time::Instant;

use crate::support::until::HANG;
use crate::support::{
    faulty::FaultyStore,
    server::{Caller, ISSUER, MAX_STALENESS, START, StoreDir, on_mongodb},
};

/// Blocks of a hash of our own, and of every refusal that is hashed for: a client may have two
/// secrets.
pub const HASH: u64 = 19_456 * 2;
pub const REFUSAL: u64 = 2 * HASH;
pub const RIGHT: &str = "correct horse battery staple";
pub const WRONG: &str = "incorrect horse battery staple";

/// An services over a store of its own.
pub struct StoreCase {
    pub home: Arc<StoreDir>,
    pub store: Arc<FaultyStore>,
    pub clock: Arc<ManualClock>,
    limits: Configured,
    pub services: Arc<Services>,
    bootstrap: Caller,
}

pub fn from(last: u8) -> Peer {
    Peer::Ip([10, 0, 0, last].into())
}

pub fn plenty(limits: &mut Configured) {
    limits.failed_authentication = Rate { per_second: 1_000_000, burst: 1_000_000 };
    limits.argon2_queue = 1_000;
}

pub fn few(limits: &mut Configured) {
    limits.failed_authentication = Rate { per_second: 1, burst: 3 };
}

pub fn caller(id: &str, secret: &str) -> Caller {
    Caller { id: id.to_owned(), secret: secret.to_owned() }
}

/// A hash made elsewhere, cheaper than ours.
pub fn cheap(secret: &str) -> String {
    let argon2 =
        Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(7_168, 5, 1, None).unwrap());
    argon2.hash_password_with_salt(secret.as_bytes(), b"some salt of it").unwrap().to_string()
}

impl StoreCase {
    pub async fn with(change: impl FnOnce(&mut Configured)) -> Self {
        let home = StoreDir::new();
        let store = home.open_store(ChainKey::new(Sealer::new([7; 32]).derive("audit head"))).await;
        let store = Arc::new(FaultyStore::new(store));
        let clock = Arc::new(ManualClock::at(Timestamp::from_seconds(START)));
        let mut limits = Config::default().limits;
        change(&mut limits);
        let services = services(&store, &clock, &limits).await;
        let mut bench = Self { home, store, clock, limits, services, bootstrap: Caller::default() };
        let first = bench
            .services
            .admin
            .clients
            .bootstrap(&bench.call(Peer::Local))
            .await
            .unwrap()
            .unwrap();
        bench.bootstrap = caller(first.0.as_str(), first.1.unwrap().expose_secret());
        bench
    }

    /// A new process on the same store: nothing is remembered, and every budget is full.
    pub async fn restarted(self) -> Self {
        let services = services(&self.store, &self.clock, &self.limits).await;
        let bench = Self { services, ..self };
        bench.caught_up().await;
        bench
    }

    /// Waits until all that was written by now was heard: what is heard late makes a client be read
    /// again, which costs a read.
    pub async fn caught_up(&self) {
        let (begun, mut ticks) = (Instant::now(), tokio::time::interval(Duration::from_millis(20)));
        let is_behind =
            || self.services.standing.tokens.age().is_none_or(|age| Instant::now() - age < begun);
        while on_mongodb() && is_behind() {
            ticks.tick().await;
        }
    }

    pub fn call(&self, peer: Peer) -> Call {
        Call { now: self.clock.now(), peer, request_id: "r".into() }
    }

    pub async fn token(&self, peer: Peer, caller: &Caller) -> Result<Issued, Error> {
        self.asking(peer, caller, Request::default()).await
    }

    pub async fn asking(
        &self,
        peer: Peer,
        caller: &Caller,
        request: Request,
    ) -> Result<Issued, Error> {
        let secret = caller.secret.clone().into();
        let credentials = Credentials::Secret { client_id: caller.id.clone(), secret };
        self.services.tokens.token(&self.call(peer), credentials, request).await
    }

    /// The code of a refusal, or "ok".
    pub async fn answer(&self, peer: Peer, caller: &Caller) -> &'static str {
        self.token(peer, caller).await.err().map_or("ok", |error| error.code())
    }

    pub async fn administrator(&self) -> Administrator {
        let request = Request { scopes: vec!["jeton:admin".to_owned()], ..Request::default() };
        let issued = self.asking(Peer::Local, &self.bootstrap, request).await.unwrap();
        let credentials = Credentials::Bearer(issued.access_token);
        self.services
            .admin
            .gate
            .admit(&self.call(Peer::Local), credentials, AdminScope::Clients)
            .await
            .unwrap()
    }

    pub async fn register(&self, id: &str, secret: NewSecret) -> Caller {
        let admin = self.administrator().await;
        let (call, name) = (self.call(Peer::Local), Some(id.parse().unwrap()));
        let added = self
            .services
            .admin
            .clients
            .create(&call, &admin, name, None, Settings::default(), secret)
            .await
            .unwrap();
        let value = added.value.map(|value| value.expose_secret().to_owned());
        caller(id, value.as_deref().unwrap_or(RIGHT))
    }

    pub async fn chosen(&self, id: &str) -> Caller {
        self.register(id, NewSecret::Plain(RIGHT.into())).await
    }

    pub async fn disable(&self, caller: &Caller) {
        let (admin, id) = (self.administrator().await, caller.id.parse().unwrap());
        self.services
            .admin
            .clients
            .disable(&self.call(Peer::Local), &admin, &id, Conditions::default())
            .await
            .unwrap();
    }

    /// Blocks and reads of clients that a call costs.
    pub async fn cost<T>(&self, call: impl Future<Output = T>) -> (T, u64, u64) {
        let (work, reads) = (self.services.passwords.work(), self.store.reads.load(SeqCst));
        let answer = call.await;
        (answer, self.services.passwords.work() - work, self.store.reads.load(SeqCst) - reads)
    }

    /// The records of an action, oldest first, once the minute of the refusals is over.
    pub async fn records(&self, action: Action) -> Vec<Event> {
        self.clock.advance(Duration::from_secs(60));
        self.services.clients.record_refusals(self.clock.now(), false).await.unwrap();
        // Records that come a moment later are there after one that waits.
        self.store
            .append(Stamp::internal(self.clock.now()).done(Action::ServerStarted, ""))
            .await
            .unwrap();
        let filter = Filter { action: Some(action.as_str().to_owned()), ..Filter::default() };
        let records = self.store.events(&filter, None, 10_000).await.unwrap();
        records.into_iter().rev().map(|record| record.event).collect()
    }

    /// Targets and reasons of the refusals on record.
    pub async fn refusals(&self) -> Vec<(String, String)> {
        let records = self.records(Action::AuthenticationFailed).await;
        records.into_iter().map(|event| (event.target, event.reason.into_owned())).collect()
    }
}

async fn services(
    store: &Arc<FaultyStore>,
    clock: &Arc<ManualClock>,
    limits: &Configured,
) -> Arc<Services> {
    let (config, now, sealer) = (Config::default(), clock.now(), Arc::new(Sealer::new([7; 32])));
    let seconds = Duration::from_secs;
    let policy = KeyPolicy {
        rotate_every: seconds(config.keys.rotate_every_seconds),
        publish_ahead: seconds(config.keys.publish_ahead_seconds),
        verify_after: seconds(3_600),
    };
    let terms = Terms {
        issuer: ISSUER.into(),
        own_audience: ISSUER.parse().unwrap(),
        token: config.token.clone(),
        keys: policy,
        algorithm: config.keys.algorithm,
    };
    let records =
        Arc::new(Authentic::new(store.clone(), RecordKey::new(sealer.derive("client record"))));
    if store.keyset().await.unwrap().is_none() {
        let (first, event) = keys::first(&sealer, &terms, now);
        store.replace_keyset(&first, event).await.unwrap();
    }
    let keyset = store.keyset().await.unwrap().unwrap();
    let claim_limits =
        ClaimLimits { max_lifetime: terms.token.access_lifetime_max(), skew: seconds(5) };
    let opening = Opening { sealer: sealer.clone(), issuer: terms.issuer.clone(), claim_limits };
    let standing = Arc::new(NodeState::new(&keyset, opening, seconds(MAX_STALENESS)).unwrap());
    let snapshot = store.follow(now, standing.clone()).await.unwrap();
    standing.load(snapshot);
    jeton::store::Follower::apply(&*standing, &Change::Keyset(Arc::new(keyset)));
    Arc::new(Services::new(Parts {
        store: records.clone(),
        standing,
        limits: Arc::new(Limits::new(limits)),
        passwords: Arc::new(Passwords::new(limits.argon2_parallel, limits.argon2_queue)),
        chain: Arc::new(ChainKey::new(sealer.derive("audit head"))),
        sealer,
        issue: Issue::Durable,
        clock: clock.clone(),
        clock_offset: Arc::new(ClockOffset::default()),
        list_patience: HANG,
        terms,
        runtime: tokio::runtime::Handle::current(),
    }))
}
