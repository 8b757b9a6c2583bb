//! Budgets: of peers, of clients, of those who fail; and the price of passwords.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use futures_util::future::join_all;
use hyper_util::rt::TokioIo;
use jeton::{
    config::{Config, Rate},
    proto::{
        admin::{Client, CreateClientRequest, create_client_request::Secret},
        token::{IntrospectRequest, TokenRequest, token_service_client::TokenServiceClient},
    },
};
use tokio::net::TcpSocket;
use tonic::{Code, Request, Status, transport::Channel};
use tonic_types::StatusExt;

use crate::support::server::{Caller, TestServer, reason};

/// A channel from another address of this machine.
async fn from(source: Ipv4Addr, to: SocketAddr) -> TokenServiceClient<Channel> {
    let connector = tower::service_fn(move |_: http::Uri| async move {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((source, 0)))?;
        socket.connect(to).await.map(TokioIo::new)
    });
    let channel = Channel::from_shared(format!("http://{to}"))
        .unwrap()
        .connect_with_connector(connector)
        .await
        .unwrap();
    TokenServiceClient::new(channel)
}

fn asking(caller: &Caller) -> TokenRequest {
    TokenRequest {
        client_id: caller.id.clone(),
        client_secret: caller.secret.clone(),
        ..TokenRequest::default()
    }
}

/// A refusal by a budget says when to come back, and that is at most `seconds` away.
fn is_throttled(status: &Status, seconds: u64) -> bool {
    if status.code() != Code::ResourceExhausted || reason(status) != "SLOW_DOWN" {
        return false;
    }
    let delay = status
        .get_details_retry_info()
        .and_then(|retry| retry.retry_delay)
        .expect("when to come back");
    assert!(!delay.is_zero() && delay.as_secs() <= seconds, "{delay:?}");
    true
}

/// L11: a peer is the address of its connection, whatever its headers say; another address has a
/// budget of its own.
#[tokio::test]
async fn forwarded_headers_do_not_make_another_peer() {
    const BURST: u32 = 40;
    let server = TestServer::start_with(|config| {
        config.limits.per_peer = Rate { per_second: 1, burst: BURST }
    })
    .await;
    let caller = server.register(Client::default()).await;
    // Registering took two calls: the administrator's token and itself.
    let mut granted = 2;
    for n in 0..120_u8 {
        let mut request = Request::new(asking(&caller));
        let forged = format!("203.0.113.{n}");
        let metadata = request.metadata_mut();
        for name in [
            "x-forwarded-for",
            "x-real-ip",
            "x-client-ip",
            "true-client-ip",
            "cf-connecting-ip",
            "x-envoy-external-address",
        ] {
            metadata.insert(name, forged.parse().unwrap());
        }
        metadata.append("x-forwarded-for", format!("{forged}, 10.0.0.{n}").parse().unwrap());
        metadata.insert("forwarded", format!("for={forged};proto=https").parse().unwrap());
        metadata
            .insert("x-forwarded-client-cert", format!("By=x;URI=spiffe://{n}").parse().unwrap());
        match server.tokens().token(request).await {
            Ok(_) => granted += 1,
            Err(status) => assert!(is_throttled(&status, 1), "{status:?}"),
        }
    }
    assert_eq!(granted, BURST);
    let mut elsewhere = from(Ipv4Addr::new(127, 0, 0, 2), server.address).await;
    assert!(elsewhere.token(asking(&caller)).await.is_ok(), "another address is another peer");
    // A second connection is not.
    let mut again = from(Ipv4Addr::LOCALHOST, server.address).await;
    assert!(is_throttled(&again.token(asking(&caller)).await.unwrap_err(), 1));
    server.advance(3);
    let later = join_all((0..10).map(|_| server.token(&caller, &[]))).await;
    assert_eq!(later.iter().filter(|answer| answer.is_ok()).count(), 3, "the rate, and no more");
}

