//! The service from outside: the real server on a port, real clients, a clock that is moved by
//! hand.

#![expect(unreachable_pub, reason = "a test binary has no outside")]

mod allowances;
mod audiences;
mod audit;
mod authentication;
mod bench;
mod budgets;
mod clients;
mod endings;
mod faults;
mod forged;
mod free_text;
mod introspection;
mod judged;
mod keys;
mod late_writes;
mod leaks;
mod limits;
mod nodes;
mod offices;
mod proofs;
mod published;
mod recorded;
mod records;
mod refresh;
mod released;
mod revocation;
mod revoke_all;
mod secrets;
mod shared_audiences;
mod staleness;
mod tampered;
mod tenants;
mod timing;
mod token;
