//! On a replica set, by its raw documents.

use std::sync::Arc;

use jeton::{
    admin::{
        audit::{Verdict, verify},
        witness::Witness,
    },
    crypto::chain::{ChainKey, Claim, START, link},
    model::{Action, EpochOf, Event, Record, event::Filter},
    store::{AuditStore, ClientStore, KeyStore, RevocationStore, Store, Writer, mongo::Mongo},
};
use mongodb::{
    Collection, Database,
    bson::{Binary, Bson, Document, doc, serialize_to_bson, spec::BinarySubtype},
};
use tokio::time::{Duration, timeout};
use uuid::Uuid;

use crate::support::until::HANG;
use crate::{
    store::{
        backend::StoreCase,
        fixtures::{NOW, at, client, event, keyset},
        prepared,
    },
    support::database::{self, Database as Own},
};

pub(super) async fn node(uri: &str, name: &str) -> Mongo {
    database::node(uri, name, StoreCase::key()).await
}

pub(super) async fn raw(own: &Own) -> Database {
    mongodb::Client::with_uri_str(own.uri()).await.unwrap().default_database().unwrap()
}

pub(super) fn binary(bytes: &[u8]) -> Bson {
    Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() })
}

pub(super) fn uuid(id: Uuid) -> Bson {
    Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes: id.as_bytes().to_vec() })
}

fn bytes(value: &Bson) -> &[u8] {
    let Bson::Binary(Binary { bytes, .. }) = value else { panic!("{value:?}") };
    bytes
}

/// An entry as `node` leaves it in an outbox, but for its MAC.
pub(super) fn unsigned(node: &str, after: i64, event: &Event) -> Document {
    doc! { "id": uuid(Uuid::now_v7()), "node": node, "after": after, "event": serialize_to_bson(event).unwrap() }
}

/// Puts the MAC on an entry that a node does, for the outbox of a document.
pub(crate) fn sign(entry: &mut Document, key: &ChainKey, collection: &str, id: impl Into<Bson>) {
    let event: Event =
        mongodb::bson::deserialize_from_bson(entry.get("event").unwrap().clone()).unwrap();
    let owner = mongodb::bson::serialize_to_vec(&doc! { "_id": id.into() }).unwrap();
    let (id, after) =
        (bytes(entry.get("id").unwrap()).to_vec(), entry.get_i64("after").unwrap().to_be_bytes());
    let claim = entry.get("claim").map(|claim| bytes(claim).to_vec()).unwrap_or_default();
    let (node, from) = (entry.get_str("node").unwrap(), entry.get_str("from").unwrap_or_default());
    let body = serde_json::to_vec(&event).unwrap();
    let parts: [&[u8]; 8] = [
        &id,
        node.as_bytes(),
        &after,
        &claim,
        from.as_bytes(),
        collection.as_bytes(),
        &owner,
        &body,
    ];
    let tag = key.mac_entry(&parts);
    entry.insert("mac", binary(&tag));
}

fn framed() -> Event {
    Event { at: at(-30 * 86_400_000), target: "framed".into(), ..event(Action::ClientCreated) }
}

pub(super) async fn all(store: &Mongo) -> Vec<Record> {
    store.events(&Filter::default(), None, 1_000).await.unwrap()
}

pub(super) async fn verdict(store: &Mongo, chain: &str) -> Verdict {
    let [verdict] =
        <[_; 1]>::try_from(verify(store, &StoreCase::key(), Some(chain), &[]).await.unwrap())
            .unwrap();
    verdict
}

async fn assert_intact(store: &Mongo) {
    for verdict in verify(store, &StoreCase::key(), None, &[]).await.unwrap() {
        assert!(verdict.flaw.is_none() && verdict.is_end_sure, "{verdict:?}");
    }
}

pub(super) async fn append(store: &Mongo, count: u64) {
    for n in 1..=count {
        store.append(Event { target: n.to_string(), ..event(Action::TokenIssued) }).await.unwrap();
    }
}

