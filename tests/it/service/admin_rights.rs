//! Right to administer: the scope, the audience, the client behind the token; and no office that
//! leads to another.

use jeton::{
    config::Rate,
    proto::admin::{
        AddSecretRequest, Client, CreateClientRequest, DisableClientRequest, EnableClientRequest,
        UpdateClientRequest,
    },
};
use tonic::Code;

use crate::support::server::{ISSUER, Rpc, TestServer, bearer, client_of, reason, refreshing};

/// Every office opens its own RPCs and no others; `jeton:admin` opens all.
#[tokio::test]
async fn each_office_opens_its_own_door_alone() {
    let server = TestServer::start().await;
    let offices = [
        "jeton:admin:clients",
        "jeton:admin:keys",
        "jeton:admin:revocations",
        "jeton:admin:audit",
        "jeton:introspect:any",
    ];
    for scope in offices.into_iter().chain([
        "jeton:introspect",
        "orders:read",
        "jeton:administrator",
        "jeton:admin:",
    ]) {
        let (_, token) = server.client_with_token("default", &[scope]).await;
        for (n, rpc) in Rpc::ALL.into_iter().enumerate() {
            let mark = server.rpc_target(&format!("{n}{}", scope.replace(':', "-")), "shop").await;
            // What takes the keys away from all the others is tried only where it must be refused.
            let takes_keys = matches!(rpc, Rpc::RevokeKey | Rpc::RevokeSigner);
            let answer = match (rpc.admin_scope() == scope, takes_keys) {
                (true, true) => continue,
                _ => server.call_rpc(rpc, &token, &mark).await,
            };
            if rpc.admin_scope() == scope {
                assert!(answer.is_ok(), "{scope} {rpc:?} {answer:?}");
            } else {
                let refused = answer.unwrap_err();
                let expected = (Code::PermissionDenied, "INSUFFICIENT_SCOPE".to_owned());
                assert_eq!((refused.code(), reason(&refused)), expected, "{scope} {rpc:?}");
            }
        }
    }
    let token = server.admin_token().await;
    for rpc in Rpc::ALL {
        let mark = server.rpc_target(&format!("last-{rpc:?}"), "shop").await;
        let answer = server.call_rpc(rpc, &token, &mark).await;
        if rpc == Rpc::RevokeKey {
            assert!(answer.is_ok(), "{answer:?}");
            // And with the key went the administrator's own token.
            assert_eq!(
                reason(&server.call_rpc(Rpc::ListKeys, &token, &mark).await.unwrap_err()),
                "INVALID_TOKEN"
            );
            break;
        }
        assert!(answer.is_ok(), "{rpc:?} {answer:?}");
    }
}

/// AUDIT AZ14: the office of revocations ends no signing key: that takes the office of keys as
/// well.
#[tokio::test]
async fn a_signing_key_is_ended_by_the_office_of_keys() {
    let server = TestServer::start().await;
    let mark = server.rpc_target("orders", "shop").await;
    let (caller, alone) = server.client_with_token("default", &["jeton:admin:revocations"]).await;
    let refused = server.call_rpc(Rpc::RevokeSigner, &alone, &mark).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::PermissionDenied, "INSUFFICIENT_SCOPE")
    );
    assert!(server.is_active(&mark.access_token).await);
    let recorded = server.trail_of("access.refused").await;
    assert_eq!(
        (client_of(&recorded[0]), recorded[0].target.as_str()),
        (caller.id.as_str(), "jeton:admin:keys")
    );
    let (_, both) =
        server.client_with_token("default", &["jeton:admin:revocations", "jeton:admin:keys"]).await;
    server.call_rpc(Rpc::RevokeSigner, &both, &mark).await.unwrap();
    assert!(!server.is_active(&mark.access_token).await);
}

