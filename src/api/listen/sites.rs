//! What all connections of one peer to one worker have in common.

use std::{cell::RefCell, collections::HashMap, net::IpAddr, sync::Arc};

use super::room::{Kept, Room};
use crate::{api::guard::PeerAccount, model::PeerKey};

thread_local! {
    /// The peers with a connection to this worker. Of each worker its own, as its calls are: no
    /// worker waits for another's cache line.
    static SITES: RefCell<HashMap<PeerKey, Shared>> = RefCell::default();
}

/// State that the connections of one peer share.
#[derive(Default)]
struct Shared {
    connections: usize,
    account: Arc<PeerAccount>,
    /// Bytes that HTTP/2 keeps for streams.
    kept: Arc<Kept>,
}

/// One connection's part in its peer; the last one to go takes the peer with it.
pub(super) struct Member {
    site: PeerKey,
    account: Arc<PeerAccount>,
    kept: Arc<Kept>,
}

impl Member {
    /// On the worker's thread, once for each connection.
    pub(super) fn enter(address: IpAddr) -> Self {
        // An IPv6 customer has 65,536 of the /64 that budgets go by: together they hold no more
        // than one.
        let site = PeerKey::network(address);
        SITES.with_borrow_mut(|sites| {
            let shared = sites.entry(site).or_default();
            shared.connections += 1;
            Self { site, account: Arc::clone(&shared.account), kept: Arc::clone(&shared.kept) }
        })
    }

    /// The account of the peer's calls.
    pub(super) fn account(&self) -> Arc<PeerAccount> {
        Arc::clone(&self.account)
    }

    /// The connection's part in what HTTP/2 keeps for the peer.
    pub(super) fn room(&self) -> Room {
        Room::of_this_worker(Arc::clone(&self.kept))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        SITES.with_borrow_mut(|sites| {
            if let Some(shared) = sites.get_mut(&self.site) {
                shared.connections -= 1;
                if shared.connections == 0 {
                    sites.remove(&self.site);
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
        let enter = |address: &str| Member::enter(address.parse().unwrap());
        let (one, two, other) =
            (enter("2001:db8::1"), enter("2001:db8:0:1::2"), enter("2001:db8:1::1"));
        assert!(Arc::ptr_eq(&one.account, &two.account));
        assert!(!Arc::ptr_eq(&one.account, &other.account));
        drop((one, other));
        assert!(Arc::ptr_eq(&enter("2001:db8::3").account, &two.account));
        drop(two);
        assert_eq!(SITES.with_borrow(HashMap::len), 0);
    }
}
