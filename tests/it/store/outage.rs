//! Remains of a verb whose caller got no answer: the server did it, or a part of it, and
//! the caller heard of a failure.

mod mongodb {
    use std::{pin::pin, time::Duration};

    use futures_util::{
        FutureExt,
        future::{Either, join_all, pending, select},
    };
    use jeton::{
        model::{Action, Jti, Revoked, Timestamp, event::Filter, revocation::Revocation},
        store::{
            AuditStore, Change, CounterStore, FamilyStore, Follower, KeyStore, RevocationStore,
            Rotate, Rotation, Store, StoreError, Write, mongo::Mongo,
        },
    };
    use mongodb::{
        Client,
        bson::{DateTime, Document, doc},
    };
    use tokio::time::timeout;

    use crate::support::until::HANG;
    use crate::{
        store::{
            backend::StoreCase,
            fixtures::{NOW, RecordingFollower, at, event, family, keyset, present, stamp},
            trail::mongodb::sign,
        },
        support::database::{Database as Own, FAIL_COMMAND, PATIENCE, answered},
    };

    /// A node with an application name of its own, whose commands alone fail when they are told to.
    struct FailingNode {
        own: Own,
        store: Mongo,
        server: Server,
    }

    /// Place of the report.
    struct Server {
        client: Client,
        name: String,
    }

    impl FailingNode {
        async fn open() -> Self {
            Self::with(Duration::from_secs(2)).await
        }

        /// With this deadline for its calls.
        async fn with(deadline: Duration) -> Self {
            let own = Own::own();
            let name = format!("jeton-{}", uuid::Uuid::new_v4().simple());
            let uri = format!("{}&appName={name}", own.uri());
            let store = Mongo::open(&uri, "node", StoreCase::key(), deadline).await.unwrap();
            let client = Client::with_uri_str(own.uri()).await.unwrap();
            Self { own, store, server: Server { client, name } }
        }
    }

    impl Server {
        async fn point(&self, mode: impl Into<mongodb::bson::Bson>, data: Document) {
            let mut data = data;
            data.insert("appName", &self.name);
            let point =
                doc! { "configureFailPoint": "failCommand", "mode": mode.into(), "data": data };
            self.client.database("admin").run_command(point).await.unwrap();
        }

        /// Number of commands that failed since the server was started.
        async fn failed(&self) -> i64 {
            let asked = doc! { "getParameter": 1, "failpoint.failCommand": 1 };
            let told = self.client.database("admin").run_command(asked).await.unwrap();
            let entered = told
                .get_document("failpoint.failCommand")
                .unwrap()
                .get("timesEntered")
                .cloned()
                .unwrap();
            entered.as_i64().or_else(|| entered.as_i32().map(i64::from)).unwrap()
        }

        /// While this runs, these commands fail so.
        async fn failing<T>(
            &self,
            commands: &[&str],
            how: Document,
            verb: impl Future<Output = T>,
        ) -> T {
            let _alone = FAIL_COMMAND.lock().await;
            let mut data = doc! { "failCommands": commands };
            data.extend(how);
            self.point("alwaysOn", data).await;
            let outcome = verb.await;
            self.point("off", doc! { "failCommands": commands }).await;
            outcome
        }
    }

    impl Server {
        /// While this runs, families are changed and their callers do not hear of it.
        async fn unconfirmed<T>(&self, verb: impl Future<Output = T>) -> T {
            let how = doc! { "writeConcernError": { "code": 64, "errmsg": "not confirmed" } };
            self.failing(&["update"], how, verb).await
        }

        /// While this runs, no event is recorded.
        async fn unrecorded<T>(&self, verb: impl Future<Output = T>) -> T {
            let logs = self.client.default_database().unwrap().collection::<Document>("audit_logs");
            let how = doc! { "errorCode": 91, "namespace": logs.namespace().to_string() };
            self.failing(&["insert"], how, verb).await
        }

