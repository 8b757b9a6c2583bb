//! Checks that the database holds what was acknowledged.

pub(super) mod check;
pub(super) mod checksum;
