//! jeton: a token service for machines, over gRPC.
//!
//! The rooms, and who may enter which (`tests/house` holds this table against the code):
//!
//! ```text
//! main -> cli -> server -> api -> services -> admin -> oauth -> {limit, audit, standing}
//!      -> {store, crypto} -> model
//! ```
//!
//! `config`, `clock`, `error`, `metrics` and `telemetry` are open to all rooms above `model`. A
//! request takes three hops: `api` parses it, a rule (`oauth`, `admin`) decides, a record (`store`) is
//! written. `tonic`, `prost` and `axum` stay in `api`, `server` and `cli`; `rusqlite` in
//! `store::embedded`, `mongodb` in `store::mongo`; the system clock in `clock`.

pub mod admin;
pub mod api;
pub mod audit;
pub mod cli;
pub mod clock;
pub mod config;
pub mod crypto;
pub mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod limit;
pub mod metrics;
pub mod model;
pub mod oauth;
pub mod server;
pub mod services;
pub mod standing;
pub mod store;
pub mod telemetry;

/// The contract, generated from `proto/`.
#[expect(clippy::all, reason = "generated")]
pub mod proto {
    /// `jeton.token.v1`
    pub mod token {
        tonic::include_proto!("jeton.token.v1");
    }
    /// `jeton.admin.v1`
    pub mod admin {
        tonic::include_proto!("jeton.admin.v1");
    }
    /// The encoded descriptor set, with comments, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
