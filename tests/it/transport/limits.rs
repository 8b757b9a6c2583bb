//! Paths, headers and messages that are not as they must be.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Version};
use http_body_util::Full;
use jeton::{
    api::{guard::MALFORMED, listen::Options},
    proto::token::TokenRequest,
};
use prost::Message;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::support::until::HANG;
use crate::transport::support::{
    MAX_MESSAGE, SERVICE, Server, TOKEN, WATCH, connect_from,
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Kept, RST_STREAM, Raw, block,
        call, frame,
    },
    http::{ask, ask_over, grpc, message, play, token},
    options, until,
};

/// Reason and domain of the `ErrorInfo` of a status in the headers.
fn refusal(headers: &HeaderMap) -> (String, String) {
    let status = Status::from_header_map(headers).unwrap();
    let info = status.get_details_error_info().unwrap();
    (info.reason, info.domain)
}

/// T05, B26: a path that is not exactly a method's is no method's.
#[tokio::test]
async fn paths_like_a_methods_are_unimplemented() {
    let server = Server::start().await;
    for path in [
        "/jeton.token.v1.TokenService/Token?x=1",
        "/jeton.token.v1.TokenService/Token?",
        "/jeton.token.v1.TokenService/Token/",
        "//jeton.token.v1.TokenService/Token",
        "/jeton.token.v1.TokenService//Token",
        "/jeton.token.v1.TokenService/token",
        "/JETON.token.v1.TokenService/Token",
        "/jeton.token.v1.TokenService/%54oken",
        "/jeton.token.v1.TokenService/../TokenService/Token",
        "/jeton.token.v1.TokenService",
        "/grpc.health.v1.Health/Check?service=",
        "/",
    ] {
        let answer = ask(server.address, grpc(path).body(play("")).unwrap()).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (200, Some(Code::Unimplemented)),
            "{path}"
        );
        assert!(answer.headers.contains_key("grpc-status"), "trailers only: {path}");
        assert_eq!(
            refusal(&answer.headers),
            ("UNIMPLEMENTED".to_owned(), "jeton".to_owned()),
            "{path}"
        );
    }
    assert_eq!(server.methods.find(TOKEN).unwrap().count(Code::Ok), 0);
}

/// T05: a path without its slash is no path at all.
#[tokio::test]
async fn a_path_without_its_slash_is_a_protocol_error() {
    let server = Server::start().await;
    let mut raw = Raw::open(server.address).await;
    raw.send(&frame(
        HEADERS,
        END_HEADERS | END_STREAM,
        1,
        &block(call("jeton.token.v1.TokenService/Token")),
    ))
    .await;
    raw.expect(|frame| matches!(frame.kind, RST_STREAM | GOAWAY)).await;
}

/// T05: what is not gRPC is told so in HTTP.
#[tokio::test]
async fn a_method_is_not_served_to_what_is_not_grpc() {
    let server = Server::start().await;
    for (content_type, status) in [
        ("application/json", 415),
        ("application/grpc-web", 415),
        ("", 415),
        ("application/grpc+proto", 200),
    ] {
        let mut request = grpc(TOKEN).body(play("")).unwrap();
        request.headers_mut().insert("content-type", content_type.parse().unwrap());
        assert_eq!(ask(server.address, request).await.status, status, "{content_type}");
    }
    let mut get = grpc(TOKEN).body(Full::<Bytes>::default()).unwrap();
    *get.method_mut() = Method::GET;
    assert_eq!(ask(server.address, get).await.status, 405);
    let mut old = grpc(TOKEN).header("host", "port").body(play("")).unwrap();
    *old.version_mut() = Version::HTTP_11;
    assert_eq!(ask(server.address, old).await.status, 505);
    let mut without_te = grpc(TOKEN).body(play("")).unwrap();
    without_te.headers_mut().remove("te");
    ask(server.address, without_te).await.token();
}

