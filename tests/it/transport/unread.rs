//! Answers that are asked for and not read, and connections that only stay.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::Version;
use jeton::api::listen::Options;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::Code;

use crate::support::until::HANG;
use crate::transport::{
    child::Child,
    support::{
        Server, TOKEN, WATCH, connect_from,
        frames::{
            ACK, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, GOAWAY, HEADERS, PING, Raw,
            SETTINGS, block, call, closes, frame,
        },
        http::{ask_over, get, token},
        options,
        scripted::LARGE,
        until,
    },
};

const PAGE: &str = "/.well-known/jwks.json";

/// The frames that ask for a page.
fn page(stream: u32) -> Vec<u8> {
    let headers =
        [(":method", "GET"), (":scheme", "http"), (":path", PAGE), (":authority", "port")];
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(headers))
}

/// The frames of a call with a message.
fn message(path: &str, stream: u32, message: &[u8]) -> Vec<u8> {
    let prefix = [&[0][..], &(message.len() as u32).to_be_bytes()].concat();
    let data = frame(DATA, END_STREAM, stream, &[&prefix, message].concat());
    [frame(HEADERS, END_HEADERS, stream, &block(call(path))), data].concat()
}

/// The message that has the puppet do something.
fn play(stream: u32, part: &str) -> Vec<u8> {
    let text = [&[0x12, part.len() as u8][..], part.as_bytes()].concat();
    message(TOKEN, stream, &text)
}

fn stream(number: u32) -> u32 {
    number * 2 + 1
}

/// Of the answers to so many calls, those that were refused: their headers are all there is.
async fn refused(raw: &mut Raw, calls: usize) -> usize {
    let mut ended = 0;
    for _ in 0..calls {
        let headers = raw.expect(|frame| frame.kind == HEADERS).await;
        ended += usize::from(headers.flags & END_STREAM != 0);
    }
    ended
}

/// L02, L05: of answers that are not read, those of one peer are bounded together, and leave room
/// for other peers.
#[tokio::test]
async fn unread_answers_of_one_peer_are_bounded() {
    for window in [0, 1] {
        let server = Server::with(Options { workers: 1, ..options() }, HANG * 5).await;
        let (mut held, mut over) = (Vec::new(), 0);
        for _ in 0..8 {
            let mut raw =
                Raw::with_window(connect_from([127, 0, 0, 2], server.address).await, window).await;
            raw.send(&(0..200).flat_map(|number| page(stream(number))).collect::<Vec<_>>()).await;
            over += refused(&mut raw, 200).await;
            held.push(raw.keep(&Arc::default()));
        }
        let kept = 8 * 200 - over;
        assert!((1_200..=1_365).contains(&kept), "window {window}: kept {kept}");
        let other = connect_from([127, 0, 0, 3], server.address).await;
        assert_eq!(ask_over(other, get(PAGE, Version::HTTP_2)).await.unwrap().status, 200);
        drop(held);
        until(async || {
            let same = connect_from([127, 0, 0, 2], server.address).await;
            ask_over(same, get(PAGE, Version::HTTP_2)).await.unwrap().status == 200
        })
        .await;
    }
}

/// L02 (AUDIT TL1): and what they hold is memory, not only a number, with what HTTP/2 keeps for
/// their streams: four times as many add less than the first did.
#[tokio::test]
async fn unread_answers_do_not_pile_up() {
    let child = Child::start(None);
    let pages: Vec<u8> = (0..200).flat_map(|number| page(stream(number))).collect();
    let mut held = Vec::new();
    let mut before = child.resident();
    let mut grown = Vec::new();
    for connections in [60, 240] {
        for _ in 0..connections {
            let mut raw =
                Raw::with_window(TcpStream::connect(child.address).await.unwrap(), 1).await;
            if raw.taken(&pages).await.is_none() {
                held.push(raw.keep(&Arc::default()));
            }
        }
        let now = child.resident();
        grown.push(now.saturating_sub(before));
        before = now;
    }
    assert!(grown[1] < grown[0], "grew by {grown:?} bytes");
}

