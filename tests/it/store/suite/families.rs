//! Refresh families: what becomes of a presented token.

use std::time::Duration;

use jeton::{
    model::{
        Action, Family, Revoked, Stamp, Timestamp,
        event::{Filter, Outcome},
        family::Answers,
        revocation::Revocation,
    },
    store::{Change, Creation, Decision, Rotate, Rotation, Store},
};

use crate::store::{
    backend::StoreCase,
    fixtures::{self, NOW, RecordingFollower, at, client, event, family, id, present, stamp},
};

async fn open(store: &dyn Store) -> Family {
    let family = family("a");
    assert_eq!(
        store.open_family(&family, event(Action::TokenIssued)).await.unwrap(),
        Creation::Created
    );
    family
}

async fn rotate(store: &dyn Store, rotate: &Rotate) -> Rotation {
    store.rotate(rotate, &stamp(), "jti").await.unwrap()
}

fn rotated(family: &Family, generation: u32, millis: i64) -> Family {
    Family { generation, rotated_at: at(millis), ..family.clone() }
}

/// After so many repetitions from where it was rotated.
fn repeated(family: &Family, times: u32) -> Family {
    let peer = stamp().peer;
    Family {
        answers: Answers { given: 1 + times, repeated_by: peer, ..family.answers.clone() },
        ..family.clone()
    }
}

pub(crate) async fn a_family_reads_back_as_it_was_opened(case: &StoreCase) {
    let store = case.store();
    let mut odd = family(&"x".repeat(128));
    odd.subject = "s".repeat(200).parse().unwrap();
    odd.salt = std::array::from_fn(|n| u8::try_from(n * 8).unwrap());
    odd.idle = Duration::new(7, 1);
    odd.audience.clear();
    odd.scopes = jeton::model::Scopes::default();
    for family in [odd, family("a.b")] {
        store.open_family(&family, event(Action::TokenIssued)).await.unwrap();
        assert_eq!(store.family(family.id, NOW).await.unwrap(), Some(family));
    }
    assert_eq!(store.family(family("a").id, NOW).await.unwrap(), None);
}

pub(crate) async fn an_id_opens_one_family(case: &StoreCase) {
    let store = case.store();
    let first = open(&*store).await;
    let second = Family { client: id("b"), ..first.clone() };
    assert_eq!(
        store.open_family(&second, event(Action::TokenIssued)).await.unwrap(),
        Creation::Taken
    );
    assert_eq!(store.family(first.id, NOW).await.unwrap(), Some(first));
}

/// R09: both bounds, to the millisecond: at the bound itself it is over.
pub(crate) async fn expired_families_are_absent_even_before_the_sweep(case: &StoreCase) {
    let store = case.store();
    let idle = open(&*store).await;
    let absolute = Family { idle: Duration::from_secs(1 << 40), ..family("a") };
    store.open_family(&absolute, event(Action::TokenIssued)).await.unwrap();
    for (family, end) in [(idle, 600_000), (absolute, 3_600_000)] {
        assert!(store.family(family.id, at(end - 1)).await.unwrap().is_some());
        assert_eq!(store.family(family.id, at(end)).await.unwrap(), None);
        assert_eq!(rotate(&*store, &present(&family, 0, end)).await, Rotation::Unknown);
        rotates_to(&*store, &present(&family, 0, end - 1), &rotated(&family, 1, end - 1)).await;
    }
}

pub(crate) async fn a_rotation_goes_one_generation_on(case: &StoreCase) {
    let store = case.store();
    let family = open(&*store).await;
    for generation in 0..20 {
        let millis = i64::from(generation) * 1_000 + 1;
        let expected = rotated(&family, generation + 1, millis);
        rotates_to(&*store, &present(&family, generation, millis), &expected).await;
    }
}

