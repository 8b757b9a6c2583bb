//! MECHANISM: keys, secrets, sealing, randomness. Independent of OAuth, stores and the wire.

pub mod chain;
pub mod export;
pub mod jwk;
pub mod jws;
mod kdf;
pub mod keys;
pub mod keyset_mac;
pub mod lanes;
pub mod lifecycle;
pub mod master;
pub mod page_tokens;
pub mod passwords;
mod present;
pub mod random;
pub mod records;
pub mod refresh_token;
pub mod remembered;
pub mod root;
pub mod seal;
pub mod secrets;
pub mod signing_keys;
pub mod verifying_keys;
