//! Moving everything a store keeps into another, of whatever kind: typed records in one fixed
//! order, a line of JSON each. The same state always makes the same lines, so a second export of an
//! imported store equals the first.
//!
//! Counters stay behind: they are worth nothing once their window has ended.

mod verify;

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use self::verify::{Counts, Verification};
use super::Result;
pub use crate::model::digits::{hex, unhex};
use crate::{
    crypto::chain::{ChainKey, Head, Walk},
    model::{
        AudienceRecord, Client, ClientId, EpochOf, Event, Family, Keyset, SecretId, TenantId,
        Timestamp, revocation::Revocation,
    },
};

/// The version of the records below. A store takes in no other.
pub const VERSION: u32 = 2;

/// One record. The order of the variants is the order of an export; within one it is that of their
/// keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Item {
    /// The first record: what the others are written in.
    Export {
        /// [`VERSION`].
        version: u32,
    },
    /// A client, without the uses of its secrets.
    Client(Client),
    /// The uses of one secret.
    SecretUse {
        /// Whose.
        client: ClientId,
        /// Which.
        secret: SecretId,
        /// When last.
        last_used_at: Timestamp,
        /// How often.
        use_count: u64,
    },
    /// Whose the id of a client was that was deleted.
    DeletedClient {
        /// The id.
        client: ClientId,
        /// The tenant it stays with.
        tenant: TenantId,
    },
    /// The tenant that an audience belongs to.
    Audience(AudienceRecord),
    /// A refresh family.
    Family(Family),
    /// A token or family that was ended.
    Revocation(Revocation),
    /// An epoch above 0.
    Epoch {
        /// Whose.
        of: EpochOf,
        /// Where it stands.
        value: u64,
    },
    /// The keyset, sealed.
    Keyset(Keyset),
    /// An audit record. Chains come one after the other, in the order of the bytes of their names.
    Record {
        /// The chain it stands in, by the name of the node that began it.
        chain: Arc<str>,
        /// From 1, without gaps.
        sequence: u64,
        /// The node that wrote it.
        node: Arc<str>,
        /// What happened.
        event: Event,
        /// 64 hexadecimal digits.
        hash: String,
    },
    /// The end of an audit chain, behind its last record.
    ChainEnd {
        /// The chain.
        chain: Arc<str>,
        /// The last record's sequence.
        sequence: u64,
        /// Its hash, 64 hexadecimal digits.
        hash: String,
        /// True if its node had stopped without closing it: then its newest records may be missing,
        /// also when it is imported.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        open: bool,
        /// Shows that an exporter with the store's key found the chain whole, 64 hexadecimal
        /// digits. `None` where it had no key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seal: Option<String>,
    },
    /// The last record: without it an export is not whole.
    End {
        /// How many audit chains there are.
        chains: u64,
    },
}

/// What can be exported.
#[async_trait]
pub trait Dump: Send + Sync {
    /// Up to `limit` items, at least 1, in order, those after `after`; none after [`Item::End`].
    async fn dump(&self, after: Option<&Item>, limit: usize) -> Result<Vec<Item>>;
}

/// What can be imported into, while it is empty.
#[async_trait]
pub trait Load: Send + Sync {
    /// Takes in the next items of an export, from its first on; durable when it answers. A record
    /// that stands twice or does not fit its audit chain, a chain that does not begin with a record
    /// of the node it is named after or has the wrong seal, and a store that is not empty to begin
    /// with, are refused as corrupt. The store does not open again before an [`Item::End`] has been
    /// taken in. A chain that has the name of this store's node is the one that the node goes on
    /// with.
    async fn load(&self, items: Vec<Item>) -> Result<()>;
}

/// A store that can be moved.
pub trait TransferStore: Dump + Load {}

impl<S: Dump + Load> TransferStore for S {}