/// L02 (AUDIT TL1): what HTTP/2 keeps for the streams that connections once had at once is bounded
/// for each peer. Who asks for more is told to be calm. At half of it as many connections as need
/// to are told to go, be they busy; their calls finish.
#[tokio::test]
async fn what_streams_leave_behind_is_bounded() {
    let long = Duration::from_secs(600);
    let server = Server::with(Options { workers: 1, unread: long, ..options() }, long).await;
    let pages = |from, to| (from..to).flat_map(|number| page(stream(number))).collect::<Vec<_>>();
    let (mut held, gone) = (Vec::new(), Arc::<AtomicUsize>::default());
    for _ in 0..25 {
        let mut raw = Raw::with_window(connect_from([127, 0, 0, 2], server.address).await, 0).await;
        // All are read, and one call goes on.
        let read = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]);
        raw.send(&[pages(0, 199), play(stream(199), "wait"), read].concat()).await;
        let mut was_told = false;
        for _ in 0..199 {
            raw.expect(|frame| {
                was_told |= frame.goaway() == Some(0);
                frame.kind == DATA && frame.flags & END_STREAM != 0
            })
            .await;
        }
        gone.fetch_add(usize::from(was_told), Relaxed);
        held.push(raw.keep(&gone));
    }
    until(async || server.puppet.waiting() == 25 && gone.load(Relaxed) >= 13).await;
    // 8 MiB, less 25 times 184 streams of 1,792 bytes each; and 16 streams that every connection
    // may have.
    let mut last = Raw::with_window(connect_from([127, 0, 0, 2], server.address).await, 0).await;
    for number in 0..97 {
        assert_eq!(last.taken(&page(stream(number))).await, None, "{number}");
    }
    last.send(&page(stream(97))).await;
    let goaway = last.expect(|frame| frame.goaway() == Some(ENHANCE_YOUR_CALM)).await;
    assert_eq!(goaway.payload[..4], stream(96).to_be_bytes(), "the last that was passed on");
    assert!(closes(&mut last.reader).await);
    let mut other = Raw::with_window(connect_from([127, 0, 0, 3], server.address).await, 0).await;
    assert_eq!(other.taken(&pages(0, 200)).await, None, "another peer has room");

    assert_eq!(
        (server.puppet.waiting(), gone.load(Relaxed)),
        (25, 13),
        "no more are told to go, and all calls go on"
    );
    server.puppet.release();
    until(async || server.methods.find(TOKEN).unwrap().count(Code::Ok) == 25).await;
    until(async || {
        let mut again =
            Raw::with_window(connect_from([127, 0, 0, 2], server.address).await, 0).await;
        again.taken(&pages(0, 200)).await.is_none()
    })
    .await;
}

/// L02, L04 (AUDIT TL1): and so is what the frames of a message leave behind that comes byte by
/// byte, on a single stream.
#[tokio::test]
async fn what_short_frames_leave_behind_is_bounded() {
    let long = Duration::from_secs(600);
    let server = Server::with(Options { workers: 1, unread: long, ..options() }, long).await;
    let bytes = [&[0, 0, 0, 255, 255][..], &[0; 995]].concat();
    let parts = bytes.chunks(1).flat_map(|part| frame(DATA, 0, 1, part));
    let message: Vec<u8> =
        frame(HEADERS, END_HEADERS, 1, &block(call(TOKEN))).into_iter().chain(parts).collect();
    let (mut held, mut connections) = (Vec::new(), 0);
    loop {
        let mut raw = Raw::over(connect_from([127, 0, 0, 2], server.address).await).await;
        if raw.taken(&message).await.is_some() {
            break;
        }
        held.push(raw.keep(&Arc::default()));
        connections += 1;
        assert!(connections < 100, "is not bounded");
    }
    // 8 MiB, of which each takes 936 frames of 272 bytes; there are 64 that every connection may
    // have.
    assert_eq!(connections, 32);
    let mut other = Raw::over(connect_from([127, 0, 0, 3], server.address).await).await;
    assert_eq!(other.taken(&message).await, None, "another peer has room");
}

