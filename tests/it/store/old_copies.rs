//! FT2, E9: an old copy of a data directory brings nothing back that was revoked since, unless that
//! is accepted.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
};

use jeton::{
    model::Action,
    store::{
        AuditStore, ClientStore, Store,
        embedded::{Accept, Embedded, OpenError},
    },
};
use tempfile::TempDir;

use crate::store::{backend::StoreCase, fixtures::event, prepared};

fn open(dir: &Path) -> Result<Embedded, OpenError> {
    Embedded::open(dir, "node", StoreCase::key())
}

fn accepting(dir: &Path) -> Embedded {
    Embedded::open_accepting(
        dir,
        "node",
        StoreCase::key(),
        Accept { rollback: true, ..Accept::default() },
    )
    .unwrap()
}

/// Opens a directory that must be refused for this reason.
fn refused(dir: &Path, reason: &str) {
    match open(dir) {
        Err(OpenError::Rollback(text)) => assert!(text.contains(reason), "{text}"),
        other => panic!("{reason}: {:?}", other.err()),
    }
}

/// A closed store with some records.
async fn closed() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    prepared::fill(&store, 2).await;
    store.close().await.unwrap();
    dir
}

/// One record more, as a revocation leaves.
async fn go_on(dir: &Path) {
    let store = open(dir).unwrap();
    store.append(event(Action::TokenRevoked)).await.unwrap();
    store.close().await.unwrap();
}

/// FT2: `cp -r` of a directory, while it is used or after a stop, whole or the database alone.
#[tokio::test]
async fn a_copy_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    prepared::fill(&store, 1).await;
    let running = prepared::copied(dir.path());
    store.append(event(Action::TokenRevoked)).await.unwrap();
    store.close().await.unwrap();
    let stopped = prepared::copied(dir.path());
    for copy in [&running, &stopped] {
        refused(copy.path(), "the database is a copy");
        refused(copy.path(), "the database is a copy");
    }
    fs::remove_file(running.path().join("anchor")).unwrap();
    refused(running.path(), "the file anchor is missing");
    open(dir.path()).unwrap().close().await.unwrap();
}

/// FT2: put back over the files that are there, which then are the same files with an older
/// content.
#[tokio::test]
async fn a_copy_that_is_written_over_the_files_is_refused() {
    let dir = closed().await;
    let copy = prepared::copied(dir.path());
    go_on(dir.path()).await;
    for name in ["jeton.db", "anchor"] {
        // Opened, truncated and written, as `cp` does.
        fs::write(dir.path().join(name), fs::read(copy.path().join(name)).unwrap()).unwrap();
    }
    refused(dir.path(), "the file anchor is a copy");
    // The database alone is behind the note.
    let dir = closed().await;
    let database = fs::read(dir.path().join("jeton.db")).unwrap();
    go_on(dir.path()).await;
    fs::write(dir.path().join("jeton.db"), database).unwrap();
    refused(dir.path(), "was acknowledged and is missing");
}

/// A directory that is moved is no copy.
#[tokio::test]
async fn a_directory_that_is_moved_opens() {
    let (dir, parent) = (closed().await, tempfile::tempdir().unwrap());
    let moved = parent.path().join("moved");
    fs::rename(dir.path(), &moved).unwrap();
    go_on(&moved).await;
    fs::rename(&moved, dir.path()).unwrap();
    go_on(dir.path()).await;
}

