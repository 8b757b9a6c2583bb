//! Accounts as limits and remembered verifications know them.

use std::hash::Hash;

use super::id::ClientId;

/// Identifier of an account, as a key of what is counted for each account by itself. Ids of
/// different kinds may be spelled alike and are never the same account.
pub trait AccountKey: Clone + Eq + Hash + Send + Sync {
    /// Prefix of the kind, where accounts of several kinds share a name space.
    const KIND: &'static str;

    /// The id itself.
    fn as_str(&self) -> &str;
}

impl AccountKey for ClientId {
    const KIND: &'static str = "client";

    fn as_str(&self) -> &str {
        self.as_str()
    }
}

/// An account by the name that a caller gives, before anything is proven: there may be none of that
/// name, or it may be no id at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimedAccount<'n> {
    kind: &'static str,
    name: &'n str,
}

impl<'n> ClaimedAccount<'n> {
    /// The client of this name.
    pub const fn client(name: &'n str) -> Self {
        Self { kind: ClientId::KIND, name }
    }

    /// Prefix of its kind, see [`AccountKey::KIND`].
    pub const fn kind(self) -> &'static str {
        self.kind
    }

    /// The name as it was given.
    pub const fn name(self) -> &'n str {
        self.name
    }
}