/// Administration takes an access token and nothing else: no secret, no refresh token, nothing at
/// all.
#[tokio::test]
async fn only_an_access_token_administers() {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let server = TestServer::start_with(|config| {
        config.limits.failed_authentication = Rate { per_second: 1_000, burst: 1_000 }
    })
    .await;
    let mark = server.rpc_target("orders", "shop").await;
    let basic = STANDARD.encode(format!("{}:{}", server.admin.id, server.admin.secret));
    let issued = server.token(&server.admin, &["jeton:admin"]).await.unwrap();
    let without_scope =
        server.token(&server.admin, &["jeton:introspect:any"]).await.unwrap().access_token;
    for rpc in Rpc::ALL {
        let bare = server.call_rpc_with(rpc, &mark, |_| None).await.unwrap_err();
        assert_eq!(
            (bare.code(), reason(&bare).as_str()),
            (Code::Unauthenticated, "INVALID_TOKEN"),
            "{rpc:?}"
        );
        let with = |value: String| {
            server.call_rpc_with(rpc, &mark, move |request| {
                request.metadata_mut().insert("authorization", value.parse().unwrap()).map(drop)
            })
        };
        for value in [
            format!("Basic {basic}"),
            format!("Bearer {}", issued.refresh_token),
            "Bearer ".to_owned(),
        ] {
            assert_eq!(reason(&with(value).await.unwrap_err()), "INVALID_TOKEN", "{rpc:?}");
        }
        assert_eq!(
            reason(&with("Digest x".to_owned()).await.unwrap_err()),
            "INVALID_REQUEST",
            "{rpc:?}"
        );
        assert_eq!(
            reason(&with(format!("Bearer {}x", issued.access_token)).await.unwrap_err()),
            "INVALID_TOKEN"
        );
        assert_eq!(
            reason(&with(format!("Bearer {without_scope}")).await.unwrap_err()),
            "INSUFFICIENT_SCOPE",
            "{rpc:?}"
        );
    }
    assert!(server.is_active(&mark.access_token).await);
}

/// J10: a token for somebody else does not administer here, whatever scopes it carries; audiences
/// are compared byte by byte.
#[tokio::test]
async fn a_token_for_another_audience_does_not_administer() {
    let server = TestServer::start().await;
    let audiences = [
        "https://orders",
        ISSUER,
        "https://jeton.test/",
        "https://jeton.test/x",
        "https://jeton.tes",
    ];
    let client = Client {
        scopes: vec!["jeton:admin".to_owned(), "jeton:introspect:any".to_owned()],
        audiences: audiences.map(str::to_owned).to_vec(),
        ..Client::default()
    };
    let caller = server.register(client).await;
    let mark = server.rpc_target("orders", "shop").await;
    for audience in audiences {
        let message = jeton::proto::token::TokenRequest {
            client_id: caller.id.clone(),
            client_secret: caller.secret.clone(),
            scopes: vec!["jeton:admin".to_owned(), "jeton:introspect:any".to_owned()],
            resources: vec![audience.to_owned()],
            ..Default::default()
        };
        let token = server.tokens().token(message).await.unwrap().into_inner().access_token;
        let answer = server.call_rpc(Rpc::ListKeys, &token, &mark).await;
        let judged = jeton::proto::token::IntrospectRequest {
            token: mark.access_token.clone(),
            ..Default::default()
        };
        let introspected = server.tokens().introspect(bearer(judged, &token)).await;
        if audience == ISSUER {
            assert!(answer.is_ok() && introspected.unwrap().into_inner().active == Some(true));
        } else {
            assert_eq!(reason(&answer.unwrap_err()), "INVALID_TOKEN", "{audience}");
            assert_eq!(reason(&introspected.unwrap_err()), "INVALID_TOKEN", "{audience}");
        }
    }
    // The first audience is the default: a token nobody asked an audience for is for the orders.
    let token = server.token(&caller, &["jeton:admin"]).await.unwrap().access_token;
    assert_eq!(
        reason(&server.call_rpc(Rpc::ListKeys, &token, &mark).await.unwrap_err()),
        "INVALID_TOKEN"
    );
}

/// R10: an administrator's token is worth what its client is worth now.
#[tokio::test]
async fn a_token_administers_only_while_its_client_may() {
    let server = TestServer::start().await;
    let mark = server.rpc_target("orders", "shop").await;
    let refused = async |token: &str| {
        reason(&server.call_rpc(Rpc::GetClient, token, &mark).await.unwrap_err())
    };
    let staff =
        async || server.client_with_token("default", &["jeton:admin:clients", "orders:read"]).await;

    let (caller, token) = staff().await;
    assert!(server.call_rpc(Rpc::GetClient, &token, &mark).await.is_ok());
    let narrower = Client {
        client_id: caller.id,
        scopes: vec!["orders:read".to_owned()],
        ..Client::default()
    };
    server.change(narrower, &["scopes"]).await.unwrap();
    assert_eq!(refused(&token).await, "INVALID_TOKEN");

    let (caller, token) = staff().await;
    let message = DisableClientRequest {
        client_id: caller.id.clone(),
        etag: String::new(),
        allow_no_administrator: false,
    };
    server.clients().disable_client(server.as_admin(message).await).await.unwrap();
    assert_eq!(refused(&token).await, "INVALID_TOKEN");
    let message = EnableClientRequest { client_id: caller.id, etag: String::new() };
    server.clients().enable_client(server.as_admin(message).await).await.unwrap();
    assert_eq!(refused(&token).await, "INVALID_TOKEN");

    let (caller, token) = staff().await;
    server.revoke(&caller, &token).await.unwrap();
    assert_eq!(refused(&token).await, "INVALID_TOKEN");

    let (_, token) = staff().await;
    server.advance(900);
    assert_eq!(refused(&token).await, "INVALID_TOKEN");
}

