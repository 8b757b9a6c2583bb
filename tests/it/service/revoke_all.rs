//! RevocationService: one write that ends everything of somebody.

use jeton::proto::{
    admin::{RevokeAllRequest, revoke_all_request::Target},
    token::IntrospectRequest,
};
use tonic::Code;

use crate::support::server::{RpcTarget, TestServer, blamed, client_of, reason};

/// A target of one kind.
type Aim<'a> = &'a dyn Fn(&str) -> Target;

/// Validity of the access token and the refresh token of a target.
async fn stands(server: &TestServer, mark: &RpcTarget) -> (bool, bool) {
    let message = IntrospectRequest {
        client_id: server.admin.id.clone(),
        client_secret: server.admin.secret.clone(),
        token: mark.refresh_token.clone(),
        token_type_hint: "refresh_token".to_owned(),
    };
    let refresh = server.tokens().introspect(message).await.unwrap().into_inner().active.unwrap();
    (server.is_active(&mark.access_token).await, refresh)
}

/// Another token of a mark's client.
async fn sibling(server: &TestServer, mark: &RpcTarget) -> RpcTarget {
    let issued = server.token(&mark.client, &[]).await.unwrap();
    RpcTarget {
        access_token: issued.access_token,
        refresh_token: issued.refresh_token,
        ..mark.clone()
    }
}

/// Each target ends what it names, for good, and nothing beside it.
#[tokio::test]
async fn each_target_ends_what_it_names_and_no_more() {
    let server = TestServer::start().await;
    let target = |name: &str, mark: &RpcTarget| match name {
        "client" => Target::ClientId(mark.client.id.clone()),
        "tenant" => Target::Tenant(mark.tenant.clone()),
        "subject" => Target::Subject(format!("client:{}", mark.client.id)),
        "family" => Target::Family(mark.family.clone()),
        _ => Target::Jti(mark.jti.clone()),
    };
    // What becomes of the token named, of another of the same client, of another client's in the
    // tenant.
    let (gone, stays) = ((false, false), (true, true));
    let cases = [
        ("client", gone, gone, stays),
        ("tenant", gone, gone, gone),
        ("subject", gone, gone, stays),
        ("family", gone, stays, stays),
        ("jti", (false, true), stays, stays),
    ];
    let mut ended = Vec::new();
    for (name, own, same_client, same_tenant) in cases {
        let mark = server.rpc_target(&format!("one-{name}"), &format!("of-{name}")).await;
        let beside = sibling(&server, &mark).await;
        let other = server.rpc_target(&format!("two-{name}"), &format!("of-{name}")).await;
        let stranger = server.rpc_target(&format!("three-{name}"), "elsewhere").await;
        server.revoke_all(target(name, &mark)).await.unwrap();
        let all = [(&mark, own), (&beside, same_client), (&other, same_tenant), (&stranger, stays)];
        for (mark, expected) in all {
            assert_eq!(stands(&server, mark).await, expected, "{name}: {}", mark.client.id);
            ended.push((mark.clone(), expected));
        }
        if !own.1 {
            assert_eq!(
                reason(&server.refresh(&mark.client, &mark.refresh_token).await.unwrap_err()),
                "INVALID_GRANT",
                "{name}"
            );
        }
        // Again is the same, and what is issued afterwards stands.
        server.revoke_all(target(name, &mark)).await.unwrap();
        let fresh = sibling(&server, &mark).await;
        assert_eq!(stands(&server, &fresh).await, stays, "{name}");
        let events =
            server.trail_of(if name == "jti" { "revocation.token" } else { "revocation." }).await;
        assert!(events[0].reason == "because" && client_of(&events[0]) == "bootstrap");
    }
    let server = server.restart().await;
    for (mark, expected) in ended {
        assert_eq!(stands(&server, &mark).await, expected, "{}", mark.client.id);
    }
}

/// The key as a target: as RevokeKey, for who may revoke.
#[tokio::test]
async fn a_key_is_ended_with_all_it_signed() {
    let server = TestServer::start().await;
    let mark = server.rpc_target("orders", "shop").await;
    server.revoke_all(Target::Kid(mark.kid.clone())).await.unwrap();
    assert_eq!(stands(&server, &mark).await, (false, true));
    let event = &server.trail_of("keys.revoked").await[0];
    assert_eq!((event.target.as_str(), event.reason.as_str()), (mark.kid.as_str(), "because"));
    assert_eq!(reason(&server.revoke_all(Target::Kid(mark.kid)).await.unwrap_err()), "NOT_FOUND");
}

