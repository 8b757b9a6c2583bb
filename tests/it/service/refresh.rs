//! Refresh and rotation: what is spent stays spent, and what a family may do never grows.

use std::collections::HashSet;

use futures_util::future::join_all;
use jeton::proto::{
    admin::{
        Client, CreateClientRequest, DeleteClientRequest, EnableClientRequest, GrantType,
        revoke_all_request::Target,
    },
    token::IntrospectResponse,
};
use tonic::Code;

use crate::support::{
    faulty::{Act, Kind},
    server::{
        Caller, TamperableServer, TestServer, aimed_at, assert_invalid_grant, client_of,
        on_mongodb, reason, refreshing, samples_cases, secret_of, shape,
    },
};

fn lasting(absolute: i64, idle: i64) -> Client {
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    Client {
        refresh_token_lifetime: seconds(absolute),
        refresh_token_idle_lifetime: seconds(idle),
        ..refreshing()
    }
}

/// R01: a spent token ends its family: its successor and every access token, with one record.
#[tokio::test]
async fn a_replayed_token_ends_its_family() {
    let server = TestServer::start().await;
    let caller = server.register(refreshing()).await;
    let first = server.token(&caller, &[]).await.unwrap();
    let second = server.refresh(&caller, &first.refresh_token).await.unwrap();
    let other_family = server.token(&caller, &[]).await.unwrap();
    server.advance(11);
    assert!(
        server.is_active(&first.access_token).await && server.is_active(&second.access_token).await
    );
    for _ in 0..3 {
        server.is_refused(&caller, &first.refresh_token).await;
    }
    server.is_refused(&caller, &second.refresh_token).await;
    assert!(
        !server.is_active(&first.access_token).await
            && !server.is_active(&second.access_token).await
    );
    assert_eq!(
        server
            .introspected(&server.admin, &second.refresh_token, "refresh_token")
            .await
            .into_inner()
            .active,
        Some(false)
    );

    let reused = server.events_of("refresh_token.reused").await;
    assert_eq!(reused.len(), 1, "{reused:?}");
    assert_eq!(
        (client_of(&reused[0]), reused[0].reason.as_str()),
        (caller.id.as_str(), "invalid_grant")
    );
    assert!(
        !reused[0].family.is_empty()
            && !secret_of(&reused[0]).is_empty()
            && !reused[0].request_id.is_empty()
    );

    assert!(
        server.is_active(&other_family.access_token).await,
        "another family of the same client lives on"
    );
    server.refresh(&caller, &other_family.refresh_token).await.unwrap();
    let server = server.restart().await;
    server.is_refused(&caller, &second.refresh_token).await;
    assert!(!server.is_active(&second.access_token).await, "also after a restart");
}

/// R02, AUDIT TL7: a hundred callers with one token at once: one successor, the same for four of
/// them, and none for the others; the family goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_callers_get_one_successor() {
    let server = TestServer::start_unlimited().await;
    let caller = server.register(refreshing()).await;
    let token = server.token(&caller, &[]).await.unwrap().refresh_token;
    let answers = join_all((0..100).map(|_| server.refresh(&caller, &token))).await;
    let (given, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    refused.iter().for_each(|answer| assert_invalid_grant(answer.as_ref().unwrap_err()));
    assert_eq!(given.len(), 4);
    let successors: HashSet<String> =
        given.into_iter().map(|answer| answer.unwrap().refresh_token).collect();
    assert_eq!(successors.len(), 1);
    assert_eq!(server.events_of("token.refreshed").await.len(), 1);
    assert_eq!(server.events_of("refresh_token.repeated").await.len(), 3);
    server.refresh(&caller, successors.iter().next().unwrap()).await.unwrap();
}

