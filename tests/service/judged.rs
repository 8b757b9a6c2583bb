//! Presented secrets, with the work they cost counted: blocks that argon2id fills, reads of clients, records. Without a port, so
//! that nothing else works on the store meanwhile.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use argon2::{Algorithm, Argon2, Params, PasswordHasher, Version};
use futures_util::future::join_all;
use jeton::{
    clock::{Clock, ManualClock, Skew},
    config::{Config, Issue, Limits as Configured, Rate},
    crypto::{chain::ChainKey, keyring::Judging, passwords::Passwords, records::RecordKey, seal::Sealer},
    error::Error,
    limit::Limits,
    model::{Action, Call, ClientId, Digest, Event, Peer, Stamp, Timestamp, event::Filter, keyset::KeyPolicy},
    oauth::{
        Administrator, Authority, Credentials, Issued, Parts, Terms,
        bearer::Office,
        client_credentials::Request,
        keys,
        registration::{NewSecret, Settings},
    },
    standing::{Opening, Standing},
    store::{AuditStore, Change, ClientStore, KeyStore, RevocationStore, authentic::Authentic},
};
use secrecy::ExposeSecret;
use tokio::time::Instant;

use crate::{
    faulty::{Act, FaultyStore, Kind},
    harness::{Caller, ISSUER, START},
    home::{Home, MAX_STALENESS, on_mongodb},
};

/// Blocks of a hash of our own, and of every refusal that is hashed for: a client may have two secrets.
const HASH: u64 = 19_456 * 2;
const REFUSAL: u64 = 2 * HASH;
const RIGHT: &str = "correct horse battery staple";
const WRONG: &str = "incorrect horse battery staple";

struct Bench {
    home: Arc<Home>,
    store: Arc<FaultyStore>,
    clock: Arc<ManualClock>,
    limits: Configured,
    authority: Arc<Authority>,
    bootstrap: Caller,
}

fn from(last: u8) -> Peer {
    Peer::Ip([10, 0, 0, last].into())
}

fn plenty(limits: &mut Configured) {
    limits.failed_authentication = Rate { per_second: 1_000_000, burst: 1_000_000 };
    limits.argon2_queue = 1_000;
}

fn few(limits: &mut Configured) {
    limits.failed_authentication = Rate { per_second: 1, burst: 3 };
}

fn caller(id: &str, secret: &str) -> Caller {
    Caller { id: id.to_owned(), secret: secret.to_owned() }
}

/// A hash made elsewhere, cheaper than ours.
fn cheap(secret: &str) -> String {
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(7_168, 5, 1, None).unwrap());
    argon2.hash_password_with_salt(secret.as_bytes(), b"some salt of it").unwrap().to_string()
}

impl Bench {
    async fn with(change: impl FnOnce(&mut Configured)) -> Self {
        let home = Home::new();
        let store = home.open_store(ChainKey::new(Sealer::new([7; 32]).derive("audit head"))).await;
        let store = Arc::new(FaultyStore::new(store));
        let clock = Arc::new(ManualClock::at(Timestamp::from_seconds(START)));
        let mut limits = Config::default().limits;
        change(&mut limits);
        let authority = authority(&store, &clock, &limits).await;
        let mut bench = Self { home, store, clock, limits, authority, bootstrap: Caller::default() };
        let first = bench.authority.bootstrap(&bench.call(Peer::Local)).await.unwrap().unwrap();
        bench.bootstrap = caller(first.0.as_str(), first.1.unwrap().expose_secret());
        bench
    }

    /// What a new process makes of the same store: nothing is remembered, and every budget is full.
    async fn restarted(self) -> Self {
        let authority = authority(&self.store, &self.clock, &self.limits).await;
        let bench = Self { authority, ..self };
        bench.caught_up().await;
        bench
    }

    /// Waits until all that was written by now was heard: what is heard late makes a client be read again, which costs a read.
    async fn caught_up(&self) {
        let (begun, mut ticks) = (Instant::now(), tokio::time::interval(Duration::from_millis(20)));
        let is_behind = || self.authority.standing().age().is_none_or(|age| Instant::now() - age < begun);
        while on_mongodb() && is_behind() {
            ticks.tick().await;
        }
    }

    fn call(&self, peer: Peer) -> Call {
        Call { now: self.clock.now(), peer, request_id: "r".into() }
    }

    async fn token(&self, peer: Peer, caller: &Caller) -> Result<Issued, Error> {
        self.asking(peer, caller, Request::default()).await
    }

