//! Future of a response: the handler's, or a refusal in its place.

use std::{
    convert::Infallible,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Once},
    task::{Context, Poll},
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use http_body::Body as _;
use tokio::time::{Instant, Sleep};
use tonic::{Code, Status};

use super::{
    Method, Refusal,
    account::{INCLUDED_BYTES, MemoryPermit},
    chunk::{AnswerPermit, Pieces},
    request_id,
    response_body::{Count, CountedBody},
};

/// Header of the request id in a response.
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Header of the encodings that requests may use.
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const IDENTITY: HeaderValue = HeaderValue::from_static("identity");
/// Statuses that tonic returns by itself for requests it cannot decode, and their replacements: its
/// words are not for callers, and INTERNAL is for our own defects. By code and by the beginning of
/// the message, percent-encoded.
const TONIC_REFUSALS: [(Code, &[u8], Refusal); 7] = [
    (Code::OutOfRange, b"Error,%20decoded%20message%20length%20too%20large", Refusal::TooLarge),
    (Code::Internal, b"failed%20to%20decode%20Protobuf%20message", Refusal::Malformed),
    (Code::Internal, b"protocol%20error:%20received%20message%20with", Refusal::Malformed),
    (Code::Internal, b"Unexpected%20EOF%20decoding%20stream", Refusal::Malformed),
    (Code::Internal, b"Missing%20request%20message", Refusal::Malformed),
    (Code::Unimplemented, b"Content%20is%20compressed%20with", Refusal::Compressed),
    // No handler returns this code: any other is the router's, which has no words.
    (Code::Unimplemented, b"", Refusal::NoMethod),
];

/// Response to one request.
pub struct ResponseFuture<F> {
    stage: Stage<F>,
    /// `None` if the response is not gRPC, or is counted already.
    count: Option<Count>,
    is_grpc: bool,
    deadline: Instant,
    /// Created only once the handler has to wait, which most do not.
    alarm: Option<Pin<Box<Sleep>>>,
    request_id: Arc<str>,
    /// `None` until the call is admitted.
    permit: Option<MemoryPermit>,
    /// Permit of the request, which the handler holds decoded: released with the handler, not when
    /// the body has been read.
    request: Option<Arc<MemoryPermit>>,
}

enum Stage<F> {
    Running(F),
    Refused(Refusal),
    RefusedHttp(StatusCode),
    Done,
}

impl<F> ResponseFuture<F> {
    pub(super) fn new(
        method: Option<&'static Method>,
        arrived: Instant,
        deadline: Instant,
        request_id: Arc<str>,
    ) -> Self {
        let count = method.map(|method| Count::new(method, arrived));
        Self {
            stage: Stage::Done,
            is_grpc: count.is_some(),
            count,
            deadline,
            alarm: None,
            request_id,
            permit: None,
            request: None,
        }
    }

    /// Counts the response from here on, until it is sent, and the request until the response is
    /// made.
    pub(super) fn count(&mut self, answer: MemoryPermit, request: Arc<MemoryPermit>) {
        self.permit = Some(answer);
        self.request = Some(request);
    }

    pub(super) fn run(&mut self, future: F) {
        self.stage = Stage::Running(future);
    }

    pub(super) fn refuse(&mut self, refusal: Refusal) {
        self.stage = Stage::Refused(refusal);
    }

    pub(super) fn refuse_http(&mut self, status: StatusCode) {
        self.stage = Stage::RefusedHttp(status);
    }

    /// Returns true if the deadline has passed; if not, the task is woken when it does.
    fn is_deadline_exceeded(&mut self, cx: &mut Context<'_>) -> bool {
        let deadline = self.deadline;
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        alarm.as_mut().poll(cx).is_ready()
    }

    fn refused(&mut self, refusal: Refusal) -> Response {
        if refusal == Refusal::Panicked {
            let method = self.count.as_ref().map(Count::path);
            tracing::error!(request_id = %self.request_id, method, "handler panicked");
            crate::metrics::METRICS.panics.inc();
        }
        if self.count.is_some() { refusal.status().into_http() } else { refusal.response() }
    }

    /// Adds the headers of every response, and the counting: of its call until it ends, of its
    /// bytes until they are sent.
    fn complete(&mut self, mut response: Response) -> http::Response<CountedBody> {
        let answer = self.permit.take().map(|permit| {
            let (account, included) =
                (Arc::clone(permit.account()), if permit.is_stream() { 0 } else { INCLUDED_BYTES });
            let answer = AnswerPermit::new(Arc::clone(&self.request_id), permit);
            (answer.request_id(), Pieces::new(answer, account, included))
        });
        let (request_id, mut pieces) = match answer {
            Some((request_id, pieces)) => (request_id, Some(pieces)),
            None => (Bytes::copy_from_slice(self.request_id.as_bytes()), None),
        };
        // A page of known length: there is room for it, or it is refused while that is still
        // possible.
        if let (Some(pieces), Some(length)) = (&mut pieces, response.body().size_hint().exact())
            && !pieces.reserve(usize::try_from(length).unwrap_or(usize::MAX))
        {
            response = self.refused(Refusal::Overloaded);
        }
        if let (Some(_), Some(code)) = (&self.count, response.headers().get(Status::GRPC_STATUS)) {
            // A status in the headers is the whole response.
            let mut code = Code::from_bytes(code.as_bytes());
            let message = response
                .headers()
                .get(Status::GRPC_MESSAGE)
                .map_or(&b""[..], HeaderValue::as_bytes);
            let of_tonic = TONIC_REFUSALS
                .iter()
                .find(|(its, words, _)| code == *its && message.starts_with(words));
            if let Some((.., refusal)) = of_tonic {
                let status = refusal.status();
                code = status.code();
                response = status.into_http();
            }
            if let Some(count) = self.count.take() {
                count.end(code);
            }
        }
        response.headers_mut().insert(X_REQUEST_ID, request_id::header(request_id));
        if self.is_grpc {
            response.headers_mut().insert(ACCEPT_ENCODING, IDENTITY);
        }
        let count = self.count.take();
        response.map(|body| CountedBody::new(body, count, pieces))
    }
}

impl<F> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response, Infallible>> + Unpin,
{
    type Output = Result<http::Response<CountedBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let response = match &mut this.stage {
            Stage::Running(future) => {
                match catch_unwind(AssertUnwindSafe(|| Pin::new(future).poll(cx))) {
                    Ok(Poll::Ready(Ok(response))) => response,
                    Ok(Poll::Pending) => {
                        if !this.is_deadline_exceeded(cx) {
                            return Poll::Pending;
                        }
                        this.refused(Refusal::DeadlineExceeded)
                    }
                    Err(_) => this.refused(Refusal::Panicked),
                }
            }
            Stage::Refused(refusal) => {
                let refusal = *refusal;
                this.refused(refusal)
            }
            Stage::RefusedHttp(status) => empty(*status),
            // Polled after it was ready, which no caller may do.
            Stage::Done => return Poll::Pending,
        };
        // The handler is dropped at once: after the deadline no caller waits for its result.
        this.stage = Stage::Done;
        this.request = None;
        Poll::Ready(Ok(this.complete(response)))
    }
}

fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// Makes panics print their place and not their message, which may contain a secret. For the whole
/// process, once.
pub fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let place = info.location().map(ToString::to_string);
            tracing::error!(place, thread = std::thread::current().name(), "panicked");
        }));
    });
}
