//! Client authentication: one refusal, whatever is wrong; secrets that come and go.

use std::collections::{BTreeMap, BTreeSet};

use jeton::proto::{
    admin::{Client, GetClientRequest, GrantType},
    token::{IntrospectRequest, TokenRequest, TokenResponse},
};
use tonic::{Code, Status, metadata::MetadataValue};

use crate::support::server::{
    Caller, Shape, TestServer, basic, bearer, client_of, decoded, reason, refreshing, secret_of,
    shape, unlimited, with_authorization,
};

const CHOSEN: &str = "correct horse battery staple";

/// A01: unknown client, wrong secret, secret of another client or kind, disabled client, expired or
/// retired secret, no credential, another kind of credential: byte for byte one answer, in every
/// RPC.
#[tokio::test]
async fn whatever_is_wrong_with_a_credential_the_answer_is_the_same() {
    let server = TestServer::start_unlimited().await;
    let [good, other, disabled, expired, retired] = [
        server.register(refreshing()).await,
        server.register(refreshing()).await,
        server.register(refreshing()).await,
        server.register(refreshing()).await,
        server.register(refreshing()).await,
    ];
    let chosen = server.register_with(refreshing(), CHOSEN).await;
    let disabled_chosen = server.register_with(refreshing(), CHOSEN).await;
    let deleted = server.register(refreshing()).await;
    let short_lived = server.add_secret(&expired, None, Some(60)).await;
    server.disable(&disabled).await;
    server.disable(&disabled_chosen).await;
    server.retire(&retired, &server.secret_id(&retired).await, 0).await;
    let message = jeton::proto::admin::DeleteClientRequest {
        client_id: deleted.id.clone(),
        ..Default::default()
    };
    server.clients().delete_client(server.as_admin(message).await).await.unwrap();
    server.advance(60);

    let with = |id: &str, secret: &str| Caller { id: id.to_owned(), secret: secret.to_owned() };
    let mut flipped = good.secret.clone().into_bytes();
    flipped[30] ^= 1;
    let classes = BTreeMap::from([
        ("unknown client", with("nobody", &good.secret)),
        ("unknown client, a chosen secret", with("nobody", CHOSEN)),
        ("malformed client id", with("no body/../*", &good.secret)),
        ("very long client id", with(&"x".repeat(4_000), &good.secret)),
        ("wrong case of the id", with(&chosen.id.to_uppercase(), CHOSEN)),
        ("secret of another client", with(&good.id, &other.secret)),
        ("one letter wrong", with(&good.id, std::str::from_utf8(&flipped).unwrap())),
        ("cut short", with(&good.id, &good.secret[..59])),
        ("one too long", with(&good.id, &format!("{}A", good.secret))),
        ("only the prefix", with(&good.id, "jcs_")),
        ("no secret", with(&good.id, "")),
        ("no id", with("", &good.secret)),
        ("a chosen secret where one was made", with(&good.id, CHOSEN)),
        ("a made secret where one was chosen", with(&chosen.id, &good.secret)),
        ("wrong chosen secret", with(&chosen.id, "correct horse battery stapler")),
        ("disabled client", disabled),
        ("disabled client, a chosen secret", disabled_chosen),
        ("disabled client, wrong secret", with(&disabled_id(&server).await, &good.secret)),
        ("deleted client", deleted),
        ("expired secret", with(&expired.id, &short_lived.client_secret)),
        ("retired secret", retired),
    ]);
    let mut answers: BTreeMap<Shape, Vec<&str>> = BTreeMap::new();
    for (class, caller) in &classes {
        for refusal in server.refusals(caller).await {
            answers.entry(shape(&refusal)).or_default().push(class);
        }
    }
    // Nothing at all, and a credential of another kind.
    let none = server.tokens().token(TokenRequest::default()).await.unwrap_err();
    answers.entry(shape(&none)).or_default().push("none");
    let pass = server.pass().await;
    let other_kind =
        server.tokens().token(bearer(TokenRequest::default(), &pass)).await.unwrap_err();
    answers.entry(shape(&other_kind)).or_default().push("another kind");
    assert_eq!(answers.len(), 1, "{answers:#?}");
    assert_eq!((none.code(), reason(&none).as_str()), (Code::Unauthenticated, "INVALID_CLIENT"));
    assert!(
        server.is_admitted(&good).await
            && server.is_admitted(&chosen).await
            && server.is_admitted(&expired).await
    );
}

