//! Hash chain of the audit trail: each record's hash covers the previous one, and the end is sealed
//! under a key, so that a removed, altered, moved or truncated record is found.

mod cut;
mod key;

use aws_lc_rs::digest;

pub use self::{
    cut::{ChainPlace, CutMark},
    key::{ChainKey, Claim, Head},
};
use crate::model::Record;

/// Hash before the first record.
pub const START: [u8; 32] = [0; 32];

/// Label of the hash, so that it is valid for this purpose only.
const LINK: &[u8] = b"jeton audit link v1";

/// Returns the hash of a record: SHA-256 over the previous hash, the sequence, the node and the
/// stored event, each with its length, so that two records never have the same bytes.
pub fn link(previous: &[u8; 32], sequence: u64, node: &str, event: &[u8]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(LINK);
    context.update(previous);
    context.update(&sequence.to_be_bytes());
    for part in [node.as_bytes(), event] {
        context.update(&length(part));
        context.update(part);
    }
    let mut hash = [0; 32];
    hash.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    hash
}

fn length(part: &[u8]) -> [u8; 8] {
    u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes()
}

/// Fault of a chain, at the first record that shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("audit record {sequence}: {problem}")]
pub struct Flaw {
    /// Sequence of the record.
    pub sequence: u64,
    /// The fault.
    pub problem: Problem,
}

/// Faults of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The record does not match its hash, or the previous hash.
    #[error("altered")]
    Altered,
    /// The end is missing: the sealed head is after the last record.
    #[error("truncated from here on")]
    CutOff,
    /// The sealed head was not made with this key.
    #[error("the head's seal is invalid")]
    Forged,
    /// The mark of the cut before the first record was not made with this key.
    #[error("the mark of the cut is invalid")]
    ForgedCut,
    /// The record is missing; a later one follows.
    #[error("removed")]
    Removed,
    /// The record follows a later one, or occurs twice.
    #[error("out of order")]
    Reordered,
    /// The record is after the sealed head.
    #[error("beyond the sealed head")]
    Unsealed,
}

/// Walks a chain record by record and stops at the first that is wrong.
#[derive(Clone, Debug)]
pub struct Walk {
    sequence: u64,
    hash: [u8; 32],
}

impl Walk {
    /// Creates a walk that begins before the first record.
    pub const fn from_start() -> Self {
        Self { sequence: 0, hash: START }
    }

    /// Creates a walk that begins behind a cut, or before the first record of a whole chain.
    pub fn behind(mark: Option<&CutMark>) -> Self {
        mark.map_or_else(Self::from_start, |mark| Self::after(mark.place.sequence, mark.place.hash))
    }

    /// Creates a walk that begins after a record whose hash is trusted.
    pub const fn after(sequence: u64, hash: [u8; 32]) -> Self {
        Self { sequence, hash }
    }

    /// Returns the sequence of the last record of the walk; 0 before the first.
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Returns the hash of the last record of the walk; [`START`] before the first.
    pub const fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// Checks the next record, with the stored bytes of its event.
    pub fn step(
        &mut self,
        sequence: u64,
        node: &str,
        event: &[u8],
        hash: &[u8; 32],
    ) -> Result<(), Flaw> {
        let expected = self.sequence.saturating_add(1);
        if sequence != expected {
            let flaw = if sequence > expected {
                Flaw { sequence: expected, problem: Problem::Removed }
            } else {
                Flaw { sequence, problem: Problem::Reordered }
            };
            return Err(flaw);
        }
        if link(&self.hash, sequence, node, event) != *hash {
            return Err(Flaw { sequence, problem: Problem::Altered });
        }
        *self = Self { sequence, hash: *hash };
        Ok(())
    }

    /// Checks the next record, from its parts: an event has one serialisation.
    pub fn record(&mut self, record: &Record) -> Result<(), Flaw> {
        let event = serde_json::to_vec(&record.event)
            .map_err(|_| Flaw { sequence: record.sequence, problem: Problem::Altered })?;
        self.step(record.sequence, &record.node, &event, &record.hash)
    }

