//! What somebody who can write to the database, and has no master key, can make of the audit trail:
//! nothing that goes unnoticed but what the README says.

mod kept;
mod lists;
pub(crate) mod mongodb;
