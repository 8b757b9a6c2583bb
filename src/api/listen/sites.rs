//! What all connections of one peer to one worker have in common.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, atomic::AtomicUsize},
};

use super::caps::peer_of;

thread_local! {
    /// The peers with a connection to this worker, and how many. Of each worker its own, as its calls are: no worker waits for
    /// another's cache line.
    static SITES: RefCell<HashMap<IpAddr, (usize, Arc<AtomicUsize>)>> = RefCell::default();
}

/// One connection's part in its peer; the last one to go takes the peer with it.
pub(super) struct Site {
    peer: IpAddr,
    unfinished: Arc<AtomicUsize>,
}

impl Site {
    /// On the worker's thread, once for each connection.
    pub(super) fn enter(address: IpAddr) -> Self {
        let peer = peer_of(address);
        let unfinished = SITES.with_borrow_mut(|sites| {
            let (connections, unfinished) = sites.entry(peer).or_default();
            *connections += 1;
            Arc::clone(unfinished)
        });
        Self { peer, unfinished }
    }

    /// The bytes that the peer's unfinished requests hold.
    pub(super) fn unfinished(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.unfinished)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        SITES.with_borrow_mut(|sites| {
            if let Some((connections, _)) = sites.get_mut(&self.peer) {
                *connections -= 1;
                if *connections == 0 {
                    sites.remove(&self.peer);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_one_peer_share_a_count_and_the_last_forgets_it() {
        let enter = |address: &str| Site::enter(address.parse().unwrap());
        let (one, two, other) = (enter("2001:db8::1"), enter("2001:db8::2"), enter("2001:db8:0:1::1"));
        assert!(Arc::ptr_eq(&one.unfinished, &two.unfinished));
        assert!(!Arc::ptr_eq(&one.unfinished, &other.unfinished));
        drop((one, other));
        assert!(Arc::ptr_eq(&enter("2001:db8::3").unfinished, &two.unfinished));
        drop(two);
        assert_eq!(SITES.with_borrow(HashMap::len), 0);
    }
}
