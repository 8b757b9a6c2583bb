//! The stream of VerifyTrail: its progress, its ends, and what it does not depend on.

use std::time::Duration;

use jeton::proto::admin::{
    ChainState, ChainVerdict, KnownHead, VerifyTrailRequest, VerifyTrailResponse,
};
use tonic::{Code, Request, Status, Streaming};

use crate::support::{
    faulty::Side,
    server::{TestServer, bearer, blamed, prepare, reason},
    until::{HANG, until},
};

type Reports = Streaming<VerifyTrailResponse>;

async fn next(reports: &mut Reports) -> Result<Option<VerifyTrailResponse>, Status> {
    tokio::time::timeout(HANG, reports.message()).await.expect("a report")
}

/// Reads to the result: that and the results of all chains.
async fn result(reports: &mut Reports) -> Result<(VerifyTrailResponse, Vec<ChainVerdict>), Status> {
    let mut chains = Vec::new();
    loop {
        let report = next(reports).await?.expect("a result before the end");
        chains.extend(report.chains.clone());
        if report.state() != ChainState::Unspecified {
            assert_eq!(next(reports).await?, None);
            return Ok((report, chains));
        }
    }
}

async fn verified(
    server: &TestServer,
    request: VerifyTrailRequest,
) -> Result<(VerifyTrailResponse, Vec<ChainVerdict>), Status> {
    let request = server.as_admin(request).await;
    result(&mut server.audit().verify_trail(request).await?.into_inner()).await
}

fn head(verdict: &ChainVerdict) -> KnownHead {
    KnownHead {
        chain: verdict.chain.clone(),
        sequence: verdict.head_sequence,
        hash: verdict.head_hash.clone(),
    }
}

/// B05: the stream has the results of VerifyChain, and continues after a head that is on the chain
/// only.
#[tokio::test]
async fn a_stream_has_the_result_of_each_chain() {
    let server = TestServer::start().await;
    server.rpc_target("orders", "shop").await;
    let (last, chains) = verified(&server, VerifyTrailRequest::default()).await.unwrap();
    assert_eq!((last.state(), last.checked), (ChainState::Intact, last.total));
    assert_eq!((chains.len(), chains[0].checked), (1, last.checked));
    let once = server.verify_chain().await;
    assert_eq!(once.chains[0].chain, chains[0].chain);

    let from = head(&chains[0]);
    let after = |from: KnownHead| VerifyTrailRequest {
        start_after: vec![from],
        ..VerifyTrailRequest::default()
    };
    let (last, newer) = verified(&server, after(from.clone())).await.unwrap();
    assert_eq!(last.state(), ChainState::Intact);
    assert_eq!(newer[0].checked, newer[0].head_sequence - from.sequence);
    assert_eq!((last.checked, last.total), (newer[0].checked, newer[0].checked));
    let other = KnownHead { hash: "ab".repeat(32), ..from.clone() };
    let (last, broken) = verified(&server, after(other)).await.unwrap();
    assert_eq!(last.state(), ChainState::Broken);
    assert_eq!(broken[0].first_bad_sequence, from.sequence);
    let behind = VerifyTrailRequest { after_chain: from.chain.clone(), ..Default::default() };
    let (last, none) = verified(&server, behind).await.unwrap();
    assert_eq!((last.state(), none.len()), (ChainState::Intact, 0));

    let gone = VerifyTrailRequest { chain: "gone".to_owned(), ..Default::default() };
    assert_eq!(reason(&verified(&server, gone).await.unwrap_err()), "NOT_FOUND");
    for (bad, field) in [
        (KnownHead { sequence: 0, ..from.clone() }, "start_after.sequence"),
        (KnownHead { hash: "x".to_owned(), ..from.clone() }, "start_after.hash"),
        (KnownHead { chain: String::new(), ..from.clone() }, "start_after.chain"),
    ] {
        assert_eq!(blamed(&verified(&server, after(bad)).await.unwrap_err()), field);
    }
    let many = |count: usize| VerifyTrailRequest {
        start_after: vec![from.clone(); count],
        known: vec![from.clone(); count],
        ..VerifyTrailRequest::default()
    };
    assert_eq!(verified(&server, many(2_000)).await.unwrap().0.state(), ChainState::Intact);
    assert_eq!(blamed(&verified(&server, many(10_001)).await.unwrap_err()), "known");
}

/// B05: a verification that takes longer than the caller's deadline and the store's answer goes on,
/// and reports that it does.
#[tokio::test]
async fn a_stream_outlives_the_deadline_of_a_call() {
    let (server, store) = prepare().await.served().await;
    let token = server.admin_token().await;
    let held = store.hold("chain", Side::Before);
    let mut reports = loop {
        let mut request = bearer(VerifyTrailRequest::default(), &token);
        request.set_timeout(Duration::from_secs(1));
        match server.audit().verify_trail(request).await {
            Ok(reports) => break reports.into_inner(),
            // On a busy machine.
            Err(status) if status.code() == Code::DeadlineExceeded => {}
            Err(status) => panic!("{status}"),
        }
    };
    held.arrived().await;
    // A report a second.
    for _ in 0..4 {
        let report = next(&mut reports).await.unwrap().unwrap();
        assert_eq!(report.state(), ChainState::Unspecified);
    }
    held.release();
    assert_eq!(result(&mut reports).await.unwrap().0.state(), ChainState::Intact);
}

/// A stream ends with an error before its result if the server stops, or its token is no longer
/// valid, and never with OK.
#[tokio::test]
async fn a_stream_without_a_result_ends_with_an_error() {
    let (mut server, store) = prepare().await.served().await;
    let (watcher, token) = server.client_with_token("default", &["jeton:admin:audit"]).await;
    let held = store.hold("chain", Side::Before);
    let request = bearer(VerifyTrailRequest::default(), &token);
    let mut reports = server.audit().verify_trail(request).await.unwrap().into_inner();
    held.arrived().await;
    server.disable(&watcher).await;
    held.release();
    let ended = result(&mut reports).await.unwrap_err();
    assert_eq!((ended.code(), reason(&ended)), (Code::Unauthenticated, "INVALID_TOKEN".to_owned()));

    let held = store.hold("chain", Side::Before);
    let request = server.as_admin(VerifyTrailRequest::default()).await;
    let mut reports = server.audit().verify_trail(request).await.unwrap().into_inner();
    held.arrived().await;
    server.end().await;
    let ended = result(&mut reports).await.unwrap_err();
    assert_eq!((ended.code(), reason(&ended)), (Code::Unavailable, "SERVER_STOPPING".to_owned()));
    held.release();
}

/// Some streams verify at a time; one whose caller has gone makes room.
#[tokio::test]
async fn streams_that_verify_are_bounded() {
    let (server, store) = prepare().await.served().await;
    let token = server.admin_token().await;
    let begin = async || {
        let request: Request<_> = bearer(VerifyTrailRequest::default(), &token);
        server.audit().verify_trail(request).await.map(tonic::Response::into_inner)
    };
    let mut running = Vec::new();
    for _ in 0..3 {
        let held = store.hold("chain", Side::Before);
        running.push((begin().await.unwrap(), held));
        running.last().unwrap().1.arrived().await;
    }
    let refused = begin().await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused)),
        (Code::ResourceExhausted, "SLOW_DOWN".to_owned())
    );
    running.pop();
    until(async || begin().await.is_ok()).await;
}
