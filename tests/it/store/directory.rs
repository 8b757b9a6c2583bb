//! The data directory: one process at a time, its owner's alone, of a format that is known.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::Path,
    process::{Child, Command, Stdio},
};

use jeton::store::{
    AuditStore, Store,
    embedded::{Accept, Embedded, OpenError},
};
use tokio::time::timeout;

use crate::store::{backend::StoreCase, fixtures::event, prepared};
use crate::support::until::HANG;

const DIR: &str = "STORE_TEST_HELD_DIR";

fn open(dir: &Path) -> Result<Embedded, OpenError> {
    Embedded::open(dir, "node", StoreCase::key())
}

/// E7: refused, with the holder's id, and not held up until the holder goes; a reader is not
/// refused.
#[tokio::test]
async fn a_held_directory_names_its_holder() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let path = dir.path().to_owned();
    // An opener that waited for the lock would wait as long as this store is open.
    let second = timeout(HANG, tokio::task::spawn_blocking(move || open(&path))).await;
    let second = second.expect("it waits for the holder").unwrap();
    assert!(matches!(second, Err(OpenError::Held { pid }) if pid == std::process::id()));
    drop(Embedded::read_only(dir.path(), None).unwrap());
    store.append(event(jeton::model::Action::ServerStarted)).await.unwrap();
    store.close().await.unwrap();
    open(dir.path()).unwrap().ready().await.unwrap();
}

/// Holds a directory in a process of its own, until it is killed.
fn hold(dir: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "store::directory::a_process_that_holds_a_directory",
            "--ignored",
            "--nocapture",
        ])
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
    assert_eq!(
        store.chain("node", 0, 99).await.unwrap().len(),
        10,
        "what it had acknowledged is there"
    );
    assert!(store.check().await.unwrap().is_intact());
}

/// E7, TL8: the file that names the holder is not the lock: removed by hand, it lets no second
/// process in.
#[tokio::test]
async fn a_lock_file_that_is_removed_by_hand_lets_nobody_in() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = hold(dir.path());
    fs::remove_file(dir.path().join("lock")).unwrap();
    for _ in 0..2 {
        let refused = open(dir.path()).err().unwrap();
        assert!(matches!(refused, OpenError::Held { pid: 0 }), "{refused:?}");
        assert!(!dir.path().join("lock").exists(), "the one that was refused makes none");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    open(dir.path()).unwrap().close().await.unwrap();
    // Nor where the one that holds it is this process.
    let store = open(dir.path()).unwrap();
    fs::remove_file(dir.path().join("lock")).unwrap();
    assert!(matches!(open(dir.path()), Err(OpenError::Held { .. })));
    store.close().await.unwrap();
}

/// Every name under which a file is opened in a data directory.
const NAMES: [&str; 8] = [
    "lock",
    "anchor",
    "anchor.new",
    "reserve",
    "jeton.db",
    "jeton.db-wal",
    "jeton.db-shm",
    "jeton.db-journal",
];

const MINE: &str = "precious contents";

/// Opens a directory with something odd under one of our names: refused, and nothing is made or
/// changed.
fn refused(dir: &Path, name: &str) {
    let names =
        || fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    let before = names();
    // A developer's machine is no exception.
    for open_directory in [false, true] {
        let accept = Accept { open_directory, ..Accept::default() };
        match Embedded::open_accepting(dir, "node", StoreCase::key(), accept) {
            Err(OpenError::Exposed { path, .. }) => {
                assert!(path.ends_with(name), "{name}: {path:?}")
            }
            other => panic!("{name}: {:?}", other.err()),
        }
    }
    assert_eq!(names(), before, "{name}: nothing is made beside it");
}

