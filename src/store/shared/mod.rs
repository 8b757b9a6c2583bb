//! Store that nodes share, behind the traits of every store: MongoDB in a program that was built
//! with the feature `mongodb`, a refusal in one that was not. Code that opens the configured store
//! depends on this module and not on the driver.

#[cfg(not(feature = "mongodb"))]
mod absent;
#[cfg(feature = "mongodb")]
mod present;

#[cfg(not(feature = "mongodb"))]
pub use self::absent::{OpenError, chains, export, import, open};
#[cfg(feature = "mongodb")]
pub use self::present::{OpenError, chains, export, import, open};
