//! Pages of a node that cannot serve yet because its store is not open: alive, not ready, and every
//! call may be retried.

use std::sync::Arc;

use axum::{
    Router,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderMap, StatusCode, header};
use serde_json::json;

use crate::{
    api::{
        guard::is_grpc,
        json::never_cached,
        status::{response, status},
    },
    error::Error,
};

/// Returns the reason that the node is not ready, for everyone to read.
pub type Reason = Arc<dyn Fn() -> &'static str + Send + Sync>;

/// Builds the port of a node that is starting. `grpc` are the services that answer already.
pub fn starting(grpc: Router, reason: Reason) -> Router {
    let refusing = reason.clone();
    grpc.reset_fallback()
        .route("/healthz", get(alive))
        .route("/livez", get(alive))
        .route("/readyz", get(move || async move { not_ready(reason()) }))
        .fallback(move |headers: HeaderMap| async move { unavailable(refusing(), &headers) })
}

async fn alive() -> Response {
    never_cached(&json!({ "status": "alive" }))
}

/// Builds the response of a readiness probe.
fn not_ready(reason: &str) -> Response {
    let body = json!({ "status": "not ready", "reason": reason });
    (StatusCode::SERVICE_UNAVAILABLE, never_cached(&body)).into_response()
}

/// Refuses a call, in gRPC or HTTP as it was made.
fn unavailable(reason: &'static str, headers: &HeaderMap) -> Response {
    let error = Error::starting(reason);
    if headers.get(header::CONTENT_TYPE).is_some_and(|value| is_grpc(value.as_bytes())) {
        return status(&error).into_http();
    }
    response(&error)
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use http::Request;
    use tower::ServiceExt;

    use super::*;

    async fn asked(path: &str, kind: Option<&str>) -> Response {
        let mut request = Request::get(path);
        if let Some(kind) = kind {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let port = starting(Router::new(), Arc::new(|| "the store cannot be reached"));
        port.oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    /// B10: alive and not ready, with the reason; calls may be retried.
    #[tokio::test]
    async fn a_starting_node_is_alive_and_not_ready() {
        assert_eq!(asked("/livez", None).await.status(), 200);
        let ready = asked("/readyz", None).await;
        assert_eq!(ready.status(), 503);
        let body = to_bytes(ready.into_body(), 1_000).await.unwrap();
        assert!(String::from_utf8_lossy(&body).contains("the store cannot be reached"));
        let call = asked("/jeton.token.v1.TokenService/Token", Some("application/grpc")).await;
        assert_eq!(call.headers()["grpc-status"], "14");
        assert!(call.headers().contains_key("grpc-status-details-bin"));
        assert_eq!(asked("/.well-known/jwks.json", None).await.status(), 503);
    }
}
