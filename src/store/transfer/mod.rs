//! Export and import: the whole content of a store, as typed records in one fixed order, a line of
//! JSON each. The same state always makes the same lines, so a second export of an imported store
//! equals the first.
//!
//! Counters are not exported: they are worth nothing once their window has ended.

mod archive;
mod verify;

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use self::{
    archive::{ArchiveCheck, ArchiveLine, ArchiveWriter, ArchivedPart},
    verify::{Counts, Verification},
};
use super::Result;
pub use crate::model::digits::{hex, unhex};
use crate::{
    crypto::chain::{ChainKey, ChainPlace, CutMark, Head, Walk},
    model::{
        AudienceRecord, Client, ClientId, EpochOf, Event, Family, Keyset, SecretId, TenantId,
        Timestamp, revocation::Revocation,
    },
};

/// Version of the records below. A store imports no other.
pub const VERSION: u32 = 1;

/// Record of an export. The order of the variants is the order of an export; within one it is that
/// of their keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ExportRecord {
    /// First record: the version of the others.
    Export {
        /// [`VERSION`].
        version: u32,
    },
    /// Client without use counts.
    Client(Client),
    /// Uses of one secret.
    SecretUse {
        /// Client of the secret.
        client: ClientId,
        /// Id of the secret.
        secret: SecretId,
        /// Time of the last use.
        last_used_at: Timestamp,
        /// Number of uses.
        use_count: u64,
    },
    /// Tenant of a deleted client.
    DeletedClient {
        /// Id of the client.
        client: ClientId,
        /// Tenant for which the id is reserved.
        tenant: TenantId,
    },
    /// Audience and its tenant.
    Audience(AudienceRecord),
    /// Refresh family.
    Family(Family),
    /// Revocation of a token or family.
    Revocation(Revocation),
    /// Epoch above 0.
    Epoch {
        /// Tenant, client or subject of the epoch.
        of: EpochOf,
        /// Value of the epoch.
        value: u64,
    },
    /// Keyset, sealed.
    Keyset(Keyset),
    /// Beginning of an audit chain that was cut: the last record that was removed.
    ChainStart {
        /// Name of the chain.
        chain: Arc<str>,
        /// Sequence of the record.
        sequence: u64,
        /// Hash of the record, 64 hexadecimal digits.
        hash: String,
        /// Time of the record.
        at: Timestamp,
        /// Seal of the mark, 64 hexadecimal digits. `None` if the exporter had no key.
        #[serde(skip_serializing_if = "Option::is_none")]
        seal: Option<String>,
    },
    /// Audit record. Chains follow each other in byte order of their names.
    Record {
        /// Chain of the record, by the name of the node that began it.
        chain: Arc<str>,
        /// Sequence in the chain, from 1 without gaps.
        sequence: u64,
        /// Node that wrote it.
        node: Arc<str>,
        /// Event of the record.
        event: Event,
        /// Hash as 64 hexadecimal digits.
        hash: String,
    },
    /// End of an audit chain, after its last record.
    ChainEnd {
        /// Name of the chain.
        chain: Arc<str>,
        /// Sequence of the last record.
        sequence: u64,
        /// Hash of the last record, 64 hexadecimal digits.
        hash: String,
        /// True if its node had stopped without closing it: then its newest records may be missing,
        /// also after an import.
        open: bool,
        /// Seal of an exporter that had the store's key and verified the chain, 64 hexadecimal
        /// digits. `None` if it had no key.
        #[serde(skip_serializing_if = "Option::is_none")]
        seal: Option<String>,
    },
    /// Last record: without it an export is incomplete.
    End {
        /// Number of audit chains.
        chains: u64,
    },
}

/// Store, or view of a store, that can be exported.
#[async_trait]
pub trait ExportSource: Send + Sync {
    /// Returns up to `limit` records, at least 1, in order, those after `after`; none after
    /// [`ExportRecord::End`].
    async fn export_page(
        &self,
        after: Option<&ExportRecord>,
        limit: usize,
    ) -> Result<Vec<ExportRecord>>;
}

/// Store that can be imported into, while it is empty.
#[async_trait]
pub trait ImportTarget: Send + Sync {
    /// Imports the next records of an export, from its first on; durable when it returns. These are
    /// refused as corrupt: a duplicate record, one that does not fit its audit chain, a chain that
    /// does not begin with a record of the node it is named after or has the wrong seal, and a
    /// store that is not empty at the first record. The store does not open again before an
    /// [`ExportRecord::End`] has been imported. The node of this store continues the chain that has
    /// its name.
    async fn load(&self, items: Vec<ExportRecord>) -> Result<()>;
}

/// Store that can be exported and imported.
pub trait TransferStore: ExportSource + ImportTarget {}

impl<S: ExportSource + ImportTarget> TransferStore for S {}

/// End of a chain in an export.
pub(super) struct Ending<'a> {
    pub(super) chain: &'a Arc<str>,
    pub(super) sequence: u64,
    pub(super) hash: &'a str,
    pub(super) open: bool,
    pub(super) seal: Option<&'a str>,
}