/// L05: the bytes of large answers count: those that the peer has no room for are refused, and say
/// so.
#[tokio::test]
async fn large_unread_answers_of_one_peer_are_bounded() {
    let server = Server::with(Options { workers: 1, ..options() }, HANG * 5).await;
    for window in [0, 1] {
        let mut raw =
            Raw::with_window(TcpStream::connect(server.address).await.unwrap(), window).await;
        raw.send(&(0..40).flat_map(|number| play(stream(number), "large")).collect::<Vec<_>>())
            .await;
        let mut refused = 0;
        while refused < 25 {
            let end =
                raw.expect(|frame| frame.kind == HEADERS && frame.flags & END_STREAM != 0).await;
            assert_ne!(end.stream, stream(0), "the first has room");
            refused += 1;
        }
        token(server.address, "").await.token();
        assert_eq!(
            token(server.address, "large").await.code(),
            Some(Code::ResourceExhausted),
            "window {window}"
        );
        drop(raw);
        until(async || token(server.address, "large").await.code() == Some(Code::Ok)).await;
    }
    assert_eq!(
        token(server.address, "large").await.token().access_token.len(),
        LARGE,
        "what is read comes whole"
    );
}

/// L05 (AUDIT TL1): an answer that is not read ends its connection, be it a page, a call's or a
/// stream's, and nobody else's. The client is told why.
#[tokio::test]
async fn an_answer_that_is_not_read_in_time_ends_its_connection() {
    let server = Server::with(
        Options { unread: Duration::from_secs(3), ..options() },
        Duration::from_secs(60),
    )
    .await;
    let mut reading = Raw::open(server.address).await;
    reading.send(&message(WATCH, 1, &[])).await;
    let mut unread = Vec::new();
    for window in [0, 1] {
        for (what, frames) in [
            ("page", page(1)),
            ("call", play(1, "")),
            ("large", play(1, "large")),
            ("stream", message(WATCH, 1, &[])),
        ] {
            let mut raw =
                Raw::with_window(TcpStream::connect(server.address).await.unwrap(), window).await;
            raw.send(&frames).await;
            unread.push((raw, format!("{what}, window {window}")));
        }
    }
    for (mut raw, what) in unread {
        let goaway = raw.expect(|frame| frame.kind == GOAWAY).await;
        assert_eq!(
            (goaway.goaway(), &goaway.payload[8..]),
            (Some(ENHANCE_YOUR_CALM), &b"unread"[..]),
            "{what}"
        );
        assert_eq!(
            goaway.payload[..4],
            1_u32.to_be_bytes(),
            "{what}: the last stream that was seen"
        );
        assert!(closes(&mut raw.reader).await, "{what}: not cut");
    }
    reading.send(&play(3, "")).await;
    reading.expect(|frame| frame.stream == 3 && frame.flags & END_STREAM != 0).await;
}

/// L05: and so do answers in HTTP/1.1.
#[tokio::test]
async fn pages_that_are_not_read_end_their_http_1_connection() {
    let server = Server::with(
        Options { unread: Duration::from_millis(300), ..options() },
        Duration::from_secs(60),
    )
    .await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = format!("GET {PAGE} HTTP/1.1\r\nhost: port\r\n\r\n").repeat(100);
    let asking = async { while stream.write_all(request.as_bytes()).await.is_ok() {} };
    tokio::time::timeout(HANG, asking).await.expect("is cut");
}