        /// The caller gives up once a command is blocked.
        async fn abandon<T>(&self, call: impl Future<Output = T>, failed: i64) {
            let (call, blocked) = (pin!(call), pin!(self.blocked(failed)));
            assert!(matches!(select(call, blocked).await, Either::Right(_)));
        }

        /// Until a command is blocked.
        async fn blocked(&self, failed: i64) {
            while self.failed().await == failed {
                timeout(Duration::from_millis(5), pending::<()>()).await.unwrap_err();
            }
        }
    }

    /// The token, presented again long after its grace.
    fn late(rotate: &Rotate, seconds: u64) -> Rotate {
        let by = Duration::from_secs(seconds);
        Rotate { now: rotate.now + by, cluster_now: rotate.cluster_now + by, ..rotate.clone() }
    }

    /// A call whose connection is dead holds up nobody who comes with the same refresh token:
    /// neither who reads the family nor who rotates it.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn a_call_that_is_stuck_is_passed() {
        // First, for a node that is not new looks at this collection for itself.
        let _alone = FAIL_COMMAND.lock().await;
        let frail = FailingNode::with(PATIENCE).await;
        let (store, family, stamp) = (&frail.store, family("a"), stamp());
        store.open_family(&family, event(Action::TokenIssued)).await.unwrap();
        let presented = present(&family, 0, 1);
        let database = frail.own.uri().rsplit_once('/').unwrap().1.split_once('?').unwrap().0;
        let once = async |command: &str| {
            let tokens = format!("{database}.tokens");
            let so = doc! { "failCommands": [command], "namespace": tokens, "blockConnection": true, "blockTimeMS": 9_000 };
            frail.server.point(doc! { "times": 1 }, so).await;
        };
        once("find").await;
        let failed = frail.server.failed().await;
        let mut stuck = pin!(store.family(family.id, NOW));
        assert!(matches!(
            select(&mut stuck, pin!(frail.server.blocked(failed))).await,
            Either::Right(_)
        ));
        for found in join_all((0..20).map(|_| store.family(family.id, NOW))).await {
            assert_eq!(found.unwrap().as_ref(), Some(&family));
        }
        assert!(stuck.now_or_never().is_none());
        once("update").await;
        let failed = frail.server.failed().await;
        let mut stuck = pin!(store.rotate(&presented, &stamp, "jti"));
        assert!(matches!(
            select(&mut stuck, pin!(frail.server.blocked(failed))).await,
            Either::Right(_)
        ));
        for rotation in join_all((0..20).map(|_| store.rotate(&presented, &stamp, "jti"))).await {
            assert!(rotation.is_ok_and(
                |rotation| rotation != Rotation::Unknown && rotation != Rotation::Reused
            ));
        }
        assert!(stuck.now_or_never().is_none());
    }

    /// R01, R07: a rotation that was made and not confirmed, so that the caller was refused, is made good however long the store was away; once somebody was answered, only
    /// within the grace, which begins with that.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn a_rotation_that_nobody_heard_of_can_be_asked_for_again() {
        let frail = FailingNode::open().await;
        let (store, stamp) = (&frail.store, stamp());
        let unheard = async |presented: &Rotate| {
            let lost = store.rotate(presented, &stamp, "jti");
            let lost = frail.server.unconfirmed(lost).await;
            assert!(matches!(lost, Err(StoreError::Unavailable(_))), "{lost:?}");
        };
        let family = family("a");
        store.open_family(&family, event(Action::TokenIssued)).await.unwrap();
        let first = present(&family, 0, 1);
        unheard(&first).await;
        // Nor is who asks again: it stays open for the next.
        unheard(&late(&first, 100)).await;
        for after in [200, 209] {
            let again = store.rotate(&late(&first, after), &stamp, "jti").await.unwrap();
            assert!(
                matches!(&again, Rotation::Repeated(family) if family.generation == 1),
                "{after} s: {again:?}"
            );
        }
        answered(frail.own.uri()).await;
        assert_eq!(
            store.rotate(&late(&first, 220), &stamp, "jti").await.unwrap(),
            Rotation::Reused
        );
    }

    /// R01: the marks of a node that was killed after it recorded its answers are removed by its next
    /// process, and a rotation without marks is judged by its own time.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn a_mark_does_not_outlive_its_node_nor_its_rotation() {
        let frail = FailingNode::open().await;
        let (killed, rotated) = (family("a"), family("b"));
        let stamp = stamp();
        for family in [&killed, &rotated] {
            frail.store.open_family(family, event(Action::TokenIssued)).await.unwrap();
            frail.store.rotate(&present(family, 0, 1), &stamp, "jti").await.unwrap();
        }
        let FailingNode { own, store, server } = frail;
        // The events are recorded, and the marks are still there.
        assert_eq!(store.events(&Filter::default(), None, 10).await.unwrap().len(), 4);
        drop(store);
        let tokens = server.client.default_database().unwrap().collection::<Document>("tokens");
        let id = mongodb::bson::Uuid::from_bytes(*rotated.id.0.as_bytes());
        let older = doc! { "$set": { "generation": 2_i64, "rotated_at": DateTime::from_millis(at(300_000).millis()) } };
        tokens.update_one(doc! { "_id": id }, older).await.unwrap();
        let next = Mongo::open(own.uri(), "node", StoreCase::key(), PATIENCE).await.unwrap();
        let repeated = next.rotate(&present(&rotated, 1, 302_000), &stamp, "jti").await.unwrap();
        assert!(matches!(repeated, Rotation::Repeated(_)), "{repeated:?}");
        answered(own.uri()).await;
        assert_eq!(
            next.rotate(&late(&present(&killed, 0, 1), 60), &stamp, "jti").await.unwrap(),
            Rotation::Reused
        );
    }

    /// R01: while the database does not take away that a rotation was not answered, its node knows
    /// better; and it is taken away as soon as that can be.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn a_mark_that_cannot_be_taken_away_is_known_to_be_wrong() {
        let FailingNode { own, store, server } = FailingNode::open().await;
        let (spent, other, stamp) = (family("a"), family("b"), stamp());
        for family in [&spent, &other] {
            store.open_family(family, event(Action::TokenIssued)).await.unwrap();
            let rotated = store.rotate(&present(family, 0, 1), &stamp, "jti").await.unwrap();
            assert!(matches!(rotated, Rotation::Rotated), "{rotated:?}");
        }
        let meanwhile = async {
            // Waits until it was tried, and may fail for the same reason.
            let _ = store.sweep(NOW, 10).await;
        };
        // InternalError: nobody takes the server for gone.
        server.failing(&["update"], doc! { "errorCode": 1 }, meanwhile).await;
        assert_eq!(
            store.rotate(&late(&present(&spent, 0, 1), 60), &stamp, "jti").await.unwrap(),
            Rotation::Reused
        );
        // The next look is 30 s away, and would not know.
        tokio::time::timeout(Duration::from_secs(25), answered(own.uri()))
            .await
            .expect("not left to the next look");
        drop(store);
        let next = Mongo::open(own.uri(), "node", StoreCase::key(), PATIENCE).await.unwrap();
        assert_eq!(
            next.rotate(&late(&present(&other, 0, 1), 60), &stamp, "jti").await.unwrap(),
            Rotation::Reused
        );
    }

    /// R07: that a record was made by who found the event tells nothing of the caller: whoever was
    /// not answered may still ask again.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn a_record_that_another_made_answered_nobody() {
        let FailingNode { own, store, server } = FailingNode::open().await;
        let (family, stamp) = (family("a"), stamp());
        store.open_family(&family, event(Action::TokenIssued)).await.unwrap();
        let first = present(&family, 0, 1);
        let dies = async {
            let left = store.rotate(&first, &stamp, "jti").await;
            drop(store);
            left
        };
        let left = server.unconfirmed(dies).await;
        assert!(matches!(left, Err(StoreError::Unavailable(_))), "{left:?}");
        let tokens = server.client.default_database().unwrap().collection::<Document>("tokens");
        let left = tokens.find_one(doc! {}).await.unwrap().unwrap();
        // The entry of the opening may still be before it.
        let mut outbox = vec![left.get_array("outbox").unwrap().last().unwrap().clone()];
        let finder = Mongo::open(own.uri(), "node", StoreCase::key(), PATIENCE).await.unwrap();
        finder.close().await.unwrap();
        let is_empty = doc! { "outbox.id": { "$exists": false } };
        assert_eq!(tokens.count_documents(is_empty.clone()).await.unwrap(), 1, "it was recorded");
        // As it is left behind by one that recorded it and was killed before it took it out.
        let entry = outbox[0].as_document_mut().unwrap();
        entry.extend(doc! { "claim": mongodb::bson::Uuid::new(), "from": "node" });
        sign(entry, &StoreCase::key(), "tokens", left.get("_id").unwrap().clone());
        tokens.update_one(doc! {}, doc! { "$set": { "outbox": outbox } }).await.unwrap();
        let next = Mongo::open(own.uri(), "node", StoreCase::key(), PATIENCE).await.unwrap();
        while tokens.count_documents(is_empty.clone()).await.unwrap() == 0 {
            tokio::task::yield_now().await;
        }
        let again = next.rotate(&late(&first, 60), &stamp, "jti").await.unwrap();
        assert!(
            matches!(&again, Rotation::Repeated(family) if family.generation == 1),
            "{again:?}"
        );
        let recorded = next.events(&Filter::default(), None, 10).await.unwrap();
        let made = recorded.iter().filter(|record| record.event.action == Action::TokenRefreshed);
        assert_eq!(made.count(), 1, "{recorded:?}");
    }

    /// AUDIT FT1: a record that was made when its caller had given up answered nobody either: where the node is killed before it takes the event out of the
    /// outbox, the spent token still yields its successor.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn a_record_that_came_too_late_answered_nobody() {
        let FailingNode { own, store, server } = FailingNode::open().await;
        let (family, stamp) = (family("a"), stamp());
        store.open_family(&family, event(Action::TokenIssued)).await.unwrap();
        let first = present(&family, 0, 1);
        let database = server.client.default_database().unwrap();
        let (tokens, logs) = (
            database.collection::<Document>("tokens"),
            database.collection::<Document>("audit_logs"),
        );
        let failed = server.failed().await;
        let slow = doc! { "failCommands": ["update"], "namespace": tokens.namespace().to_string(), "blockConnection": true, "blockTimeMS": 1_000 };
        let kept = {
            let _alone = FAIL_COMMAND.lock().await;
            server.point(doc! { "times": 1 }, slow).await;
            server.abandon(store.rotate(&first, &stamp, "jti"), failed).await;
            let logs = doc! { "failCommands": ["insert"], "namespace": logs.namespace().to_string(), "errorCode": 91 };
            server.point("alwaysOn", logs.clone()).await;
            let kept = loop {
                let found = tokens.find_one(doc! { "generation": 1_i64 }).await.unwrap();
                if let Some(found) = found {
                    break found;
                }
            };
            server.point("off", logs).await;
            kept
        };
        let mark = kept.get_document("last").unwrap().get_array("unanswered").unwrap().clone();
        // The node tries on, and records it when it can.
        let recorded = async {
            while logs.count_documents(doc! { "entry": &mark[0] }).await.unwrap() == 0 {
                tokio::task::yield_now().await;
            }
            store.close().await.unwrap();
        };
        timeout(HANG * 5, recorded).await.expect("it is recorded late");
        // As it is left behind by one that was killed in the moment after.
        let outbox = kept.get_array("outbox").unwrap().clone();
        tokens.update_one(doc! {}, doc! { "$set": { "outbox": outbox } }).await.unwrap();
        let next = Mongo::open(own.uri(), "node", StoreCase::key(), PATIENCE).await.unwrap();
        while tokens.count_documents(doc! { "outbox.id": { "$exists": true } }).await.unwrap() > 0 {
            tokio::task::yield_now().await;
        }
        let again = next.rotate(&late(&first, 60), &stamp, "jti").await.unwrap();
        assert!(
            matches!(&again, Rotation::Repeated(family) if family.generation == 1),
            "{again:?}"
        );
    }

    /// AUDIT TL7: a rotation that nobody was answered is no sign of theft when it is asked for
    /// again, also in many generations running, and one that was answered is, also where another
    /// node repeats it at once.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn only_what_was_answered_counts() {
        let frail = FailingNode::open().await;
        let other =
            Mongo::open(frail.own.uri(), "other", StoreCase::key(), PATIENCE).await.unwrap();
        let (family, stamp) = (family("a"), stamp());
        other.open_family(&family, event(Action::TokenIssued)).await.unwrap();
        for generation in 0..5 {
            let presented = present(&family, generation, i64::from(generation) * 60_000);
            let lost = frail.store.rotate(&presented, &stamp, "jti");
            let lost = frail.server.unconfirmed(lost).await;
            assert!(matches!(lost, Err(StoreError::Unavailable(_))), "{lost:?}");
            let again = other.rotate(&presented, &stamp, "jti").await.unwrap();
            assert!(
                matches!(&again, Rotation::Repeated(family) if family.generation == generation + 1),
                "{again:?}"
            );
        }
        for generation in 5..8 {
            let presented = present(&family, generation, i64::from(generation) * 60_000);
            let next = frail.store.rotate(&presented, &stamp, "jti").await.unwrap();
            assert!(matches!(next, Rotation::Rotated), "{generation}: {next:?}");
            let again = other.rotate(&presented, &stamp, "jti").await.unwrap();
            assert!(
                matches!(again, Rotation::Repeated(_) | Rotation::Shared(_)),
                "{generation}: {again:?}"
            );
            answered(frail.own.uri()).await;
        }
        let next = other.rotate(&present(&family, 8, 480_000), &stamp, "jti").await.unwrap();
        assert!(matches!(next, Rotation::Shared(_) | Rotation::Unknown), "{next:?}");
        assert!(other.family(family.id, at(480_000)).await.unwrap().unwrap().ended_at.is_some());
    }

    /// R01, TL7: of two nodes that give an unheard successor again after the grace, the second one
    /// counts the first: a state that both found is changed by one of them.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn two_late_repetitions_are_both_counted() {
        let frail = FailingNode::with(PATIENCE).await;
        let other =
            Mongo::open(frail.own.uri(), "other", StoreCase::key(), PATIENCE).await.unwrap();
        let (store, server, family, stamp) = (&frail.store, &frail.server, family("a"), stamp());
        store.open_family(&family, event(Action::TokenIssued)).await.unwrap();
        let first = present(&family, 0, 1);
        let lost = server.unconfirmed(store.rotate(&first, &stamp, "jti")).await;
        assert!(matches!(lost, Err(StoreError::Unavailable(_))), "{lost:?}");
        // No removal of entries comes between: only the repetition is an update.
        store.sweep(NOW, 10).await.unwrap();
        let late = late(&first, 100);
        let _alone = FAIL_COMMAND.lock().await;
        let tokens = server.client.default_database().unwrap().collection::<Document>("tokens");
        let slow = doc! { "failCommands": ["update"], "namespace": tokens.namespace().to_string(), "blockConnection": true, "blockTimeMS": 2_000 };
        let failed = server.failed().await;
        // The first update is the attempt to rotate, the second the repetition.
        server.point(doc! { "skip": 1 }, slow.clone()).await;
        let judged = pin!(store.rotate(&late, &stamp, "jti"));
        let Either::Right(((), judged)) = select(judged, pin!(server.blocked(failed))).await else {
            panic!("the repetition is blocked")
        };
        let one = other.rotate(&late, &stamp, "jti").await.unwrap();
        assert!(matches!(&one, Rotation::Repeated(family) if family.answers.given == 1), "{one:?}");
        // Before it removes its mark.
        drop(other);
        let two = judged.await.unwrap();
        let Rotation::Repeated(two) = two else { panic!("{two:?}") };
        assert_eq!(two.answers.given, 2);
        server.point("off", slow).await;
    }

    /// AUDIT TL7: while four calls are not known to have been answered, a further one changes
    /// nothing and asks the caller to try again; after the grace the successor is given.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn an_outage_uses_up_no_repetitions() {
        let FailingNode { store, server, own: _own } = FailingNode::open().await;
        let (family, stamp) = (family("a"), stamp());
        store.open_family(&family, event(Action::TokenIssued)).await.unwrap();
        let presented = present(&family, 0, 0);
        let tokens = server.client.default_database().unwrap().collection::<Document>("tokens");
        // Each caller gives up while its change is on the way.
        let slow = doc! { "blockConnection": true, "blockTimeMS": 100, "namespace": tokens.namespace().to_string() };
        let asked = async {
            for _ in 0..8 {
                let failed = server.failed().await;
                server.abandon(store.rotate(&presented, &stamp, "jti"), failed).await;
            }
        };
        server.failing(&["update"], slow, asked).await;
        // What they began is over.
        store.ready().await.unwrap();
        let kept = tokens.find_one(doc! {}).await.unwrap().unwrap();
        let given = kept.get_document("answers").unwrap().get_i64("given").unwrap();
        assert!((1..=4).contains(&given), "the rotation and up to three repetitions: {kept}");
        let again = store.rotate(&late(&presented, 11), &stamp, "jti").await.unwrap();
        assert!(
            matches!(&again, Rotation::Repeated(family) if family.answers.given == 1),
            "{again:?}"
        );
    }

    /// I7: a call that was given up, made again on another node and followed by others, ends
    /// nothing when it comes through at last; unless the token was spent when it came: who presents
    /// such a one does not get away with hanging up.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn the_echo_of_a_call_that_was_given_up_is_no_reuse() {
        let frail = FailingNode::open().await;
        let other =
            Mongo::open(frail.own.uri(), "other", StoreCase::key(), PATIENCE).await.unwrap();
        let (family, spent, stamp) = (family("a"), family("b"), stamp());
        for family in [&family, &spent] {
            other.open_family(family, event(Action::TokenIssued)).await.unwrap();
        }
        other.rotate(&present(&spent, 0, 0), &stamp, "jti").await.unwrap();
        other.rotate(&present(&spent, 1, 0), &stamp, "jti").await.unwrap();
        let calls = [
            present(&family, 0, 0),
            Rotate { was_acceptable_on_arrival: false, ..present(&spent, 0, 0) },
        ];
        let slow = doc! { "blockConnection": true, "blockTimeMS": 1_500 };
        let given_up = async {
            for call in &calls {
                let call = frail.store.rotate(call, &stamp, "jti");
                tokio::time::timeout(Duration::from_millis(100), call).await.unwrap_err();
            }
            for generation in 0..3 {
                let next = other
                    .rotate(&present(&family, generation, 20_000), &stamp, "jti")
                    .await
                    .unwrap();
                assert!(matches!(next, Rotation::Rotated), "{next:?}");
            }
        };
        frail.server.failing(&["update"], slow, given_up).await;
        // What is asked of the same connections now comes behind it.
        tokio::time::timeout(Duration::from_secs(3), std::future::pending::<()>())
            .await
            .unwrap_err();
        frail.store.ready().await.unwrap();
        let family = other.family(family.id, at(20_000)).await.unwrap().unwrap();
        assert_eq!((family.generation, family.ended_at), (3, None));
        assert!(other.family(spent.id, at(20_000)).await.unwrap().unwrap().ended_at.is_some());
    }

    /// C2: the grace goes by the clock that nodes have in common, not by theirs, in both
    /// directions.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn the_grace_goes_by_the_common_clock() {
        let frail = FailingNode::open().await;
        let (store, stamp) = (&frail.store, stamp());
        let ahead = |rotate: Rotate, millis: i64| Rotate {
            now: Timestamp::from_millis(rotate.now.millis() + millis),
            ..rotate
        };
        for (skew, after, repeats) in [
            (60_000, 1, true),
            (-60_000, 9_999, true),
            (60_000, 10_001, false),
            (-60_000, 60_000, false),
        ] {
            let family = family("a");
            store.open_family(&family, event(Action::TokenIssued)).await.unwrap();
            store.rotate(&ahead(present(&family, 0, 0), skew / 2), &stamp, "jti").await.unwrap();
            // Else it is the mark of an answer on its way that lets it pass.
            answered(frail.own.uri()).await;
            let again = store
                .rotate(&ahead(present(&family, 0, after), -skew / 2), &stamp, "jti")
                .await
                .unwrap();
            assert_eq!(
                matches!(again, Rotation::Repeated(_)),
                repeats,
                "{skew} ms apart, {after} ms later: {again:?}"
            );
        }
    }

    /// M6, M7: counters that were told and not confirmed are told again, and count once.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn counters_told_twice_count_once() {
        let frail = FailingNode::open().await;
        let hits = [("a".to_owned(), 5), ("b".to_owned(), 7)];
        assert_eq!(frail.store.count(&hits, at(10_000)).await.unwrap(), [5, 7]);
        let how = doc! { "writeConcernError": { "code": 64, "errmsg": "not confirmed" } };
        for _ in 0..3 {
            let told = frail
                .server
                .failing(&["update"], how.clone(), frail.store.count(&hits, at(10_000)))
                .await;
            assert!(matches!(told, Err(StoreError::Unavailable(_))), "{told:?}");
        }
        assert_eq!(frail.store.count(&hits, at(10_000)).await.unwrap(), [10, 14]);
        // A process of another name, and a later one of this name, count beside it.
        for name in ["other", "node"] {
            let other =
                Mongo::open(frail.own.uri(), name, StoreCase::key(), PATIENCE).await.unwrap();
            other.count(&hits[..1], at(10_000)).await.unwrap();
        }
        let last = Mongo::open(frail.own.uri(), "last", StoreCase::key(), PATIENCE).await.unwrap();
        assert_eq!(last.count(&[("a".to_owned(), 0)], at(10_000)).await.unwrap(), [20]);
    }

    /// O03, C1: a record that could not be made is made by the next process of this node, once. Its
    /// time is the node's from then on, but for one that another node's clock gave.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn a_record_left_behind_is_made_once_and_brings_its_time_along() {
        for foreign in [false, true] {
            let FailingNode { own, store, server } = FailingNode::open().await;
            let revocation =
                Revocation { revoked: Revoked::Token(Jti::new()), until: at(1_000_000) };
            let years = Timestamp::from_millis(NOW.millis() + 10 * 366 * 86_400_000);
            let ahead = jeton::model::Event { at: years, ..event(Action::TokenRevoked) };
            let dies = async {
                let left = store.revoke(&revocation, ahead).await;
                // As if it were killed: what waits in it is not written any more.
                drop(store);
                // An attempt that looks for a primary at this moment, for up to three quarters of
                // its deadline, comes too early too.
                tokio::time::timeout(Duration::from_secs(3), std::future::pending::<()>())
                    .await
                    .unwrap_err();
                left
            };
            server.unrecorded(dies).await.unwrap();
            // As a node leaves it that found it with another one, and was killed too.
            let revocations =
                server.client.default_database().unwrap().collection::<Document>("revocations");
            let left = revocations.find_one(doc! {}).await.unwrap().unwrap();
            let mut outbox = left.get_array("outbox").unwrap().clone();
            if foreign {
                let entry = outbox[0].as_document_mut().unwrap();
                entry.extend(doc! { "claim": mongodb::bson::Uuid::new(), "from": "other" });
                sign(entry, &StoreCase::key(), "revocations", left.get("_id").unwrap().clone());
            }
            revocations.update_one(doc! {}, doc! { "$set": { "outbox": outbox } }).await.unwrap();
            for life in 1..=2 {
                let next =
                    Mongo::open(own.uri(), "node", StoreCase::key(), PATIENCE).await.unwrap();
                let recorded = next.events(&Filter::default(), None, 10).await.unwrap();
                let made = recorded.iter().filter(|record| record.event.at == years);
                assert_eq!(made.count(), 1, "{recorded:?}");
                assert_eq!(
                    next.newest_time() < years,
                    foreign,
                    "life {life}: {:?}",
                    next.newest_time()
                );
                next.close().await.unwrap();
            }
        }
    }

    /// A process whose name was taken judges nothing from that moment on, and whoever begins to
    /// follow hears of the keys first.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn who_lost_its_name_is_told_at_once() {
        let frail = FailingNode::open().await;
        assert_eq!(
            frail.store.replace_keyset(&keyset(1), event(Action::KeysCreated)).await.unwrap(),
            Write::Done
        );
        let ear = RecordingFollower::new();
        frail.store.follow(NOW, ear.clone() as std::sync::Arc<dyn Follower>).await.unwrap();
        // Once more by the change stream.
        let heard = ear.heard();
        assert!(heard.iter().all(|change| *change == Change::Keyset(keyset(1).into())));
        assert!(!heard.is_empty());
        let _heir = Mongo::open(frail.own.uri(), "node", StoreCase::key(), PATIENCE).await.unwrap();
        let told = async {
            while !ear.is_lost() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(HANG * 5, told).await.expect("a beat notices within half a second");
    }

    /// V01, M7: where the way to the stream of changes breaks off, and the first attempt at taking
    /// it up again breaks off too, nothing that was ended meanwhile is missed.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn nothing_is_missed_where_the_stream_breaks_off_twice() {
        let FailingNode { own, store, server } = FailingNode::open().await;
        let ear = RecordingFollower::new();
        store.follow(NOW, ear.clone() as std::sync::Arc<dyn Follower>).await.unwrap();
        let other = Mongo::open(own.uri(), "other", StoreCase::key(), PATIENCE).await.unwrap();
        let _alone = FAIL_COMMAND.lock().await;
        let mut ended = Vec::new();
        let ends = async {
            for _ in 0..2 {
                let before = server.failed().await;
                let broken =
                    doc! { "failCommands": ["getMore", "aggregate"], "closeConnection": true };
                server.point(doc! { "times": 2 }, broken).await;
                // The stream is back half a second after the second time.
                let mut after = 0;
                while after < 100 {
                    let revocation =
                        Revocation { revoked: Revoked::Token(Jti::new()), until: at(1_000_000) };
                    other.revoke(&revocation, event(Action::TokenRevoked)).await.unwrap();
                    ended.push(revocation);
                    after += u32::from(server.failed().await >= before + 2);
                }
            }
        };
        tokio::time::timeout(HANG * 5, ends).await.expect("the stream breaks off");
        let heard = async {
            let last = ended.last().map(|revocation| Change::Revoked(*revocation));
            while ear.heard().last() != last.as_ref() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(HANG * 5, heard).await.expect("the stream goes on");
        let heard = ear.heard();
        assert!(!heard.contains(&Change::Missed), "it is taken up where it was");
        let missed = ended
            .iter()
            .filter(|revocation| !heard.contains(&Change::Revoked(**revocation)))
            .count();
        assert_eq!(missed, 0, "of {}", ended.len());
    }
}
