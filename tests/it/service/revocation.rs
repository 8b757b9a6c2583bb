//! Revocation: what is acknowledged is ended, and nothing else is.

use futures_util::future::join_all;
use jeton::{
    model::Timestamp,
    proto::admin::{Client, RevokeAllRequest, RotateKeysRequest, revoke_all_request::Target},
    store::RevocationStore,
};
use serde_json::json;
use tonic::Code;

use crate::support::{
    faulty::{Act, Kind},
    server::{
        START, TamperableServer, TestServer, bearer, client_of, on_mongodb, reason, refreshing,
    },
};

/// V01: a token that stands, the same again, any text, an expired token and another client's are
/// all OK, but the last one goes on, and the attempt is recorded.
#[tokio::test]
async fn revoking_is_ok_and_ends_only_ones_own() {
    let server = TestServer::start().await;
    let caller = server.register(refreshing()).await;
    let old = server.token(&caller, &[]).await.unwrap();
    // Wherever another node's clock may be.
    server.advance(900 + 3_600);
    let (own, other) =
        (server.token(&caller, &[]).await.unwrap(), server.register(refreshing()).await);
    let neighbour = server.register(Client { tenant: "b".to_owned(), ..refreshing() }).await;
    let theirs = server.token(&other, &[]).await.unwrap();
    for token in [
        &own.access_token,
        &own.access_token,
        &own.refresh_token,
        &own.refresh_token,
        &old.access_token,
    ] {
        server.revoke(&caller, token).await.unwrap();
    }
    for text in
        ["x", "a.b.c", "jrt_", &format!("jrt_{}", "A".repeat(71)), &caller.secret, "\0", "é"]
    {
        server.revoke(&caller, text).await.unwrap();
    }
    assert_eq!(
        server.events_of("token.revoked").await.len(),
        2,
        "a second time and a text are no revocation"
    );
    assert!(!server.is_active(&own.access_token).await);
    for thief in [&caller, &neighbour] {
        server.revoke(thief, &theirs.access_token).await.unwrap();
        server.revoke(thief, &theirs.refresh_token).await.unwrap();
    }
    assert!(server.is_active(&theirs.access_token).await);
    assert_eq!(server.events_of("token.revoke_refused").await.len(), 4);
    server.refresh(&other, &theirs.refresh_token).await.unwrap();

    let refused = server.revoke(&caller, "").await.unwrap_err();
    assert_eq!(reason(&refused), "INVALID_REQUEST");
    let nobody = crate::support::server::Caller { secret: "x".to_owned(), ..caller };
    assert_eq!(
        server.revoke(&nobody, &own.access_token).await.unwrap_err().code(),
        Code::Unauthenticated
    );
}

/// V01: who administers the tenant may end any token of it, and of no other unless it is the
/// operator's.
#[tokio::test]
async fn an_administrator_ends_what_it_governs() {
    let server = TestServer::start().await;
    let of_tenant = |tenant: &str, scope: &str| Client {
        tenant: tenant.to_owned(),
        scopes: vec![scope.to_owned()],
        ..refreshing()
    };
    let (here, there) =
        (server.register(of_tenant("b", "a")).await, server.register(of_tenant("c", "a")).await);
    let admin = server.register(of_tenant("b", "jeton:admin")).await;
    let (own, others) =
        (server.token(&here, &[]).await.unwrap(), server.token(&there, &[]).await.unwrap());
    for token in [&own.access_token, &others.access_token] {
        server.revoke(&admin, token).await.unwrap();
    }
    assert!(
        !server.is_active(&own.access_token).await && server.is_active(&others.access_token).await
    );
    server.revoke(&server.admin, &others.access_token).await.unwrap();
    assert!(!server.is_active(&others.access_token).await);
}

