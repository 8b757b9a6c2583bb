//! The server does what it is told and says that it cannot promise it, or says nothing.

use mongodb::bson::{Document, doc};

use super::{Stage, s};
use crate::{history::Verb, process::pause, replica::Cut, seed::long};

/// Which verbs cannot be acknowledged while a command is not.
const COMMANDS: [(&str, &[Verb]); 3] = [
    // Opening a family, and the record of every change.
    ("insert", &[Verb::Token, Verb::Refresh, Verb::Revoke, Verb::RevokeAll, Verb::CreateClient, Verb::DisableClient]),
    ("findAndModify", &[Verb::Refresh, Verb::Revoke, Verb::RevokeAll]),
    // Counters, heartbeats, outboxes.
    ("update", &[]),
];

impl Stage {
    async fn fails(&mut self, name: &str, seconds: u64, point: Document) {
        let fail = async |stage: &mut Self| {
            let primary = stage.set.primary().await;
            stage.set.fail_command(primary, doc! { "mode": "alwaysOn", "data": point }).await;
            pause(s(seconds)).await;
            stage.set.clear_failpoints().await;
        };
        self.fault(name, s(3), fail).await;
    }
}

/// M6: the write is made, and the majority does not confirm it: with 64, the wait for it was too long, with 91, the server is
/// ending. No verb answers OK that could not be confirmed; what was done is done with its record, and a retry comes out right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn a_write_that_the_majority_does_not_confirm() {
    let mut stage = Stage::open("m6-unconfirmed").await;
    let seconds = if long() { 20 } else { 3 };
    for code in [64, 91] {
        for (command, _) in COMMANDS {
            let concern = doc! { "code": code, "errmsg": "not confirmed" };
            let point = doc! { "failCommands": [command], "writeConcernError": concern };
            stage.fails(&format!("M6: {command} is not confirmed ({code})"), seconds, point).await;
        }
    }
    let told = stage.close().await;
    for code in [64, 91] {
        for (command, verbs) in COMMANDS {
            let name = format!("M6: {command} is not confirmed ({code})");
            let done = told.done_during(&name);
            let mut fault = told.history.faults.iter().filter(|fault| fault.name == name);
            // From when on the failpoint is set for certain, to when it is at the earliest taken away.
            let (since, until) =
                fault.next().map(|fault| (fault.begin + 1_000_000, fault.begin + seconds * 1_000_000)).unwrap();
            let wrong: Vec<_> =
                done.into_iter().filter(|call| verbs.contains(&call.verb) && call.start > since && call.end < until).collect();
            assert!(wrong.is_empty(), "{name}, and acknowledged: {wrong:?}");
            assert!(verbs.is_empty() || told.of(&name).failed > 0, "{name}: nobody noticed");
        }
    }
}

/// M6, M7: the server refuses before it does anything: not primary any more, or by closing the connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn a_server_that_hangs_up() {
    let mut stage = Stage::open("m7-hangs-up").await;
    let seconds = if long() { 20 } else { 3 };
    let commands = ["insert", "findAndModify", "update", "find"];
    let points = [
        ("M7: connections are closed", doc! { "failCommands": commands.as_slice(), "closeConnection": true }),
        ("M6: NotWritablePrimary", doc! { "failCommands": commands.as_slice(), "errorCode": 10_107 }),
    ];
    for (name, point) in points {
        stage.fails(name, seconds, point).await;
    }
    let told = stage.close().await;
    assert!(told.figures.iter().all(|figures| figures.failed > 0), "nobody noticed: {:?}", told.figures);
}

/// M7: the write is made and its answer is lost: replies are held, then connections end. Whoever asks again, driver or caller,
/// does not do it twice: one successor, one record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn an_answer_that_is_lost() {
    let mut stage = Stage::open("m7-lost").await;
    let lose = async |stage: &mut Stage| {
        for _ in 0..if long() { 300 } else { 30 } {
            let primary = stage.set.primary().await;
            stage.set.cut(Cut::Clients(primary));
            stage.work(5, 40).await;
            stage.set.reset(Cut::Clients(primary));
            stage.set.heal();
            stage.work(100, 500).await;
        }
    };
    stage.fault("M7: answers are lost with their connections", s(3), lose).await;
    stage.close().await;
}