async fn disabled_id(server: &TestServer) -> String {
    let caller = server.register(refreshing()).await;
    server.disable(&caller).await;
    caller.id
}

/// A03: two credentials at once are refused, also where both are right.
#[tokio::test]
async fn two_credentials_at_once_are_refused() {
    let server = TestServer::start_unlimited().await;
    let caller = server.register(refreshing()).await;
    let pass = server.pass().await;
    let inside = || TokenRequest {
        client_id: caller.id.clone(),
        client_secret: caller.secret.clone(),
        ..TokenRequest::default()
    };
    let mut twice = basic(TokenRequest::default(), &caller);
    twice
        .metadata_mut()
        .append("authorization", MetadataValue::try_from(format!("Bearer {pass}")).unwrap());
    let mut same_twice = basic(TokenRequest::default(), &caller);
    let first = same_twice.metadata().get("authorization").unwrap().clone();
    same_twice.metadata_mut().append("authorization", first);
    let requests = [
        basic(inside(), &caller),
        bearer(inside(), &pass),
        basic(TokenRequest { client_id: caller.id.clone(), ..TokenRequest::default() }, &caller),
        basic(
            TokenRequest { client_secret: caller.secret.clone(), ..TokenRequest::default() },
            &caller,
        ),
        twice,
        same_twice,
        with_authorization(TokenRequest::default(), "Digest abc"),
        with_authorization(TokenRequest::default(), "Basic"),
        with_authorization(TokenRequest::default(), "Basic !!!"),
    ];
    for request in requests {
        let what = format!("{:?}", request.metadata());
        let refused = server.tokens().token(request).await.unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::InvalidArgument, "INVALID_REQUEST"),
            "{what}"
        );
    }
    let both = IntrospectRequest {
        client_id: server.admin.id.clone(),
        client_secret: server.admin.secret.clone(),
        token: pass.clone(),
        ..IntrospectRequest::default()
    };
    assert_eq!(
        reason(&server.tokens().introspect(bearer(both, &pass)).await.unwrap_err()),
        "INVALID_REQUEST"
    );
    server.tokens().token(basic(TokenRequest::default(), &caller)).await.unwrap();
}

/// A04: the whole secret counts, up to 1,024 bytes; a longer one is refused before anything is
/// computed from it.
#[tokio::test]
async fn a_secret_counts_to_its_last_byte() {
    let server = TestServer::start_unlimited().await;
    for length in [73, 128, 1_024] {
        let secret = format!("{}1", "s".repeat(length - 1));
        let caller = server.register_with(refreshing(), &secret).await;
        assert!(server.is_admitted(&caller).await, "{length}");
        for other in [
            format!("{}2", "s".repeat(length - 1)),
            "s".repeat(length - 1),
            secret[..72].to_owned(),
        ] {
            assert!(
                !server.is_admitted(&Caller { id: caller.id.clone(), secret: other }).await,
                "{length}"
            );
        }
    }
    let long = server.register_with(refreshing(), CHOSEN).await;
    let long = Caller { secret: "s".repeat(1_025), ..long };
    assert_eq!(reason(&server.token(&long, &[]).await.unwrap_err()), "INVALID_REQUEST");
}

/// A04: a peer that has used up its failures is told so before its secret is tried; a secret beyond
/// the bound is refused even before that is asked.
#[tokio::test]
async fn a_secret_beyond_the_bound_is_refused_before_the_hash() {
    let server = TestServer::start_with(|config| {
        unlimited(config);
        config.limits.failed_authentication = jeton::config::Rate { per_second: 1, burst: 1 };
    })
    .await;
    let wrong = |secret: String| Caller { id: "nobody".to_owned(), secret };
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(reason(&server.token(&wrong(CHOSEN.to_owned()), &[]).await.unwrap_err()));
    }
    assert_eq!(answers, ["INVALID_CLIENT", "SLOW_DOWN", "SLOW_DOWN"]);
    assert_eq!(
        reason(&server.token(&wrong("s".repeat(1_025)), &[]).await.unwrap_err()),
        "INVALID_REQUEST"
    );
}

