//! Who may administer: the scope, the audience, the client behind the token; and no office that
//! leads to another.

use jeton::{
    config::Rate,
    proto::admin::{
        AddSecretRequest, Client, CreateClientRequest, DisableClientRequest, EnableClientRequest,
        UpdateClientRequest,
    },
};
use tonic::Code;

use crate::service::{
    harness::{ISSUER, World, bearer, client_of, reason, refreshing},
    office::Rpc,
};

/// Every office opens its own RPCs and no others; `jeton:admin` opens all.
#[tokio::test]
async fn each_office_opens_its_own_door_alone() {
    let world = World::start().await;
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
        let (_, token) = world.staff("default", &[scope]).await;
        for (n, rpc) in Rpc::ALL.into_iter().enumerate() {
            let mark = world.mark(&format!("{n}{}", scope.replace(':', "-")), "shop").await;
            // What takes the keys away from all the others is tried only where it must be refused.
            let takes_keys = matches!(rpc, Rpc::RevokeKey | Rpc::RevokeSigner);
            let answer = match (rpc.office() == scope, takes_keys) {
                (true, true) => continue,
                _ => world.ask(rpc, &token, &mark).await,
            };
            if rpc.office() == scope {
                assert!(answer.is_ok(), "{scope} {rpc:?} {answer:?}");
            } else {
                let refused = answer.unwrap_err();
                let expected = (Code::PermissionDenied, "INSUFFICIENT_SCOPE".to_owned());
                assert_eq!((refused.code(), reason(&refused)), expected, "{scope} {rpc:?}");
            }
        }
    }
    let token = world.admin_token().await;
    for rpc in Rpc::ALL {
        let mark = world.mark(&format!("last-{rpc:?}"), "shop").await;
        let answer = world.ask(rpc, &token, &mark).await;
        if rpc == Rpc::RevokeKey {
            assert!(answer.is_ok(), "{answer:?}");
            // And with the key went the administrator's own token.
            assert_eq!(
                reason(&world.ask(Rpc::ListKeys, &token, &mark).await.unwrap_err()),
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
    let world = World::start().await;
    let mark = world.mark("orders", "shop").await;
    let (caller, alone) = world.staff("default", &["jeton:admin:revocations"]).await;
    let refused = world.ask(Rpc::RevokeSigner, &alone, &mark).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::PermissionDenied, "INSUFFICIENT_SCOPE")
    );
    assert!(world.is_active(&mark.access_token).await);
    let recorded = world.trail_of("access.refused").await;
    assert_eq!(
        (client_of(&recorded[0]), recorded[0].target.as_str()),
        (caller.id.as_str(), "jeton:admin:keys")
    );
    let (_, both) = world.staff("default", &["jeton:admin:revocations", "jeton:admin:keys"]).await;
    world.ask(Rpc::RevokeSigner, &both, &mark).await.unwrap();
    assert!(!world.is_active(&mark.access_token).await);
}

