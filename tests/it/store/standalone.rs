//! A MongoDB server alone, of no replica set: there is nothing to hear over, so each node looks
//! again and again.

mod mongodb {
    use std::{
        env,
        net::{Ipv4Addr, TcpListener, TcpStream},
        process::{Child, Command, Stdio},
    };

    use jeton::{
        admin::audit::verify,
        model::{Action, Jti, Revoked, revocation::Revocation},
        store::{
            AuditStore, Change, ClientStore, CounterStore, RevocationStore, Store, mongo::Mongo,
        },
    };
    use tempfile::TempDir;

    use crate::{
        store::{
            backend::StoreCase,
            fixtures::{NOW, RecordingFollower, at, event},
            prepared,
        },
        support::database,
        support::until::until,
    };

    /// The server. It ends with this.
    struct Alone {
        child: Child,
        port: u16,
        _dir: TempDir,
    }

    impl Alone {
        /// Returns when it listens.
        async fn start() -> Self {
            let mongod = env::var_os("MONGOD")
                .unwrap_or_else(|| panic!("MONGOD must name the binary: see .ci/with-mongodb"));
            let dir = tempfile::Builder::new().prefix("jeton-alone-").tempdir().unwrap();
            let port =
                TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
            // It ends with this thread, should that be killed.
            let child = Command::new("setpriv")
                .args(["--pdeathsig", "KILL", "--"])
                .arg(mongod)
                .args(["--bind_ip", "127.0.0.1", "--port", &port.to_string(), "--dbpath"])
                .arg(dir.path())
                .args(["--nounixsocket", "--wiredTigerCacheSizeGB", "0.25", "--quiet"])
                // The times of the fixtures are past.
                .args(["--setParameter", "ttlMonitorEnabled=false"])
                .args(["--setParameter", "diagnosticDataCollectionEnabled=false"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn();
            let mut server =
                Self { child: child.expect("setpriv and mongod run"), port, _dir: dir };
            until(async || {
                // Another process may have got the port.
                let ended = server.child.try_wait().unwrap();
                assert!(ended.is_none(), "mongod runs: {ended:?}");
                TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
            })
            .await;
            server
        }

        async fn node(&self, name: &str) -> Mongo {
            let uri = format!("mongodb://127.0.0.1:{}/jeton", self.port);
            database::node(&uri, name, StoreCase::key()).await
        }
    }

    impl Drop for Alone {
        fn drop(&mut self) {
            // It may have ended before.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    /// V04: nodes open over it, every verb answers, what one node ends the other hears of in some
    /// seconds, and a node that comes back goes on with its chain.
    #[tokio::test]
    #[ignore = "needs mongod: see .ci/with-mongodb"]
    async fn nodes_share_a_server_without_a_replica_set() {
        let server = Alone::start().await;
        let (one, other, ear) =
            (server.node("one").await, server.node("other").await, RecordingFollower::new());
        other.follow(NOW, ear.clone()).await.unwrap();
        let revocation = Revocation { revoked: Revoked::Token(Jti::new()), until: at(1_000) };
        one.revoke(&revocation, event(Action::TokenRevoked)).await.unwrap();
        until(async || ear.heard().contains(&Change::Revoked(revocation))).await;

        prepared::fill(&one, 2).await;
        prepared::fill(&other, 2).await;
        assert_eq!(one.clients(None, None, 9).await.unwrap().len(), 4);
        for (store, stands) in [(&one, 1_u64), (&other, 2)] {
            store.ready().await.unwrap();
            assert_eq!(store.count(&[("a".to_owned(), 1)], at(0)).await.unwrap(), [stands]);
        }
        one.close().await.unwrap();
        let one = server.node("one").await;
        one.append(event(Action::ServerStarted)).await.unwrap();
        let verdicts = verify(&other, &StoreCase::key(), None, &[]).await.unwrap();
        let names: Vec<&str> = verdicts.iter().map(|verdict| &*verdict.chain).collect();
        assert_eq!(names, ["one", "other"]);
        assert!(
            verdicts.iter().all(|verdict| verdict.flaw.is_none() && verdict.checked > 0),
            "{verdicts:?}"
        );
    }
}
