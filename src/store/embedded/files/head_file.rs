//! Head file: a note beside the database with the last acknowledged audit record and the identities
//! of two files, the database and the note itself.
//!
//! It reveals three faults at a start. A damaged end of the WAL: SQLite continues from an older
//! state and takes it for the newest. A database that is another file: a copy, which lacks later
//! revocations. A note that is another file than it says: a copy was written over the original
//! files.
//!
//! | when | effect on the note |
//! |--|--|
//! | start | replaced by a new file, synced, before the first commit |
//! | start with an accepted rollback | the same, after the first commit: that one records the acceptance |
//! | after each commit, before its replies | written in place: it never claims more than is on disk |
//! | close | replaced by a new file, synced |
//!
//! Between the syncs a power cut may leave an older note, never a newer one, nor half of one: it
//! lies within one sector. So a missing or unreadable note is not the result of a crash.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{
    directory::Directory,
    open::{Identity, metadata_of, open_private},
};
use crate::{
    crypto::chain::ChainKey,
    store::{
        embedded::engine::{error::OpenError, schema},
        transfer::{hex, unhex},
    },
};

/// Length of the note.
const LENGTH_BYTES: usize = 64 + 1 + 20 + 1 + 64 + 1 + 48 + 1 + 48 + 1;

/// The note's file.
pub(crate) struct HeadFile {
    path: PathBuf,
    key: ChainKey,
    database: Identity,
    /// File that is written in place; `None` as long as the note that was found stays unchanged.
    file: Option<(File, Identity)>,
}

/// Note that was found.
pub(crate) struct LastAckedHead {
    /// Sequence of the last acknowledged record.
    pub(crate) sequence: u64,
    /// Hash of the last acknowledged record.
    pub(crate) hash: [u8; 32],
    /// True if the note names the database that was found.
    pub(crate) is_of_database: bool,
    /// True if the note lies in the file that it was written to.
    pub(crate) is_in_place: bool,
}

impl HeadFile {
    /// Opens the head file of a directory; the note is `None` if it is missing or unreadable.
    pub(crate) fn open(
        directory: &Directory,
        database: Identity,
        key: ChainKey,
    ) -> Result<(Self, Option<LastAckedHead>), OpenError> {
        let path = directory.path().join("anchor");
        let head_file = Self { path, key, database, file: None };
        let acked = head_file.read()?;
        Ok((head_file, acked))
    }

    /// Returns the note of a directory that this process does not hold.
    pub(crate) fn find(dir: &Path, key: ChainKey) -> Result<Option<LastAckedHead>, OpenError> {
        let Some(database) = metadata_of(&schema::file(dir))? else { return Ok(None) };
        let database = Identity::of(&database);
        Self { path: dir.join("anchor"), key, database, file: None }.read()
    }

    /// Reads the note; `None` if it is missing or unreadable.
    fn read(&self) -> Result<Option<LastAckedHead>, OpenError> {
        let found = metadata_of(&self.path)?
            .filter(|metadata| usize::try_from(metadata.len()) == Ok(LENGTH_BYTES));
        let Some(metadata) = found else { return Ok(None) };
        let text = fs::read(&self.path).map_err(OpenError::io(&self.path))?;
        Ok(self.parse(&text, Identity::of(&metadata)))
    }

    /// Replaces the note by a new file. If there is no space for one and a note was `found`, that
    /// one is written in place.
    pub(crate) fn begin(
        &mut self,
        directory: &Directory,
        at: (u64, [u8; 32]),
        found: bool,
    ) -> Result<(), OpenError> {
        match self.replace(directory, at) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull && found => {
                tracing::warn!(%error, "cannot recreate the file anchor");
                let file = open_private(&self.path)?;
                let own = Identity::of(&file.metadata().map_err(OpenError::io(&self.path))?);
                self.file = Some((file, own));
                Ok(())
            }
            other => other.map_err(OpenError::io(&self.path)),
        }
    }

    /// Returns true once a note of this process is in place.
    pub(crate) const fn is_begun(&self) -> bool {
        self.file.is_some()
    }

    /// Writes the head of the chain. A failure is not the caller's: the commit is durable.
    pub(crate) fn write(&mut self, directory: &Directory, at: (u64, [u8; 32])) {
        let written = match &self.file {
            Some((file, own)) => file.write_all_at(self.text(at, *own).as_bytes(), 0),
            None => self.replace(directory, at),
        };
        if let Err(error) = written {
            tracing::warn!(%error, "cannot write the file anchor");
        }
    }

    /// Makes the last note durable, in a new file: a copy that was made meanwhile then does not
    /// match it.
    pub(crate) fn finish(&mut self, directory: &Directory, at: (u64, [u8; 32])) {
        if let Err(error) = self.replace(directory, at) {
            tracing::warn!(%error, "cannot recreate the file anchor");
        }
    }

    /// Writes the note completely under its name, or leaves the one before.
    fn replace(&mut self, directory: &Directory, at: (u64, [u8; 32])) -> io::Result<()> {
        let draft = directory.path().join("anchor.new");
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&draft)?;
        let own = Identity::of(&file.metadata()?);
        file.write_all_at(self.text(at, own).as_bytes(), 0)?;
        file.sync_all()?;
        fs::rename(&draft, &self.path)?;
        self.file = Some((file, own));
        directory.sync()
    }

    fn text(&self, (sequence, hash): (u64, [u8; 32]), own: Identity) -> String {
        let content =
            format!("{sequence:020} {} {} {}", hex(&hash), self.database.to_text(), own.to_text());
        format!("{} {content}\n", hex(&self.key.mac_note(content.as_bytes())))
    }

    fn parse(&self, bytes: &[u8], lies_in: Identity) -> Option<LastAckedHead> {
        let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() == LENGTH_BYTES)?;
        let (mac, content) = text.strip_suffix('\n')?.split_once(' ')?;
        if !self.key.check_note(content.as_bytes(), &unhex(mac)?) {
            return None;
        }
        let mut parts = content.split(' ');
        let (sequence, hash) = (parts.next()?.parse().ok()?, unhex(parts.next()?)?);
        let is_of_database = parts.next()? == self.database.to_text();
        Some(LastAckedHead {
            sequence,
            hash,
            is_of_database,
            is_in_place: parts.next()? == lies_in.to_text(),
        })
    }
}

/// Rewrites the note of a copied directory to name the files there, as if its process had been
/// killed.
pub(crate) fn adopt(dir: &Path, key: ChainKey) -> Result<(), OpenError> {
    let directory = Directory::take(dir, false)?;
    let Some(database) = metadata_of(&schema::file(directory.path()))? else {
        return Ok(());
    };
    let (mut head_file, acked) = HeadFile::open(&directory, Identity::of(&database), key)?;
    let Some(acked) = acked else { return Ok(()) };
    head_file.begin(&directory, (acked.sequence, acked.hash), true)
}
