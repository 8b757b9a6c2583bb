//! Keys of the audit trail, and the seals made with them. Each purpose has a key of its own, so
//! that a seal is valid for its purpose only: heads, records and outbox entries cannot be swapped.

use std::{fmt, sync::Arc};

use aws_lc_rs::hmac;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::length;
use crate::{crypto::kdf, model::Timestamp};

/// Keys of the audit trail. They are never printed, and wiped on drop.
#[derive(Clone)]
pub struct ChainKey {
    heads: Zeroizing<[u8; 32]>,
    records: Zeroizing<[u8; 32]>,
    outbox: Zeroizing<[u8; 32]>,
    notes: Zeroizing<[u8; 32]>,
    exports: Zeroizing<[u8; 32]>,
    pub(super) cuts: Zeroizing<[u8; 32]>,
    pub(super) places: Zeroizing<[u8; 32]>,
    pub(super) archives: Zeroizing<[u8; 32]>,
}

impl ChainKey {
    /// Derives the keys from 32 secret bytes.
    pub fn new(bytes: impl Into<Zeroizing<[u8; 32]>>) -> Self {
        let bytes = bytes.into();
        let derive = |label| kdf::derive(&bytes, "audit", label);
        let (heads, records, outbox) = (derive("head"), derive("record"), derive("outbox"));
        let (notes, exports) = (derive("note"), derive("export"));
        let (cuts, places, archives) = (derive("cut"), derive("place"), derive("archive"));
        Self { heads, records, outbox, notes, exports, cuts, places, archives }
    }

    /// Seals a place of a chain: HMAC-SHA-256 over all fields of the head, under the key of its
    /// claim.
    pub fn seal(&self, node: &Arc<str>, sequence: u64, hash: [u8; 32], claim: Claim) -> Head {
        let key = match claim {
            Claim::Record { .. } => &self.records,
            Claim::Open { .. } | Claim::Closed => &self.heads,
        };
        let seal = mac(key, &[&claim.bytes(), node.as_bytes(), &sequence.to_be_bytes(), &hash]);
        Head { node: node.clone(), sequence, hash, claim, seal }
    }

    /// Returns true if `head` was sealed with this key, for the claim that it contains.
    pub fn check(&self, head: &Head) -> bool {
        let expected = self.seal(&head.node, head.sequence, head.hash, head.claim);
        bool::from(expected.seal.ct_eq(&head.seal))
    }

    /// Returns the seal of a chain's end in an export, and of its open or closed state. It is not
    /// valid for a head: an old export does not help to truncate the chain in a store.
    pub fn seal_exported(
        &self,
        chain: &str,
        sequence: u64,
        hash: &[u8; 32],
        open: bool,
    ) -> [u8; 32] {
        mac(&self.exports, &[chain.as_bytes(), &sequence.to_be_bytes(), hash, &[u8::from(open)]])
    }

    /// Returns true if `seal` is the seal of this end of a chain in an export.
    pub fn check_exported(
        &self,
        chain: &str,
        sequence: u64,
        hash: &[u8; 32],
        open: bool,
        seal: &[u8; 32],
    ) -> bool {
        bool::from(self.seal_exported(chain, sequence, hash, open).ct_eq(seal))
    }

    /// Returns the MAC of an outbox entry, over its parts.
    pub fn mac_entry(&self, parts: &[&[u8]]) -> [u8; 32] {
        mac(&self.outbox, parts)
    }

    /// Returns true if `tag` is the MAC of an outbox entry of these parts.
    pub fn check_entry(&self, parts: &[&[u8]], tag: &[u8]) -> bool {
        bool::from(self.mac_entry(parts).as_slice().ct_eq(tag))
    }

    /// Returns the MAC of a note that a store keeps beside its chain.
    pub fn mac_note(&self, text: &[u8]) -> [u8; 32] {
        mac(&self.notes, &[text])
    }

    /// Returns true if `tag` is the MAC of this note.
    pub fn check_note(&self, text: &[u8], tag: &[u8; 32]) -> bool {
        bool::from(self.mac_note(text).ct_eq(tag))
    }
}

impl fmt::Debug for ChainKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChainKey")
    }
}

/// Returns the HMAC-SHA-256 over parts, each with its length, so that two lists of parts never have
/// the same bytes.
pub(super) fn mac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in parts {
        context.update(&length(part));
        context.update(part);
    }
    let mut tag = [0; 32];
    tag.iter_mut().zip(context.sign().as_ref()).for_each(|(to, from)| *to = *from);
    tag
}

