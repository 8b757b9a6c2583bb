//! Revocation: what is acknowledged is ended, and nothing else is.

use futures_util::future::join_all;
use jeton::{
    model::Timestamp,
    proto::admin::{Client, RevokeAllRequest, RotateKeysRequest, revoke_all_request::Target},
    store::RevocationStore,
};
use serde_json::json;
use tonic::Code;

use crate::{
    service::{
        harness::{START, World, bearer, client_of, reason, refreshing},
        home::on_mongodb,
        lab::Lab,
    },
    support::faulty::{Act, Kind},
};

/// V01: a token that stands, the same again, any text, an expired token and another client's are
/// all OK, but the last one goes on, and the attempt is recorded.
#[tokio::test]
async fn revoking_is_ok_and_ends_only_ones_own() {
    let world = World::start().await;
    let caller = world.register(refreshing()).await;
    let old = world.token(&caller, &[]).await.unwrap();
    // Wherever another node's clock may be.
    world.advance(900 + 3_600);
    let (own, other) =
        (world.token(&caller, &[]).await.unwrap(), world.register(refreshing()).await);
    let neighbour = world.register(Client { tenant: "b".to_owned(), ..refreshing() }).await;
    let theirs = world.token(&other, &[]).await.unwrap();
    for token in [
        &own.access_token,
        &own.access_token,
        &own.refresh_token,
        &own.refresh_token,
        &old.access_token,
    ] {
        world.revoke(&caller, token).await.unwrap();
    }
    for text in
        ["x", "a.b.c", "jrt_", &format!("jrt_{}", "A".repeat(71)), &caller.secret, "\0", "é"]
    {
        world.revoke(&caller, text).await.unwrap();
    }
    assert_eq!(
        world.events_of("token.revoked").await.len(),
        2,
        "a second time and a text are no revocation"
    );
    assert!(!world.is_active(&own.access_token).await);
    for thief in [&caller, &neighbour] {
        world.revoke(thief, &theirs.access_token).await.unwrap();
        world.revoke(thief, &theirs.refresh_token).await.unwrap();
    }
    assert!(world.is_active(&theirs.access_token).await);
    assert_eq!(world.events_of("token.revoke_refused").await.len(), 4);
    world.refresh(&other, &theirs.refresh_token).await.unwrap();

    let refused = world.revoke(&caller, "").await.unwrap_err();
    assert_eq!(reason(&refused), "INVALID_REQUEST");
    let nobody = crate::service::harness::Caller { secret: "x".to_owned(), ..caller };
    assert_eq!(
        world.revoke(&nobody, &own.access_token).await.unwrap_err().code(),
        Code::Unauthenticated
    );
}

/// V01: who administers the tenant may end any token of it, and of no other unless it is the
/// operator's.
#[tokio::test]
async fn an_administrator_ends_what_it_governs() {
    let world = World::start().await;
    let of_tenant = |tenant: &str, scope: &str| Client {
        tenant: tenant.to_owned(),
        scopes: vec![scope.to_owned()],
        ..refreshing()
    };
    let (here, there) =
        (world.register(of_tenant("b", "a")).await, world.register(of_tenant("c", "a")).await);
    let admin = world.register(of_tenant("b", "jeton:admin")).await;
    let (own, others) =
        (world.token(&here, &[]).await.unwrap(), world.token(&there, &[]).await.unwrap());
    for token in [&own.access_token, &others.access_token] {
        world.revoke(&admin, token).await.unwrap();
    }
    assert!(
        !world.is_active(&own.access_token).await && world.is_active(&others.access_token).await
    );
    world.revoke(&world.admin, &others.access_token).await.unwrap();
    assert!(!world.is_active(&others.access_token).await);
}

