//! Response body that is followed to its end, for its status and for the bytes that it holds.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::{
    Method, Refusal,
    chunk::{Chunk, Pieces},
};

/// Count of one call, under its code when it ends, as cancelled if it never does.
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

/// Body that counts its call when it ends, and its bytes until they are sent. A panic in it ends
/// the stream with INTERNAL.
pub struct CountedBody {
    body: Body,
    count: Option<Count>,
    /// `None` for a refusal, which has next to no body.
    pieces: Option<Pieces>,
}

impl CountedBody {
    pub(super) const fn new(body: Body, count: Option<Count>, pieces: Option<Pieces>) -> Self {
        Self { body, count, pieces }
    }

    fn end(&mut self, code: Code) {
        if let Some(count) = self.count.take() {
            count.end(code);
        }
    }

    /// Ends the response early: in its trailers if it is gRPC, by a reset if not.
    fn abort(&mut self, refusal: Refusal) -> Option<Result<Frame<Chunk>, axum::Error>> {
        self.body = Body::empty();
        let status = refusal.status();
        let Some(count) = self.count.take() else { return Some(Err(axum::Error::new(status))) };
        count.end(status.code());
        let mut trailers = HeaderMap::new();
        // Our statuses fit into headers.
        let _ = status.add_header(&mut trailers);
        Some(Ok(Frame::trailers(trailers)))
    }

    fn data(&mut self, bytes: Bytes) -> Option<Result<Frame<Chunk>, axum::Error>> {
        let Some(pieces) = &mut self.pieces else {
            return Some(Ok(Frame::data(Chunk::new(bytes, None, None))));
        };
        if !pieces.take(bytes) {
            return self.abort(Refusal::Overloaded);
        }
        let piece = pieces.cut().unwrap_or_else(|| Chunk::new(Bytes::new(), None, None));
        Some(Ok(Frame::data(piece)))
    }
}

impl http_body::Body for CountedBody {
    type Data = Chunk;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, axum::Error>>> {
        let this = &mut *self;
        if let Some(piece) = this.pieces.as_mut().and_then(Pieces::cut) {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(&mut this.body).poll_frame(cx)));
        let Ok(polled) = polled else {
            crate::metrics::METRICS.panics.inc();
            tracing::error!(
                method = this.count.as_ref().map(Count::path),
                "response stream panicked"
            );
            return Poll::Ready(this.abort(Refusal::Panicked));
        };
        let frame = match ready!(polled) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                this.end(Code::Unknown);
                return Poll::Ready(Some(Err(error)));
            }
            None => {
                this.end(Code::Unknown);
                return Poll::Ready(None);
            }
        };
        Poll::Ready(match frame.into_data() {
            Ok(bytes) => this.data(bytes),
            Err(frame) => frame.into_trailers().ok().map(|trailers| {
                let code = trailers
                    .get(Status::GRPC_STATUS)
                    .map_or(Code::Unknown, |code| Code::from_bytes(code.as_bytes()));
                this.end(code);
                Ok(Frame::trailers(trailers))
            }),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left() == 0 && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (left, body) = (self.left() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(left + body.lower());
        if let Some(upper) = body.upper() {
            hint.set_upper(left + upper);
        }
        hint
    }
}

impl CountedBody {
    /// Returns the number of bytes that were taken out of the body and not yet passed on.
    fn left(&self) -> usize {
        self.pieces.as_ref().map_or(0, Pieces::left)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use http_body_util::BodyExt;

    use std::sync::Arc;

    use super::*;
    use crate::api::guard::{
        Methods,
        account::{Account, INCLUDED_BYTES},
        chunk::AnswerPermit,
    };

    fn counted(account: &Arc<Account>, method: &'static Method, body: Body) -> CountedBody {
        let (answer, _request) = account.begin(method.is_stream()).unwrap();
        let included = if answer.is_stream() { 0 } else { INCLUDED_BYTES };
        let pieces =
            Pieces::new(AnswerPermit::new("id".into(), answer), Arc::clone(account), included);
        CountedBody::new(body, Some(Count::new(method, Instant::now())), Some(pieces))
    }

    fn method(path: &str) -> &'static Method {
        Methods::leaked(&[crate::proto::DESCRIPTORS]).unwrap().find(path).unwrap()
    }

    /// C5: a stream that panics ends as INTERNAL.
    #[tokio::test]
    async fn a_panic_in_a_stream_ends_it_with_internal() {
        let method = method("/jeton.admin.v1.AuditService/TailEvents");
        let mut chunks = 0;
        let stream = futures_util::stream::poll_fn(move |_| {
            chunks += 1;
            assert!(chunks < 3, "canary");
            Poll::Ready(Some(Ok::<_, std::io::Error>(Bytes::from_static(b"chunk"))))
        });
        let account = Arc::default();
        let collected =
            counted(&account, method, Body::from_stream(stream)).collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "13");
        assert_eq!(collected.to_bytes(), "chunkchunk");
        assert_eq!(method.count(Code::Internal), 1);
    }

    /// L05: the bytes of a response count until its last piece is dropped, even after its body;
    /// pieces are short, because a piece is sent for one byte of window.
    #[tokio::test]
    async fn an_answer_counts_until_its_last_piece_is_gone() {
        let account = Arc::default();
        let mut body = counted(
            &account,
            method("/jeton.token.v1.TokenService/BatchIntrospect"),
            Body::from(vec![7; 100_000]),
        );
        let begun = account.bytes();
        let mut pieces = Vec::new();
        while let Some(frame) = body.frame().await {
            pieces.push(frame.unwrap().into_data().ok().unwrap());
        }
        assert!(pieces.iter().all(|piece| (1..=16 * 1024).contains(&bytes::Buf::remaining(piece))));
        assert_eq!(pieces.iter().map(bytes::Buf::remaining).sum::<usize>(), 100_000);
        drop(body);
        assert_eq!(account.bytes(), begun + 100_000);
        let last = pieces.pop();
        drop(pieces);
        assert_eq!(account.bytes(), begun + 100_000, "one piece keeps the buffer of all");
        assert!(account.is_busy());
        drop(last);
        assert_eq!((account.bytes(), account.is_busy()), (0, false));
    }

    /// L05: sent bytes of a stream do not count while it waits.
    #[tokio::test]
    async fn a_stream_counts_for_what_was_not_read() {
        let account = Arc::default();
        let stream = futures_util::stream::iter([b"one", b"two"])
            .map(|bytes| Ok::<_, std::io::Error>(bytes.to_vec()));
        let mut body = counted(
            &account,
            method("/jeton.admin.v1.AuditService/TailEvents"),
            Body::from_stream(stream),
        );
        let begun = account.bytes();
        for _ in 0..2 {
            let piece = body.frame().await.unwrap().unwrap();
            assert_eq!((account.bytes(), account.is_busy()), (begun + 3, true));
            drop(piece);
            assert_eq!((account.bytes(), account.is_busy()), (begun, false));
        }
        assert!(account.has_streams());
        drop(body);
        assert_eq!((account.bytes(), account.has_streams()), (0, false));
    }

    /// L05: a response without room in its peer's share is aborted with a status.
    #[tokio::test]
    async fn an_answer_without_room_is_refused() {
        let account = Arc::<Account>::default();
        let _unread: Vec<_> = (0..15).map_while(|_| account.acquire(1 << 20)).collect();
        let method = method("/jeton.token.v1.TokenService/BatchIntrospect");
        let collected =
            counted(&account, method, Body::from(vec![7; 1 << 20])).collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "8");
        assert_eq!((collected.to_bytes().len(), method.count(Code::ResourceExhausted)), (0, 1));
    }
}