/// R05: a refresh after the end of everything gets nothing, one in the grace window no successor.
#[tokio::test]
async fn the_grace_window_does_not_outlive_a_revocation() {
    let server = TestServer::start().await;
    let mark = server.rpc_target("orders", "shop").await;
    let refreshed = server.refresh(&mark.client, &mark.refresh_token).await.unwrap();
    assert_eq!(
        server.refresh(&mark.client, &mark.refresh_token).await.unwrap().refresh_token,
        refreshed.refresh_token
    );
    server.revoke_all(Target::ClientId(mark.client.id.clone())).await.unwrap();
    for token in [&mark.refresh_token, &refreshed.refresh_token] {
        assert_eq!(
            reason(&server.refresh(&mark.client, token).await.unwrap_err()),
            "INVALID_GRANT"
        );
    }
    assert!(!server.is_active(&refreshed.access_token).await);
}

#[tokio::test]
async fn what_is_not_there_or_not_named_is_refused() {
    let server = TestServer::start().await;
    let mark = server.rpc_target("orders", "shop").await;
    let unknown = "00000000-0000-7000-8000-000000000000".to_owned();
    for target in [
        Target::ClientId("nobody".to_owned()),
        Target::Family(unknown.clone()),
        Target::Kid("nothing".to_owned()),
        Target::Tenant("nowhere".to_owned()),
        Target::Subject("client:nobody".to_owned()),
        Target::Subject("user:nobody".to_owned()),
        // The id of a client is not its subject.
        Target::Subject(mark.client.id.clone()),
    ] {
        let refused = server.revoke_all(target.clone()).await.unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::NotFound, "NOT_FOUND"),
            "{target:?}"
        );
    }
    assert_eq!(server.trail_of("revocation.").await, []);
    // A token may be known to another node alone: it is revoked all the same.
    server.revoke_all(Target::Jti(unknown.clone())).await.unwrap();
    let bad = |target: fn(String) -> Target| move |text: &str| target(text.to_owned());
    let malformed: [(&str, &[&str], Aim<'_>); 6] = [
        ("client_id", &["", "a b", "{\"$gt\":\"\"}"], &bad(Target::ClientId)),
        ("tenant", &["", "Shop", "*"], &bad(Target::Tenant)),
        ("subject", &["", "a b", "é"], &bad(Target::Subject)),
        (
            "family",
            &["", "x", "00000000-0000-7000-8000-00000000000A", "00000000000070008000000000000000"],
            &bad(Target::Family),
        ),
        ("kid", &["", "../x"], &bad(Target::Kid)),
        ("jti", &["", "*", "'"], &bad(Target::Jti)),
    ];
    for (field, texts, target) in malformed {
        for text in texts {
            let refused = server.revoke_all(target(text)).await.unwrap_err();
            assert_eq!(
                (reason(&refused).as_str(), blamed(&refused).as_str()),
                ("INVALID_REQUEST", field),
                "{text:?}"
            );
        }
    }
    let message = |target, reason: String| RevokeAllRequest { target, reason };
    let ask = async |message| {
        server.revocations().revoke_all(server.as_admin(message).await).await.unwrap_err()
    };
    assert_eq!(blamed(&ask(message(None, String::new())).await), "target");
    let target = || Some(Target::ClientId(mark.client.id.clone()));
    for reason in ["x".repeat(201), "a\nb".to_owned(), "\u{1b}[0m".to_owned()] {
        assert_eq!(blamed(&ask(message(target(), reason)).await), "reason");
    }
    assert_eq!(stands(&server, &mark).await, (true, true), "nothing was ended");
    let longest = message(target(), "ж".repeat(200));
    server.revocations().revoke_all(server.as_admin(longest).await).await.unwrap();
    assert_eq!(stands(&server, &mark).await, (false, false));
}

/// B07: the answer names what was reached, and nothing is reached that does not exist.
#[tokio::test]
async fn the_answer_names_what_was_reached() {
    let server = TestServer::start().await;
    let mark = server.rpc_target("orders", "shop").await;
    server.rpc_target("billing", "shop").await;
    let clients = server.clients_of("shop").await;
    let ask = async |target: Target| {
        let message = RevokeAllRequest { target: Some(target), reason: String::new() };
        let answer = server.revocations().revoke_all(server.as_admin(message).await).await;
        let reach = answer.unwrap().into_inner();
        (reach.clients, reach.client_id, reach.token_known)
    };
    let id = mark.client.id.clone();
    let refreshed = server.refresh(&mark.client, &mark.refresh_token).await.unwrap();
    let refreshed = server.introspect(&refreshed.access_token).await.jti;
    let one = |known| (Some(1), id.clone(), known);
    let unknown = Target::Jti("00000000-0000-7000-8000-000000000000".to_owned());
    for (target, expected) in [
        (Target::Jti(mark.jti.clone()), one(Some(true))),
        (Target::Jti(refreshed), one(Some(true))),
        (unknown, (None, String::new(), Some(false))),
        (Target::Family(mark.family.clone()), one(None)),
        (Target::Subject(format!("client:{id}")), one(None)),
        (Target::ClientId(id.clone()), one(None)),
        (Target::Tenant("shop".to_owned()), (Some(clients), String::new(), None)),
        (Target::Kid(mark.kid.clone()), (None, String::new(), None)),
    ] {
        assert_eq!(ask(target.clone()).await, expected, "{target:?}");
    }
}