/// AUDIT TL7: one spent token, again and again for as long as its grace lasts: four access tokens
/// come of it, and then none. When the grace is over its family ends.
#[tokio::test]
async fn a_spent_token_yields_four_access_tokens_and_no_more() {
    let server = TestServer::start_unlimited().await;
    let caller = server.register(refreshing()).await;
    let token = server.token(&caller, &[]).await.unwrap().refresh_token;
    let mut given = HashSet::new();
    for _ in 0..10 {
        for _ in 0..20 {
            match server.refresh(&caller, &token).await {
                Ok(answer) => assert!(given.insert(answer.access_token)),
                Err(refused) => assert_invalid_grant(&refused),
            }
        }
        server.advance(1);
    }
    assert_eq!(given.len(), 4);
    assert!(server.is_active(given.iter().next().unwrap()).await, "the family goes on");
    server.advance(1);
    server.is_refused(&caller, &token).await;
    for token in &given {
        assert!(!server.is_active(token).await);
    }
}

/// AUDIT TL7: a thief that has one refresh token, and asks after each rotation of the victim, is
/// found in the third: the family ends, and the trail says why and names the peers of both.
#[tokio::test]
async fn a_thief_that_follows_every_rotation_is_found() {
    let server = TestServer::start().await;
    let caller = server.register(refreshing()).await;
    let mut token = server.token(&caller, &[]).await.unwrap().refresh_token;
    let mut followed = 0;
    let last = loop {
        server.advance(60);
        let next = server.refresh(&caller, &token).await.unwrap();
        server.wait_until_answered().await;
        match server.refresh(&caller, &token).await {
            Ok(thiefs) => assert_eq!(thiefs.refresh_token, next.refresh_token),
            Err(refused) => {
                assert_invalid_grant(&refused);
                break next;
            }
        }
        followed += 1;
        server.wait_until_answered().await;
        token = next.refresh_token;
    };
    assert_eq!(followed, 2);
    assert!(!server.is_active(&last.access_token).await);
    server.is_refused(&caller, &last.refresh_token).await;
    let reused = server.events_of("refresh_token.reused").await;
    let both = "rotated from 127.0.0.1, repeated from 127.0.0.1";
    assert!(
        reused.len() == 1
            && reused[0].reason.starts_with("shared: ")
            && reused[0].reason.ends_with(both),
        "{reused:?}"
    );
}

/// AUDIT TL7: whether a refresh token is current is told to viewers of any token alone, not to the
/// client that holds it: a thief could else ask, without a trace, when to follow.
#[tokio::test]
async fn a_refresh_token_is_introspected_by_viewers_of_any_token_alone() {
    let server = TestServer::start().await;
    let caller = server
        .register(Client { scopes: vec!["jeton:introspect".to_owned()], ..refreshing() })
        .await;
    let token = server.token(&caller, &[]).await.unwrap().refresh_token;
    let any = server
        .register(Client { scopes: vec!["jeton:introspect:any".to_owned()], ..refreshing() })
        .await;
    let active = async |viewer: &Caller, token: &str| {
        let answer = server.introspected(viewer, token, "refresh_token").await.into_inner();
        assert!(
            answer.active == Some(true)
                || answer == IntrospectResponse { active: Some(false), ..Default::default() }
        );
        answer.active.unwrap()
    };
    assert!(!active(&caller, &token).await);
    assert!(active(&any, &token).await && active(&server.admin, &token).await);
    let spent = token;
    let token = server.refresh(&caller, &spent).await.unwrap().refresh_token;
    assert!(
        !active(&caller, &token).await && !active(&any, &spent).await && active(&any, &token).await
    );
}

