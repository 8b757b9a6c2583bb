//! Everything that is tested within this process: configuration, the port, every store, and the
//! service from outside, over a real server with real clients.
//!
//! A test that changes the process itself, its log or its panic hook, runs in one of its own:
//! [`support::isolated`].

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod config;
mod service;
mod store;
mod support;
mod transport;
mod vectors;
