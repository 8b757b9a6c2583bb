//! Responses in JSON.

use axum::{
    body::Bytes,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, header};
use serde_json::Value;

/// Builds a response that no cache stores.
pub(super) fn never_cached(value: &Value) -> Response {
    cached(Bytes::from(value.to_string()), HeaderValue::from_static("no-store"))
}

/// Builds a response with this `cache-control`.
pub(super) fn cached(body: Bytes, cache: HeaderValue) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::CACHE_CONTROL, cache),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (headers, body).into_response()
}
