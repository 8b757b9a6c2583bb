//! A database for one test, on the server that `JETON_TEST_MONGODB` names; dropped at the end.

use std::{env, thread};

use mongodb::Client;

/// The address of a database that no other test uses.
pub(crate) struct Database {
    uri: String,
}

impl Database {
    pub(crate) fn new() -> Self {
        let set = env::var("JETON_TEST_MONGODB")
            .expect("JETON_TEST_MONGODB is a replica set: see .ci/with-mongodb");
        let name = format!("jeton_{}", uuid::Uuid::new_v4().simple());
        Self { uri: set.replacen("/?", &format!("/{name}?"), 1) }
    }

    pub(crate) fn uri(&self) -> &str {
        &self.uri
    }

    /// A client's view of it, in the runtime of the caller.
    pub(crate) async fn open(&self) -> mongodb::Database {
        Client::with_uri_str(&self.uri).await.unwrap().default_database().unwrap()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        thread::scope(|scope| {
            let dropping = scope.spawn(|| {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async { self.open().await.drop().await.unwrap() });
            });
            // Not worth failing a test for.
            let _ = dropping.join();
        });
    }
}
