//! Bodies of fuzz targets, see `crate::fuzzing`: what this room parses of a caller's.

use http::{HeaderMap, HeaderValue, header};
use secrecy::ExposeSecret;

use super::credentials::presented;
use crate::oauth::Credentials;

/// The reader of credentials, over lines: client id, secret, then headers. Never more than one way
/// at once, and what it reads is what was sent.
pub fn credentials(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n').map(String::from_utf8_lossy);
    let id = lines.next().unwrap_or_default().into_owned();
    let secret = lines.next().unwrap_or_default().into_owned();
    let mut headers = HeaderMap::new();
    for value in lines.filter_map(|line| HeaderValue::from_bytes(line.as_bytes()).ok()) {
        headers.append(header::AUTHORIZATION, value);
    }
    let values: Vec<_> = headers.get_all(header::AUTHORIZATION).iter().cloned().collect();
    let in_message = !(id.is_empty() && secret.is_empty());
    let Ok(read) = presented(&headers, id.clone(), secret.clone()) else { return };
    assert!(usize::from(in_message) + values.len() <= 1, "one way at once");
    let as_sent = match (read, values.first()) {
        (Credentials::None, None) => !in_message,
        (Credentials::Secret { client_id, secret: read }, None) => {
            client_id == id && *read.expose_secret() == *secret
        }
        (Credentials::Bearer(token), Some(value)) => {
            value.as_bytes().ends_with(token.expose_secret().as_bytes())
        }
        (Credentials::Secret { .. }, Some(value)) => {
            value.as_bytes().to_ascii_lowercase().starts_with(b"basic ")
        }
        (Credentials::None, Some(_)) | (Credentials::Bearer(_), None) => false,
    };
    assert!(as_sent, "what was sent");
}
