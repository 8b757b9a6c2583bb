//! Plain examples of what a store keeps.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use jeton::{
    model::{
        Action, Client, ClientCredential, ClientId, Digest, Epochs, Event, Family, FamilyId,
        Grants, Keyset, Mac, PlanName, Record, Scopes, Secret, Stamp, Subject, Timestamp,
        family::Answers,
        keyset::{Algorithm, KeyState, SigningKey},
    },
    store::{AuditStore, Change, Follower, Rotate},
};
use mongodb::bson::{Document, RawDocumentBuf};

/// A Monday in 2026, with odd milliseconds.
pub(crate) const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_123);

pub(crate) const fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(NOW.millis() + millis)
}

pub(crate) fn id(text: &str) -> ClientId {
    text.parse().unwrap()
}

pub(crate) fn stamp() -> Stamp {
    Stamp { peer: "192.0.2.1".into(), request_id: "request".into(), ..Stamp::internal(NOW) }
}

pub(crate) fn event(action: Action) -> Event {
    stamp().done(action, "target")
}

pub(crate) fn client(name: &str) -> Client {
    client_of("default", name)
}

pub(crate) fn of_revision(revision: u64, client: Client) -> Client {
    Client { revision, ..client }
}

pub(crate) fn client_of(tenant: &str, name: &str) -> Client {
    Client {
        id: id(name),
        tenant: tenant.parse().unwrap(),
        display_name: "Orders".into(),
        scopes: Scopes::parse(&["orders:read", "orders:write"]).unwrap(),
        default_scopes: Scopes::default(),
        roles: Vec::new(),
        audiences: Vec::new(),
        serves: Vec::new(),
        grants: Grants { client_credentials: true, refresh_token: true },
        access_ttl: None,
        refresh_ttl: None,
        refresh_idle: None,
        rate_plan: PlanName::standard(),
        disabled: false,
        credentials: ["s1", "s2"].map(|name| ClientCredential::Secret(secret(name))).into(),
        revision: 1,
        created_at: NOW,
        updated_at: NOW,
        mac: Mac::default(),
    }
}

pub(crate) fn secret(name: &str) -> Secret {
    Secret {
        id: name.parse().unwrap(),
        digest: Digest::Keyed { hmac: "b64".into() },
        created_at: NOW,
        expires_at: None,
        last_used_at: None,
        use_count: 0,
    }
}

/// Opened now; lives an hour, ten minutes unused.
pub(crate) fn family(client: &str) -> Family {
    Family {
        id: FamilyId::new(),
        tenant: "default".parse().unwrap(),
        client: id(client),
        subject: Subject::of_client(&id(client)),
        scopes: Scopes::parse(&["orders:read"]).unwrap(),
        audience: vec!["https://orders".parse().unwrap()],
        salt: [9; 32],
        epochs: Epochs { tenant: 1, client: 2, subject: 3 },
        opened_at: NOW,
        expires_at: at(3_600_000),
        idle: Duration::from_secs(600),
        generation: 0,
        rotated_at: NOW,
        answers: Answers::first(&stamp().peer),
        ended_at: None,
    }
}

/// The family's token of this generation, presented by its client a while after [`NOW`], with 10 s
/// of grace.
pub(crate) fn present(family: &Family, presented: u32, after_millis: i64) -> Rotate {
    Rotate {
        family: family.id,
        presented,
        client: family.client.clone(),
        now: at(after_millis),
        cluster_now: at(after_millis),
        was_acceptable_on_arrival: true,
        grace: Duration::from_secs(10),
        retain_for: Some(Duration::from_secs(900)),
    }
}

pub(crate) fn keyset(revision: u64) -> Keyset {
    let key = SigningKey {
        kid: format!("key-{revision}").parse().unwrap(),
        alg: Algorithm::EdDsa,
        state: KeyState::Active { since: NOW },
        created_at: NOW,
        sealed: "sealed".into(),
    };
    Keyset { revision, keys: vec![key], sealed_root: "root".into(), mac: "mac".into() }
}

/// The name of the only chain that a case's store has; the case's node before it has begun.
pub(crate) async fn chain_of(store: &(impl AuditStore + ?Sized)) -> Arc<str> {
    let chains = store.chains().await.unwrap();
    assert!(chains.len() <= 1, "{chains:?}");
    chains.into_iter().next().unwrap_or_else(|| "node".into())
}

/// Every record of the only chain, a few at a time.
pub(crate) async fn whole_chain(store: &(impl AuditStore + ?Sized)) -> Vec<Record> {
    let name = chain_of(store).await;
    let mut records: Vec<Record> = Vec::new();
    loop {
        let page =
            store.chain(&name, records.last().map_or(0, |last| last.sequence), 99).await.unwrap();
        if page.is_empty() {
            return records;
        }
        records.extend(page);
    }
}

/// The sequence of the last record in the store's chain, looked for from this one on.
pub(crate) async fn end_of_chain(store: &(impl AuditStore + ?Sized), from: u64) -> u64 {
    let name = chain_of(store).await;
    let mut end = from;
    while let Some(last) = store.chain(&name, end, 99).await.unwrap().last() {
        end = last.sequence;
    }
    end
}

/// Keeps what it hears.
#[derive(Default)]
pub(crate) struct RecordingFollower {
    heard: Mutex<Vec<Change>>,
    lost: AtomicBool,
}

impl RecordingFollower {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn heard(&self) -> Vec<Change> {
        self.heard.lock().unwrap().clone()
    }

    /// True once no further change will be notified.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(SeqCst)
    }
}

impl Follower for RecordingFollower {
    fn apply(&self, change: &Change) {
        self.heard.lock().unwrap().push(change.clone());
    }

    fn lost(&self) {
        self.lost.store(true, SeqCst);
    }
}

/// A document in which each of these marks is no UTF-8.
pub(crate) fn broken(document: &Document, mark: &[u8]) -> RawDocumentBuf {
    let mut bytes = RawDocumentBuf::try_from(document).unwrap().into_bytes();
    let at: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(mark)).collect();
    assert!(!at.is_empty());
    at.into_iter().for_each(|at| bytes[at] = 0xff);
    RawDocumentBuf::from_bytes(bytes).unwrap()
}
