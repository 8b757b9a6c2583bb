//! OPERATORS 3.2 in the store: records of a time that lay ahead, and the return to the right one.

use jeton::{
    model::{Action, Event, Timestamp},
    store::{AuditStore, RevocationStore, Store, embedded::Embedded},
};

use crate::store::{
    backend::Bench,
    fixtures::{NOW, at, event},
};

const YEAR: i64 = 365 * 86_400_000;

fn issued(at: Timestamp) -> Event {
    Event { at, ..event(Action::TokenIssued) }
}

/// Also what was acted on and never written is forgotten.
#[tokio::test]
async fn an_embedded_store_starts_at_the_time_of_the_reset() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Embedded::open(dir.path(), "node", Bench::key()).unwrap();
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

    use super::{YEAR, issued};
    use crate::{
        store::{
            backend::Bench,
            fixtures::{NOW, at, client, event},
            trail::mongodb::{node, raw, sign, unsigned},
        },
        support::database::Database as Own,
    };

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
        sign(&mut left, &Bench::key(), "clients", "a");
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
        for verdict in verify(&store, &Bench::key(), None, &[]).await.unwrap() {
            assert_eq!(verdict.flaw, None, "{}", verdict.chain);
        }
    }
}