/// AUDIT TL14: of a client that ends very many tokens and families one by one not each is
/// remembered: the next one ends all that it has, which is acknowledged and true, also after a
/// restart; what is issued afterwards stands, and no other client is concerned.
#[tokio::test]
async fn too_many_single_revocations_end_the_client_instead() {
    let server = TestServer::start_with(|config| config.limits.revocations_per_client = 3).await;
    let (caller, other) =
        (server.register(refreshing()).await, server.register(refreshing()).await);
    let neighbour = server.token(&other, &[]).await.unwrap();
    let mut issued = Vec::new();
    for _ in 0..6 {
        issued.push(server.token(&caller, &[]).await.unwrap());
    }
    server.revoke(&caller, &issued[0].access_token).await.unwrap();
    server.revoke(&caller, &issued[1].refresh_token).await.unwrap();
    server.revoke(&server.admin, &issued[2].access_token).await.unwrap();
    assert!(server.is_active(&issued[3].access_token).await);
    assert_eq!(server.trail_of("revocation.client").await.len(), 0);
    // Once that is so, the rest of them is ended already.
    for issued in &issued[3..] {
        server.revoke(&caller, &issued.access_token).await.unwrap();
    }
    let ended = server.trail_of("revocation.client").await;
    assert_eq!(
        (ended.len(), ended[0].target.as_str(), client_of(&ended[0])),
        (1, &*caller.id, &*caller.id)
    );
    let fresh = server.token(&caller, &[]).await.unwrap();
    // A token that stands ends the client again, whoever asks for it; and room comes with time.
    let last = server.token(&caller, &[]).await.unwrap();
    let stands = async |server: &TestServer| {
        for issued in &issued {
            assert!(!server.is_active(&issued.access_token).await);
        }
        assert!(server.is_active(&neighbour.access_token).await);
    };
    stands(&server).await;
    assert!(server.is_active(&fresh.access_token).await);
    for issued in &issued[3..] {
        assert_eq!(
            reason(&server.refresh(&caller, &issued.refresh_token).await.unwrap_err()),
            "INVALID_GRANT"
        );
    }
    server.revoke(&server.admin, &last.refresh_token).await.unwrap();
    assert!(
        !server.is_active(&fresh.access_token).await && !server.is_active(&last.access_token).await
    );
    let server = server.restart().await;
    stands(&server).await;
    server.advance(100_000);
    let (one, two) =
        (server.token(&caller, &[]).await.unwrap(), server.token(&caller, &[]).await.unwrap());
    server.revoke(&caller, &one.access_token).await.unwrap();
    assert!(
        !server.is_active(&one.access_token).await && server.is_active(&two.access_token).await
    );
}

/// AUDIT TL14: families that a client ends by presenting spent tokens, or by sharing, count as
/// those that it revokes: past its share the next one ends all that the client has, which is on
/// record, and what is issued afterwards stands.
#[tokio::test]
async fn too_many_families_ended_by_reuse_end_the_client_instead() {
    let server = TestServer::start_with(|config| config.limits.revocations_per_client = 3).await;
    let (caller, other) =
        (server.register(refreshing()).await, server.register(refreshing()).await);
    let neighbour = server.token(&other, &[]).await.unwrap();
    let mut families = Vec::new();
    for _ in 0..5 {
        let spent = server.token(&caller, &[]).await.unwrap().refresh_token;
        let current = server.refresh(&caller, &spent).await.unwrap();
        families.push((spent, current));
    }
    // Two callers go on with one family, three generations running.
    let mut shared = server.token(&caller, &[]).await.unwrap();
    for generation in 0..3 {
        let next = server.refresh(&caller, &shared.refresh_token).await.unwrap();
        server.wait_until_answered().await;
        let again = server.refresh(&caller, &shared.refresh_token).await;
        assert_eq!(again.is_ok(), generation < 2, "{generation}");
        server.wait_until_answered().await;
        (shared.access_token, shared.refresh_token) = (next.access_token, next.refresh_token);
    }
    server.advance(11);
    // A repetition that is lawful takes no place, however often.
    for _ in 0..4 {
        let token = server.token(&caller, &[]).await.unwrap().refresh_token;
        server.refresh(&caller, &token).await.unwrap();
        server.refresh(&caller, &token).await.unwrap();
    }
    let replay =
        async |(spent, _): &(String, _)| reason(&server.refresh(&caller, spent).await.unwrap_err());
    for family in &families[..2] {
        assert_eq!(replay(family).await, "INVALID_GRANT");
        assert!(!server.is_active(&family.1.access_token).await);
    }
    assert!(
        server.is_active(&families[2].1.access_token).await
            && server.is_active(&families[4].1.access_token).await
    );
    assert_eq!(server.trail_of("revocation.client").await.len(), 0);
    for _ in 0..2 {
        assert_eq!(replay(&families[2]).await, "INVALID_GRANT");
    }
    let ended = server.trail_of("revocation.client").await;
    assert_eq!(
        (ended.len(), ended[0].target.as_str(), client_of(&ended[0])),
        (1, &*caller.id, &*caller.id)
    );
    assert_eq!(server.trail_of("refresh_token.reused").await.len(), 4, "each is on record");
    for (_, current) in &families {
        assert!(!server.is_active(&current.access_token).await);
        assert_eq!(
            reason(&server.refresh(&caller, &current.refresh_token).await.unwrap_err()),
            "INVALID_GRANT"
        );
    }
    let fresh = server.token(&caller, &[]).await.unwrap();
    assert!(
        server.is_active(&fresh.access_token).await
            && server.is_active(&neighbour.access_token).await
    );
    server.refresh(&caller, &fresh.refresh_token).await.unwrap();
}

