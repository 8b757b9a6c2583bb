//! Identifiers: bytes compared as bytes, no folding, no trimming.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A text that is not what its type demands; the message is a public sentence without the text
/// itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub &'static str);

/// Declares a validated text that clones for the price of a counter.
macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $max:literal, $valid:expr, $message:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                let valid: fn(u8) -> bool = $valid;
                if text.is_empty() || text.len() > $max || !text.bytes().all(valid) {
                    return Err(Invalid($message));
                }
                Ok(Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = Invalid;

            fn try_from(text: String) -> Result<Self, Invalid> {
                text.parse()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

const fn unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'~' | b'-')
}

text!(
    /// A client's id: 1 to 128 of `[A-Za-z0-9._~-]`.
    ClientId, 128, unreserved, "client_id must be 1 to 128 of [A-Za-z0-9._~-]"
);
text!(
    /// A tenant: 1 to 64 of `[a-z0-9-]`.
    TenantId, 64, |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-',
    "tenant must be 1 to 64 of [a-z0-9-]"
);
text!(
    /// Id of a client's secret, unique within the client: 1 to 32 of `[A-Za-z0-9]`.
    SecretId, 32, |b| b.is_ascii_alphanumeric(), "secret_id must be 1 to 32 of [A-Za-z0-9]"
);
text!(
    /// Id of a signing key: 1 to 64 of `[A-Za-z0-9_-]`.
    Kid, 64, |b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'), "kid must be 1 to 64 of \
        [A-Za-z0-9_-]"
);
text!(
    /// A role copied into tokens: 1 to 128 of `[A-Za-z0-9._:/-]`.
    Role, 128, |b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'/' | b'-'),
    "a role must be 1 to 128 of [A-Za-z0-9._:/-]"
);
text!(
    /// Name of a rate plan in the configuration: 1 to 32 of `[a-z0-9_-]`.
    PlanName, 32, |b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'),
    "a rate plan must be 1 to 32 of [a-z0-9_-]"
);
text!(
    /// The `sub` of a token, 1 to 200 visible ASCII characters. Prefixed by what it names
    /// (`client:`), so that no client can be taken for a person of the same name, nor the other way
    /// round.
    Subject, 200, |b| b.is_ascii_graphic(), "a subject must be 1 to 200 visible ASCII characters"
);

impl Subject {
    /// The subject of a token that a client was issued on its own behalf.
    pub fn of_client(id: &ClientId) -> Self {
        Self(format!("client:{id}").into())
    }

    /// The client whose own subject this is.
    pub fn client(&self) -> Option<ClientId> {
        self.as_str().strip_prefix("client:")?.parse().ok()
    }
}

impl TenantId {
    /// The operator's tenant: its administrators act in every tenant, all others in their own.
    pub fn operator() -> Self {
        Self("default".into())
    }

    /// Returns true if this is the operator's tenant.
    pub fn is_operator(&self) -> bool {
        self.as_str() == "default"
    }
}

impl PlanName {
    /// The plan of a client that names none.
    pub fn standard() -> Self {
        Self("standard".into())
    }
}

/// Declares an id that is a time-ordered UUID (version 7), so that rows arrive in key order.
macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $message:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new one, never given before.
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = Invalid;

            /// Only the canonical form: lower case, hyphenated.
            fn from_str(text: &str) -> Result<Self, Invalid> {
                let id = Uuid::try_parse(text).map_err(|_| Invalid($message))?;
                if id.as_hyphenated().to_string() == text { Ok(Self(id)) } else { Err(Invalid($message)) }
            }
        }
    };
}

uuid_id!(
    /// Id of a refresh family: the `fam` claim.
    FamilyId, "a family must be a lower case, hyphenated UUID"
);
uuid_id!(
    /// Id of an access token: the `jti` claim (RFC 7519 section 4.1.7).
    Jti, "a jti must be a lower case, hyphenated UUID"
);

#[cfg(test)]
mod tests {
    use super::*;

    /// N02, N01: ids are plain bytes of a small alphabet; homoglyphs, zero-width, operators and NUL
    /// are not among them.
    #[test]
    fn client_ids_admit_only_the_unreserved_characters() {
        for good in ["a", "A.b_c~d-9", &"x".repeat(128)] {
            assert_eq!(good.parse::<ClientId>().unwrap().as_str(), good);
        }
        let long = "x".repeat(129);
        for bad in [
            "",
            long.as_str(),
            "а",
            "a\u{200b}",
            "a b",
            "a\0b",
            "{\"$gt\":\"\"}",
            "$where",
            "ａ",
            "a/b",
            "a\u{202e}b",
        ] {
            assert!(bad.parse::<ClientId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ids_that_differ_only_in_case_are_different() {
        assert_ne!("svc".parse::<ClientId>().unwrap(), "Svc".parse::<ClientId>().unwrap());
    }

    #[test]
    fn uuids_have_one_spelling() {
        let id = FamilyId::new();
        assert_eq!(id.to_string().parse::<FamilyId>().unwrap(), id);
        assert!(id.to_string().to_uppercase().parse::<FamilyId>().is_err());
        assert!(id.0.as_simple().to_string().parse::<FamilyId>().is_err());
    }

    /// J21: a person's id that equals a client's id is another subject.
    #[test]
    fn a_clients_subject_is_in_a_namespace_of_its_own() {
        let id: ClientId = "alice".parse().unwrap();
        assert_eq!(Subject::of_client(&id).as_str(), "client:alice");
    }
}
