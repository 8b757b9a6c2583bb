//! Nodes whose clocks differ (C2).

use std::{fs, path::PathBuf};

use super::{Stage, s};
use crate::{
    fleet::{history::SECOND, nodes::Plan, traffic::Load},
    support::{process::pause, replica::Options, seed::long},
};

/// Its place on Debian.
fn faketime() -> PathBuf {
    let mut places = fs::read_dir("/usr/lib")
        .unwrap()
        .flatten()
        .map(|entry| entry.path().join("faketime/libfaketime.so.1"));
    places.find(|place| place.exists()).expect("needs Debian's libfaketime: see .ci/run")
}

/// C2: one node is 30 s ahead and the other 30 s behind. What one issues the other takes, what one
/// ends the other refuses, a retry on the other node gets the same successor: nothing differs but
/// the edge of a token's life.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn nodes_whose_clocks_are_a_minute_apart() {
    let preload = format!("LD_PRELOAD={}", faketime().display());
    let plan = Plan::new("c2-skewed", 2)
        .with(move |number, home| {
            let skew = if number == 1 { "FAKETIME=+30s" } else { "FAKETIME=-30s" };
            home.by_way_of(&["env", &preload, "FAKETIME_DONT_FAKE_MONOTONIC=1", skew])
        })
        .on(|run| run.leeway = 61 * SECOND);
    let stage = Stage::with(plan, Options::default(), Load::default()).await;
    pause(s(if long() { 300 } else { 4 })).await;
    stage.close().await;
}
