//! Verification some records at a time: from a known head, without a node, and over a cut.

use std::{path::Path, sync::Arc};

use jeton::{
    admin::audit::{Known, Step, Verdict, Verification, VerifyRequest},
    crypto::chain::ChainKey,
    model::{Action, Event, Record},
    store::{
        AuditStore, ChainReader, Store,
        embedded::{Embedded, OpenError},
    },
};

use super::cuts::{fill, has, keep_after, pass};
use crate::store::{
    backend::StoreCase,
    fixtures::{at, event},
};

/// Verifies the chain `node`, after `from` if there is a head.
async fn judged<S: ChainReader + ?Sized>(store: &S, from: Option<&Known>) -> Verdict {
    let request = VerifyRequest {
        only: Some("node".into()),
        from: from.cloned().into_iter().collect(),
        ..VerifyRequest::default()
    };
    let key = StoreCase::key();
    let mut verification = Verification::begin(store, &key, request).await.unwrap();
    verification.measure().await.unwrap();
    loop {
        match verification.step().await.unwrap() {
            Step::Records => {
                let (checked, total) = verification.progress();
                assert!(checked <= total, "{checked} of {total}");
                assert_eq!(&*verification.reached().unwrap().chain, "node");
            }
            Step::Chain(verdict) => return verdict,
            Step::End => panic!("no verdict"),
        }
    }
}

async fn records(store: &dyn Store) -> Vec<Record> {
    store.chain("node", 0, 20_000).await.unwrap()
}

fn known(records: &[Record], sequence: usize) -> Known {
    let record = &records[sequence - 1];
    Known { chain: record.chain.clone(), sequence: record.sequence, hash: record.hash }
}

/// A verification from a known head reads what follows it, and refuses a head that is not on the
/// chain.
async fn begins_at_a_known_head(store: &dyn Store) {
    fill(store, 2_600).await;
    let all = records(store).await;
    for (sequence, checked) in [(1, 2_599), (999, 1_601), (1_000, 1_600), (2_599, 1), (2_600, 0)] {
        let verdict = judged(store, Some(&known(&all, sequence))).await;
        assert_eq!((verdict.flaw, verdict.checked), (None, checked), "{sequence}");
        assert_eq!(verdict.head, (2_600, all[2_599].hash));
    }
    assert_eq!(judged(store, None).await.checked, 2_600);
    let flaw = async |head: Known| judged(store, Some(&head)).await.flaw;
    let right = known(&all, 1_500);
    let differs = "differs from the hash of a known head".to_owned();
    let other = Known { hash: [7; 32], ..right.clone() };
    assert_eq!(flaw(other.clone()).await, Some((1_500, differs)));
    let truncated = "truncated before the sequence of a known head".to_owned();
    let beyond = Known { sequence: 2_601, ..right.clone() };
    assert_eq!(flaw(beyond).await, Some((2_601, truncated)));
    // The newest of several heads counts, and the others only if they are compared.
    let key = StoreCase::key();
    let begin = |from: Vec<Known>, known: Vec<Known>| {
        Verification::begin(store, &key, VerifyRequest { from, known, ..Default::default() })
    };
    let gone = Known { chain: "gone".into(), ..right.clone() };
    let mut verification =
        begin(vec![gone, other.clone(), known(&all, 2_000)], vec![other]).await.unwrap();
    let mut verdicts = Vec::new();
    loop {
        match verification.step().await.unwrap() {
            Step::Records => {}
            Step::Chain(verdict) => verdicts.push(verdict),
            Step::End => break,
        }
    }
    let missing = Some((1, "the whole chain is missing".to_owned()));
    assert_eq!((&*verdicts[0].chain, verdicts[0].flaw.clone()), ("gone", missing));
    assert_eq!((&*verdicts[1].chain, &verdicts[1].flaw), ("node", &None));
    assert_eq!((verdicts[1].checked, verdicts.len()), (600, 2));
    // After a chain, in the order of their names.
    let request =
        |after: &str| VerifyRequest { after_chain: Some(after.into()), ..VerifyRequest::default() };
    for (after, has_it) in [("nodd", true), ("node", false), ("node-1", false)] {
        let mut verification = Verification::begin(store, &key, request(after)).await.unwrap();
        let step = verification.step().await.unwrap();
        assert_eq!(!matches!(step, Step::End), has_it, "{after}");
    }
}

/// A place that is altered is named by all that read it, and passed over by one that begins behind
/// it: that part was verified.
async fn names_the_same_place<S: ChainReader + ?Sized>(reader: &S, all: &[Record], bad: u64) {
    let flaw = async |from: Option<usize>| {
        let from = from.map(|sequence| known(all, sequence));
        judged(reader, from.as_ref()).await.flaw.map(|(sequence, _)| sequence)
    };
    for from in [None, Some(1), Some(1_000), Some(1_999)] {
        assert_eq!(flaw(from).await, Some(bad), "{from:?}");
    }
    assert_eq!(flaw(Some(2_100)).await, None);
}

