//! The network is cut: between nodes and members, between members, in one direction, again and
//! again.

use std::{fs, path::Path, time::Duration};

use mongodb::bson::{Document, doc};
use tokio::time::{Instant, timeout};

use super::{Stage, s};
use crate::{
    fleet::{
        history::{Call, Outcome, SECOND, Verb},
        nodes::STALE,
    },
    support::{process::pause, replica::Cut, seed::long},
};

impl Stage {
    /// Cuts a way to or from the primary for so long; in the short form, until what must fail has
    /// failed, or for two seconds where nothing need.
    async fn cut(&mut self, name: &str, way: fn(usize) -> Cut, time: Duration) {
        let cut = async |stage: &mut Self| {
            let primary = stage.set.primary().await;
            stage.set.cut(way(primary));
            match name {
                NODES | MEMBERS => stage.lasts(time).await,
                _ => pause(if long() { time } else { s(2) }).await,
            }
            stage.set.heal();
            stage.set.settled().await;
        };
        self.fault(name, s(4), cut).await;
        self.work(200, 800).await;
    }
}

const NODES: &str = "M4: nodes cannot reach the primary";
const MEMBERS: &str = "M4: members cannot reach the primary";

/// M4: the primary is cut off from nodes alone, from members alone, in one direction, and every
/// other second. No token has two successors, what was acknowledged on one side holds on the other,
/// and changes go on within 20 s, or 6 s of the end of a cut that leaves no other way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn a_primary_that_is_cut_off() {
    let mut stage = Stage::open("m4-cut-off").await;
    let time = s(30);
    stage.work(500, 1_500).await;
    stage.cut(NODES, Cut::Clients, time).await;
    stage.cut(MEMBERS, Cut::Members, time).await;
    stage.cut("M4: the primary does not hear the members", Cut::Incoming, time).await;
    stage.cut("M4: the members do not hear the primary", Cut::Outgoing, time).await;
    let flapping = async |stage: &mut Stage| {
        let primary = stage.set.primary().await;
        for _ in 0..if long() { 15 } else { 2 } {
            stage.set.cut(Cut::Members(primary));
            pause(s(1)).await;
            stage.set.heal();
            pause(s(1)).await;
        }
        stage.set.settled().await;
    };
    stage.fault("M4: flapping every second", s(4), flapping).await;
    let told = stage.close().await;
    // The others may pass unnoticed: where one direction is cut another primary may be there before
    // a deadline is over, and a second of silence ends before any is.
    for name in [NODES, MEMBERS] {
        assert!(told.of(name).failed > 0, "{name}: nobody noticed");
    }
    for figures in &told.figures {
        let bound = match figures.name.as_str() {
            // No other primary is elected, and nothing goes on until there is a way to this one.
            NODES => time + s(6),
            // Cut off for long: see M8.
            _ => s(20),
        };
        told.goes_on_within(bound, &figures.name);
    }
}

/// Changes that show that work goes on.
const MANY: usize = 20;

