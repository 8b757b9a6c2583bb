//! Obligations of every store: one suite, a lane for each backend and each
//! wrapper.
//!
//! A new backend is one more `lane!`. A case that is missing from the list in `suite/mod.rs` does
//! not compile.

mod backend;
mod chains;
mod damage;
mod directory;
mod fixtures;
mod forged;
mod full;
mod master_keys;
mod migrate;
mod model;
mod old_copies;
mod outage;
mod prepared;
mod shared;
mod standalone;
#[deny(dead_code)]
mod suite;
mod trail;
mod transfer;
mod wrappers;

suite::lane!(embedded, StoreCase::embedded());
suite::lane!(metered, StoreCase::metered());
suite::lane!(faulty_and_idle, StoreCase::faulty());
suite::lane!(
    mongodb,
    StoreCase::mongodb().await,
    ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"
);
// As the service runs it.
suite::lane!(
    mongodb_metered,
    StoreCase::mongodb_metered().await,
    ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"
);