/// AUDIT TL14: what the store does not take is not counted, nor is what was ended before.
#[tokio::test]
async fn a_revocation_that_was_not_written_takes_no_room() {
    let lab = TamperableServer::start_with(|config| config.limits.revocations_per_client = 2).await;
    let server = &lab.server;
    let caller = server.register(refreshing()).await;
    let (one, two) =
        (server.token(&caller, &[]).await.unwrap(), server.token(&caller, &[]).await.unwrap());
    let stands = server.token(&caller, &[]).await.unwrap();
    for _ in 0..5 {
        lab.store.always(Some(Act::FailBefore(Kind::Unavailable)));
        for token in [&one.access_token, &two.refresh_token] {
            assert_eq!(server.revoke(&caller, token).await.unwrap_err().code(), Code::Unavailable);
        }
        lab.store.always(None);
    }
    for _ in 0..5 {
        for token in [&one.access_token, &two.refresh_token] {
            server.revoke(&caller, token).await.unwrap();
        }
    }
    assert!(server.is_active(&stands.access_token).await);
    assert_eq!(server.trail_of("revocation.client").await.len(), 0);
}

/// V01, AUDIT FT3: what another node's clock dates in the future, or past its end, is revoked all
/// the same: that clock may be right.
#[tokio::test]
async fn a_token_of_another_clock_is_revoked() {
    let lab = TamperableServer::start().await;
    let server = &lab.server;
    let caller = server.register(refreshing()).await;
    let now = server.now();
    let dated = |n: i64, by: i64| {
        let jti = format!("01990000-0000-7000-8000-0000000001{n:02}");
        let (iat, sub) = (now + by, format!("client:{}", caller.id));
        lab.claiming(&json!({"iat": iat, "nbf": iat, "exp": iat + 900, "jti": jti, "client_id": caller.id, "sub": sub}))
    };
    for (n, by) in [(0, 120), (1, 1_800)] {
        let (ended, other) = (dated(n, by), dated(n + 50, by));
        assert!(!server.is_active(&other).await, "not by this clock");
        server.revoke(&caller, &ended).await.unwrap();
        server.advance(u64::try_from(by).unwrap());
        assert!(server.is_active(&other).await, "{by}");
        assert!(!server.is_active(&ended).await, "{by}");
    }
    // Expired by this clock, and not by one that is 120 s or more behind; then by all.
    let before = server.events_of("token.revoked").await.len();
    let now = server.now();
    let expired = |n: i64, by: i64| {
        let (jti, iat) = (format!("01990000-0000-7000-8000-0000000002{n:02}"), now - 900 - by);
        lab.claiming(
            &json!({"iat": iat, "nbf": iat, "exp": iat + 900, "jti": jti, "client_id": caller.id}),
        )
    };
    for (n, by, recorded) in [(0, 0, 1), (1, 1_000, 2), (2, 3_599, 3), (3, 3_600, 3)] {
        server.revoke(&caller, &expired(n, by)).await.unwrap();
        assert_eq!(server.events_of("token.revoked").await.len() - before, recorded, "{by}");
    }
    // A lifetime that is none of ours is no token of ours, whatever the clock.
    let odd = lab
        .claiming(&json!({"iat": now, "nbf": now, "exp": now + 1_000_000, "client_id": caller.id}));
    server.revoke(&caller, &odd).await.unwrap();
    assert_eq!(server.events_of("token.revoked").await.len() - before, 3);
}

