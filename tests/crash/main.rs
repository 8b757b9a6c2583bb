//! The binary under real faults: killed without warning, its disk full or failing, its descriptors
//! used up, told to stop under load. Each test bounds its own time; `JETON_LONG=1` runs the long
//! forms, `JETON_SEED` runs a case again.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod callers;
mod descriptors;
mod full;
mod keys;
mod killed;
#[path = "../support/process.rs"]
#[expect(
    dead_code,
    reason = "shared with the tests of a fleet, which starts several servers on one store"
)]
mod process;
#[path = "../support/seed.rs"]
#[expect(dead_code, reason = "shared with the tests of a fleet, which write the seed down")]
mod seed;
mod stop;
mod sync;
mod writers;