/// R02: without a grace, one is given the successor and the next one ends the family: no live token
/// is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_grace_the_second_caller_ends_the_family() {
    let server = TestServer::start_without_grace().await;
    let caller = server.register(refreshing()).await;
    let token = server.token(&caller, &[]).await.unwrap().refresh_token;
    let answers = join_all((0..100).map(|_| server.refresh(&caller, &token))).await;
    let (given, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    // The first one's record is another write on MongoDB: the family may have ended by then, and
    // with it what it was to get.
    assert!(given.len() == 1 || (given.is_empty() && on_mongodb()), "{}", given.len());
    refused.iter().for_each(|answer| assert_invalid_grant(answer.as_ref().unwrap_err()));
    for given in given.into_iter().flatten() {
        server.is_refused(&caller, &given.refresh_token).await;
        assert!(!server.is_active(&given.access_token).await);
    }
    assert_eq!(server.events_of("refresh_token.reused").await.len(), 1);
}

/// R03: fifty rotations while the clock stands still, ten where there is little time; each earlier
/// token is told from the one that is valid.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_rotations_within_one_second_are_told_apart() {
    let times = if samples_cases() { 10 } else { 50 };
    // Inside the grace the last one but one yields what it yielded before.
    for (server, repeats) in [
        (TestServer::start_unlimited().await, &[times - 1][..]),
        (TestServer::start_without_grace().await, &[]),
    ] {
        let caller = server.register(refreshing()).await;
        let families = join_all((0..times).map(|_| server.rotated(&caller, times))).await;
        let replays = families
            .iter()
            .enumerate()
            .map(|(replayed, tokens)| server.refresh(&caller, &tokens[replayed]));
        let answers = join_all(replays).await;
        let repeated: Vec<usize> =
            (0..times).filter(|replayed| answers[*replayed].is_ok()).collect();
        for (replayed, answer) in answers.iter().enumerate() {
            match answer {
                Ok(again) => assert_eq!(again.refresh_token, families[replayed][times]),
                Err(refused) => {
                    assert_invalid_grant(refused);
                    server.is_refused(&caller, &families[replayed][times]).await;
                }
            }
        }
        let reused = server.events_of("refresh_token.reused").await.len();
        assert_eq!(reused + repeated.len(), times);
        assert_eq!(repeated, repeats);
    }
}

/// R04: what was spent before the server was killed is spent after it.
#[tokio::test]
async fn a_token_spent_before_a_kill_is_spent_after_it() {
    let server = TestServer::start().await;
    let caller = server.register(refreshing()).await;
    let tokens = server.rotated(&caller, 2).await;
    let server = server.restart_killed().await;
    server.is_refused(&caller, &tokens[0]).await;
    server.is_refused(&caller, &tokens[2]).await;
    let tokens = server.rotated(&caller, 1).await;
    server.advance(11);
    let server = server.restart_killed().await;
    server.is_refused(&caller, &tokens[0]).await;
    server.is_refused(&caller, &tokens[1]).await;
    assert_eq!(server.events_of("refresh_token.reused").await.len(), 2);
}

/// R05: Refresh racing Revoke: once Revoke is acknowledged, nothing of the family is active, in
/// whatever order they came.
async fn race(rounds: usize) {
    let server = TestServer::start_unlimited().await;
    let caller = server.register(refreshing()).await;
    let mut refreshed_first = 0;
    for _ in 0..rounds.div_ceil(25) {
        let outcomes = join_all((0..25).map(async |turn| {
            let first = server.token(&caller, &[]).await.unwrap();
            let later = async |wait: bool| {
                if wait {
                    tokio::task::yield_now().await;
                }
            };
            let refresh = async {
                later(turn % 2 == 0).await;
                server.refresh(&caller, &first.refresh_token).await
            };
            let revoke = async {
                later(turn % 2 == 1).await;
                server.revoke(&caller, &first.refresh_token).await.unwrap();
            };
            let (refreshed, ()) = tokio::join!(refresh, revoke);
            assert!(
                !server.is_active(&first.access_token).await,
                "an access token outlived its family"
            );
            server.is_refused(&caller, &first.refresh_token).await;
            match refreshed {
                Ok(next) => {
                    assert!(
                        !server.is_active(&next.access_token).await,
                        "a token minted after the revocation is active"
                    );
                    server.is_refused(&caller, &next.refresh_token).await;
                    true
                }
                Err(refused) => {
                    assert_invalid_grant(&refused);
                    false
                }
            }
        }))
        .await;
        refreshed_first += outcomes.iter().filter(|first| **first).count();
    }
    println!("R05: refresh came first in {refreshed_first} of {rounds} rounds");
    assert!(
        (1..rounds).contains(&refreshed_first),
        "both orders must have been seen: {refreshed_first}"
    );
}

