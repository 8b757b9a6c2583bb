//! SQLite as this store needs it: one thread that writes, a few that read, the schema, errors.

pub(super) mod batch;
pub(super) mod error;
pub(super) mod queue;
pub(super) mod readers;
pub(super) mod schema;
pub(super) mod writer;
