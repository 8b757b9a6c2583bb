//! Introspection: who may ask, and what nobody is told.

use jeton::{
    config::Rate,
    metrics::METRICS,
    proto::{
        admin::{Client, DisableClientRequest},
        token::IntrospectRequest,
    },
};
use prost::Message;
use tonic::Code;
use tonic_types::StatusExt;

use crate::support::server::{
    Caller, INACTIVE, TamperableServer, TestServer, aimed_at, basic, bearer, bytes, reason,
    refreshing, serving, tolerance, unlimited,
};

const X: &str = "https://x.test";
const Y: &str = "https://y.test";

/// I01: who does not prove itself is told that, never that a token is inactive.
#[tokio::test]
async fn without_credentials_there_is_no_answer() {
    let server = TestServer::start().await;
    let viewer = server.register(serving(&[X])).await;
    let token =
        server.token(&server.register(aimed_at(&[X])).await, &[]).await.unwrap().access_token;
    let wrong = Caller { secret: server.admin.secret.clone(), ..viewer.clone() };
    for token in [token.as_str(), "x"] {
        for refused in [
            server.introspect_as(&Caller::default(), token).await.unwrap_err(),
            server.introspect_as(&wrong, token).await.unwrap_err(),
            server.batch(&wrong, &[token]).await.unwrap_err(),
        ] {
            assert_eq!(
                (refused.code(), reason(&refused).as_str()),
                (Code::Unauthenticated, "INVALID_CLIENT")
            );
        }
        for odd in ["x", "a.b.c", &viewer.secret] {
            let message =
                IntrospectRequest { token: token.to_owned(), ..IntrospectRequest::default() };
            let refused = server.tokens().introspect(bearer(message, odd)).await.unwrap_err();
            assert_eq!(
                (refused.code(), reason(&refused).as_str()),
                (Code::Unauthenticated, "INVALID_TOKEN")
            );
        }
    }
    assert!(server.sees(&viewer, &token).await);
    let refused = server.introspect_as(&viewer, "").await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::InvalidArgument, "INVALID_REQUEST")
    );
}

/// I02: who may not introspect is told that, whatever the token; and it costs its budget.
#[tokio::test]
async fn introspection_needs_its_permission_and_costs_budget() {
    let server = TestServer::start_with(|config| {
        config.limits.plans.insert("tiny".to_owned(), Rate { per_second: 1, burst: 10 });
    })
    .await;
    let caller = server.register(Client { rate_plan: "tiny".to_owned(), ..refreshing() }).await;
    let own = server.token(&caller, &[]).await.unwrap().access_token;
    let mut reasons = Vec::new();
    for token in [own.as_str(), "x"].repeat(6) {
        let refused = server.introspect_as(&caller, token).await.unwrap_err();
        reasons.push((refused.code(), reason(&refused)));
        if refused.code() == Code::ResourceExhausted {
            assert!(refused.get_details_retry_info().unwrap().retry_delay.is_some());
        }
    }
    let (allowed, throttled) = reasons.split_at(9);
    assert!(
        allowed
            .iter()
            .all(|said| *said == (Code::PermissionDenied, "INSUFFICIENT_SCOPE".to_owned())),
        "{reasons:?}"
    );
    assert!(
        throttled.iter().all(|said| *said == (Code::ResourceExhausted, "SLOW_DOWN".to_owned())),
        "{reasons:?}"
    );
    assert_eq!(
        server.events_of("access.refused").await.len(),
        1,
        "equal refusals of a minute are counted"
    );
    // Neither does an access token lend a permission that its client has lost: it ends with it.
    let viewer = server.register(serving(&[X])).await;
    let pass = server.token(&viewer, &["jeton:introspect"]).await.unwrap().access_token;
    let ask = async |pass: &str| {
        let message = IntrospectRequest { token: own.clone(), ..IntrospectRequest::default() };
        server.tokens().introspect(bearer(message, pass)).await
    };
    assert_eq!(
        bytes(&ask(&pass).await.unwrap()).0,
        INACTIVE,
        "it may ask, and is told nothing of others' tokens"
    );
    let lesser =
        Client { client_id: viewer.id.clone(), scopes: vec!["a".to_owned()], ..Client::default() };
    server.change(lesser, &["scopes"]).await.unwrap();
    assert_eq!(reason(&ask(&pass).await.unwrap_err()), "INVALID_TOKEN");
    let message =
        DisableClientRequest { client_id: viewer.id.clone(), ..DisableClientRequest::default() };
    server.clients().disable_client(server.as_admin(message).await).await.unwrap();
    assert_eq!(reason(&ask(&pass).await.unwrap_err()), "INVALID_TOKEN");
}