/// R05 in brief.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_never_outruns_a_revocation() {
    race(500).await;
}

/// R05 in full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn a_refresh_never_outruns_a_revocation_in_ten_thousand_rounds() {
    race(10_000).await;
}

/// R06: a token in another client's or tenant's hands is refused like any text, is recorded, and
/// its family lives on.
#[tokio::test]
async fn another_clients_token_is_refused_and_its_family_lives() {
    let server = TestServer::start().await;
    let owner = server.register(refreshing()).await;
    let first = server.token(&owner, &[]).await.unwrap();
    let thief = server.register(refreshing()).await;
    let neighbour = server.register(Client { tenant: "b".to_owned(), ..refreshing() }).await;
    for other in [&thief, &neighbour, &server.admin] {
        let refused = server.refresh(other, &first.refresh_token).await.unwrap_err();
        let garbage = server.refresh(other, &"x".repeat(75)).await.unwrap_err();
        assert_invalid_grant(&refused);
        assert_eq!(shape(&refused), shape(&garbage), "a thief learns nothing");
    }
    let recorded: HashSet<String> = server
        .events_of("refresh_token.refused")
        .await
        .into_iter()
        .map(|event| client_of(&event).to_owned())
        .collect();
    assert_eq!(recorded, HashSet::from([thief.id, neighbour.id, server.admin.id.clone()]));
    assert!(server.is_active(&first.access_token).await);
    server.refresh(&owner, &first.refresh_token).await.unwrap();
    assert!(server.events_of("refresh_token.reused").await.is_empty());
}

/// R07: a lost answer is given again, byte for byte, for as long as the grace lasts and nobody has
/// used it.
#[tokio::test]
async fn a_lost_answer_is_given_again() {
    let server = TestServer::start().await;
    let caller = server.register(refreshing()).await;
    let first = server.token(&caller, &[]).await.unwrap().refresh_token;
    let lost = server.refresh(&caller, &first).await.unwrap();
    server.advance(10);
    let again = server.refresh(&caller, &first).await.unwrap();
    assert_eq!(again.refresh_token, lost.refresh_token);
    assert!(server.is_active(&again.access_token).await);
    let second = again.refresh_token;
    server.refresh(&caller, &second).await.unwrap();
    server.is_refused(&caller, &first).await;
    server.is_refused(&caller, &second).await;
    assert_eq!(server.events_of("refresh_token.reused").await.len(), 1, "used means reused");
}

/// R07: the same where it is the store whose answer is lost, so that the rotation stands and nobody
/// was told.
#[tokio::test]
async fn a_rotation_nobody_heard_of_is_not_lost() {
    let lab = TamperableServer::start().await;
    let caller = lab.server.register(refreshing()).await;
    for _ in 0..10 {
        let first = lab.server.token(&caller, &[]).await.unwrap().refresh_token;
        lab.store.plan_verb("rotate", Act::FailAfter(Kind::Unavailable));
        let unheard = lab.server.refresh(&caller, &first).await.unwrap_err();
        assert_eq!(
            (unheard.code(), reason(&unheard).as_str()),
            (Code::Unavailable, "TEMPORARILY_UNAVAILABLE")
        );
        let again = lab.server.refresh(&caller, &first).await.unwrap();
        assert_eq!(
            lab.server.refresh(&caller, &first).await.unwrap().refresh_token,
            again.refresh_token
        );
        assert!(lab.server.is_active(&again.access_token).await);
        lab.server.refresh(&caller, &again.refresh_token).await.unwrap();
    }
    assert_eq!(lab.server.events_of("refresh_token.repeated").await.len(), 20);
}