    /// Compares the end of the walk with the sealed head. If records are appended meanwhile, read
    /// the head first and walk up to it only. The seal of a last record that no head covers yet
    /// counts as the end.
    pub fn finish(&self, key: &ChainKey, head: Option<&Head>) -> Result<(), Flaw> {
        let flaw = |sequence, problem| Err(Flaw { sequence, problem });
        match head {
            None if self.sequence == 0 => Ok(()),
            None => flaw(1, Problem::Unsealed),
            Some(head) if !key.check(head) && head.claim.is_head() => {
                flaw(head.sequence, Problem::Forged)
            }
            Some(head) if !key.check(head) => flaw(head.sequence, Problem::Unsealed),
            Some(head) if head.sequence > self.sequence => {
                flaw(self.sequence.saturating_add(1), Problem::CutOff)
            }
            Some(head) if head.sequence < self.sequence => {
                flaw(head.sequence.saturating_add(1), Problem::Unsealed)
            }
            Some(head) if head.hash != self.hash => flaw(head.sequence, Problem::Altered),
            Some(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Action, Stamp, Timestamp};

    fn key() -> ChainKey {
        ChainKey::new([7; 32])
    }

    fn records(count: u64) -> Vec<Record> {
        let node: Arc<str> = "node".into();
        let mut previous = START;
        (1..=count)
            .map(|sequence| {
                let at = Timestamp::from_millis(i64::try_from(sequence).unwrap());
                let event = Stamp::internal(at).done(Action::TokenIssued, sequence.to_string());
                previous = link(&previous, sequence, &node, &serde_json::to_vec(&event).unwrap());
                Record { chain: node.clone(), sequence, node: node.clone(), event, hash: previous }
            })
            .collect()
    }

    fn head(records: &[Record]) -> Head {
        let last = records.last().unwrap();
        key().seal(&last.node, last.sequence, last.hash, Claim::Closed)
    }

    fn verify(records: &[Record], head: &Head) -> Result<(), Flaw> {
        let mut walk = Walk::from_start();
        records.iter().try_for_each(|record| walk.record(record))?;
        walk.finish(&key(), Some(head))
    }

    #[test]
    fn a_whole_chain_verifies_from_the_start_and_from_the_middle() {
        let records = records(9);
        let head = head(&records);
        assert_eq!(verify(&records, &head), Ok(()));
        let mut walk = Walk::after(4, records[3].hash);
        records[4..].iter().try_for_each(|record| walk.record(record)).unwrap();
        assert_eq!(walk.finish(&key(), Some(&head)), Ok(()));
        assert_eq!(Walk::from_start().finish(&key(), None), Ok(()));
    }

    /// O04: every place, every way: removed, altered, moved, doubled, cut off; the first bad record
    /// is named.
    #[test]
    fn the_first_bad_record_is_named() {
        let whole = records(9);
        let head = head(&whole);
        let flaw = |records: &[Record]| verify(records, &head).unwrap_err();
        for at in 0..9 {
            let sequence = whole[at].sequence;

            let mut removed = whole.clone();
            removed.remove(at);
            let problem = if at == 8 { Problem::CutOff } else { Problem::Removed };
            assert_eq!(flaw(&removed), Flaw { sequence, problem });

            let mut altered = whole.clone();
            altered[at].event.target.push('!');
            assert_eq!(flaw(&altered), Flaw { sequence, problem: Problem::Altered });

            let mut elsewhere = whole.clone();
            elsewhere[at].node = "other".into();
            assert_eq!(flaw(&elsewhere), Flaw { sequence, problem: Problem::Altered });

            let mut doubled = whole.clone();
            doubled.insert(at, whole[at].clone());
            assert_eq!(flaw(&doubled), Flaw { sequence, problem: Problem::Reordered });

            assert_eq!(flaw(&whole[..at]), Flaw { sequence, problem: Problem::CutOff });
        }
        let mut swapped = whole.clone();
        swapped.swap(3, 4);
        assert_eq!(flaw(&swapped), Flaw { sequence: 4, problem: Problem::Removed });
        let mut exchanged = whole.clone();
        exchanged[3].event = whole[4].event.clone();
        exchanged[4].event = whole[3].event.clone();
        assert_eq!(flaw(&exchanged), Flaw { sequence: 4, problem: Problem::Altered });
    }

    /// O04: a writer that rewrites the chain from some record on has no key to seal its end with.
    #[test]
    fn a_rewritten_chain_does_not_pass_the_seal() {
        let whole = records(9);
        let sealed = head(&whole);
        let other = records(8);
        let shorter = head(&other);
        assert_eq!(
            verify(&whole, &shorter).unwrap_err(),
            Flaw { sequence: 9, problem: Problem::Unsealed }
        );
        let mut forged = sealed.clone();
        forged.sequence = 8;
        forged.hash = other[7].hash;
        assert_eq!(
            verify(&other, &forged).unwrap_err(),
            Flaw { sequence: 8, problem: Problem::Forged }
        );
        let foreign = ChainKey::new([8; 32]).seal(&sealed.node, 9, sealed.hash, Claim::Closed);
        assert_eq!(
            verify(&whole, &foreign).unwrap_err(),
            Flaw { sequence: 9, problem: Problem::Forged }
        );
        let mut walk = Walk::from_start();
        whole.iter().try_for_each(|record| walk.record(record)).unwrap();
        assert_eq!(
            walk.finish(&key(), None).unwrap_err(),
            Flaw { sequence: 1, problem: Problem::Unsealed }
        );
    }

    #[test]
    fn what_is_hashed_has_one_reading() {
        assert_ne!(link(&START, 1, "ab", b"c"), link(&START, 1, "a", b"bc"));
        assert_ne!(link(&START, 1, "a", b""), link(&START, 2, "a", b""));
    }
}