/// AUDIT TL14: of a client that ends very many tokens and families one by one not each is
/// remembered: the next one ends all that it has, which is acknowledged and true, also after a
/// restart; what is issued afterwards stands, and no other client is concerned.
#[tokio::test]
async fn too_many_single_revocations_end_the_client_instead() {
    let world = World::with(|config| config.limits.revocations_per_client = 3).await;
    let (caller, other) = (world.register(refreshing()).await, world.register(refreshing()).await);
    let neighbour = world.token(&other, &[]).await.unwrap();
    let mut issued = Vec::new();
    for _ in 0..6 {
        issued.push(world.token(&caller, &[]).await.unwrap());
    }
    world.revoke(&caller, &issued[0].access_token).await.unwrap();
    world.revoke(&caller, &issued[1].refresh_token).await.unwrap();
    world.revoke(&world.admin, &issued[2].access_token).await.unwrap();
    assert!(world.is_active(&issued[3].access_token).await);
    assert_eq!(world.trail_of("revocation.client").await.len(), 0);
    // Once that is so, the rest of them is ended already.
    for issued in &issued[3..] {
        world.revoke(&caller, &issued.access_token).await.unwrap();
    }
    let ended = world.trail_of("revocation.client").await;
    assert_eq!(
        (ended.len(), ended[0].target.as_str(), client_of(&ended[0])),
        (1, &*caller.id, &*caller.id)
    );
    let fresh = world.token(&caller, &[]).await.unwrap();
    // A token that stands ends the client again, whoever asks for it; and room comes with time.
    let last = world.token(&caller, &[]).await.unwrap();
    let stands = async |world: &World| {
        for issued in &issued {
            assert!(!world.is_active(&issued.access_token).await);
        }
        assert!(world.is_active(&neighbour.access_token).await);
    };
    stands(&world).await;
    assert!(world.is_active(&fresh.access_token).await);
    for issued in &issued[3..] {
        assert_eq!(
            reason(&world.refresh(&caller, &issued.refresh_token).await.unwrap_err()),
            "INVALID_GRANT"
        );
    }
    world.revoke(&world.admin, &last.refresh_token).await.unwrap();
    assert!(
        !world.is_active(&fresh.access_token).await && !world.is_active(&last.access_token).await
    );
    let world = world.restart().await;
    stands(&world).await;
    world.advance(100_000);
    let (one, two) =
        (world.token(&caller, &[]).await.unwrap(), world.token(&caller, &[]).await.unwrap());
    world.revoke(&caller, &one.access_token).await.unwrap();
    assert!(!world.is_active(&one.access_token).await && world.is_active(&two.access_token).await);
}

/// AUDIT TL14: families that a client ends by presenting spent tokens, or by sharing, count as
/// those that it revokes: past its share the next one ends all that the client has, which is on
/// record, and what is issued afterwards stands.
#[tokio::test]
async fn too_many_families_ended_by_reuse_end_the_client_instead() {
    let world = World::with(|config| config.limits.revocations_per_client = 3).await;
    let (caller, other) = (world.register(refreshing()).await, world.register(refreshing()).await);
    let neighbour = world.token(&other, &[]).await.unwrap();
    let mut families = Vec::new();
    for _ in 0..5 {
        let spent = world.token(&caller, &[]).await.unwrap().refresh_token;
        let current = world.refresh(&caller, &spent).await.unwrap();
        families.push((spent, current));
    }
    // Two callers go on with one family, three generations running.
    let mut shared = world.token(&caller, &[]).await.unwrap();
    for generation in 0..3 {
        let next = world.refresh(&caller, &shared.refresh_token).await.unwrap();
        world.settled().await;
        let again = world.refresh(&caller, &shared.refresh_token).await;
        assert_eq!(again.is_ok(), generation < 2, "{generation}");
        world.settled().await;
        (shared.access_token, shared.refresh_token) = (next.access_token, next.refresh_token);
    }
    world.advance(11);
    // A repetition that is lawful takes no place, however often.
    for _ in 0..4 {
        let token = world.token(&caller, &[]).await.unwrap().refresh_token;
        world.refresh(&caller, &token).await.unwrap();
        world.refresh(&caller, &token).await.unwrap();
    }
    let replay =
        async |(spent, _): &(String, _)| reason(&world.refresh(&caller, spent).await.unwrap_err());
    for family in &families[..2] {
        assert_eq!(replay(family).await, "INVALID_GRANT");
        assert!(!world.is_active(&family.1.access_token).await);
    }
    assert!(
        world.is_active(&families[2].1.access_token).await
            && world.is_active(&families[4].1.access_token).await
    );
    assert_eq!(world.trail_of("revocation.client").await.len(), 0);
    for _ in 0..2 {
        assert_eq!(replay(&families[2]).await, "INVALID_GRANT");
    }
    let ended = world.trail_of("revocation.client").await;
    assert_eq!(
        (ended.len(), ended[0].target.as_str(), client_of(&ended[0])),
        (1, &*caller.id, &*caller.id)
    );
    assert_eq!(world.trail_of("refresh_token.reused").await.len(), 4, "each is on record");
    for (_, current) in &families {
        assert!(!world.is_active(&current.access_token).await);
        assert_eq!(
            reason(&world.refresh(&caller, &current.refresh_token).await.unwrap_err()),
            "INVALID_GRANT"
        );
    }
    let fresh = world.token(&caller, &[]).await.unwrap();
    assert!(
        world.is_active(&fresh.access_token).await
            && world.is_active(&neighbour.access_token).await
    );
    world.refresh(&caller, &fresh.refresh_token).await.unwrap();
}

