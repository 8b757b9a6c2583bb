//! Guard around all handlers, one layer so that it costs one future: request id, time of arrival,
//! the peer's budget, deadline, panics, counts. Handlers find [`Call`] and [`Deadline`] in the
//! extensions.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::response::Response;
use http::{HeaderMap, Method as Verb, Request, StatusCode, Version, header};
use tokio::time::Instant;
use tower::Service;

use crate::{
    clock::Clock,
    error::Result,
    model::{Call, Peer},
};

mod account;
mod chunk;
mod inflight_bytes;
mod methods;
mod refusal;
mod request_id;
mod response_body;
mod response_future;

pub use account::{Account, PeerAccount};
pub use chunk::Chunk;
pub use inflight_bytes::MeteredBody;
pub use methods::{Method, Methods};
pub use refusal::{MALFORMED, NO_METHOD, Refusal};
pub use response_body::CountedBody;
pub use response_future::{ResponseFuture, quiet_panics};

/// Peer of a request without a listener.
const UNKNOWN_PEER: Peer = Peer::Ip(IpAddr::V4(Ipv4Addr::UNSPECIFIED));

/// Origin of a request, as its connection knows it: an extension that the listener adds to every
/// request.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Peer of the connection.
    pub peer: Peer,
    /// Open calls of the connection.
    pub account: Arc<Account>,
}

impl Origin {
    /// Returns the origin of a request without a listener.
    fn unknown() -> Self {
        Self { peer: UNKNOWN_PEER, account: Arc::default() }
    }
}

/// Time until which the caller waits; later work need not be begun.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(pub Instant);

impl Deadline {
    /// Returns the time that is left.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

/// Charges the budgets that apply before authentication, and decides whether the call may go on.
pub type Admit = Arc<dyn Fn(&Call) -> Result<()> + Send + Sync>;

/// Layer around a router.
#[derive(Clone)]
pub struct Guard<S> {
    inner: S,
    rules: Arc<Rules>,
}

struct Rules {
    clock: Arc<dyn Clock>,
    longest: Duration,
    methods: &'static Methods,
    admit: Admit,
}

impl<S> Guard<S> {
    /// Wraps `inner`. `longest` is the deadline of a call without one, and the longest allowed;
    /// `admit` is called once for each request, before it is parsed.
    pub fn new(
        inner: S,
        clock: Arc<dyn Clock>,
        longest: Duration,
        methods: &'static Methods,
        admit: Admit,
    ) -> Self {
        Self { inner, rules: Arc::new(Rules { clock, longest, methods, admit }) }
    }
}

impl<S, B> Service<Request<B>> for Guard<S>
where
    S: Service<Request<MeteredBody<B>>, Response = Response, Error = Infallible, Future: Unpin>,
{
    type Response = http::Response<CountedBody>;
    type Error = Infallible;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let rules = &*self.rules;
        let arrived = Instant::now();
        let request_id = request_id::of(request.headers());
        let deadline = arrived
            + timeout(request.headers()).map_or(rules.longest, |asked| asked.min(rules.longest));
        let Origin { peer, account } =
            request.extensions_mut().remove().unwrap_or_else(Origin::unknown);
        let kind = RequestKind::of(&request, rules.methods);
        tracing::debug!(%request_id, %peer, method = %request.method(), path = request.uri().path(), "request");
        let mut response = ResponseFuture::new(
            kind.counted(rules.methods),
            arrived,
            deadline,
            Arc::clone(&request_id),
        );
        // Before all else: a refusal costs work too.
        let call = Call { now: rules.clock.now(), peer, request_id };
        if let Err(error) = (rules.admit)(&call) {
            response.refuse(Refusal::of(&error));
            return response;
        }
        match kind {
            RequestKind::Wrong(status) => response.refuse_http(status),
            RequestKind::WithQuery => response.refuse(Refusal::NoMethod),
            RequestKind::Method(_) | RequestKind::Http => {
                let Some((answer, held)) = account.begin(kind.is_stream()) else {
                    response.refuse(Refusal::Overloaded);
                    return response;
                };
                let held = Arc::new(held);
                response.count(answer, Arc::clone(&held));
                let mut request = request.map(|body| MeteredBody::new(body, held));
                request.extensions_mut().insert(call);
                request.extensions_mut().insert(Deadline(deadline));
                match catch_unwind(AssertUnwindSafe(|| self.inner.call(request))) {
                    Ok(future) => response.run(future),
                    Err(_) => response.refuse(Refusal::Panicked),
                }
            }
        }
        response
    }
}

