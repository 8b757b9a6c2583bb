//! Cuts of the trail by `audit.keep`: archived, sealed, recorded, finished after a crash, and
//! noticed if another party made them.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use jeton::{
    admin::{
        audit::{Known, Verdict, verify},
        tail::Tail,
    },
    config::Keep,
    crypto::chain::{ChainPlace, CutMark},
    model::{Action, Event, Record, Timestamp, event::Filter},
    server::retention::{Retention, RetentionError},
    store::{
        AuditStore, RetentionStore, Store, Write,
        embedded::{Embedded, OpenError},
        transfer::{ArchiveCheck, ArchivedPart, ExportRecord, ExportSource, ImportTarget},
    },
};
use tempfile::TempDir;

use crate::{
    store::{
        backend::StoreCase,
        fixtures::{NOW, at, event},
        transfer::dump,
    },
    support::until::until,
};

/// Appends records of the chain `node` until it has `count`, one a second.
pub(super) async fn fill(store: &dyn Store, count: u64) {
    let head = store.head("node").await.unwrap().map_or(0, |head| head.sequence);
    for sequence in head + 1..=count {
        let at = at(i64::try_from(sequence).unwrap() * 1_000);
        let issued = Event { at, target: sequence.to_string(), ..event(Action::TokenIssued) };
        store.append_soon(issued).await.unwrap();
    }
    has(store, count).await;
}

/// Waits until the chain `node` has `count` records.
pub(super) async fn has(store: &dyn Store, count: u64) {
    until(async || store.head("node").await.unwrap().is_some_and(|head| head.sequence >= count))
        .await;
}

/// Bound that keeps the records after `sequence`, at the time of the record `count`.
pub(super) fn keep_after(sequence: u64, count: u64) -> (Keep, Timestamp) {
    (Keep::Age(Duration::from_secs(count - sequence)), NOW + Duration::from_secs(count))
}

pub(super) async fn pass(
    store: &dyn Store,
    (keep, now): (Keep, Timestamp),
    archive: Option<&Path>,
) -> Result<u64, RetentionError> {
    let retention = Retention { keep, archive: archive.map(Path::to_owned) };
    retention.pass(store, &StoreCase::key(), now).await
}

async fn judged(store: &dyn Store, known: &[Known]) -> Verdict {
    let verdicts = verify(store, &StoreCase::key(), Some("node"), known).await.unwrap();
    verdicts.into_iter().next().unwrap()
}

pub(super) async fn flaw(store: &dyn Store) -> Option<(u64, String)> {
    judged(store, &[]).await.flaw
}

/// The records that lists and chains show, which must be the same.
async fn shown(store: &dyn Store) -> Vec<Record> {
    let chain = store.chain("node", 0, 20_000).await.unwrap();
    let mut listed = store.events(&Filter::default(), None, 20_000).await.unwrap();
    listed.retain(|record| *record.chain == *"node");
    listed.sort_unstable_by_key(|record| record.sequence);
    assert_eq!(listed, chain);
    chain
}

fn archived(directory: &Path) -> Vec<ArchivedPart> {
    let mut files: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|file| file.unwrap().path()).collect();
    // Others are incomplete.
    files.retain(|file| file.extension().is_some_and(|extension| extension == "jsonl"));
    files.sort_unstable();
    let part = |file: &std::path::PathBuf| {
        let mut check = ArchiveCheck::default();
        let text = std::fs::read_to_string(file).unwrap();
        text.lines().for_each(|line| check.take(line, Some(&StoreCase::key())).unwrap());
        check.finish().unwrap()
    };
    files.iter().map(part).collect()
}

