//! Archive of a part of a chain that is cut: a line of JSON for its beginning, one for each record
//! as an export has it, and one for its sealed end. Parts of one chain follow each other: the next
//! one begins with the hash with which this one ends.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{hex, unhex};
use crate::{
    crypto::chain::{ChainKey, ChainPlace, Walk},
    model::{Event, Record},
};

/// Version of the lines.
const VERSION: u32 = 1;

/// Line of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ArchiveLine {
    /// First line: the record before the part.
    Archive {
        /// Version of the lines.
        version: u32,
        /// Name of the chain.
        chain: Arc<str>,
        /// Sequence of the record before the first one; 0 at the beginning of a chain.
        after: u64,
        /// Hash of that record as 64 hexadecimal digits.
        hash: String,
    },
    /// Record.
    Record {
        /// Name of the chain.
        chain: Arc<str>,
        /// Sequence in the chain.
        sequence: u64,
        /// Node that wrote it.
        node: Arc<str>,
        /// Event of the record.
        event: Event,
        /// Hash as 64 hexadecimal digits.
        hash: String,
    },
    /// Last line: the last record.
    ArchiveEnd {
        /// Sequence of the last record.
        sequence: u64,
        /// Hash of the last record as 64 hexadecimal digits.
        hash: String,
        /// Seal over chain, beginning and end as 64 hexadecimal digits.
        seal: String,
    },
}

impl ArchiveLine {
    /// Returns the line, with its end.
    fn text(&self) -> Result<String, String> {
        serde_json::to_string(self).map(|line| line + "\n").map_err(|error| error.to_string())
    }
}

/// Writer of the lines of an archive. Each record is verified before it is written.
pub struct ArchiveWriter {
    chain: Arc<str>,
    before: (u64, [u8; 32]),
    walk: Walk,
}

impl ArchiveWriter {
    /// Begins with the records after `before`; returns the first line.
    ///
    /// # Errors
    ///
    /// The line cannot be encoded.
    pub fn new(chain: &Arc<str>, before: (u64, [u8; 32])) -> Result<(Self, String), String> {
        let (after, hash) = before;
        let walk = Walk::after(after, hash);
        let first = ArchiveLine::Archive {
            version: VERSION,
            chain: chain.clone(),
            after,
            hash: hex(&hash),
        };
        Ok((Self { chain: chain.clone(), before, walk }, first.text()?))
    }

    /// Returns the sequence of the last record.
    pub const fn sequence(&self) -> u64 {
        self.walk.sequence()
    }

    /// Returns the line of the next record.
    ///
    /// # Errors
    ///
    /// The record does not follow the last one.
    pub fn record(&mut self, record: &Record) -> Result<String, String> {
        let is_renamed = record.sequence == 1 && *record.node != *self.chain;
        if is_renamed {
            return Err("audit record 1: starts a chain of another name".to_owned());
        }
        self.walk.record(record).map_err(|flaw| flaw.to_string())?;
        let Record { chain, sequence, node, event, hash } = record.clone();
        ArchiveLine::Record { chain, sequence, node, event, hash: hex(&hash) }.text()
    }

    /// Returns the last line, if the last record is the one at `place`.
    ///
    /// # Errors
    ///
    /// The last record is another one.
    pub fn finish(&self, key: &ChainKey, place: &ChainPlace) -> Result<String, String> {
        let (sequence, hash) = (self.walk.sequence(), self.walk.hash());
        if (sequence, hash) != (place.sequence, place.hash) {
            return Err(format!("audit record {sequence}: not the one whose place was sealed"));
        }
        let (after, before) = &self.before;
        let seal = key.seal_archive(&self.chain, (*after, before), (sequence, &hash));
        ArchiveLine::ArchiveEnd { sequence, hash: hex(&hash), seal: hex(&seal) }.text()
    }
}

/// Part of a chain that an archive holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedPart {
    /// Name of the chain.
    pub chain: Arc<str>,
    /// Sequence and hash of the record before the first one.
    pub before: (u64, [u8; 32]),
    /// Sequence and hash of the last record.
    pub last: (u64, [u8; 32]),
}

/// Verification of an archive, line by line.
#[derive(Default)]
pub struct ArchiveCheck {
    begun: Option<ArchiveWriter>,
    ended: Option<ArchivedPart>,
}

