//! The primary is gone, without a word or with one.

use super::{Stage, s};
use crate::{
    fleet::{nodes::Plan, traffic::Load},
    support::{replica::Options, seed::long},
};

/// M1: kill -9 of the primary. Nothing acknowledged is lost; with our election settings changes go
/// on within 5 s, or 7 where the first vote is lost; every call ends by its deadline and fails only
/// with UNAVAILABLE.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn a_primary_that_is_killed() {
    let mut stage = Stage::open("m1-killed").await;
    for _ in 0..if long() { 20 } else { 1 } {
        stage.work(500, 2_000).await;
        kill(&mut stage, "M1: kill -9 of the primary").await;
    }
    let told = stage.close().await;
    assert!(told.figures[0].failed > 0, "nobody noticed");
    told.goes_on_within(s(7), "M1");
}

/// M1 with mongod's own election settings: within 13 s, or twice that where the first vote is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn a_primary_that_is_killed_in_a_set_that_takes_its_time() {
    let options = Options { defaults: true, ..Options::default() };
    let mut stage = Stage::with(Plan::new("m1-killed-defaults", 2), options, Load::default()).await;
    for _ in 0..if long() { 5 } else { 1 } {
        stage.work(500, 2_000).await;
        kill(&mut stage, "M1: the same, mongod's election settings").await;
    }
    let told = stage.close().await;
    told.goes_on_within(s(25), "M1");
}

async fn kill(stage: &mut Stage, name: &str) {
    stage
        .fault(name, s(2), async |stage| {
            let primary = stage.set.primary().await;
            stage.set.kill(primary);
            stage.set.next_primary(primary).await;
            stage.work(500, 3_000).await;
            stage.set.restart(primary).await;
            stage.set.settled().await;
        })
        .await;
}

const STEP_DOWN: &str = "M3: stepDown";
const IN_TURN: &str = "M3: rolling restart";

/// M3: the primary hands over, again and again; then every member is stopped and started in turn.
/// After a primary hands over, changes go on within 4 s, and no call fails twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn a_primary_that_hands_over() {
    let mut stage = Stage::open("m3-handed-over").await;
    for _ in 0..if long() { 20 } else { 1 } {
        stage.work(500, 1_500).await;
        let hand_over = async |stage: &mut Stage| {
            stage.set.step_down().await;
            stage.set.settled().await;
        };
        stage.fault(STEP_DOWN, s(2), hand_over).await;
    }
    for member in 0..3 {
        let restart = async |stage: &mut Stage| {
            stage.set.stop_cleanly(member).await;
            stage.set.restart(member).await;
            stage.set.settled().await;
        };
        stage.fault(IN_TURN, s(2), restart).await;
    }
    let told = stage.close().await;
    told.goes_on_within(s(4), STEP_DOWN);
    // A handing over that does not come off is left to the election's clock, as after a kill.
    told.goes_on_within(s(7), IN_TURN);
    told.goes_on_with_one_retry(STEP_DOWN);
    // Where all of them restart that is printed, and not promised.
    told.failed_twice(IN_TURN);
}
