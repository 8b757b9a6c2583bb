//! Memory that HTTP/2 keeps for streams. Its tables grow to the most that a connection ever had at
//! once and never shrink: a client that opens many streams, once, on each of very many connections
//! would leave behind more than all its calls may hold. So what the connections of one peer to one
//! worker keep is bounded, and those of all peers together.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::Notify;

/// Bytes that the connections of one worker may keep beyond what every connection may.
const MOST: usize = 64 * 1024 * 1024;
/// Bytes of it that the connections of one peer may keep.
pub(super) const MOST_PER_PEER: usize = MOST / 8;

thread_local! {
    /// Of this worker.
    static KEPT: Arc<Kept> = Arc::default();
}

/// Sum over connections.
#[derive(Debug, Default)]
pub(super) struct Kept {
    bytes: AtomicUsize,
    /// Those of connections that were sent a GOAWAY, as they were then.
    leaving: AtomicUsize,
}

impl Kept {
    fn grow(&self, by: usize) -> usize {
        self.bytes.fetch_add(by, Relaxed) + by
    }

    /// Bytes that will not be given back soon.
    fn staying(&self) -> usize {
        self.bytes.load(Relaxed).saturating_sub(self.leaving.load(Relaxed))
    }
}

/// Bytes that one connection keeps, and the sums that they are part of.
#[derive(Default)]
pub(super) struct Room {
    worker: Arc<Kept>,
    peer: Arc<Kept>,
    own: AtomicUsize,
    /// Part of its own that counts as leaving.
    leaving: AtomicUsize,
    grown: Notify,
}

impl Room {
    /// Of a connection to the worker of this thread; `peer` is the sum of its peer's.
    pub(super) fn of_this_worker(peer: Arc<Kept>) -> Self {
        let mut room = Self::default();
        (room.worker, room.peer) = (KEPT.with(Arc::clone), peer);
        room
    }

    /// Keeps `by` more until the connection ends. Returns true if there was room for it.
    pub(super) fn grow(&self, by: usize) -> bool {
        if self.own.fetch_add(by, Relaxed) == 0 {
            self.grown.notify_one();
        }
        let (all, of_peer) = (self.worker.grow(by), self.peer.grow(by));
        all <= MOST && of_peer <= MOST_PER_PEER
    }

    /// Waits until the connection begins to keep something.
    pub(super) async fn grown(&self) {
        self.grown.notified().await;
    }

    /// Returns true if the connection keeps something.
    pub(super) fn is_kept(&self) -> bool {
        self.own.load(Relaxed) > 0
    }

    /// Returns true if the connection keeps something while its peer or its worker has used up half
    /// of what there is, without those of connections that were sent a GOAWAY: no more go than need
    /// to.
    pub(super) fn is_wanted(&self) -> bool {
        self.is_kept()
            && (self.peer.staying() > MOST_PER_PEER / 2 || self.worker.staying() > MOST / 2)
    }

    /// Notes, once, that the connection is sent a GOAWAY.
    pub(super) fn leave(&self) {
        let own = self.own.load(Relaxed);
        self.leaving.store(own, Relaxed);
        self.worker.leaving.fetch_add(own, Relaxed);
        self.peer.leaving.fetch_add(own, Relaxed);
    }
}

impl Drop for Room {
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

    /// L02 (AUDIT TL1): what the connections of a peer keep is bounded together, and so is what
    /// those of all peers do; all of it is given back.
    #[test]
    fn what_connections_keep_is_bounded_and_given_back() {
        let worker = Arc::<Kept>::default();
        let peers: [Arc<Kept>; 9] = Default::default();
        let room = |peer: usize| {
            let mut room = Room::default();
            (room.worker, room.peer) = (Arc::clone(&worker), Arc::clone(&peers[peer]));
            room
        };
        let (one, two) = (room(0), room(0));
        assert!(one.grow(MOST_PER_PEER / 2) && !one.is_wanted());
        assert!(two.grow(MOST_PER_PEER / 2) && one.is_wanted() && two.is_wanted());
        assert!(!two.grow(1), "the peer has no more");
        two.leave();
        assert!(!one.is_wanted(), "enough is about to be given back");
        drop(two);
        assert!(!one.is_wanted());

        let rest: Vec<_> = (1..8).map(room).collect();
        assert!(rest.iter().all(|room| room.grow(MOST_PER_PEER)));
        assert!(one.is_wanted() && one.grow(MOST_PER_PEER / 2));
        assert!(!room(8).is_wanted(), "it keeps nothing that it could give back");
        assert!(!room(8).grow(1), "the worker has no more");
        drop((one, rest));
        let is_empty =
            |sum: &Arc<Kept>| (sum.bytes.load(Relaxed), sum.leaving.load(Relaxed)) == (0, 0);
        assert!(peers.iter().chain([&worker]).all(is_empty));
    }
}