/// A sealed place of a chain. A head claims that the chain has this length: without the key no
/// process can create one for a shorter chain. It does not detect an older head of the same chain
/// that was valid earlier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Node that sealed it.
    pub node: Arc<str>,
    /// Sequence of the sealed record.
    pub sequence: u64,
    /// Its hash.
    pub hash: [u8; 32],
    /// The claim that the seal makes.
    pub claim: Claim,
    /// HMAC over the other fields.
    pub seal: [u8; 32],
}

/// The claim that a seal makes about a place of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// A record was written there; nothing about the end of the chain.
    Record {
        /// Outbox entry that the record was made from.
        entry: [u8; 16],
    },
    /// The chain reached this place, and its node was running.
    Open {
        /// Time of the common clock of the store; the epoch if there is only one node, and for an
        /// imported chain that was left open.
        at: Timestamp,
    },
    /// The chain ends here: its node has closed it, or it was imported.
    Closed,
}

impl Claim {
    /// Returns true if the claim is one of a head.
    pub const fn is_head(self) -> bool {
        !matches!(self, Self::Record { .. })
    }

    fn bytes(self) -> Vec<u8> {
        match self {
            Self::Record { entry } => [b"record".as_slice(), &entry].concat(),
            Self::Open { at } => [b"open".as_slice(), &at.millis().to_be_bytes()].concat(),
            Self::Closed => b"closed".to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ChainKey {
        ChainKey::new([7; 32])
    }

    /// O01: a key does not print itself.
    #[test]
    fn a_key_prints_its_name_only() {
        assert_eq!(format!("{:?}", key()), "ChainKey");
    }

    /// AZ3: what the database holds for each record is not what it needs for a head, and an open
    /// head is no closed one.
    #[test]
    fn a_seal_of_one_kind_passes_for_no_other() {
        let at = Timestamp::from_millis(1_790_000_000_123);
        let claims = [
            Claim::Record { entry: [0; 16] },
            Claim::Record { entry: [1; 16] },
            Claim::Open { at },
            Claim::Open { at: Timestamp::EPOCH },
            Claim::Closed,
        ];
        for claim in claims {
            let head = key().seal(&"node".into(), 7, [3; 32], claim);
            assert!(key().check(&head), "{claim:?}");
            assert!(!ChainKey::new([8; 32]).check(&head), "{claim:?}");
            for other in claims.into_iter().filter(|other| *other != claim) {
                assert!(
                    !key().check(&Head { claim: other, ..head.clone() }),
                    "{claim:?} {other:?}"
                );
            }
            assert!(!key().check(&Head { node: "Node".into(), ..head.clone() }));
            assert!(!key().check(&Head { sequence: 8, ..head.clone() }));
            assert!(!key().check(&Head { hash: [4; 32], ..head }));
        }
    }

    /// AZ3, AZ4: the end of a chain in an export has a seal of its own, which is no head's.
    #[test]
    fn an_exported_end_has_a_seal_of_its_own() {
        let seal = key().seal_exported("node", 7, &[3; 32], true);
        assert!(key().check_exported("node", 7, &[3; 32], true, &seal));
        assert!(!ChainKey::new([8; 32]).check_exported("node", 7, &[3; 32], true, &seal));
        assert!(!key().check_exported("Node", 7, &[3; 32], true, &seal));
        assert!(!key().check_exported("node", 6, &[3; 32], true, &seal));
        assert!(!key().check_exported("node", 7, &[4; 32], true, &seal));
        assert!(!key().check_exported("node", 7, &[3; 32], false, &seal));
        for claim in
            [Claim::Closed, Claim::Open { at: Timestamp::EPOCH }, Claim::Record { entry: [0; 16] }]
        {
            let node = "node".into();
            assert!(
                !key().check(&Head { node, sequence: 7, hash: [3; 32], claim, seal }),
                "{claim:?}"
            );
        }
    }

    /// AZ2: neither parts that run together nor a seal pass for the MAC of an entry.
    #[test]
    fn an_entry_has_one_mac() {
        let tag = key().mac_entry(&[b"ab", b"c"]);
        assert!(key().check_entry(&[b"ab", b"c"], &tag));
        for parts in [[b"a".as_slice(), b"bc"], [b"ab", b"d"], [b"", b"abc"]] {
            assert!(!key().check_entry(&parts, &tag));
        }
        assert!(!key().check_entry(&[b"ab", b"c"], &tag[..31]));
        assert!(!key().check_entry(&[b"ab", b"c"], &[]));
        assert!(!ChainKey::new([8; 32]).check_entry(&[b"ab", b"c"], &tag));
        let sequence = 7_u64.to_be_bytes();
        let parts: [&[u8]; 4] = [b"closed", b"node", &sequence, &[3; 32]];
        assert_ne!(
            key().seal(&"node".into(), 7, [3; 32], Claim::Closed).seal,
            key().mac_entry(&parts)
        );
    }
}
