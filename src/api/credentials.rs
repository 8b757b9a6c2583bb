//! Credentials of a request (RFC 6749 section 2.3.1, RFC 6750 section 2.1): the header
//! `authorization`, or id and secret in the message or form, one of them only (A03).

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, header::AUTHORIZATION};
use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};

use crate::{
    error::{Error, Result},
    oauth::Credentials,
};

/// The one credential of a request. A message without id and secret carries none.
pub(in crate::api) fn presented(
    headers: &HeaderMap,
    client_id: String,
    client_secret: String,
) -> Result<Credentials> {
    let secret = SecretString::from(client_secret);
    let in_message = !client_id.is_empty() || !secret.expose_secret().is_empty();
    let mut headers = headers.get_all(AUTHORIZATION).iter();
    match (headers.next(), headers.next(), in_message) {
        (None, _, false) => Ok(Credentials::None),
        (None, _, true) => Ok(Credentials::Secret { client_id, secret }),
        (Some(header), None, false) => from_header(header.as_bytes()),
        (Some(_), Some(_), _) => Err(Error::field("authorization", "must be given only once")),
        (Some(_), None, true) => Err(Error::field(
            "authorization",
            "credentials must be in the metadata or in the message, not in both",
        )),
    }
}

/// The bearer token of a request that can be authenticated in no other way.
pub(in crate::api) fn bearer(headers: &HeaderMap) -> Result<Credentials> {
    presented(headers, String::new(), String::new())
}

fn from_header(header: &[u8]) -> Result<Credentials> {
    const MALFORMED: &str = "must be \"Basic\" with base64, or \"Bearer\" with a token";
    let text = std::str::from_utf8(header).map_err(|_| Error::field("authorization", MALFORMED))?;
    let (scheme, value) =
        text.split_once(' ').ok_or_else(|| Error::field("authorization", MALFORMED))?;
    if scheme.eq_ignore_ascii_case("bearer") {
        // A text that is no token is judged like a token that does not stand.
        return Ok(Credentials::Bearer(value.to_owned().into()));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(Error::field("authorization", MALFORMED));
    }
    let decoded = STANDARD.decode(value).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let decoded = decoded.ok_or_else(|| Error::field("authorization", MALFORMED))?;
    let (id, secret) =
        decoded.split_once(':').ok_or_else(|| Error::field("authorization", MALFORMED))?;
    Ok(Credentials::Secret { client_id: form_decode(id)?, secret: form_decode(secret)?.into() })
}

/// Decodes an id or a secret: they are form-encoded before they are joined (RFC 6749 section 2.3.1).
/// A `%` without two digits is refused, where a decoder of forms would keep it.
fn form_decode(text: &str) -> Result<String> {
    let malformed = || Error::field("authorization", "client id and secret must be form-encoded");
    let mut escapes = text.split('%').skip(1);
    let is_escape =
        |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    if !escapes.all(is_escape) {
        return Err(malformed());
    }
    let spaced = text.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8().map_err(|_| malformed())?;
    Ok(decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, value.parse().unwrap());
        }
        headers
    }

    fn secret(headers: &HeaderMap) -> (String, String) {
        match presented(headers, String::new(), String::new()).unwrap() {
            Credentials::Secret { client_id, secret } => {
                (client_id, secret.expose_secret().to_owned())
            }
            other @ (Credentials::None | Credentials::Bearer(_)) => panic!("{other:?}"),
        }
    }

    /// A03: two ways at once are refused, whatever they say.
    #[test]
    fn two_credentials_are_refused() {
        let basic = format!("Basic {}", STANDARD.encode("a:b"));
        assert!(presented(&with(&[&basic]), "a".into(), String::new()).is_err());
        assert!(presented(&with(&[&basic]), String::new(), "b".into()).is_err());
        assert!(presented(&with(&[&basic, "Bearer x"]), String::new(), String::new()).is_err());
        assert!(presented(&with(&["Bearer x"]), "a".into(), "b".into()).is_err());
    }

    #[test]
    fn basic_is_decoded_as_the_rfc_says() {
        let encode = |text: &str| format!("bAsIc {}", STANDARD.encode(text));
        assert_eq!(secret(&with(&[&encode("a:b:c")])), ("a".into(), "b:c".into()));
        assert_eq!(secret(&with(&[&encode("a:%2B+%25")])), ("a".into(), "+ %".into()));
    }

    #[test]
    fn malformed_headers_are_refused() {
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        let bad_percent = basic("a:%zz");
        let (one_digit, cut, not_utf8) = (basic("a:%4"), basic("a:b%"), basic("a:%ff"));
        let no_colon = format!("Basic {}", STANDARD.encode("ab"));
        for bad in [
            "Basic",
            "Basic !!!",
            "Digest x",
            "Bearer",
            "",
            bad_percent.as_str(),
            one_digit.as_str(),
            cut.as_str(),
            not_utf8.as_str(),
            no_colon.as_str(),
        ] {
            assert!(presented(&with(&[bad]), String::new(), String::new()).is_err(), "{bad}");
        }
    }
}
