//! The audit trail: the chain of this store, and chains that were imported.

pub(super) mod append;
pub(super) mod chains;
pub(super) mod cuts;
pub(super) mod index;
pub(super) mod keyed;
pub(super) mod names;
pub(super) mod places;
pub(super) mod query;
mod retention;
pub(super) mod rows;
pub(super) mod size;
pub(super) mod trail;