/// A chain of 9,500 records is cut at 5,000 and, later, at 6,000.
async fn is_cut(store: &dyn Store, archive: &Path) {
    fill(store, 9_500).await;
    let whole = shown(store).await;
    let hash = |sequence: u64| whole[usize::try_from(sequence).unwrap() - 1].hash;
    let known = |sequence, hash| [Known { chain: "node".into(), sequence, hash }];
    assert_eq!(pass(store, keep_after(5_200, 9_500), Some(archive)).await.unwrap(), 5_000);
    let left = shown(store).await;
    assert_eq!((left[0].sequence, left.len()), (5_001, 4_501), "with the event of the cut");
    let cut = left.last().unwrap();
    assert_eq!(cut.event.action, Action::TrailCut);
    assert!(cut.event.target.starts_with("node:5000:"), "{cut:?}");
    assert!(
        cut.event.reason.starts_with("5000 records from 1, archived as audit.node."),
        "{cut:?}"
    );
    let verdict = judged(store, &[]).await;
    assert_eq!((verdict.flaw, verdict.cut, verdict.checked), (None, 5_000, 4_501));
    for (sequence, hash, is_right) in [
        (3_000, [7; 32], true),
        (5_000, hash(5_000), true),
        (5_000, [7; 32], false),
        (6_000, hash(6_000), true),
        (6_000, [7; 32], false),
        (9_000, [7; 32], false),
    ] {
        let flaw = judged(store, &known(sequence, hash)).await.flaw;
        assert_eq!(flaw.is_none(), is_right, "{sequence}: {flaw:?}");
    }
    assert_eq!(store.trail_size(NOW).await.unwrap().records, 4_501);
    assert_eq!(pass(store, keep_after(5_200, 9_500), Some(archive)).await.unwrap(), 0);
    assert_eq!(pass(store, keep_after(6_000, 9_500), Some(archive)).await.unwrap(), 1_000);
    let parts = archived(archive);
    assert_eq!(parts.len(), 2);
    assert_eq!((parts[0].before.0, parts[0].last), (0, (5_000, hash(5_000))));
    assert_eq!((parts[1].before, parts[1].last.0), (parts[0].last, 6_000));
    assert_eq!(flaw(store).await, None);
}

/// The state after a crash behind the mark, and in the middle of the removal.
async fn is_finished_after_a_crash(store: &dyn Store, archive: &Path) {
    fill(store, 9_500).await;
    let place = store.sealed_place("node", 0, at(4_000_000), 100_000).await.unwrap().unwrap();
    assert_eq!(place.sequence, 4_000);
    let mark = StoreCase::key().mark_cut("node", place);
    assert_eq!(
        store.cut("node", 1_000, &mark, event(Action::TrailCut)).await.unwrap(),
        Write::Stale
    );
    assert_eq!(store.cut("node", 0, &mark, event(Action::TrailCut)).await.unwrap(), Write::Done);
    assert_eq!(store.cut("node", 0, &mark, event(Action::TrailCut)).await.unwrap(), Write::Stale);
    for removed in [0, 7, 200] {
        if removed > 0 {
            assert_eq!(store.remove_cut(NOW, removed).await.unwrap(), removed);
        }
        let left = shown(store).await;
        assert_eq!((left[0].sequence, left.len()), (4_001, 5_501), "{removed}");
        assert_eq!(flaw(store).await, None, "{removed}");
    }
    assert_eq!(pass(store, keep_after(5_000, 9_500), Some(archive)).await.unwrap(), 1_000);
    assert_eq!(store.remove_cut(NOW, 10).await.unwrap(), 0);
    assert_eq!(shown(store).await[0].sequence, 5_001);
}

fn open(dir: &TempDir) -> Embedded {
    Embedded::open(dir.path(), "node", StoreCase::key()).unwrap()
}

fn raw(dir: &TempDir) -> rusqlite::Connection {
    rusqlite::Connection::open(dir.path().join("jeton.db")).unwrap()
}

#[tokio::test]
async fn an_old_part_of_the_embedded_trail_is_archived_and_cut() {
    let (dir, archive) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(&dir);
    is_cut(&store, archive.path()).await;
    assert!(store.check().await.unwrap().is_intact());
    store.close().await.unwrap();
    let rows = |table: &str| -> i64 {
        let sql = format!("SELECT count(*) FROM {table} WHERE place & 1099511627775 <= 6000");
        raw(&dir).query_row(&sql, [], |row| row.get(0)).unwrap()
    };
    assert_eq!((rows("audit"), rows("audit_keys"), rows("audit_seals")), (0, 0, 0));
    let store = open(&dir);
    fill(&store, 9_600).await;
    assert_eq!(flaw(&store).await, None);
}

