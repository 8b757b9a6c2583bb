//! The end of a server.

use std::time::Duration;

use jeton::api::listen::Options;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::support::until::HANG;
use crate::transport::support::{
    Server, WATCH,
    frames::{
        ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, Raw, block, call, closes, frame,
    },
    http::token,
    options, until,
};

const LONG: Duration = HANG;

/// S1: GOAWAY to all, calls in flight are answered, nobody new gets in.
#[tokio::test]
async fn calls_in_flight_finish_and_new_ones_are_refused() {
    let patience = Duration::from_secs(10);
    let mut server =
        Server::with(Options { handshake: patience, drain: LONG, ..options() }, LONG).await;
    let mut idle = Raw::open(server.address).await;
    let mut http1 = TcpStream::connect(server.address).await.unwrap();
    http1.write_all(b"GET /healthz HTTP/1.1\r\nhost: port\r\n").await.unwrap();
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let calls: Vec<_> = (0..20).map(|_| tokio::spawn(token(server.address, "wait"))).collect();
    until(async || server.puppet.waiting() == 20).await;

    server.begin_stop();
    idle.expect(|frame| frame.kind == GOAWAY && frame.goaway() == Some(0)).await;
    let address = server.address;
    until(async || TcpStream::connect(address).await.is_err()).await;
    assert!(closes(&mut silent).await && closes(&mut http1).await);

    server.puppet.release();
    for call in calls {
        call.await.unwrap().token();
    }
    drop(idle);
    let summary = server.stop().await;
    assert_eq!((summary.aborted, summary.refused), (0, 0));
    assert!(summary.accepted >= 23, "{summary:?}");
}

/// S1: whoever holds on is let go of at the drain deadline.
#[tokio::test]
async fn calls_that_do_not_finish_are_cut() {
    let server =
        Server::with(Options { drain: Duration::from_millis(300), ..options() }, LONG).await;
    let puppet = server.puppet.clone();
    let call = tokio::spawn(token(server.address, "wait"));
    until(async || puppet.waiting() == 1).await;
    let summary = tokio::time::timeout(LONG, server.stop()).await.expect("stops in time");
    assert_eq!(summary.aborted, 1);
    assert!(call.await.is_err(), "the call was cut");
    assert_eq!(puppet.waiting(), 0);
}

/// S1: neither a stream that never ends nor a client that is gone holds up the end.
#[tokio::test]
async fn streams_without_end_and_clients_gone_are_not_waited_for() {
    let server = Server::with(Options { drain: 10 * LONG, ..options() }, LONG).await;
    let _gone = Raw::open(server.address).await;
    let mut watching = Raw::open(server.address).await;
    watching.send(&frame(HEADERS, END_HEADERS, 1, &block(call(WATCH)))).await;
    watching.send(&frame(DATA, END_STREAM, 1, &[0; 5])).await;
    watching.expect(|frame| frame.kind == DATA && frame.stream == 1).await;
    let stopping = tokio::spawn(server.stop());
    let ping = watching.expect(|frame| frame.kind == PING).await;
    watching.send(&frame(PING, ACK, 0, &ping.payload)).await;
    let summary = tokio::time::timeout(LONG, stopping).await.expect("stops in time").unwrap();
    assert_eq!(summary.aborted, 0);
}

#[tokio::test]
async fn a_server_without_calls_stops_at_once() {
    let server = Server::with(Options { drain: 10 * LONG, ..options() }, LONG).await;
    let mut idle = Raw::open(server.address).await;
    let stopping = tokio::spawn(server.stop());
    // The server asks whether the client has seen the GOAWAY, so that no call it sent meanwhile is
    // lost.
    let ping = idle.expect(|frame| frame.kind == PING).await;
    idle.send(&frame(PING, ACK, 0, &ping.payload)).await;
    assert!(closes(&mut idle.reader).await);
    drop(idle);
    tokio::time::timeout(LONG, stopping).await.expect("stops in time").unwrap();
}
