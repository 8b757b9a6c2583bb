//! A database that nobody else uses, on the server that `JETON_TEST_MONGODB` names; dropped at the end.

use std::{env, thread, time::Duration};

use jeton::{
    crypto::chain::ChainKey,
    store::mongo::{DEADLINE, Mongo},
};
use mongodb::bson::{Document, doc};

/// Deadline of a call to it: a debug build on a busy machine is given time; the deadline has
/// tests of its own.
pub(crate) const PATIENCE: Duration = DEADLINE.saturating_mul(10);

/// Held while `failCommand` is set: a server has one such point.
pub(crate) static FAIL_COMMAND: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The address of a database of one's own.
pub(crate) struct Database(String);

impl Database {
    pub(crate) fn own() -> Self {
        let server = env::var("JETON_TEST_MONGODB").unwrap_or_else(|_| {
            panic!("JETON_TEST_MONGODB must name a MongoDB: see .ci/with-mongodb")
        });
        let name = format!("jeton_{}", uuid::Uuid::new_v4().simple());
        Self(match server.split_once("/?") {
            Some((hosts, options)) => format!("{hosts}/{name}?{options}"),
            None => format!("{}/{name}", server.trim_end_matches('/')),
        })
    }

    pub(crate) fn uri(&self) -> &str {
        &self.0
    }
}

/// A node over a database.
pub(crate) async fn node(uri: &str, node: &str, key: ChainKey) -> Mongo {
    Mongo::open(uri, node, key, PATIENCE).await.unwrap()
}

/// Waits until every node at this MongoDB knows that whoever rotated a family was answered. It
/// takes a moment: much less than any grace, unless time is given.
pub(crate) async fn answered(uri: &str) {
    let client = mongodb::Client::with_uri_str(uri).await.unwrap();
    let tokens = client.default_database().unwrap().collection::<Document>("tokens");
    while tokens
        .find_one(doc! { "last.unanswered.0": { "$exists": true } })
        .await
        .unwrap()
        .is_some()
    {
        tokio::task::yield_now().await;
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let uri = self.0.clone();
        let dropping = thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let client = mongodb::Client::with_uri_str(uri).await.unwrap();
                client.default_database().unwrap().drop().await.unwrap();
            });
        });
        // Not worth failing a test for.
        let _ = dropping.join();
    }
}
