//! Between the embedded store and MongoDB, both ways.

mod mongodb {
    use jeton::{
        admin::audit::verify,
        model::{Action, EpochOf, Family, Jti, Revoked, revocation::Revocation},
        store::{
            AuditStore, ClientStore, FamilyStore, RevocationStore, SecretUse, Store, StoreError,
            embedded::Embedded,
            mongo::{DEADLINE, Mongo, OpenError},
            transfer::{ExportRecord, ImportTarget},
        },
    };

    use crate::store::transfer::assert_chain_ends_at;
    use crate::{
        store::{
            backend::StoreCase,
            fixtures::{
                NOW, RecordingFollower, at, client, event, family, id, of_revision, present, stamp,
            },
            prepared,
            transfer::{dump, lines, parse},
        },
        support::database::{self, Database},
    };

    async fn node(uri: &str, name: &str) -> Mongo {
        database::node(uri, name, StoreCase::key()).await
    }

    async fn export(uri: &str, limit: usize) -> String {
        lines(
            &dump(&Mongo::export(uri, Some(StoreCase::key()), DEADLINE).await.unwrap(), limit)
                .await,
        )
    }

    async fn import(uri: &str, text: &str) {
        let import = Mongo::import(uri, StoreCase::key(), DEADLINE).await.unwrap();
        for chunk in parse(text).chunks(11) {
            import.load(chunk.to_vec()).await.unwrap();
        }
    }

    async fn into_embedded(text: &str) -> (tempfile::TempDir, Embedded) {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(dir.path(), "node", StoreCase::key()).unwrap();
        for chunk in parse(text).chunks(7) {
            store.load(chunk.to_vec()).await.unwrap();
        }
        (dir, store)
    }

    /// E9: from a directory to MongoDB and back, the same bytes at every stop, in pages of any
    /// size; and the node goes on with the chain that has its name.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn from_a_directory_to_mongodb_and_back() {
        let (dir, uri) = (tempfile::tempdir().unwrap(), Database::own());
        let source = Embedded::open(dir.path(), "node", StoreCase::key()).unwrap();
        prepared::fill(&source, 20).await;
        prepared::delete_some(&source).await;
        let exported = lines(&dump(&source, 1_000).await);
        import(uri.uri(), &exported).await;
        assert_eq!(export(uri.uri(), 1_000).await, exported);
        assert_eq!(export(uri.uri(), 3).await, exported);
        let (_dir, back) = into_embedded(&export(uri.uri(), 50).await).await;
        assert_eq!(lines(&dump(&back, 9).await), exported);

