//! Moving everything a store keeps into another, of whatever kind: typed records in one fixed order, a line of JSON each. The
//! same state always makes the same lines, so a second export of an imported store equals the first.
//!
//! Counters stay behind: they are worth nothing once their window has ended.

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::Result;
use crate::model::{Client, ClientId, EpochOf, Event, Family, Keyset, SecretId, Timestamp, revocation::Revocation};

/// The version of the records below. A reader refuses any other.
pub const VERSION: u32 = 1;

/// One record. The order of the variants is the order of an export; within one it is that of their keys.
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
    /// An audit record.
    Record {
        /// From 1, without gaps.
        sequence: u64,
        /// The node that wrote it.
        node: Arc<str>,
        /// What happened.
        event: Event,
        /// 64 hexadecimal digits.
        hash: String,
    },
    /// The last record: without it an export is not whole.
    End {
        /// The last audit record's sequence, 0 if there is none.
        sequence: u64,
        /// Its hash, 64 hexadecimal digits.
        hash: String,
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
    /// Takes in the next items of an export, from its first on; durable when it answers. A record that stands twice or
    /// does not fit the audit chain, and a store that is not empty to begin with, are refused as corrupt. The store does not
    /// open again before an [`Item::End`] has been taken in.
    async fn load(&self, items: Vec<Item>) -> Result<()>;
}

/// A store that can be moved.
pub trait TransferStore: Dump + Load {}

impl<S: Dump + Load> TransferStore for S {}
