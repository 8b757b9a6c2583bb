//! Store of a test's server: in a directory of its own, and where `JETON_TEST_STORE`
//! is `mongodb`, in a database of its own on the server that `JETON_TEST_MONGODB` names.

use std::{
    env,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::TryStreamExt;
use jeton::{
    config::Config,
    crypto::{chain::ChainKey, master, seal::Sealer},
    store::{Store, embedded::Embedded},
};
use mongodb::bson::RawDocumentBuf;
use tempfile::TempDir;

use crate::support::database::{self, Database, PATIENCE};

/// Seconds that a call may take, the most that can be configured.
const DEADLINE: u64 = 300;
/// Seconds that the streams of a server that stops are given to carry what is left.
const DRAIN: u64 = 60;
/// Seconds that a node may go without hearing the others, the most that can be configured.
pub const MAX_STALENESS: u64 = 60;

/// Goes with its last user.
pub struct StoreDir {
    dir: TempDir,
    database: Option<Database>,
}

/// True if the tests run on MongoDB.
pub fn on_mongodb() -> bool {
    match env::var("JETON_TEST_STORE") {
        Ok(store) if store == "mongodb" => true,
        Ok(store) if !store.is_empty() && store != "embedded" => {
            panic!("JETON_TEST_STORE: embedded or mongodb, not {store}")
        }
        Ok(_) | Err(_) => false,
    }
}

/// True if a walk over every case takes some of them only: over MongoDB, where each call takes long
/// and the rules above the store are the same. `JETON_TEST_LONG=1` takes all of them.
pub fn samples_cases() -> bool {
    on_mongodb() && !env::var("JETON_TEST_LONG").is_ok_and(|value| value == "1")
}

/// Time by which other machines' clocks may be ahead, in seconds: nodes that share a store are given
/// more.
pub fn tolerance() -> i64 {
    if on_mongodb() { 90 } else { 5 }
}

/// Says that a test is about the embedded store's files, and whether it must end at once for want
/// of them.
pub fn has_no_files() -> bool {
    if on_mongodb() {
        eprintln!("about the embedded store's files: not run on MongoDB");
    }
    on_mongodb()
}

impl StoreDir {
    /// Of the kind that the environment asks for.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { dir: TempDir::new().unwrap(), database: on_mongodb().then(Database::own) })
    }

    /// On MongoDB, whatever the environment asks for.
    pub fn shared() -> Arc<Self> {
        Arc::new(Self { dir: TempDir::new().unwrap(), database: Some(Database::own()) })
    }

    /// The data directory; on MongoDB there is nothing but the master key in it.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Path for a master key that the test makes.
    pub fn master_key_file(&self) -> PathBuf {
        self.dir.path().join("master.key")
    }

    /// The address of the database.
    pub fn uri(&self) -> Option<&str> {
        self.database.as_ref().map(Database::uri)
    }

    /// Has a server keep everything here. Real time is no test's subject here, so that a busy
    /// machine is given all of it that there is: deadlines, a feed that lags and a stop that drains
    /// have tests of their own.
    pub fn furnish(&self, config: &mut Config) {
        config.data_dir = self.data_dir();
        config.limits.deadline_seconds = DEADLINE;
        config.limits.handshake_seconds = 60;
        config.limits.drain_seconds = DRAIN;
        config.store.max_staleness_seconds = MAX_STALENESS;
        if let Some(uri) = self.uri() {
            config.store.uri = uri.to_owned().into();
            config.store.call_timeout_ms = u64::try_from(PATIENCE.as_millis()).unwrap();
        }
    }

    /// The same for a server that is a process of its own, as variables of its environment; without
    /// the data directory.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        vec![
            ("JETON_LIMITS__DEADLINE_SECONDS", DEADLINE.to_string()),
            ("JETON_LIMITS__HANDSHAKE_SECONDS", "60".to_owned()),
            ("JETON_LIMITS__DRAIN_SECONDS", DRAIN.to_string()),
            ("JETON_STORE__MAX_STALENESS_SECONDS", MAX_STALENESS.to_string()),
            ("JETON_STORE__CALL_TIMEOUT_MS", PATIENCE.as_millis().to_string()),
            ("JETON_STORE__URI", self.uri().unwrap_or_default().to_owned()),
        ]
    }

    /// The store, for a server that is given one that is open.
    pub async fn open_store(&self, key: ChainKey) -> Arc<dyn Store> {
        let node = Config::default().node;
        if let Some(uri) = self.uri() {
            return Arc::new(database::node(uri, &node, key).await);
        }
        std::fs::create_dir_all(self.data_dir()).unwrap();
        Arc::new(Embedded::open(&self.data_dir(), &node, key).unwrap())
    }

    /// The directory as it is on disk at this moment, as a process that is killed now leaves it.
    pub fn copy(&self) -> Arc<Self> {
        let copy = Arc::new(Self { dir: TempDir::new().unwrap(), database: None });
        std::fs::create_dir(copy.data_dir()).unwrap();
        for entry in std::fs::read_dir(self.data_dir()).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, copy.data_dir().join(path.file_name().unwrap())).unwrap();
        }
        adopt(&copy.data_dir());
        copy
    }

    /// True if `needle` is in any file of the data directory, or in any document of the database.
    pub async fn holds(&self, needle: &str) -> bool {
        if is_on_disk(&self.data_dir(), needle) {
            return true;
        }
        let Some(uri) = self.uri() else { return false };
        let client = mongodb::Client::with_uri_str(uri).await.unwrap();
        let database = client.default_database().unwrap();
        for name in database.list_collection_names().await.unwrap() {
            let mut documents = database
                .collection::<RawDocumentBuf>(&name)
                .find(mongodb::bson::doc! {})
                .await
                .unwrap();
            while let Some(document) = documents.try_next().await.unwrap() {
                if holds(document.as_bytes(), needle) {
                    return true;
                }
            }
        }
        false
    }
}

/// Takes a copied data directory, with its master key, for the one it was copied from.
pub fn adopt(dir: &Path) {
    let master = master::load_or_make(&dir.join("master.key"), false).unwrap();
    Embedded::adopt(dir, ChainKey::new(Sealer::new(*master).derive("audit head"))).unwrap();
}

/// True if `needle` is in `bytes`: by a search that is fast in a debug build too.
fn holds(bytes: &[u8], needle: &str) -> bool {
    String::from_utf8_lossy(bytes).contains(needle)
}

/// True if `needle` is in any file below `dir`.
fn is_on_disk(dir: &Path, needle: &str) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return is_on_disk(&path, needle);
        }
        holds(&std::fs::read(&path).unwrap_or_default(), needle)
    })
}