/// A head that was cut is covered by the mark; one at the mark must match it.
async fn begins_behind_a_cut(store: &dyn Store) {
    fill(store, 6_500).await;
    let all = records(store).await;
    pass(store, keep_after(3_200, 6_500), None).await.unwrap();
    for (sequence, checked) in [(2_000, 3_501), (3_000, 3_501), (4_000, 2_501)] {
        let verdict = judged(store, Some(&known(&all, sequence))).await;
        assert_eq!((verdict.flaw, verdict.checked), (None, checked), "{sequence}");
        assert_eq!(verdict.cut, 3_000);
    }
    let other = Known { hash: [7; 32], ..known(&all, 3_000) };
    assert_eq!(judged(store, Some(&other)).await.flaw.map(|flaw| flaw.0), Some(3_000));
}

/// A cut that is made while the chain is read is no fault, before the walk and behind its place.
async fn outlives_a_cut(store: &dyn Store) {
    fill(store, 7_500).await;
    let all = records(store).await;
    let key = StoreCase::key();
    let request = |from: &[Known]| VerifyRequest {
        only: Some("node".into()),
        from: from.to_vec(),
        ..VerifyRequest::default()
    };
    let mut behind = Verification::begin(store, &key, request(&[])).await.unwrap();
    assert!(matches!(behind.step().await.unwrap(), Step::Records));
    let late = known(&all, 4_200);
    let mut resumed = Verification::begin(store, &key, request(&[late])).await.unwrap();
    pass(store, keep_after(5_200, 7_500), None).await.unwrap();
    for verification in [&mut behind, &mut resumed] {
        let verdict = loop {
            match verification.step().await.unwrap() {
                Step::Records => {}
                Step::Chain(verdict) => break verdict,
                Step::End => panic!("no verdict"),
            }
        };
        assert_eq!((verdict.flaw, verdict.cut), (None, 5_000));
    }
}

fn open(dir: &Path) -> Embedded {
    Embedded::open(dir, "node", StoreCase::key()).unwrap()
}

fn stored(dir: &Path) -> jeton::store::embedded::StoredChains {
    Embedded::stored_chains(dir, StoreCase::key()).unwrap()
}

fn raw(dir: &Path) -> rusqlite::Connection {
    rusqlite::Connection::open(dir.join("jeton.db")).unwrap()
}

#[tokio::test]
async fn a_verification_of_the_embedded_trail_begins_at_a_known_head() {
    let dir = tempfile::tempdir().unwrap();
    begins_at_a_known_head(&open(dir.path())).await;
}

#[tokio::test]
async fn a_verification_of_the_embedded_trail_begins_behind_a_cut() {
    let dir = tempfile::tempdir().unwrap();
    begins_behind_a_cut(&open(dir.path())).await;
    let dir = tempfile::tempdir().unwrap();
    outlives_a_cut(&open(dir.path())).await;
}

/// OPERATORS B05: the same place, in the store and in the directory without a server.
#[tokio::test]
async fn an_altered_record_is_named_with_and_without_a_server() {
    for (sql, bad) in [
        ("UPDATE audit SET event = replace(event, '2000', '2001') WHERE sequence = 2000", 2_000),
        ("DELETE FROM audit WHERE sequence = 2000", 2_000),
        ("UPDATE audit SET hash = zeroblob(32) WHERE sequence = 2000", 2_000),
        ("UPDATE audit SET event = 'not json' WHERE sequence = 2000", 2_000),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        fill(&store, 4_000).await;
        let all = records(&store).await;
        store.close().await.unwrap();
        assert_eq!(judged(&stored(dir.path()), None).await.flaw, None);
        assert!(judged(&stored(dir.path()), None).await.is_end_sure);
        raw(dir.path()).execute_batch(sql).unwrap();
        names_the_same_place(&stored(dir.path()), &all, bad).await;
        let store = open(dir.path());
        names_the_same_place(&store, &all, bad).await;
        // A server may run meanwhile.
        names_the_same_place(&stored(dir.path()), &all, bad).await;
    }
}

