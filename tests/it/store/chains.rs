//! Audit chains of other nodes in the embedded store: they come with an import, are shown, verified
//! and exported again, and nobody changes them unnoticed.

use std::{path::Path, sync::Arc};

use jeton::{
    admin::audit::verify,
    crypto::chain::{Flaw, Problem, START, link},
    model::{Action, Event, Place, Record, event::Filter},
    store::{
        AuditStore, Store, StoreError,
        embedded::{Embedded, OpenError},
        transfer::{ExportRecord, ImportTarget, VERSION},
    },
};

use crate::store::{
    backend::StoreCase,
    fixtures::{at, event},
    transfer::{dump, lines, parse},
};

fn open(dir: &Path) -> Embedded {
    Embedded::open(dir, "node", StoreCase::key()).unwrap()
}

fn hex(hash: &[u8; 32]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A chain of records at these times, all by the node it is named after but for the last, which
/// another goes on with.
pub(crate) fn chain(name: &str, times: &[i64]) -> Vec<Record> {
    let (chain, mut hash): (Arc<str>, _) = (name.into(), START);
    let mut records = Vec::new();
    for (n, millis) in times.iter().enumerate() {
        let sequence = n as u64 + 1;
        let node: Arc<str> =
            if n > 0 && n + 1 == times.len() { "renamed".into() } else { chain.clone() };
        let event = Event {
            at: at(*millis),
            target: format!("{name}/{sequence}"),
            ..event(Action::TokenIssued)
        };
        hash = link(&hash, sequence, &node, &serde_json::to_vec(&event).unwrap());
        records.push(Record { chain: chain.clone(), sequence, node, event, hash });
    }
    records
}

/// An export of these chains and nothing else.
fn items(chains: &[Vec<Record>]) -> Vec<ExportRecord> {
    let (first, last) = (
        ExportRecord::Export { version: VERSION },
        ExportRecord::End { chains: chains.len() as u64 },
    );
    [vec![first], closed(chains), vec![last]].concat()
}

/// The items of these chains, each with its end.
pub(crate) fn closed(chains: &[Vec<Record>]) -> Vec<ExportRecord> {
    let mut items = Vec::new();
    for records in chains {
        for Record { chain, sequence, node, event, hash } in records.clone() {
            items.push(ExportRecord::Record { chain, sequence, node, event, hash: hex(&hash) });
        }
        let last = records.last().unwrap();
        let seal = Some(hex(&StoreCase::key().seal_exported(
            &last.chain,
            last.sequence,
            &last.hash,
            false,
        )));
        let (chain, sequence, hash) = (last.chain.clone(), last.sequence, hex(&last.hash));
        items.push(ExportRecord::ChainEnd { chain, sequence, hash, open: false, seal });
    }
    items
}

/// Three nodes' chains, their times interleaved, some equal.
fn three() -> [Vec<Record>; 3] {
    [chain("Node", &[0, 4, 4, 9]), chain("node", &[1, 4, 8]), chain("node-2", &[2, 4, 3, 9, 9])]
}

async fn import(dir: &Path, items: Vec<ExportRecord>) -> Embedded {
    let store = open(dir);
    for part in items.chunks(3) {
        store.load(part.to_vec()).await.unwrap();
    }
    store
}

async fn is_intact(store: &Embedded) -> Vec<(String, u64)> {
    let verdicts = verify(store, &StoreCase::key(), None, &[]).await.unwrap();
    assert!(verdicts.iter().all(|verdict| verdict.flaw.is_none()), "{verdicts:?}");
    assert!(store.check().await.unwrap().is_intact());
    verdicts
        .into_iter()
        .map(|verdict| (verdict.chain.as_ref().to_owned(), verdict.checked))
        .collect()
}

/// E9, O04: what comes in with several chains goes out again byte for byte, and each chain verifies
/// under this store's key; the one of this node's name is gone on with, the others stay as they
/// are.
#[tokio::test]
async fn several_chains_come_in_and_go_out_byte_for_byte() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let chains = three();
    let given = items(&chains);
    let store = import(one.path(), given.clone()).await;
    for limit in [1, 2, 3, 99] {
        assert_eq!(dump(&store, limit).await, given);
    }
    assert_eq!(store.newest_time(), at(9));
    store.close().await.unwrap();
    let store = open(one.path());
    assert_eq!(store.newest_time(), at(9));
    assert_eq!(
        lines(&dump(&Embedded::read_only(one.path(), Some(StoreCase::key())).unwrap(), 2).await),
        lines(&given)
    );
    let lengths = [("Node".to_owned(), 4), ("node".to_owned(), 3), ("node-2".to_owned(), 5)];
    assert_eq!(is_intact(&store).await, lengths);
    for records in &chains {
        let name = &records[0].chain;
        assert_eq!(store.chain(name, 0, 99).await.unwrap(), *records);
        assert_eq!(store.chain(name, 1, 2).await.unwrap(), records[1..3]);
        let head = store.head(name).await.unwrap().unwrap();
        assert_eq!(
            (head.sequence, head.hash),
            (records.len() as u64, records.last().unwrap().hash)
        );
    }

    let second = import(two.path(), parse(&lines(&given))).await;
    assert_eq!(lines(&dump(&second, 7).await), lines(&given));
    second.append(event(Action::StoreImported)).await.unwrap();
    let grown = [lengths[0].clone(), ("node".to_owned(), 4), lengths[2].clone()];
    assert_eq!(is_intact(&second).await, grown);
    second.close().await.unwrap();
    assert_eq!(is_intact(&open(two.path())).await, grown);
}

