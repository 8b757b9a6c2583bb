//! The service from outside: the real server on a port, real clients, a clock that is moved by hand.

#![expect(unreachable_pub, reason = "a test binary has no outside")]
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

mod authentication;
mod endings;
#[path = "../support/faulty.rs"]
#[allow(dead_code, reason = "shared with the store's tests")]
mod faulty;
mod forged;
mod harness;
mod introspection;
mod lab;
mod refresh;
mod revocation;
mod scenes;
mod timing;
mod token;
