//! Published documents, and their caching.

use aws_lc_rs::digest;
use axum::{
    body::Bytes,
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::Value;

use super::{super::json, JWKS, Published};

/// Builds the authorization server's metadata (RFC 8414 section 2), of what is actually served.
///
/// Tokens are issued over gRPC, and `token_endpoint` means a URL that takes a form over HTTP (RFC
/// 6749 section 3.2), so there is none to name; section 2 requires it of servers that have one.
/// `jeton_grpc_services` names the services instead, as section 2 allows ("additional authorization
/// server metadata parameters"). `response_types_supported` is required and empty: there is no
/// authorization endpoint.
pub(super) fn metadata(published: &Published) -> Value {
    let issuer = published.issuer.trim_end_matches('/');
    serde_json::json!({
        "issuer": &*published.issuer,
        "jwks_uri": format!("{issuer}{JWKS}"),
        "response_types_supported": [],
        "grant_types_supported": ["client_credentials", "refresh_token"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        "jeton_grpc_services": &*published.grpc_services,
    })
}

/// Builds the response of a document with an entity tag, or 304 if the client's copy is current
/// (RFC 9110 section 13.1.2).
pub(super) fn document(value: &Value, cache: &str, headers: &HeaderMap) -> Response {
    let body = Bytes::from(value.to_string());
    let digest = digest::digest(&digest::SHA256, &body);
    let tag =
        format!("\"{}\"", URL_SAFE_NO_PAD.encode(digest.as_ref().get(..12).unwrap_or_default()));
    let cache =
        HeaderValue::from_str(cache).unwrap_or_else(|_| HeaderValue::from_static("no-store"));
    let held =
        headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut held =
        held.flat_map(|tags| tags.split(',')).map(|tag| tag.trim().trim_start_matches("W/"));
    let mut response = if held.any(|held| held == tag || held == "*") {
        (StatusCode::NOT_MODIFIED, [(header::CACHE_CONTROL, cache)]).into_response()
    } else {
        json::cached(body, cache)
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}