/// AUDIT TL14: what the store does not take is not counted, nor is what was ended before.
#[tokio::test]
async fn a_revocation_that_was_not_written_takes_no_room() {
    let lab = Lab::with(|config| config.limits.revocations_per_client = 2).await;
    let world = &lab.world;
    let caller = world.register(refreshing()).await;
    let (one, two) =
        (world.token(&caller, &[]).await.unwrap(), world.token(&caller, &[]).await.unwrap());
    let stands = world.token(&caller, &[]).await.unwrap();
    for _ in 0..5 {
        lab.store.always(Some(Act::FailBefore(Kind::Unavailable)));
        for token in [&one.access_token, &two.refresh_token] {
            assert_eq!(world.revoke(&caller, token).await.unwrap_err().code(), Code::Unavailable);
        }
        lab.store.always(None);
    }
    for _ in 0..5 {
        for token in [&one.access_token, &two.refresh_token] {
            world.revoke(&caller, token).await.unwrap();
        }
    }
    assert!(world.is_active(&stands.access_token).await);
    assert_eq!(world.trail_of("revocation.client").await.len(), 0);
}

/// V01, AUDIT FT3: what another node's clock dates in the future, or past its end, is revoked all
/// the same: that clock may be right.
#[tokio::test]
async fn a_token_of_another_clock_is_revoked() {
    let lab = Lab::start().await;
    let world = &lab.world;
    let caller = world.register(refreshing()).await;
    let now = world.now();
    let dated = |n: i64, by: i64| {
        let jti = format!("01990000-0000-7000-8000-0000000001{n:02}");
        let (iat, sub) = (now + by, format!("client:{}", caller.id));
        lab.claiming(&json!({"iat": iat, "nbf": iat, "exp": iat + 900, "jti": jti, "client_id": caller.id, "sub": sub}))
    };
    for (n, by) in [(0, 120), (1, 1_800)] {
        let (ended, other) = (dated(n, by), dated(n + 50, by));
        assert!(!world.is_active(&other).await, "not by this clock");
        world.revoke(&caller, &ended).await.unwrap();
        world.advance(u64::try_from(by).unwrap());
        assert!(world.is_active(&other).await, "{by}");
        assert!(!world.is_active(&ended).await, "{by}");
    }
    // Expired by this clock, and not by one that is 120 s or more behind; then by all.
    let before = world.events_of("token.revoked").await.len();
    let now = world.now();
    let expired = |n: i64, by: i64| {
        let (jti, iat) = (format!("01990000-0000-7000-8000-0000000002{n:02}"), now - 900 - by);
        lab.claiming(
            &json!({"iat": iat, "nbf": iat, "exp": iat + 900, "jti": jti, "client_id": caller.id}),
        )
    };
    for (n, by, recorded) in [(0, 0, 1), (1, 1_000, 2), (2, 3_599, 3), (3, 3_600, 3)] {
        world.revoke(&caller, &expired(n, by)).await.unwrap();
        assert_eq!(world.events_of("token.revoked").await.len() - before, recorded, "{by}");
    }
    // A lifetime that is none of ours is no token of ours, whatever the clock.
    let odd = lab
        .claiming(&json!({"iat": now, "nbf": now, "exp": now + 1_000_000, "client_id": caller.id}));
    world.revoke(&caller, &odd).await.unwrap();
    assert_eq!(world.events_of("token.revoked").await.len() - before, 3);
}

