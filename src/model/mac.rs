//! MAC of a stored record. `crypto::records` makes and checks it.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

/// HMAC-SHA-256 over a record, in base64url if it is stored. The default belongs to a record
/// without a MAC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Mac(pub [u8; 32]);

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        URL_SAFE_NO_PAD.encode(mac.0)
    }
}

/// Reads a text that is no code as one that fits no record, so that the record itself can still be
/// named.
impl From<String> for Mac {
    fn from(text: String) -> Self {
        let mut mac = [0; 32];
        match URL_SAFE_NO_PAD.decode_slice(text, &mut mac) {
            Ok(32) => Self(mac),
            Ok(_) | Err(_) => Self::default(),
        }
    }
}
