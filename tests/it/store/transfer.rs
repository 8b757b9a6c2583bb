//! Export and import: everything arrives, nothing is invented, and it comes out again byte for
//! byte.

use std::path::Path;

use jeton::{
    crypto::chain::Walk,
    model::{Action, EpochOf, Jti, Revoked, revocation::Revocation},
    store::{
        AuditStore, ClientStore, Store, StoreError,
        embedded::{Embedded, OpenError},
        transfer::{ExportRecord, ExportSource, ImportTarget},
    },
};

use crate::store::{
    backend::StoreCase,
    fixtures::{NOW, at, id},
    prepared,
};

fn open(dir: &Path) -> Embedded {
    Embedded::open(dir, "node", StoreCase::key()).unwrap()
}

/// Verifies the chain `node`, whose last record must have this sequence.
pub(crate) async fn assert_chain_ends_at(store: &dyn Store, sequence: u64) {
    let mut walk = Walk::from_start();
    let records = store.chain("node", 0, 10_000).await.unwrap();
    records.iter().try_for_each(|record| walk.record(record)).unwrap();
    walk.finish(&StoreCase::key(), store.head("node").await.unwrap().as_ref()).unwrap();
    assert_eq!(walk.sequence(), sequence);
}

pub(crate) async fn dump(store: &dyn ExportSource, limit: usize) -> Vec<ExportRecord> {
    let mut items: Vec<ExportRecord> = Vec::new();
    loop {
        let page = store.export_page(items.last(), limit).await.unwrap();
        if page.is_empty() {
            return items;
        }
        assert!(page.len() <= limit);
        items.extend(page);
    }
}

pub(crate) fn lines(items: &[ExportRecord]) -> String {
    items.iter().map(|item| serde_json::to_string(item).unwrap() + "\n").collect()
}

pub(crate) fn parse(lines: &str) -> Vec<ExportRecord> {
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// E9: through text and back, in pages of any size.
#[tokio::test]
async fn an_imported_store_exports_the_same_bytes() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = open(from.path());
    prepared::fill(&source, 30).await;
    prepared::delete_some(&source).await;
    let exported = lines(&dump(&source, 1_000).await);
    assert!(exported.contains(r#"{"type":"deleted_client","client":"gone-too","tenant":"other"}"#));
    assert!(
        exported
            .contains(r#"{"type":"audience","audience":"https://client-00000","tenant":"acme","#)
    );
    assert_eq!(lines(&dump(&source, 1).await), exported);
    assert_eq!(
        lines(&dump(&Embedded::read_only(from.path(), Some(StoreCase::key())).unwrap(), 7).await),
        exported,
        "beside the running server"
    );

    let target = open(to.path());
    for chunk in parse(&exported).chunks(11) {
        target.load(chunk.to_vec()).await.unwrap();
    }
    assert_eq!(lines(&dump(&target, 5).await), exported);
    assert_eq!(target.newest_time(), source.newest_time());
    target.close().await.unwrap();

    // The chain goes on where it was.
    let target = Embedded::open(to.path(), "other", StoreCase::key()).unwrap();
    let head = source.head("node").await.unwrap().unwrap();
    target.append(crate::store::fixtures::event(Action::StoreImported)).await.unwrap();
    assert_chain_ends_at(&target, head.sequence + 1).await;
    assert!(target.check().await.unwrap().is_intact());
}

/// N04: each line says what it is.
#[tokio::test]
async fn every_line_names_its_type() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    prepared::fill(&store, 1).await;
    let mut types = Vec::new();
    for line in lines(&dump(&store, 100).await).lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        let name = value["type"].as_str().unwrap().to_owned();
        if types.last() != Some(&name) {
            types.push(name);
        }
    }
    assert_eq!(
        types,
        [
            "export",
            "client",
            "secret_use",
            "audience",
            "family",
            "revocation",
            "epoch",
            "keyset",
            "record",
            "chain_end",
            "end"
        ],
        "in one order, for any store"
    );
}

#[tokio::test]
async fn an_empty_store_exports_and_imports() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let items = dump(&open(from.path()), 10).await;
    assert_eq!(items.len(), 2);
    let target = open(to.path());
    target.load(items.clone()).await.unwrap();
    assert_eq!(dump(&target, 10).await, items);
}

/// A view of one moment: what is written during an export is not in it.
#[tokio::test]
async fn an_export_beside_a_server_is_of_one_moment() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    prepared::fill(&store, 10).await;
    let view = Embedded::read_only(dir.path(), Some(StoreCase::key())).unwrap();
    let before = dump(&store, 1_000).await;
    let first = view.export_page(None, 1).await.unwrap();
    prepared::fill(&store, 10).await;
    let mut items = first;
    loop {
        let page = view.export_page(items.last(), 3).await.unwrap();
        if page.is_empty() {
            break;
        }
        items.extend(page);
    }
    assert_eq!(items, before);
}

