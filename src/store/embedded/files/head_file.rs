//! A note beside the database: the last audit record that was acknowledged, and which files they
//! are, the database's and its own.
//!
//! It shows three things at a start. The end of the WAL is damaged: SQLite then goes on from an
//! older state and takes it for the newest. The database is another file: a copy, which does not
//! know what was revoked since. The note itself is another file than it says: a copy was written
//! over the files that were there.
//!
//! | when | what happens to the note |
//! |--|--|
//! | start | replaced by a new file, synced, before the first commit |
//! | start with an accepted rollback | the same, behind the first commit: that one records the acceptance |
//! | after each commit, before its answers | written in place: it never claims more than is on disk |
//! | close | replaced by a new file, synced |
//!
//! Between the syncs a power cut may leave an older note, never a newer one, nor half of one: it
//! lies within one sector. So one that is missing or cannot be read is not the work of a crash.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{
    directory::Directory,
    open::{Identity, look, private},
};
use crate::{
    crypto::chain::ChainKey,
    store::{
        embedded::engine::{error::OpenError, schema},
        transfer::{hex, unhex},
    },
};

/// Length of a note.
const LENGTH: usize = 64 + 1 + 20 + 1 + 64 + 1 + 48 + 1 + 48 + 1;

/// The note's file.
pub(crate) struct Anchor {
    path: PathBuf,
    key: ChainKey,
    database: Identity,
    /// What is written to in place; `None` as long as the note that was found stays as it is.
    file: Option<(File, Identity)>,
}

/// A note that was found.
pub(crate) struct Note {
    /// The last acknowledged record.
    pub(crate) sequence: u64,
    /// Its hash.
    pub(crate) hash: [u8; 32],
    /// Whether it speaks of the database that is there.
    pub(crate) is_of_database: bool,
    /// Whether it lies in the file that it was written to.
    pub(crate) is_in_place: bool,
}

impl Anchor {
    /// The note of a directory, and what it says of this database; nothing if it is missing or
    /// cannot be read.
    pub(crate) fn find(
        directory: &Directory,
        database: Identity,
        key: ChainKey,
    ) -> Result<(Self, Option<Note>), OpenError> {
        let path = directory.path().join("anchor");
        let anchor = Self { path, key, database, file: None };
        let found =
            look(&anchor.path)?.filter(|metadata| usize::try_from(metadata.len()) == Ok(LENGTH));
        let Some(metadata) = found else { return Ok((anchor, None)) };
        let text = fs::read(&anchor.path).map_err(OpenError::io(&anchor.path))?;
        let note = anchor.parse(&text, Identity::of(&metadata));
        Ok((anchor, note))
    }

    /// Replaces the note by a new file. Where there is no room for one, `found` stays and is
    /// written to in place.
    pub(crate) fn begin(
        &mut self,
        directory: &Directory,
        at: (u64, [u8; 32]),
        found: bool,
    ) -> Result<(), OpenError> {
        match self.renew(directory, at) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull && found => {
                tracing::warn!(%error, "cannot recreate the file anchor");
                let file = private(&self.path)?;
                let own = Identity::of(&file.metadata().map_err(OpenError::io(&self.path))?);
                self.file = Some((file, own));
                Ok(())
            }
            other => other.map_err(OpenError::io(&self.path)),
        }
    }

    /// Whether a note of this process is in place.
    pub(crate) const fn is_begun(&self) -> bool {
        self.file.is_some()
    }

    /// Notes the end of the chain. A failure is not the caller's: the commit stands.
    pub(crate) fn write(&mut self, directory: &Directory, at: (u64, [u8; 32])) {
        let written = match &self.file {
            Some((file, own)) => file.write_all_at(self.text(at, *own).as_bytes(), 0),
            None => self.renew(directory, at),
        };
        if let Err(error) = written {
            tracing::warn!(%error, "cannot write the file anchor");
        }
    }

    /// Makes the last note durable, in a file of its own: a copy that was made meanwhile is then
    /// none of this file.
    pub(crate) fn end(&mut self, directory: &Directory, at: (u64, [u8; 32])) {
        if let Err(error) = self.renew(directory, at) {
            tracing::warn!(%error, "cannot recreate the file anchor");
        }
    }

    /// Complete on disk under its name, or the one before still there.
    fn renew(&mut self, directory: &Directory, at: (u64, [u8; 32])) -> io::Result<()> {
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
        let said =
            format!("{sequence:020} {} {} {}", hex(&hash), self.database.to_text(), own.to_text());
        format!("{} {said}\n", hex(&self.key.mac_note(said.as_bytes())))
    }

    fn parse(&self, bytes: &[u8], lies_in: Identity) -> Option<Note> {
        let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() == LENGTH)?;
        let (mac, said) = text.strip_suffix('\n')?.split_once(' ')?;
        if !self.key.check_note(said.as_bytes(), &unhex(mac)?) {
            return None;
        }
        let mut parts = said.split(' ');
        let (sequence, hash) = (parts.next()?.parse().ok()?, unhex(parts.next()?)?);
        let is_of_database = parts.next()? == self.database.to_text();
        Some(Note {
            sequence,
            hash,
            is_of_database,
            is_in_place: parts.next()? == lies_in.to_text(),
        })
    }
}

/// Has the note of a copied directory name the files that lie there, as if it were the directory of
/// a process that was killed.
pub(crate) fn adopt(dir: &Path, key: ChainKey) -> Result<(), OpenError> {
    let directory = Directory::take(dir, false)?;
    let Some(database) = look(&schema::file(directory.path()))? else {
        return Ok(());
    };
    let (mut anchor, note) = Anchor::find(&directory, Identity::of(&database), key)?;
    let Some(note) = note else { return Ok(()) };
    anchor.begin(&directory, (note.sequence, note.hash), true)
}
