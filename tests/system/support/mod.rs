//! What several of the folders beside this one use.

pub(crate) mod database;
pub(crate) mod process;
pub(crate) mod replica;
pub(crate) mod seed;