/// AUDIT FT3: the same of a refresh token and of a family: expired here, and perhaps not elsewhere,
/// they are ended.
#[tokio::test]
async fn a_family_that_expired_by_one_clock_is_ended() {
    let server = TestServer::start().await;
    let lasting = Client {
        refresh_token_lifetime: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
        ..refreshing()
    };
    let caller = server.register(lasting).await;
    let (one, two) =
        (server.token(&caller, &[]).await.unwrap(), server.token(&caller, &[]).await.unwrap());
    let family = server
        .introspected(&server.admin, &two.refresh_token, "refresh_token")
        .await
        .into_inner()
        .jti;
    server.advance(900);
    server.revoke(&caller, &one.refresh_token).await.unwrap();
    assert_eq!(server.events_of("token.revoked").await.len(), 1);
    server.revoke_all(Target::Family(family)).await.unwrap();
    assert_eq!(server.events_of("revocation.family").await.len(), 1);
}

/// V02: a refresh token takes its access tokens along; an access token goes alone.
#[tokio::test]
async fn a_refresh_token_takes_its_access_tokens_along() {
    let server = TestServer::start().await;
    let caller = server.register(refreshing()).await;
    let first = server.token(&caller, &[]).await.unwrap();
    let second = server.refresh(&caller, &first.refresh_token).await.unwrap();
    server.revoke(&caller, &first.access_token).await.unwrap();
    assert!(
        !server.is_active(&first.access_token).await
            && server.is_active(&second.access_token).await
    );
    let third = server.refresh(&caller, &second.refresh_token).await.unwrap();
    server.revoke(&caller, &third.refresh_token).await.unwrap();
    for token in [&first.access_token, &second.access_token, &third.access_token] {
        assert!(!server.is_active(token).await);
    }
    for token in [&first.refresh_token, &second.refresh_token, &third.refresh_token] {
        assert_eq!(reason(&server.refresh(&caller, token).await.unwrap_err()), "INVALID_GRANT");
    }
    assert!(server.events_of("refresh_token.reused").await.is_empty());
}

/// V02: also a spent refresh token, still its client's, ends its family when it is revoked.
#[tokio::test]
async fn a_spent_refresh_token_still_ends_its_family() {
    let server = TestServer::start().await;
    let caller = server.register(refreshing()).await;
    let first = server.token(&caller, &[]).await.unwrap();
    let second = server.refresh(&caller, &first.refresh_token).await.unwrap();
    server.revoke(&caller, &first.refresh_token).await.unwrap();
    assert!(!server.is_active(&second.access_token).await);
    assert_eq!(
        reason(&server.refresh(&caller, &second.refresh_token).await.unwrap_err()),
        "INVALID_GRANT"
    );
}

/// V03: hints are ignored: wrong and unknown ones find the token all the same.
#[tokio::test]
async fn a_wrong_hint_changes_nothing() {
    let server = TestServer::start().await;
    let caller = server.register(refreshing()).await;
    for hint in ["refresh_token", "access_token", "unknown", "REFRESH_TOKEN", " "] {
        let issued = server.token(&caller, &[]).await.unwrap();
        server.revoke_with_hint(&caller, &issued.access_token, hint).await.unwrap();
        assert!(!server.is_active(&issued.access_token).await, "{hint}");
        let next = server.refresh(&caller, &issued.refresh_token).await.unwrap();
        server.revoke_with_hint(&caller, &next.refresh_token, hint).await.unwrap();
        assert!(!server.is_active(&next.access_token).await, "{hint}");
    }
}