/// R08: wider is refused and spends nothing; narrower holds for that access token only.
#[tokio::test]
async fn scopes_narrow_for_one_token_and_never_widen() {
    let server = TestServer::start().await;
    let caller = server
        .register(Client { scopes: ["a", "b", "c"].map(str::to_owned).into(), ..refreshing() })
        .await;
    let first = server.token(&caller, &["a", "b"]).await.unwrap().refresh_token;
    for wider in [&["a", "b", "c"][..], &["c"], &["jeton:admin"], &["a", "a"], &["*"]] {
        let refused = server.refresh_to(&caller, &first, wider).await.unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::InvalidArgument, "INVALID_SCOPE"),
            "{wider:?}"
        );
    }
    let narrow = server.refresh_to(&caller, &first, &["b"]).await.unwrap();
    assert_eq!(narrow.scopes, ["b"]);
    assert_eq!(server.introspect(&narrow.access_token).await.scopes, ["b"]);
    let full = server.refresh(&caller, &narrow.refresh_token).await.unwrap();
    assert_eq!(full.scopes, ["a", "b"]);
    let full = server.refresh_to(&caller, &full.refresh_token, &["b", "a"]).await.unwrap();
    assert_eq!(server.introspect(&full.access_token).await.scopes, ["b", "a"]);
}

/// R09: unused for its idle time a family is over, at that very second.
#[tokio::test]
async fn an_unused_family_ends_at_the_second() {
    let server = TestServer::start().await;
    let caller = server.register(lasting(3_600, 600)).await;
    let [one, two] =
        [server.rotated(&caller, 0).await.remove(0), server.rotated(&caller, 0).await.remove(0)];
    server.advance(599);
    let next = server.refresh(&caller, &one).await.unwrap().refresh_token;
    server.advance(1);
    server.is_refused(&caller, &two).await;
    server.advance(598);
    assert!(
        server
            .introspected(&server.admin, &next, "refresh_token")
            .await
            .into_inner()
            .active
            .unwrap()
    );
    server.advance(1);
    assert!(
        !server
            .introspected(&server.admin, &next, "refresh_token")
            .await
            .into_inner()
            .active
            .unwrap()
    );
    server.is_refused(&caller, &next).await;
    assert!(server.events_of("refresh_token.reused").await.is_empty(), "old is not stolen");
}

/// R09: however often it is refreshed, a family is over at its absolute end, and so is every access
/// token of it.
#[tokio::test]
async fn a_family_never_outlives_its_absolute_end() {
    let server = TestServer::start().await;
    let caller = server.register(lasting(3_600, 600)).await;
    let mut token = server.token(&caller, &[]).await.unwrap().refresh_token;
    for _ in 0..7 {
        server.advance(500);
        token = server.refresh(&caller, &token).await.unwrap().refresh_token;
    }
    server.advance(99);
    let last = server.refresh(&caller, &token).await.unwrap();
    assert_eq!(last.expires_in, 1, "cut at the family's end");
    assert!(server.is_active(&last.access_token).await);
    server.advance(1);
    server.is_refused(&caller, &last.refresh_token).await;
    assert!(!server.is_active(&last.access_token).await);
}

