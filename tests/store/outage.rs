//! What a verb leaves behind whose outcome nobody was told: the server did it, or a part of it, and the caller heard of a failure.

mod mongodb {
    use std::time::Duration;

    use jeton::{
        model::{Action, Jti, Revoked, Timestamp, event::Filter, revocation::Revocation},
        store::{
            AuditStore, CounterStore, FamilyStore, Follower, KeyStore, RevocationStore, Rotate, Rotation, Store, StoreError,
            Write, mongo::Mongo,
        },
    };
    use mongodb::{
        Client,
        bson::{Document, doc},
    };

    use crate::{
        bench::{Bench, POINT, answered},
        database::Database as Own,
        fixtures::{Ear, NOW, at, event, family, keyset, present, stamp},
    };

    /// A node with an application name of its own, whose commands alone fail when they are told to.
    struct Frail {
        own: Own,
        store: Mongo,
        server: Server,
    }

    /// Where that is told.
    struct Server {
        client: Client,
        name: String,
    }

    impl Frail {
        async fn open() -> Self {
            let own = Own::own();
            let name = format!("jeton-{}", uuid::Uuid::new_v4().simple());
            let uri = format!("{}&appName={name}", own.uri());
            let store = Mongo::open(&uri, "node", Bench::key(), Duration::from_secs(2)).await.unwrap();
            let client = Client::with_uri_str(own.uri()).await.unwrap();
            Self { own, store, server: Server { client, name } }
        }
    }

    impl Server {
        async fn point(&self, mode: impl Into<mongodb::bson::Bson>, data: Document) {
            let mut data = data;
            data.insert("appName", &self.name);
            let point = doc! { "configureFailPoint": "failCommand", "mode": mode.into(), "data": data };
            self.client.database("admin").run_command(point).await.unwrap();
        }

        /// While this runs, these commands fail so.
        async fn failing<T>(&self, commands: &[&str], how: Document, verb: impl Future<Output = T>) -> T {
            let _alone = POINT.lock().await;
            let mut data = doc! { "failCommands": commands };
            data.extend(how);
            self.point("alwaysOn", data).await;
            let outcome = verb.await;
            self.point("off", doc! { "failCommands": commands }).await;
            outcome
        }
    }

    /// The token, presented again long after its grace.
    fn late(rotate: &Rotate) -> Rotate {
        Rotate {
            now: rotate.now + Duration::from_secs(300),
            agreed: rotate.agreed + Duration::from_secs(300),
            ..rotate.clone()
        }
    }

    /// R07: a rotation that was made and whose record could not be, so that the caller was refused, is made good however long the
    /// store was away; once somebody was answered, only within the grace.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo test -- --ignored mongodb"]
    async fn a_rotation_that_nobody_heard_of_can_be_asked_for_again() {
        let frail = Frail::open().await;
        let (store, family) = (&frail.store, family("a"));
        store.open_family(&family, event(Action::TokenIssued)).await.unwrap();
        let first = present(&family, 0, 1);
        let stamp = stamp();
        let lost = frail.server.failing(&["insert"], doc! { "errorCode": 91 }, store.rotate(&first, &stamp, "jti")).await;
        assert!(matches!(lost, Err(StoreError::Unavailable(_))), "{lost:?}");
        let again = store.rotate(&late(&first), &stamp, "jti").await.unwrap();
        assert!(matches!(&again, Rotation::Repeated(family) if family.generation == 1), "{again:?}");
        // Another rotation, which is answered: its mark goes within a moment.
        let second = present(&family, 1, 2);
        assert!(matches!(store.rotate(&second, &stamp, "jti").await.unwrap(), Rotation::Rotated(_)));
        store.close().await.unwrap();
        let store = Mongo::open(frail.own.uri(), "node", Bench::key(), Duration::from_secs(2)).await.unwrap();
        assert_eq!(store.rotate(&late(&second), &stamp, "jti").await.unwrap(), Rotation::Reused);
    }

    /// I7: a call that was given up, made again on another node and followed by others, ends nothing when it comes through at last.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo test -- --ignored mongodb"]
    async fn the_echo_of_a_call_that_was_given_up_is_no_reuse() {
        let frail = Frail::open().await;
        let other = Mongo::open(frail.own.uri(), "other", Bench::key(), Duration::from_secs(2)).await.unwrap();
        let (family, stamp) = (family("a"), stamp());
        other.open_family(&family, event(Action::TokenIssued)).await.unwrap();
        let first = present(&family, 0, 0);
        let slow = doc! { "blockConnection": true, "blockTimeMS": 1_500 };
        let given_up = async {
            let call = frail.store.rotate(&first, &stamp, "jti");
            tokio::time::timeout(Duration::from_millis(100), call).await.unwrap_err();
            for generation in 0..3 {
                let next = other.rotate(&present(&family, generation, 20_000), &stamp, "jti").await.unwrap();
                assert!(matches!(next, Rotation::Rotated(_)), "{next:?}");
            }
        };
        frail.server.failing(&["findAndModify"], slow, given_up).await;
        // What is asked of the same connections now comes behind it.
        tokio::time::timeout(Duration::from_secs(3), std::future::pending::<()>()).await.unwrap_err();
        frail.store.ready().await.unwrap();
        let family = other.family(family.id, at(20_000)).await.unwrap().unwrap();
        assert_eq!((family.generation, family.ended_at), (3, None));
    }