/// V05: while the store cannot be written, Revoke never says OK; afterwards the token is as it was,
/// or ended.
#[tokio::test]
async fn a_revocation_that_was_not_written_is_not_acknowledged() {
    let lab = TamperableServer::start().await;
    let server = &lab.server;
    let caller = server.register(refreshing()).await;
    let pass = server.pass().await;
    let kinds = [
        (Kind::Unavailable, Code::Unavailable),
        (Kind::Full, Code::ResourceExhausted),
        (Kind::Corrupt, Code::Internal),
    ];
    for (kind, code) in kinds {
        for (act, written) in [(Act::FailBefore(kind), false), (Act::FailAfter(kind), true)] {
            let issued = server.token(&caller, &[]).await.unwrap();
            assert!(server.is_active(&issued.access_token).await);
            lab.store.always(Some(act));
            let access = server.revoke(&caller, &issued.access_token).await.unwrap_err();
            let refresh = server.revoke(&caller, &issued.refresh_token).await.unwrap_err();
            let message = RevokeAllRequest {
                target: Some(Target::Subject(format!("client:{}", caller.id))),
                reason: String::new(),
            };
            let all = server.revocations().revoke_all(bearer(message, &pass)).await.unwrap_err();
            // Introspection goes on from memory, and says what stands.
            let [active] = server.active_from_memory(&lab.store, act, [&issued.access_token]).await;
            for refused in [&access, &refresh, &all] {
                assert_eq!(refused.code(), code, "{act:?}: {refused:?}");
                assert!(!refused.message().contains("planned"), "the store's words stay here");
            }
            assert_eq!(active, !written, "{act:?}");
            for token in [&issued.access_token, &issued.refresh_token] {
                server.revoke(&caller, token).await.unwrap();
            }
            assert!(!server.is_active(&issued.access_token).await);
            assert_eq!(
                reason(&server.refresh(&caller, &issued.refresh_token).await.unwrap_err()),
                "INVALID_GRANT"
            );
        }
    }
}

/// V05: the same where only the write fails that ends a family, and where the attempt upon
/// another's token cannot be recorded.
#[tokio::test]
async fn a_family_whose_end_was_not_written_is_not_acknowledged() {
    let lab = TamperableServer::start().await;
    let server = &lab.server;
    let caller = server.register(refreshing()).await;
    let other = server.register(refreshing()).await;
    for turn in 0..12 {
        let act = if turn % 2 == 0 {
            Act::FailBefore(Kind::Unavailable)
        } else {
            Act::FailAfter(Kind::Unavailable)
        };
        let issued = server.token(&caller, &[]).await.unwrap();
        let thief = turn >= 8;
        server.token(&other, &[]).await.unwrap();
        if thief {
            // The counts of earlier refusals are recorded meanwhile, and meet a plan too.
            (0..8).for_each(|_| lab.store.plan_verb("append_soon", act));
        } else {
            lab.store.plan_verb("end_family", act);
        }
        let refused = server
            .revoke(if thief { &other } else { &caller }, &issued.refresh_token)
            .await
            .unwrap_err();
        lab.store.forget_plans();
        assert_eq!(refused.code(), Code::Unavailable);
        assert_eq!(server.is_active(&issued.access_token).await, thief || turn % 2 == 0, "{act:?}");
        server.revoke(&caller, &issued.refresh_token).await.unwrap();
        assert!(!server.is_active(&issued.access_token).await);
    }
}

/// V06: a client, a subject, a tenant or a key is ended by one write, however many tokens there
/// are; the levels add up, none hides another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_of_somebody_ends_with_one_write() {
    let lab = TamperableServer::start().await;
    let server = &lab.server;
    let caller = server.register(Client { tenant: "b".to_owned(), ..refreshing() }).await;
    let bystander = server.register(Client { tenant: "c".to_owned(), ..refreshing() }).await;
    let spared = server.token(&bystander, &[]).await.unwrap().access_token;
    let levels = [
        Target::Tenant("b".to_owned()),
        Target::ClientId(caller.id.clone()),
        Target::Subject(format!("client:{}", caller.id)),
        Target::ClientId(caller.id.clone()),
        Target::Tenant("b".to_owned()),
    ];
    let mut minted = Vec::new();
    for level in levels {
        let tokens = join_all((0..200).map(|_| server.token(&caller, &[]))).await;
        let newest = tokens.iter().map(|token| token.as_ref().unwrap().access_token.clone());
        minted.extend(newest);
        assert!(
            server.is_active(minted.last().unwrap()).await,
            "what comes after a revocation is not ended by it"
        );
        let pass = server.pass().await;
        let before = lab.store.asked();
        let message = RevokeAllRequest { target: Some(level.clone()), reason: "test".to_owned() };
        server.revocations().revoke_all(bearer(message, &pass)).await.unwrap();
        // Reading the client, or the clients of the tenant twice, and raising the epoch.
        assert!(lab.store.asked() - before <= 3, "{level:?}: {}", lab.store.asked() - before);
        for token in &minted {
            assert!(!server.is_active(token).await, "{level:?}");
        }
        let told =
            server.introspected(&server.admin, minted.last().unwrap(), "").await.into_inner();
        assert_eq!(told.active, Some(false));
    }
    assert!(server.is_active(&spared).await);
    let again = server.token(&caller, &[]).await.unwrap();
    assert!(server.is_active(&again.access_token).await);

    let pass = server.pass().await;
    let message = RevokeAllRequest {
        target: Some(Target::Kid(lab.kid.clone())),
        reason: "leaked".to_owned(),
    };
    server.revocations().revoke_all(bearer(message, &pass)).await.unwrap();
    assert!(
        !server.is_active(&again.access_token).await && !server.is_active(&spared).await,
        "a key takes all along"
    );
    let refused = server.keys().rotate_keys(bearer(RotateKeysRequest {}, &pass)).await.unwrap_err();
    assert_eq!(reason(&refused), "INVALID_TOKEN", "also the one it was done with");
    let next = server.refresh(&caller, &again.refresh_token).await.unwrap();
    assert!(server.is_active(&next.access_token).await, "families live on under the next key");

    // A token of a lower epoch is refused by every level for itself, though all others are high
    // enough.
    let lab = lab.back_in_time().await;
    for token in minted.iter().step_by(37) {
        assert!(!lab.server.is_active(token).await, "and after a restart");
    }
    assert!(lab.server.is_active(&next.access_token).await);
}

