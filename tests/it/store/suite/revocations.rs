//! Revocations, and the followers that learn of them.

use std::{collections::BTreeSet, time::Duration};

use jeton::{
    model::{Action, EpochOf, Family, FamilyId, Jti, Revoked, Subject, revocation::Revocation},
    store::{Change, RevocationStore, Rotation},
};

use crate::store::{
    backend::StoreCase,
    fixtures::{NOW, RecordingFollower, at, event, family, present, stamp},
};

fn token(until: i64) -> Revocation {
    Revocation { revoked: Revoked::Token(Jti::new()), until: at(until) }
}

async fn revoke(store: &(impl RevocationStore + ?Sized), revocation: &Revocation) {
    store.revoke(revocation, event(Action::TokenRevoked)).await.unwrap();
}

/// V04: visible to every follower of this node when the answer comes.
pub(crate) async fn a_revocation_is_heard_before_it_is_answered(case: &StoreCase) {
    let (store, one, other) = (case.store(), RecordingFollower::new(), RecordingFollower::new());
    store.follow(NOW, one.clone()).await.unwrap();
    store.follow(NOW, other.clone()).await.unwrap();
    let mut told = Vec::new();
    for n in 0..20 {
        let revocation = token(n);
        revoke(&*store, &revocation).await;
        told.push(Change::Revoked(revocation));
        case.assert_heard(&one, &told);
        case.assert_heard(&other, &told);
    }
}

/// V07: kept until its time, and at that time itself no more.
pub(crate) async fn what_was_revoked_stands_in_the_snapshot_until_its_time(case: &StoreCase) {
    let revocation = token(1_000);
    revoke(&*case.store(), &revocation).await;
    let store = case.reopen().await;
    assert_eq!(
        store.follow(at(999), RecordingFollower::new()).await.unwrap().revocations,
        [revocation]
    );
    assert!(
        store.follow(at(1_000), RecordingFollower::new()).await.unwrap().revocations.is_empty()
    );
}

/// V01: again is the same; a shorter time never cuts a longer one.
pub(crate) async fn revoking_again_remembers_the_longer_time(case: &StoreCase) {
    let store = case.store();
    let first = token(1_000);
    for until in [1_000, 1_000, 5_000, 2_000] {
        revoke(&*store, &Revocation { until: at(until), ..first }).await;
    }
    let longest = Revocation { until: at(5_000), ..first };
    assert_eq!(store.follow(NOW, RecordingFollower::new()).await.unwrap().revocations, [longest]);
    assert_eq!(
        case.reopen().await.follow(NOW, RecordingFollower::new()).await.unwrap().revocations,
        [longest]
    );
}

/// N04: a record of one type is never read as one of another, though their ids are equal.
pub(crate) async fn a_token_and_a_family_of_one_id_are_two_things(case: &StoreCase) {
    let store = case.store();
    let id = Jti::new().0;
    let as_token = Revocation { revoked: Revoked::Token(Jti(id)), until: at(1_000) };
    let as_family = Revocation { revoked: Revoked::Family(FamilyId(id)), until: at(2_000) };
    revoke(&*store, &as_token).await;
    assert_eq!(store.follow(NOW, RecordingFollower::new()).await.unwrap().revocations, [as_token]);
    revoke(&*store, &as_family).await;
    let both = store.follow(NOW, RecordingFollower::new()).await.unwrap().revocations;
    assert!(both.len() == 2 && both.contains(&as_token) && both.contains(&as_family));
}

/// V06, N04: a tenant, a client and a subject of one name have an epoch each.
pub(crate) async fn epochs_rise_by_one_each_on_its_own(case: &StoreCase) {
    let store = case.store();
    let tenant = EpochOf::Tenant("same".parse().unwrap());
    let client = EpochOf::Client("same".parse().unwrap());
    let subject = EpochOf::Subject("same".parse::<Subject>().unwrap());
    let other = EpochOf::Client("Same".parse().unwrap());
    let raise = async |of| store.raise_epoch(of, event(Action::ClientRevoked)).await.unwrap();
    assert_eq!((raise(&tenant).await, raise(&tenant).await, raise(&tenant).await), (1, 2, 3));
    assert_eq!((raise(&client).await, raise(&client).await), (1, 2));
    assert_eq!((raise(&subject).await, raise(&other).await), (1, 1));
    let mut epochs =
        case.reopen().await.follow(NOW, RecordingFollower::new()).await.unwrap().epochs;
    epochs.sort_unstable();
    let mut expected = vec![(tenant, 3), (client, 2), (other, 1), (subject, 1)];
    expected.sort_unstable();
    assert_eq!(epochs, expected);
}

pub(crate) async fn fifty_raises_make_fifty_values(case: &StoreCase) {
    let of = EpochOf::Client("a".parse().unwrap());
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let (store, of) = (case.store(), of.clone());
            tokio::spawn(async move {
                store.raise_epoch(&of, event(Action::ClientRevoked)).await.unwrap()
            })
        })
        .collect();
    let mut values = BTreeSet::new();
    for task in tasks {
        values.insert(task.await.unwrap());
    }
    assert_eq!(values, (1..=50).collect());
}

