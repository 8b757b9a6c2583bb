//! Members that are there and silent, or slow, or too few.

use std::time::Duration;

use super::{Stage, s, within};
use crate::{
    fleet::history::{Call, Verb},
    support::{process::pause, seed::long},
};

/// M2: the primary is stopped with SIGSTOP: its connections stay and say nothing. Calls end by
/// their deadline, changes go on with another primary within 10 s, of which MongoDB itself takes 6
/// to 7, or 14 where the first vote is lost; the one that wakes up again has acknowledged nothing
/// meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn a_primary_that_freezes() {
    let mut stage = Stage::open("m2-frozen").await;
    for _ in 0..if long() { 5 } else { 1 } {
        stage.work(500, 2_000).await;
        let freeze = async |stage: &mut Stage| {
            let primary = stage.set.primary().await;
            stage.set.pause(primary);
            if long() {
                pause(s(30)).await;
            } else {
                stage.set.next_primary(primary).await;
                stage.scene.goes_on().await;
            }
            stage.set.resume(primary);
            stage.set.settled().await;
        };
        stage.fault("M2: SIGSTOP of the primary", s(3), freeze).await;
    }
    let told = stage.close().await;
    assert!(told.figures[0].failed > 0, "nobody noticed");
    told.goes_on_within(s(14), "M2");
}

/// M2: asleep for less than an election takes, and awake again with all that was sent to it
/// meanwhile: what comes late is done once or not at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn a_primary_that_nods_off() {
    let mut stage = Stage::open("m2-nods").await;
    for _ in 0..if long() { 100 } else { 2 } {
        stage.work(200, 1_000).await;
        let nod = async |stage: &mut Stage| {
            let primary = stage.set.primary().await;
            stage.set.pause(primary);
            stage.work(300, 3_500).await;
            stage.set.resume(primary);
            stage.set.settled().await;
        };
        stage.fault("M2: SIGSTOP for up to 3.5 s", s(4), nod).await;
    }
    stage.close().await;
}

/// M5: two of three members are killed. Nothing is acknowledged, and everything is again within 15
/// s of a majority.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn a_majority_that_is_gone() {
    const NAME: &str = "M5: two of three killed";
    let mut stage = Stage::open("m5-majority").await;
    stage.work(500, 2_000).await;
    let primary = stage.set.primary().await;
    let others = [(primary + 1) % 3, (primary + 2) % 3];
    let begin = stage.scene.fleet.recorder.now();
    others.into_iter().for_each(|member| stage.set.kill(member));
    // What was on its way when they died may have been kept before that.
    let since = stage.scene.fleet.recorder.now() + 500_000;
    stage.lasts(s(30)).await;
    stage.scene.fleet.recorder.fault(NAME, None, begin, within(s(15)));
    for member in others {
        stage.set.restart(member).await;
    }
    stage.set.settled().await;
    stage.recovers(s(15)).await;
    let told = stage.close().await;
    let mut acknowledged = told.done_during(NAME);
    acknowledged.retain(|call| told.took_a_write(call) && call.start > since);
    assert!(acknowledged.is_empty(), "acknowledged by one of three: {acknowledged:?}");
    assert!(told.figures[0].failed > 0, "nobody noticed");
}

/// Changes that show that work goes on.
const MANY: usize = 20;

/// M9: every sync of the primary takes 200 ms longer, then every sync of a secondary. Calls end by
/// their deadline, the fast pair goes on, and memory stays within its bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn a_disk_that_is_slow() {
    let mut stage = Stage::open("m9-slow").await;
    for (name, of) in
        [("M9: primary's syncs take 200 ms", 0), ("M9: a secondary's syncs take 200 ms", 1)]
    {
        let slow = async |stage: &mut Stage| {
            let member = (stage.set.primary().await + of) % 3;
            stage.set.delay_sync(member, Duration::from_millis(200)).await;
            if long() {
                pause(s(60)).await;
            } else {
                let is_change = |call: &Call| call.verb != Verb::Introspect && call.outcome.is_ok();
                let recorder = &stage.scene.fleet.recorder;
                recorder.calls(recorder.now(), MANY + 1, is_change).await;
            }
            stage.set.delay_sync(member, Duration::ZERO).await;
        };
        stage.fault(name, s(3), slow).await;
    }
    let told = stage.close().await;
    for figures in &told.figures {
        let done = told
            .done_during(&figures.name)
            .iter()
            .filter(|call| call.verb != Verb::Introspect)
            .count();
        assert!(done > MANY, "{done} changes: {figures}");
    }
}
