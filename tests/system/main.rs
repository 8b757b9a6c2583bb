//! The program in processes of its own, as operators run it: its command line, its behaviour under
//! faults of the machine, and fleets of it on a store that breaks.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod cli;
mod crash;
mod fleet;
mod replica;
mod support;
