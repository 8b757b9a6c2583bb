//! The server does what it is told and says that it cannot promise it, or says nothing.

use mongodb::bson::{Document, doc};

use super::{Stage, s, within};
use crate::{
    fleet::{
        history::{Call, Named, SECOND, Verb},
        scene::Told,
    },
    support::{replica::Cut, seed::long},
};

/// Commands that write. The record of a change is inserted too, and no call waits for that.
const COMMANDS: [&str; 3] = ["insert", "findAndModify", "update"];

/// Command by which the change of a call is written: without it the call is not acknowledged. No
/// call waits for the updates of counters, heartbeats and outboxes.
fn command_of(call: &Call) -> &'static str {
    match (call.verb, &call.token) {
        (Verb::Refresh | Verb::CreateClient, _) => "update",
        (Verb::Revoke, Some(Named::Refresh { .. })) => "update",
        (Verb::RevokeAll | Verb::DisableClient, _) => "findAndModify",
        (Verb::Token | Verb::Revoke | Verb::Introspect, _) => "insert",
    }
}

impl Stage {
    /// Has commands of the primary fail for 20 s; in the short form, until a change has failed, and
    /// a little longer. Returns from when and until when they certainly did.
    async fn fails(&mut self, name: &str, point: Document) -> (u64, u64) {
        let (mut since, mut until) = (0, 0);
        let fail = async |stage: &mut Self| {
            let primary = stage.set.primary().await;
            stage.set.fail_command(primary, doc! { "mode": "alwaysOn", "data": point }).await;
            since = stage.scene.fleet.recorder.now();
            stage.lasts(s(20)).await;
            stage.work(500, 1_500).await;
            until = stage.scene.fleet.recorder.now();
            stage.set.clear_failpoints().await;
        };
        self.fault(name, s(3), fail).await;
        (since, until)
    }

    /// While this is `alwaysOn` no member copies anything from others; `off`, they go on. All of
    /// them, since whoever is the primary now may be none when it ends.
    async fn stop_copying(&self, mode: &str) {
        for member in 0..3 {
            let point = doc! { "configureFailPoint": "stopReplProducer", "mode": mode };
            self.set.command(member, point).await.unwrap();
        }
    }
}

/// M6: the write is made, and the majority does not confirm it: with 64, the wait for it was too
/// long, with 91, the server is ending. No verb answers OK whose change could not be confirmed;
/// what was done is done with its record, and a retry comes out right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn a_write_that_the_majority_does_not_confirm() {
    let mut stage = Stage::open("m6-unconfirmed").await;
    let mut points = Vec::new();
    for code in [64, 91] {
        for command in COMMANDS {
            let name = format!("M6: {command} is not confirmed ({code})");
            let concern = doc! { "code": code, "errmsg": "not confirmed" };
            let point = doc! { "failCommands": [command], "writeConcernError": concern };
            let (since, until) = stage.fails(&name, point).await;
            points.push((name, command, since, until));
        }
    }
    let told = stage.close().await;
    for (name, command, since, until) in points {
        let wrong: Vec<_> = told
            .done_during(&name)
            .into_iter()
            .filter(|call| command_of(call) == command && call.start > since && call.end < until)
            .filter(|call| told.took_a_write(call))
            .collect();
        assert!(wrong.is_empty(), "{name}, and acknowledged: {wrong:?}");
        assert!(told.of(&name).failed > 0, "{name}: nobody noticed");
    }
}

/// M6: the write is made, and the majority really does not get it: the other members are there, and
/// copy nothing. No change is acknowledged, whatever its verb; then the others catch up, and
/// everything goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn a_majority_that_does_not_copy() {
    const NAME: &str = "M6: the secondaries copy nothing";
    let mut stage = Stage::open("m6-uncopied").await;
    stage.work(500, 1_500).await;
    let recorder = stage.scene.fleet.recorder.clone();
    let begin = recorder.now();
    stage.stop_copying("alwaysOn").await;
    // What was on its way to them by then may have arrived.
    let since = recorder.now() + SECOND;
    stage.lasts(s(30)).await;
    let until = recorder.now();
    stage.stop_copying("off").await;
    stage.set.settled().await;
    recorder.fault(NAME, None, begin, within(s(8)));
    stage.recovers(s(8)).await;
    let told = stage.close().await;
    let mut acknowledged = told.done_during(NAME);
    acknowledged.retain(|call| told.took_a_write(call) && call.start > since && call.end < until);
    assert!(acknowledged.is_empty(), "acknowledged by one of three: {acknowledged:?}");
    assert!(told.of(NAME).failed > 0, "nobody noticed");
}

/// M6, M7: the server refuses before it does anything: not primary any more, or by closing the
/// connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn a_server_that_hangs_up() {
    let mut stage = Stage::open("m7-hangs-up").await;
    let commands = ["insert", "findAndModify", "update", "find"];
    let points = [
        (
            "M7: connections are closed",
            doc! { "failCommands": commands.as_slice(), "closeConnection": true },
        ),
        (
            "M6: NotWritablePrimary",
            doc! { "failCommands": commands.as_slice(), "errorCode": 10_107 },
        ),
    ];
    for (name, point) in points {
        stage.fails(name, point).await;
    }
    let told = stage.close().await;
    assert!(
        told.figures.iter().all(|figures| figures.failed > 0),
        "nobody noticed: {:?}",
        told.figures
    );
}

/// M7: the write is made and its answer is lost: replies are held, then connections end. Whoever
/// asks again, driver or caller, does not do it twice: one successor, one record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn an_answer_that_is_lost() {
    const NAME: &str = "M7: answers are lost with their connections";
    let mut stage = Stage::open("m7-lost").await;
    let lose = async |stage: &mut Stage| {
        for _ in 0..if long() { 300 } else { 20 } {
            let primary = stage.set.primary().await;
            stage.set.cut(Cut::Clients(primary));
            stage.work(5, 40).await;
            stage.set.reset(Cut::Clients(primary));
            stage.set.heal();
            stage.work(100, 500).await;
        }
    };
    stage.fault(NAME, s(3), lose).await;
    let told = stage.close().await;
    let (failed, repeated) = (told.of(NAME).failed, repeated(&told));
    println!("M7: {failed} calls failed, {repeated} were answered with what had been done before");
    assert!(failed + repeated > 0, "no answer was lost");
}

/// Number of refreshes that were answered with a successor that had been made for a call that never got
/// it. Two who refresh at once are answered alike without anything being lost: those do not count.
fn repeated(told: &Told) -> usize {
    let refreshes: Vec<_> =
        told.history.calls.iter().filter(|call| call.verb == Verb::Refresh).collect();
    let records =
        told.history.records.iter().filter(|record| record.action == "refresh_token.repeated");
    let answered =
        records.filter_map(|record| refreshes.iter().find(|call| call.request == record.request));
    let unheard = answered.filter(|call| {
        let mut others = refreshes
            .iter()
            .filter(|other| other.token == call.token && other.request != call.request);
        call.outcome.is_ok() && !others.any(|other| other.outcome.is_ok())
    });
    unheard.count()
}