    async fn asking(&self, peer: Peer, caller: &Caller, request: Request) -> Result<Issued, Error> {
        let secret = caller.secret.clone().into();
        let credentials = Credentials::Secret { client_id: caller.id.clone(), secret };
        self.authority.token(&self.call(peer), credentials, request).await
    }

    /// The code of a refusal, or "ok".
    async fn answer(&self, peer: Peer, caller: &Caller) -> &'static str {
        self.token(peer, caller).await.err().map_or("ok", |error| error.code())
    }

    async fn administrator(&self) -> Administrator {
        let request = Request { scopes: vec!["jeton:admin".to_owned()], ..Request::default() };
        let issued = self.asking(Peer::Local, &self.bootstrap, request).await.unwrap();
        let credentials = Credentials::Bearer(issued.access_token);
        self.authority.administrator(&self.call(Peer::Local), credentials, Office::Clients).await.unwrap()
    }

    async fn register(&self, id: &str, secret: NewSecret) -> Caller {
        let admin = self.administrator().await;
        let (call, name) = (self.call(Peer::Local), Some(id.parse().unwrap()));
        let added = self.authority.create_client(&call, &admin, name, None, Settings::default(), secret).await.unwrap();
        let value = added.value.map(|value| value.expose_secret().to_owned());
        caller(id, value.as_deref().unwrap_or(RIGHT))
    }

    async fn chosen(&self, id: &str) -> Caller {
        self.register(id, NewSecret::Plain(RIGHT.into())).await
    }

    async fn disable(&self, caller: &Caller) {
        let (admin, id) = (self.administrator().await, caller.id.parse().unwrap());
        self.authority.disable_client(&self.call(Peer::Local), &admin, &id, None).await.unwrap();
    }

    /// Blocks and reads of clients that a call costs.
    async fn cost<T>(&self, call: impl Future<Output = T>) -> (T, u64, u64) {
        let (work, reads) = (self.authority.passwords().work(), self.store.reads.load(SeqCst));
        let answer = call.await;
        (answer, self.authority.passwords().work() - work, self.store.reads.load(SeqCst) - reads)
    }

    /// The records of an action, oldest first, once the minute of the refusals is over.
    async fn records(&self, action: Action) -> Vec<Event> {
        self.clock.advance(Duration::from_secs(60));
        self.authority.record_refusals(self.clock.now(), false).await.unwrap();
        // What was recorded a moment later is there after a record that waits.
        self.store.append(Stamp::internal(self.clock.now()).done(Action::ServerStarted, "")).await.unwrap();
        let filter = Filter { action: Some(action.as_str().to_owned()), ..Filter::default() };
        let records = self.store.events(&filter, None, 10_000).await.unwrap();
        records.into_iter().rev().map(|record| record.event).collect()
    }

    /// Targets and reasons of the refusals on record.
    async fn refusals(&self) -> Vec<(String, String)> {
        let records = self.records(Action::AuthenticationFailed).await;
        records.into_iter().map(|event| (event.target, event.reason.into_owned())).collect()
    }
}

async fn authority(store: &Arc<FaultyStore>, clock: &Arc<ManualClock>, limits: &Configured) -> Arc<Authority> {
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
    let records = Arc::new(Authentic::new(store.clone(), RecordKey::new(sealer.derive("client record"))));
    if store.keyset().await.unwrap().is_none() {
        let (first, event) = keys::first(&sealer, &terms, now);
        store.replace_keyset(&first, event).await.unwrap();
    }
    let keyset = store.keyset().await.unwrap().unwrap();
    let judging = Judging { max_lifetime: terms.token.access_lifetime_max(), skew: seconds(5) };
    let opening = Opening { sealer: sealer.clone(), issuer: terms.issuer.clone(), judging };
    let standing = Arc::new(Standing::new(&keyset, opening, seconds(MAX_STALENESS)).unwrap());
    let snapshot = store.follow(now, standing.clone()).await.unwrap();
    standing.load(snapshot);
    jeton::store::Follower::apply(&*standing, &Change::Keyset(Arc::new(keyset)));
    Arc::new(Authority::new(Parts {
        store: records.clone(),
        standing,
        limits: Arc::new(Limits::new(limits)),
        passwords: Passwords::new(limits.argon2_parallel, limits.argon2_queue),
        sealer,
        issue: Issue::Durable,
        clock: clock.clone(),
        skew: Arc::new(Skew::default()),
        terms,
    }))
}

