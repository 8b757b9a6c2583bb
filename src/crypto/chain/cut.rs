//! Places at which a chain may be cut, and marks of cuts. Each has a key of its own: neither is a
//! head, nor a record's seal, nor the other.

use subtle::ConstantTimeEq as _;

use super::key::{ChainKey, mac};
use crate::model::Timestamp;

/// Record of a chain by its sequence and hash, with its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainPlace {
    /// Sequence of the record.
    pub sequence: u64,
    /// Hash of the record.
    pub hash: [u8; 32],
    /// Time of the record.
    pub at: Timestamp,
}

/// Mark of a cut: a node with the key removed the records of the chain up to this place. The rest
/// is verified from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutMark {
    /// Last record that was removed.
    pub place: ChainPlace,
    /// MAC over the chain and the place.
    pub seal: [u8; 32],
}

impl ChainKey {
    /// Seals the mark of a cut.
    pub fn mark_cut(&self, chain: &str, place: ChainPlace) -> CutMark {
        CutMark { place, seal: place_mac(&self.cuts, chain, &place) }
    }

    /// Returns true if `mark` is a mark of this chain made with this key.
    pub fn check_cut(&self, chain: &str, mark: &CutMark) -> bool {
        bool::from(place_mac(&self.cuts, chain, &mark.place).ct_eq(&mark.seal))
    }

    /// Seals a place of a chain that its writer knows to be right.
    pub fn seal_place(&self, chain: &str, place: &ChainPlace) -> [u8; 32] {
        place_mac(&self.places, chain, place)
    }

    /// Returns true if `seal` is the seal of this place.
    pub fn check_place(&self, chain: &str, place: &ChainPlace, seal: &[u8]) -> bool {
        bool::from(place_mac(&self.places, chain, place).as_slice().ct_eq(seal))
    }

    /// Seals a part of a chain that was archived: the record before it, and its last one.
    pub fn seal_archive(
        &self,
        chain: &str,
        before: (u64, &[u8; 32]),
        last: (u64, &[u8; 32]),
    ) -> [u8; 32] {
        let (from, to) = (before.0.to_be_bytes(), last.0.to_be_bytes());
        mac(&self.archives, &[chain.as_bytes(), &from, before.1, &to, last.1])
    }
}

fn place_mac(key: &[u8; 32], chain: &str, place: &ChainPlace) -> [u8; 32] {
    let (sequence, at) = (place.sequence.to_be_bytes(), place.at.millis().to_be_bytes());
    mac(key, &[chain.as_bytes(), &sequence, &place.hash, &at])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::chain::{Claim, Head};

    /// DECISIONS 3: the mark of a cut is none of another chain, place or time, and no other seal
    /// passes for it.
    #[test]
    fn a_mark_is_valid_for_its_chain_and_place_only() {
        let (key, at) = (ChainKey::new([7; 32]), Timestamp::from_millis(1_790_000_000_123));
        let place = ChainPlace { sequence: 7, hash: [3; 32], at };
        let mark = key.mark_cut("node", place);
        assert!(key.check_cut("node", &mark));
        assert!(!ChainKey::new([8; 32]).check_cut("node", &mark));
        assert!(!key.check_cut("Node", &mark));
        for other in [
            ChainPlace { sequence: 8, ..place },
            ChainPlace { hash: [4; 32], ..place },
            ChainPlace { at: Timestamp::EPOCH, ..place },
        ] {
            assert!(!key.check_cut("node", &CutMark { place: other, ..mark }), "{other:?}");
        }
        let sealed = key.seal_place("node", &place);
        assert!(key.check_place("node", &place, &sealed));
        assert!(!key.check_place("node", &place, &mark.seal));
        assert!(!key.check_cut("node", &CutMark { seal: sealed, ..mark }));
        for claim in [Claim::Closed, Claim::Open { at }, Claim::Record { entry: [0; 16] }] {
            let (node, hash) = ("node".into(), [3; 32]);
            assert!(!key.check(&Head { node, sequence: 7, hash, claim, seal: mark.seal }));
        }
    }
}
