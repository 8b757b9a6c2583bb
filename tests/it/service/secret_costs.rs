//! Presented secrets, with the work they cost counted: blocks that argon2id fills, reads of
//! clients.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::future::join_all;
use jeton::{
    admin::NewSecret,
    clock::Clock,
    model::{Action, ClientId, Digest},
    oauth::{Credentials, token_endpoint::Request},
    store::ClientStore,
};

use crate::{
    service::rules::{HASH, REFUSAL, RIGHT, StoreCase, WRONG, caller, cheap, few, from, plenty},
    support::faulty::{Act, Kind, Side},
};

/// A02, AZ8: whatever is wrong, a refusal costs as many hashes and reads; a disabled client is as
/// one without secrets before anything is compared, so its right secret costs what a wrong one
/// does, also if it was verified before.
#[tokio::test]
async fn every_refusal_costs_the_same_work() {
    let bench = StoreCase::with(plenty).await;
    let one = bench.chosen("one").await;
    let made = bench.register("made", NewSecret::Generated).await;
    let imported = bench.register("imported", NewSecret::Argon2id(cheap(RIGHT))).await;
    let (fresh, used, disabled_made) = (
        bench.chosen("disabled").await,
        bench.chosen("disabled-used").await,
        bench.register("disabled-made", NewSecret::Generated).await,
    );
    for caller in [&one, &used, &disabled_made] {
        assert_eq!(bench.answer(from(1), caller).await, "ok");
    }
    for caller in [&fresh, &used, &disabled_made] {
        bench.disable(caller).await;
    }
    let hashed = [
        ("unknown", caller("nobody", WRONG)),
        ("malformed id", caller("no body/../*", WRONG)),
        ("wrong", caller(&one.id, WRONG)),
        ("of a client with made secrets", caller(&made.id, WRONG)),
        ("of a client with a cheap hash", caller(&imported.id, WRONG)),
        ("disabled, right", fresh.clone()),
        ("disabled, right and verified before", used.clone()),
        ("disabled, wrong", caller(&fresh.id, WRONG)),
    ];
    for (class, caller) in &hashed {
        for round in 0..2 {
            let (answer, work, reads) = bench.cost(bench.answer(from(1), caller)).await;
            let expected = if *class == "malformed id" { 0 } else { 1 };
            assert_eq!(
                (answer, work, reads),
                ("invalid_client", REFUSAL, expected),
                "{class}, round {round}"
            );
        }
    }
    let keyed = [
        ("unknown", caller("nobody", &made.secret)),
        ("wrong", caller(&made.id, "jcs_wrong")),
        ("of another client", caller(&one.id, &made.secret)),
        ("disabled, right", disabled_made),
        ("disabled, wrong", caller(&fresh.id, "jcs_wrong")),
    ];
    for (class, caller) in &keyed {
        assert_eq!(
            bench.cost(bench.answer(from(1), caller)).await,
            ("invalid_client", 0, 1),
            "{class}"
        );
    }
}

/// AZ1, TL2, U06: sixty calls at once from one address, each under a new name, directly after a
/// start: as many are hashed as its budget has, and no more; the others are refused alike for every
/// name, real ones included. Other addresses notice nothing.
#[tokio::test]
async fn an_address_has_no_more_hashed_than_its_budget() {
    let bench = StoreCase::with(few).await;
    let victim = bench.chosen("victim").await;
    let bench = bench.restarted().await;
    let flood = (0..60).map(|n| {
        let (bench, name) = (&bench, caller(&format!("ghost-{n}"), WRONG));
        async move { bench.answer(from(9), &name).await }
    });
    let (answers, work, _) = bench.cost(join_all(flood)).await;
    assert_eq!(work, 3 * REFUSAL);
    assert_eq!(answers.iter().filter(|answer| **answer == "invalid_client").count(), 3);
    assert_eq!(answers.iter().filter(|answer| **answer == "slow_down").count(), 57);
    for other in [victim.clone(), caller("victim", WRONG), caller("ghost-1", RIGHT)] {
        let (answer, work, reads) = bench.cost(bench.answer(from(9), &other)).await;
        assert_eq!((answer, work), ("slow_down", 0), "{other:?}");
        assert_eq!(reads, 1, "{other:?}");
    }
    assert_eq!(bench.cost(bench.answer(from(8), &victim)).await.0, "ok");
    bench.clock.advance(Duration::from_secs(2));
    assert_eq!(
        bench.cost(bench.answer(from(9), &caller("ghost-1", WRONG))).await.1,
        REFUSAL,
        "and it refills"
    );
}

