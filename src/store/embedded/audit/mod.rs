//! The audit trail: the chain of this store, and chains that were imported.

pub(super) mod imported_chains;
pub(super) mod own_chain;
pub(super) mod query;
pub(super) mod rows;
