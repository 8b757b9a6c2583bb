//! The audit trail against a writer of the database who has no master key:
//! nothing that goes unnoticed but what the README says.

mod cuts;
mod false_time;
mod indexes;
mod kept;
mod lists;
pub(crate) mod mongodb;
mod size;
mod verification;
mod windows;
