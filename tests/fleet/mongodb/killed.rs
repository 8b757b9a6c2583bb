//! The primary is gone, without a word or with one.

use super::{Stage, s, took};
use crate::seed::long;

/// M1: kill -9 of the primary. Nothing acknowledged is lost; with our election settings somebody is served again within 4 s; every
/// call ends by its deadline and fails only with UNAVAILABLE.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn a_primary_that_is_killed() {
    let mut stage = Stage::open("m1-killed").await;
    for _ in 0..if long() { 20 } else { 2 } {
        stage.work(500, 2_000).await;
        stage
            .fault("M1: kill -9 of the primary", s(2), async |stage| {
                let primary = stage.set.primary().await;
                stage.set.kill(primary);
                stage.set.next_primary(primary).await;
                stage.work(1_000, 3_000).await;
                stage.set.restart(primary).await;
                stage.set.settled().await;
            })
            .await;
    }
    let figures = stage.close().await;
    assert!(took(figures[0].gap()) <= s(4), "{figures:?}");
}