/// I03: a token for another audience is as if it were none; of several audiences each viewer is
/// told its own.
#[tokio::test]
async fn a_viewer_sees_only_what_is_meant_for_it() {
    let server = TestServer::start().await;
    let (at_x, at_y, nowhere) = (
        server.register(serving(&[X])).await,
        server.register(serving(&[Y])).await,
        server.register(serving(&[])).await,
    );
    let caller = server.register(aimed_at(&[X, Y])).await;
    let for_x = server.token(&caller, &[]).await.unwrap().access_token;
    let resources = vec![X.to_owned(), Y.to_owned()];
    let message = jeton::proto::token::TokenRequest { resources, ..Default::default() };
    let for_both =
        server.tokens().token(basic(message, &caller)).await.unwrap().into_inner().access_token;
    assert!(
        server.sees(&at_x, &for_x).await
            && !server.sees(&at_y, &for_x).await
            && !server.sees(&nowhere, &for_x).await
    );
    for (viewer, own) in [(&at_x, X), (&at_y, Y)] {
        assert_eq!(
            server.introspect_as(viewer, &for_both).await.unwrap().aud,
            [own],
            "not who else it is for"
        );
    }
    assert_eq!(server.introspect(&for_both).await.aud, [X, Y]);
    assert!(!server.sees(&nowhere, &for_both).await);
    assert!(
        server.introspect_as(&caller, &for_x).await.is_err(),
        "the token's own client is no viewer"
    );
}

/// I04: expired, revoked, malformed, foreign, from the future, of a deleted client: one answer,
/// byte for byte, and the same in a batch.
#[tokio::test]
async fn all_that_does_not_stand_is_answered_the_same() {
    let lab = TamperableServer::start().await;
    let server = &lab.server;
    let viewer = server.register(serving(&[X])).await;
    let caller = server.register(aimed_at(&[X])).await;
    let other = server.register(aimed_at(&[Y])).await;
    let gone = server.register(aimed_at(&[X])).await;
    let issue = async |caller: &Caller| server.token(caller, &[]).await.unwrap();
    let expired = issue(&caller).await.access_token;
    assert!(server.sees(&viewer, &expired).await);
    server.advance(900);
    let (revoked, ended, standing) =
        (issue(&caller).await, issue(&caller).await, issue(&caller).await);
    let (foreign, deleted) = (issue(&other).await, issue(&gone).await);
    assert!(server.sees(&viewer, &deleted.access_token).await);
    server.revoke(&caller, &revoked.access_token).await.unwrap();
    server.revoke(&caller, &ended.refresh_token).await.unwrap();
    let message =
        jeton::proto::admin::DeleteClientRequest { client_id: gone.id, ..Default::default() };
    server.clients().delete_client(server.as_admin(message).await).await.unwrap();
    let aimed = serde_json::json!([X]);
    let now = server.now();
    let future = lab.claiming(&serde_json::json!({"aud": aimed, "iat": now + tolerance() + 1, "nbf": now, "exp": now + 900}));
    let tenant = lab.claiming(&serde_json::json!({"aud": aimed, "tenant": "b"}));
    let flipped = format!("{}A{}", &standing.access_token[..50], &standing.access_token[51..]);
    let tokens = [
        ("expired", expired.as_str()),
        ("revoked", &revoked.access_token),
        ("of an ended family", &ended.access_token),
        ("foreign", &foreign.access_token),
        ("of a deleted client", &deleted.access_token),
        ("from the future", &future),
        ("of another tenant", &tenant),
        ("malformed", "x"),
        ("with a wrong signature", &flipped),
        ("a refresh token", &standing.refresh_token),
        ("a secret", &caller.secret),
    ];
    let mut answers = std::collections::BTreeSet::new();
    for (what, token) in tokens {
        for hint in ["", "access_token"] {
            let answer = bytes(&server.introspected(&viewer, token, hint).await);
            assert_eq!(answer.0, INACTIVE, "{what}");
            answers.insert(answer);
        }
    }
    // Refresh tokens are answered to others in the same way.
    for token in [&standing.refresh_token, &ended.refresh_token, &expired] {
        answers.insert(bytes(&server.introspected(&viewer, token, "refresh_token").await));
    }
    assert_eq!(answers.len(), 1, "{answers:?}");
    let batch = server.batch(&viewer, &tokens.map(|(_, token)| token)).await.unwrap();
    assert!(batch.results.iter().all(|result| result.encode_to_vec() == INACTIVE));
    assert!(server.sees(&viewer, &standing.access_token).await, "and this one stands");
}

