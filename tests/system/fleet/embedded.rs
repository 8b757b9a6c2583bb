//! One node on its own store: what a fleet promises, one node promises, and the recorder and the
//! judge are tried on it.

use std::time::Duration;

use crate::{
    fleet::{history::History, nodes::Plan, scene::FleetRun, traffic::Load, verdict},
    support::{process::pause, seed::long},
};

/// S2, I1 to I10: a node that is killed and started again under load keeps every promise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_keeps_every_promise() {
    let mut scene = FleetRun::open(Plan::new("embedded-killed", 1), Load::default()).await;
    for _ in 0..if long() { 20 } else { 2 } {
        scene.work(500, 1_500).await;
        let node = scene.fleet.node(0);
        let begin = scene.fleet.recorder.now();
        node.kill();
        node.restart();
        scene.fleet.recorder.fault(
            "kill -9 of a node",
            Some(&node.name),
            begin,
            Duration::from_secs(2),
        );
    }
    pause(Duration::from_secs(3)).await;
    let told = scene.close(&[]).await;
    assert!(told.figures[0].failed > 0, "nobody noticed");
}

/// Judges a history that was kept, by the path in `JETON_TEST_HISTORY`.
#[test]
#[ignore = "needs a history: JETON_TEST_HISTORY=<file>"]
fn a_history_that_was_kept_is_judged_again() {
    let history = History::read(
        std::env::var("JETON_TEST_HISTORY").expect("JETON_TEST_HISTORY names a file").as_ref(),
    );
    let found = verdict::judge(&history);
    for violation in &found {
        println!("{violation}");
    }
    assert!(found.is_empty(), "{} violations", found.len());
}
