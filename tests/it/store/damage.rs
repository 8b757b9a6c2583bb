//! E3: what happens to files. A damaged store either opens with all that was acknowledged or
//! refuses; what SQLite cannot see, a bit flipped inside a page that opening does not read, is an
//! error where the row is read or is found by the whole check.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
};

use jeton::{
    crypto::chain::{Flaw, Problem},
    model::{Action, event::Filter},
    store::{
        AudienceStore, AuditStore, ClientStore, FamilyStore, FoundAudience, KeyStore, Listed,
        RevocationStore, Store, StoreError,
        embedded::{Embedded, OpenError},
        transfer::{ExportRecord, ExportSource, ImportTarget},
    },
};
use proptest::prelude::Rng as _;
use proptest::test_runner::{RngAlgorithm, TestRng};
use tempfile::TempDir;

use crate::store::{
    backend::StoreCase,
    chains::{chain, closed as closed_chains},
    fixtures::{NOW, RecordingFollower, event, id, present, stamp},
    prepared,
};

fn open(dir: &Path) -> Result<Embedded, OpenError> {
    Embedded::open(dir, "node", StoreCase::key())
}

/// Outcome of opening a damaged directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It does not open, or reading it is an error.
    Refused,
    /// Everything is there.
    Whole,
    /// It opens, something is not as it was, and the whole check says so.
    Found,
    /// It opens, something is not as it was, and nothing says so.
    Silent,
}

async fn all(store: &Embedded) -> Result<Vec<ExportRecord>, StoreError> {
    let mut items: Vec<ExportRecord> = Vec::new();
    loop {
        let page = store.export_page(items.last(), 10_000).await?;
        if page.is_empty() {
            return Ok(items);
        }
        items.extend(page);
    }
}

/// Revocations and epochs are what brings a revoked token back if they are lost: those must never
/// be among what is only found.
fn standing(items: &[ExportRecord]) -> Vec<&ExportRecord> {
    items
        .iter()
        .filter(|item| matches!(item, ExportRecord::Revocation(_) | ExportRecord::Epoch { .. }))
        .collect()
}

async fn fate(dir: &Path, expected: &[ExportRecord]) -> Fate {
    let Ok(store) = open(dir) else { return Fate::Refused };
    let items = match all(&store).await {
        Ok(items) => items,
        Err(StoreError::Corrupt(_)) => return Fate::Refused,
        Err(other) => panic!("{other:?}"),
    };
    if items == expected {
        return Fate::Whole;
    }
    assert_eq!(standing(&items), standing(expected), "a revocation was lost");
    match store.check().await {
        Ok(checked) if checked.is_intact() => Fate::Silent,
        Ok(_) | Err(_) => Fate::Found,
    }
}

/// A store as a killed process leaves it, with everything still in the WAL.
async fn killed(rounds: usize) -> (TempDir, Vec<ExportRecord>) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    prepared::fill(&store, rounds).await;
    (prepared::killed(dir.path()), all(&store).await.unwrap())
}

/// A store as a clean stop leaves it, with everything in the database.
async fn closed(rounds: usize) -> (TempDir, Vec<ExportRecord>) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    prepared::fill(&store, rounds).await;
    let items = all(&store).await.unwrap();
    store.close().await.unwrap();
    (prepared::killed(dir.path()), items)
}

/// A closed store that took in chains of other nodes along with everything else.
async fn imported(rounds: usize) -> (TempDir, Vec<ExportRecord>) {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = open(from.path()).unwrap();
    prepared::fill(&source, rounds).await;
    let mut items = all(&source).await.unwrap();
    let times: Vec<i64> = (0..100).collect();
    let end = items.len() - 1;
    items.splice(
        end..,
        closed_chains(&[chain("p", &times), chain("q", &times)])
            .into_iter()
            .chain([ExportRecord::End { chains: 3 }]),
    );
    let store = open(to.path()).unwrap();
    store.load(items.clone()).await.unwrap();
    store.close().await.unwrap();
    (prepared::killed(to.path()), items)
}

fn cut(path: &Path, length: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(length).unwrap();
}

