//! Compact JWS (RFC 7515) under a policy that is stricter than the RFC where it leaves a choice to
//! the sender. `jsonwebtoken` verifies the signature; this module checks what it does not (`crit`,
//! keys in the header, encoding, size, `typ`).

use std::str::FromStr;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, jwk::Jwk};
use serde::Deserialize;

use super::{
    jwk::{self, Refused},
    present::Present,
};

/// Maximum length of a token, in bytes: nothing of a longer one is decoded.
pub const MAX_TOKEN: usize = 8_192;

/// Maximum nesting of JSON in a header or in claims.
const MAX_DEPTH: usize = 16;

/// A text that is no compact JWS, or one that this service never issues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an acceptable compact JWS: {0}")]
pub struct Malformed(&'static str);

/// The three decoded parts of a compact JWS (RFC 7515 section 7.1). None of them is verified.
pub struct Parts<'t> {
    /// Bytes of the header.
    pub header: Vec<u8>,
    payload: Vec<u8>,
    signed: &'t str,
    signature: &'t str,
}

/// Splits a token: at most [`MAX_TOKEN`] bytes, exactly three parts, each in canonical base64url:
/// no padding, no white space, no unused bits (RFC 7515 section 2, RFC 4648 section 3.5).
///
/// # Errors
///
/// Every other text, JSON serialisations and JWE included; before any cryptography, and if it is
/// too long before any decoding.
pub fn split(token: &str) -> Result<Parts<'_>, Malformed> {
    if token.len() > MAX_TOKEN {
        return Err(Malformed("too long"));
    }
    let not_three = Malformed("not three parts");
    let (signed, signature) = token.rsplit_once('.').ok_or(not_three)?;
    let (header, payload) = signed.split_once('.').ok_or(not_three)?;
    // RFC 7518 section 3.6: an unsecured JWS has an empty signature.
    if signature.is_empty() {
        return Err(Malformed("no signature"));
    }
    // A fourth part would be inside the middle one: a dot is not in the alphabet.
    let decode =
        |part| URL_SAFE_NO_PAD.decode(part).map_err(|_| Malformed("not canonical base64url"));
    decode(signature)?;
    Ok(Parts { header: decode(header)?, payload: decode(payload)?, signed, signature })
}

/// A compact JWS whose header contains no key and no critical extension.
pub struct Jws<'t> {
    header: Header,
    parts: Parts<'t>,
}

impl<'t> Jws<'t> {
    /// Splits a token and parses its header: a JSON object with an `alg`, no member twice, and no
    /// member with which the sender could choose the key or the rules (`crit`, `b64`, `jwk`, `jku`,
    /// `x5u`, `x5c`, or one of JWE).
    ///
    /// # Errors
    ///
    /// Every other text.
    pub fn parse(token: &'t str) -> Result<Self, Malformed> {
        let parts = split(token)?;
        let header: Header = object(&parts.header).ok_or(Malformed("unsupported header"))?;
        if header.chooses() {
            return Err(Malformed("header names a key or an extension"));
        }
        Ok(Self { header, parts })
    }

    /// Returns the key id in the header.
    pub fn kid(&self) -> Option<&str> {
        self.header.kid.as_deref()
    }

    /// Returns the type in the header (RFC 7515 section 4.1.9).
    pub fn typ(&self) -> Option<&str> {
        self.header.typ.as_deref()
    }
}

/// Header of a JWS. It is typed, so that a member that occurs twice or has the wrong type does not
/// parse. Other members are ignored.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    #[serde(default)]
    crit: Present,
    #[serde(default)]
    b64: Present,
    #[serde(default)]
    jwk: Present,
    #[serde(default)]
    jku: Present,
    #[serde(default)]
    x5u: Present,
    #[serde(default)]
    x5c: Present,
    #[serde(default)]
    x5t: Present,
    #[serde(default, rename = "x5t#S256")]
    x5t_s256: Present,
    #[serde(default)]
    enc: Present,
    #[serde(default)]
    zip: Present,
    #[serde(default)]
    p2c: Present,
    #[serde(default)]
    epk: Present,
}

impl Header {
    fn chooses(&self) -> bool {
        let members = [
            self.crit,
            self.b64,
            self.jwk,
            self.jku,
            self.x5u,
            self.x5c,
            self.x5t,
            self.x5t_s256,
            self.enc,
            self.zip,
            self.p2c,
            self.epk,
        ];
        members.iter().any(|Present(there)| *there)
    }
}

/// Parses one JSON object, in valid UTF-8, no deeper than [`MAX_DEPTH`] and with nothing after it.
/// serde would accept an array for a struct too; this does not.
pub(super) fn object<T: for<'de> Deserialize<'de>>(json: &[u8]) -> Option<T> {
    let json = std::str::from_utf8(json).ok()?;
    if !json.trim_ascii_start().starts_with('{') || is_deep(json) {
        return None;
    }
    serde_json::from_str(json).ok()
}

/// Returns true if the JSON is nested too deep: the parser has no limit for members that it skips.
fn is_deep(json: &str) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    json.bytes().any(|byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth > MAX_DEPTH
    })
}

/// A key with its one algorithm.
pub struct Verifier {
    key: DecodingKey,
    alg: Algorithm,
    kid: Option<String>,
}

impl Verifier {
    /// Creates the verifier of a key that [`jwk::admit`] accepts.
    ///
    /// # Errors
    ///
    /// [`jwk::admit`] rejects the key.
    pub fn from_jwk(jwk: &Jwk) -> Result<Self, Refused> {
        let alg = jwk::admit(jwk)?;
        let key = DecodingKey::from_jwk(jwk).map_err(|_| Refused("it cannot be read"))?;
        Ok(Self { key, alg, kid: jwk.common.key_id.clone() })
    }

    /// Returns the payload of `jws` if its header names this key's algorithm and, if the key has
    /// one, its id, and the signature is valid.
    pub fn verify<'j>(&self, jws: &'j Jws<'_>) -> Option<&'j [u8]> {
        let same_alg = Algorithm::from_str(&jws.header.alg).is_ok_and(|alg| alg == self.alg);
        if !same_alg || self.kid.as_deref().is_some_and(|kid| jws.kid() != Some(kid)) {
            return None;
        }
        let Parts { signed, signature, payload, .. } = &jws.parts;
        let verified =
            jsonwebtoken::crypto::verify(signature, signed.as_bytes(), &self.key, self.alg)
                .unwrap_or(false);
        verified.then_some(payload)
    }
}

#[cfg(test)]
mod tests;
