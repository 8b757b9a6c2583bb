//! The life of signing keys, as callers and caches see it.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use jeton::{
    model::keyset::Algorithm,
    proto::admin::{Client, KeyState, RevokeKeyRequest, SigningKey},
};
use tonic::Code;

use crate::{
    service::published::jwks,
    support::server::{TestServer, blamed, client_of, kid_of, reason, refreshing},
};

/// Time for which a key is published before it signs, in these tests.
const AHEAD: u64 = 60;

async fn server() -> TestServer {
    TestServer::start_with(|config| {
        config.keys.publish_ahead_seconds = AHEAD;
        config.keys.rotate_every_seconds = 0;
    })
    .await
}

fn in_state(keys: &[SigningKey], state: KeyState) -> Vec<&SigningKey> {
    keys.iter().filter(|key| key.state() == state).collect()
}

async fn published(server: &TestServer) -> HashSet<String> {
    let keys = jwks(server.address).await;
    let kids: Vec<String> =
        keys.iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect();
    let set: HashSet<String> = kids.iter().cloned().collect();
    assert_eq!(set.len(), kids.len(), "kids are unique");
    set
}

/// Waits until housekeeping has come by, which it does every few seconds of real time; a busy
/// machine is given minutes.
pub async fn eventually(what: &str, done: impl AsyncFn() -> bool) {
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    for _ in 0..3_000 {
        ticks.tick().await;
        if done().await {
            return;
        }
    }
    panic!("{what} did not come to pass");
}

#[tokio::test]
async fn the_first_keys_are_one_that_signs_and_one_prepared() {
    let server = server().await;
    let keys = server.list_keys().await;
    assert_eq!(keys.len(), 2);
    assert_eq!(
        (keys[0].state(), keys[1].state()),
        (KeyState::Prepared, KeyState::Active),
        "newest first"
    );
    assert!(
        keys.iter()
            .all(|key| key.alg == "EdDSA" && key.create_time.unwrap().seconds == server.now())
    );
    assert!(keys[0].activate_time.is_none() && keys[1].remove_time.is_none());
    assert_eq!(published(&server).await, keys.iter().map(|key| key.kid.clone()).collect());
    assert_eq!(kid_of(&server.admin_token().await), keys[1].kid);
}

/// K02: a cache that fetched the set and keeps it as long as it may always has the key of what is
/// issued meanwhile.
#[tokio::test]
async fn a_key_does_not_sign_before_caches_have_heard_of_it() {
    let server = server().await;
    let caller = server.register(refreshing()).await;
    // What each cache, filled at one second, holds for the next AHEAD seconds.
    let mut caches: Vec<(i64, HashSet<String>)> = Vec::new();
    let mut signed_by = HashSet::new();
    for round in 0..6_u64 {
        let rotated = server.rotate_keys().await;
        assert_eq!(in_state(&rotated, KeyState::Active).len(), 1);
        assert_eq!(in_state(&rotated, KeyState::Prepared).len(), 1);
        for step in [1, 9, 20, 29] {
            caches.push((server.now(), published(&server).await));
            // Asked for again, the rotation does not come any sooner.
            if round % 2 == 0 {
                server.rotate_keys().await;
            }
            let kid = kid_of(&server.token(&caller, &[]).await.unwrap().access_token);
            for (at, cached) in
                caches.iter().filter(|(at, _)| server.now() - at < i64::try_from(AHEAD).unwrap())
            {
                assert!(cached.contains(&kid), "fetched {} s ago", server.now() - at);
            }
            signed_by.insert(kid);
            server.advance(step);
        }
        server.advance(2);
    }
    assert!(signed_by.len() > 3, "it did rotate: {signed_by:?}");
}

#[tokio::test]
async fn a_rotation_before_its_time_is_scheduled() {
    let server = server().await;
    let before = server.list_keys().await;
    server.advance(10);
    let scheduled = server.rotate_keys().await;
    assert_eq!((&scheduled[1].kid, scheduled[1].state()), (&before[1].kid, KeyState::Active));
    assert_eq!(
        scheduled[0].activate_time.unwrap().seconds,
        server.now() - 10 + i64::try_from(AHEAD).unwrap()
    );
    server.advance(AHEAD - 11);
    assert_eq!(kid_of(&server.admin_token().await), before[1].kid);
    server.advance(1);
    eventually("the scheduled rotation", async || {
        kid_of(&server.admin_token().await) == before[0].kid
    })
    .await;
    let after = server.list_keys().await;
    assert_eq!(after.len(), 3);
    let retiring = in_state(&after, KeyState::Retiring);
    // The longest access token and an hour for clocks that went wrong.
    assert_eq!(
        (&retiring[0].kid, retiring[0].remove_time.unwrap().seconds),
        (&before[1].kid, server.now() + 3_600 + 3_600)
    );
}