/// AZ2, O04: what no node put into an outbox is never recorded, whatever the collection and the
/// forgery. It is taken out and reported once, and stands in the way of nobody's.
#[tokio::test]
#[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
async fn a_forged_outbox_entry_is_refused_and_reported_once() {
    let own = Own::own();
    let first = node(own.uri(), "node").await;
    prepared::fill(&first, 2).await;
    first
        .raise_epoch(&EpochOf::Tenant("t".parse().unwrap()), event(Action::TenantRevoked))
        .await
        .unwrap();
    first
        .replace_keyset(
            &keyset(first.keyset().await.unwrap().map_or(1, |keyset| keyset.revision + 1)),
            event(Action::KeysRotated),
        )
        .await
        .unwrap();
    first.close().await.unwrap();
    let database = raw(&own).await;
    let mut forged = Vec::new();
    for name in ["clients", "tokens", "revocations", "epochs", "signing_keys"] {
        let documents: Collection<Document> = database.collection(name);
        let id = documents.find_one(doc! {}).await.unwrap().unwrap().get("_id").unwrap().clone();
        let bare = unsigned("node", 0, &framed());
        let mut under_another_key = unsigned("node", 0, &framed());
        sign(&mut under_another_key, &ChainKey::new([1; 32]), name, id.clone());
        let mut of_another_document = unsigned("dead", 0, &framed());
        sign(&mut of_another_document, &StoreCase::key(), name, "another");
        let mut altered = unsigned("node", 0, &event(Action::TokenRevoked));
        sign(&mut altered, &StoreCase::key(), name, id.clone());
        altered.insert("event", serialize_to_bson(&framed()).unwrap());
        let mut redirected = unsigned("dead", 7, &framed());
        sign(&mut redirected, &StoreCase::key(), name, id.clone());
        redirected.insert("node", "node");
        let garbage = doc! { "id": 5, "event": "none" };
        let entries =
            vec![bare, under_another_key, of_another_document, altered, redirected, garbage];
        forged.extend(entries.iter().map(|_| name));
        let push = doc! { "$push": { "outbox": { "$each": entries } } };
        documents.update_one(doc! { "_id": id }, push).await.unwrap();
    }
    // An outbox that is no list, and a document that is nobody's.
    let strange = doc! { "_id": 7, "ended": true, "outbox": { "id": 1 } };
    database.collection::<Document>("tokens").insert_one(strange).await.unwrap();
    forged.push("tokens");
    // A node's own, among them.
    let clients: Collection<Document> = database.collection("clients");
    let id = clients.find_one(doc! {}).await.unwrap().unwrap().get("_id").unwrap().clone();
    let mut left =
        unsigned("node", 0, &Event { target: "left".into(), ..event(Action::ClientUpdated) });
    sign(&mut left, &StoreCase::key(), "clients", id.clone());
    let mut claimed =
        unsigned("node", 0, &Event { target: "claimed".into(), ..event(Action::ClientUpdated) });
    claimed.extend(doc! { "claim": uuid(Uuid::now_v7()), "from": "gone" });
    sign(&mut claimed, &StoreCase::key(), "clients", id.clone());
    let push = doc! { "$push": { "outbox": { "$each": [left, claimed] } } };
    clients.update_one(doc! { "_id": id }, push).await.unwrap();

    for life in 1..=2 {
        let store = node(own.uri(), "node").await;
        let records = all(&store).await;
        let of =
            |wanted: Action| records.iter().filter(move |record| record.event.action == wanted);
        assert!(!records.iter().any(|record| record.event.target == "framed"), "{records:?}");
        let mut refused: Vec<_> = of(Action::EntryRefused)
            .map(|record| record.event.target.split('/').next().unwrap())
            .collect();
        refused.sort_unstable();
        forged.sort_unstable();
        assert_eq!(refused, forged, "life {life}");
        let mut recovered: Vec<_> = records
            .iter()
            .filter_map(|record| {
                record
                    .event
                    .recovered_from
                    .as_deref()
                    .map(|from| (record.event.target.as_str(), from))
            })
            .collect();
        recovered.sort_unstable();
        assert_eq!(recovered, [("claimed", "gone"), ("left", "node")], "life {life}");
        assert_intact(&store).await;
        store.close().await.unwrap();
    }
    for name in ["clients", "tokens", "revocations", "epochs", "signing_keys"] {
        let filled = doc! { "outbox.id": { "$exists": true } };
        assert_eq!(
            database.collection::<Document>(name).count_documents(filled).await.unwrap(),
            0,
            "{name}"
        );
    }
}

