//! How much of requests that are not yet whole is held. A stranger can begin a call on each of very many streams and never
//! finish its message: each costs a buffer until its deadline. Together they may cost so much and no more, and those of one
//! peer only a part of it, so that there is room for the others.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tonic::Status;

use super::Refusal;

/// What all unfinished requests of one worker may hold, in bytes.
const MOST: usize = 128 * 1024 * 1024;
/// What those of one peer may hold of it.
const MOST_PER_PEER: usize = MOST / 8;
/// What a request counts for before its first byte: its headers, its task, and the buffer that tonic makes at once.
const BEGUN: usize = 16 * 1024;

thread_local! {
    /// Of this worker: calls never cross threads, so counting costs no worker another's cache line.
    static HELD: Arc<AtomicUsize> = Arc::default();
}

/// One request's part of what is held, given back when its body has been read or dropped.
pub(super) struct Share {
    all: Arc<AtomicUsize>,
    of_peer: Arc<AtomicUsize>,
    bytes: usize,
}

impl Share {
    /// Nothing if there is no room to begin another request, at all or for the peer that holds `of_peer`.
    pub(super) fn of_this_worker(of_peer: Arc<AtomicUsize>) -> Option<Self> {
        Self::of(HELD.with(Arc::clone), of_peer)
    }

    fn of(all: Arc<AtomicUsize>, of_peer: Arc<AtomicUsize>) -> Option<Self> {
        let mut share = Self { all, of_peer, bytes: 0 };
        share.grow(BEGUN).then_some(share)
    }

    /// Whether there was room for that much more.
    fn grow(&mut self, by: usize) -> bool {
        self.bytes += by;
        let all = self.all.fetch_add(by, Relaxed) + by;
        let of_peer = self.of_peer.fetch_add(by, Relaxed) + by;
        all <= MOST && of_peer <= MOST_PER_PEER
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Relaxed);
        self.of_peer.fetch_sub(self.bytes, Relaxed);
    }
}

/// The body of a request, counted as it comes in.
pub struct Held<B> {
    body: B,
    share: Share,
    status: fn(Refusal) -> Status,
}

impl<B> Held<B> {
    pub(super) const fn new(body: B, share: Share, status: fn(Refusal) -> Status) -> Self {
        Self { body, share, status }
    }
}

impl<B> Body for Held<B>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        let read = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
        if read > 0 && !this.share.grow(read) {
            // tonic answers with the status it finds among an error's causes.
            return Poll::Ready(Some(Err((this.status)(Refusal::Overloaded).into())));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_bounded_and_given_back() {
        let all = Arc::<AtomicUsize>::default();
        let peers: [Arc<AtomicUsize>; 9] = Default::default();
        let begin = |peer: usize| Share::of(Arc::clone(&all), Arc::clone(&peers[peer]));
        let mut shares = Vec::new();
        for peer in 0..8 {
            shares.extend((0..MOST / BEGUN).map_while(|_| begin(peer)));
            assert_eq!(shares.len(), MOST / BEGUN / 8 * (peer + 1), "a peer has an eighth");
        }
        assert!(begin(8).is_none(), "all is held");
        assert!(!shares[0].grow(1), "nor is there room for another byte");
        shares.truncate(1);
        assert!(begin(8).is_some());
        drop(shares);
        assert!(peers.iter().chain([&all]).all(|held| held.load(Relaxed) == 0), "what was refused is not counted");
    }
}
