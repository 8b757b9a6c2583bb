//! The collections that verbs of the store read and write, one file each.

pub(super) mod audiences;
pub(super) mod clients;
pub(super) mod coalesce;
pub(super) mod counters;
pub(super) mod families;
pub(super) mod family_document;
pub(super) mod keys;
pub(super) mod proof;
pub(super) mod revocation_document;
pub(super) mod revocations;
pub(super) mod rotation;
