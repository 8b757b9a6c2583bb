//! Opening of files in the data directory, so that no other file can take their place: through a
//! link this process would truncate, grow or overwrite its target.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    time::SystemTime,
};

use rustix::{fs::OFlags, io::Errno, process};

use crate::store::embedded::engine::error::OpenError;

/// Identity of a file in its file system: the same after a rename, another after a copy.
///
/// The device is not part of it: its number may change with a restart of the machine (LVM, btrfs,
/// overlays).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    inode: u64,
    /// Nanoseconds of its creation since 1970; 0 if the file system does not keep it. Inode numbers
    /// are reused.
    born: u128,
}

impl Identity {
    /// Returns the identity of an open or listed file.
    pub(crate) fn of(metadata: &Metadata) -> Self {
        let born = metadata
            .created()
            .ok()
            .and_then(|born| born.duration_since(SystemTime::UNIX_EPOCH).ok());
        Self { inode: metadata.ino(), born: born.map_or(0, |since| since.as_nanos()) }
    }

    /// Returns a text of fixed length.
    pub(super) fn to_text(self) -> String {
        format!("{:016x}{:032x}", self.inode, self.born)
    }
}

/// Opens a file for its owner alone, creates it if it is missing. Its content is not changed.
pub(crate) fn open_private(path: &Path) -> Result<File, OpenError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    // A pipe of this name must not block the start.
    options.custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
    let file = options.open(path).map_err(|error| not_opened(path, error))?;
    check_regular_file(path, &file.metadata().map_err(OpenError::io(path))?)?;
    Ok(file)
}

/// Returns the metadata of a file that may be used here; `None` if it is missing.
pub(crate) fn metadata_of(path: &Path) -> Result<Option<Metadata>, OpenError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => check_regular_file(path, &metadata).map(|()| Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(OpenError::Io { path: path.to_owned(), source: error }),
    }
}

/// Refuses a file or directory that other users can write to, warns of one that they can read. With
/// `tolerated` it warns of both.
pub(crate) fn check_permissions(
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

/// Refuses a file of another user than this process's or root: its owner can change it at any time.
pub(super) fn check_owner(path: &Path, metadata: &Metadata) -> Result<(), OpenError> {
    let (owner, own) = (metadata.uid(), process::geteuid().as_raw());
    if owner == own || owner == 0 {
        return Ok(());
    }
    let problem = format!(
        "belongs to user {owner}, this process runs as user {own}: run it as that user, or chown"
    );
    Err(OpenError::Exposed { path: path.to_owned(), problem })
}

fn check_regular_file(path: &Path, metadata: &Metadata) -> Result<(), OpenError> {
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
    check_owner(path, metadata)
}

fn is_in_group(group: u32) -> bool {
    let others = || process::getgroups().unwrap_or_default();
    process::getegid().as_raw() == group || others().iter().any(|gid| gid.as_raw() == group)
}

/// Converts the error of opening a link, which reports itself as a loop.
fn not_opened(path: &Path, source: io::Error) -> OpenError {
    if source.raw_os_error() == Some(Errno::LOOP.raw_os_error()) {
        return OpenError::Exposed {
            path: path.to_owned(),
            problem: "is a symbolic link: remove it".to_owned(),
        };
    }
    OpenError::Io { path: path.to_owned(), source }
}
