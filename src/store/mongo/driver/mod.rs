//! MongoDB as this store needs it: a bounded connection, its errors, documents, the schema, change
//! streams.

pub(super) mod change_stream;
pub(super) mod codec;
pub(super) mod connection;
pub(super) mod error;
pub(super) mod query;
pub(super) mod schema;
