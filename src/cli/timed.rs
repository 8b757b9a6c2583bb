//! Timeout of calls on the client's side. The transport's own ends with the head of the response
//! and reports a cancelled call; this one covers the whole response, and is a missed deadline.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::Frame;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{
    Status,
    body::Body,
    transport::{self, Channel},
};
use tower::Service;

/// Header of a request with a timeout.
const GRPC_TIMEOUT: &str = "grpc-timeout";

/// Channel whose calls with a timeout end in time. The server gets the timeout too.
#[derive(Clone, Debug)]
pub(super) struct TimedChannel {
    channel: Channel,
    timeout: Duration,
}

impl TimedChannel {
    /// Creates a channel for requests with this timeout or without one.
    pub(super) const fn new(channel: Channel, timeout: Duration) -> Self {
        Self { channel, timeout }
    }
}

impl Service<http::Request<Body>> for TimedChannel {
    type Response = http::Response<Body>;
    type Error = transport::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let is_timed = request.headers().contains_key(GRPC_TIMEOUT);
        let timeout = self.timeout;
        let end = Instant::now() + timeout;
        let call = self.channel.call(request);
        if !is_timed {
            return Box::pin(call);
        }
        Box::pin(async move {
            // The transport has the same timeout, and another code for it.
            tokio::select! {
                biased;
                () = sleep_until(end) => Ok(late(timeout).into_http()),
                response = call => {
                    Ok(response?.map(|body| Body::new(TimedBody::new(body, end, timeout))))
                }
            }
        })
    }
}

fn late(timeout: Duration) -> Status {
    Status::deadline_exceeded(format!("no reply within {} s (--timeout)", timeout.as_secs()))
}

/// Body of a response that must be complete in time.
struct TimedBody {
    body: Body,
    end: Pin<Box<Sleep>>,
    timeout: Duration,
}

impl TimedBody {
    fn new(body: Body, end: Instant, timeout: Duration) -> Self {
        Self { body, end: Box::pin(sleep_until(end)), timeout }
    }
}

impl http_body::Body for TimedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        self.end.as_mut().poll(cx).map(|()| Some(Err(late(self.timeout))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