/// CVE-2026-9795 and its like: who administers clients cannot make or take over one that may do
/// more.
#[tokio::test]
async fn no_office_leads_to_another() {
    let server = TestServer::start().await;
    let (clerk, token) = server.client_with_token("default", &["jeton:admin:clients"]).await;
    let scoped = |scopes: &[&str]| Client {
        scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        ..refreshing()
    };
    let create = async |client: Client| {
        let message = CreateClientRequest { client: Some(client), secret: None };
        server.clients().create_client(bearer(message, &token)).await
    };
    let more = [
        "jeton:admin",
        "jeton:admin:keys",
        "jeton:admin:revocations",
        "jeton:admin:audit",
        "jeton:introspect",
    ];
    for scope in more.into_iter().chain(["jeton:introspect:any", "jeton:whatever"]) {
        for scopes in [&[scope][..], &["orders:read", scope], &["jeton:admin:clients", scope]] {
            let refused = create(scoped(scopes)).await.unwrap_err();
            assert_eq!(
                (refused.code(), reason(&refused).as_str()),
                (Code::PermissionDenied, "INSUFFICIENT_SCOPE"),
                "{scope}"
            );
        }
        // Nor is one that has it touched in any way: a further secret would be a way in, an end of
        // it a way to harm.
        let id = format!("has-{}", scope.replace(':', "-"));
        server.register(Client { client_id: id.clone(), ..scoped(&[scope]) }).await;
        let before = server.get(&id).await;
        let mark = crate::support::server::RpcTarget {
            client: crate::support::server::Caller { id: id.clone(), secret: String::new() },
            secret_id: before.secrets[0].secret_id.clone(),
            ..Default::default()
        };
        for rpc in [
            Rpc::UpdateClient,
            Rpc::AddSecret,
            Rpc::RetireSecret,
            Rpc::DisableClient,
            Rpc::EnableClient,
            Rpc::DeleteClient,
        ] {
            let refused = server.call_rpc(rpc, &token, &mark).await.unwrap_err();
            assert_eq!(reason(&refused), "INSUFFICIENT_SCOPE", "{scope} {rpc:?}");
        }
        assert_eq!(server.get(&id).await, before, "{scope}");
        // Nor does a plain client become one, nor the clerk itself.
        let plain = create(scoped(&["orders:read"])).await.unwrap().into_inner().client.unwrap();
        for target in [&plain.client_id, &clerk.id] {
            for mask in ["scopes", "*"] {
                let client = Client { client_id: target.clone(), ..scoped(&[scope]) };
                let update_mask = Some(prost_types::FieldMask { paths: vec![mask.to_owned()] });
                let message = UpdateClientRequest {
                    client: Some(client),
                    update_mask,
                    allow_no_administrator: false,
                };
                let refused =
                    server.clients().update_client(bearer(message, &token)).await.unwrap_err();
                assert_eq!(reason(&refused), "INSUFFICIENT_SCOPE", "{scope} {mask}");
            }
        }
        assert_eq!(server.get(&plain.client_id).await, plain);
    }
    // What it holds itself, it may give; the administrator may give all.
    create(scoped(&["orders:read", "jeton:admin:clients"])).await.unwrap();
    let message =
        AddSecretRequest { client_id: "has-jeton-admin".to_owned(), ..AddSecretRequest::default() };
    server.clients().add_secret(server.as_admin(message).await).await.unwrap();
}

/// A lesser token of a client that may do more is bound by the token, not by the client.
#[tokio::test]
async fn a_lesser_token_of_an_administrator_does_not_escalate() {
    let server = TestServer::start().await;
    let (caller, _) =
        server.client_with_token("default", &["jeton:admin", "jeton:admin:clients"]).await;
    let lesser = server.token(&caller, &["jeton:admin:clients"]).await.unwrap().access_token;
    let client = Client { scopes: vec!["jeton:admin".to_owned()], ..Client::default() };
    let message = CreateClientRequest { client: Some(client), secret: None };
    assert_eq!(
        reason(&server.clients().create_client(bearer(message, &lesser)).await.unwrap_err()),
        "INSUFFICIENT_SCOPE"
    );
    let message = AddSecretRequest { client_id: caller.id, ..AddSecretRequest::default() };
    assert_eq!(
        reason(&server.clients().add_secret(bearer(message, &lesser)).await.unwrap_err()),
        "INSUFFICIENT_SCOPE"
    );
}