/// AZ1, TL2, L14, L15: an address that never stops, and has budget without end, holds one core and
/// its share of the queue: clients whose secrets nobody has verified in this process log in for the
/// first time, and administration goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flood_of_invented_names_locks_nobody_out() {
    let bench = StoreCase::with(|limits| {
        plenty(limits);
        limits.argon2_queue = 32;
    })
    .await;
    let mut callers = Vec::new();
    for n in 0..7 {
        callers.push(bench.chosen(&format!("client-{n}")).await);
    }
    let bench = Arc::new(bench.restarted().await);
    let over = Arc::new(AtomicBool::new(false));
    let flood: Vec<_> = (0..60)
        .map(|n| {
            let (bench, over) = (Arc::clone(&bench), Arc::clone(&over));
            tokio::spawn(async move {
                let mut asked = 0;
                while !over.load(SeqCst) {
                    let answer =
                        bench.answer(from(9), &caller(&format!("ghost-{n}-{asked}"), WRONG)).await;
                    assert!(["invalid_client", "slow_down"].contains(&answer), "{answer}");
                    asked += 1;
                    tokio::task::yield_now().await;
                }
                asked
            })
        })
        .collect();
    for caller in &callers {
        assert_eq!(bench.answer(from(1), caller).await, "ok");
    }
    bench.chosen("registered-meanwhile").await;
    over.store(true, SeqCst);
    assert!(join_all(flood).await.into_iter().map(Result::unwrap).sum::<usize>() > 60);
}

/// AZ7: noise at other names leaves guesses at a client a budget of their own, and each that is
/// judged is a record; past that nothing is judged, and one record a minute says how many there
/// were. Neighbours behind the same address get in.
#[tokio::test]
async fn guesses_are_recorded_or_not_judged() {
    let bench = StoreCase::with(few).await;
    let imported = bench.chosen("imported").await;
    let (made, neighbour) = (
        bench.register("made", NewSecret::Generated).await,
        bench.register("neighbour", NewSecret::Generated).await,
    );
    assert_eq!(bench.answer(from(1), &imported).await, "ok");
    for n in 0..60 {
        bench.answer(from(9), &caller(&format!("junk-{n}"), "jcs_junk")).await;
    }
    for target in ["imported", "made"] {
        let secret = if target == "made" { "jcs_wrong" } else { WRONG };
        for _ in 0..15 {
            let (answer, work, _) =
                bench.cost(bench.answer(from(9), &caller(target, secret))).await;
            assert_eq!((answer, work), ("slow_down", 0));
        }
    }
    // Past its budget not even the right one is judged, for that would tell.
    assert_eq!(bench.answer(from(9), &imported).await, "slow_down");
    assert_eq!(bench.answer(from(1), &imported).await, "ok", "from elsewhere it is");
    // A secret with another id is another target: one instance with a retired secret does not lock
    // out the others.
    assert_eq!(bench.answer(from(9), &made).await, "ok");
    assert_eq!(bench.answer(from(9), &neighbour).await, "ok");
    let refusals = bench.refusals().await;
    let of = |target: &str| -> Vec<&str> {
        refusals.iter().filter(|(of, _)| of == target).map(|(_, reason)| reason.as_str()).collect()
    };
    let judged = ["invalid_client"; 3];
    // Nothing is hashed for it, and what was right lately is compared: that is a guess too.
    assert_eq!(of("imported"), [&judged[..], &["slow_down", "slow_down, 12 more"]].concat());
    assert_eq!(of("made"), [&judged[..], &["slow_down", "slow_down, 11 more"]].concat());
    assert_eq!(
        of(""),
        ["invalid_client", "invalid_client, 59 more"],
        "DECISIONS 9: invented names are one record"
    );
}

/// AZ7: where the pool is full a secret is still compared with what was right lately, and is on
/// record as that; nothing is drawn for it, as for a name that is no client's.
#[tokio::test]
async fn a_guess_that_finds_the_pool_full_is_on_record() {
    let bench = StoreCase::with(|limits| {
        few(limits);
        (limits.argon2_parallel, limits.argon2_queue) = (1, 0);
    })
    .await;
    let (used, unused) = (bench.chosen("used").await, bench.chosen("unused").await);
    assert_eq!(bench.answer(from(1), &used).await, "ok");
    assert_eq!(bench.answer(from(1), &caller("unused", "jcs_x")).await, "invalid_client");
    assert_eq!(bench.answer(from(1), &caller("ghost", "jcs_x")).await, "invalid_client");
    for (n, target) in [&used.id, &unused.id, "ghost"].into_iter().enumerate() {
        let (peer, holder, next) = (from(2), caller("ghost", WRONG), caller(target, WRONG));
        let (held, answer) = tokio::join!(bench.answer(peer, &holder), bench.answer(peer, &next));
        assert_eq!((held, answer), ("invalid_client", "slow_down"), "{n}");
    }
    assert_eq!(
        bench.answer(from(2), &caller("ghost", WRONG)).await,
        "slow_down",
        "three were drawn"
    );
    let refusals = bench.refusals().await;
    let of = |target: &str| -> Vec<&str> {
        refusals.iter().filter(|(of, _)| of == target).map(|(_, reason)| reason.as_str()).collect()
    };
    assert_eq!(
        (of("used"), of("unused")),
        (vec!["invalid_client"], vec!["invalid_client", "slow_down"])
    );
}

