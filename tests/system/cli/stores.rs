//! A shared store that cannot be used: what `serve` says, what `doctor` says, and that neither
//! repeats a password.

use serde_json::Value;

use crate::cli::home::{CliHome, Ran};

const PASSWORD: &str = "canary-in-the-address";

/// Answers of `serve` and `doctor` about a store, in this order.
fn said(home: &CliHome, address: &str) -> (Ran, Value) {
    let serve = home.jeton(&[
        "serve",
        "--dev",
        "--listen",
        "127.0.0.1:0",
        "--node",
        "n",
        "--store",
        address,
    ]);
    let doctor = home.jeton(&[
        "doctor",
        "--dev",
        "--listen",
        "127.0.0.1:0",
        "--node",
        "n",
        "--store",
        address,
        "--json",
    ]);
    for text in [&serve.err, &serve.out, &doctor.err, &doctor.out] {
        assert!(!text.contains(PASSWORD), "{text}");
    }
    assert_eq!(
        serve.err.lines().filter(|line| line.starts_with("error: ")).count(),
        1,
        "{serve:?}"
    );
    assert_eq!(doctor.code, 1, "{doctor:?}");
    let report = doctor.json();
    (serve, report)
}

/// The first finding about a subject.
fn finding<'a>(report: &'a Value, subject: &str) -> &'a Value {
    let findings = report["findings"].as_array().unwrap();
    findings
        .iter()
        .find(|finding| finding["subject"] == subject)
        .unwrap_or_else(|| panic!("{subject}: {report}"))
}

fn text<'a>(report: &'a Value, subject: &str) -> &'a str {
    finding(report, subject)["text"].as_str().unwrap()
}

/// M13: what is wrong with an address is said without the address.
#[test]
fn an_address_that_cannot_be_used_is_explained_without_its_password() {
    let home = CliHome::new();
    for (address, problem) in [
        (format!("mongodb://me:{PASSWORD}@"), "must be a MongoDB address"),
        (format!("mongodb://me:@{PASSWORD}@host/"), "must be a MongoDB address"),
        (
            format!("mongodb://me:{PASSWORD}@127.0.0.1:1/?authMechanism=FOO"),
            "unknown or invalid option in the query part",
        ),
        (
            format!("mongodb://me:{PASSWORD}@127.0.0.1:1/?tls=true&tlsCAFile=/nowhere"),
            "TLS options",
        ),
    ] {
        let (serve, report) = said(&home, &address);
        assert_eq!(serve.code, 64, "{serve:?}");
        assert!(serve.err.contains(problem), "{serve:?}");
        assert_eq!(finding(&report, "store")["verdict"], "problem");
        assert!(text(&report, "store").contains(problem), "{report}");
    }
}

/// AZ16: a password among the arguments is warned of, without it.
#[test]
fn a_password_in_the_arguments_is_warned_of() {
    let home = CliHome::new();
    const WARNING: &str = "can see the password in --store";
    let (serve, _) =
        said(&home, &format!("mongodb://me:{PASSWORD}@127.0.0.1:1/?tls=true&tlsCAFile=/nowhere"));
    assert!(serve.err.contains(WARNING) && serve.err.contains("--store-file"), "{serve:?}");
    let (serve, _) = said(&home, "mongodb://127.0.0.1:1/?tls=true&tlsCAFile=/nowhere");
    assert!(!serve.err.contains(WARNING), "{serve:?}");
}

#[test]
fn a_file_with_the_address_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let home = CliHome::new();
    let file = home.file("address", &format!("mongodb://me:{PASSWORD}@127.0.0.1:1/\n"));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let flags =
        ["--dev", "--listen", "127.0.0.1:0", "--store-file", file.to_str().unwrap(), "--json"];
    let doctor = home.jeton(&[&["doctor"], &flags[..]].concat());
    assert!(!doctor.out.contains(PASSWORD));
    let report = doctor.json();
    assert!(text(&report, "store").ends_with("has mode 0640"), "{report}");
    assert!(finding(&report, "store")["advice"].as_str().unwrap().starts_with("chmod 0600 "));
    // AZ16: whoever can write to it chooses the store.
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
    let refused = home.jeton(&[&["serve"], &flags[..]].concat());
    assert!(refused.code == 64 && refused.err.contains("other users can write to "), "{refused:?}");
    assert!(!refused.err.contains(PASSWORD));
}