/// O05: one list over all chains, newest first, in pages of any length.
#[tokio::test]
async fn events_of_all_chains_are_one_list() {
    let dir = tempfile::tempdir().unwrap();
    let store = import(dir.path(), items(&three())).await;
    let mut all: Vec<Record> = three().concat();
    all.sort_by_key(|record| std::cmp::Reverse(record.place()));
    let pages = async |filter: Filter, limit: usize| {
        let (mut seen, mut before): (Vec<Record>, Option<Place>) = (Vec::new(), None);
        loop {
            let page = store.events(&filter, before.as_ref(), limit).await.unwrap();
            assert!(page.len() <= limit);
            let Some(last) = page.last() else { return seen };
            before = Some(last.place());
            seen.extend(page);
        }
    };
    for limit in 1..=13 {
        assert_eq!(pages(Filter::default(), limit).await, all, "{limit}");
        let between = Filter { from: Some(at(2)), to: Some(at(9)), ..Filter::default() };
        let expected: Vec<_> =
            all.iter().filter(|record| between.admits(&record.event)).cloned().collect();
        assert_eq!(expected.len(), 7);
        assert_eq!(pages(between, limit).await, expected, "{limit}");
    }
    let one = Filter { target: Some("node-2/3".into()), ..Filter::default() };
    assert_eq!(pages(one, 9).await, [three()[2][2].clone()]);
}

async fn refused(items: Vec<ExportRecord>) -> String {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    match store.load(items).await {
        Err(StoreError::Corrupt(source)) => source.to_string(),
        other => panic!("{other:?}"),
    }
}

/// O04: a chain that was dropped, doubled, cut, renamed or torn apart is not taken in.
#[tokio::test]
async fn tampered_chains_are_refused() {
    let whole = items(&three());
    // One for the export, four records and an end, three and an end, five and an end.
    let (first, second) = (1..6, 6..10);
    let without =
        |range: std::ops::Range<usize>| [&whole[..range.start], &whole[range.end..]].concat();
    for (problem, items) in [
        ("an audit chain is missing", without(first.clone())),
        ("an audit chain is missing", without(second.clone())),
        ("begins before the previous chain ends", without(5..6)),
        ("audit record 3: removed", without(3..4)),
        ("chain node: the end does not match", without(8..9)),
        ("the end does not match", without(second.start..second.end - 1)),
        ("in the order", [&whole[..6], &whole[first.clone()], &whole[6..]].concat()),
        ("in the order", [&whole[..1], &whole[second], &whole[first], &whole[10..]].concat()),
        ("another name", items(&[renamed(chain("a", &[1, 2]), "b")])),
        ("no name", items(&[chain("", &[1])])),
        (
            "an audit chain is missing",
            [&whole[..whole.len() - 1], &[ExportRecord::End { chains: 2 }]].concat(),
        ),
        ("has no end", [&whole[..whole.len() - 2], &[ExportRecord::End { chains: 2 }]].concat()),
    ] {
        let refused = refused(items).await;
        assert!(refused.contains(problem), "{problem}: {refused}");
    }
}

/// O04, AZ4: a chain whose end has another key's seal, another chain's, or that of an earlier end
/// is not taken in.
#[tokio::test]
async fn an_end_with_a_wrong_seal_is_refused() {
    let (whole, shorter) = (chain("other", &[1, 2, 3]), chain("other", &[1, 2]));
    let last = whole.last().unwrap();
    let foreign =
        jeton::crypto::chain::ChainKey::new([1; 32]).seal_exported("other", 3, &last.hash, false);
    let earlier = StoreCase::key().seal_exported("other", 2, &shorter.last().unwrap().hash, false);
    let left_open = StoreCase::key().seal_exported("other", 3, &last.hash, true);
    let of_another = StoreCase::key().seal_exported("node", 3, &last.hash, false);
    for seal in [foreign, earlier, left_open, of_another]
        .map(|seal| hex(&seal))
        .into_iter()
        .chain([String::new(), "00".into()])
    {
        let mut items = items(std::slice::from_ref(&whole));
        let Some(ExportRecord::ChainEnd { seal: old, .. }) =
            items.iter_mut().find(|item| matches!(item, ExportRecord::ChainEnd { .. }))
        else {
            panic!()
        };
        assert_ne!(old.replace(seal.clone()), Some(seal));
        assert!(refused(items).await.contains("the seal of its end is invalid"));
    }
}

