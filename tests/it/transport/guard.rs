//! Rules for every call.

use std::{sync::Mutex, time::Duration};

use http::Version;
use jeton::api::{
    guard::{Refusal, quiet_panics},
    metrics::Exposition,
};
use tonic::Code;
use tonic_types::StatusExt;
use tracing_subscriber::fmt::MakeWriter;

use crate::support::isolated::isolated;
use crate::transport::support::{
    NOW, Server, TOKEN, WATCH, frames,
    frames::{END_HEADERS, END_STREAM, HEADERS, Raw, block, call},
    http::{ask, get, grpc, message, play, token},
    options, until,
};

#[tokio::test]
async fn a_call_knows_its_circumstances() {
    let server = Server::start().await;
    let answer = token(server.address, "").await;
    let token = answer.token();
    assert_eq!(token.access_token, answer.header("x-request-id"));
    assert_eq!(token.access_token.len(), 36, "a new id is a UUID");
    assert_eq!(token.token_type, "127.0.0.1");
    assert_eq!(token.scopes, [NOW.to_string(), "0".to_owned()]);
    assert!((1..=60_000).contains(&token.expires_in), "{token:?}");
}

#[tokio::test]
async fn the_callers_request_id_is_kept_if_it_is_plain() {
    let server = Server::start().await;
    for (given, kept) in [("a.B-9_c", true), ("a b", false), ("{\"x\":1}", false)] {
        let answer =
            ask(server.address, grpc(TOKEN).header("x-request-id", given).body(play("")).unwrap())
                .await;
        assert_eq!(answer.header("x-request-id") == given, kept, "{given}");
        assert_eq!(answer.token().access_token, answer.header("x-request-id"));
    }
    let refused = ask(
        server.address,
        grpc("/no.Such/Method").header("x-request-id", "kept").body(play("")).unwrap(),
    )
    .await;
    assert_eq!(refused.header("x-request-id"), "kept", "refusals too");
}

#[tokio::test]
async fn a_call_over_its_deadline_is_answered_and_its_handler_dropped() {
    let server = Server::with(options(), Duration::from_millis(500)).await;
    let answer = token(server.address, "wait").await;
    assert_eq!((answer.status.as_u16(), answer.code()), (200, Some(Code::DeadlineExceeded)));
    assert!(answer.headers.contains_key("grpc-status"), "trailers only: {answer:?}");
    assert_eq!(server.puppet.waiting(), 0);
}

#[tokio::test]
async fn the_callers_deadline_can_only_be_shorter() {
    let server = Server::start().await;
    let with = async |timeout: &str, part: &str| {
        ask(server.address, grpc(TOKEN).header("grpc-timeout", timeout).body(play(part)).unwrap())
            .await
    };
    assert_eq!(with("50m", "wait").await.code(), Some(Code::DeadlineExceeded));
    assert!(with("20S", "").await.token().expires_in <= 20_000);
    let long = with("1H", "").await.token().expires_in;
    assert!((20_001..=60_000).contains(&long), "{long}");
    assert!(with("nonsense", "").await.token().expires_in > 20_000, "a malformed one is none");
}

/// A server stream goes on past the deadline: it bounds the wait for the first answer.
#[tokio::test]
async fn a_stream_outlives_the_deadline() {
    let server = Server::with(options(), Duration::from_millis(200)).await;
    let mut raw = Raw::open(server.address).await;
    raw.send(&frames::frame(HEADERS, END_HEADERS, 1, &block(call(WATCH)))).await;
    raw.send(&frames::frame(frames::DATA, END_STREAM, 1, &[0; 5])).await;
    raw.expect(|frame| frame.kind == HEADERS && frame.stream == 1).await;
    // Once the deadline of a call that began after it has passed, its own has.
    assert_eq!(token(server.address, "wait").await.code(), Some(Code::DeadlineExceeded));
    raw.send(&frames::frame(frames::PING, 0, 0, &[7; 8])).await;
    let ends = |frame: &frames::Frame| {
        frame.stream == 1 && (frame.kind != frames::DATA || frame.flags & END_STREAM != 0)
    };
    let next = raw.expect(|frame| frame.kind == frames::PING || ends(frame)).await;
    assert_eq!(next.kind, frames::PING, "the stream was cut");
}

struct Tee(&'static Mutex<Vec<u8>>);

impl std::io::Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Tee {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self(self.0)
    }
}