/// L13: each client draws on its own budget, by its plan.
#[tokio::test]
async fn clients_draw_on_the_budget_of_their_plan() {
    let server = TestServer::start_with(|config| {
        config.limits.plans.insert("standard".to_owned(), Rate { per_second: 1_000, burst: 1_000 });
        config.limits.plans.insert("small".to_owned(), Rate { per_second: 1, burst: 5 });
        config.limits.plans.insert("large".to_owned(), Rate { per_second: 10, burst: 20 });
    })
    .await;
    let of = |plan: &str| Client { rate_plan: plan.to_owned(), ..Client::default() };
    let (small, noisy, large) = (
        server.register(of("small")).await,
        server.register(of("small")).await,
        server.register(of("large")).await,
    );
    let granted = async |caller: &Caller, asked: usize| {
        let mut granted = 0;
        for _ in 0..asked {
            match server.token(caller, &[]).await {
                Ok(_) => granted += 1,
                Err(status) => assert!(is_throttled(&status, 1), "{status:?}"),
            }
        }
        granted
    };
    assert_eq!(granted(&noisy, 30).await, 5);
    assert_eq!(granted(&small, 10).await, 5, "one noisy client costs no other");
    assert_eq!(granted(&large, 30).await, 20);
    server.advance(1);
    assert_eq!(granted(&small, 10).await, 1);
    assert_eq!(granted(&large, 30).await, 10);
    // A wrong secret draws nothing from the one it claims to be: who guesses cannot lock out whom
    // he names.
    server.advance(10);
    for _ in 0..20 {
        let wrong = Caller { secret: "jcs_wrong".to_owned(), ..small.clone() };
        assert_eq!(reason(&server.token(&wrong, &[]).await.unwrap_err()), "INVALID_CLIENT");
    }
    assert_eq!(granted(&small, 10).await, 5);
    // A client that is moved to another plan is under that one from then on.
    server
        .change(Client { client_id: small.id.clone(), ..of("large") }, &["rate_plan"])
        .await
        .unwrap();
    assert_eq!(granted(&small, 30).await, 20);
}

/// A bearer token draws on its client's budget too: administration and introspection are no way
/// round it.
#[tokio::test]
async fn calls_with_a_token_draw_on_its_clients_budget() {
    let server = TestServer::start_with(|config| {
        config.limits.plans.insert("small".to_owned(), Rate { per_second: 1, burst: 5 });
    })
    .await;
    let scopes = vec!["jeton:introspect:any".to_owned()];
    let caller = server
        .register(Client { rate_plan: "small".to_owned(), scopes, ..Client::default() })
        .await;
    let token = server.token(&caller, &["jeton:introspect:any"]).await.unwrap().access_token;
    let mut granted = 0;
    for _ in 0..20 {
        let message = IntrospectRequest { token: token.clone(), ..IntrospectRequest::default() };
        match server.tokens().introspect(crate::support::server::bearer(message, &token)).await {
            Ok(_) => granted += 1,
            Err(status) => assert!(is_throttled(&status, 1), "{status:?}"),
        }
    }
    assert_eq!(granted, 4);
}

/// L15, AZ7: an address that fails too often is told to slow down; each guess that was judged is on
/// record, and the others are one record. The right secret gets in, from there too where it costs
/// nothing to check.
#[tokio::test]
async fn failures_have_a_budget_of_their_own_and_lock_nobody_out() {
    let server = TestServer::start_with(|config| {
        config.limits.failed_authentication = Rate { per_second: 1, burst: 5 }
    })
    .await;
    let victim = server.register(Client::default()).await;
    let mut thief = from(Ipv4Addr::new(127, 0, 0, 2), server.address).await;
    let wrong = Caller { secret: "jcs_wrong".to_owned(), ..victim.clone() };
    let mut answered = 0;
    for _ in 0..30 {
        let refused = thief.token(asking(&wrong)).await.unwrap_err();
        match reason(&refused).as_str() {
            "INVALID_CLIENT" => answered += 1,
            _ => assert!(is_throttled(&refused, 1), "{refused:?}"),
        }
    }
    assert_eq!(answered, 5);
    // Five by the budget of the address, five by its budget at this client, and the first of the
    // others.
    server.register(Client::default()).await;
    let failed = server.trail_of("client.authentication_failed").await;
    let of = |reason: &str| {
        failed.iter().filter(|event| event.target == victim.id && event.reason == reason).count()
    };
    assert_eq!((of("invalid_client"), of("slow_down"), failed.len()), (10, 1, 11));
    assert!(server.token(&victim, &[]).await.is_ok());
    assert!(thief.token(asking(&victim)).await.is_ok(), "the right secret from the same address");
    assert_eq!(
        reason(&server.token(&wrong, &[]).await.unwrap_err()),
        "INVALID_CLIENT",
        "another address has its own budget"
    );
    // At the end of the process no count is lost.
    let server = server.restart().await;
    let failed = server.trail_of("client.authentication_failed").await;
    assert_eq!(failed.iter().filter(|event| event.reason == "slow_down, 19 more").count(), 1);
}

