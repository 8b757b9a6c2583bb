//! Documents that somebody without the master key puts into the database: they are no clients, and
//! stop nothing.

mod mongodb {
    use std::sync::Arc;

    use jeton::{
        crypto::records::RecordKey,
        model::{Action, EpochOf},
        store::{
            AudienceStore, Change, ClientStore, Creation, FoundAudience, KeyStore, Listed,
            RevocationStore, Store, Write,
            authentic::Authentic,
            mongo::{DEADLINE, Mongo},
            transfer::ExportSource as _,
        },
    };
    use mongodb::bson::{Document, RawDocumentBuf, doc};

    use crate::{
        store::{
            backend::StoreCase,
            fixtures::{NOW, RecordingFollower, broken, client, event, id, keyset},
            suite::audiences::record,
        },
        support::{
            database::{self, Database as Own},
            until::until,
        },
    };

    /// AZ6's lesson for clients: a copy under another id, one that cannot be read, one without a
    /// code and keys that no client could have. The listing names what has a name and goes on,
    /// another node starts, and the feed breaks off for none of them.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn forged_documents_stop_neither_a_listing_nor_a_start_nor_the_feed() {
        let own = Own::own();
        let node: Arc<dyn Store> =
            Arc::new(database::node(own.uri(), "node", StoreCase::key()).await);
        let store = Authentic::new(node.clone(), RecordKey::new([7; 32]));
        // Its changes reach the others over the feed alone.
        let beside = database::node(own.uri(), "other", StoreCase::key()).await;
        let ear = RecordingFollower::new();
        node.follow(NOW, ear.clone()).await.unwrap();
        for name in ["a", "z"] {
            let created =
                store.create_client(&client(name), event(Action::ClientCreated)).await.unwrap();
            assert_eq!(created, Creation::Created);
        }
        let database =
            mongodb::Client::with_uri_str(own.uri()).await.unwrap().default_database().unwrap();
        let clients = database.collection::<Document>("clients");
        let real = clients.find_one(doc! { "_id": "a" }).await.unwrap().unwrap();
        let real = real.get_document("client").unwrap();
        let mut bare = real.clone();
        bare.remove("mac");
        bare.insert("id", "no-code");
        let whole = |key: &str, client: &Document| {
            doc! { "_id": key, "deleted": false, "tenant": "default", "revision": 1_i64, "client": client.clone() }
        };
        let elsewhere = doc! { "_id": "tenant", "deleted": false, "tenant": "other", "revision": 1_i64, "client": real.clone() };
        clients
            .insert_many([
                whole("moved", real),
                whole("no-code", &bare),
                whole("unreadable", &doc! { "id": 5 }),
                elsewhere,
                whole("not an id", real),
                doc! { "_id": 5, "deleted": false, "tenant": "default", "revision": "?", "epoch": 3 },
                doc! { "_id": "odd-epoch", "deleted": false, "tenant": "default", "revision": 1_i64, "epoch": 1.5 },
            ])
            .await
            .unwrap();