/// K01: while keys are rotated, everything that is issued verifies, from first to last.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_fails_to_verify_while_keys_rotate() {
    let server = Arc::new(server().await);
    let caller = server.register(refreshing()).await;
    let stop = Arc::new(AtomicBool::new(false));
    let judged = Arc::new(AtomicU64::new(0));
    let load = (0..4).map(|_| {
        let (server, caller, stop, judged) =
            (server.clone(), caller.clone(), stop.clone(), judged.clone());
        tokio::spawn(async move {
            let mut kids = HashSet::new();
            while !stop.load(SeqCst) {
                let token = server.token(&caller, &[]).await.unwrap().access_token;
                assert!(server.is_active(&token).await, "a fresh token does not stand");
                kids.insert(kid_of(&token));
                judged.fetch_add(1, SeqCst);
            }
            kids
        })
    });
    let load: Vec<_> = load.collect();
    let mut kept = vec![server.token(&caller, &[]).await.unwrap().access_token];
    for _ in 0..6 {
        server.advance(AHEAD + 1);
        server.rotate_keys().await;
        let seen = judged.load(SeqCst);
        eventually("some load", async || judged.load(SeqCst) > seen + 20).await;
        kept.push(server.token(&caller, &[]).await.unwrap().access_token);
        for token in &kept {
            assert!(server.is_active(token).await, "a token of an earlier key does not stand");
        }
    }
    stop.store(true, SeqCst);
    let mut kids = HashSet::new();
    for task in load {
        kids.extend(task.await.unwrap());
    }
    assert!(kids.len() >= 6, "{kids:?}");
}

/// K01: a replaced key verifies until its last token has expired, then it leaves the published set.
#[tokio::test]
async fn a_replaced_key_leaves_when_its_last_token_has_expired() {
    let server = server().await;
    let caller = server
        .register(Client {
            access_token_lifetime: crate::support::server::seconds(3_600),
            ..refreshing()
        })
        .await;
    let last = server.token(&caller, &[]).await.unwrap().access_token;
    let old = kid_of(&last);
    server.advance(AHEAD);
    server.rotate_keys().await;
    let last_of_all = server.token(&caller, &[]).await.unwrap().access_token;
    assert_ne!(kid_of(&last_of_all), old);
    server.advance(3_599 - AHEAD);
    assert!(server.is_active(&last).await);
    assert!(published(&server).await.contains(&old));
    server.advance(1);
    assert!(!server.is_active(&last).await);
    assert!(server.is_active(&last_of_all).await);
    server.advance(3_600 + AHEAD);
    eventually("the removal", async || !published(&server).await.contains(&old)).await;
    assert!(server.list_keys().await.iter().all(|key| key.kid != old));
}

/// Keys replace themselves, without anybody asking, and the record says so.
#[tokio::test]
async fn keys_rotate_by_themselves() {
    let server = TestServer::start_with(|config| {
        config.keys.publish_ahead_seconds = AHEAD;
        config.keys.rotate_every_seconds = 1_000;
    })
    .await;
    let first = kid_of(&server.admin_token().await);
    server.advance(999);
    assert_eq!(kid_of(&server.admin_token().await), first);
    server.advance(1);
    eventually("the rotation", async || kid_of(&server.admin_token().await) != first).await;
    let events = server.trail_of("keys.rotated").await;
    assert!(
        events.iter().any(|event| client_of(event).is_empty() && event.peer == "local"),
        "{events:?}"
    );
}

/// K03: revoking a key ends every token it signed at once; the next one signs; the record is there.
#[tokio::test]
async fn a_revoked_key_takes_its_tokens_along() {
    let server = server().await;
    let caller = server.register(refreshing()).await;
    let issued = server.token(&caller, &[]).await.unwrap();
    let token = server.admin_token().await;
    let kid = kid_of(&issued.access_token);
    let keys = server.revoke_key(&kid, &token).await.unwrap();
    assert_eq!(in_state(&keys, KeyState::Revoked)[0].kid, kid);
    assert_eq!(
        (in_state(&keys, KeyState::Active).len(), in_state(&keys, KeyState::Prepared).len()),
        (1, 1)
    );
    assert!(!server.is_active(&issued.access_token).await);
    assert!(!server.is_active(&token).await);
    assert!(!published(&server).await.contains(&kid));
    // Refresh tokens are not signed by it and go on.
    let refreshed = server.refresh(&caller, &issued.refresh_token).await.unwrap();
    assert!(
        server.is_active(&refreshed.access_token).await && kid_of(&refreshed.access_token) != kid
    );
    let event = &server.trail_of("keys.revoked").await[0];
    assert_eq!(
        (event.target.as_str(), client_of(event), event.outcome.as_str()),
        (kid.as_str(), "bootstrap", "ok")
    );

    let again = server.revoke_key(&kid, &server.admin_token().await).await.unwrap_err();
    assert_eq!((again.code(), reason(&again).as_str()), (Code::NotFound, "NOT_FOUND"));
    let server = server.restart().await;
    assert!(!server.is_active(&issued.access_token).await, "a restart brings nothing back");
    assert!(!published(&server).await.contains(&kid));
}

