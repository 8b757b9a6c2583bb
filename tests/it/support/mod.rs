//! Code shared by the folders beside this one.

pub(crate) mod database;
pub(crate) mod faulty;
pub(crate) mod isolated;
#[expect(unreachable_pub, reason = "a test binary has no outside")]
pub(crate) mod server;
pub(crate) mod until;