        let store = node(uri.uri(), "node").await;
        assert_eq!(store.newest_time(), source.newest_time());
        assert_eq!(
            store.client(&id("client-00001")).await.unwrap(),
            source.client(&id("client-00001")).await.unwrap()
        );
        let before = source.head("node").await.unwrap().unwrap().sequence;
        store.append(event(Action::StoreImported)).await.unwrap();
        assert_chain_ends_at(&store, before + 1).await;
    }

    /// E9: several nodes' chains, families that were ended, reused and outlived by their end,
    /// epochs of a deleted client.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn from_mongodb_with_several_nodes_to_a_directory_and_back() {
        let (uri, other_uri) = (Database::own(), Database::own());
        let (one, two) = (node(uri.uri(), "one").await, node(uri.uri(), "two").await);
        prepared::fill(&one, 3).await;
        prepared::fill(&two, 3).await;
        let (ended, reused) = (family("a"), family("a"));
        let short = Family { expires_at: at(1_000), ..family("b") };
        for family in [&ended, &reused, &short] {
            one.open_family(family, event(Action::TokenIssued)).await.unwrap();
        }
        one.end_family(ended.id, NOW, at(5_000), event(Action::FamilyRevoked)).await.unwrap();
        one.end_family(short.id, NOW, at(9_000), event(Action::FamilyRevoked)).await.unwrap();
        two.rotate(&present(&reused, 0, 1), &stamp(), "jti").await.unwrap();
        two.rotate(&present(&reused, 0, 20_000), &stamp(), "jti").await.unwrap();
        one.sweep(at(2_000), 100).await.unwrap();
        two.create_client(&client("gone"), event(Action::ClientCreated)).await.unwrap();
        two.record_secret_uses(&[SecretUse {
            client: id("gone"),
            secret: "s1".parse().unwrap(),
            at: at(1),
            count: 1,
        }])
        .await
        .unwrap();
        let gone = jeton::model::Client { revision: 2, ..client("gone") };
        two.end_client(&gone, vec![event(Action::ClientDisabled)], event(Action::ClientRevoked))
            .await
            .unwrap();
        two.delete_client(&of_revision(2, client("gone")), event(Action::ClientDeleted))
            .await
            .unwrap();
        one.close().await.unwrap();
        two.close().await.unwrap();

        let exported = export(uri.uri(), 1_000).await;
        assert_eq!(export(uri.uri(), 1).await, exported);
        assert!(exported.contains("\"gone\""), "its epoch");
        let (_dir, embedded) = into_embedded(&exported).await;
        assert_eq!(lines(&dump(&embedded, 4).await), exported);
        import(other_uri.uri(), &exported).await;
        assert_eq!(export(other_uri.uri(), 13).await, exported);

        // What was ended stays ended on both, and every chain is whole.
        let moved = node(other_uri.uri(), "three").await;
        for store in [&moved as &dyn Store, &embedded] {
            let standing = store.follow(at(2_000), RecordingFollower::new()).await.unwrap();
            for id in [ended.id, reused.id, short.id] {
                assert!(
                    standing
                        .revocations
                        .iter()
                        .any(|revocation| revocation.revoked == Revoked::Family(id)),
                    "{id}"
                );
            }
            assert!(standing.epochs.contains(&(EpochOf::Client(id("gone")), 1)));
            let verdicts = verify(store, &StoreCase::key(), None, &[]).await.unwrap();
            assert_eq!(verdicts.len(), 2);
            assert!(verdicts.iter().all(|verdict| verdict.flaw.is_none()), "{verdicts:?}");
        }
    }

    async fn refused(items: Vec<ExportRecord>) -> String {
        let uri = Database::own();
        let import = Mongo::import(uri.uri(), StoreCase::key(), DEADLINE).await.unwrap();
        let outcome = import.load(items).await;
        let opened = Mongo::open(uri.uri(), "node", StoreCase::key(), DEADLINE).await;
        assert!(
            matches!(opened, Err(OpenError::Corrupt(_))),
            "nothing opens the half of an import"
        );
        match outcome {
            Err(StoreError::Corrupt(source)) => source.to_string(),
            other => panic!("{other:?}"),
        }
    }

    /// O04, E9: an export that was tampered with, cut off, or stands in the way of something is not
    /// taken in.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn a_tampered_export_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let source = Embedded::open(dir.path(), "node", StoreCase::key()).unwrap();
        prepared::fill(&source, 3).await;
        let whole = dump(&source, 1_000).await;
        let first =
            whole.iter().position(|item| matches!(item, ExportRecord::Record { .. })).unwrap();
        let mut altered = whole.clone();
        let ExportRecord::Record { event: changed, .. } = &mut altered[first + 2] else { panic!() };
        changed.target.push('x');
        assert_eq!(refused(altered).await, "import: audit chain node: audit record 3: altered");
        let mut removed = whole.clone();
        removed.remove(first + 2);
        assert_eq!(refused(removed).await, "import: audit chain node: audit record 3: removed");
        let mut twice = whole.clone();
        twice.insert(1, twice[1].clone());
        assert_eq!(refused(twice).await, "import: a record is repeated");
        let mut endless = whole.clone();
        endless.remove(whole.len() - 2);
        assert_eq!(refused(endless).await, "import: an audit chain is missing or has no end");

        let uri = Database::own();
        let store = node(uri.uri(), "node").await;
        let revocation = Revocation { revoked: Revoked::Token(Jti::new()), until: at(1_000) };
        store.revoke(&revocation, event(Action::TokenRevoked)).await.unwrap();
        let import = Mongo::import(uri.uri(), StoreCase::key(), DEADLINE).await.unwrap();
        let full = import.load(whole).await;
        assert!(
            matches!(full, Err(StoreError::Corrupt(problem)) if problem.to_string() == "import: the store is not empty")
        );
        assert_eq!(
            store.follow(NOW, RecordingFollower::new()).await.unwrap().revocations,
            [revocation],
            "nothing was touched"
        );
    }
}