/// The end of a chain, as an export says.
pub(super) struct Ending<'a> {
    pub(super) chain: &'a Arc<str>,
    pub(super) sequence: u64,
    pub(super) hash: &'a str,
    pub(super) open: bool,
    pub(super) seal: Option<&'a str>,
}

/// How far an import has come with the audit chains. They come whole, one after the other, in the
/// order of their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chains {
    /// The chain that is being taken in and its last record so far.
    open: Option<(Arc<str>, u64, [u8; 32])>,
    /// The chain that was closed last.
    last: Option<Arc<str>>,
    /// How many were closed.
    closed: u64,
}

impl Chains {
    /// Holds a record against the one before it in its chain, or begins a chain with it; its hash.
    pub(super) fn step(
        &mut self,
        chain: &Arc<str>,
        sequence: u64,
        node: &str,
        event: &[u8],
        hash: &str,
    ) -> Result<[u8; 32], String> {
        let refused = |problem: &dyn std::fmt::Display| format!("audit chain {chain}: {problem}");
        let hash = unhex(hash).ok_or_else(|| format!("audit record {sequence}: malformed hash"))?;
        let mut walk = match &self.open {
            Some((open, _, _)) if open != chain => {
                return Err(refused(&"it begins before the previous chain ends"));
            }
            Some((_, sequence, hash)) => Walk::after(*sequence, *hash),
            None if self.last.as_ref().is_some_and(|last| last >= chain) => {
                return Err(refused(&"chains must be unique and in the order of their names"));
            }
            None if chain.is_empty() => return Err(refused(&"it has no name")),
            None if sequence == 1 && *node != **chain => {
                return Err(refused(&"its first record is of a node of another name"));
            }
            None => Walk::from_start(),
        };
        walk.step(sequence, node, event, &hash).map_err(|flaw| refused(&flaw))?;
        self.open = Some((chain.clone(), sequence, hash));
        Ok(hash)
    }

    /// Closes the chain that is being taken in, if this is its end, and its seal, where it has one,
    /// is of `key`; the last hash.
    pub(super) fn close(
        &mut self,
        ending: &Ending<'_>,
        key: Option<&ChainKey>,
    ) -> Result<[u8; 32], String> {
        let Ending { chain, sequence, hash, open: left_open, seal } = *ending;
        match self.open.take().zip(unhex(hash)) {
            Some((open, hash)) if open == (chain.clone(), sequence, hash) => {
                let right = |key: &ChainKey, seal| {
                    unhex(seal).is_some_and(|seal| {
                        key.check_exported(chain, sequence, &hash, left_open, &seal)
                    })
                };
                if key.zip(seal).is_some_and(|(key, seal)| !right(key, seal)) {
                    return Err(format!("audit chain {chain}: the seal of its end is invalid"));
                }
                self.closed = self.closed.saturating_add(1);
                self.last = Some(chain.clone());
                Ok(hash)
            }
            Some(_) | None => {
                Err(format!("audit chain {chain}: the end does not match the last record"))
            }
        }
    }

    /// Whether all of so many chains were taken in.
    pub(super) fn finish(&self, chains: u64) -> Result<(), String> {
        let whole = self.open.is_none() && self.closed == chains;
        whole.then_some(()).ok_or_else(|| "an audit chain is missing or has no end".to_owned())
    }
}

/// The end of a chain for an export, if its last record is where the store's key sealed it; `open`
/// where its node stopped without closing it.
pub(super) fn end(
    chain: &Arc<str>,
    head: &Head,
    open: bool,
    key: Option<&ChainKey>,
) -> Result<Item, String> {
    if key.is_some_and(|key| !key.check(head)) {
        return Err(format!("audit chain {chain}: the seal of its end is invalid"));
    }
    let Head { sequence, hash, .. } = head;
    let seal = key.map(|key| hex(&key.seal_exported(chain, *sequence, hash, open)));
    Ok(Item::ChainEnd { chain: chain.clone(), sequence: *sequence, hash: hex(hash), open, seal })
}
