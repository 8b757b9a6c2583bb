//! The body of an answer, followed to its end for the sake of its status.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Frame, SizeHint};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::Method;

/// One call to be counted, under its code when it ends, as cancelled if it never does.
pub(super) struct Count {
    method: &'static Method,
    arrived: Instant,
    code: Code,
}

impl Count {
    pub(super) const fn new(method: &'static Method, arrived: Instant) -> Self {
        Self { method, arrived, code: Code::Cancelled }
    }

    pub(super) fn end(mut self, code: Code) {
        self.code = code;
    }

    pub(super) fn path(&self) -> &str {
        self.method.path()
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.method.handled(self.code, self.arrived.elapsed());
    }
}

/// A body that counts its call when it ends. A panic in it ends the stream with INTERNAL.
pub struct Counted {
    body: Body,
    count: Option<Count>,
}

impl Counted {
    pub(super) const fn new(body: Body, count: Option<Count>) -> Self {
        Self { body, count }
    }

    fn end(&mut self, code: Code) {
        if let Some(count) = self.count.take() {
            count.end(code);
        }
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(&mut this.body).poll_frame(cx)));
        let Ok(polled) = polled else {
            this.body = Body::empty();
            metrics::counter!("panics_total").increment(1);
            tracing::error!(method = this.count.as_ref().map(Count::path), "a stream panicked");
            let Some(count) = this.count.take() else { return Poll::Ready(None) };
            count.end(Code::Internal);
            let status = (Status::GRPC_STATUS, HeaderValue::from_static("13"));
            return Poll::Ready(Some(Ok(Frame::trailers(HeaderMap::from_iter([status])))));
        };
        let frame = ready!(polled);
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    let code =
                        trailers.get(Status::GRPC_STATUS).map_or(Code::Unknown, |code| Code::from_bytes(code.as_bytes()));
                    this.end(code);
                }
            }
            Some(Err(_)) | None => this.end(Code::Unknown),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::api::guard::Methods;

    /// C5: a stream that panics ends as INTERNAL.
    #[tokio::test]
    async fn a_panic_in_a_stream_is_its_last_word() {
        let methods = Methods::leaked(&[crate::proto::DESCRIPTORS]).unwrap();
        let method = methods.find("/jeton.admin.v1.AuditService/TailEvents").unwrap();
        let mut chunks = 0;
        let stream = futures_util::stream::poll_fn(move |_| {
            chunks += 1;
            assert!(chunks < 3, "canary");
            Poll::Ready(Some(Ok::<_, std::io::Error>(Bytes::from_static(b"chunk"))))
        });
        let body = Counted::new(Body::from_stream(stream), Some(Count::new(method, Instant::now())));
        let collected = body.collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "13");
        assert_eq!(collected.to_bytes(), "chunkchunk");
        assert_eq!(method.count(Code::Internal), 1);
    }
}
