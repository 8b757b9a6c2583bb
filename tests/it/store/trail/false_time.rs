//! OPERATORS 3.2 in the store: records of a false time, the cuts of a trail that has some, and the
//! return to the right time.

use std::time::Duration;

use jeton::{
    config::Keep,
    model::{Action, Event, Timestamp},
    store::{AuditStore, RevocationStore, Store, embedded::Embedded},
};

use super::cuts::{fill, flaw, pass};
use crate::store::{
    backend::StoreCase,
    fixtures::{NOW, at, event},
};

const YEAR: i64 = 365 * 86_400_000;

fn issued(at: Timestamp) -> Event {
    Event { at, ..event(Action::TokenIssued) }
}

/// Appends records at these times.
async fn append(store: &dyn Store, times: impl Iterator<Item = Timestamp>) {
    let mut last = None;
    for next in times {
        if let Some(at) = last.replace(next) {
            store.append_soon(issued(at)).await.unwrap();
        }
    }
    store.append(issued(last.unwrap())).await.unwrap();
}

const fn keep(seconds: u64) -> Keep {
    Keep::Age(Duration::from_secs(seconds))
}

/// A clock that is ten years ahead makes no young records due. Once it is right, the records of the
/// false time go with those around them.
async fn is_not_cut_by_a_clock_ahead(store: &dyn Store) {
    fill(store, 3_500).await;
    let ahead = at(10 * YEAR);
    assert_eq!(pass(store, (keep(4_000), ahead), None).await.unwrap(), 0);
    // Those that are as old as nine tenths of the bound.
    assert_eq!(pass(store, (keep(2_000), ahead), None).await.unwrap(), 1_000);
    assert_eq!(pass(store, (keep(2_000), ahead), None).await.unwrap(), 0);
    assert_eq!(pass(store, (keep(2_000), at(3_600_000)), None).await.unwrap(), 0);
    fill(store, 6_500).await;
    assert_eq!(pass(store, (keep(2_000), at(6_500_000)), None).await.unwrap(), 3_000);
    assert_eq!(flaw(store).await, None);
}

/// Records of a clock that was ten years behind are as old as the next ones.
async fn is_not_cut_by_a_clock_behind(store: &dyn Store) {
    append(store, (1..=1_500).map(|sequence| at(sequence - 10 * YEAR))).await;
    fill(store, 4_500).await;
    assert_eq!(pass(store, (keep(4_000), at(4_500_000)), None).await.unwrap(), 0);
    assert_eq!(pass(store, (keep(2_500), at(4_500_000)), None).await.unwrap(), 2_000);
}

#[tokio::test]
async fn a_wrong_clock_cuts_no_young_records_of_an_embedded_trail() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let open =
        |dir: &tempfile::TempDir| Embedded::open(dir.path(), "node", StoreCase::key()).unwrap();
    is_not_cut_by_a_clock_ahead(&open(&dirs[0])).await;
    is_not_cut_by_a_clock_behind(&open(&dirs[1])).await;
}

/// By size, records of a time that lay ahead do not make others go before they must.
#[tokio::test]
async fn records_of_a_false_time_take_no_more_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path(), "node", StoreCase::key()).unwrap();
    fill(&store, 1_000).await;
    append(&store, (1..=1_000).map(|sequence| at(YEAR + sequence))).await;
    fill(&store, 5_000).await;
    let bytes = store.trail_size(NOW).await.unwrap().bytes();
    let half = Keep::Size(bytes / 10 * 7);
    let cut = pass(&store, (half, at(5_000_000)), None).await.unwrap();
    assert!((1_000..=2_000).contains(&cut), "{cut}");
}

/// Also what was acted on and never written is forgotten.
#[tokio::test]
async fn an_embedded_store_starts_at_the_time_of_the_reset() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Embedded::open(dir.path(), "node", StoreCase::key()).unwrap();
    let store = open();
    store.append(issued(at(YEAR))).await.unwrap();
    store.sweep(at(YEAR + 1_000), 10).await.unwrap();
    assert_eq!(store.latest_time().await.unwrap(), at(YEAR + 1_000));
    store.reset_time(NOW, event(Action::ClockReset)).await.unwrap();
    assert_eq!(store.latest_time().await.unwrap(), NOW);
    store.close().await.unwrap();
    let store = open();
    assert_eq!(store.newest_time(), NOW);
    assert!(store.check().await.unwrap().is_intact());
}

mod mongodb {
    use ::mongodb::bson::{Document, doc};
    use jeton::{
        admin::audit::verify,
        model::{Action, Event},
        store::{AuditStore, ClientStore, Store},
    };