/// AZ2, O03: that a record claims to be that of an entry suppresses no event: the record's seal
/// covers the claim.
#[tokio::test]
#[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
async fn an_entry_is_recorded_whatever_record_claims_to_be_its_own() {
    let own = Own::own();
    let store = node(own.uri(), "node").await;
    store.create_client(&client("a"), event(Action::ClientCreated)).await.unwrap();
    append(&store, 3).await;
    store.close().await.unwrap();
    let database = raw(&own).await;
    let mut left =
        unsigned("node", 0, &Event { target: "left".into(), ..event(Action::ClientUpdated) });
    sign(&mut left, &StoreCase::key(), "clients", "a");
    let claims = doc! { "$set": { "entry": left.get("id").unwrap() } };
    database
        .collection::<Document>("audit_logs")
        .update_one(doc! { "_id.sequence": 2_i64 }, claims)
        .await
        .unwrap();
    let push = doc! { "$push": { "outbox": left } };
    database.collection::<Document>("clients").update_one(doc! { "_id": "a" }, push).await.unwrap();
    let store = node(own.uri(), "node").await;
    let records = all(&store).await;
    assert_eq!(
        records.iter().filter(|record| record.event.target == "left").count(),
        1,
        "{records:?}"
    );
}

/// Two nodes; the second has done something, and has stopped unless told otherwise.
pub(super) struct Pair {
    pub(super) own: Own,
    database: Database,
    pub(super) one: Mongo,
}

impl Pair {
    pub(super) async fn open(records: u64) -> Self {
        let own = Own::own();
        let one = node(own.uri(), "one").await;
        append(&one, 2).await;
        let two = node(own.uri(), "two").await;
        append(&two, records).await;
        two.close().await.unwrap();
        Self { database: raw(&own).await, own, one }
    }

    fn logs(&self) -> Collection<Document> {
        self.database.collection("audit_logs")
    }

    fn nodes(&self) -> Collection<Document> {
        self.database.collection("nodes")
    }

    /// The document of a record of the second node.
    async fn record(&self, sequence: i64) -> Document {
        let found = self
            .logs()
            .find_one(doc! { "_id": { "chain": "two", "sequence": sequence } })
            .await
            .unwrap();
        found.unwrap()
    }

    async fn cut_behind(&self, sequence: i64) {
        let behind = doc! { "_id.chain": "two", "_id.sequence": { "$gt": sequence } };
        assert!(self.logs().delete_many(behind).await.unwrap().deleted_count > 0);
    }

    /// A head that the second node sealed while it ran, an hour ago.
    pub(super) async fn bring_back_an_old_head(&self, sequence: i64) {
        let hash = bytes(self.record(sequence).await.get("hash").unwrap()).try_into().unwrap();
        let hour_ago = self.one.time().await.unwrap().unwrap().millis() - 3_600_000;
        let claim = Claim::Open { at: jeton::model::Timestamp::from_millis(hour_ago) };
        let head = StoreCase::key().seal(&"two".into(), sequence.try_into().unwrap(), hash, claim);
        let set = doc! {
            "sequence": sequence,
            "hash": binary(&hash),
            "seal": binary(&head.seal),
            // No heartbeat that is on its way comes over it.
            "beat": i64::MAX,
            "sealed_at": mongodb::bson::DateTime::from_millis(hour_ago),
        };
        self.nodes().update_one(doc! { "_id": "two" }, doc! { "$set": set }).await.unwrap();
    }

    /// Once on the first node: the first look only reads what was witnessed before.
    async fn witness(&self) -> usize {
        let witness = Witness::default();
        assert_eq!(witness.record_moved(&self.one, &StoreCase::key(), NOW).await.unwrap(), 0);
        witness.record_moved(&self.one, &StoreCase::key(), NOW).await.unwrap()
    }
}

