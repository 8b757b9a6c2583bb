//! The binary from end to end: a server as an operator starts it, and every command against it.

mod administration;
mod bench;
mod contexts;
mod home;
mod records;
mod recovery;
mod serving;
mod starting;
mod stopping;
mod stores;
mod tail;
mod timeouts;
mod tls;
mod token_cache;
mod tokens;
mod trail;
mod transfer;
mod unread;
