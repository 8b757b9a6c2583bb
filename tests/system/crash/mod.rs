//! The binary under real faults: killed without warning, its disk full or failing, its descriptors
//! used up, told to stop under load. Each test bounds its own time; `JETON_TEST_LONG=1` runs the long
//! forms, `JETON_TEST_SEED` runs a case again.

mod callers;
mod descriptors;
mod full;
mod keys;
mod killed;
mod stop;
mod sync;
mod writers;
