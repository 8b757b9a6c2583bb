//! What every store must do, whatever it is made of: one suite, a lane for each backend and each wrapper.
//!
//! A new backend is one more `lane!`. A case that is missing from the list in `suite/mod.rs` does not compile.

mod bench;
mod faults;
#[path = "../support/faulty.rs"]
mod faulty;
mod fixtures;
mod model;
mod scenes;
#[deny(dead_code)]
mod suite;
mod transfer;
mod wrappers;

suite::lane!(embedded, Bench::embedded());
suite::lane!(metered, Bench::metered());
suite::lane!(faulty_and_idle, Bench::faulty());
