//! Page tokens (AIP-158): opaque, signed with a key of their own, and bound to the question they
//! continue (N03).

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::error::{Error, Result};

/// Bytes of the signature.
const SEAL: usize = 32;
const DEFAULT_SIZE: usize = 100;
const MAX_SIZE: usize = 1_000;

/// How many to give: 0 means 100, more than 1,000 means 1,000.
pub(super) fn size(asked: i32) -> Result<usize> {
    match usize::try_from(asked) {
        Ok(0) => Ok(DEFAULT_SIZE),
        Ok(size) => Ok(size.min(MAX_SIZE)),
        Err(_) => Err(Error::field("page_size", "must not be negative")),
    }
}

/// A token that continues `question` after `cursor`.
pub(super) fn seal(key: &[u8; 32], question: &str, cursor: &str) -> String {
    let mut bytes = signature(key, question, cursor).as_ref().to_vec();
    bytes.extend_from_slice(cursor.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The cursor in a token; `None` for the first page. A token of another question, or not ours, is
/// refused.
pub(super) fn open(key: &[u8; 32], question: &str, token: &str) -> Result<Option<String>> {
    if token.is_empty() {
        return Ok(None);
    }
    let refused = || Error::field("page_token", "is not one that this question was answered with");
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| refused())?;
    let (seal, cursor) = bytes.split_at_checked(SEAL).ok_or_else(refused)?;
    let cursor = std::str::from_utf8(cursor).map_err(|_| refused())?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::verify(&key, framed(question, cursor).as_bytes(), seal).map_err(|_| refused())?;
    Ok(Some(cursor.to_owned()))
}

fn signature(key: &[u8; 32], question: &str, cursor: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), framed(question, cursor).as_bytes())
}

fn framed(question: &str, cursor: &str) -> String {
    format!("{}:{question}{cursor}", question.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// N03: a token is opaque, bound to its question, and cannot be made or changed by a caller.
    #[test]
    fn page_tokens_open_only_for_their_question_and_unchanged() {
        let key = [7; 32];
        let token = seal(&key, "clients/default", "svc-9");
        assert_eq!(open(&key, "clients/default", &token).unwrap().as_deref(), Some("svc-9"));
        assert_eq!(open(&key, "clients/default", "").unwrap(), None);
        assert!(open(&key, "clients/other", &token).is_err());
        assert!(open(&[8; 32], "clients/default", &token).is_err());
        for bad in ["x", "svc-9", &token[1..], &format!("{token}AA"), "' or 1=1--"] {
            assert!(open(&key, "clients/default", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_have_a_default_and_a_silent_cap() {
        assert_eq!((size(0).unwrap(), size(7).unwrap(), size(i32::MAX).unwrap()), (100, 7, 1_000));
        assert!(size(-1).is_err());
    }
}
