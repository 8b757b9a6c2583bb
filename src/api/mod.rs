//! THE DOOR: the edge between bytes and calls. A request is accepted (`listen`), given its context
//! and its deadline (`guard`), and passed to a handler (`grpc`, `http`) that parses it and calls a
//! rule; `status` alone turns an error into a status.

mod credentials;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub mod grpc;
pub mod guard;
pub mod http;
mod json;
pub mod listen;
pub mod metrics;
pub mod status;
