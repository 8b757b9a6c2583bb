//! What several of the folders beside this one use.

pub(crate) mod database;
pub(crate) mod faulty;
pub(crate) mod isolated;
