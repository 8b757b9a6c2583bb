//! What a node finds in the database when it starts (M12).

use std::time::Duration;

use mongodb::bson::{Document, doc};

use super::{Stage, on};
use crate::{
    fleet::Plan,
    process::{Home, Refused, Server},
    replica::Options,
    traffic::Load,
};

const LITTLE: Load = Load { chains: 1, wide: 1, revokers: 1, judges: 1, administrators: 0 };

/// M12: an index that is missing or wrong is mended by the next node that starts, without harm to those that run; a database of
/// no version is brought up; one of a newer version is refused with a line that says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn a_database_that_is_not_as_it_should_be() {
    let mut stage = Stage::with(Plan::new("m12-schema", 2), Options::default(), LITTLE).await;
    let database = stage.set.client().await.database("jeton");
    let before = indexes(&database).await;
    assert!(before.len() > 3, "{before:?}");
    for collection in ["tokens", "clients", "audit_logs"] {
        database.run_command(doc! { "dropIndexes": collection, "index": "*" }).await.unwrap();
    }
    // One of the same name that is another.
    let (collection, name) = before.iter().find(|(collection, _)| collection == "tokens").unwrap().clone();
    let index = doc! { "key": { "nobody": 1 }, "name": &name };
    database.run_command(doc! { "createIndexes": &collection, "indexes": [index] }).await.unwrap();
    stage.work(1_000, 2_000).await;
    stage.scene.fleet.restart().await;
    assert_eq!(indexes(&database).await, before, "an index was not mended");

    let meta = database.collection::<Document>("meta");
    let written = meta.find_one(doc! { "_id": "schema" }).await.unwrap().unwrap();
    meta.delete_one(doc! { "_id": "schema" }).await.unwrap();
    stage.scene.fleet.restart().await;
    assert_eq!(meta.find_one(doc! { "_id": "schema" }).await.unwrap(), Some(written), "no version was written");

    let newer = doc! { "$set": { "version": 1_000_000_i64 } };
    meta.update_one(doc! { "_id": "schema" }, newer).await.unwrap();
    let home = on(Home::new().setting("JETON_NODE", "late"), stage.dir.path().join("address").to_str().unwrap());
    let refused: Result<Server, Refused> = tokio::task::block_in_place(|| home.attempt("127.0.0.1:0".parse().unwrap()));
    let refused = refused.err().expect("it starts on a schema that it does not know");
    assert_eq!(refused.status.code(), Some(64), "{refused:?}");
    assert!(refused.log.contains("schema 1000000"), "it does not say why: {}", refused.log);
    let older = doc! { "$set": { "version": 1_i64 } };
    meta.update_one(doc! { "_id": "schema" }, older).await.unwrap();
    crate::process::pause(Duration::from_secs(1)).await;
    stage.close().await;
}

/// Every index but that of the `_id`s: collection and name.
async fn indexes(database: &mongodb::Database) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for collection in ["audit_logs", "clients", "epochs", "nodes", "rate_limits", "revocations", "signing_keys", "tokens"] {
        let names = database.collection::<Document>(collection).list_index_names().await.unwrap_or_default();
        found.extend(names.into_iter().filter(|name| name != "_id_").map(|name| (collection.to_owned(), name)));
    }
    found.sort();
    found
}