/// What the note beside the database says was acknowledged must be there, and of a copy the end is
/// not sure. Another key is no damage.
#[tokio::test]
async fn a_directory_without_its_end_is_noticed() {
    let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(dir.path());
    fill(&store, 100).await;
    store.close().await.unwrap();
    let files = ["jeton.db", "anchor"];
    for file in files {
        std::fs::copy(dir.path().join(file), copy.path().join(file)).unwrap();
    }
    let verdict = judged(&stored(copy.path()), None).await;
    assert_eq!((verdict.flaw, verdict.is_end_sure), (None, false));
    let store = open(dir.path());
    fill(&store, 200).await;
    store.close().await.unwrap();
    let before = files.map(|file| std::fs::read(dir.path().join(file)).unwrap());
    let chains = stored(dir.path());
    let (chain, sequence, _) = chains.last_acknowledged().unwrap();
    assert_eq!((&*chain, sequence), ("node", 200));
    assert_eq!(judged(&chains, None).await.checked, 200);
    let other = Embedded::stored_chains(dir.path(), ChainKey::new([8; 32]));
    assert!(matches!(other, Err(OpenError::MasterKey(_))), "{:?}", other.err());
    drop(chains);
    assert_eq!(files.map(|file| std::fs::read(dir.path().join(file)).unwrap()), before);
    // The older database over the newer one, in its file.
    std::fs::copy(copy.path().join("jeton.db"), dir.path().join("jeton.db")).unwrap();
    let chains = stored(dir.path());
    let (chain, sequence, hash) = chains.last_acknowledged().unwrap();
    let request =
        VerifyRequest { known: vec![Known { chain, sequence, hash }], ..Default::default() };
    let key = StoreCase::key();
    let mut verification = Verification::begin(&chains, &key, request).await.unwrap();
    let step = verification.step().await.unwrap();
    let Step::Chain(verdict) = step else { panic!("{step:?}") };
    assert_eq!(verdict.flaw.map(|flaw| flaw.0), Some(101));
}

/// More witnesses than a page has are compared, of all chains.
#[tokio::test]
async fn every_witness_is_compared() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    fill(&store, 700).await;
    let all = records(&store).await;
    for record in &all {
        let hash = jeton::store::transfer::hex(&record.hash);
        let target = format!("node:{}:{hash}", record.sequence);
        let at = at(700_000);
        let seen = Event { at, target, ..event(Action::HeadsWitnessed) };
        store.append_soon(seen).await.unwrap();
    }
    has(&store, 1_400).await;
    let verdict = judged(&store, None).await;
    assert_eq!((verdict.flaw, verdict.witnessed), (None, 700));
    let target = format!("node:650:{}", "ab".repeat(32));
    store.append(Event { target, ..event(Action::HeadsWitnessed) }).await.unwrap();
    let differs = "differs from the hash witnessed in another chain".to_owned();
    assert_eq!(judged(&store, None).await.flaw, Some((650, differs)));
}

mod mongodb {
    use ::mongodb::bson::doc;
    use jeton::store::{Store, mongo::Mongo};

    use super::{
        Arc, ChainKey, StoreCase, begins_at_a_known_head, begins_behind_a_cut, fill, judged,
        names_the_same_place, outlives_a_cut, records,
    };
    use crate::{
        store::trail::{
            cuts::mongodb::old_node,
            mongodb::{node, raw},
        },
        support::database::{Database as Own, PATIENCE},
    };

    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn a_verification_of_the_shared_trail_begins_at_a_known_head() {
        let own = Own::own();
        begins_at_a_known_head(&node(own.uri(), "node").await).await;
    }

    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn a_verification_of_the_shared_trail_begins_behind_a_cut() {
        let own = Own::own();
        begins_behind_a_cut(&old_node(&own).await).await;
        let own = Own::own();
        outlives_a_cut(&old_node(&own).await).await;
    }

    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn an_altered_document_is_named_with_and_without_a_node() {
        let own = Own::own();
        let store: Arc<dyn Store> = Arc::new(node(own.uri(), "node").await);
        fill(store.as_ref(), 4_000).await;
        let all = records(store.as_ref()).await;
        let stored = async || Mongo::stored_chains(own.uri(), StoreCase::key(), PATIENCE).await;
        let chains = stored().await.unwrap();
        let verdict = judged(&chains, None).await;
        assert_eq!((verdict.flaw, verdict.checked), (None, 4_000));
        let logs = raw(&own).await.collection::<::mongodb::bson::Document>("audit_logs");
        let id = doc! { "_id": { "chain": "node", "sequence": 2_000_i64 } };
        let altered = doc! { "$set": { "event.target": "other" } };
        logs.update_one(id, altered).await.unwrap();
        names_the_same_place(store.as_ref(), &all, 2_000).await;
        names_the_same_place(&chains, &all, 2_000).await;
        store.close().await.unwrap();
        let chains = stored().await.unwrap();
        names_the_same_place(&chains, &all, 2_000).await;
        // No chain of its own is left by a reader.
        let nodes = raw(&own).await.collection::<::mongodb::bson::Document>("nodes");
        assert_eq!(nodes.count_documents(doc! {}).await.unwrap(), 1);
        let other = Mongo::stored_chains(own.uri(), ChainKey::new([8; 32]), PATIENCE).await;
        assert!(other.err().unwrap().to_string().contains("master key"));
    }
}
