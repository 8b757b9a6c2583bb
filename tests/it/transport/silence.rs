//! Connections that say nothing, or too little, or are too many.

use std::{net::SocketAddr, time::Duration};

use http::Version;
use jeton::api::listen::Options;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
    time::Instant,
};

use crate::transport::{
    child::Child,
    support::{
        Server, connect_from,
        frames::{PREFACE, Raw, closes},
        http::{ask_over, get, token},
        options, until,
    },
};

/// A server that waits no longer for a connection to speak than the tests can.
async fn impatient() -> Server {
    Server::with(
        Options { handshake: Duration::from_secs(2), ..options() },
        Duration::from_secs(60),
    )
    .await
}

/// L09: a connection that has not said what it is within the deadline is closed; others are served
/// meanwhile.
#[tokio::test]
async fn connections_that_do_not_speak_are_closed() {
    let server = impatient().await;
    let mut silent = Vec::new();
    for said in [
        &b""[..],
        b"P",
        &PREFACE[..12],
        &PREFACE[..23],
        b"G",
        b"GET / HTTP/1.1\r\nhost:",
        b"\0\0\0\0",
    ] {
        for _ in 0..60 {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            stream.write_all(said).await.unwrap();
            silent.push((stream, said));
        }
    }
    until(async || serves(server.address).await).await;
    for (mut stream, said) in silent {
        assert!(closes(&mut stream).await, "still open after {said:?}");
    }
}

/// L09: and so is one that falls silent between HTTP/1.1 requests.
#[tokio::test]
async fn an_idle_http_1_connection_is_closed() {
    let server = impatient().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: port\r\n\r\n").await.unwrap();
    assert!(closes(&mut stream).await);
}

/// An HTTP/2 connection may be idle: it is asked whether it is there, and may stay.
#[tokio::test]
async fn an_idle_http_2_connection_stays() {
    let server = impatient().await;
    let mut raw = Raw::open(server.address).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    assert!(closes(&mut silent).await, "the time for saying something is over");
    assert_eq!(raw.taken(&[]).await, None, "and it is still there");
}

#[tokio::test]
async fn connections_beyond_the_cap_are_closed_and_room_is_reused() {
    let server =
        Server::with(Options { connections: 3, ..options() }, Duration::from_secs(60)).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(Raw::open(server.address).await);
    }
    let mut over = TcpStream::connect(server.address).await.unwrap();
    assert!(closes(&mut over).await);
    held.pop();
    until(async || serves(server.address).await).await;
    drop(held);
    assert!(server.stop().await.refused >= 1);
}

/// L11: the cap of a peer is by its address and leaves others alone.
#[tokio::test]
async fn a_peer_at_its_cap_does_not_keep_others_out() {
    let server =
        Server::with(Options { connections_per_peer: 2, ..options() }, Duration::from_secs(60))
            .await;
    let _held = (Raw::open(server.address).await, Raw::open(server.address).await);
    let mut over = TcpStream::connect(server.address).await.unwrap();
    assert!(closes(&mut over).await);
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let other = socket.connect(server.address).await.unwrap();
    assert_eq!(ask_over(other, get("/healthz", Version::HTTP_11)).await.unwrap().status, 200);
}

/// L10, S9: without descriptors the server waits instead of spinning, keeps who is there, and goes
/// on once there are some again.
#[tokio::test]
async fn running_out_of_descriptors_is_survived() {
    let child = Child::start(Some(64));
    let mut kept = Raw::open(child.address).await;
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(TcpStream::connect(child.address).await.unwrap());
    }
    // It is out of descriptors when somebody is not served any more.
    until(async || !serves(child.address).await).await;
    let (before, began) = (child.ticks(), Instant::now());
    assert!(!serves(child.address).await);
    let (used, elapsed) = (child.ticks() - before, began.elapsed().as_millis() / 10);
    // A share of the time that went by, however much that is: who spins uses what he gets.
    assert!(
        u128::from(used) * 5 < elapsed,
        "used {used} ticks of {elapsed} while it could not accept"
    );
    assert_eq!(kept.taken(&[]).await, None);
    drop(held);
    until(async || serves(child.address).await).await;
}

/// L10: a server that knows its descriptors raises their limit, takes no more connections than they
/// allow, and gives one peer a tenth, so that it does not run out.
#[tokio::test]
async fn connections_keep_within_the_descriptors() {
    let child = Child::within(100, 400);
    let mut held = Vec::new();
    for peer in 2..=8 {
        let mut of_peer = 0;
        for _ in 0..25 {
            let raw = Raw::try_over(connect_from([127, 0, 0, peer], child.address).await).await;
            of_peer += usize::from(raw.is_some());
            held.extend(raw);
        }
        assert_eq!(of_peer, 20, "a tenth of what 400 descriptors leave");
    }
    assert!(held.len() > 100, "more than the limit was");
    token(child.address, "").await.token();
}

/// True if a new client is answered within a second.
async fn serves(address: SocketAddr) -> bool {
    let served = async {
        let stream = TcpStream::connect(address).await.ok()?;
        ask_over(stream, get("/healthz", Version::HTTP_11)).await.ok()
    };
    matches!(tokio::time::timeout(Duration::from_secs(1), served).await, Ok(Some(answer)) if answer.status == 200)
}