/// FT2: what is accepted is accepted once its record is on disk, and then for good; before that the
/// next start refuses again.
#[tokio::test]
async fn an_accepted_copy_is_the_directory_from_its_first_record_on() {
    let dir = closed().await;
    let copy = prepared::copied(dir.path());
    let store = accepting(copy.path());
    assert!(store.accepted_rollback().unwrap().contains("is a copy"));
    store.close().await.unwrap();
    refused(copy.path(), "the database is a copy");

    let store = accepting(copy.path());
    store.append(event(Action::RollbackAccepted)).await.unwrap();
    let killed = prepared::killed(copy.path());
    store.close().await.unwrap();
    for dir in [copy.path(), killed.path()] {
        go_on(dir).await;
        let store = accepting(dir);
        assert_eq!(store.accepted_rollback(), None, "there is nothing left to accept");
        assert!(store.check().await.unwrap().is_intact());
        store.close().await.unwrap();
    }
    // A copy of the copy is one again.
    refused(prepared::copied(copy.path()).path(), "the database is a copy");
}

/// FT2: accepting ends nothing and brings nothing else back: the database is as it was.
#[tokio::test]
async fn an_accepted_copy_is_served_as_it_is() {
    let dir = closed().await;
    let copy = prepared::copied(dir.path());
    let store = accepting(copy.path());
    let head = store.head("node").await.unwrap().unwrap();
    assert_eq!(store.clients(None, None, 9).await.unwrap().len(), 2);
    store.close().await.unwrap();
    let store = open(dir.path()).unwrap();
    assert_eq!(store.head("node").await.unwrap().unwrap(), head);
    store.close().await.unwrap();
}

/// Wherever a start is killed, the next one opens: nothing a crash leaves behind looks like a copy.
#[tokio::test]
async fn no_crash_looks_like_a_copy() {
    // Before the database has its tables, before the note is there, and with half of the next note.
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("jeton.db"), "").unwrap();
    fs::write(dir.path().join("anchor.new"), "half").unwrap();
    let store = open(dir.path()).unwrap();
    drop(store);
    fs::remove_file(dir.path().join("anchor")).unwrap();
    go_on(dir.path()).await;

    // In the middle of the replacement, at a start or a close: the old note and half of the new
    // one.
    fs::write(dir.path().join("anchor.new"), "half").unwrap();
    go_on(dir.path()).await;
    assert!(!dir.path().join("anchor.new").exists());

    // Between a commit and its note, or after a power cut that took the notes of the last commits.
    let store = open(dir.path()).unwrap();
    let note = fs::read(dir.path().join("anchor")).unwrap();
    for _ in 0..3 {
        store.append(event(Action::TokenRevoked)).await.unwrap();
    }
    assert_ne!(fs::read(dir.path().join("anchor")).unwrap(), note);
    let killed = prepared::copied(dir.path());
    OpenOptions::new()
        .write(true)
        .open(killed.path().join("anchor"))
        .unwrap()
        .write_all_at(&note, 0)
        .unwrap();
    Embedded::adopt(killed.path(), StoreCase::key()).unwrap();
    go_on(killed.path()).await;
    store.close().await.unwrap();
}

/// E1: a process that is killed again and again in the middle of starts and closes leaves what the
/// next start opens.
#[tokio::test]
async fn a_store_that_was_never_closed_opens() {
    let mut dir = closed().await;
    for _ in 0..3 {
        let store = open(dir.path()).unwrap();
        let at_once = prepared::killed(dir.path());
        store.append(event(Action::TokenRevoked)).await.unwrap();
        let later = prepared::killed(dir.path());
        store.close().await.unwrap();
        go_on(at_once.path()).await;
        dir = later;
    }
    go_on(dir.path()).await;
}

/// A note under another key, or with a bit changed, is none.
#[tokio::test]
async fn a_note_that_cannot_be_read_is_as_good_as_none() {
    let dir = closed().await;
    let path = dir.path().join("anchor");
    let note = fs::read(&path).unwrap();
    for at in [0, 70, 100, 160, 200, note.len() - 2] {
        let mut changed = note.clone();
        changed[at] ^= 1;
        fs::write(&path, &changed).unwrap();
        refused(dir.path(), "unreadable");
    }
    fs::write(&path, &note[..note.len() - 1]).unwrap();
    refused(dir.path(), "unreadable");
    fs::write(&path, &note).unwrap();
    go_on(dir.path()).await;
}
