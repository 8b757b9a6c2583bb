//! A fleet: several servers on one store, callers that do everything at once, a recorder that
//! writes down every call, and a judge that reads what was written and finds every promise that was
//! broken. Each run bounds its own time; `JETON_TEST_LONG=1` runs the long forms, `JETON_TEST_SEED` runs a
//! case again. Histories are kept under `target/tmp/fleet`, and `JETON_TEST_HISTORY=<file>` judges one
//! again.

mod embedded;
mod figures;
mod history;
mod leaks;
mod machine_load;
mod mongodb;
mod nodes;
mod proofs;
mod recorder;
mod scene;
mod traffic;
mod verdict;
