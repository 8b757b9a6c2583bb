//! The wrappers' own promises; that they are stores at all is the suite's to show.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use jeton::{
    metrics::METRICS,
    model::{Action, event::Filter},
    store::{AuditStore, Change, ClientStore, Follower, RevocationStore, Store, StoreError},
};
use tokio::time::Instant;

use crate::{
    store::{
        backend::StoreCase,
        fixtures::{NOW, RecordingFollower, client, event, id},
    },
    support::faulty::{Act, FaultyStore, Kind, Side},
};

fn faulty(case: &StoreCase) -> FaultyStore {
    FaultyStore::new(case.store())
}

#[tokio::test]
async fn the_planned_call_fails_before_the_store_hears_of_it() {
    let case = StoreCase::embedded();
    let store = faulty(&case);
    store.plan(2, Act::FailBefore(Kind::Unavailable));
    assert_eq!(store.client(&id("a")).await.unwrap(), None);
    let failed = store.create_client(&client("a"), event(Action::ClientCreated)).await;
    assert!(matches!(failed, Err(StoreError::Unavailable(_))));
    assert_eq!(store.client(&id("a")).await.unwrap(), None);
    assert_eq!(store.calls(), 3);
}

#[tokio::test]
async fn the_planned_call_fails_after_the_store_has_done_it() {
    let case = StoreCase::embedded();
    let store = faulty(&case);
    store.plan(1, Act::FailAfter(Kind::Full));
    let failed = store.create_client(&client("a"), event(Action::ClientCreated)).await;
    assert!(matches!(failed, Err(StoreError::Full(_))));
    assert_eq!(store.client(&id("a")).await.unwrap(), Some(client("a")));
}

#[tokio::test]
async fn what_is_planned_for_all_calls_stops_when_it_is_taken_back() {
    let case = StoreCase::embedded();
    let store = faulty(&case);
    store.always(Some(Act::FailBefore(Kind::Corrupt)));
    assert!(matches!(store.ready().await, Err(StoreError::Corrupt(_))));
    assert!(matches!(store.append(event(Action::TokenIssued)).await, Err(StoreError::Corrupt(_))));
    store.always(None);
    store.ready().await.unwrap();
    assert!(store.chain("node", 0, 1).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_delayed_call_is_late_on_either_side() {
    let case = StoreCase::embedded();
    let store = Arc::new(faulty(&case));
    for act in
        [Act::DelayBefore(Duration::from_millis(30)), Act::DelayAfter(Duration::from_millis(30))]
    {
        store.plan(1, act);
        let start = Instant::now();
        store.append(event(Action::TokenIssued)).await.unwrap();
        assert!(start.elapsed() >= Duration::from_millis(30));
    }
}

#[tokio::test]
async fn a_held_call_waits_on_either_side() {
    let case = StoreCase::embedded();
    let store = faulty(&case);
    for side in [Side::Before, Side::After] {
        let held = store.hold("append", side);
        let meanwhile = async {
            held.arrived().await;
            let there = store.events(&Filter::default(), None, 9).await.unwrap().len();
            held.release();
            there
        };
        let before = store.events(&Filter::default(), None, 9).await.unwrap().len();
        let (done, there) = tokio::join!(store.append(event(Action::TokenIssued)), meanwhile);
        done.unwrap();
        assert_eq!(there - before, usize::from(side == Side::After), "{side:?}");
    }
}

/// Hears what a store says of its age.
#[derive(Default)]
struct Watch(Mutex<Option<Instant>>);

impl Follower for Watch {
    fn apply(&self, _: &Change) {}

    fn knows_up_to(&self, at: Instant) {
        *self.0.lock().unwrap() = Some(at);
    }
}

#[tokio::test]
async fn changes_that_are_held_back_come_late_or_never() {
    let case = StoreCase::embedded();
    let store = faulty(&case);
    let (ear, watch) = (RecordingFollower::new(), Arc::new(Watch::default()));
    store.follow(NOW, ear.clone()).await.unwrap();
    store.follow(NOW, watch.clone()).await.unwrap();
    let write = async |name| {
        store.create_client(&client(name), event(Action::ClientCreated)).await.map(drop).unwrap()
    };
    store.hold_changes();
    write("a").await;
    write("b").await;
    assert_eq!(ear.heard(), []);
    store.release_changes();
    write("c").await;
    let told = ["a", "b", "c"].map(|name| Change::Client(id(name)));
    assert_eq!(ear.heard(), told);
    store.hold_changes();
    write("d").await;
    store.lose_changes();
    write("e").await;
    assert_eq!(ear.heard()[3..], [Change::Missed, Change::Client(id("e"))]);
    let now = Instant::now();
    store.say(now);
    assert_eq!(*watch.0.lock().unwrap(), Some(now));
}

/// Through two of them: what the one below says is said to those who follow from before it was
/// taken in hand, and to no others.
#[tokio::test]
async fn how_far_all_is_told_is_said_by_hand() {
    let case = StoreCase::embedded();
    let below = Arc::new(faulty(&case));
    let above = FaultyStore::new(below.clone());
    let (before, after) = (Arc::new(Watch::default()), Arc::new(Watch::default()));
    above.follow(NOW, before.clone()).await.unwrap();
    above.say_by_hand();
    above.follow(NOW, after.clone()).await.unwrap();
    let now = Instant::now();
    below.say(now);
    assert_eq!((*before.0.lock().unwrap(), *after.0.lock().unwrap()), (Some(now), None));
    above.say(now);
    assert_eq!(*after.0.lock().unwrap(), Some(now));
}

#[tokio::test]
async fn a_metered_store_tells_verbs_and_outcomes() {
    let case = StoreCase::metered();
    case.store().ready().await.unwrap();
    case.store().close().await.unwrap();
    case.store().ready().await.unwrap_err();
    // Those of the process: other tests may add to them.
    for (verb, outcome) in [("ready", "ok"), ("ready", "unavailable"), ("close", "ok")] {
        assert!(!METRICS.store_calls(verb, outcome).is_empty(), "{verb} {outcome}");
    }
}