/// Beginning of a chain in an export.
pub(super) struct Beginning<'a> {
    pub(super) chain: &'a Arc<str>,
    pub(super) sequence: u64,
    pub(super) hash: &'a str,
    pub(super) at: Timestamp,
    pub(super) seal: Option<&'a str>,
}

/// Progress of an import of audit chains. They are complete, one after the other, in the order of
/// their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chains {
    /// Chain in progress, and its last record so far.
    open: Option<(Arc<str>, u64, [u8; 32])>,
    /// Place at which the chain in progress was cut.
    cut: Option<ChainPlace>,
    /// Chain that was closed last.
    last: Option<Arc<str>>,
    /// Number of closed chains.
    closed: u64,
}

impl Chains {
    /// Verifies that a record follows the one before it in its chain, or begins a chain; returns
    /// its hash.
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
            Some((open, sequence, hash)) if open == chain => Walk::after(*sequence, *hash),
            Some(_) | None => {
                self.check_first(chain)?;
                Walk::from_start()
            }
        };
        if sequence == 1 && *node != **chain {
            return Err(refused(&"its first record is of a node of another name"));
        }
        walk.step(sequence, node, event, &hash).map_err(|flaw| refused(&flaw))?;
        self.open = Some((chain.clone(), sequence, hash));
        Ok(hash)
    }

    /// Checks that a chain may begin here.
    fn check_first(&self, chain: &Arc<str>) -> Result<(), String> {
        let refused = |problem: &str| Err(format!("audit chain {chain}: {problem}"));
        if self.open.is_some() {
            return refused("it begins before the previous chain ends");
        }
        if self.last.as_ref().is_some_and(|last| last >= chain) {
            return refused("chains must be unique and in the order of their names");
        }
        if chain.is_empty() { refused("it has no name") } else { Ok(()) }
    }

    /// Begins a chain that was cut, if the mark, where it has a seal, is of `key`; returns the
    /// place of the cut.
    pub(super) fn begin(
        &mut self,
        beginning: &Beginning<'_>,
        key: Option<&ChainKey>,
    ) -> Result<ChainPlace, String> {
        let Beginning { chain, sequence, hash, at, seal } = *beginning;
        self.check_first(chain)?;
        let refused = |problem: &str| format!("audit chain {chain}: {problem}");
        let hash = unhex(hash).ok_or_else(|| refused("the hash of its start is malformed"))?;
        let place = ChainPlace { sequence, hash, at };
        let right = |key: &ChainKey, seal| {
            unhex(seal).is_some_and(|seal| key.check_cut(chain, &CutMark { place, seal }))
        };
        if sequence == 0 || key.zip(seal).is_some_and(|(key, seal)| !right(key, seal)) {
            return Err(refused("the seal of its start is invalid"));
        }
        (self.open, self.cut) = (Some((chain.clone(), sequence, hash)), Some(place));
        Ok(place)
    }

    /// Returns the place at which the chain in progress was cut.
    pub(super) const fn take_cut(&mut self) -> Option<ChainPlace> {
        self.cut.take()
    }

    /// Closes the chain in progress if this is its end, and its seal, if it has one, is of `key`;
    /// returns the last hash.
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

    /// Verifies that this number of chains was imported completely.
    pub(super) fn finish(&self, chains: u64) -> Result<(), String> {
        let whole = self.open.is_none() && self.closed == chains;
        whole.then_some(()).ok_or_else(|| "an audit chain is missing or has no end".to_owned())
    }
}

/// Builds the beginning of a chain that was cut for an export.
pub(super) fn start(
    chain: &Arc<str>,
    mark: &CutMark,
    key: Option<&ChainKey>,
) -> Result<ExportRecord, String> {
    if key.is_some_and(|key| !key.check_cut(chain, mark)) {
        return Err(format!("audit chain {chain}: the mark of the cut is invalid"));
    }
    let ChainPlace { sequence, hash, at } = mark.place;
    let seal = key.map(|_| hex(&mark.seal));
    Ok(ExportRecord::ChainStart { chain: chain.clone(), sequence, hash: hex(&hash), at, seal })
}

/// Builds the end of a chain for an export, if its last record is the one that the store's key
/// sealed; `open` if its node stopped without closing it.
pub(super) fn end(
    chain: &Arc<str>,
    head: &Head,
    open: bool,
    key: Option<&ChainKey>,
) -> Result<ExportRecord, String> {
    if key.is_some_and(|key| !key.check(head)) {
        return Err(format!("audit chain {chain}: the seal of its end is invalid"));
    }
    let Head { sequence, hash, .. } = head;
    let seal = key.map(|key| hex(&key.seal_exported(chain, *sequence, hash, open)));
    Ok(ExportRecord::ChainEnd {
        chain: chain.clone(),
        sequence: *sequence,
        hash: hex(hash),
        open,
        seal,
    })
}