/// A database that is away may come back: a supervisor tries again.
#[test]
fn nobody_who_listens_may_pass() {
    let nobody = format!("mongodb://me:{PASSWORD}@127.0.0.1:1,127.0.0.1:2/db?replicaSet=rs");
    let (serve, report) = said(&CliHome::without_patience(), &nobody);
    assert_eq!(serve.code, 1, "{serve:?}");
    let expected = "127.0.0.1:1 refuses connections, 127.0.0.1:2 refuses connections";
    assert!(serve.err.contains(expected), "{serve:?}");
    assert!(text(&report, "store").contains(expected), "{report}");
}

/// A server of the wire's version 6, MongoDB 3.6: there is none to fetch, so one that says so and
/// no more.
#[test]
fn a_server_that_is_too_old_is_refused() {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
    };
    fn answer(mut stream: TcpStream) -> std::io::Result<()> {
        let number = |bytes: &[u8]| i32::from_le_bytes(bytes.try_into().unwrap());
        let hello = ::mongodb::bson::doc! {
            "ok": 1.0, "isWritablePrimary": true, "ismaster": true, "minWireVersion": 0, "maxWireVersion": 6,
            "maxBsonObjectSize": 16_777_216, "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000,
        };
        let hello = ::mongodb::bson::serialize_to_vec(&hello).unwrap();
        loop {
            let mut header = [0; 16];
            stream.read_exact(&mut header)?;
            std::io::copy(
                &mut (&stream).take(u64::try_from(number(&header[..4]) - 16).unwrap()),
                &mut std::io::sink(),
            )?;
            // OP_QUERY is answered with OP_REPLY, OP_MSG with OP_MSG.
            let legacy = number(&header[12..]) == 2004;
            let mut body = if legacy { vec![0; 20] } else { vec![0; 5] };
            if legacy {
                body[16] = 1;
            }
            body.extend(&hello);
            let mut message = i32::try_from(16 + body.len()).unwrap().to_le_bytes().to_vec();
            message.extend([0; 4].iter().chain(&header[4..8]));
            message.extend(if legacy { 1_i32 } else { 2013 }.to_le_bytes());
            message.extend(body);
            stream.write_all(&message)?;
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("mongodb://{}/db", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || answer(stream.unwrap()));
        }
    });
    let (serve, report) = said(&CliHome::new(), &address);
    assert_eq!(serve.code, 64, "{serve:?}");
    assert!(serve.err.contains("MongoDB is too old: wire version 6, required 9"), "{serve:?}");
    assert!(text(&report, "store").contains("wire version 6"), "{report}");
}

mod mongodb {
    use std::{
        net::{Ipv4Addr, TcpListener, TcpStream},
        process::{Child, Command, Stdio},
        time::Duration,
    };

    use mongodb::bson::{Uuid, doc};
    use tempfile::TempDir;

    use super::{PASSWORD, finding, said, text};
    use crate::{
        cli::home::{CliHome, Ran},
        support::{
            database::Database,
            replica::{self, Options, ReplicaSet},
        },
    };

    /// M12: what is healthy is found healthy, and each thing that ails is named.
    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn the_doctor_knows_a_healthy_store_and_what_ails_another() {
        let (home, own) = (CliHome::new(), Database::new());
        let (database, address) = (own.open().await, own.uri());
        let until = |port: &str, node: &str, is_so: &dyn Fn(&Ran) -> bool| {
            home.until(
                &[
                    "doctor", "--dev", "--listen", port, "--node", node, "--store", address,
                    "--json",
                ],
                is_so,
            )
        };
        let doctor = |port: &str, node: &str| until(port, node, &|_| true);
        let before = doctor("127.0.0.1:0", "n").ok().json();
        assert!(
            text(&before, "schema").contains("the database is not initialized yet"),
            "{before}"
        );
        assert!(database.list_collection_names().await.unwrap().iter().all(|name| name == "meta"));
        assert_eq!(
            database
                .collection::<mongodb::bson::Document>("meta")
                .count_documents(doc! {})
                .await
                .unwrap(),
            0
        );

        let server = home.serve_dev(&["--node", "n", "--store", address]);
        // A heartbeat that a busy machine delays is missed, and found at the next look.
        let runs = |of: &'static str| {
            move |ran: &Ran| ran.is_ok() && text(&ran.json(), "node").starts_with(of)
        };
        let well = until(server.address(), "n", &runs("n is running")).ok().json();
        for subject in ["store", "clocks", "schema", "signing keys", "node", "service"] {
            assert_eq!(finding(&well, subject)["verdict"], "ok", "{subject}: {well}");
        }
        // How long a disk takes is not the doctor's fault.
        assert!(text(&well, "majority write").starts_with("takes "), "{well}");
        assert!(text(&well, "node").starts_with("n is running"), "{well}");
        let is_seen = |ran: &Ran| {
            ran.json()["findings"]
                .as_array()
                .unwrap()
                .iter()
                .any(|it| it["subject"] == "other nodes")
        };
        let other = until("127.0.0.1:0", "other", &is_seen).ok().json();
        assert_eq!(text(&other, "other nodes"), "n");
        const TAKEN: &str = "a process elsewhere uses the name n";
        let taken =
            until("127.0.0.1:0", "n", &|ran| text(&ran.json(), "node").starts_with(TAKEN)).json();
        assert!(text(&taken, "node").starts_with(TAKEN), "{taken}");

