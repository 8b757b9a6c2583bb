//! SIGTERM under load.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{task::JoinSet, time::Instant};
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    crash::callers::{Admin, Caller},
    support::process::{Home, PATIENCE, endpoint, pause},
};

const CALLERS: usize = 8;

/// Answers that callers got.
#[derive(Default)]
struct Seen {
    stopping: AtomicBool,
    enough: AtomicBool,
    answered: AtomicUsize,
    retried: AtomicUsize,
}

/// Calls without end and tries again what failed, as a sound client does; nothing may fail for
/// longer than this.
async fn calls(mut caller: Caller, address: SocketAddr, seen: Arc<Seen>) {
    caller = caller.over(endpoint(address).connect_lazy());
    while !seen.enough.load(Ordering::SeqCst) {
        let since = Instant::now();
        let before = !seen.stopping.load(Ordering::SeqCst);
        while let Err(status) = caller.token(&[]).await {
            assert!(
                !before || seen.stopping.load(Ordering::SeqCst),
                "refused before it was told to stop: {status:?}"
            );
            assert!(is_lawful(&status), "{status:?}");
            assert!(since.elapsed() < PATIENCE, "not answered in time: {status:?}");
            seen.retried.fetch_add(1, Ordering::SeqCst);
            pause(Duration::from_millis(20)).await;
        }
        seen.answered.fetch_add(1, Ordering::SeqCst);
    }
}

/// That the call was not made, or that nobody knows.
fn is_lawful(status: &Status) -> bool {
    // What tonic's client makes of a call that crossed the server's GOAWAY and is left out by it
    // (RFC 9113 section 6.8).
    let left_out =
        status.code() == Code::Internal && status.message() == "h2 protocol error: http2 error";
    left_out || matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled)
}

/// S1: told to stop under load, the server tells its balancers, answers what it has begun and ends,
/// after a time that is printed; callers that try again see nothing of it once another serves at
/// the same address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_under_load_fails_nobody_who_tries_again() {
    let home = Home::patient();
    let mut server = home.start();
    let address = server.address;
    let mut admin = Admin::new(server.secret.as_deref().unwrap(), server.connect().await).await;
    let seen = Arc::new(Seen::default());
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        callers.spawn(calls(admin.registered().await, address, seen.clone()));
    }
    let mut health = HealthClient::new(server.connect().await);
    let mut watched =
        health.watch(HealthCheckRequest { service: String::new() }).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    for stop in 1..=2 {
        seen.answered.store(0, Ordering::SeqCst);
        while seen.answered.load(Ordering::SeqCst) < 200 {
            assert!(callers.try_join_next().is_none());
            pause(Duration::from_millis(10)).await;
        }
        seen.stopping.store(true, Ordering::SeqCst);
        let since = Instant::now();
        server.terminate();
        if stop == 1 {
            assert_eq!(
                watched.message().await.unwrap().unwrap().status(),
                ServingStatus::NotServing
            );
        }
        assert_eq!(server.ended(PATIENCE).await.code(), Some(0), "{}", home.log());
        println!("stop {stop}: ended after {:?}", since.elapsed());
        server = home.start_at(address);
        seen.answered.store(0, Ordering::SeqCst);
        while seen.answered.load(Ordering::SeqCst) < 100 {
            pause(Duration::from_millis(10)).await;
        }
        seen.stopping.store(false, Ordering::SeqCst);
    }
    seen.enough.store(true, Ordering::SeqCst);
    while let Some(ended) = callers.join_next().await {
        ended.unwrap();
    }
    println!("{} attempts were made again", seen.retried.load(Ordering::SeqCst));
    admin = admin.over(server.connect().await);
    admin.verify(None).await;
}

/// S1: a call that was in flight when the server was told to stop is answered, also to a client
/// that never tries again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_in_flight_is_answered_before_the_end() {
    let home = Home::patient();
    let server = home.start();
    let admin = Admin::new(server.secret.as_deref().unwrap(), server.connect().await).await;
    let mut flights = JoinSet::new();
    for _ in 0..CALLERS {
        let mut caller = admin.registered().await.over(server.connect().await);
        flights.spawn(async move {
            let mut told = 0;
            loop {
                match caller.token(&[]).await {
                    Ok(_) => told += 1,
                    // The connection is closed, and no other can be had: this call never reached
                    // the server.
                    Err(status) => return (told, status),
                }
            }
        });
    }
    pause(Duration::from_millis(300)).await;
    server.terminate();
    assert_eq!(server.ended(PATIENCE).await.code(), Some(0), "{}", home.log());
    let mut answered = 0;
    while let Some(flight) = flights.join_next().await {
        let (told, status) = flight.unwrap();
        assert!(is_lawful(&status), "{status:?}");
        answered += told;
    }
    let server = home.start();
    let admin = admin.over(server.connect().await);
    // Every issue was answered: none was carried out and then dropped on the floor.
    let issued =
        admin.events_after(0).await.iter().filter(|event| event.action == "token.issued").count();
    assert_eq!(issued, answered + 1, "one is the administrator's own");
}
