//! The audit trail: the chain of this store, and chains that were imported.

pub(super) mod chains;
pub(super) mod query;
pub(super) mod rows;
pub(super) mod trail;