/// E3: the database or the WAL cut at each of the last 64 boundaries of 4 KiB.
#[tokio::test]
async fn a_cut_file_is_whole_or_refused() {
    for (scene, name) in [(killed(30).await, "jeton.db-wal"), (closed(140).await, "jeton.db")] {
        let (dir, expected) = scene;
        let length = fs::metadata(dir.path().join(name)).unwrap().len();
        assert!(length > 64 * 4_096, "{name} is {length} long");
        for boundary in 1..=64 {
            let copy = prepared::killed(dir.path());
            cut(&copy.path().join(name), (length - 1) / 4_096 * 4_096 - (boundary - 1) * 4_096);
            assert_eq!(
                fate(copy.path(), &expected).await,
                Fate::Refused,
                "{name} at boundary {boundary}"
            );
        }
        assert_eq!(fate(dir.path(), &expected).await, Fate::Whole);
    }
}

async fn flip(scene: (TempDir, Vec<ExportRecord>), name: &str, rounds: usize, seed: u8) {
    let (dir, expected) = scene;
    let whole = fs::read(dir.path().join(name)).unwrap();
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut fates = Vec::new();
    for _ in 0..rounds {
        let offset = usize::try_from(random.next_u64()).unwrap() % whole.len();
        let mask = 1_u8 << (random.next_u32() % 8);
        let copy = prepared::killed(dir.path());
        let file = OpenOptions::new().write(true).open(copy.path().join(name)).unwrap();
        file.write_all_at(&[whole[offset] ^ mask], u64::try_from(offset).unwrap()).unwrap();
        let fate = fate(copy.path(), &expected).await;
        assert_ne!(fate, Fate::Silent, "{name} at {offset}, bit {mask:#x}");
        fates.push(fate);
    }
    let count = |fate| fates.iter().filter(|other| **other == fate).count();
    let (refused, whole, found) = (count(Fate::Refused), count(Fate::Whole), count(Fate::Found));
    println!("{name}: {refused} refused, {whole} whole, {found} found by the check, 0 silent");
}

/// E3: one bit at random offsets of the database, of the WAL and of the note beside them.
#[tokio::test]
async fn a_flipped_bit_is_never_silent() {
    flip(closed(20).await, "jeton.db", 300, 1).await;
    flip(imported(3).await, "jeton.db", 300, 6).await;
    flip(killed(20).await, "jeton.db-wal", 150, 2).await;
    flip(killed(3).await, "anchor", 50, 3).await;
}

/// E3 in full.
#[tokio::test]
#[ignore = "takes minutes"]
async fn ten_thousand_flipped_bits_are_never_silent() {
    flip(closed(40).await, "jeton.db", 7_000, 4).await;
    flip(killed(40).await, "jeton.db-wal", 3_000, 5).await;
    flip(imported(10).await, "jeton.db", 5_000, 7).await;
}

/// E3: the header gone.
#[tokio::test]
async fn a_zeroed_header_is_refused() {
    let (dir, expected) = closed(10).await;
    let file = OpenOptions::new().write(true).open(dir.path().join("jeton.db")).unwrap();
    file.write_all_at(&[0; 4_096], 0).unwrap();
    assert_eq!(fate(dir.path(), &expected).await, Fate::Refused);
}

/// E3: two pages in each other's place.
#[tokio::test]
async fn swapped_pages_are_never_silent() {
    let (dir, expected) = closed(20).await;
    let whole = fs::read(dir.path().join("jeton.db")).unwrap();
    let pages: Vec<&[u8]> = whole.chunks(4_096).collect();
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[9; 32]);
    for _ in 0..100 {
        let mut pick = || usize::try_from(random.next_u64()).unwrap() % pages.len();
        let (one, other) = (pick(), pick());
        let mut swapped = pages.clone();
        swapped.swap(one, other);
        let copy = prepared::killed(dir.path());
        fs::write(copy.path().join("jeton.db"), swapped.concat()).unwrap();
        let fate = fate(copy.path(), &expected).await;
        assert_ne!(fate, Fate::Silent, "pages {one} and {other}");
        assert!(one != other || fate == Fate::Whole);
    }
}