#[tokio::test]
async fn keys_that_are_not_there_cannot_be_revoked() {
    let server = server().await;
    let token = server.admin_token().await;
    let before = server.list_keys().await;
    assert_eq!(reason(&server.revoke_key("nothing", &token).await.unwrap_err()), "NOT_FOUND");
    for bad in ["", "../../dev/null", "' or 1=1--", "{\"$ne\":\"\"}", "a\0b", &"x".repeat(65)] {
        let refused = server.revoke_key(bad, &token).await.unwrap_err();
        assert_eq!(
            (reason(&refused).as_str(), blamed(&refused).as_str()),
            ("INVALID_REQUEST", "kid"),
            "{bad:?}"
        );
    }
    assert_eq!(server.list_keys().await, before);
    // A prepared key that is revoked is replaced, and the active one signs on.
    let message = RevokeKeyRequest { kid: before[0].kid.clone() };
    let after =
        server.keys().revoke_key(server.as_admin(message).await).await.unwrap().into_inner().keys;
    assert_eq!(in_state(&after, KeyState::Active)[0].kid, before[1].kid);
    assert_ne!(in_state(&after, KeyState::Prepared)[0].kid, before[0].kid);
    assert!(server.is_active(&token).await);
}

/// K04: the published set holds public members alone, of every algorithm, and each kid once.
#[tokio::test]
async fn the_published_set_is_public() {
    let members: HashMap<Algorithm, &[&str]> = HashMap::from([
        (Algorithm::EdDsa, &["kty", "crv", "x", "kid", "alg", "use"][..]),
        (Algorithm::Es256, &["kty", "crv", "x", "y", "kid", "alg", "use"]),
        (Algorithm::Rs256, &["kty", "n", "e", "kid", "alg", "use"]),
    ]);
    for (algorithm, members) in members {
        let server = TestServer::start_with(|config| config.keys.algorithm = algorithm).await;
        server.advance(86_400);
        server.rotate_keys().await;
        let keys = jwks(server.address).await;
        assert_eq!(keys.len(), 3);
        for key in &keys {
            let key = key.as_object().unwrap();
            assert_eq!(key["alg"], algorithm.as_str());
            for member in key.keys() {
                assert!(members.contains(&member.as_str()) || member == "key_ops", "{member}");
            }
        }
        assert_eq!(published(&server).await.len(), 3);
        let token = server.admin_token().await;
        assert_eq!(crate::support::server::decoded(&token).0["alg"], algorithm.as_str());
        assert!(server.is_active(&token).await);
    }
}

/// OPERATORS 3.6: another algorithm is published at the next start and signs as soon as caches have
/// its key, without a rotation by hand.
#[tokio::test]
async fn another_algorithm_signs_without_a_rotation() {
    let with = |algorithm| {
        move |config: &mut jeton::config::Config| {
            config.keys.algorithm = algorithm;
            config.keys.publish_ahead_seconds = AHEAD;
            config.keys.rotate_every_seconds = 0;
        }
    };
    let algorithms = async |server: &TestServer| -> Vec<(String, bool)> {
        let keys = server.list_keys().await.into_iter();
        keys.map(|key| (key.alg.clone(), key.activate_time.is_some())).collect()
    };
    let of = |alg: &str, is_scheduled| (alg.to_owned(), is_scheduled);
    let signing = async |server: &TestServer| kid_of(&server.admin_token().await);
    let server = TestServer::start_with(with(Algorithm::EdDsa)).await;
    let first = signing(&server).await;
    let server = server.restart_with(with(Algorithm::Es256)).await;
    assert_eq!(algorithms(&server).await, [of("ES256", true), of("EdDSA", true)]);
    // Back before it signed: nothing but another prepared key.
    let server = server.restart_with(with(Algorithm::EdDsa)).await;
    assert_eq!(algorithms(&server).await, [of("EdDSA", false), of("EdDSA", true)]);
    let server = server.restart_with(with(Algorithm::Es256)).await;
    server.advance(AHEAD - 1);
    let old = server.admin_token().await;
    assert_eq!(kid_of(&old), first, "no cache needs to have the new key yet");
    server.advance(1);
    eventually("the change", async || signing(&server).await != first).await;
    let new = server.admin_token().await;
    let header = crate::support::server::decoded(&new).0;
    assert_eq!(header["alg"], "ES256");
    assert!(server.is_active(&old).await && server.is_active(&new).await);
    let reasons = server.trail_of("keys.rotated").await;
    let changes = reasons.iter().filter(|event| event.reason == "keys.algorithm");
    assert_eq!(changes.count(), 3);
    // The next start has nothing to do.
    let server = server.restart_with(with(Algorithm::Es256)).await;
    assert!(algorithms(&server).await.iter().filter(|(alg, _)| alg == "ES256").count() >= 2);
    assert_eq!(server.trail_of("keys.rotated").await.len(), reasons.len());
}