/// M8: a primary that is alone with one node, while the others elect another and serve the other
/// node. The lonely one acknowledges nothing and its node judges nothing it cannot know; what the
/// others end stays ended everywhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn a_primary_that_does_not_know_it_is_none() {
    const NAME: &str = "M8: a stale primary and a node alone with it";
    // Members that are cut off from their primary by silence copy from it until a heartbeat has
    // timed out, and some seconds more: only then has the new one a majority, 7 s after the cut,
    // and the node with it some seconds later.
    let time = s(60);
    let mut stage = Stage::open("m8-stale").await;
    stage.work(500, 1_500).await;
    let pid = stage.scene.fleet.node(0).pid().unwrap();
    let (mut since, mut until) = (0, 0);
    let alone = async |stage: &mut Stage| {
        let primary = stage.set.primary().await;
        let others = [(primary + 1) % 3, (primary + 2) % 3];
        stage.set.cut(Cut::Members(primary));
        others.into_iter().for_each(|member| stage.set.cut(Cut::Process { pid, member }));
        let cut = Instant::now();
        let recorder = stage.scene.fleet.recorder.clone();
        // From when on nothing of before the cut is on its way any more.
        since = recorder.now() + SECOND;
        stage.set.next_primary(primary).await;
        println!("M8: another primary after {:?}", cut.elapsed());
        // A task of its own: the driver does not want its futures dropped.
        let writes = stage.set.client().await.database("harness").collection::<Document>("probe");
        let written = tokio::spawn(async move { writes.insert_one(doc! {}).await });
        println!(
            "M8: a write of MongoDB's own: {:?} after {:?}",
            timeout(time.saturating_sub(cut.elapsed()), written).await,
            cut.elapsed()
        );
        if long() {
            pause(time.saturating_sub(cut.elapsed())).await;
        } else {
            let other = stage.scene.fleet.node(1).name.clone();
            let is_change = |call: &Call| call.verb != Verb::Introspect && call.outcome.is_ok();
            let there = |call: &Call| call.node == other && is_change(call);
            recorder.calls(recorder.now(), MANY + 1, there).await;
            // The lonely node must have judged nothing for a while.
            pause(Duration::from_micros((since + STALE + SECOND).saturating_sub(recorder.now())))
                .await;
        }
        until = recorder.now();
        stage.set.heal();
        stage.set.settled().await;
    };
    stage.fault(NAME, s(5), alone).await;
    let told = stage.close().await;
    let on = |node: &str| {
        told.done_during(NAME).into_iter().filter(move |call| call.node == node).collect::<Vec<_>>()
    };
    let changes = |node: &str| {
        on(node).into_iter().filter(|call| call.verb != Verb::Introspect).collect::<Vec<_>>()
    };
    let mut lonely = changes("node-1");
    lonely.retain(|call| told.took_a_write(call) && call.start > since && call.end < until);
    assert!(lonely.is_empty(), "acknowledged by a primary without a majority: {lonely:?}");
    assert!(changes("node-2").len() > MANY, "the other node goes on");
    let blind: Vec<_> = on("node-1")
        .into_iter()
        .filter(|call| {
            call.verb == Verb::Introspect && call.start > since + STALE && call.end < until
        })
        .collect();
    assert!(blind.is_empty(), "judged without knowing: {blind:?}");
    let unknown = |code: &str| matches!(code, "UNAVAILABLE" | "DEADLINE_EXCEEDED");
    let failed = told.history.calls.iter().filter(|call| {
        matches!(&call.outcome, Outcome::Unknown { code, .. } if unknown(code))
            && call.node == "node-1"
    });
    assert!(failed.count() > 5, "nobody noticed");
}

/// M8: nothing in the store asks for less than the majority and its disks, whatever the address
/// says.
#[test]
fn no_source_of_the_store_asks_for_less_than_a_majority() {
    let mut paths = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/mongo")];
    let mut concerns = 0;
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            paths.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let weak = [
            "Acknowledgment::Nodes",
            "Acknowledgment::Custom",
            "WriteConcern::nodes",
            ".w(1)",
            ".w(0)",
            "\"w\": 0",
            "\"w\": 1",
            "\"j\": false",
            "journal(false)",
            "ReadConcern::local",
            "ReadConcern::available",
            "\"level\"",
            "Preference::Secondary",
            "Preference::Nearest",
            "Preference::PrimaryPreferred",
        ];
        for word in weak {
            assert!(!text.contains(word), "{} has {word}", path.display());
        }
        for (at, _) in
            text.match_indices("riteConcern\":").chain(text.match_indices("WriteConcern::builder"))
        {
            let rest: String = text[at..].chars().take(120).collect();
            assert!(rest.contains("ajority"), "{}: {rest}", path.display());
            concerns += 1;
        }
    }
    assert!(concerns > 0, "nobody asks for a write concern at all");
}
