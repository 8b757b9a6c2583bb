//! State that all connections of one peer to one worker share.

use std::{cell::RefCell, collections::HashMap, net::IpAddr, sync::Arc};

use super::stream_memory::{MemorySum, StreamMemory};
use crate::{api::guard::PeerAccount, model::PeerKey};

thread_local! {
    /// Peers with a connection to this worker. Each worker has its own, as it has its own calls:
    /// none touches a cache line of another.
    static PEERS: RefCell<HashMap<PeerKey, Shared>> = RefCell::default();
}

/// State that the connections of one peer share.
#[derive(Default)]
struct Shared {
    connections: usize,
    account: Arc<PeerAccount>,
    /// Memory that HTTP/2 keeps for streams.
    kept: Arc<MemorySum>,
}

/// Membership of one connection in its peer; the last one removes the peer.
pub(super) struct PeerShare {
    peer: PeerKey,
    account: Arc<PeerAccount>,
    kept: Arc<MemorySum>,
}

impl PeerShare {
    /// Adds a connection, on the worker's thread.
    pub(super) fn enter(address: IpAddr) -> Self {
        // An IPv6 customer has 65,536 of the /64 that budgets go by: together they may hold as much
        // as one.
        let peer = PeerKey::network(address);
        PEERS.with_borrow_mut(|peers| {
            let shared = peers.entry(peer).or_default();
            shared.connections += 1;
            Self { peer, account: Arc::clone(&shared.account), kept: Arc::clone(&shared.kept) }
        })
    }

    /// Returns the account of the peer's calls.
    pub(super) fn account(&self) -> Arc<PeerAccount> {
        Arc::clone(&self.account)
    }

    /// Creates the connection's part of the memory that HTTP/2 keeps for the peer.
    pub(super) fn stream_memory(&self) -> StreamMemory {
        StreamMemory::of_this_worker(Arc::clone(&self.kept))
    }
}

impl Drop for PeerShare {
    fn drop(&mut self) {
        PEERS.with_borrow_mut(|peers| {
            if let Some(shared) = peers.get_mut(&self.peer) {
                shared.connections -= 1;
                if shared.connections == 0 {
                    peers.remove(&self.peer);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_one_peer_share_an_account_and_the_last_forgets_it() {
        let enter = |address: &str| PeerShare::enter(address.parse().unwrap());
        let (one, two, other) =
            (enter("2001:db8::1"), enter("2001:db8:0:1::2"), enter("2001:db8:1::1"));
        assert!(Arc::ptr_eq(&one.account, &two.account));
        assert!(!Arc::ptr_eq(&one.account, &other.account));
        drop((one, other));
        assert!(Arc::ptr_eq(&enter("2001:db8::3").account, &two.account));
        drop(two);
        assert_eq!(PEERS.with_borrow(HashMap::len), 0);
    }
}
