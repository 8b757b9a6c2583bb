//! Access to the data directory: its permissions, and the lock that lets one process at a time
//! write to it.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use super::open::{check_owner, check_permissions, metadata_of, open_private};

use crate::store::embedded::engine::error::OpenError;

/// Every file that this process, or SQLite in it, opens in a data directory.
const FILES: [&str; 8] = [
    "jeton.db",
    "jeton.db-wal",
    "jeton.db-shm",
    "jeton.db-journal",
    "lock",
    "anchor",
    "anchor.new",
    "reserve",
];

/// Lock on a data directory, held until it is dropped or its process ends. It is the kernel's lock
/// on the directory itself, so that no file removed by hand lets a second process in. The file
/// `lock` only names the holder.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    held: File,
}

impl Directory {
    /// Locks the directory, creates it if it is missing; the error names the holder. Before
    /// anything in it is created or changed, the directory and every file of ours in it are
    /// checked; with `tolerated`, other users may be able to write there.
    pub(crate) fn take(dir: &Path, tolerated: bool) -> Result<Self, OpenError> {
        if !dir.exists() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(OpenError::io(dir))?;
        }
        // The directory itself may be reached through a link. SQLite refuses links in the path, so
        // it gets the resolved one.
        let path = dir.canonicalize().map_err(OpenError::io(dir))?;
        let mut options = OpenOptions::new();
        options
            .read(true)
            .custom_flags((OFlags::DIRECTORY | OFlags::NOFOLLOW).bits().cast_signed());
        let held = options.open(&path).map_err(OpenError::io(&path))?;
        let metadata = held.metadata().map_err(OpenError::io(&path))?;
        check_owner(&path, &metadata)?;
        check_permissions(&path, &metadata, 0o700, tolerated)?;
        for name in FILES {
            let file = path.join(name);
            if let Some(metadata) = metadata_of(&file)? {
                check_permissions(&file, &metadata, 0o600, tolerated)?;
            }
        }
        match held.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::Held { pid: holder(&path) }),
            Err(TryLockError::Error(source)) => return Err(OpenError::Io { path, source }),
        }
        let note = path.join("lock");
        let mut file = open_private(&note)?;
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(OpenError::io(note))?;
        Ok(Self { path, held })
    }

    /// Path of the directory, without links in it.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the names in it durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.held.sync_all()
    }
}

/// Checks a directory that this process writes to, as a data directory is checked: one that other users
/// can write to is refused, and warned of if they can read it.
///
/// # Errors
///
/// [`OpenError::Exposed`], or the directory cannot be looked at.
pub fn check_directory(dir: &Path) -> Result<(), OpenError> {
    let metadata = fs::metadata(dir).map_err(OpenError::io(dir))?;
    check_permissions(dir, &metadata, 0o700, false)
}

/// Returns the id in the file `lock`; 0 if the holder has not written it yet, or the file was
/// removed.
fn holder(dir: &Path) -> u32 {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
    let mut text = String::new();
    let read =
        options.open(dir.join("lock")).and_then(|file| file.take(32).read_to_string(&mut text));
    read.ok().and_then(|_| text.trim().parse().ok()).unwrap_or(0)
}