#[tokio::test]
async fn an_interrupted_cut_of_the_embedded_trail_is_finished() {
    let (dir, archive) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // Left by a process that ended while it wrote.
    let name = "audit.node.000000004001-000000005000.jsonl.new";
    std::fs::write(archive.path().join(name), "half").unwrap();
    let store = open(&dir);
    is_finished_after_a_crash(&store, archive.path()).await;
    assert_eq!(archived(archive.path()).len(), 1);
    assert!(store.check().await.unwrap().is_intact());
}

/// The rest of a row below the mark is checked with its keys alone.
#[tokio::test]
async fn rows_that_a_cut_left_are_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    fill(&store, 9_500).await;
    let place = store.sealed_place("node", 0, at(4_000_000), 100_000).await.unwrap().unwrap();
    let mark = StoreCase::key().mark_cut("node", place);
    store.cut("node", 0, &mark, event(Action::TrailCut)).await.unwrap();
    store.remove_cut(NOW, 100).await.unwrap();
    assert!(store.check().await.unwrap().is_intact());
    // Removed by hand: the mark covers them.
    raw(&dir).execute("DELETE FROM audit WHERE sequence = 500", []).unwrap();
    assert_eq!(flaw(&store).await, None);
    store.close().await.unwrap();
    assert_eq!(flaw(&open(&dir)).await, None);
}

/// DECISIONS 3: only a node with the key can cut. Each line is what a writer of the database does
/// to a trail that was cut at 3,000 and at 5,000, and the fault that is reported.
#[tokio::test]
async fn a_cut_by_another_party_is_noticed() {
    let (dir, archive) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(&dir);
    fill(&store, 9_500).await;
    pass(&store, keep_after(3_000, 9_500), Some(archive.path())).await.unwrap();
    let first = store.cut_mark("node").await.unwrap().unwrap();
    pass(&store, keep_after(5_000, 9_500), Some(archive.path())).await.unwrap();
    let second = store.cut_mark("node").await.unwrap().unwrap();
    let of_record = |sequence: u64, hash| ChainPlace { sequence, hash, at: second.place.at };
    let hash = store.chain("node", 5_999, 1).await.unwrap()[0].hash;
    let put = |mark: &CutMark| {
        let CutMark { place, seal } = mark;
        raw(&dir)
            .execute(
                "UPDATE audit_cuts SET sequence = ?1, hash = ?2, at = ?3, seal = ?4",
                (place.sequence.cast_signed(), place.hash, place.at.millis(), seal),
            )
            .unwrap();
    };
    let invalid = "the mark of the cut is invalid";
    // Rolled back.
    put(&first);
    assert_eq!(flaw(&store).await, Some((3_001, "removed".to_owned())));
    // Forged, and that of another chain: neither removes anything.
    let place = of_record(6_000, hash);
    for mark in [
        CutMark { place, seal: second.seal },
        StoreCase::key().mark_cut("other", place),
        CutMark { place, seal: StoreCase::key().seal_place("node", &place) },
    ] {
        put(&mark);
        assert_eq!(flaw(&store).await, Some((6_000, invalid.to_owned())));
        assert_eq!(store.remove_cut(NOW, 10).await.unwrap(), 0);
        let refused = pass(&store, keep_after(6_200, 9_500), Some(archive.path())).await;
        assert!(matches!(refused, Err(RetentionError::Chain { .. })), "{refused:?}");
        assert!(!store.check().await.unwrap().is_intact());
    }
    // Taken away.
    raw(&dir).execute("DELETE FROM audit_cuts", []).unwrap();
    assert_eq!(flaw(&store).await, Some((1, "removed".to_owned())));
    raw(&dir)
        .execute("INSERT INTO audit_cuts VALUES ('node', 0, ?1, 0, ?1)", [[0_u8; 32]])
        .unwrap();
    put(&second);
    assert_eq!(flaw(&store).await, None);
    // A row above the mark.
    raw(&dir).execute("DELETE FROM audit WHERE sequence = 5001", []).unwrap();
    assert_eq!(flaw(&store).await, Some((5_001, "removed".to_owned())));
    store.close().await.unwrap();
    put(&CutMark { place, seal: second.seal });
    let refused = Embedded::open(dir.path(), "node", StoreCase::key());
    assert!(matches!(refused, Err(OpenError::Corrupt(_))), "{:?}", refused.err());
}