/// A02, AZ8: whatever is wrong, a refusal costs as many hashes and reads; a disabled client is as one without secrets before
/// anything is compared, so its right secret costs what a wrong one does, also if it was verified before.
#[tokio::test]
async fn every_refusal_costs_the_same_work() {
    let bench = Bench::with(plenty).await;
    let one = bench.chosen("one").await;
    let made = bench.register("made", NewSecret::Generated).await;
    let imported = bench.register("imported", NewSecret::Argon2id(cheap(RIGHT))).await;
    let (fresh, used, disabled_made) = (
        bench.chosen("disabled").await,
        bench.chosen("disabled-used").await,
        bench.register("disabled-made", NewSecret::Generated).await,
    );
    for caller in [&one, &used, &disabled_made] {
        assert_eq!(bench.answer(from(1), caller).await, "ok");
    }
    for caller in [&fresh, &used, &disabled_made] {
        bench.disable(caller).await;
    }
    let hashed = [
        ("unknown", caller("nobody", WRONG)),
        ("malformed id", caller("no body/../*", WRONG)),
        ("wrong", caller(&one.id, WRONG)),
        ("of a client with made secrets", caller(&made.id, WRONG)),
        ("of a client with a cheap hash", caller(&imported.id, WRONG)),
        ("disabled, right", fresh.clone()),
        ("disabled, right and verified before", used.clone()),
        ("disabled, wrong", caller(&fresh.id, WRONG)),
    ];
    for (class, caller) in &hashed {
        for round in 0..2 {
            let (answer, work, reads) = bench.cost(bench.answer(from(1), caller)).await;
            let expected = if *class == "malformed id" { 0 } else { 1 };
            assert_eq!((answer, work, reads), ("invalid_client", REFUSAL, expected), "{class}, round {round}");
        }
    }
    let keyed = [
        ("unknown", caller("nobody", &made.secret)),
        ("wrong", caller(&made.id, "jcs_wrong")),
        ("of another client", caller(&one.id, &made.secret)),
        ("disabled, right", disabled_made),
        ("disabled, wrong", caller(&fresh.id, "jcs_wrong")),
    ];
    for (class, caller) in &keyed {
        assert_eq!(bench.cost(bench.answer(from(1), caller)).await, ("invalid_client", 0, 1), "{class}");
    }
}

/// AZ1, TL2, U06: sixty calls at once from one address, each under a new name, directly after a start: as many are hashed as its
/// budget has, and no more; the others are refused alike for every name, real ones included. Other addresses notice nothing.
#[tokio::test]
async fn an_address_has_no_more_hashed_than_its_budget() {
    let bench = Bench::with(few).await;
    let victim = bench.chosen("victim").await;
    let bench = bench.restarted().await;
    let flood = (0..60).map(|n| {
        let (bench, name) = (&bench, caller(&format!("ghost-{n}"), WRONG));
        async move { bench.answer(from(9), &name).await }
    });
    let (answers, work, _) = bench.cost(join_all(flood)).await;
    assert_eq!(work, 3 * REFUSAL);
    assert_eq!(answers.iter().filter(|answer| **answer == "invalid_client").count(), 3);
    assert_eq!(answers.iter().filter(|answer| **answer == "slow_down").count(), 57);
    for other in [victim.clone(), caller("victim", WRONG), caller("ghost-1", RIGHT)] {
        let (answer, work, reads) = bench.cost(bench.answer(from(9), &other)).await;
        assert_eq!((answer, work), ("slow_down", 0), "{other:?}");
        assert_eq!(reads, 1, "{other:?}");
    }
    assert_eq!(bench.cost(bench.answer(from(8), &victim)).await.0, "ok");
    bench.clock.advance(Duration::from_secs(2));
    assert_eq!(bench.cost(bench.answer(from(9), &caller("ghost-1", WRONG))).await.1, REFUSAL, "and it refills");
}

