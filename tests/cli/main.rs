//! The binary from end to end: a server as an operator starts it, and every command against it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod administration;
mod house;
mod records;
#[path = "../support/replica/mod.rs"]
#[expect(dead_code, unused_imports, reason = "shared with other tests, which use the rest")]
mod replica;
mod serving;
mod stores;
mod tls;
mod tokens;
mod transfer;