/// T05: pseudo-headers twice, or none.
#[tokio::test]
async fn malformed_headers_are_a_protocol_error() {
    let server = Server::start().await;
    let twice = [call(TOKEN), vec![(":path", "/healthz")]].concat();
    let doubled = [vec![(":path", "/healthz")], call(TOKEN)].concat();
    let upper = [call(TOKEN), vec![("Upper", "case")]].concat();
    let none: Vec<_> = call(TOKEN).into_iter().filter(|(name, _)| *name != ":path").collect();
    let hop = [call(TOKEN), vec![("connection", "close")]].concat();
    for headers in [twice, doubled, upper, none, hop] {
        let mut raw = Raw::open(server.address).await;
        raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(headers.clone()))).await;
        raw.expect(|frame| matches!(frame.kind, RST_STREAM | GOAWAY)).await;
    }
    assert_eq!(server.methods.find(TOKEN).unwrap().count(Code::Ok), 0);
}

/// L06: more than 16 KiB of headers reach no handler.
#[tokio::test]
async fn a_header_list_too_long_is_refused() {
    let server = Server::start().await;
    let long = "x".repeat(3_000);
    for (names, fits) in [(4, true), (7, false)] {
        let names: Vec<_> = (0..names).map(|n| format!("x-{n}")).collect();
        let headers =
            [call(TOKEN), names.iter().map(|name| (name.as_str(), long.as_str())).collect()]
                .concat();
        let block = block(headers);
        let mut parts = block.chunks(16_000).peekable();
        let mut raw = Raw::open(server.address).await;
        let mut kind = (HEADERS, 0);
        while let Some(part) = parts.next() {
            let last = if parts.peek().is_none() { END_HEADERS } else { 0 };
            raw.send(&frame(kind.0, kind.1 | last, 1, part)).await;
            kind = (CONTINUATION, 0);
        }
        raw.send(&frame(DATA, END_STREAM, 1, &[0; 5])).await;
        raw.expect(|frame| {
            frame.stream == 1 && matches!(frame.kind, HEADERS | RST_STREAM) || frame.kind == GOAWAY
        })
        .await;
        assert_eq!(server.methods.find(TOKEN).unwrap().count(Code::Ok), 1, "fits: {fits}");
    }
}

/// L06: HTTP/1.1 has the same bound.
#[tokio::test]
async fn a_head_too_long_is_refused_in_http_1() {
    let server = Server::start().await;
    let request = http::Request::get("http://port/healthz")
        .header("host", "port")
        .header("x", "x".repeat(20_000));
    let answer = ask(server.address, request.body(Full::default()).unwrap()).await;
    assert_eq!(answer.status, 431);
}

/// L06: a message over the limit is RESOURCE_EXHAUSTED, by its length alone.
#[tokio::test]
async fn a_message_too_long_is_refused_before_it_is_taken() {
    let server = Server::start().await;
    let fits =
        ask(server.address, grpc(TOKEN).body(play(&"x".repeat(MAX_MESSAGE - 10))).unwrap()).await;
    fits.token();
    let over = ask(server.address, grpc(TOKEN).body(play(&"x".repeat(MAX_MESSAGE))).unwrap()).await;
    assert_eq!(over.code(), Some(Code::ResourceExhausted));
    let claims = Full::new(Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff, 1]));
    let claims = ask(server.address, grpc(TOKEN).body(claims).unwrap()).await;
    assert_eq!(claims.code(), Some(Code::ResourceExhausted));
    assert_eq!(server.methods.find(TOKEN).unwrap().count(Code::ResourceExhausted), 2);
    assert_eq!(
        token(server.address, "out-of-range").await.code(),
        Some(Code::OutOfRange),
        "a rule's own code is left alone"
    );
}