/// AZ1, TL2, L14, L15: an address that never stops, and has budget without end, holds one core and its share of the queue:
/// clients whose secrets nobody has verified in this process log in for the first time, and administration goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flood_of_invented_names_locks_nobody_out() {
    let bench = Bench::with(|limits| {
        plenty(limits);
        limits.argon2_queue = 32;
    })
    .await;
    let mut callers = Vec::new();
    for n in 0..7 {
        callers.push(bench.chosen(&format!("client-{n}")).await);
    }
    let bench = Arc::new(bench.restarted().await);
    let over = Arc::new(AtomicBool::new(false));
    let flood: Vec<_> = (0..60)
        .map(|n| {
            let (bench, over) = (Arc::clone(&bench), Arc::clone(&over));
            tokio::spawn(async move {
                let mut asked = 0;
                while !over.load(SeqCst) {
                    let answer = bench.answer(from(9), &caller(&format!("ghost-{n}-{asked}"), WRONG)).await;
                    assert!(["invalid_client", "slow_down"].contains(&answer), "{answer}");
                    asked += 1;
                    tokio::task::yield_now().await;
                }
                asked
            })
        })
        .collect();
    for caller in &callers {
        assert_eq!(bench.answer(from(1), caller).await, "ok");
    }
    bench.chosen("registered-meanwhile").await;
    over.store(true, SeqCst);
    assert!(join_all(flood).await.into_iter().map(Result::unwrap).sum::<usize>() > 60);
}

/// AZ7: noise at other names leaves guesses at a client a budget of their own, and each that is judged is a record; past that
/// nothing is judged, and one record a minute says how many there were. Neighbours behind the same address get in.
#[tokio::test]
async fn guesses_are_recorded_or_not_judged() {
    let bench = Bench::with(few).await;
    let imported = bench.chosen("imported").await;
    let (made, neighbour) =
        (bench.register("made", NewSecret::Generated).await, bench.register("neighbour", NewSecret::Generated).await);
    assert_eq!(bench.answer(from(1), &imported).await, "ok");
    for n in 0..60 {
        bench.answer(from(9), &caller(&format!("junk-{n}"), "jcs_junk")).await;
    }
    for target in ["imported", "made"] {
        let secret = if target == "made" { "jcs_wrong" } else { WRONG };
        for _ in 0..15 {
            let (answer, work, _) = bench.cost(bench.answer(from(9), &caller(target, secret))).await;
            assert_eq!((answer, work), ("slow_down", 0));
        }
    }
    // Past its budget not even the right one is judged, for that would tell.
    assert_eq!(bench.answer(from(9), &imported).await, "slow_down");
    assert_eq!(bench.answer(from(1), &imported).await, "ok", "from elsewhere it is");
    // A secret with another id is another target: one instance with a retired secret does not lock out the others.
    assert_eq!(bench.answer(from(9), &made).await, "ok");
    assert_eq!(bench.answer(from(9), &neighbour).await, "ok");
    let refusals = bench.refusals().await;
    let of = |target: &str| -> Vec<&str> {
        refusals.iter().filter(|(of, _)| of == target).map(|(_, reason)| reason.as_str()).collect()
    };
    let judged = ["invalid_client"; 3];
    assert_eq!(of("imported"), [&judged[..], &["slow_down", "slow_down, 12 more"]].concat());
    assert_eq!(of("made"), [&judged[..], &["slow_down", "slow_down, 11 more"]].concat());
    assert_eq!(of(""), ["invalid_client", "invalid_client, 59 more"], "DECISIONS 9: invented names are one record");
}

/// AZ7: a refusal that the store does not take is answered as that failure, and recorded once it can be.
#[tokio::test]
async fn a_guess_is_recorded_later_if_the_store_fails() {
    let bench = Bench::with(plenty).await;
    let made = bench.register("made", NewSecret::Generated).await;
    assert_eq!(bench.answer(from(1), &made).await, "ok");
    let wrong = caller("made", "jcs_wrong");
    // The record comes before the read that every refusal pays for.
    bench.store.plan_verb("append_soon", Act::FailBefore(Kind::Unavailable));
    assert_eq!(bench.answer(from(1), &wrong).await, "temporarily_unavailable");
    assert_eq!(bench.answer(from(1), &wrong).await, "invalid_client");
    bench.store.plan_verb("append", Act::FailBefore(Kind::Unavailable));
    assert!(bench.authority.record_refusals(bench.clock.now(), false).await.is_err());
    assert_eq!(
        bench.refusals().await,
        [("made".to_owned(), "invalid_client".to_owned()), ("made".to_owned(), "invalid_client, 1 more".to_owned())]
    );
    // While the store takes no record, no refusal of an authenticated client passes unrecorded either, the first or a later one.
    let other = || Request { scopes: vec!["not:mine".to_owned()], ..Request::default() };
    bench.store.always(Some(Act::FailBefore(Kind::Unavailable)));
    for _ in 0..3 {
        assert_eq!(bench.asking(from(1), &made, other()).await.err().unwrap().code(), "temporarily_unavailable");
    }
    bench.store.always(None);
    assert_eq!(bench.asking(from(1), &made, other()).await.err().unwrap().code(), "invalid_scope");
    let records = bench.records(Action::AccessRefused).await;
    let reasons: Vec<&str> = records.iter().map(|event| &*event.reason).collect();
    assert_eq!(reasons, ["invalid_scope", "invalid_scope, 3 more"]);
}