/// Presents a token that is current; the family becomes this one.
async fn rotates_to(store: &dyn Store, presented: &Rotate, family: &Family) {
    assert_eq!(rotate(store, presented).await, Rotation::Rotated);
    let found = store.family(presented.family, presented.now).await.unwrap();
    assert_eq!(found.as_ref(), Some(family));
}

/// Presents one token fifty times at once.
async fn fifty(case: &StoreCase, rotate: &Rotate) -> Vec<Rotation> {
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let (store, rotate) = (case.store(), rotate.clone());
            tokio::spawn(async move { store.rotate(&rotate, &stamp(), "jti").await.unwrap() })
        })
        .collect();
    let mut rotations = Vec::new();
    for task in tasks {
        rotations.push(task.await.unwrap());
    }
    rotations
}

/// R02, AUDIT TL7: one successor; three others are given the same one, the rest nothing, and the
/// family goes on.
pub(crate) async fn of_fifty_that_present_one_token_one_rotates(case: &StoreCase) {
    let family = open(&*case.store()).await;
    let rotations = fifty(case, &present(&family, 0, 5)).await;
    let successor = rotated(&family, 1, 5);
    let count =
        |expected: &Rotation| rotations.iter().filter(|rotation| *rotation == expected).count();
    assert_eq!(count(&Rotation::Rotated), 1);
    for repetition in 1..=3 {
        assert_eq!(count(&Rotation::Repeated(repeated(&successor, repetition))), 1, "{repetition}");
    }
    assert_eq!(count(&Rotation::Refused), 46);
    assert_eq!(case.store().family(family.id, at(5)).await.unwrap(), Some(repeated(&successor, 3)));
    let next = rotate(&*case.store(), &present(&family, 1, 6)).await;
    assert!(matches!(next, Rotation::Rotated), "{next:?}");
}

/// R02: late copies of a spent token end the family exactly once and never bring a second
/// successor.
pub(crate) async fn of_fifty_after_the_grace_one_rotates_and_the_family_ends(case: &StoreCase) {
    let family = open(&*case.store()).await;
    rotate(&*case.store(), &present(&family, 0, 5)).await;
    let rotations = fifty(case, &present(&family, 0, 10_006)).await;
    assert_eq!(rotations.iter().filter(|rotation| **rotation == Rotation::Reused).count(), 1);
    assert_eq!(rotations.iter().filter(|rotation| **rotation == Rotation::Unknown).count(), 49);
    assert_eq!(rotate(&*case.store(), &present(&family, 1, 10_006)).await, Rotation::Unknown);
}

/// R07: a lost answer is given again, identical, up to the last millisecond of the grace.
pub(crate) async fn a_spent_token_repeats_only_within_the_grace(case: &StoreCase) {
    let store = case.store();
    let family = open(&*store).await;
    rotate(&*store, &present(&family, 0, 5)).await;
    let successor = rotated(&family, 1, 5);
    for (repetition, millis) in [(1, 5), (2, 6), (3, 10_005)] {
        let again = Rotation::Repeated(repeated(&successor, repetition));
        assert_eq!(rotate(&*store, &present(&family, 0, millis)).await, again, "{millis}");
    }
    assert_eq!(rotate(&*store, &present(&family, 0, 10_006)).await, Rotation::Reused);
}

/// AUDIT TL7: a fourth repetition is refused, and so is every further one; the family goes on, and
/// each generation has its own three.
pub(crate) async fn a_spent_token_repeats_three_times_and_no_more(case: &StoreCase) {
    let store = case.store();
    let family = open(&*store).await;
    for generation in 0..2 {
        let millis = i64::from(generation) * 1_000;
        rotate(&*store, &present(&family, generation, millis)).await;
        for _ in 0..3 {
            let again = rotate(&*store, &present(&family, generation, millis + 1)).await;
            assert!(
                matches!(&again, Rotation::Repeated(found) if found.generation == generation + 1),
                "{again:?}"
            );
        }
        for _ in 0..20 {
            assert_eq!(
                rotate(&*store, &present(&family, generation, millis + 2)).await,
                Rotation::Refused
            );
        }
    }
    assert!(matches!(rotate(&*store, &present(&family, 2, 3_000)).await, Rotation::Rotated));
    let refused = Filter { action: Some("refresh_token.refused".to_owned()), ..Filter::default() };
    assert!(store.events(&refused, None, 100).await.unwrap().is_empty(), "the rule counts them");
}

