//! The binary from end to end: a server as an operator starts it, and every command against it.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests fail by panicking")]

mod administration;
mod house;
mod serving;
mod tls;
mod tokens;
mod transfer;