/// U06: a call without a secret is refused and counted, and its network is not one that guesses;
/// one with a wrong secret is.
#[tokio::test]
async fn a_call_without_a_secret_is_no_guess() {
    let bench = StoreCase::with(few).await;
    let limits = &bench.services.limits;
    for n in 0..5 {
        for (at, credentials) in [(2, Credentials::None), (3, Credentials::Bearer("x".into()))] {
            let refused = bench
                .services
                .tokens
                .token(&bench.call(from(at)), credentials, Request::default())
                .await
                .err()
                .unwrap();
            assert_eq!(refused.code(), if n < 3 { "invalid_client" } else { "slow_down" });
            assert!(!limits.failed_lately(from(at), bench.clock.now()));
        }
    }
    bench.answer(from(4), &caller("nobody", "jcs_x")).await;
    assert!(limits.failed_lately(from(4), bench.clock.now()));
    let reasons: Vec<_> = bench.refusals().await.into_iter().map(|(_, reason)| reason).collect();
    assert_eq!(reasons.iter().filter(|reason| *reason == "invalid_client, 4 more").count(), 2);
}

/// DECISIONS 14, AZ8: an imported hash that is cheaper than ours is hashed anew at its first use,
/// with a record; a store that fails there leaves it for the next first use and stops no login.
#[tokio::test]
async fn an_imported_hash_costs_what_ours_do_after_its_first_use() {
    let bench = StoreCase::with(plenty).await;
    let imported = bench.register("imported", NewSecret::Argon2id(cheap(RIGHT))).await;
    let kept = async |bench: &StoreCase| {
        let client =
            bench.store.client(&"imported".parse::<ClientId>().unwrap()).await.unwrap().unwrap();
        let Digest::Argon2id { phc } = client.secrets().next().unwrap().digest.clone() else {
            panic!("an imported one")
        };
        (client.revision, phc)
    };
    // What the first login reads is read before.
    assert_eq!(bench.answer(from(1), &caller("imported", WRONG)).await, "invalid_client");
    bench.store.plan_verb("replace_client", Act::FailBefore(Kind::Unavailable));
    assert_eq!(bench.answer(from(1), &imported).await, "ok");
    assert_eq!(kept(&bench).await, (1, kept(&bench).await.1));
    assert!(kept(&bench).await.1.contains("$m=7168,t=5,p=1$"));

    let bench = bench.restarted().await;
    assert_eq!(bench.answer(from(1), &imported).await, "ok");
    let (revision, phc) = kept(&bench).await;
    assert!(
        revision == 2 && phc.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
        "{revision} {phc}"
    );
    assert_eq!(bench.cost(bench.answer(from(1), &imported)).await.1, 0, "and it is remembered");
    let records = bench.records(Action::SecretRehashed).await;
    assert_eq!(records.len(), 1);
    assert!(records[0].target.starts_with("imported/") && records[0].actor.is_some());

    let bench = bench.restarted().await;
    assert_eq!(bench.cost(bench.answer(from(1), &imported)).await, ("ok", HASH, 1));
    assert_eq!(kept(&bench).await, (2, phc));
    drop(bench.home);
}

/// TL2, L14: of one address so many reads of the store are on their way at once, under whatever
/// names; another address reads at once. A caller that hangs up leaves its place to the next only
/// when its read is over.
#[tokio::test]
async fn an_address_has_so_many_reads_on_their_way() {
    const PLACES: usize = 32;
    let bench = Arc::new(StoreCase::with(plenty).await);
    let made = bench.register("made", NewSecret::Generated).await;
    let reads = || bench.store.reads.load(SeqCst);
    let (before, held) = (
        reads(),
        (0..PLACES).map(|_| bench.store.hold("client", Side::Before)).collect::<Vec<_>>(),
    );
    let ask = |n: usize| {
        let bench = Arc::clone(&bench);
        tokio::spawn(
            async move { bench.answer(from(9), &caller(&format!("ghost-{n}"), "jcs_x")).await },
        )
    };
    let mut flood: Vec<_> = (0..PLACES * 3).map(ask).collect();
    for hold in &held {
        hold.arrived().await;
    }
    let is_full = async |expected: u64| {
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(reads() - before, expected);
    };
    is_full(32).await;
    for gone in flood.drain(..PLACES) {
        gone.abort();
    }
    is_full(32).await;
    assert_eq!(bench.answer(from(8), &caller("ghost", "jcs_x")).await, "invalid_client");
    assert_eq!(bench.answer(from(8), &made).await, "ok");
    for hold in &held {
        hold.release();
    }
    assert!(join_all(flood).await.into_iter().all(|answer| answer.unwrap() == "invalid_client"));
}
