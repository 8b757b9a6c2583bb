//! Clients as they were last committed.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};

use papaya::HashMap;

use crate::{
    model::{Client, ClientId},
    store::{Store, StoreError},
};

/// Clients, and separately names that are no clients', remembered at most; past it the map starts afresh.
const CAP: usize = 100_000;

/// Clients read before. Names that do not exist are remembered too, so that the time of an answer does not tell one from the
/// other (A02), and apart, so that invented names cannot push real ones out.
#[derive(Default)]
pub(super) struct Clients {
    known: HashMap<ClientId, Arc<Client>>,
    absent: HashMap<ClientId, ()>,
    writes: AtomicU64,
}

impl Clients {
    /// A client, and whether the store was asked.
    pub(super) async fn look_up(&self, store: &dyn Store, id: &ClientId) -> Result<(Option<Arc<Client>>, bool), StoreError> {
        if let Some(client) = self.known.pin().get(id) {
            return Ok((Some(client.clone()), false));
        }
        if self.absent.pin().contains_key(id) {
            return Ok((None, false));
        }
        let before = self.writes.load(SeqCst);
        let client = store.client(id).await?.map(Arc::new);
        match &client {
            Some(client) => insert(&self.known, id, client.clone()),
            None => insert(&self.absent, id, ()),
        }
        // A write that was counted while we read may have made this stale; one that is counted from here on removes it itself.
        if self.writes.load(SeqCst) != before {
            self.drop(id);
        }
        Ok((client, true))
    }

    /// Reads this client afresh next time.
    pub(super) fn forget(&self, id: &ClientId) {
        self.writes.fetch_add(1, SeqCst);
        self.drop(id);
    }

    fn drop(&self, id: &ClientId) {
        self.known.pin().remove(id);
        self.absent.pin().remove(id);
    }
}

fn insert<V>(map: &HashMap<ClientId, V>, id: &ClientId, value: V) {
    if map.len() >= CAP {
        map.pin().clear();
    }
    map.pin().insert(id.clone(), value);
}
