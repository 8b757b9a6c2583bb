//! A fresh store for one case, of the lane's kind.

use std::sync::{Arc, Mutex};

use jeton::{
    crypto::chain::ChainKey,
    store::{Store, embedded::Embedded, metered::Metered},
};
use tempfile::TempDir;

use crate::faulty::FaultyStore;

/// A store that can be closed and opened again on what it kept.
pub(crate) struct Bench {
    open: Box<dyn Fn() -> Arc<dyn Store> + Send + Sync>,
    current: Mutex<Arc<dyn Store>>,
    _dir: TempDir,
}

impl Bench {
    pub(crate) fn embedded() -> Self {
        Self::over(|store| Arc::new(store))
    }

    pub(crate) fn metered() -> Self {
        Self::over(|store| Arc::new(Metered::new(store)))
    }

    pub(crate) fn faulty() -> Self {
        Self::over(|store| Arc::new(FaultyStore::new(Arc::new(store))))
    }

    fn over(wrap: fn(Embedded) -> Arc<dyn Store>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let open = move || wrap(Embedded::open(&path, "node", Self::key()).unwrap());
        Self { current: Mutex::new(open()), open: Box::new(open), _dir: dir }
    }

    /// The key that seals the store's audit trail.
    pub(crate) fn key() -> ChainKey {
        ChainKey::new([42; 32])
    }

    pub(crate) fn store(&self) -> Arc<dyn Store> {
        self.current.lock().unwrap().clone()
    }

    /// Closes the store and opens it again, as a restart does.
    pub(crate) async fn reopen(&self) -> Arc<dyn Store> {
        self.store().close().await.unwrap();
        let store = (self.open)();
        *self.current.lock().unwrap() = store.clone();
        store
    }
}
