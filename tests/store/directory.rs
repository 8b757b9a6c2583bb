//! The data directory: one process at a time, its owner's alone, of a format that is known.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use jeton::store::{
    AuditStore, Store,
    embedded::{Embedded, OpenError},
};
use tokio::time::Instant;

use crate::{bench::Bench, fixtures::event, scenes};

const DIR: &str = "STORE_TEST_HELD_DIR";

fn open(dir: &Path) -> Result<Embedded, OpenError> {
    Embedded::open(dir, "node", Bench::key())
}

/// E7: refused at once, with the holder's id; a reader is not refused.
#[tokio::test]
async fn a_held_directory_names_its_holder() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let start = Instant::now();
    let second = open(dir.path());
    assert!(start.elapsed() < Duration::from_secs(1));
    assert!(matches!(second, Err(OpenError::Held { pid }) if pid == std::process::id()));
    drop(Embedded::read_only(dir.path()).unwrap());
    store.append(event(jeton::model::Action::ServerStarted)).await.unwrap();
    store.close().await.unwrap();
    open(dir.path()).unwrap().ready().await.unwrap();
}

/// Holds a directory in a process of its own, until it is killed.
fn hold(dir: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "directory::a_process_that_holds_a_directory", "--ignored", "--nocapture"])
        .env(DIR, dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("holding")));
    child
}

/// E7: another process is named, and one that was killed is no obstacle.
#[tokio::test]
async fn a_directory_whose_holder_was_killed_opens() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = hold(dir.path());
    let second = open(dir.path());
    assert!(matches!(second, Err(OpenError::Held { pid }) if pid == child.id()));
    child.kill().unwrap();
    child.wait().unwrap();
    let store = open(dir.path()).unwrap();
    assert_eq!(store.chain("node", 0, 99).await.unwrap().len(), 10, "what it had acknowledged is there");
    assert!(store.check().await.unwrap().sound());
}

#[tokio::test]
#[ignore = "run by another test, in a process of its own"]
async fn a_process_that_holds_a_directory() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let store = open(Path::new(&dir)).unwrap();
    for _ in 0..10 {
        store.append(event(jeton::model::Action::TokenIssued)).await.unwrap();
    }
    println!("holding");
    // Until the parent kills this process, or is gone itself.
    let _ = std::io::stdin().read(&mut [0]);
}

/// E8: nothing is readable by others, from the first moment on.
#[tokio::test]
async fn a_data_directory_is_its_owners_alone() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("deep/data");
    let store = open(&dir).unwrap();
    scenes::fill(&store, 1).await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(mode(&entry.path()), 0o600, "{:?}", entry.file_name());
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort_unstable();
    assert_eq!(names, ["anchor", "jeton.db", "jeton.db-shm", "jeton.db-wal", "lock", "reserve"]);
}

/// E10: what a newer version wrote is left alone.
#[tokio::test]
async fn a_newer_format_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).unwrap().close().await.unwrap();
    let file = dir.path().join("jeton.db");
    rusqlite::Connection::open(&file).unwrap().pragma_update(None, "user_version", 3).unwrap();
    let before = fs::read(&file).unwrap();
    assert!(matches!(open(dir.path()), Err(OpenError::Newer { found: 3, known: 2 })));
    assert!(matches!(Embedded::read_only(dir.path()), Err(OpenError::Newer { found: 3, known: 2 })));
    assert_eq!(fs::read(&file).unwrap(), before);
}

/// E8: somebody else's files are refused and left as they are.
#[tokio::test]
async fn what_is_not_a_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("jeton.db");
    fs::write(&file, "not a database, and long enough to be looked at".repeat(100)).unwrap();
    assert!(matches!(open(dir.path()), Err(OpenError::Corrupt(_))));
    fs::remove_file(&file).unwrap();
    rusqlite::Connection::open(&file).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    let before = fs::read(&file).unwrap();
    assert!(matches!(open(dir.path()), Err(OpenError::Corrupt(_))));
    assert_eq!(fs::read(&file).unwrap(), before);
    let not_a_directory = dir.path().join("lock");
    assert!(matches!(open(&not_a_directory), Err(OpenError::Io { .. })));
    assert!(Embedded::read_only(&dir.path().join("nowhere")).is_err());
}

/// The last handle writes out what is waiting, also without being asked to.
#[tokio::test]
async fn a_dropped_store_has_finished() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    for _ in 0..100 {
        store.append_soon(event(jeton::model::Action::TokenIssued)).await.unwrap();
    }
    drop(store);
    assert_eq!(open(dir.path()).unwrap().chain("node", 0, 1_000).await.unwrap().len(), 100);
}