/// E8, E9: a file that is gone, or an older copy in its place, is not what was acknowledged.
#[tokio::test]
async fn a_lost_or_older_file_is_refused() {
    let (dir, expected) = killed(10).await;
    for name in ["jeton.db", "jeton.db-wal"] {
        let copy = prepared::killed(dir.path());
        fs::remove_file(copy.path().join(name)).unwrap();
        assert_eq!(fate(copy.path(), &expected).await, Fate::Refused, "{name}");
    }
    let (older, _) = closed(9).await;
    let copy = prepared::killed(older.path());
    fs::copy(dir.path().join("anchor"), copy.path().join("anchor")).unwrap();
    match open(copy.path()) {
        Err(OpenError::Rollback(text)) => {
            assert!(text.contains("acknowledged and is missing"), "{text}")
        }
        other => panic!("{:?}", other.err()),
    }
}

/// FT2: without the note, or with nonsense in it, nothing says that the database is the newest.
#[tokio::test]
async fn a_store_without_its_note_is_refused() {
    for content in [None, Some(""), Some("nonsense"), Some("00000000000000000001 a b c\n")] {
        let (dir, expected) = killed(2).await;
        match content {
            None => fs::remove_file(dir.path().join("anchor")).unwrap(),
            Some(text) => fs::write(dir.path().join("anchor"), text).unwrap(),
        }
        assert_eq!(fate(dir.path(), &expected).await, Fate::Refused);
    }
}

/// E1 in small: whenever the process stops, every acknowledged record is in the files.
#[tokio::test]
async fn what_was_acknowledged_is_in_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let store = std::sync::Arc::new(open(dir.path()).unwrap());
    for _ in 0..20 {
        let writing: Vec<_> = (0..64)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move { store.append(event(Action::TokenIssued)).await.unwrap() })
            })
            .collect();
        let mut acknowledged = store.head("node").await.unwrap().map_or(0, |head| head.sequence);
        for (n, task) in writing.into_iter().enumerate() {
            task.await.unwrap();
            if n == 20 {
                acknowledged =
                    acknowledged.max(store.head("node").await.unwrap().unwrap().sequence);
                let copy = prepared::killed(dir.path());
                let reopened = open(copy.path()).unwrap();
                assert!(reopened.head("node").await.unwrap().unwrap().sequence >= acknowledged);
                assert!(reopened.check().await.unwrap().is_intact());
            }
        }
    }
}

/// Changes the database behind the store's back.
async fn tampered(sql: &str) -> TempDir {
    let (dir, _) = closed(3).await;
    let connection = rusqlite::Connection::open(dir.path().join("jeton.db")).unwrap();
    assert!(connection.execute(sql, []).unwrap() > 0, "{sql}");
    dir
}

/// V07: one revocation less is noticed at the start, whatever else is right.
#[tokio::test]
async fn a_lost_revocation_or_epoch_is_refused() {
    for sql in [
        "DELETE FROM revocations WHERE id = (SELECT max(id) FROM revocations)",
        "UPDATE revocations SET until = until - 1",
        "UPDATE revocations SET kind = 3 - kind",
        "DELETE FROM epochs WHERE id = (SELECT max(id) FROM epochs)",
        "UPDATE epochs SET value = 0",
    ] {
        let refused = open(tampered(sql).await.path());
        assert!(matches!(refused, Err(OpenError::Corrupt(text)) if text.contains("lost")), "{sql}");
    }
}

/// A changed row is an error for whoever reads it, never a wrong answer, and the others are served.
#[tokio::test]
async fn a_changed_row_is_an_error_for_its_reader_only() {
    let dir = tampered(
        "UPDATE clients SET body = replace(body, 'write', 'admin') WHERE id = 'client-00001'",
    )
    .await;
    let store = open(dir.path()).unwrap();
    assert!(matches!(store.client(&id("client-00001")).await, Err(StoreError::Corrupt(_))));
    assert!(store.client(&id("client-00000")).await.unwrap().is_some());
    assert!(!store.check().await.unwrap().is_intact());
    drop(store);

    let dir = tampered("UPDATE keyset SET body = replace(body, 'sealed', 'opened')").await;
    assert!(matches!(open(dir.path()).unwrap().keyset().await, Err(StoreError::Corrupt(_))));

    let dir = tampered("UPDATE families SET generation = 0 WHERE client = 'client-00001'").await;
    let store = open(dir.path()).unwrap();
    let families = store.chain("node", 0, 1_000).await.unwrap();
    let families: Vec<_> = families.iter().filter_map(|record| record.event.family).collect();
    let mut outcomes = Vec::new();
    for family in families {
        let family =
            jeton::model::Family { id: family, ..crate::store::fixtures::family("client-00001") };
        outcomes.push(store.rotate(&present(&family, 1, 2), &stamp(), "jti").await.is_ok());
    }
    assert_eq!(outcomes, [true, false, true]);
}