/// Presents a token from this address.
async fn rotate_from(store: &dyn Store, rotate: &Rotate, peer: &str) -> Rotation {
    store.rotate(rotate, &Stamp { peer: peer.into(), ..stamp() }, "jti").await.unwrap()
}

/// AUDIT TL7: two callers that go on with one family, whoever of them rotates, are found in the
/// third generation: it is ended, and the trail names both.
pub(crate) async fn a_family_that_two_go_on_with_is_ended(case: &StoreCase) {
    const PEERS: [&str; 2] = ["192.0.2.1", "198.51.100.7"];
    for thief_rotates_in in [0, 1, 2, 3] {
        let (store, ear) = (case.store(), RecordingFollower::new());
        store.follow(NOW, ear.clone()).await.unwrap();
        let family = open(&*store).await;
        for generation in 0..3 {
            let first = usize::from(generation == thief_rotates_in);
            let millis = i64::from(generation) * 60_000;
            case.settled().await;
            let next =
                rotate_from(&*store, &present(&family, generation, millis), PEERS[first]).await;
            assert!(matches!(next, Rotation::Rotated), "{next:?}");
            case.settled().await;
            let follows =
                rotate_from(&*store, &present(&family, generation, millis + 300), PEERS[1 - first])
                    .await;
            match generation {
                0 | 1 => {
                    assert!(matches!(follows, Rotation::Repeated(_)), "{generation}: {follows:?}")
                }
                _ => assert!(
                    matches!(&follows, Rotation::Shared(found) if found.generation == 3),
                    "{follows:?}"
                ),
            }
        }
        for presented in [2, 3] {
            assert_eq!(
                rotate(&*store, &present(&family, presented, 121_000)).await,
                Rotation::Unknown
            );
        }
        let until = at(120_300 + 900_000);
        let revocation = Revocation { revoked: Revoked::Family(family.id), until };
        case.assert_heard(&ear, &[Change::Revoked(revocation)]);
        let reused =
            Filter { action: Some("refresh_token.reused".to_owned()), ..Filter::default() };
        let found = store.events(&reused, None, 1).await.unwrap().remove(0).event;
        let first = usize::from(thief_rotates_in == 2);
        assert_eq!((&*found.peer, found.family), (PEERS[1 - first], Some(family.id)));
        let both = format!("rotated from {}, repeated from {}", PEERS[first], PEERS[1 - first]);
        assert!(
            found.reason.starts_with("shared: ") && found.reason.ends_with(&both),
            "{}",
            found.reason
        );
    }
}

/// AUDIT TL7: a generation that one caller alone was given begins the count anew: an answer is lost
/// now and then.
pub(crate) async fn a_quiet_generation_begins_the_count_anew(case: &StoreCase) {
    let store = case.store();
    let family = open(&*store).await;
    for generation in 0..12 {
        let millis = i64::from(generation) * 1_000;
        case.settled().await;
        let next = rotate(&*store, &present(&family, generation, millis)).await;
        assert!(matches!(next, Rotation::Rotated), "{generation}: {next:?}");
        if generation % 3 < 2 {
            case.settled().await;
            let again = rotate(&*store, &present(&family, generation, millis + 1)).await;
            assert!(matches!(again, Rotation::Repeated(_)), "{generation}: {again:?}");
        }
    }
}

