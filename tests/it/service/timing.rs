//! A02: how long a refusal takes tells nothing. Thousands of samples over gRPC, taken in turns: run
//! by hand, on a quiet machine:
//! `cargo test --release --test it -- --ignored --nocapture --test-threads 1 service::timing`.

use std::time::{Duration, Instant};

use aws_lc_rs::rand;
use jeton::proto::admin::{AddSecretRequest, add_secret_request};

use crate::support::server::{Caller, TestServer, aimed_at, reason, refreshing, serving};

const CHOSEN: &str = "correct horse battery staple";

/// The area under the ROC curve: how often a sample of `b` is longer than one of `a`. Where nothing
/// can be told, 0.5.
fn area(a: &[Duration], b: &[Duration]) -> f64 {
    let mut all: Vec<(Duration, bool)> =
        a.iter().map(|x| (*x, false)).chain(b.iter().map(|x| (*x, true))).collect();
    all.sort_unstable();
    let (mut below, mut wins) = (0.0, 0.0);
    for ties in all.chunk_by(|one, other| one.0 == other.0) {
        let of_b = ties.iter().filter(|(_, is_b)| *is_b).count();
        let of_a = (ties.len() - of_b) as f64;
        wins += of_b as f64 * (below + of_a / 2.0);
        below += of_a;
    }
    wins / (a.len() as f64 * b.len() as f64)
}

#[test]
fn the_area_is_that_under_the_curve() {
    let times = |range: std::ops::Range<u64>| range.map(Duration::from_nanos).collect::<Vec<_>>();
    assert!((area(&times(0..100), &times(0..100)) - 0.5).abs() < 1e-9);
    assert!((area(&times(0..100), &times(100..200)) - 1.0).abs() < 1e-9);
    assert!(area(&times(100..200), &times(0..100)) < 1e-9);
    assert!((area(&times(0..100), &times(50..150)) - 0.875).abs() < 0.01);
}

/// Takes `rounds` samples of every class, in another order each round, and compares each class with
/// the first.
#[expect(clippy::disallowed_methods, reason = "what is tested is how long it takes")]
async fn indistinguishable(rounds: usize, classes: &[&str], mut ask: impl AsyncFnMut(usize)) {
    let mut samples = vec![Vec::with_capacity(rounds); classes.len()];
    for round in 0..rounds + 20 {
        let mut order: Vec<usize> = (0..classes.len()).collect();
        order.sort_by_cached_key(|_| {
            let mut random = [0; 8];
            rand::fill(&mut random).unwrap();
            random
        });
        for class in order {
            let start = Instant::now();
            ask(class).await;
            let took = start.elapsed();
            // The first ones fill caches.
            if round >= 20 {
                samples.get_mut(class).unwrap().push(took);
            }
        }
    }
    let mut told_apart = Vec::new();
    let first = samples.first().unwrap();
    for (class, times) in classes.iter().zip(&samples) {
        let area = area(first, times);
        let mut sorted = times.clone();
        sorted.sort_unstable();
        let median = sorted.get(rounds / 2).unwrap();
        println!("A02: {rounds} samples, median {median:>9.1?}, area {area:.3}: {class}");
        if !(0.45..=0.55).contains(&area) {
            told_apart.push(format!("{class}: {area:.3}"));
        }
    }
    assert!(told_apart.is_empty(), "can be told from the first class: {told_apart:?}");
}

fn with(id: &str, secret: &str) -> Caller {
    Caller { id: id.to_owned(), secret: secret.to_owned() }
}

async fn refused(server: &TestServer, caller: &Caller) {
    assert_eq!(reason(&server.token(caller, &[]).await.unwrap_err()), "INVALID_CLIENT");
}

async fn add_chosen(server: &TestServer, caller: &Caller, plain: &str) {
    let secret = Some(add_secret_request::Secret::PlainSecret(plain.to_owned()));
    let message =
        AddSecretRequest { client_id: caller.id.clone(), secret, ..AddSecretRequest::default() };
    server.clients().add_secret(server.as_admin(message).await).await.unwrap();
}

/// A02: secrets that this service makes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "statistics: takes a minute"]
async fn refusals_of_made_secrets_take_as_long() {
    let server = TestServer::start_unlimited().await;
    let (good, other) = (server.register(refreshing()).await, server.register(refreshing()).await);
    let chosen = server.register_with(refreshing(), CHOSEN).await;
    let disabled = server.register(refreshing()).await;
    server.disable(&disabled).await;
    let flipped =
        format!("{}{}", &good.secret[..59], if good.secret.ends_with('A') { 'B' } else { 'A' });
    let classes = [
        ("unknown client", with("nobody", &other.secret)),
        ("wrong secret with the right id", with(&good.id, &flipped)),
        ("secret of another client", with(&good.id, &other.secret)),
        ("disabled client, right secret", disabled.clone()),
        ("disabled client, wrong secret", with(&disabled.id, &other.secret)),
        ("client with a chosen secret", with(&chosen.id, &other.secret)),
        ("unknown client again", with("nobody-else", &other.secret)),
    ];
    indistinguishable(4_000, &classes.each_ref().map(|(class, _)| *class), async |class| {
        refused(&server, &classes[class].1).await;
    })
    .await;
}

/// A02: secrets that were chosen elsewhere, where a hash takes long enough to be seen from afar.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "statistics: takes minutes"]
async fn refusals_of_chosen_secrets_take_as_long() {
    let server = TestServer::start_unlimited().await;
    let one = server.register_with(refreshing(), CHOSEN).await;
    let two = server.register_with(refreshing(), CHOSEN).await;
    add_chosen(&server, &two, "another chosen secret").await;
    let made = server.register(refreshing()).await;
    let disabled = server.register_with(refreshing(), CHOSEN).await;
    server.token(&disabled, &[]).await.unwrap();
    server.disable(&disabled).await;
    let wrong = "incorrect horse battery staple";
    let classes = [
        ("unknown client", with("nobody", wrong)),
        ("wrong secret", with(&one.id, wrong)),
        ("wrong secret where there are two", with(&two.id, wrong)),
        ("client with a made secret", with(&made.id, wrong)),
        ("disabled client, right secret", disabled.clone()),
        ("disabled client, wrong secret", with(&disabled.id, wrong)),
    ];
    indistinguishable(2_000, &classes.each_ref().map(|(class, _)| *class), async |class| {
        refused(&server, &classes[class].1).await;
    })
    .await;
}

/// I04: a token that was revoked takes as long to judge as one that stands and is another's to see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "statistics: takes half a minute"]
async fn a_revoked_token_takes_as_long_as_a_foreign_one() {
    let server = TestServer::start_unlimited().await;
    let viewer = server.register(serving(&["https://x.test"])).await;
    let caller = server.register(aimed_at(&["https://y.test"])).await;
    let foreign = server.token(&caller, &[]).await.unwrap().access_token;
    let revoked = server.token(&caller, &[]).await.unwrap().access_token;
    server.revoke(&caller, &revoked).await.unwrap();
    let tokens = [&foreign, &revoked];
    indistinguishable(4_000, &["foreign", "revoked"], async |class| {
        assert_eq!(server.introspect_as(&viewer, tokens[class]).await.unwrap().active, Some(false));
    })
    .await;
}
