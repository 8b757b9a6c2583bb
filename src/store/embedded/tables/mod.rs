//! Tables that the store's verbs read and write, one file each.

pub(super) mod audiences;
pub(super) mod clients;
pub(super) mod counters;
pub(super) mod deleted;
pub(super) mod families;
pub(super) mod keys;
pub(super) mod proof;
pub(super) mod revocations;
pub(super) mod tenanted;