/// TL8: a link in the place of any file is refused before anything is made, truncated or grown,
/// wherever it leads.
#[tokio::test]
async fn a_link_in_the_place_of_a_file_is_refused() {
    for name in NAMES {
        let (outside, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (victim, link) = (outside.path().join("victim"), dir.path().join(name));
        fs::write(&victim, MINE).unwrap();
        symlink(&victim, &link).unwrap();
        refused(dir.path(), name);
        assert_eq!(fs::read_to_string(&victim).unwrap(), MINE, "{name}");
        fs::remove_file(&link).unwrap();
        symlink(outside.path().join("new"), &link).unwrap();
        refused(dir.path(), name);
        assert!(!outside.path().join("new").exists(), "{name}: what a link leads to is not made");
        fs::remove_file(&link).unwrap();
        fs::hard_link(&victim, &link).unwrap();
        refused(dir.path(), name);
        assert_eq!(fs::read_to_string(&victim).unwrap(), MINE, "{name}");
        fs::remove_file(&link).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &link, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        refused(dir.path(), name);
        fs::remove_file(&link).unwrap();
        fs::create_dir(&link).unwrap();
        refused(dir.path(), name);
        fs::remove_dir(&link).unwrap();
        open(dir.path()).unwrap().close().await.unwrap();
    }
}

/// TL8: of a store that holds something too, and for who only reads it.
#[tokio::test]
async fn a_database_behind_a_link_is_not_read() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    open(dir.path()).unwrap().close().await.unwrap();
    symlink(dir.path().join("jeton.db"), other.path().join("jeton.db")).unwrap();
    assert!(Embedded::read_only(other.path(), None).is_err());
    refused(other.path(), "jeton.db");
    // The directory itself may be reached by a link: systemd does so.
    let link = other.path().join("link");
    symlink(dir.path(), &link).unwrap();
    drop(Embedded::read_only(&link, None).unwrap());
    let store = open(&link).unwrap();
    assert!(matches!(open(dir.path()), Err(OpenError::Held { .. })), "one directory by two names");
    store.close().await.unwrap();
}

/// TL8, AZ16 a: a directory, or a file of ours in it, that others can write to is refused; on a
/// developer's machine it is not.
#[tokio::test]
async fn what_others_can_write_to_is_refused() {
    let is_refused = |dir: &Path| match open(dir) {
        Err(OpenError::Exposed { problem, .. }) => {
            assert!(problem.contains("is writable by other users"), "{problem}");
            true
        }
        Err(other) => panic!("{other:?}"),
        Ok(_) => false,
    };
    let dir = tempfile::tempdir().unwrap();
    let chmod = |path: &Path, mode: u32| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap()
    };
    for (mode, expected) in [
        (0o777, true),
        (0o1777, true),
        (0o702, true),
        (0o770, false),
        (0o755, false),
        (0o700, false),
    ] {
        chmod(dir.path(), mode);
        assert_eq!(is_refused(dir.path()), expected, "{mode:o}");
        assert_eq!(
            dir.path().join("jeton.db").exists(),
            !expected,
            "{mode:o}: nothing is made before"
        );
        let developers = Accept { open_directory: true, ..Accept::default() };
        Embedded::open_accepting(dir.path(), "node", StoreCase::key(), developers)
            .unwrap()
            .close()
            .await
            .unwrap();
        for name in fs::read_dir(dir.path()).unwrap() {
            fs::remove_file(name.unwrap().path()).unwrap();
        }
    }
    open(dir.path()).unwrap().close().await.unwrap();
    chmod(&dir.path().join("jeton.db"), 0o666);
    assert!(is_refused(dir.path()));
    chmod(&dir.path().join("jeton.db"), 0o644);
    assert!(!is_refused(dir.path()), "what others can only read is warned of");
}

/// DECISIONS 15: a group that the process is not in is others, and so is another user.
#[tokio::test]
#[ignore = "needs root"]
async fn what_another_user_or_group_can_write_to_is_refused() {
    const OTHER: u32 = 54_321;
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).unwrap().close().await.unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o770)).unwrap();
    chown(dir.path(), None, Some(OTHER)).unwrap();
    assert!(matches!(open(dir.path()), Err(OpenError::Exposed { .. })));
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o750)).unwrap();
    open(dir.path()).unwrap().close().await.unwrap();
    for path in [dir.path().to_owned(), dir.path().join("reserve"), dir.path().join("jeton.db")] {
        let own = fs::metadata(&path).unwrap().uid();
        chown(&path, Some(OTHER), None).unwrap();
        match open(dir.path()) {
            Err(OpenError::Exposed { problem, .. }) => {
                assert!(problem.contains("belongs to user 54321"), "{problem}")
            }
            other => panic!("{:?}", other.err()),
        }
        chown(&path, Some(own), None).unwrap();
    }
    open(dir.path()).unwrap().close().await.unwrap();
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
    prepared::fill(&store, 1).await;
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
    rusqlite::Connection::open(&file).unwrap().pragma_update(None, "user_version", 2).unwrap();
    let before = fs::read(&file).unwrap();
    assert!(matches!(open(dir.path()), Err(OpenError::Newer { found: 2, known: 1 })));
    assert!(matches!(
        Embedded::read_only(dir.path(), None),
        Err(OpenError::Newer { found: 2, known: 1 })
    ));
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
    assert!(Embedded::read_only(&dir.path().join("nowhere"), None).is_err());
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