/// AUDIT TL7: a repetition from another site is given, and the trail names the site of the
/// rotation; a /64 is one site.
pub(crate) async fn a_repetition_from_another_site_is_named(case: &StoreCase) {
    let store = case.store();
    for (one, other, differs) in [
        ("192.0.2.1", "192.0.2.1", false),
        ("192.0.2.1", "192.0.2.2", true),
        ("2001:db8::1", "2001:db8::2", false),
        ("2001:db8::1", "2001:db8:0:1::1", true),
        ("local", "local", false),
    ] {
        let family = open(&*store).await;
        rotate_from(&*store, &present(&family, 0, 1), one).await;
        let again = rotate_from(&*store, &present(&family, 0, 2), other).await;
        let Rotation::Repeated(found) = again else { panic!("{again:?}") };
        assert_eq!((&*found.answers.rotated_by, &*found.answers.repeated_by), (one, other));
        let event = store.events(&Filter::default(), None, 1).await.unwrap().remove(0).event;
        let expected =
            if differs { format!("another site: rotated from {one}") } else { String::new() };
        assert_eq!(
            (event.action, &*event.peer, &*event.reason),
            (Action::RefreshRepeated, other, &*expected)
        );
    }
}

/// R07: once the successor was used, its predecessor is stolen goods.
pub(crate) async fn a_spent_token_does_not_repeat_once_its_successor_was_used(case: &StoreCase) {
    let store = case.store();
    let family = open(&*store).await;
    rotate(&*store, &present(&family, 0, 5)).await;
    rotate(&*store, &present(&family, 1, 6)).await;
    assert_eq!(rotate(&*store, &present(&family, 0, 7)).await, Rotation::Reused);
}

/// TL14: where there is no room to remember that a family was ended, reuse and sharing change
/// nothing, leave no record, and say so; whatever else is presented is judged as ever.
pub(crate) async fn a_family_that_cannot_be_remembered_is_not_ended(case: &StoreCase) {
    let store = case.store();
    let family = open(&*store).await;
    let full = |presented: Rotate| Rotate { retain_for: None, ..presented };
    rotate(&*store, &full(present(&family, 0, 5))).await;
    rotate(&*store, &full(present(&family, 1, 6))).await;
    let before = (
        store.family(family.id, NOW).await.unwrap(),
        store.events(&Filter::default(), None, 100).await.unwrap().len(),
    );
    for _ in 0..3 {
        assert_eq!(
            rotate(&*store, &full(present(&family, 0, 7))).await,
            Rotation::Unended(Decision::Reuse)
        );
    }
    let after = (
        store.family(family.id, NOW).await.unwrap(),
        store.events(&Filter::default(), None, 100).await.unwrap().len(),
    );
    assert_eq!(before, after);
    rotates_to(&*store, &full(present(&family, 2, 8)), &rotated(&family, 3, 8)).await;
    let shared = Family {
        answers: Answers { given: 2, running: 2, ..family.answers.clone() },
        ..fixtures::family("a")
    };
    store.open_family(&shared, event(Action::TokenIssued)).await.unwrap();
    assert_eq!(
        rotate(&*store, &full(present(&shared, 0, 5))).await,
        Rotation::Unended(Decision::Shared)
    );
    assert!(matches!(rotate(&*store, &present(&shared, 0, 5)).await, Rotation::Shared(_)));
    assert_eq!(rotate(&*store, &present(&family, 0, 9)).await, Rotation::Reused);
    assert_eq!(rotate(&*store, &full(present(&family, 0, 9))).await, Rotation::Unknown);
}

/// R03: fifty rotations in one millisecond, then each earlier token: order is the generation, not
/// the time.
pub(crate) async fn rotations_within_one_millisecond_are_told_apart(case: &StoreCase) {
    let store = case.store();
    for replayed in [0, 1, 25, 48] {
        let family = open(&*store).await;
        for generation in 0..50 {
            let expected = rotated(&family, generation + 1, 5);
            rotates_to(&*store, &present(&family, generation, 5), &expected).await;
        }
        assert_eq!(
            rotate(&*store, &present(&family, replayed, 5)).await,
            Rotation::Reused,
            "{replayed}"
        );
    }
}