/// Kind of a request.
#[derive(Clone, Copy)]
enum RequestKind {
    /// A method; the unknown one for a gRPC path that is none.
    Method(&'static Method),
    /// Anything else.
    Http,
    /// A gRPC call to a path with a query. Routers ignore the query, so it would be served, under a
    /// name that is documented nowhere.
    WithQuery,
    /// A method, called without gRPC.
    Wrong(StatusCode),
}

impl RequestKind {
    fn of<B>(request: &Request<B>, methods: &'static Methods) -> Self {
        let grpc = request
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|value| is_grpc(value.as_bytes()));
        let method = methods.find(request.uri().path());
        if method.is_none() && !grpc {
            return Self::Http;
        }
        // gRPC over HTTP/1.1 has nowhere to put the status.
        if request.version() != Version::HTTP_2 {
            return Self::Wrong(StatusCode::HTTP_VERSION_NOT_SUPPORTED);
        }
        if request.method() != Verb::POST {
            return Self::Wrong(StatusCode::METHOD_NOT_ALLOWED);
        }
        if !grpc {
            return Self::Wrong(StatusCode::UNSUPPORTED_MEDIA_TYPE);
        }
        if request.uri().query().is_some() {
            return Self::WithQuery;
        }
        Self::Method(method.unwrap_or(&methods.unknown))
    }

    const fn is_stream(self) -> bool {
        matches!(self, Self::Method(method) if method.is_stream())
    }

    /// Returns the method that it counts as, if the response is gRPC.
    const fn counted(self, methods: &'static Methods) -> Option<&'static Method> {
        match self {
            Self::Method(method) => Some(method),
            Self::WithQuery => Some(&methods.unknown),
            Self::Http | Self::Wrong(_) => None,
        }
    }
}

/// Returns true for `application/grpc`, also with a message format (`+proto`) or parameters, but
/// not for `application/grpc-web`.
pub fn is_grpc(content_type: &[u8]) -> bool {
    content_type
        .strip_prefix(b"application/grpc")
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Parses the `grpc-timeout` of the caller: at most eight digits and a unit. `None` if it is
/// malformed.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let (unit, digits) = headers.get("grpc-timeout")?.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = digits.iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(value * 3_600)),
        b'M' => Some(Duration::from_secs(value * 60)),
        b'S' => Some(Duration::from_secs(value)),
        b'm' => Some(Duration::from_millis(value)),
        b'u' => Some(Duration::from_micros(value)),
        b'n' => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read_as_the_protocol_writes_them() {
        let read = |text: &str| {
            timeout(&HeaderMap::from_iter([(
                "grpc-timeout".parse().unwrap(),
                text.parse().unwrap(),
            )]))
        };
        assert_eq!(read("1H"), Some(Duration::from_secs(3_600)));
        assert_eq!(read("99999999m"), Some(Duration::from_millis(99_999_999)));
        assert_eq!(read("0n"), Some(Duration::ZERO));
        for bad in ["", "S", "1", "-1S", "+1S", "1s", "123456789S", "1 S", "1.5S"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }

    /// T05: content types that look like gRPC and are not.
    #[test]
    fn only_grpc_is_grpc() {
        for good in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"]
        {
            assert!(is_grpc(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            "application/json",
            "application/grpc-web",
            "application/grpcx",
            "application/grp",
            "text/application/grpc",
        ] {
            assert!(!is_grpc(bad.as_bytes()), "{bad}");
        }
    }
}
