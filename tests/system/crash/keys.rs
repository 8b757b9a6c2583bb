//! kill -9 in the life of the signing keys.

use std::{collections::HashSet, time::Duration};

use jeton::proto::admin::KeyState;

use crate::{
    crash::callers::Admin,
    support::{
        process::{Home, pause},
        seed::{Chance, long},
    },
};

/// K07: whenever the server is killed while keys are rotated, there is exactly one key that signs
/// when it is back, none of those it had told of is missing, and tokens of the keys before stand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_exactly_one_signing_key_after_every_kill() {
    let mut chance = Chance::new();
    let rounds = if long() { 100 } else { 12 };
    // A prepared key signs one second after it was published: phases pass while the test looks on.
    let home = Home::patient().setting("JETON_KEYS__PUBLISH_AHEAD_SECONDS", "1");
    let mut server = home.start();
    let mut admin = Admin::new(server.secret.as_deref().unwrap(), server.connect().await).await;
    let mut caller = admin.registered().await;
    let mut tokens = Vec::new();
    let mut signers = HashSet::new();
    for round in 0..rounds {
        let known: HashSet<String> = admin.keys().await.into_iter().map(|key| key.kid).collect();
        let (rotating, rotation) = (admin.clone(), chance.within(0..4));
        let rotating = tokio::spawn(async move {
            let mut told = HashSet::new();
            for _ in 0..rotation {
                let Ok(keys) = rotating.rotate().await else { break };
                told.extend(keys.into_iter().map(|key| key.kid));
            }
            told
        });
        // Sometimes in the middle of a rotation, sometimes between its phases.
        pause(Duration::from_millis(if round % 2 == 0 {
            chance.within(0..10)
        } else {
            chance.within(0..1_500)
        }))
        .await;
        server.kill();
        let told = rotating.await.unwrap();

        server = home.start();
        let channel = server.connect().await;
        (admin, caller) = (admin.over(channel.clone()), caller.over(channel));
        let keys = admin.keys().await;
        let active: Vec<_> = keys.iter().filter(|key| key.state() == KeyState::Active).collect();
        assert_eq!(active.len(), 1, "round {round}: {keys:?}");
        assert!(
            keys.iter().filter(|key| key.state() == KeyState::Prepared).count() <= 1,
            "round {round}: {keys:?}"
        );
        let here: HashSet<String> = keys.iter().map(|key| key.kid.clone()).collect();
        assert!(
            known.union(&told).all(|kid| here.contains(kid)),
            "round {round}: {known:?} and {told:?} were told, {keys:?}"
        );
        tokens.push(caller.token(&[]).await.unwrap().access_token);
        assert!(admin.caller.active(&tokens).await.iter().all(|&active| active), "round {round}");
        signers.extend(active.iter().map(|key| key.kid.clone()));
    }
    admin.verify(None).await;
    assert!(signers.len() > 1, "no rotation was ever finished");
}
