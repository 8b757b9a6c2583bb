//! OPERATORS 3.2: a clock that was wrong once. The clock is moved by hand.

use jeton::{
    admin::ClockResetDone,
    config::Config,
    server::{self, ClockReading, StartError},
};

use crate::{
    service::{keys::eventually, published::get},
    support::server::{Caller, ISSUER, START, TestServer, refreshing},
};

const DAY: i64 = 86_400;
const YEAR: i64 = 365 * DAY;

/// `jeton admin reset-clock` on what a stopped server kept, by the test's clock.
async fn reset(
    server: &TestServer,
    answer: Result<(), String>,
) -> Result<(ClockReading, Option<ClockResetDone>), StartError> {
    let mut config = Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        metrics_listen: String::new(),
        issuer: ISSUER.to_owned(),
        ..Config::default()
    };
    server.home.furnish(&mut config);
    server::reset_clock(config, Some(server.clock.clone()), |_| answer).await
}

fn set(server: &TestServer, seconds: i64) {
    server.clock.set(jeton::model::Timestamp::from_seconds(seconds));
}

/// What had ended by the false time stays ended, what was issued under it does not live to see that
/// time, and what is issued afterwards lives by the right one.
#[tokio::test]
async fn a_store_that_lived_ahead_returns_and_nothing_lives_again() {
    let mut server = TestServer::start_unlimited().await;
    let client = server.register(refreshing()).await;
    let other = server.register(refreshing()).await;
    // Ends by the false time: a secret, tokens, a family.
    let added = server.add_secret(&client, None, Some(30 * DAY)).await;
    let ending = Caller { secret: added.client_secret, ..client.clone() };
    assert!(server.is_admitted(&ending).await);
    let right = server.token(&client, &[]).await.unwrap();
    let revoked = server.token(&client, &[]).await.unwrap();
    server.revoke(&client, &revoked.refresh_token).await.unwrap();
    set(&server, START + YEAR);
    let ahead = server.token(&client, &[]).await.unwrap();
    assert!(server.is_active(&ahead.access_token).await);
    assert!(!server.is_admitted(&ending).await);
    // Shall live for a week.
    let added = server.add_secret(&other, None, Some(7 * DAY)).await;
    let brief = Caller { secret: added.client_secret, ..other.clone() };
    server.end().await;

    // The machine's clock is right again; nothing is done without consent.
    set(&server, START + 60);
    let refused = reset(&server, Err("no".to_owned())).await.unwrap_err();
    assert!(refused.to_string().contains("no"), "{refused}");
    let (reading, done) = reset(&server, Ok(())).await.unwrap();
    assert!(reading.store.seconds() >= START + YEAR, "{reading:?}");
    assert_eq!(done, Some(ClockResetDone { tenants: 1, secrets: 1, shortened: 1 }));
    assert!(reset(&server, Ok(())).await.unwrap().1.is_none(), "once is enough");

    let server = server.restart().await;
    let tokens = [&right, &revoked, &ahead];
    for (token, later) in tokens.iter().flat_map(|token| [(token, 60), (token, YEAR + 30)]) {
        set(&server, START + later);
        assert!(!server.is_active(&token.access_token).await, "{later}");
        server.is_refused(&client, &token.refresh_token).await;
    }
    set(&server, START + 120);
    assert!(!server.is_admitted(&ending).await, "a secret that had expired");
    let new = server.token(&client, &[]).await.unwrap();
    assert!(server.is_active(&new.access_token).await);
    server.refresh(&client, &new.refresh_token).await.unwrap();
    let listed = server.trail_of("clock.reset").await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    server.verify_chain().await;
    // Keys go on by the right time.
    let keys = server.list_keys().await;
    let newest = keys.iter().filter_map(|key| key.create_time).map(|at| at.seconds).max();
    assert_eq!(newest, Some(START + 60));
    assert!(server.is_admitted(&brief).await);
    set(&server, START + 8 * DAY);
    assert!(!server.is_admitted(&brief).await, "a week is a week by the right time");
    assert!(server.is_admitted(&other).await);
}

/// A node whose clock is far from its machine's is not ready, and still answers.
#[tokio::test]
async fn a_node_whose_clock_is_wrong_is_not_ready() {
    let server = TestServer::start().await;
    let ready = async |status| get(server.address, "/readyz").await.0 == status;
    eventually("ready", async || ready(200).await).await;
    for ahead in [3_601_000, -(2 * DAY * 1_000)] {
        server.clock.set_ahead(ahead);
        eventually("not ready", async || ready(503).await).await;
        assert!(server.is_active(&server.admin_token().await).await);
        server.clock.set_ahead(120_000);
        eventually("ready again", async || ready(200).await).await;
    }
}