/// AZ13: whatever its neighbours do, the owner of a token that has expired is told so, and can ask
/// for another.
#[tokio::test]
async fn a_token_that_is_not_valid_is_always_told_so() {
    let server = TestServer::start_with(|config| {
        config.limits.failed_authentication = Rate { per_second: 1, burst: 5 }
    })
    .await;
    let made = server.register(Client::default()).await;
    for n in 0..90 {
        let wrong = Caller { id: format!("nobody-{n}"), secret: "jcs_wrong".to_owned() };
        server.token(&wrong, &[]).await.unwrap_err();
        let message = IntrospectRequest { token: "x".to_owned(), ..IntrospectRequest::default() };
        let refused = server
            .tokens()
            .introspect(crate::support::server::bearer(message, "not.a.token"))
            .await
            .unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::Unauthenticated, "INVALID_TOKEN"),
            "{n}"
        );
    }
    assert!(server.token(&made, &[]).await.is_ok());
}

async fn import(server: &TestServer, id: &str, secret: &str) -> Caller {
    let client = Client { client_id: id.to_owned(), ..Client::default() };
    let message = CreateClientRequest {
        client: Some(client),
        secret: Some(Secret::PlainSecret(secret.to_owned())),
    };
    server.clients().create_client(server.as_admin(message).await).await.unwrap();
    Caller { id: id.to_owned(), secret: secret.to_owned() }
}

/// L14, AZ1, TL2: wrong passwords are hashed by a bounded pool and refused past their address's
/// share of its queue. Generated secrets do not wait for it, and chosen ones of another address get
/// in, for the first time too: nothing is remembered after the restart. Half of the names are
/// invented, a new one each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flood_of_passwords_fills_the_pool_and_stops_nobody_else() {
    let configure = |config: &mut Config| {
        config.limits.failed_authentication = Rate { per_second: 100_000, burst: 100_000 };
        config.limits.argon2_parallel = 1;
        config.limits.argon2_queue = 4;
    };
    let server = TestServer::start_with(configure).await;
    let imported = import(&server, "imported", "a secret that somebody chose").await;
    let late = import(&server, "late", "a secret that somebody chose").await;
    let made = server.register(Client::default()).await;
    let server = server.restart_with(configure).await;
    let flood = async || {
        let thief = from(Ipv4Addr::new(127, 0, 0, 2), server.address).await;
        let flood = (0..60).map(|n: usize| {
            let id =
                if n.is_multiple_of(2) { "imported".to_owned() } else { format!("nobody-{n}") };
            let (mut thief, wrong) =
                (thief.clone(), Caller { id, secret: format!("a wrong secret {n}") });
            tokio::spawn(async move { thief.token(asking(&wrong)).await.unwrap_err() })
        });
        flood.collect::<Vec<_>>()
    };
    let first = flood().await;
    // Meanwhile.
    for _ in 0..20 {
        assert!(server.token(&made, &[]).await.is_ok());
    }
    assert!(server.token(&imported, &[]).await.is_ok(), "from another address, for the first time");
    let refused: Vec<Status> = join_all(first).await.into_iter().map(Result::unwrap).collect();
    let throttled = refused.iter().filter(|status| is_throttled(status, 1)).count();
    let denied = refused.iter().filter(|status| reason(status) == "INVALID_CLIENT").count();
    assert_eq!(throttled + denied, 60);
    assert!(throttled > 0 && denied > 0, "{throttled} throttled, {denied} denied");
    // Once verified, it is remembered: the flood does not touch it any more. Nor does it touch
    // administration.
    let second = flood().await;
    for _ in 0..10 {
        assert!(server.token(&imported, &[]).await.is_ok());
    }
    import(&server, "meanwhile", "a secret that somebody chose").await;
    assert!(server.token(&late, &[]).await.is_ok());
    join_all(second).await;
}