/// C5, O07, O01: a panic is INTERNAL to its caller, nothing to anybody else, and its words are
/// written nowhere.
#[tokio::test]
async fn a_panic_stays_with_its_request_and_is_not_repeated() {
    if !isolated("transport::guard::a_panic_stays_with_its_request_and_is_not_repeated") {
        return;
    }
    let log: &Mutex<Vec<u8>> = Box::leak(Box::default());
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(Tee(log))
        .init();
    let before = std::panic::take_hook();
    quiet_panics();
    let server = Server::start().await;
    for _ in 0..3 {
        let answer = token(server.address, "panic").await;
        assert_eq!((answer.status.as_u16(), answer.code()), (200, Some(Code::Internal)));
        assert!(!format!("{answer:?}").contains("canary"));
    }
    token(server.address, "").await.token();
    assert_eq!(server.methods.find(TOKEN).unwrap().count(Code::Internal), 3);
    std::panic::set_hook(before);
    let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
    assert!(log.contains("handler panicked") && log.contains("scripted.rs"), "{log}");
    assert!(!log.contains("canary-5f2a"));
}

#[tokio::test]
async fn every_call_is_counted_once_under_its_code() {
    let server = Server::start().await;
    token(server.address, "").await;
    token(server.address, "denied").await;
    ask(server.address, grpc(TOKEN).header("grpc-timeout", "50m").body(play("wait")).unwrap())
        .await;
    ask(server.address, grpc("/jeton.token.v1.TokenService/NoSuch").body(message(&[])).unwrap())
        .await;
    let method = server.methods.find(TOKEN).unwrap();
    for code in [Code::Ok, Code::PermissionDenied, Code::DeadlineExceeded] {
        assert_eq!(method.count(code), 1, "{code:?}");
    }
    let text = Exposition::new(server.methods).render();
    assert!(text.contains("grpc_method=\"unknown\",grpc_code=\"Unimplemented\"} 1"), "{text}");
    assert!(!text.contains("NoSuch"), "a stranger makes no series");
}

#[tokio::test]
async fn a_call_its_caller_gave_up_is_dropped_and_counted() {
    let server = Server::with(options(), Duration::from_secs(60)).await;
    let asking = tokio::spawn(token(server.address, "wait"));
    until(async || server.puppet.waiting() == 1).await;
    asking.abort();
    until(async || server.puppet.waiting() == 0).await;
    until(async || server.methods.find(TOKEN).unwrap().count(Code::Cancelled) == 1).await;
}

/// L11: the budget of a peer is drawn on by whatever it asks for, in the language it asked in.
#[tokio::test]
async fn a_peer_without_a_budget_is_refused_whatever_it_asks() {
    let server = Server::start().await;
    let pages = [
        "/readyz",
        "/healthz",
        "/.well-known/jwks.json",
        "/.well-known/oauth-authorization-server",
        "/none",
    ];
    let methods =
        [TOKEN, "/grpc.health.v1.Health/Check", WATCH, "/grpc.reflection.v1.ServerReflection/Info"];
    server.puppet.throttle(1_500);
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for page in pages {
            let answer = ask(server.address, get(page, version)).await;
            assert_eq!(
                (answer.status.as_u16(), answer.header("retry-after")),
                (429, "2"),
                "{page}"
            );
            assert!(answer.body.is_empty(), "{page}: an unread body is memory");
            assert!(answer.headers.contains_key("x-request-id"), "{page}");
        }
    }
    for method in methods {
        let answer = ask(server.address, grpc(method).body(message(b"")).unwrap()).await;
        assert_eq!(answer.code(), Some(Code::ResourceExhausted), "{method}");
    }
    // What would be refused anyhow is not looked at first.
    let with_query =
        ask(server.address, grpc(&format!("{TOKEN}?x=1")).body(play("")).unwrap()).await;
    assert_eq!(with_query.code(), Some(Code::ResourceExhausted));
    let mut json = grpc(TOKEN).body(play("")).unwrap();
    json.headers_mut().insert("content-type", "application/json".parse().unwrap());
    let mut old = grpc(TOKEN).header("host", "port").body(play("")).unwrap();
    *old.version_mut() = Version::HTTP_11;
    for wrong in [get(TOKEN, Version::HTTP_11), get(TOKEN, Version::HTTP_2), json, old] {
        assert_eq!(ask(server.address, wrong).await.status, 429);
    }
    server.puppet.throttle(0);
    assert_eq!(ask(server.address, get("/readyz", Version::HTTP_11)).await.status, 200);
    token(server.address, "").await.token();
}

/// L11: and is told when to come again.
#[test]
fn a_throttled_call_is_told_to_slow_down_and_for_how_long() {
    let retry_after = Duration::from_millis(1_500);
    let status = Refusal::Throttled { retry_after }.status();
    let details = status.get_error_details();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some("SLOW_DOWN"));
    assert_eq!(details.retry_info().and_then(|info| info.retry_delay), Some(retry_after));
}
