//! THE DOOR: where bytes become calls and answers become bytes. A request is accepted (`listen`),
//! given its circumstances and its deadline (`guard`), and handed to a handler (`grpc`, `http`)
//! that parses it and asks a rule; `status` alone turns an error into a status.

mod credentials;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub mod grpc;
pub mod guard;
pub mod http;
pub mod listen;
pub mod metrics;
pub mod status;
