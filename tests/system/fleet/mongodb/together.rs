//! Two nodes at once (C3): what they must agree on in the very moment.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::{Instant, interval};

use super::{Stage, s};
use crate::{
    fleet::{
        history::{Limit, Outcome, SECOND, Verb},
        nodes::Plan,
        recorder::{Caller, Failure, PATIENCE, named},
        traffic::Load,
    },
    support::{replica::Options, seed::long},
};

/// Of a store that nothing breaks: in the short form, which begins each call once, a busy machine
/// is given time for it, and none of its stalls brings an election about.
async fn calm(plan: Plan) -> Stage {
    let plan = plan.with(|_, home| match long() {
        true => home,
        false => home
            .setting("JETON_LIMITS__DEADLINE_SECONDS", "300")
            .setting("JETON_STORE__CALL_TIMEOUT_MS", "60000"),
    });
    Stage::with(plan, Options { calm: !long(), ..Options::default() }, LITTLE).await
}

/// A few callers in the background, and none that disturb.
const LITTLE: Load = Load { chains: 1, wide: 0, revokers: 0, judges: 1, administrators: 0 };

impl Stage {
    /// A client of one's own.
    async fn client(&self, id: &str, plan: &str) -> Caller {
        let fleet = &self.scene.fleet;
        fleet.recorder.create(fleet.node(0), &fleet.bearer, id, plan, None).await.unwrap()
    }
}

/// C3, R02, AUDIT TL7: one refresh token, a hundred times at once on two nodes: four get the same
/// successor, the others none; then it goes on, as long as one alone is given the next. R04: a node
/// that was killed with everything it remembered still refuses what was spent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn one_token_in_many_hands() {
    let stage = calm(Plan::new("c3-refresh", 2)).await;
    let fleet = stage.scene.fleet.clone();
    let recorder = &fleet.recorder;
    let caller = stage.client("racer", "standard").await;
    let mut grant = recorder.token(fleet.node(0), &caller).await.unwrap();
    for round in 0..if long() { 50 } else { 2 } {
        let hands =
            (0..100).map(|hand| recorder.refresh(fleet.node(hand % 2), &caller, &grant.refresh));
        let answers = join_all(hands).await;
        let mut successors: Vec<_> =
            answers.iter().flatten().map(|grant| named(&grant.refresh)).collect();
        successors.dedup();
        assert_eq!(successors.len(), 1, "round {round}");
        let given = answers.iter().flatten().count();
        assert!(given <= 4, "round {round}: {given}");
        grant = answers.into_iter().flatten().next().unwrap();
        grant = recorder.refresh(fleet.node(round % 2), &caller, &grant.refresh).await.unwrap();
    }
    let spent = grant.refresh.clone();
    grant = recorder.refresh(fleet.node(0), &caller, &spent).await.unwrap();
    grant = recorder.refresh(fleet.node(1), &caller, &grant.refresh).await.unwrap();
    for node in &fleet.nodes {
        let begin = recorder.now();
        node.kill();
        node.restart();
        recorder.fault("R04: kill -9 of a node", Some(&node.name), begin, s(3));
    }
    let mut refused = None;
    while refused.is_none() {
        refused = match recorder.refresh(fleet.node(0), &caller, &spent).await {
            Err(Failure::Refused(reason)) => Some(reason),
            Err(Failure::Unknown) => None,
            Ok(_) => panic!("what was spent is taken again"),
        };
    }
    assert_eq!(refused.as_deref(), Some("INVALID_GRANT"));
    assert!(
        recorder.refresh(fleet.node(1), &caller, &grant.refresh).await.is_err(),
        "its family has ended"
    );
    stage.close().await;
}

/// C3, R05: Refresh on one node races Revoke on the other: after the revocation is acknowledged
/// nothing of the family stands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn a_refresh_that_races_the_end_of_its_family() {
    let stage = calm(Plan::new("c3-races", 2)).await;
    let fleet = stage.scene.fleet.clone();
    let recorder = &fleet.recorder;
    let caller = stage.client("racer", "standard").await;
    let (mut rounds, mut refreshed) = (0, 0);
    // In the short form, until each has won some.
    let is_raced = |rounds: usize, refreshed: usize| {
        let few = refreshed.min(rounds - refreshed);
        if long() { rounds == 10_000 } else { rounds >= 20 && (few > 0 || rounds == 500) }
    };
    while !is_raced(rounds, refreshed) {
        let round = rounds;
        rounds += 1;
        let grant = recorder.token(fleet.node(round % 2), &caller).await.unwrap();
        let (one, other) = (fleet.node(round % 2), fleet.node((round + 1) % 2));
        let (next, ended) = tokio::join!(
            recorder.refresh(one, &caller, &grant.refresh),
            recorder.revoke(other, &caller, &grant.refresh)
        );
        ended.unwrap();
        assert!(
            !recorder.introspect(other, &fleet.first, &grant.access).await.unwrap(),
            "round {round}"
        );
        if let Ok(next) = next {
            refreshed += 1;
            assert!(
                !recorder.introspect(other, &fleet.first, &next.access).await.unwrap(),
                "round {round}"
            );
            assert!(recorder.refresh(one, &caller, &next.refresh).await.is_err(), "round {round}");
        }
    }
    println!("R05: {rounds} races, {refreshed} of them gave a token out before the end");
    assert!(refreshed > 0 && refreshed < rounds, "one of them always wins, so nothing was raced");
    stage.close().await;
}

