//! The audit trail with odd documents and replayed entries, and through moves to another store.

mod mongodb {
    use jeton::{
        admin::{audit::verify, witness::Witness},
        model::{Action, Event, Record, event::Filter},
        store::{
            AuditStore, ClientStore, Store, Writer,
            embedded::Embedded,
            mongo::Mongo,
            transfer::{ExportRecord, ImportTarget},
        },
    };
    use mongodb::{
        Collection, Database,
        bson::{
            Bson, Decimal128, Document, RawArrayBuf, RawDocumentBuf, doc, rawdoc, serialize_to_bson,
        },
    };
    use tempfile::TempDir;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        time::{Duration, timeout},
    };

    use crate::store::transfer::dump;
    use crate::support::until::HANG;
    use crate::{
        store::{
            backend::StoreCase,
            fixtures::{NOW, client, event},
            trail::mongodb::{Pair, all, append, node, raw, sign, unsigned, verdict},
        },
        support::database::{Database as Own, PATIENCE},
    };

    fn broken(document: Document) -> RawDocumentBuf {
        crate::store::fixtures::broken(&document, b"mark")
    }

    /// Inserts documents whose `_id` the driver would not send.
    async fn insert_by_hand(database: &Database, collection: &str, documents: Vec<RawDocumentBuf>) {
        let primary = database
            .run_command(doc! { "hello": 1 })
            .await
            .unwrap()
            .get_str("primary")
            .unwrap()
            .to_owned();
        let documents: RawArrayBuf = documents.into_iter().collect();
        let command = rawdoc! {
            "insert": collection,
            "documents": documents,
            "writeConcern": { "w": "majority" },
            "$db": database.name(),
        };
        // OP_MSG: length, ids, opcode, flags, and one section of kind 0.
        let length = i32::try_from(16 + 4 + 1 + command.as_bytes().len()).unwrap();
        let head: Vec<u8> = [length, 1, 0, 2013, 0]
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .chain([0])
            .collect();
        let mut stream = TcpStream::connect(primary).await.unwrap();
        stream.write_all(&[&head, command.as_bytes()].concat()).await.unwrap();
        let mut answer = vec![0; usize::try_from(stream.read_i32_le().await.unwrap()).unwrap() - 4];
        stream.read_exact(&mut answer).await.unwrap();
        let answer =
            Document::try_from(RawDocumentBuf::from_bytes(answer[17..].to_vec()).unwrap()).unwrap();
        assert!(
            !answer.contains_key("writeErrors") && answer.get_i32("n").is_ok_and(|n| n > 0),
            "{answer}"
        );
    }

    fn places(records: &[Record]) -> Vec<(String, u64, bool)> {
        records
            .iter()
            .map(|record| (record.chain.to_string(), record.sequence, record.is_unreadable()))
            .collect()
    }

    /// AZ6: text, a name of a field and a name of a chain that are no UTF-8, and times of a type
    /// that nobody uses: each record is listed, tailed and verified at its place, and all others as
    /// they were, in pages of any length. What has no place is nowhere and ends no page.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn what_is_no_text_stops_no_reader() {
        let own = Own::own();
        let (store, other) = (node(own.uri(), "node").await, node(own.uri(), "other").await);
        append(&store, 4).await;
        let mut tail = other.tail();
        while timeout(Duration::from_millis(200), tail.recv()).await.is_err() {
            append(&store, 1).await;
        }
        let place = |chain: &str, sequence: i64| doc! { "chain": chain, "sequence": sequence };
        let at = NOW.millis();
        let mut marked = serialize_to_bson(&event(Action::ClientCreated)).unwrap();
        marked.as_document_mut().unwrap().insert("target", "mark");
        let decimal = Bson::Decimal128("1".parse::<Decimal128>().unwrap());
        let logs: Collection<RawDocumentBuf> = raw(&own).await.collection("audit_logs");
        let mut documents = vec![
            broken(doc! { "_id": place("ghost", 1), "event": { "mark": 1, "at": at } }),
            broken(doc! { "_id": place("ghost", 2), "event": marked }),
            RawDocumentBuf::try_from(
                &doc! { "_id": place("ghost", 3), "event": { "at": decimal } },
            )
            .unwrap(),
            RawDocumentBuf::try_from(
                &doc! { "_id": place("ghost", 4), "event": { "at": Bson::Symbol("x".into()) } },
            )
            .unwrap(),
        ];
        logs.insert_many(documents.drain(..)).await.unwrap();
        documents.extend(
            (0..9).map(|n| broken(doc! { "_id": place("mark", n), "event": { "at": at + 1 } })),
        );
        documents.push(broken(doc! { "_id": place("n-mark-n", 1), "event": { "at": "never" } }));
        insert_by_hand(&raw(&own).await, "audit_logs", documents).await;
        append(&store, 1).await;

        let told = async {
            let mut ghosts = Vec::new();
            while ghosts.len() < 4 {
                let record = tail.recv().await.unwrap().expect("nothing was missed");
                ghosts.extend((*record.chain == *"ghost").then_some(record.sequence));
            }
            ghosts
        };
        assert_eq!(timeout(HANG, told).await.unwrap(), [1, 2, 3, 4]);
        let listed = places(&all(&store).await);
        let head = store.head("node").await.unwrap().unwrap().sequence;
        assert_eq!(listed.len() as u64, head + 4, "{listed:?}");
        let ghosts: Vec<_> = listed
            .iter()
            .filter(|(chain, ..)| chain == "ghost")
            .map(|(_, sequence, _)| *sequence)
            .collect();
        assert_eq!(ghosts, [2, 1, 4, 3]);
        assert!(
            listed.iter().all(|(chain, _, unreadable)| *unreadable == (chain == "ghost")),
            "{listed:?}"
        );
        for limit in [1, 2, 3, 5] {
            let (mut seen, mut before) = (Vec::new(), None);
            loop {
                let page = store.events(&Filter::default(), before.as_ref(), limit).await.unwrap();
                let Some(last) = page.last() else { break };
                before = Some(last.place());
                seen.extend(page);
            }
            assert_eq!(places(&seen), listed, "{limit}");
        }
        assert_eq!(
            store.chains().await.unwrap(),
            ["ghost".into(), "node".into()] as [std::sync::Arc<str>; 2]
        );
        let verdicts = verify(&store, &StoreCase::key(), None, &[]).await.unwrap();
        let flaws: Vec<_> =
            verdicts.into_iter().map(|verdict| (verdict.chain.to_string(), verdict.flaw)).collect();
        let unreadable = Some((1, "unreadable".to_owned()));
        assert_eq!(flaws, [("ghost".to_owned(), unreadable), ("node".to_owned(), None)]);
        assert_eq!(
            Witness::default().record_moved(&other, &StoreCase::key(), NOW).await.unwrap(),
            0
        );
    }

    /// AZ2: an entry that a node put into an outbox is recorded once, however often somebody puts a
    /// copy of it back: also where another node recorded it, and after a move to another database
    /// under the same master key.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn an_entry_that_is_put_back_is_not_recorded_again() {
        let own = Own::own();
        let store = node(own.uri(), "node").await;
        store.create_client(&client("a"), event(Action::ClientCreated)).await.unwrap();
        store.close().await.unwrap();
        let mut left =
            unsigned("dead", 0, &Event { target: "left".into(), ..event(Action::ClientUpdated) });
        sign(&mut left, &StoreCase::key(), "clients", "a");
        let mut another = unsigned(
            "dead",
            0,
            &Event { target: "another".into(), ..event(Action::ClientUpdated) },
        );
        sign(&mut another, &StoreCase::key(), "clients", "a");
        let replayed = async |own: &Own, name: &str, entries: &[&Document], once: &[&str]| {
            let clients: Collection<Document> = raw(own).await.collection("clients");
            let entries: Vec<Document> = entries.iter().map(|entry| (*entry).clone()).collect();
            clients
                .update_one(
                    doc! { "_id": "a" },
                    doc! { "$push": { "outbox": { "$each": entries } } },
                )
                .await
                .unwrap();
            let is_empty = async || {
                clients.count_documents(doc! { "outbox.id": { "$exists": true } }).await.unwrap()
                    == 0
            };
            // A node does at once what is of its own name, and the rest at its second look.
            for _ in 0..2 {
                let store = node(own.uri(), name).await;
                timeout(HANG, async {
                    while !is_empty().await {
                        tokio::task::yield_now().await
                    }
                })
                .await
                .unwrap();
                let records = all(&store).await;
                for target in once {
                    let of_it = records.iter().filter(|record| record.event.target == *target);
                    assert_eq!(of_it.count(), 1, "{name} {target}: {records:?}");
                }
                store.close().await.unwrap();
            }
        };
        replayed(&own, "dead", &[&left], &["left"]).await;
        // Recorded by another node than the copy says: as "dead" left it, and "node" took it over.
        let mut taken_over = another.clone();
        taken_over.extend(doc! { "claim": crate::store::trail::mongodb::uuid(uuid::Uuid::now_v7()), "from": "dead", "node": "node" });
        sign(&mut taken_over, &StoreCase::key(), "clients", "a");
        replayed(&own, "node", &[&taken_over], &["left", "another"]).await;
        replayed(&own, "dead", &[&left, &another], &["left", "another"]).await;

        let moved = Own::own();
        let import = Mongo::import(moved.uri(), StoreCase::key(), PATIENCE).await.unwrap();
        import.load(exported(&own).await).await.unwrap();
        replayed(&moved, "dead", &[&left, &another], &["left", "another"]).await;
    }

    /// AZ2, AZ6: entries that cannot be read hide none beside them, and are taken out; nor do
    /// documents that nobody can find by their `_id`, however many there are, keep a look from
    /// those behind them. All are reported.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn entries_that_cannot_be_read_hide_no_other() {
        let own = Own::own();
        let store = node(own.uri(), "node").await;
        store.create_client(&client("a"), event(Action::ClientCreated)).await.unwrap();
        store.close().await.unwrap();
        let database = raw(&own).await;
        let clients: Collection<Document> = database.collection("clients");
        let mut left =
            unsigned("dead", 0, &Event { target: "left".into(), ..event(Action::ClientUpdated) });
        sign(&mut left, &StoreCase::key(), "clients", "a");
        let mut named = left.clone();
        named.insert("mark", 1);
        let (before_all, text) =
            (doc! { "mark": 1, "id": left.get("id").unwrap() }, doc! { "event": "mark" });
        let mut document = clients.find_one(doc! { "_id": "a" }).await.unwrap().unwrap();
        document.insert(
            "outbox",
            vec![Bson::from(before_all), named.into(), left.into(), "mark".into(), text.into()],
        );
        let whole: Collection<RawDocumentBuf> = database.collection("clients");
        whole.replace_one(doc! { "_id": "a" }, broken(document)).await.unwrap();
        // More entries than are worth a record each.
        store_of_many(&clients).await;
        // Their entries come first in the index.
        let lost = (0..1_100)
            .map(|n| broken(doc! { "_id": format!("mark-{n}"), "outbox": [{ "id": n }] }));
        insert_by_hand(&database, "clients", lost.collect()).await;

        for life in 1..=2 {
            let store = node(own.uri(), "dead").await;
            let records = all(&store).await;
            let of_it: Vec<_> =
                records.iter().filter(|record| record.event.target == "left").collect();
            assert_eq!(of_it.len(), 1, "life {life}");
            assert_eq!(of_it[0].event.recovered_from.as_deref(), Some("dead"));
            let targets =
                records.iter().filter(|record| record.event.action == Action::EntryRefused);
            let targets = targets.filter(|record| record.event.target != "clients/many");
            let (of_a, of_lost): (Vec<_>, Vec<_>) =
                targets.partition(|record| record.event.target == "clients/a");
            assert_eq!(
                (of_a.len(), of_lost.len()),
                (4, 100 * life),
                "life {life}: each of its entries, and a part of the others"
            );
            let of_many = records.iter().filter(|record| record.event.target == "clients/many");
            assert_eq!(of_many.count(), 16, "life {life}: taken out together");
            assert!(
                of_lost
                    .iter()
                    .all(|record| record.event.target.starts_with("clients/\u{fffd}ark-"))
            );
            let is_empty = async || {
                clients
                    .count_documents(doc! { "_id": "a", "outbox.0": { "$exists": true } })
                    .await
                    .unwrap()
                    == 0
            };
            let emptied = async {
                while !is_empty().await {
                    tokio::task::yield_now().await;
                }
            };
            timeout(HANG, emptied).await.unwrap();
            store.close().await.unwrap();
        }
    }

    /// A document with a hundred forged entries.
    async fn store_of_many(clients: &Collection<Document>) {
        let entries: Vec<_> = (0..100).map(|n| doc! { "id": n }).collect();
        clients
            .insert_one(doc! { "_id": "many", "deleted": true, "outbox": entries })
            .await
            .unwrap();
    }

    async fn exported(own: &Own) -> Vec<ExportRecord> {
        dump(&Mongo::export(own.uri(), Some(StoreCase::key()), PATIENCE).await.unwrap(), 100).await
    }

    /// AZ3: an export and an import make no end sure that was not: the chain of a node that was
    /// killed stays unsure in either kind of store, and on the way back; those of nodes that closed
    /// it, or ran, are sure.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn an_end_that_is_not_sure_stays_so_when_it_is_moved() {
        let pair = Pair::open(5).await;
        let closed = node(pair.own.uri(), "three").await;
        append(&closed, 1).await;
        closed.close().await.unwrap();
        pair.bring_back_an_old_head(4).await;
        assert!(!verdict(&pair.one, "two").await.is_end_sure);
        let ends = |items: &[ExportRecord]| -> Vec<(String, bool)> {
            let end = |item: &ExportRecord| {
                if let ExportRecord::ChainEnd { chain, open, .. } = item {
                    Some((chain.to_string(), *open))
                } else {
                    None
                }
            };
            items.iter().filter_map(end).collect()
        };
        let expected = [("one", false), ("three", false), ("two", true)]
            .map(|(chain, open)| (chain.to_owned(), open));
        // The end of a node that has just begun is sure from its first heartbeat on.
        let noted = async {
            loop {
                let items = exported(&pair.own).await;
                if ends(&items) == expected {
                    break items;
                }
            }
        };
        let items = timeout(HANG, noted).await.unwrap();

        let moved = Own::own();
        let import = Mongo::import(moved.uri(), StoreCase::key(), PATIENCE).await.unwrap();
        import.load(items.clone()).await.unwrap();
        assert_eq!(exported(&moved).await, items);
        let dir = TempDir::new().unwrap();
        let embedded = Embedded::open(dir.path(), "node", StoreCase::key()).unwrap();
        embedded.load(items.clone()).await.unwrap();
        assert_eq!(dump(&embedded, 100).await, items);
        let sure = |verdicts: Vec<jeton::admin::audit::Verdict>| -> Vec<(String, bool)> {
            assert!(verdicts.iter().all(|verdict| verdict.flaw.is_none()), "{verdicts:?}");
            verdicts
                .into_iter()
                .map(|verdict| (verdict.chain.to_string(), !verdict.is_end_sure))
                .collect()
        };
        assert_eq!(sure(verify(&embedded, &StoreCase::key(), None, &[]).await.unwrap()), expected);
        let store = node(moved.uri(), "new").await;
        assert_eq!(
            sure(verify(&store, &StoreCase::key(), None, &[]).await.unwrap())[..3],
            expected
        );
        assert_eq!(store.writer("two").await.unwrap(), Writer::NotRunning);
    }
}