/// I05: no answer, and no refusal, carries the token back, wherever it was sent.
#[tokio::test]
async fn a_token_is_never_sent_back() {
    let server = TestServer::start().await;
    let caller = server.register(aimed_at(&[X])).await;
    let issued = server.token(&caller, &[]).await.unwrap();
    for token in [&issued.access_token, &issued.refresh_token] {
        let message = IntrospectRequest { token: token.clone(), ..IntrospectRequest::default() };
        let mut request = basic(message, &server.admin);
        request.metadata_mut().insert("x-request-id", token.parse().unwrap());
        request.metadata_mut().insert("x-token", token.parse().unwrap());
        request.metadata_mut().insert("cookie", token.parse().unwrap());
        let answer = server.tokens().introspect(request).await.unwrap();
        assert!(!format!("{answer:?}").contains(token.as_str()), "{answer:?}");
        let refusals = [
            server.introspect_as(&caller, token).await.unwrap_err(),
            server
                .introspect_as(&Caller { id: token.clone(), secret: token.clone() }, token)
                .await
                .unwrap_err(),
            server.refresh(&server.admin, token).await.unwrap_err(),
            server.tokens().token(bearer(Default::default(), token)).await.unwrap_err(),
        ];
        for refused in refusals {
            let details = String::from_utf8_lossy(refused.details()).into_owned();
            assert!(!format!("{refused:?}{details}").contains(token.as_str()), "{refused:?}");
        }
    }
}

/// I06: a caller that tries tokens uses up its budget, one by one or in batches, and is told when
/// to come back.
#[tokio::test]
async fn trying_tokens_is_limited() {
    let server = TestServer::start_with(|config| {
        config.limits.plans.insert("tiny".to_owned(), Rate { per_second: 10, burst: 100 });
    })
    .await;
    let viewer = server.register(Client { rate_plan: "tiny".to_owned(), ..serving(&[X]) }).await;
    let (mut judged, mut throttled) = (0, 0);
    for turn in 0..300 {
        match server.introspect_as(&viewer, &format!("eyJhbGciOiJFZERTQSJ9.e30.{turn:086}")).await {
            Ok(_) => judged += 1,
            Err(refused) => {
                assert_eq!(
                    (refused.code(), reason(&refused).as_str()),
                    (Code::ResourceExhausted, "SLOW_DOWN")
                );
                assert!(refused.get_details_retry_info().unwrap().retry_delay.is_some());
                throttled += 1;
            }
        }
    }
    assert_eq!((judged, throttled), (100, 200));
    assert_eq!(server.batch(&viewer, &["x"]).await.unwrap_err().code(), Code::ResourceExhausted);
    server.advance(1);
    assert!(server.introspect_as(&viewer, "x").await.is_ok());
    // A batch costs what its tokens cost one by one.
    server.advance(10);
    assert!(server.batch(&viewer, &["x"; 60]).await.is_ok());
    assert_eq!(reason(&server.batch(&viewer, &["x"; 60]).await.unwrap_err()), "SLOW_DOWN");
}

