//! A fresh store for one case, of the lane's kind.

use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use jeton::{
    crypto::chain::ChainKey,
    store::{Change, Store, embedded::Embedded, metered::Metered, mongo::Mongo},
};
use tempfile::TempDir;

use super::fixtures::RecordingFollower;
use crate::support::{
    database::{self, Database},
    faulty::FaultyStore,
};

/// A store that can be closed and opened again on what it kept.
pub(crate) struct StoreCase {
    open: Box<dyn Fn() -> BoxFuture<'static, Arc<dyn Store>> + Send + Sync>,
    current: Mutex<Arc<dyn Store>>,
    kept: Kept,
}

/// Directory of the store, removed with the case.
enum Kept {
    Directory(#[expect(dead_code, reason = "held until the end")] TempDir),
    Database(Database),
}

impl StoreCase {
    pub(crate) fn embedded() -> Self {
        Self::over(|store| Arc::new(store))
    }

    pub(crate) fn metered() -> Self {
        Self::over(|store| Arc::new(Metered::new(store)))
    }

    pub(crate) fn faulty() -> Self {
        Self::over(|store| Arc::new(FaultyStore::new(Arc::new(store))))
    }

    /// In a database of its own on the server that `JETON_TEST_MONGODB` names.
    pub(crate) async fn mongodb() -> Self {
        Self::over_mongodb(|store| Arc::new(store)).await
    }

    pub(crate) async fn mongodb_metered() -> Self {
        Self::over_mongodb(|store| Arc::new(Metered::new(store))).await
    }

    async fn over_mongodb(wrap: fn(Mongo) -> Arc<dyn Store>) -> Self {
        let own = Database::own();
        let there = own.uri().to_owned();
        let open = move || -> BoxFuture<'static, Arc<dyn Store>> {
            let uri = there.clone();
            Box::pin(async move { wrap(database::node(&uri, "node", Self::key()).await) })
        };
        Self { current: Mutex::new(open().await), open: Box::new(open), kept: Kept::Database(own) }
    }

    fn over(wrap: fn(Embedded) -> Arc<dyn Store>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let open = move || wrap(Embedded::open(&path, "node", Self::key()).unwrap());
        let current = Mutex::new(open());
        let open = Arc::new(open);
        let open = move || -> BoxFuture<'static, Arc<dyn Store>> {
            let open = open.clone();
            Box::pin(async move { open() })
        };
        Self { current, open: Box::new(open), kept: Kept::Directory(dir) }
    }

    /// Waits until it is known of every call so far that its caller was answered: between two
    /// refreshes of a client that takes longer than this.
    pub(crate) async fn settled(&self) {
        if let Kept::Database(own) = &self.kept {
            database::answered(own.uri()).await;
        }
    }

    /// Asserts that a follower was notified of these changes and no others: in their order and once,
    /// or in a shared store in any order and any number of times.
    pub(crate) fn assert_heard(&self, ear: &RecordingFollower, expected: &[Change]) {
        let heard = ear.heard();
        match &self.kept {
            Kept::Directory(_) => assert_eq!(heard, expected),
            Kept::Database(_) => {
                let (all, only) = (
                    expected.iter().all(|change| heard.contains(change)),
                    heard.iter().all(|change| expected.contains(change)),
                );
                assert!(all && only, "{heard:?} instead of {expected:?}");
            }
        }
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
        let store = (self.open)().await;
        *self.current.lock().unwrap() = store.clone();
        store
    }
}
