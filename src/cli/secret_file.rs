//! A new file for a secret that is shown once: its owner's alone, and never one that was there.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::error::Failure;

/// An empty file that waits for its secret; goes again if none comes.
pub(super) struct SecretFile {
    path: PathBuf,
    file: File,
    is_written: bool,
}

impl SecretFile {
    /// Makes the file. Before the secret is: one that cannot be written down would be lost.
    pub(super) fn make(path: &Path) -> Result<Self, Failure> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        Ok(Self {
            path: path.to_owned(),
            file: file.map_err(Failure::writing(path))?,
            is_written: false,
        })
    }

    /// Writes the secret down, durably.
    pub(super) fn write(mut self, secret: &str) -> io::Result<()> {
        writeln!(self.file, "{secret}").and_then(|()| self.file.sync_all())?;
        self.is_written = true;
        Ok(())
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        if !self.is_written {
            // An empty file says nothing; that it stays harms nothing.
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
        drop(SecretFile::make(&path).unwrap());
        assert!(!path.exists(), "no secret came");
        SecretFile::make(&path).unwrap().write("jcs_x").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "jcs_x\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(SecretFile::make(&path).is_err(), "what is there is not written over");
        assert_eq!(fs::read_to_string(&path).unwrap(), "jcs_x\n");
        symlink(dir.path().join("elsewhere"), dir.path().join("link")).unwrap();
        assert!(SecretFile::make(&dir.path().join("link")).is_err());
        assert!(!dir.path().join("elsewhere").exists());
    }
}
