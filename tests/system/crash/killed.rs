//! kill -9 under load.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{
    crash::{
        callers::Admin,
        writers::{Ledger, Writer},
    },
    support::{
        process::{Home, READY, pause},
        seed::{Chance, long},
    },
};

const WRITERS: usize = 8;

/// E1, S2: whatever was acknowledged to eight writers is there after each kill -9, tokens that were
/// revoked stay revoked, the audit trail verifies and goes on from what was known of it, and the
/// server is ready again at once. A call whose outcome was not heard comes out right when it is
/// made again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_to_kill_9() {
    let mut chance = Chance::new();
    let rounds = if long() { 200 } else { 25 };
    // A lost reply is asked for again only after the restart and all its checks.
    let home = Home::patient().setting("JETON_TOKEN__REFRESH_GRACE_SECONDS", "60");
    let mut server = home.start();
    let mut admin = Admin::new(server.secret.as_deref().unwrap(), server.connect().await).await;
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        writers.push(Writer::new(&admin, chance.split()).await);
    }
    let mut known = admin.verify(None).await;
    let mut all = Ledger::default();
    let mut slowest = Duration::ZERO;
    let mut round = 0;
    // More of them where the machine is slow, for the test to mean anything.
    while round < rounds || all.live.len() <= rounds || all.ended.len() <= rounds {
        assert!(
            round < 20 * rounds,
            "too little was written: {} tokens stand, {} ended",
            all.live.len(),
            all.ended.len()
        );
        round += 1;
        let killed = Arc::new(AtomicBool::new(false));
        let mut at_work = Vec::new();
        for mut writer in writers.drain(..) {
            if round.is_multiple_of(2) {
                writer.settle(server.connect().await).await;
            }
            at_work.push(tokio::spawn(writer.work(server.connect().await, killed.clone())));
        }
        pause(Duration::from_millis(chance.within(5..500))).await;
        killed.store(true, Ordering::SeqCst);
        server.kill();
        let mut acknowledged = Ledger::default();
        for task in at_work {
            let (writer, noted) = task.await.unwrap();
            writers.push(writer);
            acknowledged.merge(noted);
        }

        server = home.start();
        slowest = slowest.max(server.took);
        assert!(server.took < READY, "round {round}: ready after {:?}", server.took);
        admin = admin.over(server.connect().await);
        acknowledged.check(&mut admin, known.head_sequence).await;
        known = admin.verify(Some(&known)).await;
        all.merge(acknowledged);
    }
    all.check_tokens(&mut admin).await;
    let Ledger { live, ended, clients, .. } = &all;
    println!("{round} rounds, {} records; slowest start {slowest:?}", known.head_sequence);
    println!("{} tokens stand, {} ended, {} clients", live.len(), ended.len(), clients.len());
}