/// C1: a step back of the clock by more than the grace never makes a spent token good again.
pub(crate) async fn a_clock_that_went_back_closes_the_grace(case: &StoreCase) {
    let store = case.store();
    let family = open(&*store).await;
    rotate(&*store, &present(&family, 0, 20_000)).await;
    assert_eq!(rotate(&*store, &present(&family, 0, 9_999)).await, Rotation::Reused);
}

/// E9: a token from the future shows that this store is older than its clients: it must not go on.
pub(crate) async fn a_generation_that_was_never_given_out_ends_the_family(case: &StoreCase) {
    let store = case.store();
    for presented in [1, 2, u32::MAX] {
        let family = open(&*store).await;
        assert_eq!(
            rotate(&*store, &present(&family, presented, 1)).await,
            Rotation::Reused,
            "{presented}"
        );
        assert_eq!(rotate(&*store, &present(&family, 0, 1)).await, Rotation::Unknown);
    }
    let last = Family { generation: u32::MAX, ..family("a") };
    store.open_family(&last, event(Action::TokenIssued)).await.unwrap();
    assert_eq!(
        rotate(&*store, &present(&last, u32::MAX, 1)).await,
        Rotation::Reused,
        "there is no next one"
    );
}

/// R06: another client's guess neither refreshes nor ends a family.
pub(crate) async fn another_client_can_neither_use_nor_end_a_family(case: &StoreCase) {
    let store = case.store();
    let family = open(&*store).await;
    for presented in [0, 1, 7] {
        let theft = Rotate { client: id("A"), ..present(&family, presented, 1) };
        assert_eq!(rotate(&*store, &theft).await, Rotation::Unknown);
    }
    assert_eq!(store.family(family.id, at(1)).await.unwrap(), Some(family.clone()));
    rotates_to(&*store, &present(&family, 0, 2), &rotated(&family, 1, 2)).await;
}

/// R09: refreshing moves the idle bound and never the absolute one.
pub(crate) async fn refreshing_never_passes_the_absolute_bound(case: &StoreCase) {
    let store = case.store();
    let family = open(&*store).await;
    let mut generation = 0;
    for millis in [599_999, 1_199_998, 1_799_997, 2_399_996, 2_999_995, 3_599_994] {
        let expected = rotated(&family, generation + 1, millis);
        rotates_to(&*store, &present(&family, generation, millis), &expected).await;
        generation += 1;
    }
    assert_eq!(rotate(&*store, &present(&family, generation, 3_600_000)).await, Rotation::Unknown);
    assert_eq!(store.family(family.id, at(3_600_000)).await.unwrap(), None);
}

/// R01: reuse ends the family, what came of it is remembered for as long as asked, and it is heard.
pub(crate) async fn reuse_ends_the_family_for_good(case: &StoreCase) {
    let (store, ear) = (case.store(), RecordingFollower::new());
    store.follow(NOW, ear.clone()).await.unwrap();
    let family = open(&*store).await;
    rotate(&*store, &present(&family, 0, 5)).await;
    assert_eq!(rotate(&*store, &present(&family, 0, 20_000)).await, Rotation::Reused);
    let revocation =
        Revocation { revoked: Revoked::Family(family.id), until: at(20_000 + 900_000) };
    case.assert_heard(&ear, &[Change::Revoked(revocation)]);
    for presented in [0, 1, 2] {
        assert_eq!(rotate(&*store, &present(&family, presented, 20_001)).await, Rotation::Unknown);
    }
    let ended = Family { ended_at: Some(at(20_000)), ..rotated(&family, 1, 5) };
    assert_eq!(store.family(family.id, at(20_001)).await.unwrap(), Some(ended));
    assert_eq!(
        store.follow(NOW, RecordingFollower::new()).await.unwrap().revocations,
        [revocation]
    );
}