/// R10: a client that was disabled, or deleted and registered again, has lost what it held.
#[tokio::test]
async fn a_client_that_comes_back_comes_back_with_nothing() {
    let server = TestServer::start().await;
    let caller = server.register(Client { client_id: "svc".to_owned(), ..refreshing() }).await;
    let held = server.token(&caller, &[]).await.unwrap();
    server.disable(&caller).await;
    assert!(!server.is_active(&held.access_token).await);
    let refused = server.refresh(&caller, &held.refresh_token).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::Unauthenticated, "INVALID_CLIENT")
    );
    let message =
        EnableClientRequest { client_id: caller.id.clone(), ..EnableClientRequest::default() };
    server.clients().enable_client(server.as_admin(message).await).await.unwrap();
    server.is_refused(&caller, &held.refresh_token).await;
    assert!(!server.is_active(&held.access_token).await);

    let held = server.token(&caller, &[]).await.unwrap();
    assert!(server.is_active(&held.access_token).await);
    let message =
        DeleteClientRequest { client_id: caller.id.clone(), ..DeleteClientRequest::default() };
    server.clients().delete_client(server.as_admin(message).await).await.unwrap();
    assert!(!server.is_active(&held.access_token).await);
    let message = CreateClientRequest {
        client: Some(Client { client_id: "svc".to_owned(), ..refreshing() }),
        ..CreateClientRequest::default()
    };
    let created =
        server.clients().create_client(server.as_admin(message).await).await.unwrap().into_inner();
    let reborn = Caller { id: caller.id.clone(), secret: created.client_secret };
    server.is_refused(&reborn, &held.refresh_token).await;
    assert!(!server.is_active(&held.access_token).await);
    server.rotated(&reborn, 2).await;
}

/// R10: what the client may do is asked again at every refresh: scopes, audiences and the grant
/// itself.
#[tokio::test]
async fn what_a_client_has_lost_it_cannot_refresh() {
    let server = TestServer::start().await;
    let whole = || aimed_at(&["https://x.test", "https://y.test"]);
    let caller = server.register(whole()).await;
    let losses = [
        ("scopes", Client { scopes: vec!["orders:read".to_owned()], ..whole() }, "INVALID_GRANT"),
        (
            "grant_types",
            Client { grant_types: vec![GrantType::ClientCredentials.into()], ..whole() },
            "UNAUTHORIZED_CLIENT",
        ),
        ("audiences", aimed_at(&["https://y.test"]), "INVALID_GRANT"),
    ];
    for (field, lesser, refusal) in losses {
        let token = server.token(&caller, &[]).await.unwrap().refresh_token;
        let changed = |client: Client| Client { client_id: caller.id.clone(), ..client };
        server.change(changed(lesser), &[field]).await.unwrap();
        assert_eq!(reason(&server.refresh(&caller, &token).await.unwrap_err()), refusal, "{field}");
        // What is given back brings nothing back.
        server.change(changed(whole()), &[field]).await.unwrap();
        server.is_refused(&caller, &token).await;
    }
}

/// R10, V06: ending everything of a client, tenant or subject ends its families, one by one of
/// these levels.
#[tokio::test]
async fn everything_of_somebody_is_not_refreshed_any_more() {
    let server = TestServer::start().await;
    let caller = server.register(Client { tenant: "b".to_owned(), ..refreshing() }).await;
    let targets = [
        Target::ClientId(caller.id.clone()),
        Target::Tenant("b".to_owned()),
        Target::Subject(format!("client:{}", caller.id)),
    ];
    for target in targets {
        let tokens = server.rotated(&caller, 1).await;
        server.revoke_all(target.clone()).await.unwrap();
        server.is_refused(&caller, &tokens[1]).await;
        server.is_refused(&caller, &tokens[0]).await;
        assert!(
            !server
                .introspected(&server.admin, &tokens[1], "refresh_token")
                .await
                .into_inner()
                .active
                .unwrap(),
            "{target:?}"
        );
    }
    server.rotated(&caller, 2).await;
    let server = server.restart().await;
    server.rotated(&caller, 2).await;
}