/// AZ3, O04: the seals that lie in the database make no head for a shorter chain, neither of a
/// stopped node nor of one that starts again.
#[tokio::test]
#[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
async fn a_record_seal_makes_no_head() {
    let pair = Pair::open(11).await;
    assert_intact(&pair.one).await;
    let last = pair.record(7).await;
    pair.cut_behind(7).await;
    for closed in [true, false] {
        let sealed_at = if closed {
            Bson::Null
        } else {
            pair.nodes()
                .find_one(doc! { "_id": "one" })
                .await
                .unwrap()
                .unwrap()
                .get("sealed_at")
                .unwrap()
                .clone()
        };
        let set = doc! { "sequence": 7_i64, "hash": last.get("hash"), "seal": last.get("seal"), "sealed_at": sealed_at };
        pair.nodes().update_one(doc! { "_id": "two" }, doc! { "$set": set }).await.unwrap();
        let flaw = verdict(&pair.one, "two").await.flaw;
        assert_eq!(flaw, Some((7, "the head's seal is invalid".to_owned())), "closed: {closed}");
        assert!(
            Mongo::open(pair.own.uri(), "two", StoreCase::key(), database::PATIENCE).await.is_err()
        );
    }
}

/// AZ3: a chain whose node neither runs nor closed it is not told as intact; one that was closed,
/// or whose node runs, is.
#[tokio::test]
#[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
async fn the_end_of_a_chain_is_sure_only_while_its_node_runs_or_once_it_is_closed() {
    let pair = Pair::open(11).await;
    let sure = async || {
        let verdict = verdict(&pair.one, "two").await;
        assert_eq!(verdict.flaw, None);
        (verdict.is_end_sure, verdict.checked)
    };
    assert_eq!(sure().await, (true, 11));
    assert_eq!(pair.one.writer("two").await.unwrap(), Writer::NotRunning);
    let two = node(pair.own.uri(), "two").await;
    assert_eq!(pair.one.writer("two").await.unwrap(), Writer::Another);
    assert_eq!(pair.one.writer("one").await.unwrap(), Writer::This);
    append(&two, 1).await;
    assert_eq!(sure().await, (true, 12));
    // It is killed, and time passes.
    drop(two);
    pair.bring_back_an_old_head(12).await;
    assert_eq!(sure().await, (false, 12));
    // With another time, as if it ran, the seal is no seal.
    let now = doc! { "$currentDate": { "sealed_at": true } };
    pair.nodes().update_one(doc! { "_id": "two" }, now).await.unwrap();
    assert_eq!(
        verdict(&pair.one, "two").await.flaw,
        Some((12, "the head's seal is invalid".to_owned()))
    );
    // Records behind the head that was noted last have seals of their own.
    pair.bring_back_an_old_head(9).await;
    assert_eq!(sure().await, (false, 12));
    // The head of another chain, of a node that runs, is no head of this one.
    let one = pair.nodes().find_one(doc! { "_id": "one" }).await.unwrap().unwrap();
    let copied = ["sequence", "hash", "seal", "sealed_at", "sealed_by"]
        .map(|field| (field, one.get(field).unwrap().clone()));
    let copied: Document =
        copied.into_iter().map(|(field, value)| (field.to_owned(), value)).collect();
    pair.nodes().update_one(doc! { "_id": "two" }, doc! { "$set": copied }).await.unwrap();
    assert_eq!(sure().await, (false, 12));
    // No head at all.
    let head = doc! { "sequence": "", "hash": "", "seal": "", "sealed_at": "", "sealed_by": "" };
    pair.nodes().update_one(doc! { "_id": "two" }, doc! { "$unset": head }).await.unwrap();
    assert_eq!(sure().await, (false, 12));
}