/// AUDIT FT3: the same of a refresh token and of a family: expired here, and perhaps not elsewhere,
/// they are ended.
#[tokio::test]
async fn a_family_that_expired_by_one_clock_is_ended() {
    let world = World::start().await;
    let lasting = Client {
        refresh_token_lifetime: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
        ..refreshing()
    };
    let caller = world.register(lasting).await;
    let (one, two) =
        (world.token(&caller, &[]).await.unwrap(), world.token(&caller, &[]).await.unwrap());
    let family = world
        .introspected(&world.admin, &two.refresh_token, "refresh_token")
        .await
        .into_inner()
        .jti;
    world.advance(900);
    world.revoke(&caller, &one.refresh_token).await.unwrap();
    assert_eq!(world.events_of("token.revoked").await.len(), 1);
    world.end_all(Target::Family(family)).await.unwrap();
    assert_eq!(world.events_of("revocation.family").await.len(), 1);
}

/// V02: a refresh token takes its access tokens along; an access token goes alone.
#[tokio::test]
async fn a_refresh_token_takes_its_access_tokens_along() {
    let world = World::start().await;
    let caller = world.register(refreshing()).await;
    let first = world.token(&caller, &[]).await.unwrap();
    let second = world.refresh(&caller, &first.refresh_token).await.unwrap();
    world.revoke(&caller, &first.access_token).await.unwrap();
    assert!(
        !world.is_active(&first.access_token).await && world.is_active(&second.access_token).await
    );
    let third = world.refresh(&caller, &second.refresh_token).await.unwrap();
    world.revoke(&caller, &third.refresh_token).await.unwrap();
    for token in [&first.access_token, &second.access_token, &third.access_token] {
        assert!(!world.is_active(token).await);
    }
    for token in [&first.refresh_token, &second.refresh_token, &third.refresh_token] {
        assert_eq!(reason(&world.refresh(&caller, token).await.unwrap_err()), "INVALID_GRANT");
    }
    assert!(world.events_of("refresh_token.reused").await.is_empty());
}

/// V02: also a spent refresh token, still its client's, ends its family when it is revoked.
#[tokio::test]
async fn a_spent_refresh_token_still_ends_its_family() {
    let world = World::start().await;
    let caller = world.register(refreshing()).await;
    let first = world.token(&caller, &[]).await.unwrap();
    let second = world.refresh(&caller, &first.refresh_token).await.unwrap();
    world.revoke(&caller, &first.refresh_token).await.unwrap();
    assert!(!world.is_active(&second.access_token).await);
    assert_eq!(
        reason(&world.refresh(&caller, &second.refresh_token).await.unwrap_err()),
        "INVALID_GRANT"
    );
}

/// V03: hints are ignored: wrong and unknown ones find the token all the same.
#[tokio::test]
async fn a_wrong_hint_changes_nothing() {
    let world = World::start().await;
    let caller = world.register(refreshing()).await;
    for hint in ["refresh_token", "access_token", "unknown", "REFRESH_TOKEN", " "] {
        let issued = world.token(&caller, &[]).await.unwrap();
        world.revoke_with_hint(&caller, &issued.access_token, hint).await.unwrap();
        assert!(!world.is_active(&issued.access_token).await, "{hint}");
        let next = world.refresh(&caller, &issued.refresh_token).await.unwrap();
        world.revoke_with_hint(&caller, &next.refresh_token, hint).await.unwrap();
        assert!(!world.is_active(&next.access_token).await, "{hint}");
    }
}

