//! A MongoDB server alone, of no replica set: there is nothing to hear over, so each node looks
//! again and again.

mod mongodb {
    use std::{env, path::Path, sync::atomic::Ordering::SeqCst, time::Duration};

    use jeton::{
        admin::audit::verify,
        model::{Action, Jti, Revoked, revocation::Revocation},
        store::{
            AuditStore, Change, ClientStore, CounterStore, RevocationStore, Store, mongo::Mongo,
        },
    };
    use tempfile::TempDir;
    use tokio::time::timeout;

    use crate::{
        bench::Bench,
        database,
        fixtures::{Ear, NOW, at, event},
        member::{Member, until},
        scenes,
    };

    /// The server. It ends with this.
    struct Alone {
        member: Member,
        _dir: TempDir,
    }

    impl Alone {
        /// Returns when it listens.
        async fn start() -> Self {
            let mongod = env::var_os("MONGOD")
                .unwrap_or_else(|| panic!("MONGOD must name the binary: see .ci/with-mongodb"));
            let dir = tempfile::Builder::new().prefix("jeton-alone-").tempdir().unwrap();
            let mut arguments =
                "--bind_ip 127.0.0.1 --nounixsocket --wiredTigerCacheSizeGB 0.25 --quiet"
                    .to_owned();
            // The times of the fixtures are past.
            for parameter in ["ttlMonitorEnabled=false", "diagnosticDataCollectionEnabled=false"] {
                arguments += &format!(" --setParameter {parameter}");
            }
            let arguments = arguments.split(' ').map(str::to_owned).collect();
            let mut member =
                Member::new(dir.path().join("data"), dir.path().join("log"), arguments);
            member.spawn(Path::new(&mongod));
            until("a server that listens", async || member.listens()).await;
            Self { member, _dir: dir }
        }

        async fn node(&self, name: &str) -> Mongo {
            let uri = format!("mongodb://127.0.0.1:{}/jeton", self.member.port.load(SeqCst));
            database::node(&uri, name, Bench::key()).await
        }
    }

    /// V04: nodes open over it, every verb answers, what one node ends the other hears of in some
    /// seconds, and a node that comes back goes on with its chain.
    #[tokio::test]
    #[ignore = "needs mongod: see .ci/with-mongodb"]
    async fn nodes_share_a_server_without_a_replica_set() {
        let server = Alone::start().await;
        let (one, other, ear) = (server.node("one").await, server.node("other").await, Ear::new());
        other.follow(NOW, ear.clone()).await.unwrap();
        let revocation = Revocation { revoked: Revoked::Token(Jti::new()), until: at(1_000) };
        one.revoke(&revocation, event(Action::TokenRevoked)).await.unwrap();
        let heard =
            until("the revocation", async || ear.heard().contains(&Change::Revoked(revocation)));
        timeout(Duration::from_secs(60), heard).await.unwrap();

        scenes::fill(&one, 2).await;
        scenes::fill(&other, 2).await;
        assert_eq!(one.clients(None, None, 9).await.unwrap().len(), 4);
        for (store, stands) in [(&one, 1_u64), (&other, 2)] {
            store.ready().await.unwrap();
            assert_eq!(store.count(&[("a".to_owned(), 1)], at(0)).await.unwrap(), [stands]);
        }
        one.close().await.unwrap();
        let one = server.node("one").await;
        one.append(event(Action::ServerStarted)).await.unwrap();
        let verdicts = verify(&other, &Bench::key(), None, &[]).await.unwrap();
        let names: Vec<&str> = verdicts.iter().map(|verdict| &*verdict.chain).collect();
        assert_eq!(names, ["one", "other"]);
        assert!(
            verdicts.iter().all(|verdict| verdict.flaw.is_none() && verdict.checked > 0),
            "{verdicts:?}"
        );
    }
}