/// O04: in the last thousand records at the start, before that by the whole check; the record is
/// named.
#[tokio::test]
async fn a_changed_audit_record_is_named() {
    let dir = tampered(
        "UPDATE audit SET event = replace(event, ':\"target\"', ':\"Target\"') WHERE sequence = 5",
    )
    .await;
    assert!(matches!(open(dir.path()), Err(OpenError::Corrupt(text)) if text == "audit record 5: \
            altered"));
    let dir = tampered("DELETE FROM audit WHERE sequence = 7").await;
    assert!(matches!(open(dir.path()), Err(OpenError::Corrupt(text)) if text == "audit record 7: \
            removed"));

    let (dir, _) = closed(200).await;
    let connection = rusqlite::Connection::open(dir.path().join("jeton.db")).unwrap();
    connection
        .execute(
            "UPDATE audit SET event = replace(event, ':\"target\"', ':\"Target\"') \
                        WHERE sequence = 5",
            [],
        )
        .unwrap();
    drop(connection);
    let store = open(dir.path()).unwrap();
    let checked = store.check().await.unwrap();
    assert_eq!(
        checked.flaw,
        Some(("node".into(), Flaw { sequence: 5, problem: Problem::Altered }))
    );
    assert_eq!(checked.damage, [""; 0]);
    let shown = store
        .events(&Filter { target: Some("Target".into()), ..Filter::default() }, None, 9)
        .await
        .unwrap();
    assert_eq!(shown.iter().map(|record| record.sequence).collect::<Vec<_>>(), [5]);
}

/// O04: without the key nobody can shorten the trail and seal what is left.
#[tokio::test]
async fn a_trail_under_another_seal_is_refused() {
    let (dir, _) = closed(3).await;
    fs::remove_file(dir.path().join("anchor")).unwrap();
    let foreign = Embedded::open(dir.path(), "node", jeton::crypto::chain::ChainKey::new([1; 32]));
    assert!(matches!(foreign, Err(OpenError::MasterKey(text)) if text.contains("seal")));
    let dir =
        tampered("DELETE FROM audit WHERE sequence = (SELECT max(sequence) FROM audit)").await;
    assert!(
        matches!(open(dir.path()), Err(OpenError::Rollback(text)) if text.contains("acknowledged and is missing"))
    );
    let dir = tampered("UPDATE head SET sequence = sequence - 1").await;
    assert!(matches!(open(dir.path()), Err(OpenError::Corrupt(_))));
}

/// E3: the row `head` is gone, and with it the name of the chain: records without a head are damage,
/// also for a node of another name.
#[tokio::test]
async fn records_without_a_head_are_refused() {
    let dir = tampered("DELETE FROM head").await;
    fs::remove_file(dir.path().join("anchor")).unwrap();
    for node in ["node", "renamed"] {
        let opened = Embedded::open(dir.path(), node, StoreCase::key());
        assert!(
            matches!(&opened, Err(OpenError::Corrupt(text)) if text.contains("sealed head")),
            "{node}: {:?}",
            opened.err()
        );
    }
}

/// The name of the own chain is under the checksum of the row `head`, and is that of the node that
/// wrote its first record.
#[tokio::test]
async fn a_renamed_own_chain_is_refused() {
    for sql in ["UPDATE head SET chain = 'other'", "UPDATE audit_chains SET name = 'other'"] {
        let dir = tampered(sql).await;
        fs::remove_file(dir.path().join("anchor")).unwrap();
        assert!(open(dir.path()).is_err(), "{sql}");
    }
}

