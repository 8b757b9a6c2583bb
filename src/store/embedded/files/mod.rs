//! The files of a data directory.

pub(super) mod directory;
pub(super) mod disk_reserve;
pub(super) mod head_file;
pub(super) mod open;
