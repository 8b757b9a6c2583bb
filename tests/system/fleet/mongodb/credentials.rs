//! The database does not let the nodes in any more (M13).

use futures_util::future::join_all;
use mongodb::bson::doc;
use tokio::time::timeout;

use super::{Stage, s};
use crate::{
    fleet::{nodes::Plan, traffic::Load},
    support::replica::{Cut, Options, PASSWORD, USER, until},
};

/// M13: the password is changed while the nodes run, and their connections end; then the
/// certificate of every member expires. Calls fail with UNAVAILABLE until the doors are open again,
/// and everything goes on by itself; the password is in no log, and the logs grow by errors only as
/// calls fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn doors_that_close() {
    let options = Options { auth: true, tls: true, ..Options::default() };
    let mut stage = Stage::with(Plan::new("m13-doors", 2), options, Load::default()).await;
    stage.scene.fleet.recorder.keep_secret(PASSWORD);
    let time = s(30);
    stage.work(500, 1_500).await;
    let locked_out = async |stage: &mut Stage| {
        password(stage, "another one").await;
        (0..3).for_each(|member| stage.set.reset(Cut::Clients(member)));
        stage.lasts(time).await;
        password(stage, PASSWORD).await;
    };
    stage.fault("M13: the password is another", s(8), locked_out).await;
    let expired = async |stage: &mut Stage| {
        join_all((0..3).map(|member| stage.set.expire_certificate(member))).await;
        let lasts = stage.lasts(time);
        tokio::pin!(lasts);
        // A connection that resumes a TLS session shows no certificate, so it is ended again until
        // none is left to resume.
        while timeout(s(1), &mut lasts).await.is_err() {
            (0..3).for_each(|member| stage.set.reset(Cut::Clients(member)));
        }
        for member in 0..3 {
            stage.set.renew_certificate(member).await;
        }
    };
    stage.fault("M13: certificates have expired", s(8), expired).await;
    let logs: Vec<(String, String)> =
        stage.scene.fleet.nodes.iter().map(|node| (node.name.clone(), node.home.log())).collect();
    let told = stage.close().await;
    assert!(
        told.figures.iter().all(|figures| figures.failed > 0),
        "nobody noticed: {:?}",
        told.figures
    );
    for (node, log) in logs {
        assert!(!log.contains(PASSWORD), "the password is in the log");
        let errors = log.lines().filter(|line| line.contains("ERROR")).count();
        let failed = told
            .history
            .calls
            .iter()
            .filter(|call| call.node == node && call.outcome.is_unknown())
            .count();
        println!(
            "M13: {node}: {errors} lines of errors, {} in all, {failed} calls failed",
            log.lines().count()
        );
        // What goes on in the background fails too; that the stream of changes broke off is said
        // once an outage.
        assert!(log.matches("change stream interrupted, reconnecting").count() <= 10, "{log}");
        assert!(errors <= failed + 50, "{node}: {errors} lines of errors over {failed} calls");
    }
}

/// Changes it, whoever is the primary now.
async fn password(stage: &Stage, password: &str) {
    until("another password", async || {
        let admin = stage.set.client().await.database("admin");
        admin.run_command(doc! { "updateUser": USER, "pwd": password }).await.is_ok()
    })
    .await;
}