/// L14, AZ1, TL2: an address that used up its failures does not get another password hashed, right
/// or wrong, under whatever name, directly after a restart too.
#[tokio::test]
async fn who_failed_too_often_is_not_hashed_for() {
    let configure = |config: &mut Config| {
        config.limits.failed_authentication = Rate { per_second: 1, burst: 2 }
    };
    let server = TestServer::start_with(configure).await;
    let imported = import(&server, "imported", "a secret that somebody chose").await;
    let wrong = |id: &str| Caller { id: id.to_owned(), secret: "a wrong secret to try".to_owned() };
    let server = server.restart_with(configure).await;
    for names in [["imported"; 4], ["ghost-1", "ghost-2", "ghost-3", "imported"]] {
        let mut thief = from(Ipv4Addr::new(127, 0, 0, 2), server.address).await;
        for name in &names[..2] {
            assert_eq!(
                reason(&thief.token(asking(&wrong(name))).await.unwrap_err()),
                "INVALID_CLIENT"
            );
        }
        for name in &names[2..] {
            assert!(
                is_throttled(&thief.token(asking(&wrong(name))).await.unwrap_err(), 1),
                "{name}"
            );
        }
        assert!(
            is_throttled(&thief.token(asking(&imported)).await.unwrap_err(), 1),
            "not even the right one"
        );
        server.advance(3);
    }
    let mut thief = from(Ipv4Addr::new(127, 0, 0, 2), server.address).await;
    assert!(server.token(&imported, &[]).await.is_ok(), "from elsewhere it gets in");
    for n in 0..4 {
        thief.token(asking(&wrong(&format!("ghost-{n}")))).await.unwrap_err();
    }
    // And is remembered from then on, so that it gets in from anywhere.
    assert!(thief.token(asking(&imported)).await.is_ok());
    server.advance(3);
    assert_eq!(
        reason(&thief.token(asking(&wrong("imported"))).await.unwrap_err()),
        "INVALID_CLIENT"
    );
}

/// L16: past the bound new peers and clients are refused; those that are tracked keep what they
/// have drawn.
#[tokio::test]
async fn limiters_are_bounded_and_forget_nobody_who_is_hot() {
    let server = TestServer::start_with(|config| {
        config.limits.tracked_keys = 3;
        config.limits.per_peer = Rate { per_second: 1, burst: 1_000 };
        config.limits.plans.insert("small".to_owned(), Rate { per_second: 1, burst: 2 });
    })
    .await;
    let small = || Client { rate_plan: "small".to_owned(), ..Client::default() };
    let mut callers = Vec::new();
    for _ in 0..5 {
        callers.push(server.register(small()).await);
    }
    for caller in &callers[..3] {
        for granted in [true, true, false] {
            assert_eq!(server.token(caller, &[]).await.is_ok(), granted);
        }
    }
    for caller in &callers[3..] {
        assert!(
            is_throttled(&server.token(caller, &[]).await.unwrap_err(), 10),
            "no room for another"
        );
    }
    assert!(server.token(&callers[0], &[]).await.is_err(), "and none was made by forgetting");
    // Peers: this machine's first address is tracked already.
    let mut others = Vec::new();
    for last in 2..=5 {
        let mut other = from(Ipv4Addr::new(127, 0, 0, last), server.address).await;
        let ask = IntrospectRequest { token: "x".to_owned(), ..IntrospectRequest::default() };
        others.push((
            IpAddr::from([127, 0, 0, last]),
            reason(&other.introspect(ask).await.unwrap_err()),
        ));
    }
    let tracked = others.iter().filter(|(_, reason)| reason != "SLOW_DOWN").count();
    assert_eq!(tracked, 2, "{others:?}");
    assert!(server.token(&server.admin, &[]).await.is_ok());
}