/// L07, B26: nothing is inflated, and the refusal is one of ours.
#[tokio::test]
async fn compressed_messages_are_not_taken() {
    let server = Server::start().await;
    let compressed = || Full::new(Bytes::from_static(&[1, 0, 0, 0, 3, 0x1f, 0x8b, 8]));
    for encoding in ["gzip", "deflate", "zstd"] {
        let answer = ask(
            server.address,
            grpc(TOKEN).header("grpc-encoding", encoding).body(compressed()).unwrap(),
        )
        .await;
        assert_eq!(answer.code(), Some(Code::Unimplemented), "{encoding}");
        assert_eq!(
            refusal(&answer.headers),
            ("UNIMPLEMENTED".to_owned(), "jeton".to_owned()),
            "{encoding}"
        );
        assert!(answer.headers["grpc-message"].to_str().unwrap().contains("compressed"));
    }
    let taken = token(server.address, "").await;
    assert_eq!(taken.header("grpc-accept-encoding"), "identity");
    let unnamed = ask(server.address, grpc(TOKEN).body(compressed()).unwrap()).await;
    assert_eq!(unnamed.code(), Some(Code::InvalidArgument));
}

/// L08: a message that never ends is cut at the deadline, and its stream reset.
#[tokio::test]
async fn a_message_that_never_ends_is_cut_at_the_deadline() {
    let server = Server::with(options(), Duration::from_millis(500)).await;
    let mut raw = Raw::open(server.address).await;
    raw.send(&frame(HEADERS, END_HEADERS, 1, &block(call(TOKEN)))).await;
    for part in [&[0, 0, 0, 1, 0][..], &[1], &[1], &[1]] {
        raw.send(&frame(DATA, 0, 1, part)).await;
    }
    raw.expect(|frame| frame.kind == HEADERS && frame.stream == 1 && frame.flags & END_STREAM != 0)
        .await;
    raw.expect(|frame| frame.kind == RST_STREAM && frame.stream == 1).await;
    assert_eq!(server.methods.find(TOKEN).unwrap().count(Code::DeadlineExceeded), 1);
}

/// L08, O06: a body that is not one message is the caller's error, for every method, with a reason
/// and without the words of a library; strangers cannot raise the rate of INTERNAL.
#[tokio::test]
async fn a_body_that_is_no_message_is_an_invalid_request() {
    let server = Server::start().await;
    let bodies: [(&str, &[u8]); 7] = [
        ("no message", &[]),
        ("half a prefix", &[0, 0, 0]),
        ("cut short", &[0, 0, 0, 0, 9, 1]),
        ("a group that never ends", &[0, 0, 0, 0, 3, 0x0b, 0x0b, 0x0b]),
        ("a wrong wire type", &[0, 0, 0, 0, 2, 0x08, 0x01]),
        ("a flag that is none", &[2, 0, 0, 0, 0]),
        ("compressed, but with nothing named", &[1, 0, 0, 0, 1, 7]),
    ];
    let methods = ["Token", "Refresh", "Revoke", "Introspect", "BatchIntrospect"]
        .map(|name| format!("{SERVICE}/{name}"));
    for method in methods.iter().map(String::as_str).chain(["/grpc.health.v1.Health/Check", WATCH])
    {
        for (what, body) in bodies {
            let answer = ask(
                server.address,
                grpc(method).body(Full::new(Bytes::from_static(body))).unwrap(),
            )
            .await;
            let status = Status::from_header_map(&answer.headers)
                .unwrap_or_else(|| panic!("{method}, {what}: {answer:?}"));
            let reason = status.get_error_details().error_info().map(|info| info.reason.clone());
            assert_eq!(
                (status.code(), reason.as_deref()),
                (Code::InvalidArgument, Some("INVALID_REQUEST")),
                "{method}, {what}"
            );
            assert_eq!(status.message(), format!("message: {MALFORMED}"), "{method}, {what}");
        }
        assert_eq!(
            server.methods.find(method).unwrap().count(Code::InvalidArgument),
            7,
            "{method}"
        );
        assert_eq!(server.methods.find(method).unwrap().count(Code::Internal), 0, "{method}");
    }
}

