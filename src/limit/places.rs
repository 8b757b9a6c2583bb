//! Permits for reads of the store by unauthenticated callers: a limited number for each network, so
//! that no network takes all of the store.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::model::{Peer, PeerKey};

/// Maximum concurrent reads of the callers of one network; further ones wait, in order. Enough for
/// tens of thousands of cache misses a second, and few of the 2,048 operations that a node has in
/// flight to MongoDB.
pub(super) const READS_PER_NETWORK: usize = 32;

/// Number of callers of each network that hold a permit or wait, and their semaphore.
type Table = HashMap<PeerKey, (usize, Arc<Semaphore>)>;

/// Permits by network. The last caller of a network removes its entry, so there are at most as many
/// entries as calls in flight.
#[derive(Default)]
pub(super) struct Places(Arc<Mutex<Table>>);

/// The right to read, released on drop.
#[must_use = "the place is free again once this is dropped"]
pub struct ReadPlace {
    /// Dropped first.
    _permit: Option<OwnedSemaphorePermit>,
    _entry: Option<NetworkEntry>,
}

/// Share of a caller in the entry of its network.
struct NetworkEntry {
    table: Arc<Mutex<Table>>,
    network: PeerKey,
}

impl Places {
    /// Waits for a permit; this process itself needs none.
    pub(super) async fn take(&self, peer: Peer) -> ReadPlace {
        let Some(network) = peer.network() else {
            return ReadPlace { _permit: None, _entry: None };
        };
        let places = {
            let mut table = lock(&self.0);
            let (callers, places) = table
                .entry(network)
                .or_insert_with(|| (0, Arc::new(Semaphore::new(READS_PER_NETWORK))));
            *callers += 1;
            Arc::clone(places)
        };
        // Created before the wait: a caller that disconnects meanwhile still removes its entry.
        let entry = NetworkEntry { table: Arc::clone(&self.0), network };
        // The semaphore is never closed.
        ReadPlace { _permit: places.acquire_owned().await.ok(), _entry: Some(entry) }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        lock(&self.0).len()
    }
}

impl Drop for NetworkEntry {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        if let Some((callers, _)) = table.get_mut(&self.network) {
            *callers -= 1;
            if *callers == 0 {
                table.remove(&self.network);
            }
        }
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn at(address: &str) -> Peer {
        Peer::Ip(address.parse().unwrap())
    }

    /// TL2, AZ1: one /48 holds its places and no more, others have theirs, and nothing is left of
    /// those that are gone.
    #[test]
    fn a_network_holds_no_more_than_its_places() {
        let places = Places::default();
        let take = |address: &str| places.take(at(address)).now_or_never();
        let mut held: Vec<_> =
            (0..READS_PER_NETWORK).map(|n| take(&format!("2001:db8:1:{n}::1")).unwrap()).collect();
        assert!(take("2001:db8:1:ffff::1").is_none(), "it waits");
        let other = take("2001:db8:2::1").expect("another network");
        assert!(places.take(Peer::Local).now_or_never().is_some() && places.len() == 2);
        drop(held.pop());
        held.push(take("2001:db8:1:ffff::1").expect("a place that was given back"));
        drop((held, other));
        assert_eq!(places.len(), 0);
    }

    /// L14: a caller that hangs up while it waits leaves neither a place nor an entry behind, and
    /// the next one gets its turn.
    #[tokio::test]
    async fn callers_that_hang_up_leave_nothing_behind() {
        let places = Places::default();
        let here = at("10.0.0.1");
        let mut held = Vec::new();
        for _ in 0..READS_PER_NETWORK {
            held.push(places.take(here).await);
        }
        let (mut gone, mut waits) = (Box::pin(places.take(here)), Box::pin(places.take(here)));
        assert!(gone.as_mut().now_or_never().is_none() && waits.as_mut().now_or_never().is_none());
        drop(gone);
        drop(held.pop());
        held.push(waits.await);
        drop(held);
        assert_eq!(places.len(), 0);
    }
}