        // Another process takes the name, again and again, as two under a supervisor do.
        let nodes = database.collection::<mongodb::bson::Document>("nodes");
        let taker = tokio::spawn(async move {
            loop {
                let take = doc! { "$set": { "session": Uuid::new() } };
                nodes.update_one(doc! { "_id": "n" }, take).await.unwrap();
                replica::pause(Duration::from_millis(50)).await;
            }
        });
        const DISPUTED: &str = "several processes use the name n";
        let is_disputed = |ran: &Ran| text(&ran.json(), "node").contains(DISPUTED);
        let disputed =
            tokio::task::block_in_place(|| until("127.0.0.1:0", "n", &is_disputed)).json();
        taker.abort();
        assert!(text(&disputed, "node").contains(DISPUTED), "{disputed}");
        drop(server);

        database
            .collection::<mongodb::bson::Document>("tokens")
            .drop_index("ended_until")
            .await
            .unwrap();
        let clients = database.collection::<mongodb::bson::Document>("clients");
        let unique = mongodb::options::IndexOptions::builder().unique(true).build();
        let model =
            mongodb::IndexModel::builder().keys(doc! { "tenant": 1 }).options(unique).build();
        clients.create_index(model).await.unwrap();
        let ill = doctor("127.0.0.1:0", "n").json();
        let texts: Vec<&str> = ill["findings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|found| found["text"].as_str().unwrap())
            .collect();
        assert!(
            texts.iter().any(|text| text.starts_with("tokens.ended_until is missing")),
            "{ill}"
        );
        assert!(texts.iter().any(|text| text.starts_with("clients.tenant_1 is unique")), "{ill}");

        let key = home.file("key", "Q2Qf8mKTpTqBnSg2OWGLhX0l9H3aiYvHkxS6zVq3r+8=\n");
        let key = key.to_str().unwrap();
        let arguments = ["doctor", "--listen", "127.0.0.1:0", "--store", address, "--json"];
        let mut command = home.command(&arguments);
        let foreign = crate::cli::home::run(command.env("JETON_MASTER_KEY_FILE", key), "").json();
        assert_eq!(finding(&foreign, "signing keys")["verdict"], "problem");

        let schema = doc! { "$set": { "version": 99 } };
        database
            .collection::<mongodb::bson::Document>("meta")
            .update_one(doc! { "_id": "schema" }, schema)
            .await
            .unwrap();
        let (serve, newer) = said(&home, address);
        assert_eq!(serve.code, 64, "{serve:?}");
        assert!(text(&newer, "schema").starts_with("version 99"), "{newer}");

        let other_set = address.replace("replicaSet=jeton", "replicaSet=other");
        let (serve, report) = said(&CliHome::without_patience(), &other_set);
        assert_eq!(serve.code, 64, "{serve:?}");
        assert!(
            text(&report, "store").ends_with(
                "is a member of the replica set jeton, not a member of the replica set other"
            ),
            "{report}"
        );
    }