/// A chain that is altered before the place of the cut is neither archived nor cut.
#[tokio::test]
async fn an_altered_part_is_not_cut() {
    let (dir, archive) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(&dir);
    fill(&store, 9_500).await;
    raw(&dir)
        .execute("UPDATE audit SET event = replace(event, '700', '701') WHERE sequence = 700", [])
        .unwrap();
    let refused = pass(&store, keep_after(5_000, 9_500), Some(archive.path())).await;
    assert!(matches!(refused, Err(RetentionError::Chain { .. })), "{refused:?}");
    assert_eq!(store.cut_mark("node").await.unwrap(), None);
    let files = std::fs::read_dir(archive.path()).unwrap();
    assert!(files.flatten().all(|file| file.file_name().to_string_lossy().ends_with(".new")));
    // Nor where its archive cannot be written.
    let missing = archive.path().join("missing");
    let refused = pass(&store, keep_after(5_000, 9_500), Some(&missing)).await;
    assert!(matches!(refused, Err(RetentionError::Archive { .. })), "{refused:?}");
}

/// A tail that would leave out records that were cut since says so, and goes on after them.
#[tokio::test]
async fn a_tail_from_before_a_cut_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(open(&dir));
    // Up to 2,048 records have no keys yet: they stay.
    fill(store.as_ref(), 7_500).await;
    pass(store.as_ref(), keep_after(5_000, 7_500), None).await.unwrap();
    let begin = |sequence: u64| {
        let after = BTreeMap::from([("node".into(), sequence)]);
        Tail::begin(store.clone(), Filter::default(), after)
    };
    let refused = begin(4_999).await.err().unwrap().to_string();
    assert!(refused.contains("records 5000 to 5000 of the chain node were cut"), "{refused}");
    let mut tail = begin(5_000).await.unwrap();
    assert_eq!(tail.next().await.unwrap()[0].sequence, 5_001);
}

/// A tail that a cut overtakes ends with an error that names the records: it passes over none.
async fn overtakes_tails(store: Arc<dyn Store>) {
    fill(store.as_ref(), 7_500).await;
    let begin = |after: &[(&str, u64)]| {
        let after = after.iter().map(|(chain, sequence)| (Arc::from(*chain), *sequence)).collect();
        Tail::begin(store.clone(), Filter::default(), after)
    };
    let mut behind = begin(&[("node", 1_000)]).await.unwrap();
    let reached = behind.next().await.unwrap().last().unwrap().sequence;
    assert!((1_001..5_000).contains(&reached), "{reached}");
    let mut live = begin(&[]).await.unwrap();
    pass(store.as_ref(), keep_after(5_200, 7_500), None).await.unwrap();
    for _ in 0..2 {
        let refused = behind.next().await.unwrap_err().to_string();
        let named = format!("records {} to 5000 of the chain node were cut", reached + 1);
        assert!(refused.contains(&named), "{refused}");
    }
    // Nor does one begin after a gap that its caller does not know of.
    for after in [("node", 0), ("other", 7)] {
        let refused = begin(&[after]).await.err().unwrap().to_string();
        assert!(refused.contains("records 1 to 5000 of the chain node were cut"), "{refused}");
    }
    // More records than a reader may lag behind, and a cut before it reads them.
    fill(store.as_ref(), 10_500).await;
    pass(store.as_ref(), keep_after(8_200, 10_500), None).await.unwrap();
    let mut last = 7_500;
    let refused = loop {
        match live.next().await {
            Ok(records) => {
                for record in records {
                    assert_eq!(record.sequence, last + 1);
                    last += 1;
                }
            }
            Err(error) => break error.to_string(),
        }
    };
    let named = format!("records {} to 8000 of the chain node were cut", last + 1);
    assert!(refused.contains(&named), "{refused}");
}

#[tokio::test]
async fn a_tail_of_the_embedded_trail_that_a_cut_overtakes_says_so() {
    let dir = tempfile::tempdir().unwrap();
    overtakes_tails(Arc::new(open(&dir))).await;
}

