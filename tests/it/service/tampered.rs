//! A store that somebody without the master key writes to while nodes run (AZ9): what a node knows
//! to be revoked stays revoked.

use jeton::{
    config::Config,
    model::{KeyState, Keyset},
    proto::admin::RotateKeysRequest,
    server::Options,
    store::KeyStore,
};
use tonic::Code;

use crate::{
    service::published::jwks,
    support::{
        faulty::FaultyStore,
        server::{ISSUER, TestServer, bearer, has_no_files, kid_of, prepare, reason, refreshing},
    },
};

async fn stored(faulty: &FaultyStore) -> Keyset {
    faulty.show_keyset(None);
    faulty.keyset().await.unwrap().unwrap()
}

/// The keyset as AZ9 altered it: revoked keys retire instead, and the revision is higher.
fn unrevoked(keyset: &Keyset) -> Keyset {
    let mut forged = keyset.clone();
    forged.revision += 1;
    for key in &mut forged.keys {
        if let KeyState::Revoked { remove_at } = key.state {
            key.state = KeyState::Retiring { remove_at };
        }
    }
    forged
}

/// The kids in the published set.
async fn published(server: &TestServer) -> Vec<String> {
    jwks(server.address).await.iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
}

/// K03: a revocation of a key is final. Its private part is gone from the store at once; a keyset
/// that was altered, has the kid twice, or is the genuine one of before is neither served by a
/// running node nor built on.
#[tokio::test]
async fn a_revoked_key_does_not_come_back_on_a_running_node() {
    let (server, faulty) = prepare().await.served().await;
    let caller = server.register(refreshing()).await;
    let token = server.token(&caller, &[]).await.unwrap().access_token;
    let kid = kid_of(&token);
    let before = stored(&faulty).await;
    server.revoke_key(&kid, &server.admin_token().await).await.unwrap();
    let genuine = stored(&faulty).await;
    let revoked = genuine.keys.iter().find(|key| key.kid.as_str() == kid).unwrap();
    assert!(
        matches!(revoked.state, KeyState::Revoked { .. }) && revoked.sealed.is_empty(),
        "{revoked:?}"
    );

    let mut twice = unrevoked(&genuine);
    twice.keys.extend(before.keys.iter().filter(|key| key.kid.as_str() == kid).cloned());
    let rolled_back = Keyset { revision: genuine.revision + 1, ..before.clone() };
    let kept = published(&server).await;
    for forged in [unrevoked(&genuine), unrevoked(&twice), twice, rolled_back, before] {
        faulty.show_keyset(Some(forged.clone()));
        assert!(!server.is_active(&token).await, "{forged:?}");
        assert_eq!(published(&server).await, kept, "the last genuine keys are served");
        let fresh = server.admin_token().await;
        assert!(server.is_active(&fresh).await, "and the node goes on");
        let refused =
            server.keys().rotate_keys(bearer(RotateKeysRequest {}, &fresh)).await.unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::Internal, "SERVER_ERROR"),
            "{forged:?}"
        );
        assert_eq!(stored(&faulty).await, genuine, "it was not built on");
    }
    faulty.show_keyset(None);
    assert_eq!(server.rotate_keys().await.len(), genuine.keys.len());
    assert!(!server.is_active(&token).await);
}

/// The error of a server that refuses to start again on the store of a server.
async fn refused_start(server: &TestServer) -> String {
    let mut config = Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        metrics_listen: String::new(),
        issuer: ISSUER.to_owned(),
        ..Config::default()
    };
    server.home.furnish(&mut config);
    let clock = Some(server.clock.clone() as _);
    let options =
        Options { config, dev: true, bootstrap: true, accept_rollback: false, store: None, clock };
    let refused = jeton::server::run(options, |_| panic!("it serves"), std::future::pending())
        .await
        .unwrap_err();
    assert_eq!(refused.exit_code(), 64, "{refused}");
    refused.to_string()
}

/// K03: signing keys that somebody deleted are not replaced by others: nothing is served until they
/// are back, and no record says that keys were made.
#[tokio::test]
async fn deleted_keys_are_not_replaced() {
    if has_no_files() {
        return;
    }
    let mut server = TestServer::start().await;
    let token = server.admin_token().await;
    server.end().await;
    let database = rusqlite::Connection::open(server.data_dir().join("jeton.db")).unwrap();
    database
        .execute_batch("CREATE TEMP TABLE before AS SELECT * FROM keyset; DELETE FROM keyset")
        .unwrap();
    let said = refused_start(&server).await;
    assert!(
        said.starts_with("the store has records but no signing keys") && !said.contains('\n'),
        "{said}"
    );
    database.execute_batch("INSERT INTO keyset SELECT * FROM before").unwrap();
    drop(database);
    let server = server.restart().await;
    assert!(server.is_active(&token).await);
    assert_eq!(server.trail_of("keys.created").await.len(), 1);
}

/// V02, R05: a family that was ended is refused by the node that knows it, also where somebody took
/// the end back in the store.
#[tokio::test]
async fn an_ended_family_is_not_refreshed_whatever_the_store_says() {
    if has_no_files() {
        return;
    }
    let server = TestServer::start().await;
    let caller = server.register(refreshing()).await;
    let issued = server.token(&caller, &[]).await.unwrap();
    let database = rusqlite::Connection::open(server.data_dir().join("jeton.db")).unwrap();
    database.busy_timeout(std::time::Duration::from_secs(30)).unwrap();
    database.execute_batch("CREATE TEMP TABLE before AS SELECT * FROM families").unwrap();
    server.revoke(&caller, &issued.refresh_token).await.unwrap();
    database.execute_batch("INSERT OR REPLACE INTO families SELECT * FROM before").unwrap();
    let refused = server.refresh(&caller, &issued.refresh_token).await.unwrap_err();
    assert_eq!(reason(&refused), "INVALID_GRANT");
    assert!(!server.is_active(&issued.access_token).await);
    assert_eq!(server.trail_of("refresh_token.refused").await.len(), 1);
}