/// AZ3, O04: what a chain had come to when another node witnessed it cannot be cut off it, also not
/// with a head that was good once, nor by a start of its node from there on; nor can the whole
/// chain be taken away.
#[tokio::test]
#[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
async fn a_chain_is_held_against_its_witnesses() {
    let pair = Pair::open(11).await;
    assert_eq!(pair.witness().await, 1);
    let witnessed = verdict(&pair.one, "two").await;
    assert_eq!((witnessed.flaw, witnessed.is_end_sure, witnessed.witnessed), (None, true, 11));
    pair.bring_back_an_old_head(7).await;
    pair.cut_behind(7).await;
    let cut = verdict(&pair.one, "two").await.flaw;
    assert_eq!(
        cut,
        Some((8, "truncated before the sequence witnessed in another chain".to_owned()))
    );
    // The node goes on from there, as it knows no better.
    let two = node(pair.own.uri(), "two").await;
    append(&two, 9).await;
    let regrown = verdict(&pair.one, "two").await.flaw;
    assert_eq!(regrown, Some((11, "differs from the hash witnessed in another chain".to_owned())));
    two.close().await.unwrap();

    pair.logs().delete_many(doc! { "_id.chain": "two" }).await.unwrap();
    pair.nodes().delete_one(doc! { "_id": "two" }).await.unwrap();
    let gone = verify(&pair.one, &StoreCase::key(), None, &[]).await.unwrap();
    let flaws: Vec<_> =
        gone.iter().map(|verdict| (&*verdict.chain, verdict.flaw.clone())).collect();
    assert_eq!(flaws, [("one", None), ("two", Some((1, "the whole chain is missing".to_owned())))]);
}

/// AZ3: a witness that no node wrote accuses nobody, hides none that one wrote, and keeps no head
/// from being noted; neither is a head noted that no node sealed.
#[tokio::test]
#[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
async fn a_forged_witness_counts_for_nothing() {
    let pair = Pair::open(3).await;
    let hash = bytes(pair.record(3).await.get("hash").unwrap()).to_vec();
    let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let forge = async |chain: &str, sequence: i64, target: &str| {
        let event = Event { target: target.into(), ..event(Action::HeadsWitnessed) };
        let record = doc! {
            "_id": { "chain": chain, "sequence": sequence },
            "node": chain,
            "event": serialize_to_bson(&event).unwrap(),
            "hash": binary(&hash),
            "seal": binary(&hash),
            "entry": uuid(Uuid::nil()),
        };
        pair.logs().insert_one(record).await.unwrap();
    };
    // More than are read at once, before all others.
    for sequence in 1..=520 {
        forge("!", sequence, &format!("two:2:{digits} two:3:{digits} missing:9:{digits}")).await;
    }
    assert_eq!(pair.witness().await, 1, "of two, and none of the forger's");
    let flaws = async || {
        let verdicts = verify(&pair.one, &StoreCase::key(), None, &[]).await.unwrap();
        verdicts
            .into_iter()
            .map(|verdict| (verdict.chain.to_string(), verdict.flaw.is_some()))
            .collect::<Vec<_>>()
    };
    let expected = [("!".to_owned(), true), ("one".to_owned(), false), ("two".to_owned(), false)];
    assert_eq!(flaws().await, expected);
    pair.bring_back_an_old_head(2).await;
    pair.cut_behind(2).await;
    let expected = [("!".to_owned(), true), ("one".to_owned(), false), ("two".to_owned(), true)];
    assert_eq!(flaws().await, expected);
}

/// AZ3, DECISIONS 2: heads are noted that moved by other than witnesses, each once a look; idle
/// nodes note nothing, and the end of a chain is noted once, also by the processes to come.
#[tokio::test]
#[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
async fn idle_nodes_witness_nothing() {
    let own = Own::own();
    let (one, two) = (node(own.uri(), "one").await, node(own.uri(), "two").await);
    let (by_one, by_two, key) = (Witness::default(), Witness::default(), StoreCase::key());
    append(&one, 1).await;
    append(&two, 1).await;
    let look_one = async || by_one.record_moved(&one, &key, NOW).await.unwrap();
    let look_two = async || by_two.record_moved(&two, &key, NOW).await.unwrap();
    assert_eq!((look_one().await, look_two().await), (0, 0), "the first look only reads");
    assert_eq!((look_one().await, look_two().await), (1, 1));
    for _ in 0..3 {
        assert_eq!((look_one().await, look_two().await), (0, 0), "each moved by a witness alone");
    }
    append(&two, 3).await;
    assert_eq!((look_one().await, look_one().await), (1, 0));
    assert_eq!(look_two().await, 0);
    // The witnesses at its end are noted with its end.
    append(&one, 1).await;
    assert_eq!(look_two().await, 1);
    assert_eq!(look_one().await, 0);
    let later = Witness::default();
    for _ in 0..2 {
        assert_eq!(
            later.record_moved(&one, &key, NOW).await.unwrap(),
            0,
            "a process that starts anew notes nothing that has not moved"
        );
    }
    two.close().await.unwrap();
    assert_eq!((look_one().await, look_one().await), (1, 0));
    let later = Witness::default();
    for _ in 0..2 {
        assert_eq!(
            later.record_moved(&one, &key, NOW).await.unwrap(),
            0,
            "another process notes no end again"
        );
    }
    let end = one.head("two").await.unwrap().unwrap().sequence;
    assert_eq!(verdict(&one, "two").await.witnessed, end);
    assert_intact(&one).await;
}