pub(crate) async fn an_ended_family_is_ended_again_without_harm(case: &StoreCase) {
    let store = case.store();
    let family = open(&*store).await;
    for millis in [100, 200] {
        store
            .end_family(family.id, at(millis), at(1_000), event(Action::FamilyRevoked))
            .await
            .unwrap();
    }
    let ended = Family { ended_at: Some(at(100)), ..family.clone() };
    assert_eq!(store.family(family.id, at(300)).await.unwrap(), Some(ended));
    assert_eq!(rotate(&*store, &present(&family, 0, 300)).await, Rotation::Unknown);
    // A family that is not here, or not any more, may still have left access tokens behind.
    let gone = crate::store::fixtures::family("a").id;
    store.end_family(gone, at(100), at(1_000), event(Action::FamilyRevoked)).await.unwrap();
    let mut revoked: Vec<_> =
        store.follow(NOW, RecordingFollower::new()).await.unwrap().revocations;
    revoked.sort_unstable_by_key(|revocation| revocation.revoked);
    let expected = |id| Revocation { revoked: Revoked::Family(id), until: at(1_000) };
    assert_eq!(revoked, [expected(family.id), expected(gone)]);
}

/// O03: each verdict that changes the family stands in the trail, with the family and the jti where
/// there is one.
pub(crate) async fn every_verdict_leaves_its_record(case: &StoreCase) {
    let store = case.store();
    let family = open(&*store).await;
    for (presented, millis) in [(0, 1), (0, 2), (0, 20_000), (1, 20_001)] {
        rotate(&*store, &present(&family, presented, millis)).await;
    }
    let mut records = store.events(&Filter::default(), None, 3).await.unwrap();
    records.reverse();
    let told: Vec<_> = records
        .iter()
        .map(|record| {
            (
                record.event.action,
                record.event.outcome,
                record.event.target.as_str(),
                record.event.reason.as_ref(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (Action::TokenRefreshed, Outcome::Ok, "jti", ""),
            (Action::RefreshRepeated, Outcome::Ok, "jti", ""),
            (Action::RefreshReused, Outcome::Refused, "", "invalid_grant"),
        ]
    );
    assert!(records.iter().all(|record| record.event.family == Some(family.id)));
}

/// R05: whichever comes first, after the acknowledged end nothing rotates.
pub(crate) async fn rotation_and_end_race_to_one_outcome(case: &StoreCase) {
    for _ in 0..20 {
        let family = open(&*case.store()).await;
        let (store, presented) = (case.store(), present(&family, 0, 1));
        let refresh =
            tokio::spawn(async move { store.rotate(&presented, &stamp(), "jti").await.unwrap() });
        let until: Timestamp = at(1_000);
        case.store()
            .end_family(family.id, at(1), until, event(Action::FamilyRevoked))
            .await
            .unwrap();
        let rotation = refresh.await.unwrap();
        let generation = match rotation {
            Rotation::Rotated => 1,
            Rotation::Unknown => 0,
            Rotation::Repeated(_)
            | Rotation::Refused
            | Rotation::Reused
            | Rotation::Shared(_)
            | Rotation::Unended(_) => {
                panic!("{rotation:?}")
            }
        };
        assert_eq!(
            rotate(&*case.store(), &present(&family, generation, 2)).await,
            Rotation::Unknown
        );
    }
}

/// R04: a restart forgets nothing.
pub(crate) async fn spent_tokens_stay_spent_after_a_restart(case: &StoreCase) {
    let store = case.store();
    store.create_client(&client("a"), event(Action::ClientCreated)).await.unwrap();
    let (one, other) = (open(&*store).await, open(&*store).await);
    for family in [&one, &other] {
        rotate(&*store, &present(family, 0, 1)).await;
        rotate(&*store, &present(family, 1, 2)).await;
    }
    let store = case.reopen().await;
    assert_eq!(rotate(&*store, &present(&one, 0, 3)).await, Rotation::Reused);
    rotates_to(&*store, &present(&other, 2, 3), &rotated(&other, 3, 3)).await;
}