/// Administration takes an access token and nothing else: no secret, no refresh token, nothing at
/// all.
#[tokio::test]
async fn only_an_access_token_administers() {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let world = World::with(|config| {
        config.limits.failed_authentication = Rate { per_second: 1_000, burst: 1_000 }
    })
    .await;
    let mark = world.mark("orders", "shop").await;
    let basic = STANDARD.encode(format!("{}:{}", world.admin.id, world.admin.secret));
    let issued = world.token(&world.admin, &["jeton:admin"]).await.unwrap();
    let without_scope =
        world.token(&world.admin, &["jeton:introspect:any"]).await.unwrap().access_token;
    for rpc in Rpc::ALL {
        let bare = world.knock(rpc, &mark, |_| None).await.unwrap_err();
        assert_eq!(
            (bare.code(), reason(&bare).as_str()),
            (Code::Unauthenticated, "INVALID_TOKEN"),
            "{rpc:?}"
        );
        let with = |value: String| {
            world.knock(rpc, &mark, move |request| {
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
    assert!(world.is_active(&mark.access_token).await);
}

/// J10: a token for somebody else does not administer here, whatever scopes it carries; audiences
/// are compared byte by byte.
#[tokio::test]
async fn a_token_for_another_audience_does_not_administer() {
    let world = World::start().await;
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
    let caller = world.register(client).await;
    let mark = world.mark("orders", "shop").await;
    for audience in audiences {
        let message = jeton::proto::token::TokenRequest {
            client_id: caller.id.clone(),
            client_secret: caller.secret.clone(),
            scopes: vec!["jeton:admin".to_owned(), "jeton:introspect:any".to_owned()],
            resources: vec![audience.to_owned()],
            ..Default::default()
        };
        let token = world.tokens().token(message).await.unwrap().into_inner().access_token;
        let answer = world.ask(Rpc::ListKeys, &token, &mark).await;
        let judged = jeton::proto::token::IntrospectRequest {
            token: mark.access_token.clone(),
            ..Default::default()
        };
        let introspected = world.tokens().introspect(bearer(judged, &token)).await;
        if audience == ISSUER {
            assert!(answer.is_ok() && introspected.unwrap().into_inner().active == Some(true));
        } else {
            assert_eq!(reason(&answer.unwrap_err()), "INVALID_TOKEN", "{audience}");
            assert_eq!(reason(&introspected.unwrap_err()), "INVALID_TOKEN", "{audience}");
        }
    }
    // The first audience is the default: a token nobody asked an audience for is for the orders.
    let token = world.token(&caller, &["jeton:admin"]).await.unwrap().access_token;
    assert_eq!(
        reason(&world.ask(Rpc::ListKeys, &token, &mark).await.unwrap_err()),
        "INVALID_TOKEN"
    );
}

/// R10: an administrator's token is worth what its client is worth now.
#[tokio::test]
async fn a_token_administers_only_while_its_client_may() {
    let world = World::start().await;
    let mark = world.mark("orders", "shop").await;
    let refused =
        async |token: &str| reason(&world.ask(Rpc::GetClient, token, &mark).await.unwrap_err());
    let staff = async || world.staff("default", &["jeton:admin:clients", "orders:read"]).await;

    let (caller, token) = staff().await;
    assert!(world.ask(Rpc::GetClient, &token, &mark).await.is_ok());
    let narrower = Client {
        client_id: caller.id,
        scopes: vec!["orders:read".to_owned()],
        ..Client::default()
    };
    world.change(narrower, &["scopes"]).await.unwrap();
    assert_eq!(refused(&token).await, "INVALID_TOKEN");

    let (caller, token) = staff().await;
    let message = DisableClientRequest { client_id: caller.id.clone(), etag: String::new() };
    world.clients().disable_client(world.as_admin(message).await).await.unwrap();
    assert_eq!(refused(&token).await, "INVALID_TOKEN");
    let message = EnableClientRequest { client_id: caller.id, etag: String::new() };
    world.clients().enable_client(world.as_admin(message).await).await.unwrap();
    assert_eq!(refused(&token).await, "INVALID_TOKEN");

    let (caller, token) = staff().await;
    world.revoke(&caller, &token).await.unwrap();
    assert_eq!(refused(&token).await, "INVALID_TOKEN");

    let (_, token) = staff().await;
    world.advance(900);
    assert_eq!(refused(&token).await, "INVALID_TOKEN");
}

/// CVE-2026-9795 and its like: who administers clients cannot make or take over one that may do
/// more.
#[tokio::test]
async fn no_office_leads_to_another() {
    let world = World::start().await;
    let (clerk, token) = world.staff("default", &["jeton:admin:clients"]).await;
    let scoped = |scopes: &[&str]| Client {
        scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        ..refreshing()
    };
    let create = async |client: Client| {
        let message = CreateClientRequest { client: Some(client), secret: None };
        world.clients().create_client(bearer(message, &token)).await
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
        world.register(Client { client_id: id.clone(), ..scoped(&[scope]) }).await;
        let before = world.get(&id).await;
        let mark = crate::service::office::Mark {
            client: crate::service::harness::Caller { id: id.clone(), secret: String::new() },
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
            let refused = world.ask(rpc, &token, &mark).await.unwrap_err();
            assert_eq!(reason(&refused), "INSUFFICIENT_SCOPE", "{scope} {rpc:?}");
        }
        assert_eq!(world.get(&id).await, before, "{scope}");
        // Nor does a plain client become one, nor the clerk itself.
        let plain = create(scoped(&["orders:read"])).await.unwrap().into_inner().client.unwrap();
        for target in [&plain.client_id, &clerk.id] {
            for mask in ["scopes", "*"] {
                let client = Client { client_id: target.clone(), ..scoped(&[scope]) };
                let update_mask = Some(prost_types::FieldMask { paths: vec![mask.to_owned()] });
                let message = UpdateClientRequest { client: Some(client), update_mask };
                let refused =
                    world.clients().update_client(bearer(message, &token)).await.unwrap_err();
                assert_eq!(reason(&refused), "INSUFFICIENT_SCOPE", "{scope} {mask}");
            }
        }
        assert_eq!(world.get(&plain.client_id).await, plain);
    }
    // What it holds itself, it may give; the administrator may give all.
    create(scoped(&["orders:read", "jeton:admin:clients"])).await.unwrap();
    let message =
        AddSecretRequest { client_id: "has-jeton-admin".to_owned(), ..AddSecretRequest::default() };
    world.clients().add_secret(world.as_admin(message).await).await.unwrap();
}

/// A lesser token of a client that may do more is bound by the token, not by the client.
#[tokio::test]
async fn a_lesser_token_of_an_administrator_does_not_escalate() {
    let world = World::start().await;
    let (caller, _) = world.staff("default", &["jeton:admin", "jeton:admin:clients"]).await;
    let lesser = world.token(&caller, &["jeton:admin:clients"]).await.unwrap().access_token;
    let client = Client { scopes: vec!["jeton:admin".to_owned()], ..Client::default() };
    let message = CreateClientRequest { client: Some(client), secret: None };
    assert_eq!(
        reason(&world.clients().create_client(bearer(message, &lesser)).await.unwrap_err()),
        "INSUFFICIENT_SCOPE"
    );
    let message = AddSecretRequest { client_id: caller.id, ..AddSecretRequest::default() };
    assert_eq!(
        reason(&world.clients().add_secret(bearer(message, &lesser)).await.unwrap_err()),
        "INSUFFICIENT_SCOPE"
    );
}
