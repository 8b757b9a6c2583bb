//! Starts on a shared store under another master key (OPERATORS 3.10): refused for what it is, before
//! anything of the other key is touched.

mod mongodb {
    use jeton::{
        crypto::chain::ChainKey,
        store::{
            Store,
            mongo::{Mongo, OpenError},
        },
    };
    use mongodb::bson::{Document, doc};

    use crate::support::database::{Database as Own, PATIENCE};

    async fn open(own: &Own, node: &str, key: u8) -> Result<Mongo, OpenError> {
        Mongo::open(own.uri(), node, ChainKey::new([key; 32]), PATIENCE).await
    }

    async fn nodes(own: &Own) -> mongodb::Collection<Document> {
        let client = mongodb::Client::with_uri_str(own.uri()).await.unwrap();
        client.default_database().unwrap().collection("nodes")
    }

    /// Two nodes that start at the same moment on an empty database: neither finds a head of the other.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn of_two_first_nodes_under_two_keys_one_is_refused() {
        for _ in 0..3 {
            let own = Own::own();
            let (one, two) = tokio::join!(open(&own, "one", 1), open(&own, "two", 2));
            let (refused, other) = match (one, two) {
                (Ok(store), Err(refused)) => (refused, store),
                (Err(refused), Ok(store)) => (refused, store),
                (one, two) => panic!("{:?} {:?}", one.err(), two.err()),
            };
            assert!(matches!(refused, OpenError::MasterKey(_)), "{refused:?}");
            assert_eq!(nodes(&own).await.count_documents(doc! {}).await.unwrap(), 1);
            other.close().await.unwrap();
        }
    }

    /// A node that ended before its first heartbeat left no head, and a note of its key.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn another_key_is_refused_before_the_first_head() {
        let own = Own::own();
        open(&own, "one", 1).await.unwrap().close().await.unwrap();
        let nodes = nodes(&own).await;
        let registered = doc! { "_id": "one", "beat": 0_i64 };
        nodes.replace_one(doc! { "_id": "one" }, registered).await.unwrap();
        for name in ["one", "two"] {
            let refused = open(&own, name, 2).await.err();
            assert!(matches!(refused, Some(OpenError::MasterKey(_))), "{name}: {refused:?}");
        }
        assert_eq!(nodes.count_documents(doc! {}).await.unwrap(), 1, "no name is taken");
        open(&own, "two", 1).await.unwrap().close().await.unwrap();
    }
}
