//! Code shared by the folders beside this one.

pub(crate) mod database;
pub(crate) mod process;
pub(crate) mod replica;
pub(crate) mod seed;
