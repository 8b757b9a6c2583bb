//! Page tokens (AIP-158): opaque, signed with a key of their own, and bound to the request that
//! they continue (N03).

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use super::root::Root;

/// Length of the signature, in bytes.
const SIGNATURE_BYTES: usize = 32;

/// A text that is no page token of this service, or a page token of another request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidPageToken;

/// Key that seals and opens page tokens.
pub struct PageTokens(hmac::Key);

impl PageTokens {
    /// Derives the key from the root.
    pub fn new(root: &Root) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, root.derive("page token").as_slice()))
    }

    /// Creates page tokens under a known key.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn with_key(key: [u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, &key))
    }

    /// Returns a token that continues `question` after `cursor`.
    pub fn seal(&self, question: &str, cursor: &str) -> String {
        let signature = hmac::sign(&self.0, framed(question, cursor).as_bytes());
        let mut bytes = signature.as_ref().to_vec();
        bytes.extend_from_slice(cursor.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Returns the cursor in a token of this question.
    ///
    /// # Errors
    ///
    /// Every other text.
    pub fn open(&self, question: &str, token: &str) -> Result<String, InvalidPageToken> {
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| InvalidPageToken)?;
        let (signature, cursor) =
            bytes.split_at_checked(SIGNATURE_BYTES).ok_or(InvalidPageToken)?;
        let cursor = std::str::from_utf8(cursor).map_err(|_| InvalidPageToken)?;
        hmac::verify(&self.0, framed(question, cursor).as_bytes(), signature)
            .map_err(|_| InvalidPageToken)?;
        Ok(cursor.to_owned())
    }
}

fn framed(question: &str, cursor: &str) -> String {
    format!("{}:{question}{cursor}", question.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(key: u8) -> PageTokens {
        PageTokens::with_key([key; 32])
    }

    /// N03: a token is opaque, bound to its question, and cannot be made or changed by a caller.
    #[test]
    fn page_tokens_open_only_for_their_question_and_unchanged() {
        let tokens_of_ours = tokens(7);
        let token = tokens_of_ours.seal("clients/default", "svc-9");
        assert_eq!(tokens_of_ours.open("clients/default", &token).as_deref(), Ok("svc-9"));
        assert!(tokens_of_ours.open("clients/other", &token).is_err());
        assert!(tokens(8).open("clients/default", &token).is_err());
        for bad in ["", "x", "svc-9", &token[1..], &format!("{token}AA"), "' or 1=1--"] {
            assert!(tokens_of_ours.open("clients/default", bad).is_err(), "{bad}");
        }
    }
}
