//! Obligations of every store: one suite, a lane for each backend and each
//! wrapper.
//!
//! A new backend is one more `lane!`. A case that is missing from the list in `suite/mod.rs` does
//! not compile.

mod alone;
mod bench;
mod chains;
mod copies;
mod damage;
mod directory;
mod fixtures;
mod forged;
mod full;
mod model;
mod moves;
mod outage;
mod scenes;
mod shared;
#[deny(dead_code)]
mod suite;
mod trail;
mod transfer;
mod wrappers;

suite::lane!(embedded, Bench::embedded());
suite::lane!(metered, Bench::metered());
suite::lane!(faulty_and_idle, Bench::faulty());
suite::lane!(
    mongodb,
    Bench::mongodb().await,
    ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"
);
// As the service runs it.
suite::lane!(
    mongodb_metered,
    Bench::mongodb_metered().await,
    ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"
);
