//! OPERATORS B44: the last client that can administer the service is kept.

use jeton::proto::admin::{
    AddSecretRequest, Client, CreateClientRequest, DeleteClientRequest, DisableClientRequest,
    GrantType, RetireSecretRequest, UpdateClientRequest,
};
use prost_types::FieldMask;
use tonic::{Code, Status};

use crate::support::server::{Caller, TestServer, reason};

/// Changes after which a client cannot administer any more.
const CHANGES: [&str; 6] = ["delete", "disable", "scopes", "grant_types", "audiences", "secret"];

async fn change(server: &TestServer, kind: &str, id: &str, allow: bool) -> Result<(), Status> {
    let (mut clients, client_id) = (server.clients(), id.to_owned());
    let update = |client: Client, paths: &[&str]| UpdateClientRequest {
        client: Some(Client { client_id: id.to_owned(), ..client }),
        update_mask: Some(FieldMask { paths: paths.iter().map(|&path| path.to_owned()).collect() }),
        allow_no_administrator: allow,
    };
    let update = match kind {
        "delete" => {
            let request = DeleteClientRequest {
                client_id,
                etag: String::new(),
                allow_no_administrator: allow,
            };
            return clients.delete_client(server.as_admin(request).await).await.map(drop);
        }
        "disable" => {
            let request = DisableClientRequest {
                client_id,
                etag: String::new(),
                allow_no_administrator: allow,
            };
            return clients.disable_client(server.as_admin(request).await).await.map(drop);
        }
        "secret" => {
            let secret_id = server.get(id).await.secrets[0].secret_id.clone();
            let request = RetireSecretRequest {
                client_id,
                secret_id,
                overlap: Some(prost_types::Duration { seconds: 3_600, nanos: 0 }),
                allow_no_administrator: allow,
                ..Default::default()
            };
            return clients.retire_secret(server.as_admin(request).await).await.map(drop);
        }
        "scopes" => update(
            Client { scopes: vec!["jeton:introspect".to_owned()], ..Client::default() },
            &["scopes", "default_scopes"],
        ),
        "grant_types" => update(
            Client { grant_types: vec![GrantType::RefreshToken.into()], ..Client::default() },
            &["grant_types"],
        ),
        _ => update(
            Client { audiences: vec!["urn:elsewhere".to_owned()], ..Client::default() },
            &["audiences"],
        ),
    };
    clients.update_client(server.as_admin(update).await).await.map(drop)
}

/// A client with these scopes.
fn of_tenant(tenant: &str, scopes: &[&str]) -> Client {
    let scopes = scopes.iter().map(|&scope| scope.to_owned()).collect();
    Client { tenant: tenant.to_owned(), scopes, ..Client::default() }
}

/// Another administrator of the operator's tenant.
async fn another(server: &TestServer, id: &str) -> Caller {
    server
        .register(Client { client_id: id.to_owned(), ..of_tenant("default", &["jeton:admin"]) })
        .await
}

/// Every change that would take the last administrator away is refused and changes nothing.
#[tokio::test]
async fn the_last_administrator_is_kept() {
    let server = TestServer::start().await;
    // None of these can administer the whole service.
    let shop = of_tenant("shop", &["jeton:admin"]);
    server.register(Client { client_id: "shop-admin".to_owned(), ..shop }).await;
    let part = of_tenant("default", &["jeton:admin:clients"]);
    server.register(Client { client_id: "part".to_owned(), ..part }).await;
    let off = another(&server, "off").await;
    change(&server, "disable", &off.id, false).await.unwrap();
    let before = server.get(&server.admin.id).await;
    for kind in CHANGES {
        let refused = change(&server, kind, &server.admin.id, false).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{kind} {refused:?}");
        assert_eq!(reason(&refused), "FAILED_PRECONDITION", "{kind}");
        assert!(refused.message().contains("allow_no_administrator"), "{kind} {refused:?}");
        let now = server.get(&server.admin.id).await;
        assert_eq!((now.etag, now.disabled), (before.etag.clone(), false), "{kind}");
    }
}

/// With a flag that says so, or beside another administrator, each of them is done.
#[tokio::test]
async fn an_administrator_is_taken_away_beside_another_or_on_purpose() {
    for kind in CHANGES {
        let server = TestServer::start().await;
        let second = another(&server, "second").await;
        change(&server, kind, &second.id, false).await.unwrap();
        change(&server, kind, &server.admin.id, true).await.unwrap();
    }
}

/// A secret is replaced: the new one first, then the old one ends.
#[tokio::test]
async fn the_last_administrators_secret_is_replaced() {
    let server = TestServer::start().await;
    let id = server.admin.id.clone();
    let ending = AddSecretRequest {
        client_id: id.clone(),
        secret: None,
        expire_time: Some(prost_types::Timestamp { seconds: server.now() + 3_600, nanos: 0 }),
        etag: String::new(),
    };
    let added = server.clients().add_secret(server.as_admin(ending).await).await.unwrap();
    let refused = change(&server, "secret", &id, false).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "the other secret ends: {refused:?}");
    let retire = RetireSecretRequest {
        client_id: id.clone(),
        secret_id: added.into_inner().secret_id,
        ..Default::default()
    };
    server.clients().retire_secret(server.as_admin(retire).await).await.unwrap();
    let lasting = AddSecretRequest { client_id: id.clone(), ..Default::default() };
    server.clients().add_secret(server.as_admin(lasting).await).await.unwrap();
    change(&server, "secret", &id, false).await.unwrap();
}

/// Two administrators that end themselves at the same time: one of them stays.
#[tokio::test]
async fn two_that_leave_at_once_are_not_both_gone() {
    for _ in 0..5 {
        let server = TestServer::start().await;
        let second = another(&server, "second").await;
        let (one, two) = tokio::join!(
            change(&server, "disable", &server.admin.id, false),
            change(&server, "disable", &second.id, false)
        );
        assert!(one.is_err() || two.is_err(), "{one:?} {two:?}");
    }
}

/// A client is registered as before: the rule is about what is taken away.
#[tokio::test]
async fn other_changes_of_the_last_administrator_are_done() {
    let server = TestServer::start().await;
    let request =
        CreateClientRequest { client: Some(of_tenant("default", &["orders:read"])), secret: None };
    server.clients().create_client(server.as_admin(request).await).await.unwrap();
    let renamed = UpdateClientRequest {
        client: Some(Client {
            client_id: server.admin.id.clone(),
            display_name: "the first".to_owned(),
            ..Client::default()
        }),
        update_mask: Some(FieldMask { paths: vec!["display_name".to_owned()] }),
        allow_no_administrator: false,
    };
    server.clients().update_client(server.as_admin(renamed).await).await.unwrap();
}
