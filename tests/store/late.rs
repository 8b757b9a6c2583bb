//! A write that MongoDB makes after its call gave up.

mod mongodb {
    use std::time::Duration;

    use futures_util::TryStreamExt;
    use jeton::{
        model::{Action, EpochOf},
        store::{ClientStore, RevocationStore, Store, StoreError},
    };
    use mongodb::bson::doc;
    use tokio::time::timeout;

    use crate::{
        bench::{Bench, POINT},
        database::node,
        fixtures::{client, event, id},
        outage::mongodb::Frail,
    };

    /// AUDIT AZ10: a create that is made late finds the id taken once the client's epoch was
    /// raised. Without that it registers the client, which shows that it really comes.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo test -- --ignored mongodb"]
    async fn a_late_create_behind_a_raised_epoch_registers_nobody() {
        let _alone = POINT.lock().await;
        let frail = Frail::open().await;
        let other = node(frail.own.uri(), "other", Bench::key()).await;
        let database = frail.own.uri().rsplit_once('/').unwrap().1.split_once('?').unwrap().0;
        let namespace = format!("{database}.clients");
        for (name, is_fenced) in [("free", false), ("fenced", true)] {
            // Longer each time, until the epoch is raised before the create is made.
            for block_ms in [4_000, 12_000, 36_000] {
                let how = doc! {
                    "failCommands": ["update"], "namespace": &namespace,
                    "blockConnection": true, "blockTimeMS": block_ms,
                };
                frail.server.point(doc! { "times": 1 }, how).await;
                let new = client(name);
                let given_up = frail.store.create_client(&new, event(Action::ClientCreated));
                assert!(matches!(given_up.await, Err(StoreError::Unavailable(_))));
                if is_fenced {
                    let of = EpochOf::Client(id(name));
                    other.raise_epoch(&of, event(Action::ClientRevoked)).await.unwrap();
                    if other.client(&id(name)).await.unwrap().is_some() {
                        let made = client(name);
                        other.delete_client(&made, event(Action::ClientDeleted)).await.unwrap();
                        continue;
                    }
                }
                break;
            }
            let ended = async {
                while frail.server.is_busy().await {
                    timeout(Duration::from_millis(20), std::future::pending::<()>())
                        .await
                        .unwrap_err();
                }
            };
            timeout(Duration::from_secs(120), ended).await.unwrap();
            assert_eq!(other.client(&id(name)).await.unwrap().is_none(), is_fenced, "{name}");
        }
        // The id is not lost.
        other.create_client(&client("fenced"), event(Action::ClientCreated)).await.unwrap();
        assert!(other.client(&id("fenced")).await.unwrap().is_some());
        other.close().await.unwrap();
    }

    impl crate::outage::mongodb::Server {
        /// Returns true while the server has a write of clients by this node in hand.
        async fn is_busy(&self) -> bool {
            let admin = self.client.database("admin");
            let ours = doc! { "appName": &self.name, "command.update": "clients" };
            let stages = [doc! { "$currentOp": { "allUsers": true } }, doc! { "$match": ours }];
            let found = admin.aggregate(stages).await.unwrap();
            !found.try_collect::<Vec<_>>().await.unwrap().is_empty()
        }
    }
}