/// By size: as many of the oldest records go as the bound asks for.
#[tokio::test]
async fn the_trail_is_cut_to_a_size() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    fill(&store, 9_500).await;
    let size = store.trail_size(NOW).await.unwrap();
    let keep = Keep::Size(size.bytes() / 2);
    let cut = pass(&store, (keep, NOW), None).await.unwrap();
    assert!((3_000..=6_000).contains(&cut), "{cut}");
    assert_eq!(pass(&store, (Keep::Size(u64::MAX), NOW), None).await.unwrap(), 0);
    assert_eq!(pass(&store, (Keep::Forever, NOW), None).await.unwrap(), 0);
    assert_eq!(flaw(&store).await, None);
}

/// An export has the beginning of each chain, and an import writes its mark again.
async fn is_moved(items: Vec<ExportRecord>, target: &(impl Store + ImportTarget + ExportSource)) {
    assert!(items.iter().any(
        |item| matches!(item, ExportRecord::ChainStart { sequence, .. } if *sequence == 4_000)
    ));
    for chunk in items.chunks(500) {
        target.load(chunk.to_vec()).await.unwrap();
    }
    let verdict = judged(target, &[]).await;
    assert_eq!((verdict.flaw, verdict.cut), (None, 4_000));
}

#[tokio::test]
async fn an_export_has_the_start_of_each_chain() {
    let (dir, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(&dir);
    fill(&store, 9_500).await;
    pass(&store, keep_after(4_000, 9_500), None).await.unwrap();
    let items = dump(&store, 700).await;
    let target = open(&to);
    is_moved(items.clone(), &target).await;
    assert_eq!(dump(&target, 500).await, items);
    target.close().await.unwrap();
    assert_eq!(flaw(&open(&to)).await, None);
    // Another start, or none.
    let start = items.iter().position(|item| matches!(item, ExportRecord::ChainStart { .. }));
    let start = start.unwrap();
    let mut other = items.clone();
    let ExportRecord::ChainStart { at, .. } = &mut other[start] else { panic!() };
    *at = NOW;
    let mut none = items;
    none.remove(start);
    for altered in [other, none] {
        let dir = tempfile::tempdir().unwrap();
        assert!(open(&dir).load(altered).await.is_err());
    }
}

pub(super) mod mongodb {
    use ::mongodb::bson::{Document, doc};
    use jeton::store::{AuditStore, RetentionStore, Store, embedded::Embedded, mongo::Mongo};

    use super::{
        fill, flaw, is_cut, is_finished_after_a_crash, is_moved, keep_after, overtakes_tails, pass,
        shown,
    };
    use crate::{
        store::{
            backend::StoreCase,
            fixtures::NOW,
            trail::mongodb::{node, raw},
            transfer::dump,
        },
        support::database::{Database as Own, PATIENCE},
    };

    /// A node that may have written records at any time, also before MongoDB's clock reads.
    pub(in crate::store::trail) async fn old_node(own: &Own) -> Mongo {
        let store = node(own.uri(), "node").await;
        let nodes = raw(own).await.collection::<Document>("nodes");
        nodes.update_many(doc! {}, doc! { "$unset": { "born_at": "" } }).await.unwrap();
        store
    }

    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn an_old_part_of_the_shared_trail_is_archived_and_cut() {
        let (own, archive) = (Own::own(), tempfile::tempdir().unwrap());
        let store = old_node(&own).await;
        is_cut(&store, archive.path()).await;
        let logs = raw(&own).await.collection::<Document>("audit_logs");
        let below = doc! { "_id.chain": "node", "_id.sequence": { "$lte": 6_000 } };
        assert_eq!(logs.count_documents(below).await.unwrap(), 0);
        store.close().await.unwrap();
        let store = node(own.uri(), "node").await;
        fill(&store, 9_600).await;
        assert_eq!(flaw(&store).await, None);
    }

    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn an_interrupted_cut_of_the_shared_trail_is_finished() {
        let (own, archive) = (Own::own(), tempfile::tempdir().unwrap());
        let store = old_node(&own).await;
        is_finished_after_a_crash(&store, archive.path()).await;
    }

    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn a_tail_of_the_shared_trail_that_a_cut_overtakes_says_so() {
        let own = Own::own();
        overtakes_tails(std::sync::Arc::new(old_node(&own).await)).await;
    }

    /// A mark without its event, as a process leaves it that ends between the two: the next pass
    /// records it. A forged or rolled back mark is a fault, and removes nothing.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn a_mark_without_its_event_is_recorded_and_a_forged_one_is_not() {
        let own = Own::own();
        let store = old_node(&own).await;
        fill(&store, 3_500).await;
        pass(&store, keep_after(1_000, 3_500), None).await.unwrap();
        let first = store.cut_mark("node").await.unwrap().unwrap();
        pass(&store, keep_after(2_000, 3_500), None).await.unwrap();
        let nodes = raw(&own).await.collection::<Document>("nodes");
        let before = nodes.find_one(doc! { "_id": "node" }).await.unwrap().unwrap();
        let set = async |set: Document| {
            nodes.update_one(doc! { "_id": "node" }, doc! { "$set": set }).await.unwrap();
        };
        let events = shown(&store).await.len();
        set(doc! { "cut.recorded": false, "cut.removed": false }).await;
        store.remove_cut(NOW, 10).await.unwrap();
        let records = shown(&store).await;
        assert_eq!(records.len(), events + 1);
        assert_eq!(records.last().unwrap().event.reason, "recorded after an interruption");
        // Forged.
        set(doc! { "cut.sequence": 3_000_i64, "cut.removed": false }).await;
        assert_eq!(flaw(&store).await, Some((3_000, "the mark of the cut is invalid".to_owned())));
        assert_eq!(store.remove_cut(NOW, 10).await.unwrap(), 0);
        // Unreadable, and gone.
        set(doc! { "cut": { "sequence": "many" } }).await;
        assert_eq!(flaw(&store).await, Some((0, "the mark of the cut is invalid".to_owned())));
        nodes.update_one(doc! { "_id": "node" }, doc! { "$unset": { "cut": "" } }).await.unwrap();
        assert_eq!(flaw(&store).await, Some((1, "removed".to_owned())));
        // Rolled back.
        let mut cut = before.get_document("cut").unwrap().clone();
        let bytes = |bytes: &[u8]| ::mongodb::bson::Binary {
            subtype: ::mongodb::bson::spec::BinarySubtype::Generic,
            bytes: bytes.to_vec(),
        };
        cut.extend(doc! {
            "sequence": 1_000_i64, "hash": bytes(&first.place.hash),
            "at": first.place.at.millis(), "seal": bytes(&first.seal),
        });
        set(doc! { "cut": cut }).await;
        assert_eq!(flaw(&store).await, Some((1_001, "removed".to_owned())));
    }

    /// One node cuts at a time.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn one_node_cuts_at_a_time() {
        let own = Own::own();
        let (one, two) = (node(own.uri(), "node").await, node(own.uri(), "two").await);
        assert!(one.hold_retention().await.unwrap());
        assert!(!two.hold_retention().await.unwrap());
        assert!(one.hold_retention().await.unwrap());
        let meta = raw(&own).await.collection::<Document>("meta");
        let past = doc! { "$set": { "until": ::mongodb::bson::DateTime::from_millis(0) } };
        meta.update_one(doc! { "_id": "retention" }, past).await.unwrap();
        assert!(two.hold_retention().await.unwrap());
        assert!(!one.hold_retention().await.unwrap());
    }

    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn a_cut_trail_moves_between_the_stores() {
        let (own, moved) = (Own::own(), Own::own());
        let store = old_node(&own).await;
        fill(&store, 9_500).await;
        pass(&store, keep_after(4_000, 9_500), None).await.unwrap();
        store.close().await.unwrap();
        let items =
            dump(&Mongo::export(own.uri(), Some(StoreCase::key()), PATIENCE).await.unwrap(), 700)
                .await;
        let dir = tempfile::tempdir().unwrap();
        let embedded = Embedded::open(dir.path(), "node", StoreCase::key()).unwrap();
        is_moved(items.clone(), &embedded).await;
        let import = Mongo::import(moved.uri(), StoreCase::key(), PATIENCE).await.unwrap();
        for chunk in items.chunks(500) {
            jeton::store::transfer::ImportTarget::load(&import, chunk.to_vec()).await.unwrap();
        }
        let store = node(moved.uri(), "node").await;
        assert_eq!(flaw(&store).await, None);
        assert_eq!(store.cut_mark("node").await.unwrap().unwrap().place.sequence, 4_000);
    }
}