/// V05: while the store cannot be written, Revoke never says OK; afterwards the token is as it was,
/// or ended.
#[tokio::test]
async fn a_revocation_that_was_not_written_is_not_acknowledged() {
    let lab = Lab::start().await;
    let world = &lab.world;
    let caller = world.register(refreshing()).await;
    let pass = world.pass().await;
    let kinds = [
        (Kind::Unavailable, Code::Unavailable),
        (Kind::Full, Code::ResourceExhausted),
        (Kind::Corrupt, Code::Internal),
    ];
    for (kind, code) in kinds {
        for (act, written) in [(Act::FailBefore(kind), false), (Act::FailAfter(kind), true)] {
            let issued = world.token(&caller, &[]).await.unwrap();
            assert!(world.is_active(&issued.access_token).await);
            lab.store.always(Some(act));
            let access = world.revoke(&caller, &issued.access_token).await.unwrap_err();
            let refresh = world.revoke(&caller, &issued.refresh_token).await.unwrap_err();
            let message = RevokeAllRequest {
                target: Some(Target::Subject("someone".to_owned())),
                reason: String::new(),
            };
            let all = world.revocations().revoke_all(bearer(message, &pass)).await.unwrap_err();
            // Introspection goes on from memory, and says what stands.
            let [active] = world.judged_from_memory(&lab.store, act, [&issued.access_token]).await;
            for refused in [&access, &refresh, &all] {
                assert_eq!(refused.code(), code, "{act:?}: {refused:?}");
                assert!(!refused.message().contains("planned"), "the store's words stay here");
            }
            assert_eq!(active, !written, "{act:?}");
            for token in [&issued.access_token, &issued.refresh_token] {
                world.revoke(&caller, token).await.unwrap();
            }
            assert!(!world.is_active(&issued.access_token).await);
            assert_eq!(
                reason(&world.refresh(&caller, &issued.refresh_token).await.unwrap_err()),
                "INVALID_GRANT"
            );
        }
    }
}

/// V05: the same where only the write fails that ends a family, and where the attempt upon
/// another's token cannot be recorded.
#[tokio::test]
async fn a_family_whose_end_was_not_written_is_not_acknowledged() {
    let lab = Lab::start().await;
    let world = &lab.world;
    let caller = world.register(refreshing()).await;
    let other = world.register(refreshing()).await;
    for turn in 0..12 {
        let act = if turn % 2 == 0 {
            Act::FailBefore(Kind::Unavailable)
        } else {
            Act::FailAfter(Kind::Unavailable)
        };
        let issued = world.token(&caller, &[]).await.unwrap();
        let thief = turn >= 8;
        world.token(&other, &[]).await.unwrap();
        if thief {
            // The counts of earlier refusals are recorded meanwhile, and meet a plan too.
            (0..8).for_each(|_| lab.store.plan_verb("append_soon", act));
        } else {
            lab.store.plan_verb("end_family", act);
        }
        let refused = world
            .revoke(if thief { &other } else { &caller }, &issued.refresh_token)
            .await
            .unwrap_err();
        lab.store.forget_plans();
        assert_eq!(refused.code(), Code::Unavailable);
        assert_eq!(world.is_active(&issued.access_token).await, thief || turn % 2 == 0, "{act:?}");
        world.revoke(&caller, &issued.refresh_token).await.unwrap();
        assert!(!world.is_active(&issued.access_token).await);
    }
}

