//! Memory that the calls of a peer hold: incomplete requests and unsent responses. An
//! unauthenticated client can begin a call on each of very many streams and never finish its
//! message, or never read the response. All calls of a worker together may hold a fixed number of
//! bytes, and those of one peer a part of it, so that there is room for the others.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Bytes that all calls of one worker may hold.
const MAX_BYTES: usize = 128 * 1024 * 1024;
/// Bytes of it that the calls of one peer may hold.
const MAX_BYTES_PER_PEER: usize = MAX_BYTES / 8;
/// Bytes that a request costs, besides its response and before its first byte, until the response
/// is made.
const REQUEST_COST: usize = 4 * 1024;
/// Bytes that a response costs from the start of its call: headers, task, stream, and a small
/// message.
const BASE_COST: usize = 12 * 1024;
/// Bytes of a message that are part of [`BASE_COST`].
pub(super) const INCLUDED_BYTES: usize = 4 * 1024;
/// Bytes that an endless stream costs, besides its messages.
const STREAM_COST: usize = 8 * 1024;
/// Endless streams that one peer may have open at one worker: half of what its bytes allow, so that
/// it can still call.
const MAX_STREAMS_PER_PEER: usize = MAX_BYTES_PER_PEER / STREAM_COST / 2;

thread_local! {
    /// Sum of this worker: calls never cross threads, so counting touches no cache line of another
    /// worker.
    static WORKER_BYTES: Arc<AtomicUsize> = Arc::default();
}

/// Sums over all connections of one peer to one worker.
#[derive(Debug, Default)]
pub struct PeerAccount {
    bytes: AtomicUsize,
    streams: AtomicUsize,
}

/// Open calls of one connection, and the sums that they are part of.
#[derive(Debug)]
pub struct Account {
    worker: Arc<AtomicUsize>,
    peer: Arc<PeerAccount>,
    /// Responses and pieces that must be sent within a time, by the generation in which they began.
    even: AtomicUsize,
    odd: AtomicUsize,
    generation: AtomicUsize,
    /// Endless streams.
    streams: AtomicUsize,
}

impl Account {
    /// Creates the account of a connection to the worker of this thread.
    pub fn of_this_worker(peer: Arc<PeerAccount>) -> Arc<Self> {
        Arc::new(Self::new(WORKER_BYTES.with(Arc::clone), peer))
    }

    fn new(worker: Arc<AtomicUsize>, peer: Arc<PeerAccount>) -> Self {
        let (even, odd, generation, streams) = Default::default();
        Self { worker, peer, even, odd, generation, streams }
    }

    /// Begins a new generation. Returns true if anything of the last but one has not been sent:
    /// called at even intervals, it finds everything older than two of them, and nothing younger
    /// than one.
    pub fn has_overdue(&self) -> bool {
        let next = self.generation.load(Relaxed) + 1;
        if self.timed(next).load(Relaxed) > 0 {
            return true;
        }
        self.generation.store(next, Relaxed);
        false
    }

    /// Returns true if a call is in progress, other than an endless stream.
    pub fn is_busy(&self) -> bool {
        self.even.load(Relaxed) + self.odd.load(Relaxed) > 0
    }

    /// Returns true if an endless stream is open.
    pub fn has_streams(&self) -> bool {
        self.streams.load(Relaxed) > 0
    }

    const fn timed(&self, generation: usize) -> &AtomicUsize {
        if generation.is_multiple_of(2) { &self.even } else { &self.odd }
    }

    /// Acquires the permits of a new call, for its response and for its request; `None` if the peer
    /// or the worker holds too much.
    pub(super) fn begin(self: &Arc<Self>, is_stream: bool) -> Option<(MemoryPermit, MemoryPermit)> {
        let (kind, bytes) =
            if is_stream { (Kind::Stream, STREAM_COST) } else { (self.now(), BASE_COST) };
        let answer = MemoryPermit::new(self, kind);
        if is_stream && self.peer.streams.load(Relaxed) > MAX_STREAMS_PER_PEER {
            return None;
        }
        // Acquired together and then split, because this runs for every call.
        if !answer.grow(bytes + REQUEST_COST) {
            return None;
        }
        answer.bytes.store(bytes, Relaxed);
        let request = MemoryPermit::new(self, Kind::Request);
        request.bytes.store(REQUEST_COST, Relaxed);
        Some((answer, request))
    }

    /// Acquires a permit for `bytes` of a response that must be sent within a time.
    pub(super) fn acquire(self: &Arc<Self>, bytes: usize) -> Option<MemoryPermit> {
        let permit = MemoryPermit::new(self, self.now());
        permit.grow(bytes).then_some(permit)
    }

    fn now(&self) -> Kind {
        Kind::Timed(self.generation.load(Relaxed))
    }
}

impl Default for Account {
    /// Creates the account of a request without a listener.
    fn default() -> Self {
        Self::new(Arc::default(), Arc::default())
    }
}

/// Part of an account, released when dropped.
#[derive(Debug)]
pub(super) struct MemoryPermit {
    account: Arc<Account>,
    bytes: AtomicUsize,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Request: the deadline of its call ends it.
    Request,
    /// Call with a finite response, or a piece of a response, with its generation.
    Timed(usize),
    /// Endless stream.
    Stream,
}

