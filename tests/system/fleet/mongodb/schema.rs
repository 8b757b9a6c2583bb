//! State of the database at the start of a node (M12).

use std::{collections::BTreeMap, time::Duration};

use mongodb::{
    Database,
    bson::{Bson, Document, doc},
};

use super::{Stage, on};
use crate::{
    fleet::{nodes::Plan, traffic::Load},
    support::{
        process::{Home, Refused, Server, pause},
        replica::Options,
    },
};

const LITTLE: Load = Load { chains: 1, wide: 1, revokers: 1, judges: 1, administrators: 0 };

/// M12: an index that is missing or wrong is mended by the next node that starts, without harm to
/// those that run; a database of no version gets this one; one of a newer version is refused with a
/// line that says so.
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
    let (collection, name) = before.keys().find(|(collection, _)| collection == "tokens").unwrap();
    let index = doc! { "key": { "nobody": 1 }, "name": name };
    database.run_command(doc! { "createIndexes": collection, "indexes": [index] }).await.unwrap();
    stage.work(1_000, 2_000).await;
    stage.scene.fleet.restart_under_traffic().await;
    assert_eq!(indexes(&database).await, before, "an index was not mended");

    let meta = database.collection::<Document>("meta");
    let schema = doc! { "_id": "schema" };
    let written = meta.find_one(schema.clone()).await.unwrap().unwrap();
    meta.delete_one(schema.clone()).await.unwrap();
    stage.scene.fleet.restart_under_traffic().await;
    assert_eq!(
        meta.find_one(schema.clone()).await.unwrap().as_ref(),
        Some(&written),
        "no version was written"
    );

    meta.update_one(schema.clone(), doc! { "$set": { "version": 1_000_000_i64 } }).await.unwrap();
    let home = on(
        Home::new().setting("JETON_NODE", "late"),
        stage.dir.path().join("address").to_str().unwrap(),
    );
    let refused: Result<Server, Refused> =
        tokio::task::block_in_place(|| home.attempt("127.0.0.1:0".parse().unwrap()));
    let refused = refused.err().expect("it starts on a schema that it does not know");
    assert_eq!(refused.status.code(), Some(64), "{refused:?}");
    assert!(refused.log.contains("schema 1000000"), "it does not say why: {}", refused.log);
    meta.replace_one(schema, written).await.unwrap();
    pause(Duration::from_secs(1)).await;
    stage.close().await;
}

/// Every index but that of the `_id`s, by collection and name: keys and options, as MongoDB tells
/// them.
async fn indexes(database: &Database) -> BTreeMap<(String, String), Document> {
    let mut found = BTreeMap::new();
    for collection in [
        "audit_logs",
        "clients",
        "epochs",
        "nodes",
        "rate_limits",
        "revocations",
        "signing_keys",
        "tokens",
    ] {
        let listed = database.run_command(doc! { "listIndexes": collection }).await.unwrap();
        let listed = listed.get_document("cursor").unwrap().get_array("firstBatch").unwrap();
        for index in listed.iter().filter_map(Bson::as_document) {
            let name = index.get_str("name").unwrap();
            if name != "_id_" {
                found.insert((collection.to_owned(), name.to_owned()), index.clone());
            }
        }
    }
    found
}