async fn refused(items: Vec<ExportRecord>) -> String {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    match store.load(items).await {
        Err(StoreError::Corrupt(source)) => source.to_string(),
        other => panic!("{other:?}"),
    }
}

/// O04: an export that was tampered with or cut off is not taken in.
#[tokio::test]
async fn a_tampered_export_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    prepared::fill(&store, 5).await;
    let whole = dump(&store, 1_000).await;
    let first_record =
        whole.iter().position(|item| matches!(item, ExportRecord::Record { .. })).unwrap();

    let mut altered = whole.clone();
    let ExportRecord::Record { event, .. } = &mut altered[first_record + 2] else { panic!() };
    event.target.push('x');
    assert_eq!(refused(altered).await, "audit chain node: audit record 3: altered");

    let mut removed = whole.clone();
    removed.remove(first_record + 2);
    assert_eq!(refused(removed).await, "audit chain node: audit record 3: removed");

    let mut shortened = whole.clone();
    shortened.remove(whole.len() - 3);
    assert!(refused(shortened).await.contains("does not match"));

    let mut doubled = whole.clone();
    doubled.insert(1, whole[1].clone());
    assert!(refused(doubled).await.contains("repeated"));

    assert!(refused(whole[1..].to_vec()).await.contains("first record"));
    assert!(refused(vec![ExportRecord::Export { version: 2 }]).await.contains("version 2"));
}

/// O04, AZ4: an exporter with the key seals no chain whose end was altered in the store; one
/// without the key says nothing of it.
#[tokio::test]
async fn a_chain_that_was_altered_in_the_store_is_not_exported() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    prepared::fill(&store, 3).await;
    store.close().await.unwrap();
    let database = rusqlite::Connection::open(dir.path().join("jeton.db")).unwrap();
    database.execute_batch("UPDATE head SET hash = zeroblob(32)").unwrap();
    let keyless = dump(&Embedded::read_only(dir.path(), None).unwrap(), 1_000).await;
    assert!(
        keyless.iter().any(|item| matches!(item, ExportRecord::ChainEnd { seal: None, .. })),
        "{keyless:?}"
    );
    let end = keyless.iter().rposition(|item| matches!(item, ExportRecord::Record { .. })).unwrap();
    let view = Embedded::read_only(dir.path(), Some(StoreCase::key())).unwrap();
    let refused = view.export_page(Some(&keyless[end]), 10).await.unwrap_err();
    assert!(
        matches!(refused, StoreError::Corrupt(source) if source.to_string().contains("the seal of \
            its end is invalid"))
    );
}

#[tokio::test]
async fn a_store_that_is_not_empty_takes_nothing_in() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = open(from.path());
    prepared::fill(&source, 3).await;
    let target = open(to.path());
    prepared::fill(&target, 1).await;
    let before = dump(&target, 1_000).await;
    assert!(matches!(target.load(dump(&source, 1_000).await).await, Err(StoreError::Corrupt(_))));
    assert_eq!(dump(&target, 1_000).await, before);
}

/// An import that was broken off is never served: revocations may be among what is missing.
#[tokio::test]
async fn half_an_import_does_not_open() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = open(from.path());
    prepared::fill(&source, 3).await;
    let items = dump(&source, 1_000).await;
    let target = open(to.path());
    target.load(items[..4].to_vec()).await.unwrap();
    target.close().await.unwrap();
    let refused = Embedded::open(to.path(), "node", StoreCase::key());
    assert!(matches!(refused, Err(OpenError::Corrupt(text)) if text.contains("import")));
}

/// E9, V07: what was revoked is revoked after the move, for as long.
#[tokio::test]
async fn revocations_and_epochs_move_along() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = open(from.path());
    let revocation = Revocation { revoked: Revoked::Token(Jti::new()), until: at(1_000) };
    let of = EpochOf::Client(id("a"));
    {
        use jeton::store::RevocationStore;
        source
            .revoke(&revocation, crate::store::fixtures::event(Action::TokenRevoked))
            .await
            .unwrap();
        source
            .raise_epoch(&of, crate::store::fixtures::event(Action::ClientRevoked))
            .await
            .unwrap();
        let target = open(to.path());
        target.load(dump(&source, 1_000).await).await.unwrap();
        target.close().await.unwrap();
        let target = open(to.path());
        let snapshot =
            target.follow(NOW, crate::store::fixtures::RecordingFollower::new()).await.unwrap();
        assert_eq!((snapshot.revocations, snapshot.epochs), (vec![revocation], vec![(of, 1)]));
        assert_eq!(target.client(&id("a")).await.unwrap(), None);
    }
}
