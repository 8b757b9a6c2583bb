//! SQLite engine of the store: the writer thread, the reader threads, the schema, errors.

pub(super) mod batch;
pub(super) mod error;
pub(super) mod queue;
pub(super) mod readers;
pub(super) mod schema;
pub(super) mod writer;
