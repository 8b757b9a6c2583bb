//! The data directory: who may read it, and that one process at a time writes to it.

use std::{
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    io::{Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use super::fault::OpenError;

/// Holds a data directory until it is dropped, or its process ends in whatever way: the lock is the kernel's, the file stays.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the directory, makes it if it is not there; names the holder if there is one.
    pub(super) fn take(dir: &Path) -> Result<Self, OpenError> {
        if !dir.exists() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(OpenError::io(dir))?;
        }
        warn_if_open(dir, 0o700)?;
        let path = dir.join("lock");
        let mut file = private_file(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::Held { pid: read_pid(&mut file) }),
            Err(TryLockError::Error(source)) => return Err(OpenError::Io { path, source }),
        }
        let write = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        write.map_err(OpenError::io(path))?;
        Ok(Self { _file: file })
    }
}

/// Opens a file that only its owner may read, makes it if it is not there, and warns if others may read it.
pub(super) fn private_file(path: &Path) -> Result<File, OpenError> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = file.map_err(OpenError::io(path))?;
    warn_if_open(path, 0o600)?;
    Ok(file)
}

fn warn_if_open(path: &Path, wanted: u32) -> Result<(), OpenError> {
    let mode = Permissions::mode(&fs::metadata(path).map_err(OpenError::io(path))?.permissions()) & 0o777;
    if mode & !wanted != 0 {
        let (mode, wanted) = (format!("{mode:o}"), format!("{wanted:o}"));
        tracing::warn!(path = %path.display(), mode, wanted, "others can read or write here");
    }
    Ok(())
}

fn read_pid(file: &mut File) -> u32 {
    let mut text = String::new();
    // The holder may have locked the file and not yet written to it: then its id is unknown, and that it holds is not.
    file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok()).unwrap_or(0)
}
