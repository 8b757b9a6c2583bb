//! New file for a secret that is shown once. Only its owner can read it; an existing file is never
//! overwritten.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::error::Failure;

/// An empty file for a secret; removed on drop if none was written.
pub(super) struct SecretFile {
    path: PathBuf,
    file: File,
    is_written: bool,
}

impl SecretFile {
    /// Creates the file, before the secret is generated: a secret that cannot be written is lost.
    pub(super) fn create(path: &Path) -> Result<Self, Failure> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        Ok(Self {
            path: path.to_owned(),
            file: file.map_err(Failure::writing(path))?,
            is_written: false,
        })
    }

    /// Creates the file as [`Self::create`] does; `None` if there is one already.
    pub(super) fn create_unless_there(path: &Path) -> Result<Option<Self>, Failure> {
        match path.symlink_metadata() {
            Ok(_) => Ok(None),
            Err(_) => Self::create(path).map(Some),
        }
    }

    /// Writes the secret durably.
    pub(super) fn write(mut self, secret: &str) -> io::Result<()> {
        writeln!(self.file, "{secret}").and_then(|()| self.file.sync_all())?;
        self.is_written = true;
        Ok(())
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        if !self.is_written {
            // An empty file that stays does no harm.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_secret_goes_to_a_new_file_of_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        drop(SecretFile::create(&path).unwrap());
        assert!(!path.exists(), "no secret was written");
        SecretFile::create(&path).unwrap().write("jcs_x").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "jcs_x\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(SecretFile::create(&path).is_err(), "what is there is not written over");
        assert_eq!(fs::read_to_string(&path).unwrap(), "jcs_x\n");
        symlink(dir.path().join("elsewhere"), dir.path().join("link")).unwrap();
        assert!(SecretFile::create(&dir.path().join("link")).is_err());
        assert!(!dir.path().join("elsewhere").exists());
    }
}
