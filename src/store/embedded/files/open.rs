//! Files of the data directory. Each is opened so that no other file can stand in for it: a link
//! that lies there would have this process truncate, grow or overwrite what it points to.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    time::SystemTime,
};

use rustix::{fs::OFlags, io::Errno, process};

use crate::store::embedded::engine::error::OpenError;

/// A file as its file system knows it: the same after a rename, another after a copy.
///
/// The device is not part of it: its number may change with a restart of the machine (LVM, btrfs,
/// overlays).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    inode: u64,
    /// Nanoseconds of its birth since 1970; 0 where the file system does not keep it. Numbers of
    /// inodes are used again.
    born: u128,
}

impl Identity {
    /// Identity of an open or listed file.
    pub(crate) fn of(metadata: &Metadata) -> Self {
        let born = metadata
            .created()
            .ok()
            .and_then(|born| born.duration_since(SystemTime::UNIX_EPOCH).ok());
        Self { inode: metadata.ino(), born: born.map_or(0, |since| since.as_nanos()) }
    }

    /// Fixed-length text.
    pub(super) fn to_text(self) -> String {
        format!("{:016x}{:032x}", self.inode, self.born)
    }
}

/// Opens a file for its owner alone, makes it if it is not there. Nothing in it is changed.
pub(crate) fn private(path: &Path) -> Result<File, OpenError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    // A pipe in its place must not hold the start up.
    options.custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
    let file = options.open(path).map_err(|error| not_opened(path, error))?;
    is_plain(path, &file.metadata().map_err(OpenError::io(path))?)?;
    Ok(file)
}

/// Metadata of a file that may be used here; `None` where there is none.
pub(crate) fn look(path: &Path) -> Result<Option<Metadata>, OpenError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => is_plain(path, &metadata).map(|()| Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(OpenError::Io { path: path.to_owned(), source: error }),
    }
}

/// Refuses a file or directory that others can write to, warns of one that they can read.
/// `tolerated` warns of both.
pub(crate) fn is_closed(
    path: &Path,
    metadata: &Metadata,
    wanted: u32,
    tolerated: bool,
) -> Result<(), OpenError> {
    let mode = metadata.mode() & 0o777;
    let by_group = mode & 0o020 != 0 && !is_in_group(metadata.gid());
    if (mode & 0o002 != 0 || by_group) && !tolerated {
        let problem = format!("is writable by other users (mode {mode:04o}): chmod {wanted:04o}");
        return Err(OpenError::Exposed { path: path.to_owned(), problem });
    }
    if mode & !wanted != 0 {
        let (mode, wanted) = (format!("{mode:04o}"), format!("{wanted:04o}"));
        tracing::warn!(
            path = %path.display(), mode, wanted,
            "other users can access this path; change its mode"
        );
    }
    Ok(())
}

/// Refuses what belongs to another user than this process's or root: its owner can change it at any
/// time.
pub(super) fn is_owned(path: &Path, metadata: &Metadata) -> Result<(), OpenError> {
    let (owner, own) = (metadata.uid(), process::geteuid().as_raw());
    if owner == own || owner == 0 {
        return Ok(());
    }
    let problem = format!(
        "belongs to user {owner}, this process runs as user {own}: run it as that user, or chown"
    );
    Err(OpenError::Exposed { path: path.to_owned(), problem })
}

fn is_plain(path: &Path, metadata: &Metadata) -> Result<(), OpenError> {
    let refuse = |problem: String| Err(OpenError::Exposed { path: path.to_owned(), problem });
    if metadata.is_symlink() {
        return refuse("is a symbolic link: replace it with the file, or remove it".to_owned());
    }
    if !metadata.is_file() {
        return refuse("is not a regular file: remove it".to_owned());
    }
    if metadata.nlink() > 1 {
        return refuse(format!(
            "has {} hard links: remove the others, or copy the file",
            metadata.nlink()
        ));
    }
    is_owned(path, metadata)
}

fn is_in_group(group: u32) -> bool {
    let others = || process::getgroups().unwrap_or_default();
    process::getegid().as_raw() == group || others().iter().any(|gid| gid.as_raw() == group)
}

/// A link reports itself as a loop, where links are not followed.
fn not_opened(path: &Path, source: io::Error) -> OpenError {
    if source.raw_os_error() == Some(Errno::LOOP.raw_os_error()) {
        return OpenError::Exposed {
            path: path.to_owned(),
            problem: "is a symbolic link: remove it".to_owned(),
        };
    }
    OpenError::Io { path: path.to_owned(), source }
}