    use super::{
        YEAR, append, is_not_cut_by_a_clock_ahead, is_not_cut_by_a_clock_behind, issued, keep, pass,
    };
    use crate::{
        store::{
            backend::StoreCase,
            fixtures::{NOW, at, client, event},
            trail::{
                cuts::mongodb::old_node,
                mongodb::{node, raw, sign, unsigned},
            },
        },
        support::database::Database as Own,
    };

    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn a_wrong_clock_cuts_no_young_records_of_a_shared_trail() {
        let owns = [Own::own(), Own::own()];
        is_not_cut_by_a_clock_ahead(&old_node(&owns[0]).await).await;
        is_not_cut_by_a_clock_behind(&old_node(&owns[1]).await).await;
    }

    /// No record of a node is older than its first registration, by MongoDB's clock.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn records_of_a_node_whose_clock_is_behind_are_not_older_than_the_node() {
        let own = Own::own();
        let behind = node(own.uri(), "node").await;
        append(&behind, (1..=2_500).map(|sequence| at(sequence * 1_000 - YEAR))).await;
        let other = node(own.uri(), "other").await;
        append(&other, (1..=100).map(|sequence| at(sequence * 20_000))).await;
        let nodes = raw(&own).await.collection::<Document>("nodes");
        for (born, cut) in [(1_500, 0), (500, 2_000)] {
            let born = ::mongodb::bson::DateTime::from_millis(at(born * 1_000).millis());
            nodes.update_many(doc! {}, doc! { "$set": { "born_at": born } }).await.unwrap();
            let bound = (keep(1_000), at(2_000_000));
            assert_eq!(pass(&other, bound, None).await.unwrap(), cut, "{born}");
        }
    }

    /// The chain of a node that never returns ends at a time that lay ahead: after the reset it is not
    /// kept until then.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn records_of_a_time_before_a_reset_are_cut() {
        let own = Own::own();
        let gone = node(own.uri(), "gone").await;
        append(&gone, (1..=1_500).map(|sequence| at(YEAR + sequence))).await;
        gone.close().await.unwrap();
        let store = node(own.uri(), "node").await;
        store.reset_time(at(10_000), event(Action::ClockReset)).await.unwrap();
        append(&store, (1..=100).map(|sequence| at(sequence * 20_000))).await;
        assert_eq!(pass(&store, (keep(1_995), at(2_000_000)), None).await.unwrap(), 0);
        assert_eq!(pass(&store, (keep(1_000), at(2_000_000)), None).await.unwrap(), 1_499);
        let mark = store.cut_mark("gone").await.unwrap().unwrap();
        assert_eq!(mark.place.at, at(10_000));
    }

    /// A node that died while it lived ahead has records after its stored head, and an entry in an
    /// outbox: neither takes it there again.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn a_node_that_died_ahead_starts_at_the_time_of_the_reset() {
        let own = Own::own();
        let store = node(own.uri(), "dead").await;
        store.create_client(&client("a"), event(Action::ClientCreated)).await.unwrap();
        store.close().await.unwrap();
        let database = raw(&own).await;
        let nodes = database.collection::<Document>("nodes");
        let head = nodes.find_one(doc! { "_id": "dead" }).await.unwrap().unwrap();
        let store = node(own.uri(), "dead").await;
        for later in 0..3 {
            store.append(issued(at(YEAR + later))).await.unwrap();
        }
        let after = store.chain("dead", 0, 100).await.unwrap().len();
        store.close().await.unwrap();
        // As if it had died before it wrote a head with them.
        nodes.replace_one(doc! { "_id": "dead" }, head).await.unwrap();
        let mut left = unsigned(
            "dead",
            after.try_into().unwrap(),
            &Event { at: at(YEAR + 2), target: "left".into(), ..event(Action::ClientUpdated) },
        );
        sign(&mut left, &StoreCase::key(), "clients", "a");
        let clients = database.collection::<Document>("clients");
        let push = doc! { "$push": { "outbox": left } };
        clients.update_one(doc! { "_id": "a" }, push).await.unwrap();

        let store = node(own.uri(), "reset").await;
        assert_eq!(store.latest_time().await.unwrap(), at(YEAR + 2));
        store.reset_time(NOW, event(Action::ClockReset)).await.unwrap();
        assert_eq!(store.latest_time().await.unwrap(), NOW);
        store.close().await.unwrap();
        for newest in [NOW, at(1)] {
            let store = node(own.uri(), "dead").await;
            assert_eq!(store.newest_time(), newest);
            store.append(issued(at(1))).await.unwrap();
            store.close().await.unwrap();
        }
        let store = node(own.uri(), "dead").await;
        let left = store.chain("reset", 0, 100).await.unwrap();
        let left = left.iter().filter(|record| record.event.target == "left");
        assert_eq!(left.count(), 1, "the event is not lost");
        for verdict in verify(&store, &StoreCase::key(), None, &[]).await.unwrap() {
            assert_eq!(verdict.flaw, None, "{}", verdict.chain);
        }
    }
}
