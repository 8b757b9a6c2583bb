//! A fresh store for one case, of the lane's kind.

use std::{
    env,
    sync::{Arc, Mutex},
    thread,
};

use futures_util::future::BoxFuture;
use jeton::{
    crypto::chain::ChainKey,
    store::{
        Store,
        embedded::Embedded,
        metered::Metered,
        mongo::{DEADLINE, Mongo},
    },
};
use tempfile::TempDir;

use crate::faulty::FaultyStore;

/// A store that can be closed and opened again on what it kept.
pub(crate) struct Bench {
    open: Box<dyn Fn() -> BoxFuture<'static, Arc<dyn Store>> + Send + Sync>,
    current: Mutex<Arc<dyn Store>>,
    _kept: Kept,
}

/// Where it keeps it; goes with the bench.
enum Kept {
    Directory(#[expect(dead_code, reason = "held until the end")] TempDir),
    Database(String),
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

    /// In a database of its own on the server that `JETON_MONGODB` names.
    pub(crate) async fn mongodb() -> Self {
        let uri = own_database();
        let there = uri.clone();
        let open = move || -> BoxFuture<'static, Arc<dyn Store>> {
            let uri = there.clone();
            Box::pin(async move { Arc::new(mongodb(&uri, "node").await) as Arc<dyn Store> })
        };
        Self { current: Mutex::new(open().await), open: Box::new(open), _kept: Kept::Database(uri) }
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
        Self { current, open: Box::new(open), _kept: Kept::Directory(dir) }
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

/// The address of a database that nobody else uses.
pub(crate) fn own_database() -> String {
    let server =
        env::var("JETON_MONGODB").unwrap_or_else(|_| panic!("JETON_MONGODB must name a MongoDB: see .ci/with-mongodb"));
    let name = format!("jeton_{}", uuid::Uuid::new_v4().simple());
    match server.split_once("/?") {
        Some((hosts, options)) => format!("{hosts}/{name}?{options}"),
        None => format!("{}/{name}", server.trim_end_matches('/')),
    }
}

/// A node over a database.
pub(crate) async fn mongodb(uri: &str, node: &str) -> Mongo {
    // A debug build on a busy machine is given time; the deadline has tests of its own.
    Mongo::open(uri, node, Bench::key(), DEADLINE * 10).await.unwrap()
}

impl Drop for Kept {
    fn drop(&mut self) {
        let Self::Database(uri) = self else { return };
        let uri = uri.clone();
        let dropping = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let client = mongodb::Client::with_uri_str(uri).await.unwrap();
                client.default_database().unwrap().drop().await.unwrap();
            });
        });
        // Not worth failing a test for.
        let _ = dropping.join();
    }
}
