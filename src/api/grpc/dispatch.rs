//! Calls by path. Most calls are of the token service: these are passed to it directly, since the
//! router copies the service and the path for each request.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use axum::{Router, body::Body, response::Response, routing::future::RouteFuture};
use bytes::Bytes;
use http::Request;
use tonic::codegen::BoxFuture;
use tower::Service;

use super::{BATCH_INTROSPECT, GrpcServices};
use crate::proto::token::token_service_server::{SERVICE_NAME, TokenServiceServer};

/// The token service, and a router for every other path.
#[derive(Clone)]
pub struct Dispatch {
    token: TokenServiceServer<GrpcServices>,
    router: Router,
}

impl Dispatch {
    /// Creates the dispatch. `router` also serves `BatchIntrospect`, whose messages may be longer.
    pub const fn new(token: TokenServiceServer<GrpcServices>, router: Router) -> Self {
        Self { token, router }
    }
}

impl<B> Service<Request<B>> for Dispatch
where
    B: http_body::Body<Data = Bytes, Error: Into<axum::BoxError> + Send> + Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = DispatchFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Both are always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> DispatchFuture {
        if is_token_call(request.uri().path()) {
            DispatchFuture::Token(self.token.call(request))
        } else {
            DispatchFuture::Router(Box::new(self.router.call(request)))
        }
    }
}

fn is_token_call(path: &str) -> bool {
    path.strip_prefix('/')
        .and_then(|path| path.strip_prefix(SERVICE_NAME))
        .is_some_and(|method| method.starts_with('/'))
        && path != BATCH_INTROSPECT
}

/// Future of a response of either.
pub enum DispatchFuture {
    /// Response of the token service.
    Token(BoxFuture<http::Response<tonic::body::Body>, Infallible>),
    /// Response of the router; boxed, since it is twenty times as large.
    Router(Box<RouteFuture<Infallible>>),
}

impl Future for DispatchFuture {
    type Output = Result<Response, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Token(future) => {
                future.as_mut().poll(cx).map_ok(|response| response.map(Body::new))
            }
            Self::Router(future) => Pin::new(future).poll(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_calls_are_those_of_the_token_service_but_for_batches() {
        for path in ["Introspect", "Token", "Refresh", "Revoke", "Unknown", ""] {
            assert!(is_token_call(&format!("/{SERVICE_NAME}/{path}")), "{path}");
        }
        for path in [
            BATCH_INTROSPECT,
            "/jeton.token.v1.TokenService",
            "/jeton.token.v1.TokenServices/Introspect",
            "jeton.token.v1.TokenService/Introspect",
            "//jeton.token.v1.TokenService/Introspect",
            "/jeton.admin.v1.ClientService/GetClient",
            "/",
            "",
        ] {
            assert!(!is_token_call(path), "{path}");
        }
    }
}