/// V06: a client, a subject, a tenant or a key is ended by one write, however many tokens there
/// are; the levels add up, none hides another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_of_somebody_ends_with_one_write() {
    let lab = Lab::start().await;
    let world = &lab.world;
    let caller = world.register(Client { tenant: "b".to_owned(), ..refreshing() }).await;
    let bystander = world.register(Client { tenant: "c".to_owned(), ..refreshing() }).await;
    let spared = world.token(&bystander, &[]).await.unwrap().access_token;
    let levels = [
        Target::Tenant("b".to_owned()),
        Target::ClientId(caller.id.clone()),
        Target::Subject(format!("client:{}", caller.id)),
        Target::ClientId(caller.id.clone()),
        Target::Tenant("b".to_owned()),
    ];
    let mut minted = Vec::new();
    for level in levels {
        let tokens = join_all((0..200).map(|_| world.token(&caller, &[]))).await;
        let newest = tokens.iter().map(|token| token.as_ref().unwrap().access_token.clone());
        minted.extend(newest);
        assert!(
            world.is_active(minted.last().unwrap()).await,
            "what comes after a revocation is not ended by it"
        );
        let pass = world.pass().await;
        let before = lab.store.asked();
        let message = RevokeAllRequest { target: Some(level.clone()), reason: "test".to_owned() };
        world.revocations().revoke_all(bearer(message, &pass)).await.unwrap();
        // Reading the client and raising its epoch.
        assert!(lab.store.asked() - before <= 2, "{level:?}: {}", lab.store.asked() - before);
        for token in &minted {
            assert!(!world.is_active(token).await, "{level:?}");
        }
        let told = world.introspected(&world.admin, minted.last().unwrap(), "").await.into_inner();
        assert_eq!(told.active, Some(false));
    }
    assert!(world.is_active(&spared).await);
    let again = world.token(&caller, &[]).await.unwrap();
    assert!(world.is_active(&again.access_token).await);

    let pass = world.pass().await;
    let message = RevokeAllRequest {
        target: Some(Target::Kid(lab.kid.clone())),
        reason: "leaked".to_owned(),
    };
    world.revocations().revoke_all(bearer(message, &pass)).await.unwrap();
    assert!(
        !world.is_active(&again.access_token).await && !world.is_active(&spared).await,
        "a key takes all along"
    );
    let refused = world.keys().rotate_keys(bearer(RotateKeysRequest {}, &pass)).await.unwrap_err();
    assert_eq!(reason(&refused), "INVALID_TOKEN", "also the one it was done with");
    let next = world.refresh(&caller, &again.refresh_token).await.unwrap();
    assert!(world.is_active(&next.access_token).await, "families live on under the next key");

    // A token of a lower epoch is refused by every level for itself, though all others are high
    // enough.
    let lab = lab.back_in_time().await;
    for token in minted.iter().step_by(37) {
        assert!(!lab.world.is_active(token).await, "and after a restart");
    }
    assert!(lab.world.is_active(&next.access_token).await);
}

/// V06: a single family or token, by its id.
#[tokio::test]
async fn one_family_or_token_is_ended_by_its_id() {
    let world = World::start().await;
    let caller = world.register(refreshing()).await;
    let [one, two] =
        [world.token(&caller, &[]).await.unwrap(), world.token(&caller, &[]).await.unwrap()];
    let jti = world.introspect(&one.access_token).await.jti;
    world.end_all(Target::Jti(jti)).await.unwrap();
    assert!(!world.is_active(&one.access_token).await && world.is_active(&two.access_token).await);
    let family = world
        .introspected(&world.admin, &one.refresh_token, "refresh_token")
        .await
        .into_inner()
        .jti;
    let next = world.refresh(&caller, &one.refresh_token).await.unwrap();
    world.end_all(Target::Family(family)).await.unwrap();
    assert!(!world.is_active(&next.access_token).await && world.is_active(&two.access_token).await);
    assert_eq!(
        reason(&world.refresh(&caller, &next.refresh_token).await.unwrap_err()),
        "INVALID_GRANT"
    );
    world.refresh(&caller, &two.refresh_token).await.unwrap();
}

/// V07: what was revoked is remembered an hour beyond the end of the token, so that a clock that is
/// put back finds it still; then it is forgotten.
#[tokio::test]
async fn a_revocation_outlives_its_token_by_an_hour() {
    let lab = Lab::start().await;
    let caller = lab.world.register(refreshing()).await;
    let alone = lab.world.token(&caller, &[]).await.unwrap().access_token;
    let in_family = lab.world.token(&caller, &[]).await.unwrap();
    lab.world.revoke(&caller, &alone).await.unwrap();
    lab.world.revoke(&caller, &in_family.refresh_token).await.unwrap();
    let at = |seconds: i64| Timestamp::from_seconds(START + seconds);
    lab.world.advance(900 + 3_599);
    assert_eq!(lab.store.sweep(at(900 + 3_599), 2_000).await.unwrap(), 0);
    let lab = lab.back_in_time().await;
    assert_eq!(lab.world.now(), START, "the machine's clock was put back");
    assert!(
        !lab.world.is_active(&alone).await && !lab.world.is_active(&in_family.access_token).await
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
