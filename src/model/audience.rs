//! Resource indicators (RFC 8707): who a token is for.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    id::{ClientId, Invalid, TenantId},
    mac::Mac,
    time::Timestamp,
};

/// An absolute URI without fragment, 3 to 256 visible ASCII characters. Compared byte by byte: no
/// case folding, no default port, no trailing slash removed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Audience(Arc<str>);

impl Audience {
    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The normal form of an http or https URI: two slashes, scheme and host in lower case, no user
    /// information, no default port, no dot behind the host. `None`: it is written so, or has
    /// another scheme. A trailing slash is significant.
    pub fn normal_form(&self) -> Option<String> {
        let (scheme, rest) = self.0.split_once(':')?;
        let scheme = scheme.to_ascii_lowercase();
        let default_port = match scheme.as_str() {
            "http" => ":80",
            "https" => ":443",
            _ => return None,
        };
        // Parsers of URLs read any number of slashes as two.
        let rest = rest.trim_start_matches(['/', '\\']);
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let host =
            authority.rsplit_once('@').map_or(authority, |(_, host)| host).to_ascii_lowercase();
        let host =
            host.strip_suffix(default_port).or_else(|| host.strip_suffix(':')).unwrap_or(&host);
        let host = host.trim_end_matches('.');
        let normal = format!("{scheme}://{host}{path}");
        (normal != *self.0).then_some(normal)
    }
}

impl FromStr for Audience {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        const MESSAGE: Invalid = Invalid(
            "a resource must be an absolute URI without fragment, of at most 256 characters",
        );
        let (scheme, rest) = text.split_once(':').ok_or(MESSAGE)?;
        let scheme_valid = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
        let rest_valid = !rest.is_empty()
            && rest != "//"
            && rest.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
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

/// Record of the tenant that an audience belongs to. Without one an audience belongs to no tenant,
/// and the first to list it gets it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AudienceRecord {
    /// The audience.
    pub audience: Audience,
    /// The tenant that may list it.
    pub tenant: TenantId,
    /// The administrator that claimed or assigned it.
    pub claimed_by: ClientId,
    /// Time of the claim or assignment.
    pub created_at: Timestamp,
    /// True while it is released or assigned to another tenant: the tenant has it still, and lists
    /// it on no further client.
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
    fn http_audiences_have_one_spelling_of_scheme_and_host() {
        for normal in [
            "https://a.example",
            "https://a.example/X?Y=1",
            "https://a.example/",
            "http://a:8080",
            "urn:A",
            "https://[::1]:80/",
        ] {
            assert_eq!(normal.parse::<Audience>().unwrap().normal_form(), None, "{normal}");
        }
        for (other, normal) in [
            ("HTTPS://A.example/X", "https://a.example/X"),
            ("https://a.example:443", "https://a.example"),
            ("http://a:80?Q", "http://a?Q"),
            ("https://a:/", "https://a/"),
            ("https://me:Secret@a.example:8443/@", "https://a.example:8443/@"),
            ("https://[::1]:443/", "https://[::1]/"),
            ("https:a.example", "https://a.example"),
            ("https:/a.example/", "https://a.example/"),
            ("https:///a.example", "https://a.example"),
            ("https://a.example./x", "https://a.example/x"),
            ("https://b.example\\@a.example", "https://a.example"),
        ] {
            assert_eq!(other.parse::<Audience>().unwrap().normal_form().as_deref(), Some(normal));
        }
    }

    #[test]
    fn only_absolute_uris_without_fragment_are_audiences() {
        for good in
            ["https://orders", "https://a.example/x?y=1", "urn:svc:orders", "spiffe://td/ns/a"]
        {
            assert_eq!(good.parse::<Audience>().unwrap().as_str(), good);
        }
        let long = format!("https://{}", "a".repeat(256));
        for bad in [
            "",
            "orders",
            "/x",
            "https:",
            "https://",
            "https://a#b",
            "https://a b",
            ":x",
            "1a:x",
            long.as_str(),
        ] {
            assert!(bad.parse::<Audience>().is_err(), "{bad:?}");
        }
    }
}
