//! AUDIT AZ12: a tenant has in its own trail which clients of other tenants list its audiences.

use jeton::proto::admin::{Client, DeleteClientRequest};
use tokio::join;

use crate::{
    service::audiences::{PAY, aimed, scene},
    support::{
        faulty::{Act, Kind, Side},
        server::{TamperableServer, bearer, reason, texts},
    },
};

/// Listed on a new client, on one that is there, taken from it by its own tenant, and gone with a
/// deleted client: each is one record for the owner and none for the other tenant.
#[tokio::test]
async fn the_owner_of_an_audience_reads_whom_the_operator_shares_it_with() {
    let (TamperableServer { server, .. }, globex, acme) = scene().await;
    let root = server.admin_token().await;
    let partner = |audiences: &[&str]| Client {
        tenant: "acme".to_owned(),
        serves: texts(audiences),
        ..aimed("partner", audiences)
    };
    server.create_as(&root, partner(&[PAY, "urn:acme"])).await.unwrap();
    server
        .create_as(&root, Client { tenant: "acme".to_owned(), ..aimed("second", &[]) })
        .await
        .unwrap();
    // In one field more, and in one less: it is shared all the same.
    server.change_as(&root, partner(&["urn:acme"]), &["serves"]).await.unwrap();
    server.change_as(&root, aimed("second", &[PAY]), &["audiences"]).await.unwrap();
    server.change_as(&acme, aimed("second", &[]), &["audiences"]).await.unwrap();
    let delete = DeleteClientRequest {
        client_id: "partner".to_owned(),
        etag: String::new(),
        allow_no_administrator: false,
    };
    server.clients().delete_client(bearer(delete, &acme)).await.unwrap();
    // An audience of its own is shared with nobody.
    server.create_as(&globex, aimed("own", &[PAY])).await.unwrap();

    let fate = |action: &str, client: &str| {
        (format!("audience.{action}"), format!("client {client} of tenant acme"))
    };
    assert_eq!(
        server.sharing(PAY, &globex).await,
        [
            fate("shared", "partner"),
            fate("shared", "second"),
            fate("unshared", "second"),
            fate("unshared", "partner"),
        ]
    );
    assert_eq!(server.sharing(PAY, &acme).await, []);
    assert_eq!(server.sharing("urn:acme", &acme).await, []);
    assert_eq!(server.verify_chain().await.intact, Some(true));
}

/// A registration of unknown outcome that is taken back whole was in force for a moment: the owner
/// reads that the audience was shared, and that it no longer is.
#[tokio::test]
async fn a_registration_that_is_taken_back_leaves_both_records_with_the_owner() {
    let (TamperableServer { server, store, .. }, globex, _) = scene().await;
    server.create_as(&globex, aimed("own", &[PAY])).await.unwrap();
    let root = server.admin_token().await;
    let registered = store.hold("spend", Side::After);
    let meanwhile = async {
        registered.arrived().await;
        store.plan_verb("spend", Act::FailAfter(Kind::Unavailable));
        registered.release();
    };
    let partner = Client { tenant: "acme".to_owned(), ..aimed("partner", &[PAY]) };
    let (refused, ()) = join!(server.create_as(&root, partner), meanwhile);
    assert_eq!(reason(&refused.unwrap_err()), "TEMPORARILY_UNAVAILABLE");
    assert_eq!(reason(&server.try_get("partner").await.unwrap_err()), "NOT_FOUND");
    let record =
        |action: &str| (format!("audience.{action}"), "client partner of tenant acme".to_owned());
    assert_eq!(server.sharing(PAY, &globex).await, [record("shared"), record("unshared")]);
}