/// AZ7: guesses from many addresses stay below every budget and raise an alarm, once, that the client's tenant sees.
#[tokio::test]
async fn guesses_from_many_addresses_raise_an_alarm() {
    let bench = Bench::with(few).await;
    bench.register("made", NewSecret::Generated).await;
    let guess = async |count: u16| {
        for n in 0..count {
            let [high, low] = n.to_be_bytes();
            let peer = Peer::Ip([10, 1, high, low].into());
            assert_eq!(bench.answer(peer, &caller("made", "jcs_wrong")).await, "invalid_client");
        }
    };
    guess(999).await;
    assert!(bench.records(Action::ClientUnderAttack).await.is_empty());
    guess(10).await;
    let raised = bench.records(Action::ClientUnderAttack).await;
    assert_eq!(raised.len(), 1);
    assert_eq!((raised[0].target.as_str(), raised[0].tenant.as_ref().unwrap().as_str()), ("made", "default"));
}

/// TL14: an authenticated client that is refused again and again is one record a minute, not thousands a second.
#[tokio::test]
async fn equal_refusals_of_a_client_are_one_record() {
    let bench = Bench::with(plenty).await;
    let made = bench.register("made", NewSecret::Generated).await;
    for n in 0..500 {
        let request = Request { scopes: vec![format!("not:mine-{n}")], ..Request::default() };
        let refused = bench.asking(from(1), &made, request).await.err().unwrap();
        assert_eq!(refused.code(), "invalid_scope");
    }
    let records = bench.records(Action::AccessRefused).await;
    let reasons: Vec<&str> = records.iter().map(|event| &*event.reason).collect();
    assert_eq!(reasons, ["invalid_scope", "invalid_scope, 499 more"]);
    assert!(records.iter().all(|event| event.client.as_ref().is_some_and(|client| client.as_str() == "made")));
}

/// DECISIONS 14, AZ8: an imported hash that is cheaper than ours is hashed anew at its first use, with a record; a store that
/// fails there leaves it for the next first use and stops no login.
#[tokio::test]
async fn an_imported_hash_costs_what_ours_do_after_its_first_use() {
    let bench = Bench::with(plenty).await;
    let imported = bench.register("imported", NewSecret::Argon2id(cheap(RIGHT))).await;
    let kept = async |bench: &Bench| {
        let client = bench.store.client(&"imported".parse::<ClientId>().unwrap()).await.unwrap().unwrap();
        let Digest::Argon2id { phc } = client.secrets[0].digest.clone() else { panic!("an imported one") };
        (client.revision, phc)
    };
    // What the first login reads is read before.
    assert_eq!(bench.answer(from(1), &caller("imported", WRONG)).await, "invalid_client");
    bench.store.plan_verb("replace_client", Act::FailBefore(Kind::Unavailable));
    assert_eq!(bench.answer(from(1), &imported).await, "ok");
    assert_eq!(kept(&bench).await, (1, kept(&bench).await.1));
    assert!(kept(&bench).await.1.contains("$m=7168,t=5,p=1$"));

    let bench = bench.restarted().await;
    assert_eq!(bench.answer(from(1), &imported).await, "ok");
    let (revision, phc) = kept(&bench).await;
    assert!(revision == 2 && phc.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{revision} {phc}");
    assert_eq!(bench.cost(bench.answer(from(1), &imported)).await.1, 0, "and it is remembered");
    let records = bench.records(Action::SecretRehashed).await;
    assert_eq!(records.len(), 1);
    assert!(records[0].target.starts_with("imported/") && records[0].client.is_some());

    let bench = bench.restarted().await;
    assert_eq!(bench.cost(bench.answer(from(1), &imported)).await, ("ok", HASH, 1));
    assert_eq!(kept(&bench).await, (2, phc));
    drop(bench.home);
}