fn renamed(records: Vec<Record>, name: &str) -> Vec<Record> {
    records.into_iter().map(|record| Record { chain: name.into(), ..record }).collect()
}

/// E3, O04: imported chains changed behind the store's back. What no row can show by itself, one
/// that is gone, is missed on opening; all else is found by the check, and named by the
/// verification.
#[tokio::test]
async fn a_changed_foreign_chain_is_found() {
    let flaw = |chain: &str, sequence, problem| Some((chain.into(), Flaw { sequence, problem }));
    for (sql, expected) in [
        ("DELETE FROM imported_heads WHERE chain = 'Node'", None),
        (
            "DELETE FROM imported_heads WHERE chain = 'Node'; DELETE FROM audit WHERE chain = (SELECT id FROM audit_chains WHERE name = 'Node')",
            None,
        ),
        ("UPDATE imported_heads SET sequence = sequence - 1", None),
        ("UPDATE imported_heads SET chain = 'Mode' WHERE chain = 'Node'", None),
        (
            "DELETE FROM audit WHERE chain = (SELECT id FROM audit_chains WHERE name = 'node-2') AND sequence = 5",
            flaw("node-2", 5, Problem::CutOff),
        ),
        (
            "DELETE FROM audit WHERE chain = (SELECT id FROM audit_chains WHERE name = 'node-2')",
            flaw("node-2", 1, Problem::CutOff),
        ),
        (
            "DELETE FROM audit WHERE chain = (SELECT id FROM audit_chains WHERE name = 'Node') AND sequence = 1",
            flaw("Node", 1, Problem::Removed),
        ),
        (
            "UPDATE audit SET event = replace(event, 'Node/2', 'Node/3')",
            flaw("Node", 2, Problem::Altered),
        ),
        (
            "UPDATE audit SET node = 99 WHERE chain = (SELECT id FROM audit_chains WHERE name = 'Node') AND sequence = 3",
            flaw("Node", 3, Problem::Altered),
        ),
        (
            "UPDATE audit_chains SET name = 'nodf' WHERE name = 'node-2'",
            flaw("node-2", 1, Problem::CutOff),
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        import(dir.path(), items(&three())).await.close().await.unwrap();
        rusqlite::Connection::open(dir.path().join("jeton.db"))
            .unwrap()
            .execute_batch(sql)
            .unwrap();
        let opened = Embedded::open(dir.path(), "node", StoreCase::key());
        let Some((chain, flaw)) = expected else {
            assert!(
                matches!(opened, Err(OpenError::Corrupt(text)) if text.contains("lost")),
                "{sql}"
            );
            continue;
        };
        let store = opened.unwrap();
        let checked = store.check().await.unwrap();
        assert_eq!(checked.flaw, Some((Arc::clone(&chain), flaw)), "{sql}");
        let verdicts = verify(&store, &StoreCase::key(), None, &[]).await.unwrap();
        let verdict = verdicts.into_iter().find(|verdict| verdict.flaw.is_some()).unwrap();
        assert_eq!((verdict.chain, verdict.flaw.unwrap().0), (chain, flaw.sequence), "{sql}");
    }
}

/// O04: ends are sealed under the key of the store that took them in, and opened under no other.
#[tokio::test]
async fn foreign_chains_are_sealed_under_this_stores_key() {
    let dir = tempfile::tempdir().unwrap();
    import(dir.path(), items(&[chain("other", &[1])])).await.close().await.unwrap();
    let foreign = Embedded::open(dir.path(), "node", jeton::crypto::chain::ChainKey::new([1; 32]));
    assert!(
        matches!(foreign, Err(OpenError::MasterKey(text)) if text.contains("another master key"))
    );
}

/// A chain is one node's: none begins another of a name that is taken.
#[tokio::test]
async fn a_node_does_not_begin_a_chain_of_a_name_that_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    import(dir.path(), items(&[chain("other", &[1])])).await.close().await.unwrap();
    let taken = Embedded::open(dir.path(), "other", StoreCase::key());
    assert!(matches!(taken, Err(OpenError::NodeName(name)) if name == "other"));
    let store = open(dir.path());
    store.append(event(Action::ServerStarted)).await.unwrap();
    store.close().await.unwrap();
    // Under that name it goes on with its own chain all the same.
    let store = Embedded::open(dir.path(), "other", StoreCase::key()).unwrap();
    store.append(event(Action::ServerStarted)).await.unwrap();
    assert_eq!(is_intact(&store).await, [("node".to_owned(), 2), ("other".to_owned(), 1)]);
}

/// An import into which something else was written has no chain to go on with.
#[tokio::test]
async fn a_record_between_the_parts_of_an_import_does_not_join_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let given = items(&[chain("node", &[1, 2, 3])]);
    store.load(given[..1].to_vec()).await.unwrap();
    store.append(event(Action::ServerStarted)).await.unwrap();
    assert!(store.load(given[1..].to_vec()).await.is_err());
    store.close().await.unwrap();
    assert!(Embedded::open(dir.path(), "node", StoreCase::key()).is_err());
}