/// R12: nothing that was given out is on disk, in any of its parts, in the database, its log or
/// anywhere else. Of a MongoDB, whose files are compressed, every document of every collection.
#[tokio::test]
async fn no_token_or_secret_is_on_disk() {
    let mut server = TestServer::start_unlimited().await;
    let caller = server.register(refreshing()).await;
    let mut given = vec![caller.secret.clone(), server.admin.secret.clone()];
    let mut token = server.token(&caller, &[]).await.unwrap();
    for _ in 0..5 {
        given.extend([token.access_token.clone(), token.refresh_token.clone()]);
        let next = server.refresh(&caller, &token.refresh_token).await.unwrap();
        server.introspect(&next.access_token).await;
        server.refresh(&server.admin, &next.refresh_token).await.unwrap_err();
        token.access_token = next.access_token;
        token.refresh_token = next.refresh_token;
    }
    server.revoke(&caller, &token.access_token).await.unwrap();
    server.revoke(&caller, &token.refresh_token).await.unwrap();
    server.advance(11);
    server.is_refused(&caller, &given[3]).await;
    server.events_of("token.refreshed").await;
    assert_eq!(given.iter().collect::<HashSet<_>>().len(), 12, "and all are different");
    for running in [true, false] {
        if !running {
            server.end().await;
        }
        assert!(server.home.holds(&caller.id).await, "this does find what is there");
        for value in &given {
            // The parts that prove it: the end of a secret or signature, and of the bytes they
            // spell.
            let proof = &value[value.len() - 40..];
            assert!(
                !server.home.holds(value).await && !server.home.holds(proof).await,
                "{value} is on disk, running: {running}"
            );
        }
    }
}

/// R13: tokens that are made up, also with the id of a family that exists: nothing is ended,
/// nothing is recorded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn made_up_tokens_end_nothing() {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let server = TestServer::start_unlimited().await;
    let caller = server.register(refreshing()).await;
    let held = server.token(&caller, &[]).await.unwrap();
    let whole = URL_SAFE_NO_PAD.decode(&held.refresh_token[4..]).unwrap();
    let random = |turn: u32| {
        let mut bytes = whole.clone();
        aws_lc_rs::rand::fill(&mut bytes[21..]).unwrap();
        match turn % 3 {
            // A family that exists, at this and other generations, and one that does not.
            0 => {}
            1 => bytes[17..21].copy_from_slice(&(turn + 1).to_be_bytes()),
            _ => aws_lc_rs::rand::fill(&mut bytes[1..]).unwrap(),
        }
        format!("jrt_{}", URL_SAFE_NO_PAD.encode(bytes))
    };
    let before = server.events_of("").await.len();
    for batch in 0..50 {
        let tokens: Vec<String> = (0..100).map(|turn| random(batch * 100 + turn)).collect();
        let answers = join_all(tokens.iter().map(|token| server.refresh(&caller, token))).await;
        answers.iter().for_each(|answer| assert_invalid_grant(answer.as_ref().unwrap_err()));
    }
    assert!(
        server.events_of("").await.len() - before <= 2,
        "five thousand attempts leave no record each"
    );
    assert!(server.is_active(&held.access_token).await);
    server.refresh(&caller, &held.refresh_token).await.unwrap();
}

/// R13: and the budget of the client that tries them is used up.
#[tokio::test]
async fn made_up_tokens_use_up_the_budget() {
    let server = TestServer::start_with(|config| {
        config
            .limits
            .plans
            .insert("tiny".to_owned(), jeton::config::Rate { per_second: 1, burst: 20 });
    })
    .await;
    let caller = server.register(Client { rate_plan: "tiny".to_owned(), ..refreshing() }).await;
    let mut refusals = Vec::new();
    for turn in 0..25 {
        refusals
            .push(reason(&server.refresh(&caller, &format!("jrt_{turn:071}")).await.unwrap_err()));
    }
    let throttled = refusals.iter().skip(20).all(|reason| reason == "SLOW_DOWN");
    assert!(
        refusals.iter().take(20).all(|reason| reason == "INVALID_GRANT") && throttled,
        "{refusals:?}"
    );
}
