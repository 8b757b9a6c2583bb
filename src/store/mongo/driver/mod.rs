//! MongoDB driver layer: bounded connection, errors, documents, schema, queries and change streams.

pub(super) mod change_stream;
pub(super) mod codec;
pub(super) mod connection;
pub(super) mod error;
pub(super) mod group_commands;
pub(super) mod group_commit;
pub(super) mod handshake;
pub(super) mod query;
pub(super) mod schema;