/// A05: through a rotation both secrets work, then only the new one; each use names its secret in
/// the trail, and is counted.
#[tokio::test]
async fn secrets_overlap_while_they_are_rotated() {
    let server = TestServer::start_unlimited().await;
    let old = server.register(refreshing()).await;
    let old_id = server.secret_id(&old).await;
    let added = server.add_secret(&old, None, None).await;
    let new = Caller { secret: added.client_secret.clone(), ..old.clone() };
    server.retire(&old, &old_id, 3_600).await;
    assert!(
        server.is_admitted(&old).await && server.is_admitted(&new).await,
        "both, from the start of the overlap"
    );
    server.advance(3_599);
    assert!(server.is_admitted(&old).await && server.is_admitted(&new).await, "to its last second");
    server.advance(1);
    assert!(
        !server.is_admitted(&old).await && server.is_admitted(&new).await,
        "then the new one only"
    );

    let issued = server.events_of("token.issued").await;
    let used = |id: &str| {
        issued.iter().filter(|event| client_of(event) == old.id && secret_of(event) == id).count()
    };
    assert_eq!((used(&old_id), used(&added.secret_id)), (2, 3));
    assert!(issued.iter().all(|event| client_of(event) != old.id || !secret_of(event).is_empty()));
    let failed = server.events_of("client.authentication_failed").await;
    assert_eq!(
        failed.iter().map(|event| event.target.as_str()).collect::<Vec<_>>(),
        [old.id.as_str()]
    );

    // The counts are kept with the client: they are written at the latest when the server stops.
    let server = server.restart().await;
    let message = server.as_admin(GetClientRequest { client_id: old.id.clone() }).await;
    let client = server.clients().get_client(message).await.unwrap().into_inner().client.unwrap();
    let counts: BTreeSet<(&str, i64)> =
        client.secrets.iter().map(|secret| (secret.secret_id.as_str(), secret.use_count)).collect();
    assert_eq!(counts, BTreeSet::from([(old_id.as_str(), 2), (added.secret_id.as_str(), 3)]));
}

/// A05: a retired secret never lives longer than it would have, whatever overlap is asked for; at
/// once means at once.
#[tokio::test]
async fn retiring_a_secret_never_prolongs_it() {
    let server = TestServer::start_unlimited().await;
    let caller = server.register(refreshing()).await;
    let added = server.add_secret(&caller, Some(CHOSEN), Some(60)).await;
    let chosen = Caller { secret: CHOSEN.to_owned(), ..caller.clone() };
    assert!(server.is_admitted(&chosen).await);
    server.retire(&caller, &added.secret_id, 3_600).await;
    server.advance(59);
    assert!(server.is_admitted(&chosen).await);
    server.advance(1);
    assert!(!server.is_admitted(&chosen).await, "though it was verified and remembered before");
    let own = server.secret_id(&caller).await;
    server.retire(&caller, &own, 0).await;
    assert!(!server.is_admitted(&caller).await);
}

/// O01: people mix up id and secret; what was sent in the id's place is not written down if it is a
/// secret or a token of ours.
#[tokio::test]
async fn a_secret_in_the_place_of_the_id_is_not_recorded() {
    let server = TestServer::start_unlimited().await;
    let caller = server.register(refreshing()).await;
    let issued = server.token(&caller, &[]).await.unwrap();
    for misplaced in [&caller.secret, &issued.refresh_token] {
        let swapped = Caller { id: misplaced.clone(), secret: caller.id.clone() };
        for wrong in [swapped, Caller { id: misplaced.clone(), secret: caller.secret.clone() }] {
            assert!(!server.is_admitted(&wrong).await);
            // Refusals of names that are no client's are one record a minute.
            server.advance(60);
        }
    }
    let failed = server.events_of("client.authentication_failed").await;
    assert_eq!(failed.len(), 4);
    assert!(failed.iter().all(|event| event.target.is_empty()), "{failed:?}");
}

/// OPERATORS 4.14: a caller that needs a token once leaves no family behind.
#[tokio::test]
async fn a_request_may_ask_for_no_refresh_token() {
    let server = TestServer::start_unlimited().await;
    let caller = server.register(refreshing()).await;
    let ask = async |without_refresh_token: bool| {
        let message = TokenRequest { without_refresh_token, ..TokenRequest::default() };
        server.tokens().token(basic(message, &caller)).await.unwrap().into_inner()
    };
    assert!(!ask(false).await.refresh_token.is_empty());
    let issued = ask(true).await;
    assert_eq!(issued.refresh_token, "");
    assert_eq!(decoded(&issued.access_token).1.get("fam"), None);
}

