//! Behaviour of a store that nodes share: nodes beside each other, a node that died half way,
//! another's schema.

mod mongodb {
    use std::{
        collections::BTreeSet,
        sync::{Arc, Mutex},
        time::Duration,
    };

    use futures_util::future::join_all;
    use jeton::{
        admin::audit::verify,
        crypto::chain::Walk,
        model::{Action, Client, EpochOf, Event, Family, Jti, Revoked, revocation::Revocation},
        store::{
            AuditStore, Change, ClientStore, FamilyStore, Follower, KeyStore, RevocationStore,
            Rotation, Store, StoreError,
            mongo::{DEADLINE, Mongo, OpenError},
        },
    };
    use mongodb::{
        Collection, Database, IndexModel,
        bson::{Bson, Document, doc},
        options::ClientOptions,
    };
    use tokio::time::{Instant, timeout};

    use crate::support::until::HANG;
    use crate::{
        store::{
            backend::StoreCase,
            fixtures::{
                NOW, RecordingFollower, at, client, event, family, id, keyset, present, stamp,
            },
            trail::mongodb::sign,
        },
        support::database::{self, Database as Own, FAIL_COMMAND},
    };

    const WHY: &str = "what is heard comes in milliseconds; this is a minute for a busy machine";

    async fn node(uri: &str, name: &str) -> Mongo {
        database::node(uri, name, StoreCase::key()).await
    }

    async fn looked_into(uri: &str) -> Database {
        mongodb::Client::with_uri_str(uri).await.unwrap().default_database().unwrap()
    }

    /// Waits until it is so.
    async fn eventually(what: &str, so: impl AsyncFn() -> bool) {
        let since = Instant::now();
        while !so().await {
            assert!(since.elapsed() < HANG, "{what}: {WHY}");
            pause().await;
        }
    }

    async fn pause() {
        timeout(Duration::from_millis(5), std::future::pending::<()>()).await.unwrap_err();
    }

