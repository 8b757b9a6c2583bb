//! MongoDB driver layer: bounded connection, errors, documents, schema, queries and change streams.

pub(super) mod change_stream;
pub(super) mod codec;
pub(super) mod connection;
pub(super) mod error;
pub(super) mod handshake;
pub(super) mod query;
pub(super) mod schema;
