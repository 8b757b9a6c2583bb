//! HTTP pages of the port: discovery, keys, probes.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::future::BoxFuture;
use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};

use super::{
    guard::{NO_METHOD, is_grpc},
    json::never_cached,
    status::{response, status},
};
use crate::error::Error;

mod documents;
mod starting;

pub use starting::{Reason, starting};

/// Path of the public keys.
pub const JWKS: &str = "/.well-known/jwks.json";
/// Path of the metadata (RFC 8414 section 3).
pub const METADATA: &str = "/.well-known/oauth-authorization-server";

/// Content of the pages.
#[derive(Clone)]
pub struct Published {
    /// Issuer (`iss`) of the tokens.
    pub issuer: Arc<str>,
    /// Returns the current JWK set.
    pub jwks: Arc<dyn Fn() -> Value + Send + Sync>,
    /// Time for which the set may be cached: at most as long as a new key is published before it
    /// signs.
    pub jwks_max_age: Duration,
    /// Full names of the gRPC services.
    pub grpc_services: Arc<[String]>,
    /// Returns true if no thread that serves is stuck.
    pub alive: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Readiness probe.
    pub ready: Arc<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>,
}

/// Builds the whole port: the gRPC services' routes, the pages, and a response for everything else.
pub fn app(grpc: Router, published: Published) -> Router {
    // tonic's own fallback would respond to browsers in gRPC.
    grpc.reset_fallback().merge(pages(published)).fallback(unmatched).with_state(())
}

/// Builds the pages alone.
pub fn pages(published: Published) -> Router {
    let path = issuer_path(&published.issuer);
    let mut router = Router::new();
    // RFC 8414 section 3.1 puts the path behind the well-known one; OpenID Connect Discovery and
    // `jwks_uri` put it before.
    if !path.is_empty() {
        router = router
            .route(&format!("{METADATA}{path}"), get(metadata))
            .route(&format!("{path}{METADATA}"), get(metadata))
            .route(&format!("{path}{JWKS}"), get(jwks));
    }
    router
        .route(JWKS, get(jwks))
        .route(METADATA, get(metadata))
        .route("/healthz", get(healthz))
        .route("/livez", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(Arc::new(published))
}

/// Returns the path of the issuer without a slash at its end; the configuration admits no path that
/// the router reads as a pattern.
fn issuer_path(issuer: &str) -> String {
    let path = issuer.parse::<http::Uri>().map(|url| url.path().to_owned()).unwrap_or_default();
    path.trim_end_matches('/').to_owned()
}

/// Responds to a path that is neither a method nor a page, in gRPC or HTTP as it was requested.
pub async fn unmatched(headers: HeaderMap) -> Response {
    if headers.get(header::CONTENT_TYPE).is_some_and(|value| is_grpc(value.as_bytes())) {
        return status(&NO_METHOD).into_http();
    }
    response(&Error::NotFound("page"))
}

async fn jwks(State(published): State<Arc<Published>>, headers: HeaderMap) -> Response {
    let age = format!("public, max-age={}", published.jwks_max_age.as_secs());
    documents::document(&(published.jwks)(), &age, &headers)
}

async fn metadata(State(published): State<Arc<Published>>, headers: HeaderMap) -> Response {
    documents::document(&documents::metadata(&published), "public, max-age=3600", &headers)
}

/// Responds that the process is alive while all its threads run; nothing more.
async fn healthz(State(published): State<Arc<Published>>) -> Response {
    if (published.alive)() {
        never_cached(&json!({ "status": "alive" }))
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, never_cached(&json!({ "status": "stuck" })))
            .into_response()
    }
}

async fn readyz(State(published): State<Arc<Published>>) -> Response {
    if (published.ready)().await {
        never_cached(&json!({ "status": "ready" }))
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, never_cached(&json!({ "status": "not ready" })))
            .into_response()
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::Request;
    use tower::ServiceExt;

    use super::*;

    /// B31: the documents of an issuer with a path are where its metadata and RFC 8414 say.
    #[tokio::test]
    async fn documents_are_served_under_the_path_of_the_issuer() {
        let published = Published {
            issuer: "https://id.example.com/auth/".into(),
            jwks: Arc::new(|| json!({ "keys": [] })),
            jwks_max_age: Duration::from_secs(1),
            grpc_services: Arc::new([]),
            ready: Arc::new(|| Box::pin(std::future::ready(true))),
            alive: Arc::new(|| true),
        };
        let pages = pages(published);
        for path in [
            METADATA,
            JWKS,
            "/.well-known/oauth-authorization-server/auth",
            "/auth/.well-known/oauth-authorization-server",
            "/auth/.well-known/jwks.json",
        ] {
            let request = Request::get(path).body(Body::empty()).unwrap();
            assert_eq!(pages.clone().oneshot(request).await.unwrap().status(), 200, "{path}");
        }
    }
}
