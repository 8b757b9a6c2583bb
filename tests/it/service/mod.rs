//! The service from outside: the real server on a port, real clients, a clock that is moved by
//! hand.

#![expect(unreachable_pub, reason = "a test binary has no outside")]

mod admin_rights;
mod allowances;
mod audience_release;
mod audiences;
mod audit;
mod audit_filters;
mod authentication;
mod budgets;
mod clients;
mod clock;
mod cut_trail;
mod ends_together;
mod faults;
mod foreign_records;
mod forged;
mod free_text;
mod introspection;
mod keys;
mod large_pages;
mod last_administrator;
mod late_writes;
mod leaks;
mod limits;
mod nodes;
mod proofs;
mod published;
mod refresh;
mod refusals;
mod revocation;
mod revoke_all;
mod rules;
mod secret_costs;
mod secrets;
mod shared_audiences;
mod staleness;
mod tail;
mod tampered;
mod tenants;
mod timing;
mod token;
mod verification;