    /// C2: the grace goes by the clock that nodes have in common, not by theirs, in both directions.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo test -- --ignored mongodb"]
    async fn the_grace_goes_by_the_common_clock() {
        let frail = Frail::open().await;
        let (store, stamp) = (&frail.store, stamp());
        let ahead =
            |rotate: Rotate, millis: i64| Rotate { now: Timestamp::from_millis(rotate.now.millis() + millis), ..rotate };
        for (skew, after, repeats) in
            [(60_000, 1, true), (-60_000, 9_999, true), (60_000, 10_001, false), (-60_000, 60_000, false)]
        {
            let family = family("a");
            store.open_family(&family, event(Action::TokenIssued)).await.unwrap();
            store.rotate(&ahead(present(&family, 0, 0), skew / 2), &stamp, "jti").await.unwrap();
            // Else it is the mark of an answer on its way that lets it pass.
            answered(frail.own.uri(), &family).await;
            let again = store.rotate(&ahead(present(&family, 0, after), -skew / 2), &stamp, "jti").await.unwrap();
            assert_eq!(matches!(again, Rotation::Repeated(_)), repeats, "{skew} ms apart, {after} ms later: {again:?}");
        }
    }

    /// M6, M7: counters that were told and not confirmed are told again, and count once.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo test -- --ignored mongodb"]
    async fn counters_told_twice_count_once() {
        let frail = Frail::open().await;
        let hits = [("a".to_owned(), 5), ("b".to_owned(), 7)];
        assert_eq!(frail.store.count(&hits, at(10_000)).await.unwrap(), [5, 7]);
        let how = doc! { "writeConcernError": { "code": 64, "errmsg": "not confirmed" } };
        for _ in 0..3 {
            let told = frail.server.failing(&["update"], how.clone(), frail.store.count(&hits, at(10_000))).await;
            assert!(matches!(told, Err(StoreError::Unavailable(_))), "{told:?}");
        }
        assert_eq!(frail.store.count(&hits, at(10_000)).await.unwrap(), [10, 14]);
        // A process of another name, and a later one of this name, count beside it.
        for name in ["other", "node"] {
            let other = Mongo::open(frail.own.uri(), name, Bench::key(), Duration::from_secs(2)).await.unwrap();
            other.count(&hits[..1], at(10_000)).await.unwrap();
        }
        let last = Mongo::open(frail.own.uri(), "last", Bench::key(), Duration::from_secs(2)).await.unwrap();
        assert_eq!(last.count(&[("a".to_owned(), 0)], at(10_000)).await.unwrap(), [20]);
    }

    /// O03: a record that could not be made is made by the next process of this node, once, and its time does not become the
    /// node's: it was another clock's.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo test -- --ignored mongodb"]
    async fn a_record_left_behind_is_made_once_and_brings_no_time_along() {
        let frail = Frail::open().await;
        let revocation = Revocation { revoked: Revoked::Token(Jti::new()), until: at(1_000_000) };
        let years = Timestamp::from_millis(NOW.millis() + 10 * 366 * 86_400_000);
        let ahead = jeton::model::Event { at: years, ..event(Action::TokenRevoked) };
        let Frail { own, store, server } = frail;
        let dies = async {
            let left = store.revoke(&revocation, ahead).await;
            // As if it were killed: what waits in it is not written any more.
            drop(store);
            left
        };
        let left = server.failing(&["insert"], doc! { "errorCode": 91 }, dies).await;
        assert!(matches!(left, Err(StoreError::Unavailable(_))), "{left:?}");
        let next = Mongo::open(own.uri(), "node", Bench::key(), Duration::from_secs(2)).await.unwrap();
        let recorded = next.events(&Filter::default(), None, 10).await.unwrap();
        assert_eq!(recorded.iter().filter(|record| record.event.at == years).count(), 1, "{recorded:?}");
        assert!(next.newest() < years, "the clock of a node that is gone counts for this one");
        next.close().await.unwrap();
        let again = Mongo::open(own.uri(), "node", Bench::key(), Duration::from_secs(2)).await.unwrap();
        assert!(again.newest() < years, "the clock of a node that is gone counts after a restart");
    }

    /// A process whose name was taken judges nothing from that moment on, and whoever begins to follow hears of the keys first.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo test -- --ignored mongodb"]
    async fn who_lost_its_name_is_told_at_once() {
        let frail = Frail::open().await;
        assert_eq!(frail.store.replace_keyset(&keyset(1), event(Action::KeysCreated)).await.unwrap(), Write::Done);
        let ear = Ear::new();
        frail.store.follow(NOW, ear.clone() as std::sync::Arc<dyn Follower>).await.unwrap();
        assert_eq!(ear.heard(), [jeton::store::Change::Keyset(keyset(1).into())]);
        let _heir = Mongo::open(frail.own.uri(), "node", Bench::key(), Duration::from_secs(2)).await.unwrap();
        let told = async {
            while !ear.is_lost() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), told).await.expect("a beat notices within half a second");
    }
}
