//! Parts of answers that tests compare.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jeton::proto::admin::{Event, principal::Kind};
use prost::Message;
use serde_json::Value;
use tonic::{
    Code, Response, Status,
    metadata::{KeyAndValueRef, MetadataMap},
};
use tonic_types::StatusExt;

/// Everything of an answer that must not tell one cause from another: code, message, details, and
/// all metadata but the request's own id and the time of day.
pub type Shape = (i32, String, Vec<u8>, BTreeMap<String, Vec<u8>>);

/// `active=false` and nothing else, as it goes over the wire.
pub const INACTIVE: [u8; 2] = [0x08, 0x00];

pub fn shape(status: &Status) -> Shape {
    (
        status.code().into(),
        status.message().to_owned(),
        status.details().to_vec(),
        metadata(status.metadata()),
    )
}

fn metadata(map: &MetadataMap) -> BTreeMap<String, Vec<u8>> {
    let entries = map.iter().map(|entry| match entry {
        KeyAndValueRef::Ascii(key, value) => (key.to_string(), value.as_encoded_bytes().to_vec()),
        KeyAndValueRef::Binary(key, value) => (key.to_string(), value.as_encoded_bytes().to_vec()),
    });
    entries.filter(|(key, _)| key != "x-request-id" && key != "date").collect()
}

/// The bytes of an answer and its metadata.
pub fn bytes<T: Message>(response: &Response<T>) -> (Vec<u8>, BTreeMap<String, Vec<u8>>) {
    (response.get_ref().encode_to_vec(), metadata(response.metadata()))
}

/// The reason in a status' `ErrorInfo`: the OAuth error code in upper case.
pub fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// The field that a refusal blames.
pub fn blamed(status: &Status) -> String {
    let violations = status
        .get_details_bad_request()
        .map(|details| details.field_violations)
        .unwrap_or_default();
    violations.into_iter().next().map(|violation| violation.field).unwrap_or_default()
}

/// Header and claims of a token, unverified.
pub fn decoded(token: &str) -> (Value, Value) {
    let mut parts = token.split('.').map(|part| {
        let bytes = URL_SAFE_NO_PAD.decode(part).unwrap_or_default();
        serde_json::from_slice::<Value>(&bytes).unwrap_or_default()
    });
    (parts.next().unwrap(), parts.next().unwrap())
}

/// The `kid` a token was signed with.
pub fn kid_of(token: &str) -> String {
    decoded(token).0["kid"].as_str().unwrap().to_owned()
}

/// A duration in whole seconds.
pub fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

pub fn assert_invalid_grant(status: &Status) {
    assert_eq!((status.code(), reason(status).as_str()), (Code::InvalidArgument, "INVALID_GRANT"));
}

/// Id of the client that acted; empty if none did.
pub fn client_of(event: &Event) -> &str {
    match event.actor.as_ref().and_then(|actor| actor.kind.as_ref()) {
        Some(Kind::ClientId(id)) => id,
        Some(Kind::Node(_)) | None => "",
    }
}

/// Id of the client secret that the caller of an event authenticated with; empty if none.
pub fn secret_of(event: &Event) -> &str {
    let auth = event.auth.as_ref().filter(|auth| auth.method == "client_secret");
    auth.map_or("", |auth| &auth.id)
}
