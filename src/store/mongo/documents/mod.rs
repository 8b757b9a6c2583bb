//! Encoding of documents, one file for each collection.

pub(super) mod audience;
pub(super) mod client;
pub(super) mod family;
pub(super) mod keyset;
pub(super) mod revocation;
