//! A note beside the database of the last record that was acknowledged. When the end of the WAL is damaged, SQLite goes on from
//! an older state and takes it for the newest; the note tells. It is written after each commit and before its answers, so it never
//! claims more than is on disk, and it is not synced: a power cut may leave an older note, never a newer one.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use super::{batch::OWN, fault::OpenError};
use crate::{
    crypto::chain::{ChainKey, Head},
    store::transfer::{hex, unhex},
};

/// The note's file.
pub(super) struct Anchor(File);

impl Anchor {
    /// Opens the note of a data directory.
    pub(super) fn open(dir: &Path) -> Result<Self, OpenError> {
        super::lock::private_file(&dir.join("anchor")).map(Self)
    }

    /// What it says; `None` if it is empty or was torn.
    pub(super) fn read(&self, key: &ChainKey) -> Option<Head> {
        let mut bytes = vec![0; usize::try_from(self.0.metadata().ok()?.len().min(4_096)).ok()?];
        self.0.read_exact_at(&mut bytes, 0).ok()?;
        if bytes.is_empty() {
            return None;
        }
        let head = parse(&bytes).filter(|head| key.check(head));
        if head.is_none() {
            tracing::warn!("the file anchor cannot be read, so a lost end of the audit trail would not be noticed");
        }
        head
    }

    /// Notes the end of the chain. A failure is not the caller's: the commit stands.
    pub(super) fn write(&self, head: &Head) {
        let line = format!("{:020} {} {} {}\n", head.sequence, hex(&head.hash), hex(&head.seal), head.node);
        let result = self.0.write_all_at(line.as_bytes(), 0).and_then(|()| {
            // Lines differ in length only by the node's name.
            let length = u64::try_from(line.len()).unwrap_or(u64::MAX);
            if self.0.metadata()?.len() > length { self.0.set_len(length) } else { Ok(()) }
        });
        if let Err(error) = result {
            tracing::warn!(%error, "cannot write the file anchor");
        }
    }

    /// Makes the note durable.
    pub(super) fn sync(&self) {
        if let Err(error) = self.0.sync_data() {
            tracing::warn!(%error, "cannot sync the file anchor");
        }
    }
}

fn parse(bytes: &[u8]) -> Option<Head> {
    let mut parts = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?.splitn(4, ' ');
    let sequence = parts.next()?.parse().ok()?;
    let (hash, seal) = (unhex(parts.next()?)?, unhex(parts.next()?)?);
    Some(Head { node: parts.next()?.into(), sequence, hash, claim: OWN, seal })
}