impl ArchiveCheck {
    /// Checks the next line; without a key not the seal of the last one.
    ///
    /// # Errors
    ///
    /// The problem of the line.
    pub fn take(&mut self, line: &str, key: Option<&ChainKey>) -> Result<(), String> {
        if self.ended.is_some() {
            return Err("a line follows the last one".to_owned());
        }
        let digits = |hash: &str| unhex(hash).ok_or_else(|| "malformed hash".to_owned());
        let line = serde_json::from_str(line).map_err(|error| error.to_string())?;
        match (line, &mut self.begun) {
            (ArchiveLine::Archive { version: VERSION, chain, after, hash }, None) => {
                let before = (after, digits(&hash)?);
                let walk = Walk::after(before.0, before.1);
                self.begun = Some(ArchiveWriter { chain, before, walk });
            }
            (ArchiveLine::Record { chain, sequence, node, event, hash }, Some(begun)) => {
                if chain != begun.chain {
                    return Err(format!("audit record {sequence}: of the chain {chain}"));
                }
                let record = Record { chain, sequence, node, event, hash: digits(&hash)? };
                begun.walk.record(&record).map_err(|flaw| flaw.to_string())?;
            }
            (ArchiveLine::ArchiveEnd { sequence, hash, seal }, Some(begun)) => {
                let ArchiveWriter { chain, before, walk } = begun;
                let last = (walk.sequence(), walk.hash());
                if last != (sequence, digits(&hash)?) {
                    return Err("the end does not match the last record".to_owned());
                }
                let expected = |key: &ChainKey| {
                    key.seal_archive(chain, (before.0, &before.1), (last.0, &last.1))
                };
                if key.is_some_and(|key| unhex(&seal) != Some(expected(key))) {
                    return Err("the seal of the end is invalid".to_owned());
                }
                self.ended = Some(ArchivedPart { chain: chain.clone(), before: *before, last });
            }
            (ArchiveLine::Archive { version, .. }, None) => {
                return Err(format!("version {version} is not supported, expected {VERSION}"));
            }
            (ArchiveLine::Archive { .. }, Some(_)) => return Err("a second first line".to_owned()),
            (_, None) => return Err("the first line must be of type archive".to_owned()),
        }
        Ok(())
    }

    /// Returns the part that was checked; `None` if the last line is missing.
    pub fn finish(self) -> Option<ArchivedPart> {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        crypto::chain::{START, link},
        model::{Action, Stamp, Timestamp},
    };

    fn records(count: u64) -> Vec<Record> {
        let (chain, mut previous): (Arc<str>, _) = ("a".into(), START);
        let record = |sequence| {
            let event = Stamp::internal(Timestamp::EPOCH).done(Action::TokenIssued, "x");
            previous = link(&previous, sequence, "a", &serde_json::to_vec(&event).unwrap());
            Record { chain: chain.clone(), sequence, node: chain.clone(), event, hash: previous }
        };
        (1..=count).map(record).collect()
    }

    fn lines(key: &ChainKey) -> Vec<String> {
        let records = records(3);
        let (mut writer, first) = ArchiveWriter::new(&"a".into(), (0, START)).unwrap();
        let mut lines = vec![first];
        lines.extend(records.iter().map(|record| writer.record(record).unwrap()));
        let Record { sequence, hash, .. } = records[2];
        let place = ChainPlace { sequence, hash, at: Timestamp::EPOCH };
        lines.push(writer.finish(key, &place).unwrap());
        lines
    }

    fn check(lines: &[String], key: Option<&ChainKey>) -> Result<Option<ArchivedPart>, String> {
        let mut check = ArchiveCheck::default();
        lines.iter().try_for_each(|line| check.take(line, key))?;
        Ok(check.finish())
    }

    /// An archive is verified by itself, and no line can be altered, moved or left out.
    #[test]
    fn an_archive_is_whole_or_refused() {
        let key = ChainKey::new([7; 32]);
        let lines = lines(&key);
        let part = check(&lines, Some(&key)).unwrap().unwrap();
        assert_eq!((&*part.chain, part.before, part.last.0), ("a", (0, START), 3));
        assert_eq!(check(&lines, None).unwrap(), Some(part));
        assert!(check(&lines, Some(&ChainKey::new([8; 32]))).is_err());
        assert_eq!(check(&lines[..4], Some(&key)).unwrap(), None);
        for left_out in 0..4 {
            let mut fewer = lines.clone();
            fewer.remove(left_out);
            assert!(check(&fewer, Some(&key)).is_err(), "{left_out}");
        }
        for line in 0..lines.len() {
            let mut altered = lines.clone();
            altered[line] = altered[line].replace("\"a\"", "\"b\"").replace(":3", ":4");
            assert!(altered == lines || check(&altered, Some(&key)).is_err(), "{line}");
        }
        let mut swapped = lines;
        swapped.swap(1, 2);
        assert!(check(&swapped, Some(&key)).is_err());
    }
}
