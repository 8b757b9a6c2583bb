//! The audit trail as it grows: a stream that is opened again with positions.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use jeton::proto::admin::{
    ChainPosition, Event, EventFilter, TailEventsRequest, TailEventsResponse,
};
use tonic::{Code, Status, Streaming};

use crate::support::{
    server::{Rpc, TestServer, blamed, reason},
    until::HANG,
};

/// Opens a stream of client changes after these positions.
async fn open(
    server: &TestServer,
    after: &BTreeMap<String, i64>,
) -> Result<Streaming<TailEventsResponse>, Status> {
    let filter = EventFilter { action: "client.".to_owned(), ..EventFilter::default() };
    let after = after
        .iter()
        .map(|(chain, sequence)| ChainPosition { chain: chain.clone(), sequence: *sequence });
    let message =
        TailEventsRequest { filter: Some(filter), after: after.collect(), report_positions: true };
    let stream = server.audit().tail_events(server.as_admin(message).await).await?;
    Ok(stream.into_inner())
}

/// Reads until there are `count` events, and keeps the positions.
async fn read(
    stream: &mut Streaming<TailEventsResponse>,
    at: &mut BTreeMap<String, i64>,
    count: usize,
) -> Vec<Event> {
    let mut events = Vec::new();
    while events.len() < count || at.is_empty() {
        let message = tokio::time::timeout(HANG, stream.message()).await.expect("a message");
        let message = message.unwrap().unwrap();
        for ChainPosition { chain, sequence } in message.positions {
            at.insert(chain, sequence);
        }
        if let Some(event) = message.event {
            at.insert(event.chain.clone(), event.sequence);
            events.push(event);
        }
    }
    events
}

/// B23: a server that stops ends the stream with UNAVAILABLE and ErrorInfo, and a stream that is
/// opened with the positions reached has the events since then, once and in order.
#[tokio::test]
async fn a_stream_continues_after_its_positions() {
    let mut server = TestServer::start().await;
    let token = server.admin_token().await;
    let mark = server.rpc_target("before", "shop").await;
    let mut at = BTreeMap::new();
    let mut stream = open(&server, &at).await.unwrap();
    assert_eq!(read(&mut stream, &mut at, 0).await, []);
    for rpc in [Rpc::UpdateClient, Rpc::DisableClient] {
        server.call_rpc(rpc, &token, &mark).await.unwrap();
    }
    let mut seen = read(&mut stream, &mut at, 2).await;
    server.end().await;
    let ended = tokio::time::timeout(HANG, stream.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!((ended.code(), reason(&ended)), (Code::Unavailable, "SERVER_STOPPING".to_owned()));

    let server = server.restart().await;
    let token = server.admin_token().await;
    for rpc in [Rpc::EnableClient, Rpc::DisableClient] {
        server.call_rpc(rpc, &token, &mark).await.unwrap();
    }
    let mut stream = open(&server, &at).await.unwrap();
    server.call_rpc(Rpc::EnableClient, &token, &mark).await.unwrap();
    seen.extend(read(&mut stream, &mut at, 3).await);
    let filter = EventFilter { action: "client.".to_owned(), ..EventFilter::default() };
    let mut all = server.trail(filter).await;
    all.truncate(5);
    all.reverse();
    assert_eq!(seen, all);
}

/// A request has room for a position of each of many chains, as pods with names of their own leave
/// them behind.
#[tokio::test]
async fn positions_of_many_chains_fit_into_a_request() {
    let server = TestServer::start().await;
    let mut at = BTreeMap::new();
    read(&mut open(&server, &at).await.unwrap(), &mut at, 0).await;
    at.extend((0..2_000).map(|n| (format!("{n:04}{}", "n".repeat(60)), i64::MAX - n)));
    let token = server.admin_token().await;
    let mark = server.rpc_target("before", "shop").await;
    let mut stream = open(&server, &at).await.unwrap();
    server.call_rpc(Rpc::UpdateClient, &token, &mark).await.unwrap();
    let events = read(&mut stream, &mut BTreeMap::new(), 1).await;
    assert!(events[0].action.starts_with("client."), "{events:?}");
}

/// A position that its chain does not reach is refused, so that nothing is left out unnoticed.
#[tokio::test]
async fn positions_of_another_store_are_refused() {
    let server = TestServer::start().await;
    let chain = server.trail(EventFilter::default()).await[0].chain.clone();
    for (chain, sequence, field) in [
        (chain.as_str(), 1_000_000, "after"),
        (chain.as_str(), -1, "after.sequence"),
        ("", 1, "after.chain"),
    ] {
        let after = BTreeMap::from([(chain.to_owned(), sequence)]);
        assert_eq!(blamed(&open(&server, &after).await.unwrap_err()), field);
    }
    // A chain that is not named begins with its first record.
    let after = BTreeMap::from([("gone".to_owned(), 7)]);
    let mut stream = open(&server, &after).await.unwrap();
    let first = read(&mut stream, &mut BTreeMap::new(), 1).await;
    assert_eq!(first[0].action, "client.created");
}
