//! What holds for every request, around all handlers, in one layer so that it costs one future: a
//! request id, the time it arrived, its peer's budget, a deadline, a panic kept to its request,
//! counts. Handlers find [`Call`] and [`Deadline`] in the extensions.

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
use tonic::Status;
use tower::Service;

use crate::{
    clock::Clock,
    error::{Error, Result},
    model::{Call, Peer},
};

mod account;
mod answer;
mod body;
mod chunk;
mod held;
mod methods;
mod request_id;

pub use account::{Account, PeerAccount};
pub use answer::{Answering, quiet_panics};
pub use body::Counted;
pub use chunk::Chunk;
pub use held::Held;
pub use methods::{Method, Methods};

/// The peer of a request that came by no listener.
const NOBODY: Peer = Peer::Ip(IpAddr::V4(Ipv4Addr::UNSPECIFIED));

/// Where a request comes from: what its connection knows of it, an extension that the listener
/// gives to every request.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Who connected.
    pub peer: Peer,
    /// The calls that its connection has open.
    pub account: Arc<Account>,
}

impl Origin {
    /// Of a request that came by no listener: nobody's in particular.
    fn unknown() -> Self {
        Self { peer: NOBODY, account: Arc::default() }
    }
}

/// When the caller stops waiting; what is not done by then need not be begun.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(pub Instant);

impl Deadline {
    /// The time that is left.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

/// Text for a caller whose body cannot be read.
pub const MALFORMED: &str = "must be one whole, uncompressed message of the method's type";

/// Why a request is answered here and not by its handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The handler was not done in time, or the request's message did not arrive in time.
    DeadlineExceeded,
    /// The handler panicked.
    Panicked,
    /// The message is longer than its method takes.
    TooLarge,
    /// The body is not one message of the method's type.
    Malformed,
    /// A path with a query names no method.
    Query,
    /// The peer has too many requests that are not whole, or answers that it has not read.
    Overloaded,
    /// The peer's budget is used up.
    Throttled {
        /// When it is worth asking again.
        retry_after: Duration,
    },
}

impl Refusal {
    /// The status without details.
    pub fn status(self) -> Status {
        match self {
            Self::DeadlineExceeded => Status::deadline_exceeded("deadline exceeded"),
            Self::Panicked => Status::internal("internal error"),
            Self::TooLarge => Status::resource_exhausted("the message is too large"),
            Self::Malformed => Status::invalid_argument(MALFORMED),
            Self::Query => Status::unimplemented("no such method"),
            Self::Overloaded => Status::resource_exhausted("too many calls in flight"),
            Self::Throttled { .. } => Status::resource_exhausted("too many requests"),
        }
    }

    /// Of a call that was not admitted.
    const fn of(error: &Error) -> Self {
        let retry_after = if let Error::Throttled { retry_after } = error {
            *retry_after
        } else {
            Duration::from_secs(1)
        };
        Self::Throttled { retry_after }
    }

    const fn http(self) -> StatusCode {
        match self {
            Self::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Self::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::Query => StatusCode::NOT_FOUND,
            Self::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
            Self::Throttled { .. } => StatusCode::TOO_MANY_REQUESTS,
        }
    }
}

/// Draws on the budgets that hold before anybody has authenticated: whether the call may go on.
pub type Admit = Arc<dyn Fn(&Call) -> Result<()> + Send + Sync>;

/// Stands around a router.
#[derive(Clone)]
pub struct Guard<S> {
    inner: S,
    rules: Arc<Rules>,
}

struct Rules {
    clock: Arc<dyn Clock>,
    longest: Duration,
    methods: &'static Methods,
    status: fn(Refusal) -> Status,
    admit: Admit,
}

impl<S> Guard<S> {
    /// `longest` is the deadline of a call that brings none, and the longest one may bring;
    /// `status` gives refusals their details; `admit` is asked once for each request, before it is
    /// looked at.
    pub fn new(
        inner: S,
        clock: Arc<dyn Clock>,
        longest: Duration,
        methods: &'static Methods,
        status: fn(Refusal) -> Status,
        admit: Admit,
    ) -> Self {
        Self { inner, rules: Arc::new(Rules { clock, longest, methods, status, admit }) }
    }
}

impl<S, B> Service<Request<B>> for Guard<S>
where
    S: Service<Request<Held<B>>, Response = Response, Error = Infallible, Future: Unpin>,
{
    type Response = http::Response<Counted>;
    type Error = Infallible;
    type Future = Answering<S::Future>;

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
        let asked = Asked::what(&request, rules.methods);
        tracing::debug!(
            %request_id, %peer, method = %request.method(), path = request.uri().path(),
            "request"
        );
        let mut answering = Answering::new(
            asked.counted(rules.methods),
            arrived,
            deadline,
            Arc::clone(&request_id),
            rules.status,
        );
        // Before all else: a refusal too is work that a peer asks for.
        let call = Call { now: rules.clock.now(), peer, request_id };
        if let Err(error) = (rules.admit)(&call) {
            answering.refuse(Refusal::of(&error));
            return answering;
        }
        match asked {
            Asked::Wrong(status) => answering.refuse_http(status),
            Asked::WithQuery => answering.refuse(Refusal::Query),
            Asked::Method(_) | Asked::Http => {
                let Some((answer, held)) = account.begin(asked.is_stream()) else {
                    answering.refuse(Refusal::Overloaded);
                    return answering;
                };
                let held = Arc::new(held);
                answering.count(answer, Arc::clone(&held));
                let mut request = request.map(|body| Held::new(body, held, rules.status));
                request.extensions_mut().insert(call);
                request.extensions_mut().insert(Deadline(deadline));
                match catch_unwind(AssertUnwindSafe(|| self.inner.call(request))) {
                    Ok(future) => answering.run(future),
                    Err(_) => answering.refuse(Refusal::Panicked),
                }
            }
        }
        answering
    }
}

/// What a request is for.
#[derive(Clone, Copy)]
enum Asked {
    /// A method; the unknown one for gRPC to a path that is none.
    Method(&'static Method),
    /// Something else.
    Http,
    /// A gRPC call to a path with a query. Routers ignore the query, so it would be served, under a
    /// name nobody wrote down.
    WithQuery,
    /// A method, asked for by what is not gRPC.
    Wrong(StatusCode),
}

impl Asked {
    fn what<B>(request: &Request<B>, methods: &'static Methods) -> Self {
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

    /// What it counts as, where gRPC answers.
    const fn counted(self, methods: &'static Methods) -> Option<&'static Method> {
        match self {
            Self::Method(method) => Some(method),
            Self::WithQuery => Some(&methods.unknown),
            Self::Http | Self::Wrong(_) => None,
        }
    }
}

/// `application/grpc`, also with a message format (`+proto`) or parameters, but not
/// `application/grpc-web`.
pub fn is_grpc(content_type: &[u8]) -> bool {
    content_type
        .strip_prefix(b"application/grpc")
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The `grpc-timeout` of the caller: at most eight digits and a unit. A malformed one is none.
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

    /// T05: what looks like gRPC and is not.
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
