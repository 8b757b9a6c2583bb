//! Request body that is counted as it is received.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::{Refusal, account::MemoryPermit};

/// Body of a request. Received bytes go on counting after it is dropped, until the response is
/// made: the handler holds them.
pub struct MeteredBody<B> {
    body: B,
    permit: Arc<MemoryPermit>,
}

impl<B> MeteredBody<B> {
    pub(super) const fn new(body: B, permit: Arc<MemoryPermit>) -> Self {
        Self { body, permit }
    }
}

impl<B> Body for MeteredBody<B>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        let read =
            frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
        if read > 0 && !this.permit.grow(read) {
            // tonic responds with the status it finds among an error's causes.
            return Poll::Ready(Some(Err(Refusal::Overloaded.status().into())));
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
