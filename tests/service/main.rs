#![expect(unreachable_pub, reason = "a test binary has no outside")]
//! The service from outside: the real server on a port, real clients, a clock that is moved by hand.

mod harness;
mod token;
