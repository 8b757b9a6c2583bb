//! Chains of endings: access tokens with their family, streams with their reader's rights,
//! budgets with the work done.

use jeton::proto::{
    admin::{
        Client, DeleteClientRequest, DisableClientRequest, TailEventsRequest, UpdateClientRequest,
    },
    token::BatchIntrospectRequest,
};
use prost_types::{Duration, FieldMask};

use crate::support::server::{TestServer, bearer, reason, refreshing};

/// V02: a family that can no longer be found by its refresh token has left no access token behind.
#[tokio::test]
async fn an_access_token_does_not_outlive_its_idle_family() {
    let server = TestServer::start().await;
    let idle = Some(Duration { seconds: 60, nanos: 0 });
    let caller =
        server.register(Client { refresh_token_idle_lifetime: idle, ..refreshing() }).await;
    let issued = server.token(&caller, &[]).await.unwrap();
    assert_eq!(issued.expires_in, 60);
    server.advance(30);
    let refreshed = server.refresh(&caller, &issued.refresh_token).await.unwrap();
    assert_eq!(refreshed.expires_in, 60, "a rotation moves the end");
    server.advance(5);
    let repeated = server.refresh(&caller, &issued.refresh_token).await.unwrap();
    assert_eq!(repeated.expires_in, 55, "a repetition does not");
    server.advance(55);
    assert!(
        !server.is_active(&refreshed.access_token).await
            && !server.is_active(&repeated.access_token).await
    );
}

/// R02, R07: what cannot be minted does not spend the refresh token.
#[tokio::test]
async fn a_token_that_would_be_too_long_spends_nothing() {
    let server = TestServer::start().await;
    let scopes = (0..50).map(|n| format!("orders:{n:0>40}")).collect();
    let caller = server.register(Client { scopes, ..refreshing() }).await;
    let issued = server.token(&caller, &[]).await.unwrap();
    let roles = |count: usize| UpdateClientRequest {
        client: Some(Client {
            client_id: caller.id.clone(),
            roles: (0..count).map(|n| format!("{n:0>128}")).collect(),
            ..Client::default()
        }),
        update_mask: Some(FieldMask { paths: vec!["roles".to_owned()] }),
        allow_no_administrator: false,
    };
    let request = server.as_admin(roles(40)).await;
    server.clients().update_client(request).await.unwrap();
    assert_eq!(
        reason(&server.refresh(&caller, &issued.refresh_token).await.unwrap_err()),
        "INVALID_SCOPE"
    );
    server.advance(60);
    // With fewer scopes it fits.
    server
        .refresh_to(&caller, &issued.refresh_token, &[&format!("orders:{:0>40}", 1)])
        .await
        .unwrap();
}

/// V01 (AUDIT AZ15): a scope, an audience, a role or a grant that is taken away ends what was
/// issued to the client, access tokens and families, in the same write; what is given, or changed
/// in another way, ends nothing.
#[tokio::test]
async fn what_is_taken_away_ends_what_was_issued() {
    let server = TestServer::start_unlimited().await;
    let (roles, audiences) = (
        vec!["payer".to_owned()],
        vec!["https://a.example".to_owned(), "https://b.example".to_owned()],
    );
    let full = || Client { roles: roles.clone(), audiences: audiences.clone(), ..refreshing() };
    let mut grants = full();
    grants.grant_types.pop();
    let taken = [
        ("scopes", Client { scopes: vec!["orders:read".to_owned()], ..full() }, true),
        ("audiences", Client { audiences: audiences[..1].to_vec(), ..full() }, true),
        ("roles", Client { roles: Vec::new(), ..full() }, true),
        ("grant_types", grants, true),
        (
            "scopes",
            Client { scopes: [full().scopes, vec!["more".to_owned()]].concat(), ..full() },
            false,
        ),
        ("display_name", Client { display_name: "other".to_owned(), ..full() }, false),
        (
            "default_scopes",
            Client { default_scopes: vec!["orders:read".to_owned()], ..full() },
            false,
        ),
    ];
    for (n, (field, changed, ends)) in taken.into_iter().enumerate() {
        let caller = server.register(Client { client_id: format!("client-{n}"), ..full() }).await;
        let issued = server.token(&caller, &[]).await.unwrap();
        server.change(Client { client_id: caller.id.clone(), ..changed }, &[field]).await.unwrap();
        assert_eq!(server.is_active(&issued.access_token).await, !ends, "{n} {field}");
        if field != "grant_types" {
            assert_eq!(
                server.refresh(&caller, &issued.refresh_token).await.is_err(),
                ends,
                "{n} {field}"
            );
        }
        assert!(server.token(&caller, &[]).await.is_ok(), "{n} {field}");
        let ended = server
            .trail_of("revocation.client")
            .await
            .into_iter()
            .filter(|event| event.target == caller.id);
        assert_eq!(
            ended.map(|event| event.reason).collect::<Vec<_>>(),
            if ends { vec!["narrowed"] } else { Vec::new() }
        );
    }
}

