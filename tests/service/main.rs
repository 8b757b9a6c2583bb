//! The service from outside: the real server on a port, real clients, a clock that is moved by hand.

#![expect(unreachable_pub, reason = "a test binary has no outside")]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod audit;
mod clients;
mod endings;
mod faults;
#[expect(dead_code, reason = "shared with the tests of the store, which delay calls too")]
#[path = "../support/faulty.rs"]
mod faulty;
mod harness;
mod keys;
mod leaks;
mod limits;
mod office;
mod offices;
mod published;
mod revoke_all;
mod secrets;
mod tenants;
mod token;