/// A13, R11: grants that a client does not have, and those that are not served.
#[tokio::test]
async fn a_grant_must_be_served_and_the_clients() {
    let server = TestServer::start_unlimited().await;
    let ask = async |caller: &Caller, grant_type: &str| -> Result<TokenResponse, Status> {
        let message = TokenRequest { grant_type: grant_type.to_owned(), ..TokenRequest::default() };
        server.tokens().token(basic(message, caller)).await.map(tonic::Response::into_inner)
    };
    let caller = server.register(refreshing()).await;
    ask(&caller, "").await.unwrap();
    ask(&caller, "client_credentials").await.unwrap();
    for other in [
        "password",
        "implicit",
        "authorization_code",
        "refresh_token",
        "Client_Credentials",
        "client_credentials ",
        "*",
    ] {
        let refused = ask(&caller, other).await.unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::InvalidArgument, "UNSUPPORTED_GRANT_TYPE"),
            "{other}"
        );
    }
    let only_refreshing =
        Client { grant_types: vec![GrantType::RefreshToken.into()], ..refreshing() };
    let without = server.register(only_refreshing).await;
    for grant in ["", "client_credentials"] {
        let refused = ask(&without, grant).await.unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::PermissionDenied, "UNAUTHORIZED_CLIENT")
        );
    }
    let plain = server.register(Client { grant_types: Vec::new(), ..refreshing() }).await;
    // R11: no refresh token unless the client is registered for it.
    assert_eq!(ask(&plain, "").await.unwrap().refresh_token, "");
    let token = ask(&caller, "").await.unwrap().refresh_token;
    let refused = server.refresh(&plain, &token).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::PermissionDenied, "UNAUTHORIZED_CLIENT")
    );
}

/// A14: no scope means the default ones, which the answer names; any other that is not the client's
/// is refused, never cut.
#[tokio::test]
async fn scopes_are_given_as_asked_or_not_at_all() {
    let server = TestServer::start_unlimited().await;
    let caller = server.register(refreshing()).await;
    assert_eq!(server.token(&caller, &[]).await.unwrap().scopes, ["orders:read", "orders:write"]);
    assert_eq!(server.token(&caller, &["orders:write"]).await.unwrap().scopes, ["orders:write"]);
    let narrow = Client { default_scopes: vec!["orders:read".to_owned()], ..refreshing() };
    assert_eq!(
        server.token(&server.register(narrow).await, &[]).await.unwrap().scopes,
        ["orders:read"]
    );
    let reserved =
        Client { scopes: vec!["a".to_owned(), "jeton:introspect".to_owned()], ..refreshing() };
    assert_eq!(
        server.token(&server.register(reserved).await, &[]).await.unwrap().scopes,
        ["a"],
        "not without being asked for"
    );

    let long = "s".repeat(10 * 1_024);
    let refused: [&[&str]; 14] = [
        &["orders:read", "orders:delete"],
        &["jeton:admin"],
        &["orders:read", "orders:read"],
        &[""],
        &["orders:read", ""],
        &["*"],
        &[" orders:read"],
        &["orders:read "],
        &["orders:read orders:write"],
        &["ORDERS:READ"],
        &["orders"],
        &["orders:*"],
        &["orders:read\0"],
        &[&long],
    ];
    for scopes in refused {
        let refusal = server.token(&caller, scopes).await.unwrap_err();
        assert_eq!(
            (refusal.code(), reason(&refusal).as_str()),
            (Code::InvalidArgument, "INVALID_SCOPE"),
            "{scopes:?}"
        );
    }
    let many = vec!["orders:read"; 101];
    assert_eq!(reason(&server.token(&caller, &many).await.unwrap_err()), "INVALID_REQUEST");
    let token = server.token(&caller, &["orders:read"]).await.unwrap().access_token;
    assert_eq!(
        server.introspect(&token).await.scopes,
        ["orders:read"],
        "and the token says the same"
    );
}
