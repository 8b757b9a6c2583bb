//! What several of the folders beside this one use.

pub(crate) mod database;
pub(crate) mod faulty;
pub(crate) mod isolated;
#[expect(unreachable_pub, reason = "a test binary has no outside")]
pub(crate) mod server;