/// AZ6, O04: what is listed is verified: a chain that somebody made has no head.
#[tokio::test]
#[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
async fn a_chain_without_a_node_is_verified_as_it_is_listed() {
    let own = Own::own();
    let store = node(own.uri(), "node").await;
    append(&store, 2).await;
    let logs: Collection<Document> = raw(&own).await.collection("audit_logs");
    let event = framed();
    for (chain, hash, problem) in [
        ("ghost", [0; 32], "altered"),
        (
            "linked",
            link(&START, 1, "linked", &serde_json::to_vec(&event).unwrap()),
            "beyond the sealed head",
        ),
    ] {
        let record = doc! {
            "_id": { "chain": chain, "sequence": 1_i64 },
            "node": chain,
            "event": serialize_to_bson(&event).unwrap(),
            "hash": binary(&hash),
            "seal": binary(&hash),
        };
        logs.insert_one(record).await.unwrap();
        assert_eq!(verdict(&store, chain).await.flaw, Some((1, problem.to_owned())));
    }
    assert_eq!(
        store.chains().await.unwrap(),
        ["ghost".into(), "linked".into(), "node".into()] as [Arc<str>; 3]
    );
    assert_eq!(verdict(&store, "node").await.flaw, None);
    let listed = all(&store).await;
    assert_eq!(listed.iter().filter(|record| record.event.target == "framed").count(), 2);
}