/// Joining in the middle of many revocations: each is in the snapshot, or heard, or both.
pub(crate) async fn a_follower_misses_nothing(case: &StoreCase) {
    let all: Vec<_> = (0..300).map(|_| token(60_000)).collect();
    let revoking: Vec<_> = all
        .iter()
        .copied()
        .map(|revocation| {
            let store = case.store();
            tokio::spawn(async move { revoke(&*store, &revocation).await })
        })
        .collect();
    let mut followers = Vec::new();
    for _ in 0..10 {
        let ear = RecordingFollower::new();
        let snapshot = case.store().follow(NOW, ear.clone()).await.unwrap();
        followers.push((snapshot, ear));
        tokio::task::yield_now().await;
    }
    for task in revoking {
        task.await.unwrap();
    }
    for (snapshot, ear) in followers {
        let heard = ear.heard();
        for revocation in &all {
            let known = snapshot.revocations.contains(revocation)
                || heard.contains(&Change::Revoked(*revocation));
            assert!(known, "{revocation:?}");
        }
    }
}

pub(crate) async fn changes_are_heard_in_the_order_of_their_commits(case: &StoreCase) {
    let (of, ear) = (EpochOf::Tenant("t".parse().unwrap()), RecordingFollower::new());
    case.store().follow(NOW, ear.clone()).await.unwrap();
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let (store, of) = (case.store(), of.clone());
            tokio::spawn(async move {
                store.raise_epoch(&of, event(Action::TenantRevoked)).await.unwrap()
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let raised: Vec<_> = (1..=50).map(|value| Change::Epoch(of.clone(), value)).collect();
    case.assert_heard(&ear, &raised);
}

/// V07: what a token may still depend on stays, to the millisecond.
pub(crate) async fn the_sweep_forgets_only_what_nothing_depends_on(case: &StoreCase) {
    let store = case.store();
    let (over, stands) = (token(1_000), token(1_001));
    revoke(&*store, &over).await;
    revoke(&*store, &stands).await;
    let (short, long) = (Family { idle: Duration::from_secs(1), ..family("a") }, family("a"));
    for family in [&short, &long] {
        store.open_family(family, event(Action::TokenIssued)).await.unwrap();
    }
    store.count(&[("k".into(), 1), ("l".into(), 1)], at(1_000)).await.unwrap();
    store.count(&[("k".into(), 5)], at(1_001)).await.unwrap();
    assert_eq!(store.sweep(at(999), 100).await.unwrap(), 0);
    assert_eq!(store.sweep(at(1_000), 100).await.unwrap(), 4);
    assert_eq!(store.sweep(at(1_000), 100).await.unwrap(), 0);
    assert_eq!(store.follow(NOW, RecordingFollower::new()).await.unwrap().revocations, [stands]);
    assert_eq!(store.family(short.id, NOW).await.unwrap(), None, "it is really gone");
    assert_eq!(store.family(long.id, NOW).await.unwrap(), Some(long));
    assert_eq!(store.count(&[("k".into(), 1)], at(1_001)).await.unwrap(), [6]);
    let reopened = case.reopen().await;
    // A process may remember what it counted in a window; the store does not.
    assert_eq!(reopened.count(&[("k".into(), 1)], at(1_000)).await.unwrap(), [1]);
    assert_eq!(reopened.follow(NOW, RecordingFollower::new()).await.unwrap().revocations, [stands]);
}

pub(crate) async fn the_sweep_keeps_to_its_limit(case: &StoreCase) {
    let store = case.store();
    for n in 0..10 {
        revoke(&*store, &token(n)).await;
    }
    assert_eq!(store.sweep(at(100), 4).await.unwrap(), 4);
    assert_eq!(store.sweep(at(100), 4).await.unwrap(), 4);
    assert_eq!(store.sweep(at(100), 4).await.unwrap(), 2);
    assert_eq!(store.sweep(at(100), 4).await.unwrap(), 0);
}

/// A family dies by its last rotation, not by the first.
pub(crate) async fn a_refreshed_family_outlives_the_sweep(case: &StoreCase) {
    let store = case.store();
    let family = family("a");
    store.open_family(&family, event(Action::TokenIssued)).await.unwrap();
    let rotation = store.rotate(&present(&family, 0, 500_000), &stamp(), "jti").await.unwrap();
    assert!(matches!(rotation, Rotation::Rotated));
    assert_eq!(store.sweep(at(600_000), 100).await.unwrap(), 0);
    assert_eq!(store.sweep(at(1_099_999), 100).await.unwrap(), 0);
    assert!(store.family(family.id, at(1_099_999)).await.unwrap().is_some());
    assert_eq!(store.sweep(at(1_100_000), 100).await.unwrap(), 1);
}