/// L09: an HTTP/1.1 connection that is told to make room finishes its answer first.
#[tokio::test]
async fn an_http_1_connection_that_makes_room_finishes_its_answer() {
    const BYTES: usize = 12 << 20;
    let long = Duration::from_secs(600);
    let server =
        Server::with(Options { connections: 3, handshake: long, unread: long, ..options() }, long)
            .await;
    server.puppet.publish(BYTES);
    let mut http1 = connect_from([127, 0, 0, 3], server.address).await;
    http1.write_all(format!("GET {PAGE} HTTP/1.1\r\nhost: port\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = vec![0; 1_024];
    http1.read_exact(&mut answer).await.unwrap();
    let mut other = Raw::over(connect_from([127, 0, 0, 3], server.address).await).await;
    let mut new = Raw::over(connect_from([127, 0, 0, 2], server.address).await).await;
    new.send(&play(1, "")).await;
    new.expect(|frame| frame.stream == 1 && frame.flags & END_STREAM != 0).await;

    let reading = http1.read_to_end(&mut answer);
    tokio::time::timeout(HANG, reading).await.expect("it is over after this answer").unwrap();
    let start = answer.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    assert!(answer.len() - start > BYTES, "{} bytes", answer.len());
    assert_eq!(answer.iter().filter(|byte| **byte == b'x').count() / BYTES, 1);
    other.send(&play(1, "")).await;
    other.expect(|frame| frame.stream == 1 && frame.flags & END_STREAM != 0).await;
}

/// L09: a connection without calls is told to go away, one with an open stream is not, and one that
/// is old is in any case.
#[tokio::test]
async fn idle_and_old_connections_are_told_to_go_away() {
    let short = Duration::from_secs(10);
    for (options, stays) in
        [(Options { idle: short, ..options() }, true), (Options { age: short, ..options() }, false)]
    {
        let server = Server::with(options, HANG * 5).await;
        let (mut idle, mut watching) =
            (Raw::open(server.address).await, Raw::open(server.address).await);
        watching.send(&message(WATCH, 1, &[])).await;
        for raw in [Some(&mut idle), (!stays).then_some(&mut watching)].into_iter().flatten() {
            raw.expect(|frame| frame.goaway() == Some(0)).await;
            let ping = raw.expect(|frame| frame.kind == PING).await;
            raw.send(&frame(PING, ACK, 0, &ping.payload)).await;
            assert!(closes(&mut raw.reader).await);
        }
        if stays {
            watching.send(&play(3, "")).await;
            let answered = watching.expect(|frame| frame.kind == GOAWAY || frame.stream == 3).await;
            assert_eq!(answered.kind, HEADERS, "told to go away with a stream open");
        }
    }
}

/// L09, L10: idle connections of one peer do not close the port: when it is nearly full they make
/// room for another.
#[tokio::test]
async fn idle_connections_of_one_peer_make_room_for_another() {
    let server = Server::with(Options { connections: 60, ..options() }, HANG * 5).await;
    let asked = Arc::new(AtomicUsize::new(0));
    for _ in 0..57 {
        let mut raw = Raw::over(connect_from([127, 0, 0, 3], server.address).await).await;
        let asked = Arc::clone(&asked);
        tokio::spawn(async move {
            raw.expect(|frame| frame.goaway() == Some(0)).await;
            asked.fetch_add(1, Relaxed);
            std::future::pending::<()>().await;
        });
    }
    let mut others = Vec::new();
    for number in 1..=3 {
        let mut raw = Raw::over(connect_from([127, 0, 0, 2], server.address).await).await;
        raw.send(&play(1, "")).await;
        raw.expect(|frame| frame.stream == 1 && frame.flags & END_STREAM != 0).await;
        others.push(raw);
        until(async || asked.load(Relaxed) == number).await;
    }
    // Those that were asked and stay are cut, so that the room is there again.
    let mut more = async || {
        Raw::try_over(connect_from([127, 0, 0, 2], server.address).await)
            .await
            .map(|raw| others.push(raw))
    };
    until(async || more().await.is_some()).await;
}