        let listed = store.clients(None, None, 100).await.unwrap();
        let shown = |listed: &[Listed]| -> Vec<String> {
            let show = |entry: &Listed| match entry {
                Listed::Client(client) => client.id.to_string(),
                Listed::NotAuthentic(id) => format!("!{id}"),
            };
            listed.iter().map(show).collect()
        };
        assert_eq!(
            shown(&listed),
            ["a", "!moved", "!no-code", "!odd-epoch", "!tenant", "!unreadable", "z"]
        );
        // One at a time, so that what is not named ends no page.
        let (mut paged, mut after) = (Vec::new(), None);
        loop {
            let page = store.clients(None, after.as_ref(), 1).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.id().clone());
            paged.extend(page);
        }
        assert_eq!(shown(&paged), shown(&listed));
        let other = "other".parse().unwrap();
        assert_eq!(
            shown(&store.clients(Some(&other), None, 9).await.unwrap()),
            ["!tenant"],
            "nothing of another tenant's is shown"
        );
        for name in ["moved", "no-code"] {
            assert_eq!(store.client(&id(name)).await.unwrap(), None, "{name}");
        }
        let alarms: Vec<String> =
            store.take_alarms().into_keys().map(|forged| forged.to_string()).collect();
        assert_eq!(
            alarms,
            ["moved", "no-code", "odd-epoch", "tenant", "unreadable"]
                .map(|id| format!("client {id}"))
        );

        // What comes behind them in the feed is heard, and nothing was missed.
        beside.raise_epoch(&EpochOf::Client(id("z")), event(Action::ClientRevoked)).await.unwrap();
        let raised = Change::Epoch(EpochOf::Client(id("z")), 1);
        until(async || ear.heard().contains(&raised)).await;
        let heard = ear.heard();
        assert!(!heard.contains(&Change::Missed), "{heard:?}");
        let second = database::node(own.uri(), "second", StoreCase::key()).await;
        let epochs = second.follow(NOW, RecordingFollower::new()).await.unwrap().epochs;
        assert!(
            epochs.contains(&(EpochOf::Client(id("z")), 1))
                && epochs.iter().any(|(of, _)| *of == EpochOf::Client(id("odd-epoch")))
        );
    }

    /// V01, K03: a keyset that nobody can read, or that is gone, breaks the feed off for no node:
    /// what comes behind it is heard, and nothing was missed; nor does it keep a follower from
    /// hearing of everything else.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn an_unreadable_keyset_stops_neither_the_feed_nor_a_start() {
        let own = Own::own();
        let node = database::node(own.uri(), "node", StoreCase::key()).await;
        assert_eq!(
            node.replace_keyset(&keyset(1), event(Action::KeysCreated)).await.unwrap(),
            Write::Done
        );
        // Its changes reach the others over the feed alone.
        let beside = database::node(own.uri(), "other", StoreCase::key()).await;
        let ear = RecordingFollower::new();
        node.follow(NOW, ear.clone()).await.unwrap();
        let database =
            mongodb::Client::with_uri_str(own.uri()).await.unwrap().default_database().unwrap();
        let keys = database.collection::<RawDocumentBuf>("signing_keys");
        let real = database
            .collection::<Document>("signing_keys")
            .find_one(doc! {})
            .await
            .unwrap()
            .unwrap();
        let mut odd = real.clone();
        odd.insert("revision", 2_i64);
        let mut typed = odd.clone();
        typed.insert("keyset", 5);
        odd.get_document_mut("keyset")
            .unwrap()
            .extend(doc! { "mark-in-a-name": "mark-in-a-value" });
        let forged = [
            broken(&odd, b"mark-in-a-value"),
            broken(&odd, b"mark-in-a-name"),
            RawDocumentBuf::try_from(&typed).unwrap(),
        ];
        for (number, forged) in forged.into_iter().enumerate() {
            keys.replace_one(doc! {}, forged).await.unwrap();
            beside
                .raise_epoch(&EpochOf::Client(id("z")), event(Action::ClientRevoked))
                .await
                .unwrap();
            let raised = number as u64 + 1;
            let change = Change::Epoch(EpochOf::Client(id("z")), raised);
            until(async || ear.heard().contains(&change)).await;
            let heard = ear.heard();
            assert!(!heard.contains(&Change::Missed), "{number}: {heard:?}");
            let second = database::node(own.uri(), "second", StoreCase::key()).await;
            let late = RecordingFollower::new();
            let epochs = second.follow(NOW, late.clone()).await.unwrap().epochs;
            assert_eq!(epochs, [(EpochOf::Client(id("z")), raised)], "{number}");
            assert!(!late.heard().contains(&Change::Keyset(keyset(2).into())), "{number}");
        }
        let whole = RawDocumentBuf::try_from(&real).unwrap();
        keys.replace_one(doc! {}, whole).await.unwrap();
        assert_eq!(
            node.replace_keyset(&keyset(2), event(Action::KeysRotated)).await.unwrap(),
            Write::Done
        );
        assert!(ear.heard().contains(&Change::Keyset(keyset(2).into())));
    }

    /// AUDIT AZ10: a record of an audience that was altered, copied, cannot be read or has no code
    /// is nobody's: it is named, keeps the audience from everybody, and stops neither a listing nor
    /// a start.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn forged_records_of_audiences_are_nobodys_and_stop_nothing() {
        let own = Own::own();
        let node: Arc<dyn Store> =
            Arc::new(database::node(own.uri(), "node", StoreCase::key()).await);
        let store = Authentic::new(node.clone(), RecordKey::new([7; 32]));
        for (audience, tenant) in
            [("urn:a", "acme"), ("urn:b", "acme"), ("urn:neither", "evil"), ("urn:z", "acme")]
        {
            let claimed = store
                .claim_audience(&record(audience, tenant), event(Action::AudienceClaimed))
                .await
                .unwrap();
            assert_eq!(claimed, Creation::Created);
        }
        let database =
            mongodb::Client::with_uri_str(own.uri()).await.unwrap().default_database().unwrap();
        let audiences = database.collection::<Document>("audiences");
        let real = audiences.find_one(doc! { "_id": "urn:a" }).await.unwrap().unwrap();
        let real = real.get_document("record").unwrap();
        let whole = |key: &str, record: Document| {
            doc! { "_id": key, "released": false, "tenant": "evil", "revision": 1_i64, "record": record }
        };
        let mut bare = real.clone();
        bare.remove("mac");
        bare.insert("audience", "urn:bare");
        audiences
            .insert_many([
                whole("urn:bare", bare),
                whole("urn:moved", real.clone()),
                whole("urn:unreadable", doc! { "audience": 5 }),
                whole("no uri", real.clone()),
                doc! { "_id": 5, "released": false },
            ])
            .await
            .unwrap();
        let altered = doc! { "$set": { "tenant": "evil", "record.tenant": "evil" } };
        audiences.update_one(doc! { "_id": "urn:b" }, altered).await.unwrap();
        // Neither released nor not.
        let neither = doc! { "$set": { "released": "no" } };
        audiences.update_one(doc! { "_id": "urn:neither" }, neither).await.unwrap();

        let shown = |listed: &[FoundAudience]| -> Vec<String> {
            let show = |found: &FoundAudience| match found {
                FoundAudience::Owned(record) => record.audience.to_string(),
                FoundAudience::NotAuthentic(audience) => format!("!{audience}"),
            };
            listed.iter().map(show).collect()
        };
        let all = [
            "urn:a",
            "!urn:b",
            "!urn:bare",
            "!urn:moved",
            "!urn:neither",
            "!urn:unreadable",
            "urn:z",
        ];
        assert_eq!(shown(&store.audiences(None, None, 100).await.unwrap()), all);
        let (mut paged, mut after) = (Vec::new(), None);
        while let Some(last) = store.audiences(None, after.as_ref(), 1).await.unwrap().pop() {
            after = Some(last.audience().clone());
            paged.push(last);
        }
        assert_eq!(shown(&paged), all);
        let evil = "evil".parse().unwrap();
        assert_eq!(shown(&store.audiences(Some(&evil), None, 9).await.unwrap()), all[1..6]);
        store.take_alarms();
        for audience in ["urn:b", "urn:bare", "urn:moved", "urn:neither", "urn:unreadable"] {
            let found = store.audience(&audience.parse().unwrap()).await.unwrap();
            assert_eq!(
                found,
                Some(FoundAudience::NotAuthentic(audience.parse().unwrap())),
                "{audience}"
            );
            let claimed = store
                .claim_audience(&record(audience, "globex"), event(Action::AudienceClaimed))
                .await
                .unwrap();
            assert_eq!(claimed, Creation::Taken, "{audience}");
        }
        assert_eq!(store.take_alarms().len(), 5);
        database::node(own.uri(), "second", StoreCase::key()).await;
    }

    /// A copy of a record under another `_id` ends an export, and is named: it must not have it
    /// read the same page for ever.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn a_copied_document_ends_an_export() {
        let own = Own::own();
        let node: Arc<dyn Store> =
            Arc::new(database::node(own.uri(), "node", StoreCase::key()).await);
        node.create_client(&client("a"), event(Action::ClientCreated)).await.unwrap();
        node.claim_audience(&record("urn:a", "acme"), event(Action::AudienceClaimed))
            .await
            .unwrap();
        let database =
            mongodb::Client::with_uri_str(own.uri()).await.unwrap().default_database().unwrap();
        for (collection, real, copied) in [("clients", "a", "b"), ("audiences", "urn:a", "urn:b")] {
            let documents = database.collection::<Document>(collection);
            let mut copy = documents.find_one(doc! { "_id": real }).await.unwrap().unwrap();
            copy.insert("_id", copied);
            documents.insert_one(copy).await.unwrap();
            let export = Mongo::export(own.uri(), None, DEADLINE).await.unwrap();
            let (mut last, mut pages) = (None, 0);
            let refused = loop {
                pages += 1;
                assert!(pages < 100, "it goes round: {last:?}");
                match export.export_page(last.as_ref(), 1).await {
                    Ok(mut page) => {
                        last = Some(page.pop().expect("it ends with an end or a refusal"))
                    }
                    Err(refused) => break format!("{refused:?}"),
                }
            };
            assert!(refused.contains(copied), "{refused}");
            documents.delete_one(doc! { "_id": copied }).await.unwrap();
        }
    }
}