    /// V04: what one node ends, the followers of the others hear of, whatever was ended.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn what_one_node_ends_the_others_hear_of() {
        let uri = Own::own();
        let (one, other, ear) = (
            node(uri.uri(), "one").await,
            node(uri.uri(), "other").await,
            RecordingFollower::new(),
        );
        other.follow(NOW, ear.clone()).await.unwrap();
        let revocation = Revocation { revoked: Revoked::Token(Jti::new()), until: at(1_000) };
        one.revoke(&revocation, event(Action::TokenRevoked)).await.unwrap();
        let (ended, reused) = (family("a"), family("a"));
        for family in [&ended, &reused] {
            one.open_family(family, event(Action::TokenIssued)).await.unwrap();
        }
        one.end_family(ended.id, NOW, at(2_000), event(Action::FamilyRevoked)).await.unwrap();
        one.rotate(&present(&reused, 0, 1), &stamp(), "jti").await.unwrap();
        database::answered(uri.uri()).await;
        assert_eq!(
            other.rotate(&present(&reused, 0, 20_000), &stamp(), "jti").await.unwrap(),
            Rotation::Reused
        );
        for of in [EpochOf::Tenant("t".parse().unwrap()), EpochOf::Client(id("c"))] {
            one.raise_epoch(&of, event(Action::ClientRevoked)).await.unwrap();
        }
        one.create_client(&client("c"), event(Action::ClientCreated)).await.unwrap();
        one.replace_keyset(&keyset(1), event(Action::KeysCreated)).await.unwrap();
        let expected = [
            Change::Revoked(revocation),
            Change::Revoked(Revocation { revoked: Revoked::Family(ended.id), until: at(2_000) }),
            Change::Revoked(Revocation {
                revoked: Revoked::Family(reused.id),
                until: at(20_000 + 900_000),
            }),
            Change::Epoch(EpochOf::Tenant("t".parse().unwrap()), 1),
            Change::Epoch(EpochOf::Client(id("c")), 1),
            Change::Client(id("c")),
            Change::Keyset(keyset(1).into()),
        ];
        eventually("all of it", async || {
            expected.iter().all(|change| ear.heard().contains(change))
        })
        .await;
        let order: Vec<_> =
            ear.heard().into_iter().filter(|change| expected.contains(change)).collect();
        assert_eq!(order[0], expected[0], "in the order of the commits");
    }

    /// R02: a hundred who present one token at once, on two nodes, are one rotation, and cost the
    /// database little more than one. After the end of their family they cost as little.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn a_hundred_with_one_token_cost_what_a_few_do() {
        let uri = Own::own();
        let (one, other, family) =
            (node(uri.uri(), "one").await, node(uri.uri(), "other").await, family("a"));
        one.open_family(&family, event(Action::TokenIssued)).await.unwrap();
        let tokens: Collection<Document> = looked_into(uri.uri()).await.collection("tokens");
        let operations = async || {
            let mut told =
                tokens.aggregate([doc! { "$collStats": { "latencyStats": {} } }]).await.unwrap();
            assert!(told.advance().await.unwrap());
            let told = told.deserialize_current().unwrap();
            let told = told.get_document("latencyStats").unwrap();
            let of = |kind| told.get_document(kind).unwrap().get_i64("ops").unwrap();
            of("reads") + of("writes") + of("commands")
        };
        let hands = async |generation: u32| {
            let (presented, stamp, before) =
                (present(&family, generation, 1), stamp(), operations().await);
            let hands = (0..100).map(|hand| {
                let (node, presented, stamp, id) =
                    (if hand % 2 == 0 { &one } else { &other }, &presented, &stamp, family.id);
                async move {
                    node.family(id, NOW).await.unwrap().unwrap();
                    node.rotate(presented, stamp, "jti").await.unwrap()
                }
            });
            let rotations = join_all(hands).await;
            // On each node: two reads, two rotations or looks, what empties the outbox; more where
            // a look takes long.
            let cost = operations().await - before;
            assert!(cost < 100, "{cost} operations");
            rotations
        };
        let rotations = hands(0).await;
        let rotated = |rotation: &&Rotation| matches!(rotation, Rotation::Rotated);
        assert_eq!(rotations.iter().filter(rotated).count(), 1);
        let repeated = |rotation: &&Rotation| matches!(rotation, Rotation::Repeated(family) if family.generation == 1);
        assert_eq!(
            rotations.iter().filter(repeated).count(),
            3,
            "AUDIT TL7: on both nodes together"
        );
        assert_eq!(rotations.iter().filter(|rotation| **rotation == Rotation::Refused).count(), 96);
        one.end_family(family.id, at(1), at(900_000), event(Action::FamilyRevoked)).await.unwrap();
        assert!(hands(1).await.iter().all(|rotation| *rotation == Rotation::Unknown));
    }

    /// A change and its record are two documents: a node that dies in between leaves the event in
    /// the outbox, and the next life of that node records it; the end of a chain that was not noted
    /// is found again.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn what_a_node_left_behind_is_recorded_when_it_comes_back() {
        let uri = Own::own();
        let store = node(uri.uri(), "node").await;
        store.create_client(&client("a"), event(Action::ClientCreated)).await.unwrap();
        store.close().await.unwrap();
        drop(store);
        // As if it had died right behind a second change.
        let clients: Collection<Document> = looked_into(uri.uri()).await.collection("clients");
        let record = Client { revision: 2, display_name: "changed".into(), ..client("a") };
        let event_of_it = mongodb::bson::serialize_to_bson(&event(Action::ClientUpdated)).unwrap();
        let entry = uuid::Uuid::now_v7();
        let entry = mongodb::bson::Binary {
            subtype: mongodb::bson::spec::BinarySubtype::Uuid,
            bytes: entry.as_bytes().to_vec(),
        };
        let mut left = doc! { "id": entry, "node": "node", "after": 1_i64, "event": event_of_it };
        sign(&mut left, &StoreCase::key(), "clients", "a");
        let change = doc! {
            "$set": { "revision": 2_i64, "client": mongodb::bson::serialize_to_bson(&record).unwrap() },
            "$push": { "outbox": left },
        };
        clients.update_one(doc! { "_id": "a" }, change).await.unwrap();

        let store = node(uri.uri(), "node").await;
        let records = store.chain("node", 0, 9).await.unwrap();
        let actions: Vec<_> = records.iter().map(|record| record.event.action).collect();
        assert_eq!(actions, [Action::ClientCreated, Action::ClientUpdated]);
        let mut walk = Walk::from_start();
        records.iter().try_for_each(|record| walk.record(record)).unwrap();
        walk.finish(&StoreCase::key(), store.head("node").await.unwrap().as_ref()).unwrap();
        eventually("the outbox is emptied", async || {
            let found = clients.find_one(doc! { "_id": "a" }).await.unwrap().unwrap();
            found.get_array("outbox").unwrap().is_empty()
        })
        .await;
        // Once: the next life finds nothing.
        store.close().await.unwrap();
        assert_eq!(node(uri.uri(), "node").await.chain("node", 0, 9).await.unwrap().len(), 2);
    }

    /// I6: no event stays in an outbox once its verb has answered and some time has passed.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn outboxes_are_emptied() {
        let uri = Own::own();
        let store = node(uri.uri(), "node").await;
        crate::store::prepared::fill(&store, 5).await;
        let database = looked_into(uri.uri()).await;
        for name in ["clients", "audiences", "tokens", "revocations", "epochs", "signing_keys"] {
            let collection: Collection<Document> = database.collection(name);
            let waiting = doc! { "outbox.id": { "$exists": true } };
            eventually(name, async || {
                collection.count_documents(waiting.clone()).await.unwrap() == 0
            })
            .await;
        }
    }

    /// Two processes under one name: the later one has it, the earlier one stops, and the chain has
    /// one line of descent.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn a_name_is_one_process() {
        let uri = Own::own();
        let earlier = node(uri.uri(), "node").await;
        earlier.append(event(Action::ServerStarted)).await.unwrap();
        let later = node(uri.uri(), "node").await;
        later.append(event(Action::ServerStarted)).await.unwrap();
        let refused = earlier.append(event(Action::TokenIssued)).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        eventually("it stops", async || earlier.client(&id("a")).await.is_err()).await;
        later.append(event(Action::ServerStarted)).await.unwrap();
        let mut walk = Walk::from_start();
        later
            .chain("node", 0, 9)
            .await
            .unwrap()
            .iter()
            .try_for_each(|record| walk.record(record))
            .unwrap();
        assert_eq!(walk.sequence(), 3);
    }

    async fn names(database: &Database, collection: &str) -> BTreeSet<String> {
        database
            .collection::<Document>(collection)
            .list_index_names()
            .await
            .unwrap()
            .into_iter()
            .collect()
    }

    /// M12: an index that is missing or not what it should be is made anew, also a unique one that
    /// would refuse families.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn indexes_are_mended() {
        let uri = Own::own();
        node(uri.uri(), "node").await.close().await.unwrap();
        let database = looked_into(uri.uri()).await;
        let tokens: Collection<Document> = database.collection("tokens");
        let before = names(&database, "tokens").await;
        tokens.drop_index("ended_until").await.unwrap();
        tokens.drop_index("ends_at").await.unwrap();
        let unique =
            mongodb::options::IndexOptions::builder().name("mine".to_owned()).unique(true).build();
        tokens
            .create_index(
                IndexModel::builder().keys(doc! { "ended_until": 1 }).options(unique).build(),
            )
            .await
            .unwrap();
        let store = node(uri.uri(), "node").await;
        assert_eq!(names(&database, "tokens").await, before);
        for _ in 0..2 {
            store.open_family(&family("a"), event(Action::TokenIssued)).await.unwrap();
        }
    }

    /// M12: a newer schema is refused, with both versions in the message, and left as it is.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn a_newer_schema_is_refused() {
        let uri = Own::own();
        node(uri.uri(), "node").await.close().await.unwrap();
        let database = looked_into(uri.uri()).await;
        let meta: Collection<Document> = database.collection("meta");
        meta.update_one(doc! { "_id": "schema" }, doc! { "$set": { "version": 9_i64 } })
            .await
            .unwrap();
        let refused = Mongo::open(uri.uri(), "node", StoreCase::key(), DEADLINE).await;
        assert!(
            matches!(&refused, Err(OpenError::Newer { found: 9, known: 1 })),
            "{:?}",
            refused.err()
        );
    }

    /// O04: the end of a chain that was noted and is gone is missed at the next start, by name and
    /// place.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn a_chain_that_lost_its_end_is_refused() {
        let uri = Own::own();
        let store = node(uri.uri(), "node").await;
        for _ in 0..5 {
            store.append(event(Action::TokenIssued)).await.unwrap();
        }
        store.close().await.unwrap();
        let database = looked_into(uri.uri()).await;
        let logs: Collection<Document> = database.collection("audit_logs");
        logs.delete_one(doc! { "_id": { "chain": "node", "sequence": 5_i64 } }).await.unwrap();
        let refused =
            Mongo::open(uri.uri(), "node", StoreCase::key(), DEADLINE).await.err().unwrap();
        assert_eq!(
            refused.to_string(),
            "the database is damaged: the audit chain node ends at record 4, expected 5 or later"
        );
        // Behind the noted head nothing counts that does not bear our seal.
        let forged = doc! { "$set": { "hash": Bson::Null } };
        logs.update_one(doc! { "_id": { "chain": "node", "sequence": 4_i64 } }, forged)
            .await
            .unwrap();
        assert!(matches!(
            Mongo::open(uri.uri(), "node", StoreCase::key(), DEADLINE).await,
            Err(OpenError::Corrupt(_))
        ));
    }

    /// O04: a record that is altered, taken out or exchanged with another is named by its number;
    /// put back, nothing is.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn a_changed_audit_record_is_named() {
        let uri = Own::own();
        let store = node(uri.uri(), "node").await;
        for n in 1..=7 {
            store
                .append(Event { target: n.to_string(), ..event(Action::TokenIssued) })
                .await
                .unwrap();
        }
        let logs: Collection<Document> = looked_into(uri.uri()).await.collection("audit_logs");
        let at = |sequence: i64| doc! { "_id": { "chain": "node", "sequence": sequence } };
        let content = async |sequence: i64| {
            let mut record = logs.find_one(at(sequence)).await.unwrap().unwrap();
            record.remove("_id").unwrap();
            record
        };
        let put = async |sequence: i64, content: &Document| {
            logs.replace_one(at(sequence), content).upsert(true).await.unwrap();
        };
        let flaw = async || {
            let [verdict] =
                <[_; 1]>::try_from(verify(&store, &StoreCase::key(), None, &[]).await.unwrap())
                    .unwrap();
            verdict.flaw
        };
        let (fourth, sixth) = (content(4).await, content(6).await);
        assert_eq!(flaw().await, None);

        logs.update_one(at(4), doc! { "$set": { "event.target": "another" } }).await.unwrap();
        assert_eq!(flaw().await, Some((4, "altered".to_owned())));
        put(4, &fourth).await;
        logs.delete_one(at(4)).await.unwrap();
        assert_eq!(flaw().await, Some((4, "removed".to_owned())));
        put(4, &sixth).await;
        put(6, &fourth).await;
        assert_eq!(flaw().await, Some((4, "altered".to_owned())));

        put(4, &fourth).await;
        put(6, &sixth).await;
        assert_eq!(flaw().await, None);
    }

    /// A node over a database of its own, and what it is told of.
    async fn followed() -> (Own, Mongo, Arc<RecordingFollower>) {
        let uri = Own::own();
        let (store, ear) = (node(uri.uri(), "node").await, RecordingFollower::new());
        store.follow(NOW, ear.clone()).await.unwrap();
        (uri, store, ear)
    }

    /// A dropped collection is noticed while nodes run, and everything is read afresh: nobody
    /// judges by what is not there.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn a_dropped_collection_is_noticed() {
        let (uri, store, ear) = followed().await;
        let database = looked_into(uri.uri()).await;
        database.collection::<Document>("revocations").drop().await.unwrap();
        eventually("it is noticed", async || ear.heard().contains(&Change::Missed)).await;
        // And the feed goes on.
        let revocation = Revocation { revoked: Revoked::Token(Jti::new()), until: at(1_000) };
        store.revoke(&revocation, event(Action::TokenRevoked)).await.unwrap();
        assert!(ear.heard().contains(&Change::Revoked(revocation)));
    }

    /// So is another one that takes its place: what an administrator brings back from a backup
    /// under our name.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn a_collection_that_takes_the_place_of_ours_is_noticed() {
        let (uri, store, ear) = followed().await;
        let revocation = Revocation { revoked: Revoked::Token(Jti::new()), until: at(1_000) };
        store.revoke(&revocation, event(Action::TokenRevoked)).await.unwrap();
        let database = looked_into(uri.uri()).await;
        let backup = vec![
            doc! { "$set": { "_id": format!("token:{}", Jti::new()) } },
            doc! { "$out": "backup" },
        ];
        database.collection::<Document>("revocations").aggregate(backup).await.unwrap();
        let from = format!("{}.backup", database.name());
        let to = format!("{}.revocations", database.name());
        let rename = doc! { "renameCollection": from, "to": to, "dropTarget": true };
        database.client().database("admin").run_command(rename).await.unwrap();
        eventually("it is noticed", async || ear.heard().contains(&Change::Missed)).await;
        let others = |change: &Change| matches!(change, Change::Revoked(other) if other.revoked != revocation.revoked);
        eventually("what is in it is heard of", async || ear.heard().iter().any(others)).await;
    }

    /// Hears, and notes up to when it has heard everything.
    #[derive(Default)]
    struct Hearer {
        ear: RecordingFollower,
        known: Mutex<Option<Instant>>,
    }

    impl Hearer {
        /// Number of notices that a change may have been missed.
        fn missed(&self) -> usize {
            self.ear.heard().iter().filter(|change| **change == Change::Missed).count()
        }

        fn knows_of(&self, moment: Instant) -> bool {
            self.known.lock().unwrap().is_some_and(|known| known > moment)
        }
    }

    impl Follower for Hearer {
        fn apply(&self, change: &Change) {
            self.ear.apply(change);
        }

        fn knows_up_to(&self, at: Instant) {
            *self.known.lock().unwrap() = Some(at);
        }
    }

    /// Configures `failCommand` on each member of the set by itself.
    async fn fail_command(uri: &str, point: Document) -> mongodb::error::Result<()> {
        let mut command = doc! { "configureFailPoint": "failCommand" };
        command.extend(point);
        for host in ClientOptions::parse(uri).await?.hosts {
            let member = ClientOptions::builder().hosts(vec![host]).direct_connection(true).build();
            mongodb::Client::with_options(member)?
                .database("admin")
                .run_command(command.clone())
                .await?;
        }
        Ok(())
    }

    /// V04: a server that has forgotten the place in the change stream (ChangeStreamHistoryLost)
    /// hides nothing: everything is read afresh, and the node knows again how much it knows.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn what_was_ended_while_the_history_was_lost_is_heard_of() {
        // A name of its own: the streams of the tests beside this one go on.
        const NAME: &str = "jeton-lost-history";
        let own = Own::own();
        let uri = format!("{}&appName={NAME}", own.uri());
        let (one, other, hearer) =
            (node(&uri, "one").await, node(&uri, "other").await, Arc::new(Hearer::default()));
        other.follow(NOW, hearer.clone()).await.unwrap();
        let revocation = Revocation { revoked: Revoked::Token(Jti::new()), until: at(1_000) };

        let _alone = FAIL_COMMAND.lock().await;
        let data = doc! { "failCommands": ["getMore"], "errorCode": 286, "appName": NAME };
        let set = fail_command(own.uri(), doc! { "mode": "alwaysOn", "data": data }).await;
        // No stream shows what is committed from here on: each fails at its first look.
        let ended = timeout(HANG, async {
            while hearer.missed() < 2 {
                pause().await;
            }
            one.revoke(&revocation, event(Action::TokenRevoked)).await
        })
        .await;
        // Whatever came of it.
        let lifted = fail_command(own.uri(), doc! { "mode": "off" }).await;
        set.unwrap();
        ended.unwrap().unwrap();
        lifted.unwrap();

        let since = Instant::now();
        eventually("the revocation", async || {
            hearer.ear.heard().contains(&Change::Revoked(revocation))
        })
        .await;
        eventually("knowledge", async || hearer.knows_of(since)).await;
    }

    /// A follower of the trail at one node receives the records of the others too, each once.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn the_tail_of_one_node_tells_of_all() {
        let uri = Own::own();
        let (one, other) = (node(uri.uri(), "one").await, node(uri.uri(), "other").await);
        let mut tail = one.tail();
        let mut heard = BTreeSet::new();
        // The stream is opened by listening: what is recorded from the first one that came on is
        // told without a gap.
        let mut first = 0;
        for n in 0_u64.. {
            other.append(event(Action::TokenIssued)).await.unwrap();
            // `None` where the stream begins.
            let heard = timeout(Duration::from_millis(200), tail.recv()).await;
            if let Some(record) = heard.ok().and_then(|heard| heard.unwrap()) {
                first = record.sequence;
                break;
            }
            assert!(n < 300, "{WHY}");
        }
        let last = first + 20;
        for _ in 0..20 {
            other.append(event(Action::TokenIssued)).await.unwrap();
            one.append(event(Action::TokenRevoked)).await.unwrap();
        }
        while heard.len() < 40 {
            let record = timeout(HANG, tail.recv()).await.unwrap().unwrap().unwrap();
            if &*record.chain == "one" || record.sequence <= last {
                assert!(heard.insert((record.chain.clone(), record.sequence)), "{record:?} twice");
            }
        }
    }

    /// A family that dies before what it stands for may be forgotten leaves its revocation behind.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn the_end_of_a_family_outlives_it() {
        let uri = Own::own();
        let store = node(uri.uri(), "node").await;
        let short = Family { expires_at: at(1_000), ..family("a") };
        store.open_family(&short, event(Action::TokenIssued)).await.unwrap();
        store.end_family(short.id, NOW, at(5_000), event(Action::FamilyRevoked)).await.unwrap();
        assert_eq!(store.sweep(at(2_000), 10).await.unwrap(), 1);
        assert_eq!(store.family(short.id, NOW).await.unwrap(), None);
        let revocation = Revocation { revoked: Revoked::Family(short.id), until: at(5_000) };
        assert_eq!(
            store.follow(at(2_000), RecordingFollower::new()).await.unwrap().revocations,
            [revocation]
        );
        store.end_family(short.id, NOW, at(6_000), event(Action::FamilyRevoked)).await.unwrap();
        let longer = Revocation { until: at(6_000), ..revocation };
        assert_eq!(
            store.follow(at(2_000), RecordingFollower::new()).await.unwrap().revocations,
            [longer]
        );
        assert_eq!(store.sweep(at(6_000), 10).await.unwrap(), 1);
    }
}