/// Connections of one peer on which 200 calls each have begun and none ends.
async fn begin(server: &Server, peer: u8, connections: usize) -> Vec<Kept> {
    let opened: Vec<u8> = (0..200)
        .flat_map(|number| frame(HEADERS, END_HEADERS, number * 2 + 1, &block(call(TOKEN))))
        .collect();
    let mut held = Vec::new();
    for _ in 0..connections {
        let mut raw = Raw::over(connect_from([127, 0, 0, peer], server.address).await).await;
        raw.send(&opened).await;
        held.push(raw.keep(&Arc::default()));
    }
    held
}

/// One call from a peer.
async fn token_from(server: &Server, peer: u8) -> Option<Code> {
    let stream = connect_from([127, 0, 0, peer], server.address).await;
    ask_over(stream, grpc(TOKEN).body(play("")).unwrap()).await.unwrap().code()
}

/// L08, L02: calls that begin and do not end are bounded over all connections, and end with them.
#[tokio::test]
async fn unfinished_calls_are_bounded_together() {
    let options = Options { workers: 1, ..options() };
    let server = Server::with(options, HANG * 5).await;
    let mut held = Vec::new();
    for peer in 1..=9 {
        held.extend(begin(&server, peer, 6).await);
    }
    let refused = || server.methods.find(TOKEN).unwrap().count(Code::ResourceExhausted);
    until(async || refused() >= 9 * 6 * 200 - 8_192).await;
    assert_eq!(token_from(&server, 10).await, Some(Code::ResourceExhausted));
    drop(held);
    until(async || token_from(&server, 10).await == Some(Code::Ok)).await;
    assert!(refused() <= 9 * 6 * 200 - 8_192 + 100, "{}", refused());
}

/// L08, L11: one peer cannot take all that there is for unfinished calls, however many connections
/// it opens.
#[tokio::test]
async fn unfinished_calls_of_one_peer_leave_room_for_others() {
    let options = Options { workers: 1, ..options() };
    let server = Server::with(options, HANG * 5).await;
    let held = begin(&server, 2, 15).await;
    let refused = || server.methods.find(TOKEN).unwrap().count(Code::ResourceExhausted);
    until(async || refused() >= 15 * 200 - 1_024).await;
    assert_eq!(token_from(&server, 3).await, Some(Code::Ok));
    assert_eq!(token_from(&server, 2).await, Some(Code::ResourceExhausted));
    drop(held);
    until(async || token_from(&server, 2).await == Some(Code::Ok)).await;
}

/// L08 (AUDIT TL1): a message that was read counts until its call is answered, for the handler
/// holds it.
#[tokio::test]
async fn messages_that_handlers_hold_are_bounded() {
    let server = Server::with(Options { workers: 1, ..options() }, HANG * 5).await;
    let (id, secret) = ("wait".to_owned(), "x".repeat(60_000));
    let large = TokenRequest { client_id: id, client_secret: secret, ..TokenRequest::default() }
        .encode_to_vec();
    let calls: Vec<_> = (0..300)
        .map(|_| {
            let (large, address) = (message(&large), server.address);
            tokio::spawn(async move {
                let stream = connect_from([127, 0, 0, 2], address).await;
                ask_over(stream, grpc(TOKEN).body(large).unwrap()).await.unwrap().code()
            })
        })
        .collect();
    let refused = || server.methods.find(TOKEN).unwrap().count(Code::ResourceExhausted) as usize;
    until(async || server.puppet.waiting() + refused() == 300).await;
    assert!(
        (100..=219).contains(&server.puppet.waiting()),
        "{} wait, 16 MiB in all",
        server.puppet.waiting()
    );
    assert_eq!(token_from(&server, 3).await, Some(Code::Ok), "others have room");
    server.puppet.release();
    for call in calls {
        assert!(matches!(call.await.unwrap(), Some(Code::Ok | Code::ResourceExhausted)));
    }
    assert_eq!(token_from(&server, 2).await, Some(Code::Ok), "and it is given back");
}