/// A stream of the audit trail ends when its reader may no longer read.
#[tokio::test]
async fn a_disabled_reader_hears_no_more() {
    let server = TestServer::start().await;
    let reader = server
        .register(Client { scopes: vec!["jeton:admin:audit".to_owned()], ..Client::default() })
        .await;
    let token = server.token(&reader, &["jeton:admin:audit"]).await.unwrap().access_token;
    let mut stream = server
        .audit()
        .tail_events(bearer(TailEventsRequest::default(), &token))
        .await
        .unwrap()
        .into_inner();
    server.token(&server.admin, &[]).await.unwrap();
    assert_eq!(stream.message().await.unwrap().unwrap().event.unwrap().action, "token.issued");
    let request = server
        .as_admin(DisableClientRequest {
            client_id: reader.id.clone(),
            etag: String::new(),
            allow_no_administrator: false,
        })
        .await;
    server.clients().disable_client(request).await.unwrap();
    server.token(&server.admin, &[]).await.unwrap();
    let ended = loop {
        // What was on its way before is still delivered.
        match stream.message().await {
            Ok(Some(message)) => assert_eq!(message.event.unwrap().action, "token.issued"),
            other => break other,
        }
    };
    assert_eq!(reason(&ended.unwrap_err()), "INVALID_TOKEN");
}

/// I06: a batch draws on the budget for every token in it.
#[tokio::test]
async fn a_batch_costs_what_its_tokens_cost() {
    let server = TestServer::start_with(|config| {
        let standard = config.limits.plans.get_mut("standard").unwrap();
        (standard.per_second, standard.burst) = (1, 100);
    })
    .await;
    let token = server.token(&server.admin, &["jeton:introspect:any"]).await.unwrap().access_token;
    let batch = |count: usize| BatchIntrospectRequest {
        tokens: vec!["x".to_owned(); count],
        ..BatchIntrospectRequest::default()
    };
    assert!(server.tokens().batch_introspect(bearer(batch(60), &token)).await.is_ok());
    let refused = server.tokens().batch_introspect(bearer(batch(60), &token)).await.unwrap_err();
    assert_eq!(reason(&refused), "SLOW_DOWN");
    server.advance(100);
    assert!(server.tokens().batch_introspect(bearer(batch(60), &token)).await.is_ok());
}

/// R10, S03: nothing of a deleted client passes to a later one of its name, neither access tokens
/// nor families.
#[tokio::test]
async fn a_later_client_of_the_same_name_inherits_nothing() {
    let server = TestServer::start().await;
    let named = || Client { client_id: "orders".to_owned(), ..refreshing() };
    let first = server.register(named()).await;
    let issued = server.token(&first, &[]).await.unwrap();
    let request = server
        .as_admin(DeleteClientRequest {
            client_id: first.id.clone(),
            ..DeleteClientRequest::default()
        })
        .await;
    server.clients().delete_client(request).await.unwrap();
    assert_eq!(
        reason(&server.refresh(&first, &issued.refresh_token).await.unwrap_err()),
        "INVALID_CLIENT"
    );
    assert!(
        !server.is_active(&issued.access_token).await
            && !server.is_active(&issued.refresh_token).await
    );
    let second = server.register(named()).await;
    assert_eq!(
        reason(&server.refresh(&second, &issued.refresh_token).await.unwrap_err()),
        "INVALID_GRANT"
    );
    assert!(
        !server.is_active(&issued.access_token).await
            && !server.is_active(&issued.refresh_token).await
    );
    let server = server.restart().await;
    assert_eq!(
        reason(&server.refresh(&second, &issued.refresh_token).await.unwrap_err()),
        "INVALID_GRANT"
    );
    assert!(!server.is_active(&issued.refresh_token).await);
    let own = server.token(&second, &[]).await.unwrap();
    assert!(server.refresh(&second, &own.refresh_token).await.is_ok());
}