/// V06: a single family or token, by its id.
#[tokio::test]
async fn one_family_or_token_is_ended_by_its_id() {
    let server = TestServer::start().await;
    let caller = server.register(refreshing()).await;
    let [one, two] =
        [server.token(&caller, &[]).await.unwrap(), server.token(&caller, &[]).await.unwrap()];
    let jti = server.introspect(&one.access_token).await.jti;
    server.revoke_all(Target::Jti(jti)).await.unwrap();
    assert!(
        !server.is_active(&one.access_token).await && server.is_active(&two.access_token).await
    );
    let family = server
        .introspected(&server.admin, &one.refresh_token, "refresh_token")
        .await
        .into_inner()
        .jti;
    let next = server.refresh(&caller, &one.refresh_token).await.unwrap();
    server.revoke_all(Target::Family(family)).await.unwrap();
    assert!(
        !server.is_active(&next.access_token).await && server.is_active(&two.access_token).await
    );
    assert_eq!(
        reason(&server.refresh(&caller, &next.refresh_token).await.unwrap_err()),
        "INVALID_GRANT"
    );
    server.refresh(&caller, &two.refresh_token).await.unwrap();
}

/// V07: what was revoked is remembered an hour beyond the end of the token, so that a clock that is
/// put back finds it still; then it is forgotten.
#[tokio::test]
async fn a_revocation_outlives_its_token_by_an_hour() {
    let lab = TamperableServer::start().await;
    let caller = lab.server.register(refreshing()).await;
    let alone = lab.server.token(&caller, &[]).await.unwrap().access_token;
    let in_family = lab.server.token(&caller, &[]).await.unwrap();
    lab.server.revoke(&caller, &alone).await.unwrap();
    lab.server.revoke(&caller, &in_family.refresh_token).await.unwrap();
    let at = |seconds: i64| Timestamp::from_seconds(START + seconds);
    lab.server.advance(900 + 3_599);
    assert_eq!(lab.store.sweep(at(900 + 3_599), 2_000).await.unwrap(), 0);
    let lab = lab.back_in_time().await;
    assert_eq!(lab.server.now(), START, "the machine's clock was put back");
    assert!(
        !lab.server.is_active(&alone).await && !lab.server.is_active(&in_family.access_token).await
    );
    if on_mongodb() {
        // That forgets nothing before its own clock has come there, which no test can move.
        return;
    }
    assert_eq!(lab.store.sweep(at(900 + 3_600), 2_000).await.unwrap(), 1, "the single token");
    // The family's access tokens may have been given the longest lifetime there is.
    assert_eq!(lab.store.sweep(at(3_600 + 3_599), 2_000).await.unwrap(), 0);
    assert!(lab.store.sweep(at(3_600 + 3_600), 2_000).await.unwrap() >= 1);
}