    /// M13, and a user that may not: wrong credentials, none, and rights that are missing are told
    /// apart, and so is a set that lost its majority.
    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn credentials_and_rights_are_told_apart() {
        let set =
            ReplicaSet::start(Options { auth: true, defaults: true, ..Options::default() }).await;
        let home = CliHome::new();
        let user = doc! { "createUser": "powerless", "pwd": PASSWORD, "roles": [] };
        set.command(set.primary().await, user).await.unwrap();
        for (address, problem) in [
            (
                set.uri_as("db", replica::USER, PASSWORD),
                "MongoDB refuses the credentials: SCRAM failure",
            ),
            (
                set.uri_of("db").replace(&format!("{}:{}@", replica::USER, replica::PASSWORD), ""),
                "store.uri names no user",
            ),
            (set.uri_as("db", "powerless", PASSWORD), "needs the role readWrite"),
        ] {
            let (serve, report) = said(&home, &address);
            assert_eq!(serve.code, 64, "{serve:?}");
            assert!(serve.err.contains(problem), "{problem}: {serve:?}");
            assert!(text(&report, "store").contains(problem), "{report}");
        }
        let arguments =
            ["doctor", "--dev", "--listen", "127.0.0.1:0", "--store", &set.uri_of("db"), "--json"];
        let report = home.until(&arguments, Ran::is_ok).ok().json();
        assert!(
            text(&report, "replica set").contains("cannot read its settings: code 13 Unauthorized"),
            "{report}"
        );

        let primary = set.primary().await;
        (0..3).filter(|index| *index != primary).for_each(|index| set.kill(index));
        replica::until("a primary that steps down", async || {
            let hello = set.command(primary, doc! { "hello": 1 }).await;
            hello.is_ok_and(|hello| !hello.get_bool("isWritablePrimary").unwrap())
        })
        .await;
        let (serve, report) = said(&CliHome::without_patience(), &set.uri_of("db"));
        assert_eq!(serve.code, 1, "{serve:?}");
        assert!(serve.err.contains("no primary: "), "{serve:?}");
        assert!(text(&report, "store").contains(" secondary"), "{report}");
    }

    /// A mongod of no replica set. It ends with this.
    struct Alone {
        child: Child,
        port: u16,
        _dir: TempDir,
    }

    impl Alone {
        /// Returns when it listens.
        async fn start(arguments: &[&str]) -> Self {
            let mongod =
                std::env::var_os("MONGOD").expect("MONGOD names the binary: see .ci/with-mongodb");
            let dir = tempfile::tempdir().unwrap();
            let port =
                TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
            // It ends with this thread, should that be killed.
            let child = Command::new("setpriv")
                .args(["--pdeathsig", "KILL", "--"])
                .arg(mongod)
                .args(["--bind_ip", "127.0.0.1", "--port", &port.to_string(), "--dbpath"])
                .arg(dir.path())
                .args(arguments)
                .args(["--nounixsocket", "--wiredTigerCacheSizeGB", "0.25", "--quiet"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn();
            let alone = Self { child: child.expect("setpriv and mongod run"), port, _dir: dir };
            replica::until("a server that listens", async || {
                TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
            })
            .await;
            alone
        }
    }

    impl Drop for Alone {
        fn drop(&mut self) {
            // It may have ended before.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    /// A set that nobody has initiated may still be: it is said what is missing, and a supervisor
    /// tries again.
    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs mongod: see .ci/with-mongodb"]
    async fn a_set_that_waits_to_be_initiated_is_told_from_none() {
        let alone = Alone::start(&["--replSet", "rs"]).await;
        let address = format!("mongodb://127.0.0.1:{}/db?replicaSet=rs", alone.port);
        let (serve, report) = said(&CliHome::without_patience(), &address);
        assert_eq!(serve.code, 1, "{serve:?}");
        assert!(serve.err.contains("run rs.initiate()"), "{serve:?}");
        assert!(text(&report, "store").contains("run rs.initiate()"), "{report}");
    }

    /// A server alone is served; the log and the doctor say what that is worth.
    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs mongod: see .ci/with-mongodb"]
    async fn a_server_alone_is_served_with_a_warning() {
        let (home, alone) = (CliHome::new(), Alone::start(&[]).await);
        let address = format!("mongodb://127.0.0.1:{}/db", alone.port);
        let server = home.serve_dev(&["--node", "n", "--store", &address]);
        assert!(home.log().contains("MongoDB is standalone"), "{}", home.log());
        let token = home.jeton(&["token", "--raw"]).ok();
        home.jeton(&["introspect", "--check", token.line()]).ok();
        home.jeton(&["revoke", token.line()]).ok();
        assert_eq!(home.jeton(&["introspect", "--check", token.line()]).code, 1);

        let arguments = [
            "doctor",
            "--dev",
            "--listen",
            server.address(),
            "--node",
            "n",
            "--store",
            &address,
            "--json",
        ];
        let report = home.jeton(&arguments).ok().json();
        let found = finding(&report, "store");
        assert_eq!(found["verdict"], "note");
        assert!(text(&report, "store").ends_with(" a standalone server"), "{report}");
        assert!(
            found["advice"].as_str().unwrap().starts_with("use a replica set of three"),
            "{report}"
        );
        server.stop();
    }
}