impl MemoryPermit {
    fn new(account: &Arc<Account>, kind: Kind) -> Self {
        match kind {
            Kind::Request => {}
            Kind::Timed(generation) => {
                account.timed(generation).fetch_add(1, Relaxed);
            }
            Kind::Stream => {
                account.streams.fetch_add(1, Relaxed);
                account.peer.streams.fetch_add(1, Relaxed);
            }
        }
        Self { account: Arc::clone(account), bytes: AtomicUsize::new(0), kind }
    }

    /// Returns true if there was room for that many more bytes.
    pub(super) fn grow(&self, by: usize) -> bool {
        self.bytes.fetch_add(by, Relaxed);
        let all = self.account.worker.fetch_add(by, Relaxed) + by;
        let of_peer = self.account.peer.bytes.fetch_add(by, Relaxed) + by;
        all <= MAX_BYTES && of_peer <= MAX_BYTES_PER_PEER
    }

    pub(super) const fn account(&self) -> &Arc<Account> {
        &self.account
    }

    pub(super) const fn is_stream(&self) -> bool {
        matches!(self.kind, Kind::Stream)
    }
}

impl Drop for MemoryPermit {
    fn drop(&mut self) {
        let (account, bytes) = (&*self.account, self.bytes.load(Relaxed));
        account.worker.fetch_sub(bytes, Relaxed);
        account.peer.bytes.fetch_sub(bytes, Relaxed);
        match self.kind {
            Kind::Request => {}
            Kind::Timed(generation) => {
                account.timed(generation).fetch_sub(1, Relaxed);
            }
            Kind::Stream => {
                account.streams.fetch_sub(1, Relaxed);
                account.peer.streams.fetch_sub(1, Relaxed);
            }
        }
    }
}

#[cfg(test)]
impl Account {
    /// Bytes that the peer holds.
    pub(super) fn bytes(&self) -> usize {
        self.peer.bytes.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L08: the sum of a worker and the part of a peer are bounded, and everything is released.
    #[test]
    fn bytes_are_bounded_and_given_back() {
        let worker = Arc::<AtomicUsize>::default();
        let peers: Vec<_> =
            (0..9).map(|_| Arc::new(Account::new(Arc::clone(&worker), Arc::default()))).collect();
        let most = MAX_BYTES / (BASE_COST + REQUEST_COST);
        let mut permits = Vec::new();
        for (peer, account) in peers.iter().take(8).enumerate() {
            permits.extend((0..most).map_while(|_| account.begin(false)));
            assert_eq!(permits.len(), most / 8 * (peer + 1), "a peer has an eighth");
        }
        assert!(peers[8].begin(false).is_none(), "the worker has no room");
        assert!(!permits[0].1.grow(1), "nor for another byte");
        permits.truncate(1);
        assert!(peers[8].begin(false).is_some());
        drop(permits);
        assert!(
            peers.iter().all(|account| account.bytes() == 0 && !account.is_busy()),
            "what was refused is not counted"
        );
        assert_eq!(worker.load(Relaxed), 0);
    }

    /// L08: once its response has been made, a call counts for its response alone.
    #[test]
    fn an_answer_goes_on_counting_without_its_request() {
        let account = Arc::new(Account::default());
        let (answer, request) = account.begin(false).unwrap();
        drop(request);
        assert_eq!((account.bytes(), account.is_busy()), (BASE_COST, true));
        let piece = account.acquire(1_000_000).unwrap();
        assert!(
            account.acquire(MAX_BYTES_PER_PEER).is_none(),
            "a piece that is too large is refused"
        );
        drop((answer, piece));
        assert_eq!((account.bytes(), account.is_busy()), (0, false));
    }

    /// L08: endless streams are bounded separately, over all connections of a peer, and leave room
    /// for calls.
    #[test]
    fn streams_leave_room_for_calls() {
        let peer = Arc::<PeerAccount>::default();
        let connect = || Arc::new(Account::new(Arc::default(), Arc::clone(&peer)));
        let (one, other) = (connect(), connect());
        let open = |number: usize| {
            if number.is_multiple_of(2) { one.begin(true) } else { other.begin(true) }
        };
        let streams: Vec<_> =
            (0..2 * MAX_STREAMS_PER_PEER).map_while(|number| Some(open(number)?.0)).collect();
        assert_eq!(streams.len(), MAX_STREAMS_PER_PEER);
        assert!(one.begin(false).is_some(), "a call has room");
        assert!(one.has_streams() && !one.is_busy());
        drop(streams);
        assert!(!one.has_streams() && other.begin(true).is_some());
    }

    /// L05: a response is overdue after two generations at the latest, and never after one.
    #[test]
    fn the_second_turn_finds_what_was_not_sent() {
        let account = Arc::new(Account::default());
        for _ in 0..3 {
            assert!(!account.has_overdue());
            let unread = account.begin(false).unwrap();
            assert!(!account.has_overdue());
            let young = account.begin(false).unwrap();
            assert!(account.has_overdue(), "the first is overdue");
            drop(unread);
            assert!(!account.has_overdue(), "the other is not");
            drop(young);
        }
        let stream = account.begin(true).unwrap();
        assert!((0..9).all(|_| !account.has_overdue()), "a stream may stay");
        let piece = account.acquire(10).unwrap();
        assert!(!account.has_overdue() && account.has_overdue(), "but what it sends must be read");
        drop((stream, piece));
    }
}