/// AZ6: a row before the first record of a chain is none of its records: it is not listed, makes no
/// chain of its own, and `doctor` finds it.
#[tokio::test]
async fn a_row_before_the_first_record_is_no_record() {
    let (dir, _) = closed(3).await;
    let sql = "INSERT INTO audit (place, kind, node, hash, event)
               SELECT chain << 40, kind, node, hash, event FROM audit WHERE sequence = 1
               UNION ALL SELECT -4, kind, node, hash, event FROM audit WHERE sequence = 1";
    let connection = rusqlite::Connection::open(dir.path().join("jeton.db")).unwrap();
    assert_eq!(connection.execute(sql, []).unwrap(), 2);
    drop(connection);
    let store = open(dir.path()).unwrap();
    assert_eq!(store.chains().await.unwrap(), ["node".into()]);
    let listed = store.events(&Filter::default(), None, 1_000).await.unwrap();
    assert!(listed.iter().all(|record| record.sequence > 0 && *record.chain == *"node"));
    assert!(!store.check().await.unwrap().damage.is_empty());
}

/// A sound store is found to be sound.
#[tokio::test]
async fn the_whole_check_passes_what_is_whole() {
    let (dir, _) = killed(30).await;
    let store = open(dir.path()).unwrap();
    let checked = store.check().await.unwrap();
    assert!(checked.is_intact(), "{checked:?}");
    assert_eq!(checked.records, store.head("node").await.unwrap().unwrap().sequence);
    assert!(store.family(jeton::model::FamilyId::new(), NOW).await.unwrap().is_none());
    assert_eq!(store.follow(NOW, RecordingFollower::new()).await.unwrap().revocations.len(), 30);
    store.close().await.unwrap();
}

/// A row that cannot be read, or that lies under another's key, is named and does not keep the
/// others from being listed.
#[tokio::test]
async fn a_listing_goes_on_beside_a_row_that_cannot_be_read() {
    let dir = tampered(
        "UPDATE clients SET body = replace(body, 'write', 'admin') WHERE id = 'client-00001'",
    )
    .await;
    let connection = rusqlite::Connection::open(dir.path().join("jeton.db")).unwrap();
    let strange = "INSERT INTO clients VALUES ('no id', 'default', 1, '{}', x'00'), ('a', \
                   'default', 1, '{}', x'00')";
    assert_eq!(connection.execute(strange, []).unwrap(), 2);
    drop(connection);
    let store = open(dir.path()).unwrap();
    let listed = store.clients(None, None, 100).await.unwrap();
    let odd: Vec<_> = listed
        .iter()
        .filter(|entry| matches!(entry, Listed::NotAuthentic(_)))
        .map(Listed::id)
        .collect();
    assert_eq!(odd, [&id("a"), &id("client-00001")]);
    let sound = listed.iter().filter(|entry| matches!(entry, Listed::Client(_))).count();
    assert!(sound > 0 && listed.len() == sound + 2);
    let (mut paged, mut after) = (Vec::new(), None);
    while let Some(last) = store.clients(None, after.as_ref(), 1).await.unwrap().pop() {
        after = Some(last.id().clone());
        paged.push(last);
    }
    assert_eq!(paged, listed);
}

/// AUDIT AZ10: an audience whose row was altered, or lies under another audience, is named and
/// nobody's; the others are listed.
#[tokio::test]
async fn an_audience_whose_row_was_altered_is_nobodys() {
    let dir = tampered(
        "UPDATE audiences SET body = replace(body, 'acme', 'evil') WHERE id = \
                        'https://client-00001'",
    )
    .await;
    let connection = rusqlite::Connection::open(dir.path().join("jeton.db")).unwrap();
    let strange = "INSERT INTO audiences VALUES ('no uri', 'acme', 1, '{}', x'00'), ('urn:a', \
                   'acme', 1, '{}', x'00')";
    assert_eq!(connection.execute(strange, []).unwrap(), 2);
    drop(connection);
    let store = open(dir.path()).unwrap();
    let listed = store.audiences(None, None, 100).await.unwrap();
    let odd = listed.iter().filter(|found| matches!(found, FoundAudience::NotAuthentic(_)));
    let odd: Vec<_> = odd.map(|found| found.audience().as_str()).collect();
    assert_eq!(odd, ["https://client-00001", "urn:a"]);
    assert!(listed.len() > 2);
    for audience in ["https://client-00001", "urn:a"] {
        let audience = audience.parse().unwrap();
        assert_eq!(
            store.audience(&audience).await.unwrap(),
            Some(FoundAudience::NotAuthentic(audience))
        );
    }
    let damage = store.check().await.unwrap().damage;
    assert!(
        damage.iter().any(|problem| problem.starts_with("audience https://client-00001")),
        "{damage:?}"
    );
}