/// C3, A08: nothing that can be done once is done twice: fifty who make the same client on two
/// nodes at once make one. (There are no assertions yet, whose ids the rule is written for.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn a_client_that_many_make() {
    let stage = calm(Plan::new("c3-makes", 2)).await;
    let fleet = stage.scene.fleet.clone();
    for round in 0..if long() { 50 } else { 2 } {
        let id = format!("taken-{round}");
        let make = |hand: usize| {
            fleet.recorder.create(fleet.node(hand % 2), &fleet.bearer, &id, "standard", None)
        };
        let made = join_all((0..50).map(make)).await;
        assert_eq!(made.iter().flatten().count(), 1, "round {round}");
        let caller = made.into_iter().flatten().next().unwrap();
        for node in &fleet.nodes {
            fleet.recorder.token(node, &caller).await.unwrap();
        }
    }
    stage.close().await;
}

/// C3, L12: four times the limit on two nodes for some windows: no window lets through more than
/// the budget and what each node may let through before it hears of the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn a_budget_that_two_nodes_share() {
    const RATE: u64 = 20;
    const BURST: u64 = 20;
    const NODES: u64 = 2;
    let plan = Plan::new("c3-budget", 2)
        .with(|_, home| {
            home.setting("JETON_LIMITS__PLANS__SMALL__PER_SECOND", "20")
                .setting("JETON_LIMITS__PLANS__SMALL__BURST", "20")
        })
        .on(|run| {
            let calls = RATE * 10 + BURST + NODES * (RATE + BURST);
            run.limits = vec![Limit { client: "small".to_owned(), window: 10 * SECOND, calls }];
        });
    let stage = calm(plan).await;
    let fleet = stage.scene.fleet.clone();
    let caller = Arc::new(stage.client("small", "small").await);
    // Pools of connections that have never been used are not what is tried here.
    for number in 0..8 {
        let grants = (0..8).map(|_| fleet.recorder.token(fleet.node(number % 2), &fleet.first));
        join_all(grants).await;
    }
    let time = if long() { 65 } else { 15 };
    let until = Instant::now() + s(time);
    let mut tick = interval(Duration::from_micros(1_000_000 / (4 * RATE)));
    let mut asked = tokio::task::JoinSet::new();
    for number in 0_usize.. {
        tick.tick().await;
        if Instant::now() > until {
            break;
        }
        let (fleet, caller) = (fleet.clone(), caller.clone());
        asked.spawn(
            async move { fleet.recorder.token(fleet.node(number % 2), &caller).await.is_ok() },
        );
    }
    let granted = asked.join_all().await.into_iter().filter(|&granted| granted).count();
    println!("L12: {granted} calls in {time} s, of {RATE} a second and a burst of {BURST}");
    let told = stage.close().await;
    let refused = told
        .history
        .calls
        .iter()
        .filter(|call| call.client == "small" && call.outcome.reason() == Some("SLOW_DOWN"));
    let refused = refused.count();
    // A machine that takes its time over each call is asked less.
    assert!(
        if long() { refused > granted } else { refused > 0 },
        "four times as many were asked for"
    );
    assert!(granted as u64 > RATE * time / 3, "the budget itself is granted");
}

/// V04: what is revoked on one node is refused on all. Each revocation is looked for on the other
/// node without a pause from its acknowledgement on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn revoked_on_one_node_is_refused_on_all() {
    let stage = calm(Plan::new("v04-heard", 2)).await;
    let fleet = stage.scene.fleet.clone();
    let recorder = &fleet.recorder;
    let caller = stage.client("revoker", "standard").await;
    let mut heard = Vec::new();
    for round in 0..if long() { 2_000 } else { 40 } {
        let (one, other) = (fleet.node(round % 2), fleet.node((round + 1) % 2));
        let grant = recorder.token(one, &caller).await.unwrap();
        assert!(
            recorder.introspect(other, &fleet.first, &grant.access).await.unwrap(),
            "round {round}"
        );
        // A token alone, then a family with all its tokens.
        let ended = if round % 4 < 2 { &grant.access } else { &grant.refresh };
        recorder.revoke(one, &caller, ended).await.unwrap();
        let acknowledged = Instant::now();
        assert!(
            !recorder.introspect(one, &fleet.first, &grant.access).await.unwrap(),
            "round {round}: at once where it was"
        );
        while recorder.introspect(other, &fleet.first, &grant.access).await.unwrap() {
            assert!(
                acknowledged.elapsed() < PATIENCE,
                "round {round}: the other node has not heard of it after {PATIENCE:?}"
            );
        }
        heard.push(acknowledged.elapsed());
    }
    heard.sort_unstable();
    let at = |percent: usize| heard[(heard.len() * percent / 100).min(heard.len() - 1)];
    let rounds = heard.len();
    println!(
        "| V04: revoked on one node, refused on the other | {rounds} | p50 {:?} | p99 {:?} | max \
         {:?} |",
        at(50),
        at(99),
        at(100)
    );
    assert!(!long() || at(99) <= s(1), "{:?}", at(99));
    let told = stage.close().await;
    let failed = told
        .history
        .calls
        .iter()
        .filter(|call| call.verb == Verb::Revoke && call.outcome != Outcome::Ok);
    assert_eq!(failed.count(), 0);
}
