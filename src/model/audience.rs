//! Resource indicators (RFC 8707): who a token is for.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    id::{ClientId, Invalid, TenantId},
    mac::Mac,
    time::Timestamp,
};

/// An absolute URI without fragment, 3 to 256 visible ASCII characters. Compared byte by byte: no case folding, no default
/// port, no trailing slash removed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Audience(Arc<str>);

impl Audience {
    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Audience {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        const MESSAGE: Invalid = Invalid("a resource must be an absolute URI without fragment, at most 256 characters");
        let (scheme, rest) = text.split_once(':').ok_or(MESSAGE)?;
        let scheme_valid = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
        let rest_valid = !rest.is_empty() && rest != "//" && rest.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
        if text.len() > 256 || !scheme_valid || !rest_valid {
            return Err(MESSAGE);
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for Audience {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl fmt::Display for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Audience({})", self.0)
    }
}

/// Record of the tenant that an audience belongs to. Without one an audience belongs to no tenant, and the first to list it gets it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AudienceRecord {
    /// The audience.
    pub audience: Audience,
    /// The tenant that may list it.
    pub tenant: TenantId,
    /// The administrator that claimed or assigned it.
    pub claimed_by: ClientId,
    /// When it was claimed or assigned.
    pub created_at: Timestamp,
    /// True while the operator releases it: the tenant has it still, and may take it back by listing it.
    pub releasing: bool,
    /// Counts the writes, from 1.
    pub revision: u64,
    /// Proof that this service wrote the record, made and checked by `store::authentic`.
    #[serde(default)]
    pub mac: Mac,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_uris_without_fragment_are_audiences() {
        for good in ["https://orders", "https://a.example/x?y=1", "urn:svc:orders", "spiffe://td/ns/a"] {
            assert_eq!(good.parse::<Audience>().unwrap().as_str(), good);
        }
        let long = format!("https://{}", "a".repeat(256));
        for bad in ["", "orders", "/x", "https:", "https://", "https://a#b", "https://a b", ":x", "1a:x", long.as_str()] {
            assert!(bad.parse::<Audience>().is_err(), "{bad:?}");
        }
    }
}
