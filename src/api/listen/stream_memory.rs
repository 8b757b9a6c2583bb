//! Limit on the memory that HTTP/2 keeps for streams. Its tables grow to the most that a connection
//! ever had at once and never shrink: a client that opens many streams, once, on each of very many
//! connections would leave behind more than all its calls may hold. So the memory kept for the
//! connections of one peer to one worker is bounded, and that for all peers together.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::Notify;

/// Bytes that may be kept for the connections of one worker beyond the free part of each.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of it that may be kept for the connections of one peer.
pub(super) const MAX_BYTES_PER_PEER: usize = MAX_BYTES / 8;

thread_local! {
    /// Sum of this worker.
    static WORKER_MEMORY: Arc<MemorySum> = Arc::default();
}

/// Sum over connections.
#[derive(Debug, Default)]
pub(super) struct MemorySum {
    bytes: AtomicUsize,
    /// Bytes of connections that were sent a GOAWAY, as they were then.
    leaving: AtomicUsize,
}

impl MemorySum {
    fn grow(&self, by: usize) -> usize {
        self.bytes.fetch_add(by, Relaxed) + by
    }

    /// Returns the bytes that will not be released soon.
    fn staying(&self) -> usize {
        self.bytes.load(Relaxed).saturating_sub(self.leaving.load(Relaxed))
    }
}

/// Bytes that are kept for one connection, and the sums that they are part of.
#[derive(Default)]
pub(super) struct StreamMemory {
    worker: Arc<MemorySum>,
    peer: Arc<MemorySum>,
    own: AtomicUsize,
    /// Part of its own bytes that counts as leaving.
    leaving: AtomicUsize,
    grown: Notify,
}

impl StreamMemory {
    /// Creates the state of a connection to the worker of this thread; `peer` is the sum of its
    /// peer.
    pub(super) fn of_this_worker(peer: Arc<MemorySum>) -> Self {
        let mut stream_memory = Self::default();
        (stream_memory.worker, stream_memory.peer) = (WORKER_MEMORY.with(Arc::clone), peer);
        stream_memory
    }

    /// Keeps `by` more bytes until the connection ends. Returns true if there was room for them.
    pub(super) fn grow(&self, by: usize) -> bool {
        if self.own.fetch_add(by, Relaxed) == 0 {
            self.grown.notify_one();
        }
        let (all, of_peer) = (self.worker.grow(by), self.peer.grow(by));
        all <= MAX_BYTES && of_peer <= MAX_BYTES_PER_PEER
    }

    /// Waits until the first bytes are kept for the connection.
    pub(super) async fn grown(&self) {
        self.grown.notified().await;
    }

    /// Returns true if bytes are kept for the connection.
    pub(super) fn is_kept(&self) -> bool {
        self.own.load(Relaxed) > 0
    }

    /// Returns true if bytes are kept for the connection while its peer or its worker has used half
    /// of the limit, without connections that were sent a GOAWAY: no more leave than need to.
    pub(super) fn should_leave(&self) -> bool {
        self.is_kept()
            && (self.peer.staying() > MAX_BYTES_PER_PEER / 2
                || self.worker.staying() > MAX_BYTES / 2)
    }

    /// Records, once, that the connection is sent a GOAWAY.
    pub(super) fn leave(&self) {
        let own = self.own.load(Relaxed);
        self.leaving.store(own, Relaxed);
        self.worker.leaving.fetch_add(own, Relaxed);
        self.peer.leaving.fetch_add(own, Relaxed);
    }
}

impl Drop for StreamMemory {
    fn drop(&mut self) {
        let (own, leaving) = (self.own.load(Relaxed), self.leaving.load(Relaxed));
        for sum in [&self.worker, &self.peer] {
            sum.bytes.fetch_sub(own, Relaxed);
            sum.leaving.fetch_sub(leaving, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L02 (AUDIT TL1): the memory kept for the connections of a peer is bounded together, and so
    /// is that of all peers; all of it is released.
    #[test]
    fn what_connections_keep_is_bounded_and_given_back() {
        let worker = Arc::<MemorySum>::default();
        let peers: [Arc<MemorySum>; 9] = Default::default();
        let memory_of = |peer: usize| {
            let mut stream_memory = StreamMemory::default();
            (stream_memory.worker, stream_memory.peer) =
                (Arc::clone(&worker), Arc::clone(&peers[peer]));
            stream_memory
        };
        let (one, two) = (memory_of(0), memory_of(0));
        assert!(one.grow(MAX_BYTES_PER_PEER / 2) && !one.should_leave());
        assert!(two.grow(MAX_BYTES_PER_PEER / 2) && one.should_leave() && two.should_leave());
        assert!(!two.grow(1), "the peer has no more");
        two.leave();
        assert!(!one.should_leave(), "enough is about to be given back");
        drop(two);
        assert!(!one.should_leave());

        let rest: Vec<_> = (1..8).map(memory_of).collect();
        assert!(rest.iter().all(|one| one.grow(MAX_BYTES_PER_PEER)));
        assert!(one.should_leave() && one.grow(MAX_BYTES_PER_PEER / 2));
        assert!(!memory_of(8).should_leave(), "it keeps nothing that it could give back");
        assert!(!memory_of(8).grow(1), "the worker has no more");
        drop((one, rest));
        let is_empty =
            |sum: &Arc<MemorySum>| (sum.bytes.load(Relaxed), sum.leaving.load(Relaxed)) == (0, 0);
        assert!(peers.iter().chain([&worker]).all(is_empty));
    }
}
