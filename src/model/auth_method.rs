//! Methods by which callers prove who they are.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::id::{Jti, SecretId};

/// Method by which a caller proved itself, with the id of what it proved. The written form is
/// tagged, so that an audit record separates the id of a secret from that of another credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "method", content = "id")]
pub enum AuthMethod {
    /// A client secret, presented in the metadata or the message (RFC 6749 section 2.3.1).
    #[serde(rename = "client_secret")]
    Secret(SecretId),
    /// An access token of the caller's own for this service (RFC 6750).
    #[serde(rename = "access_token")]
    AccessToken(Jti),
}

impl AuthMethod {
    /// Returns the name in a record.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Secret(_) => "client_secret",
            Self::AccessToken(_) => "access_token",
        }
    }

    /// Returns the id of what was proven.
    pub fn id(&self) -> &dyn fmt::Display {
        match self {
            Self::Secret(id) => id,
            Self::AccessToken(jti) => jti,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A record names each method as the contract does, and is unreadable with any other.
    #[test]
    fn a_method_is_written_with_its_name() {
        let jti = Jti::new();
        for method in [AuthMethod::Secret("s1".parse().unwrap()), AuthMethod::AccessToken(jti)] {
            let written = serde_json::to_value(&method).unwrap();
            assert_eq!(written, json!({"method": method.name(), "id": method.id().to_string()}));
            assert_eq!(serde_json::from_value::<AuthMethod>(written).unwrap(), method);
        }
        for forged in [
            json!({"method": "none"}),
            json!({"method": "client_secret"}),
            json!({"method": "access_token", "id": "s1"}),
            json!({"method": "client_secret", "id": jti.to_string()}),
            json!({"id": "s1"}),
            json!("client_secret"),
        ] {
            assert!(serde_json::from_value::<AuthMethod>(forged.clone()).is_err(), "{forged}");
        }
    }
}