/// I07: a token that was judged before is judged again for everyone who asks, and by what stands
/// now.
#[tokio::test]
async fn what_is_remembered_of_a_token_is_no_answer() {
    let server = TestServer::start().await;
    let viewer = server.register(serving(&[X])).await;
    let other = server.register(serving(&[Y])).await;
    let caller = server.register(aimed_at(&[X])).await;
    let token = server.token(&caller, &["orders:read"]).await.unwrap().access_token;
    for _ in 0..3 {
        assert!(server.sees(&viewer, &token).await && !server.sees(&other, &token).await);
        assert!(server.sees(&server.admin, &token).await);
    }
    assert_eq!(
        server.introspect_as(&viewer, &token).await.unwrap().scopes,
        ["orders:read"],
        "its own scopes, each time"
    );
    let changed = |viewer: &Caller, serves: &str| Client {
        client_id: viewer.id.clone(),
        ..serving(&[serves])
    };
    server.change(changed(&viewer, Y), &["serves"]).await.unwrap();
    server.change(changed(&other, X), &["serves"]).await.unwrap();
    assert!(!server.sees(&viewer, &token).await && server.sees(&other, &token).await, "at once");
    let blind = Client { scopes: vec!["a".to_owned()], ..changed(&other, X) };
    server.change(blind, &["scopes"]).await.unwrap();
    assert_eq!(
        server.introspect_as(&other, &token).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    server.revoke(&caller, &token).await.unwrap();
    assert!(!server.sees(&server.admin, &token).await);
}

/// I08: a token that was judged a moment ago is inactive from its last second on.
#[tokio::test]
async fn what_is_remembered_of_a_token_expires_with_it() {
    let server = TestServer::start().await;
    let viewer = server.register(serving(&[X])).await;
    let token =
        server.token(&server.register(aimed_at(&[X])).await, &[]).await.unwrap().access_token;
    assert!(server.sees(&viewer, &token).await);
    server.advance(899);
    assert!(server.sees(&viewer, &token).await);
    server.clock.advance(std::time::Duration::from_millis(999));
    assert!(server.sees(&viewer, &token).await);
    server.clock.advance(std::time::Duration::from_millis(1));
    assert!(!server.sees(&viewer, &token).await);
    assert!(!server.sees(&server.admin, &token).await);
}

/// I09: a batch has a bound, answers in order, and one bad item spoils no other.
#[tokio::test]
async fn a_batch_is_bounded_and_answers_item_by_item() {
    let server = TestServer::start_with(unlimited).await;
    let viewer = server.register(serving(&[X])).await;
    let [for_x, for_y] =
        [server.register(aimed_at(&[X])).await, server.register(aimed_at(&[Y])).await];
    let issue = async |caller: &Caller| server.token(caller, &[]).await.unwrap().access_token;
    let (seen, foreign, revoked) = (issue(&for_x).await, issue(&for_y).await, issue(&for_x).await);
    server.revoke(&for_x, &revoked).await.unwrap();
    for size in [0, 1_001] {
        let refused = server.batch(&viewer, &vec!["x"; size]).await.unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::InvalidArgument, "INVALID_REQUEST"),
            "{size}"
        );
    }
    let long = "a".repeat(3_000);
    let mut tokens = vec![
        seen.as_str(),
        foreign.as_str(),
        revoked.as_str(),
        "",
        "x",
        long.as_str(),
        seen.as_str(),
        "\0",
    ];
    tokens.extend(vec![seen.as_str(); 992]);
    let results = server.batch(&viewer, &tokens).await.unwrap().results;
    assert_eq!(results.len(), 1_000);
    for (token, result) in tokens.iter().zip(&results) {
        assert_eq!(result.encode_to_vec() != INACTIVE, *token == seen, "{token}");
    }
    let all_long = |length| vec![&long[..length]; 1_000];
    assert_eq!(
        server.batch(&viewer, &all_long(2_000)).await.unwrap().results.len(),
        1_000,
        "longer than any of ours"
    );
    let refused = server.batch(&viewer, &all_long(3_000)).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::ResourceExhausted, "MESSAGE_TOO_LARGE")
    );
}

/// Number of tokens that were not active for this reason, since the start of this process.
fn inactive_for(reason: &str) -> u64 {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &METRICS.registry()).unwrap();
    let name = format!("jeton_introspections_inactive_total{{reason=\"{reason}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
}

/// OPERATORS 4.6: the operator sees in a metric why tokens are inactive; the caller gets the same
/// bytes for each reason.
#[tokio::test]
async fn the_operator_sees_why_tokens_are_inactive() {
    let server = TestServer::start().await;
    let caller = server.register(aimed_at(&[X])).await;
    let (at_x, at_y) = (server.register(serving(&[X])).await, server.register(serving(&[Y])).await);
    let token = server.token(&caller, &[]).await.unwrap().access_token;
    assert!(server.sees(&at_x, &token).await);
    let refused = async |viewer: &Caller, token: &str, reason: &str| {
        let before = inactive_for(reason);
        let answer = server.introspected(viewer, token, "").await;
        assert_eq!(bytes(&answer).0, INACTIVE, "{reason}");
        // Tests that run at the same time count too.
        assert!(inactive_for(reason) > before, "{reason}");
    };
    refused(&at_y, &token, "not_served").await;
    refused(&at_x, "x", "invalid").await;
    let revoked = server.token(&caller, &[]).await.unwrap().access_token;
    server.revoke(&caller, &revoked).await.unwrap();
    refused(&at_x, &revoked, "revoked").await;
    let unseen = server.token(&caller, &[]).await.unwrap().access_token;
    server.advance(3_600);
    refused(&at_x, &token, "expired").await;
    refused(&at_x, &unseen, "expired").await;
}