/// AZ6: a record that cannot be read is listed, verified and tailed as one, at its place; all
/// others are as they were, in pages of any length. What is no record at all is nowhere.
#[tokio::test]
#[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
async fn an_unreadable_record_is_shown_as_one_and_the_rest_goes_on() {
    let own = Own::own();
    let (store, other) = (node(own.uri(), "node").await, node(own.uri(), "other").await);
    append(&store, 5).await;
    let logs: Collection<Document> = raw(&own).await.collection("audit_logs");
    let places = |records: &[Record]| -> Vec<(String, u64)> {
        records.iter().map(|record| (record.chain.to_string(), record.sequence)).collect()
    };
    let before = places(&all(&store).await);

    let mut tail = other.tail();
    // The stream is opened by listening: what is recorded from the first one that comes on is told.
    while timeout(Duration::from_millis(200), tail.recv()).await.is_err() {
        append(&store, 1).await;
    }
    let own_place = |sequence: i64| doc! { "chain": "ghost", "sequence": sequence };
    let records = vec![
        doc! { "_id": own_place(1), "event": { "at": 4_000_000_000_000_i64 } },
        doc! { "_id": own_place(2), "event": { "at": 3.5e12, "action": "client.created" }, "node": 5 },
        doc! { "_id": own_place(3), "event": { "at": "yesterday" } },
        doc! { "_id": own_place(4), "event": { "at": f64::NAN } },
        doc! { "_id": own_place(5), "event": [] },
        doc! { "_id": own_place(6) },
        doc! { "_id": "no place" },
        doc! { "_id": { "chain": "ghost", "sequence": 7_i32 }, "event": { "at": 1_i64 } },
        doc! { "_id": { "chain": "ghost", "sequence": "seven" }, "event": { "at": 1_i64 } },
        doc! { "_id": { "chain": "ghost", "sequence": 1_i64, "more": 1 }, "event": { "at": 1_i64 } },
        doc! { "_id": { "sequence": 1_i64, "chain": "ghost" }, "event": { "at": 1_i64 } },
        doc! { "_id": { "chain": 7, "sequence": 1_i64 }, "event": { "at": 1_i64 } },
    ];
    logs.insert_many(records).await.unwrap();
    append(&store, 1).await;
    let told = async {
        let mut unreadable = Vec::new();
        loop {
            let record = tail.recv().await.unwrap().expect("nothing was missed");
            match record.is_unreadable() {
                true => unreadable.push(record.sequence),
                false if unreadable.is_empty() => {}
                false => return unreadable,
            }
        }
    };
    assert_eq!(timeout(HANG, told).await.unwrap(), [1, 2, 3, 4, 5, 6]);

    // One of the node's own, too.
    logs.update_one(
        doc! { "_id": { "chain": "node", "sequence": 3_i64 } },
        doc! { "$unset": { "event.at": "" } },
    )
    .await
    .unwrap();
    let listed = all(&store).await;
    let unreadable: Vec<Record> =
        listed.iter().filter(|record| record.is_unreadable()).cloned().collect();
    let expected: Vec<_> = [
        ("ghost", 1),
        ("ghost", 2),
        ("node", 3),
        ("ghost", 6),
        ("ghost", 5),
        ("ghost", 4),
        ("ghost", 3),
    ]
    .map(|(chain, sequence)| (chain.to_owned(), sequence))
    .into();
    assert_eq!(places(&unreadable), expected);
    assert!(before.iter().all(|place| places(&listed).contains(place)));
    let head = store.head("node").await.unwrap().unwrap().sequence;
    assert_eq!(listed.len() as u64, head + 6);
    for limit in [1, 2, 3, 5, 7] {
        let (mut seen, mut before) = (Vec::new(), None);
        loop {
            let page = store.events(&Filter::default(), before.as_ref(), limit).await.unwrap();
            let Some(last) = page.last() else { break };
            before = Some(last.place());
            seen.extend(page);
        }
        assert_eq!(places(&seen), places(&listed), "{limit}");
    }
    let only = Filter { action: Some("token.issued".into()), ..Filter::default() };
    assert_eq!(store.events(&only, None, 1_000).await.unwrap().len() as u64, head);
    assert_eq!(verdict(&store, "ghost").await.flaw, Some((1, "unreadable".to_owned())));
    assert_eq!(verdict(&store, "node").await.flaw, Some((3, "unreadable".to_owned())));
    assert_eq!(store.chains().await.unwrap(), ["ghost".into(), "node".into()] as [Arc<str>; 2]);
}

/// AZ2: a node that is started under another master key, with a name that is new, is refused before
/// it takes anything for forged: what other nodes left in outboxes stays there, and no chain
/// begins.
#[tokio::test]
#[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
async fn a_start_under_another_key_changes_nothing() {
    let own = Own::own();
    let first = node(own.uri(), "node").await;
    first.create_client(&client("left"), event(Action::ClientCreated)).await.unwrap();
    first.close().await.unwrap();
    let database = raw(&own).await;
    let clients: Collection<Document> = database.collection("clients");
    let mut left = unsigned("node", 0, &event(Action::ClientUpdated));
    sign(&mut left, &StoreCase::key(), "clients", "left");
    clients.update_one(doc! { "_id": "left" }, doc! { "$push": { "outbox": left } }).await.unwrap();
    let names =
        async || database.collection::<Document>("nodes").distinct("_id", doc! {}).await.unwrap();
    let before = (clients.find_one(doc! { "_id": "left" }).await.unwrap(), names().await);
    let refused =
        Mongo::open(own.uri(), "new", ChainKey::new([1; 32]), Duration::from_secs(30)).await;
    assert!(refused.is_err_and(|error| error.to_string().contains("master key")));
    assert_eq!((clients.find_one(doc! { "_id": "left" }).await.unwrap(), names().await), before);
}
