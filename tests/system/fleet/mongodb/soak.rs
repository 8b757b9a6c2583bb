//! Everything, at random (C6).

use std::time::Duration;

use tokio::time::Instant;

use super::{Stage, s};
use crate::{
    fleet::{nodes::Plan, traffic::Load},
    support::{
        process::pause,
        replica::{Cut, Options},
        seed::long,
    },
};

/// C6: faults of every kind in an order that the seed decides, with pauses to recover in between,
/// three of them, or for half an hour: every promise is kept, and memory does not creep.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn a_long_time_in_which_everything_breaks() {
    let plan = Plan::new("c6-soak", 2).on(|run| run.growth = long().then_some(1_024));
    let mut stage = Stage::with(plan, Options::default(), Load::default()).await;
    let until = Instant::now() + s(1_800);
    for round in 0.. {
        if if long() { Instant::now() > until } else { round == 3 } {
            break;
        }
        stage.work(500, 3_000).await;
        let kind = stage.scene.chance.within(0..8);
        if kind == 7 {
            let number = usize::try_from(stage.scene.chance.within(0..2)).unwrap();
            let fleet = stage.scene.fleet.clone();
            let node = fleet.node(number);
            let begin = fleet.recorder.now();
            node.kill();
            node.restart();
            fleet.recorder.fault("S2: kill -9 of a node", Some(&node.name), begin, s(3));
            continue;
        }
        let name = NAMES[usize::try_from(kind).unwrap()];
        stage.fault(name, s(6), async |stage| stage.break_something(kind).await).await;
    }
    stage.close().await;
}

const NAMES: [&str; 7] = [
    "C6: kill -9 of the primary",
    "C6: SIGSTOP of the primary",
    "C6: stepDown",
    "C6: the primary is cut off from the members",
    "C6: the primary is cut off from the nodes",
    "C6: answers are lost",
    "C6: slow syncs",
];

impl Stage {
    async fn break_something(&mut self, kind: u64) {
        let primary = self.set.primary().await;
        match kind {
            0 => {
                self.set.kill(primary);
                self.work(500, 4_000).await;
                self.set.restart(primary).await;
            }
            1 => {
                self.set.pause(primary);
                self.work(200, 6_000).await;
                self.set.resume(primary);
            }
            2 => drop(self.set.step_down().await),
            3 | 4 => {
                self.set.cut(if kind == 3 { Cut::Members(primary) } else { Cut::Clients(primary) });
                self.work(500, 6_000).await;
                self.set.heal();
            }
            5 => {
                for _ in 0..5 {
                    self.set.reset(Cut::Clients(primary));
                    self.work(50, 300).await;
                }
            }
            _ => {
                self.set.delay_sync(primary, Duration::from_millis(100)).await;
                pause(s(if long() { 4 } else { 2 })).await;
                self.set.delay_sync(primary, Duration::ZERO).await;
            }
        }
        self.set.settled().await;
    }
}
