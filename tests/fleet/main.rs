//! A fleet: several servers on one store, callers that do everything at once, a recorder that
//! writes down every call, and a judge that reads what was written and finds every promise that was
//! broken. Each run bounds its own time; `JETON_LONG=1` runs the long forms, `JETON_SEED` runs a
//! case again. Histories are kept under `target/tmp/fleet`, and `JETON_HISTORY=<file>` judges one
//! again.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod embedded;
mod figures;
mod fleet;
mod history;
mod leaks;
mod mongodb;
#[path = "../support/process.rs"]
#[expect(dead_code, reason = "shared with the crash tests, which look at single servers")]
mod process;
mod proofs;
mod recorder;
#[path = "../support/replica/mod.rs"]
#[expect(dead_code, unused_imports, reason = "shared with the tests of the harness itself")]
mod replica;
mod scene;
#[path = "../support/seed.rs"]
mod seed;
mod traffic;
mod verdict;
mod weather;