mod mongodb {
    use ::mongodb::{
        Collection,
        bson::{Document, doc},
    };

    use super::*;
    use crate::support::server::unlimited;

    async fn collection(server: &TestServer, name: &str) -> Collection<Document> {
        let client = ::mongodb::Client::with_uri_str(server.home.uri().unwrap()).await.unwrap();
        client.default_database().unwrap().collection(name)
    }

    /// Has a token revoked on one node and waits until the other knows: then it knows what was
    /// written before, too.
    async fn knows_all(knowing: &TestServer, other: &TestServer) {
        let token = other.admin_token().await;
        other.revoke(&other.admin, &token).await.unwrap();
        crate::service::keys::eventually("the revocation", async || {
            !knowing.is_active(&token).await
        })
        .await;
    }

    /// K03: the same over MongoDB, where every node follows what is written to the keyset.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn a_revoked_key_does_not_come_back_on_a_running_node() {
        let server = TestServer::start_shared(unlimited).await;
        let other = server.join("node-2", unlimited, None).await;
        let token = server.admin_token().await;
        let kid = kid_of(&token);
        server.revoke_key(&kid, &token).await.unwrap();
        knows_all(&other, &server).await;
        let keys = collection(&server, "signing_keys").await;
        let mut document = keys.find_one(doc! { "_id": "keyset" }).await.unwrap().unwrap();
        let genuine = document.clone();
        let revision = document.get_i64("revision").unwrap() + 1;
        document.insert("revision", revision);
        let keyset = document.get_document_mut("keyset").unwrap();
        keyset.insert("revision", revision);
        for key in keyset.get_array_mut("keys").unwrap() {
            let key = key.as_document_mut().unwrap();
            if key.get_str("state").unwrap() == "revoked" {
                assert_eq!(key.get_str("sealed").unwrap(), "", "its private part is destroyed");
                key.insert("state", "retiring");
            }
        }
        keys.replace_one(doc! { "_id": "keyset" }, document).await.unwrap();
        knows_all(&other, &server).await;
        knows_all(&server, &other).await;
        for node in [&server, &other] {
            assert!(!node.is_active(&token).await);
            assert!(!published(node).await.contains(&kid));
            let fresh = node.admin_token().await;
            assert!(node.is_active(&fresh).await, "the last genuine keys go on");
            let refused =
                node.keys().rotate_keys(bearer(RotateKeysRequest {}, &fresh)).await.unwrap_err();
            assert_eq!(refused.code(), Code::Internal);
        }
        keys.replace_one(doc! { "_id": "keyset" }, genuine).await.unwrap();
        server.rotate_keys().await;
        assert!(!published(&server).await.contains(&kid));
    }

    /// K03: the same over MongoDB; and a keyset that nobody can read is none to the running nodes:
    /// the last genuine one stays in use, and they go on hearing of everything else.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn deleted_or_unreadable_keys_are_not_replaced() {
        let mut server = TestServer::start_shared(unlimited).await;
        let mut other = server.join("node-2", unlimited, None).await;
        let token = server.admin_token().await;
        let keys = collection(&server, "signing_keys").await;
        let genuine = keys.find_one(doc! { "_id": "keyset" }).await.unwrap().unwrap();
        for garbage in [
            doc! { "keyset": "none", "revision": 99_i64 },
            doc! { "revision": 100_i64, "keyset": { "keys": 5 } },
        ] {
            keys.update_one(doc! { "_id": "keyset" }, doc! { "$set": garbage }).await.unwrap();
            knows_all(&other, &server).await;
            knows_all(&server, &other).await;
            assert!(server.is_active(&token).await && other.is_active(&token).await);
        }
        keys.delete_one(doc! {}).await.unwrap();
        knows_all(&other, &server).await;
        assert!(server.is_active(&token).await && other.is_active(&token).await);
        server.end().await;
        other.end().await;
        let said = refused_start(&server).await;
        assert!(
            said.starts_with("the store has records but no signing keys") && !said.contains('\n'),
            "{said}"
        );
        assert_eq!(keys.count_documents(doc! {}).await.unwrap(), 0);
        keys.insert_one(genuine).await.unwrap();
        let server = server.restart().await;
        assert!(server.is_active(&token).await);
    }

    /// V02, R05: the same over MongoDB.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn an_ended_family_is_not_refreshed_whatever_the_store_says() {
        let server = TestServer::start_shared(unlimited).await;
        let caller = server.register(refreshing()).await;
        let issued = server.token(&caller, &[]).await.unwrap();
        server.revoke(&caller, &issued.refresh_token).await.unwrap();
        let tokens = collection(&server, "tokens").await;
        let back =
            doc! { "$set": { "ended": false, "ended_at": null }, "$unset": { "ended_until": 1 } };
        let written = tokens.update_one(doc! { "ended": true }, back).await.unwrap();
        assert_eq!(written.modified_count, 1);
        let refused = server.refresh(&caller, &issued.refresh_token).await.unwrap_err();
        assert_eq!(reason(&refused), "INVALID_GRANT");
        assert!(!server.is_active(&issued.access_token).await);
    }
}
