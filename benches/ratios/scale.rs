//! A large store: how soon it is ready, and how much memory it takes, also under many idle
//! connections.

use std::{io::Write, net::TcpStream, path::Path, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use jeton::{
    crypto::{chain::ChainKey, master, seal::Sealer},
    model::{
        Action, Client, Epochs, Family, FamilyId, Jti, Principal, Revocation, Revoked, Scopes,
        Stamp, Subject, Timestamp, family::Answers,
    },
    store::{ClientStore, Creation, FamilyStore, RevocationStore, Store, embedded::Embedded},
};

use crate::{
    scene::bootstrap,
    servers::{Server, data},
};

/// Sizes of the store under test.
pub(crate) struct Counts {
    families: usize,
    revocations: usize,
    connections: usize,
    /// Starts that are measured.
    starts: usize,
}

impl Counts {
    pub(crate) const FULL: Self =
        Self { families: 1_000_000, revocations: 100_000, connections: 10_000, starts: 5 };
    pub(crate) const SMOKE: Self =
        Self { families: 1_000, revocations: 100, connections: 100, starts: 1 };
}

/// A preface and empty settings: an HTTP/2 connection on which nothing is asked.
const IDLE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Measures and prints.
pub(crate) fn run(program: &Path, dir: &Path, counts: &Counts) {
    let first = Server::jeton(program, dir, None);
    println!(
        "empty store           ready in {:.2} s, {:.0} MiB resident",
        first.ready.as_secs_f64(),
        first.resident()
    );
    let client = bootstrap(&first).id;
    first.stop();
    let began = std::time::Instant::now();
    tokio::runtime::Runtime::new().unwrap().block_on(fill(dir, &client, counts));
    println!(
        "filled                {} families, {} revocations in {:.0} s",
        counts.families,
        counts.revocations,
        began.elapsed().as_secs_f64()
    );
    for _ in 0..counts.starts {
        let server = Server::jeton(program, dir, None);
        let resident = server.resident();
        println!(
            "full store            ready in {:.2} s (bound 2), {resident:.0} MiB resident (bound \
             300)",
            server.ready.as_secs_f64()
        );
        server.stop();
    }
    let server = Server::jeton(program, dir, None);
    idle("jeton", &server, counts.connections);
    server.stop();
    // What of it is the price of an HTTP/2 connection in tonic.
    ["Token", "Refresh", "Introspect"]
        .iter()
        .for_each(|name| std::fs::write(dir.join(name), []).unwrap());
    idle("echo", &Server::echo(dir), counts.connections);
}

fn idle(name: &str, server: &Server, connections: usize) {
    let before = server.resident();
    let open: Vec<TcpStream> = (0..connections)
        .map(|_| {
            let mut stream = TcpStream::connect(server.address)
                .expect("room for so many open files: see ulimit -n");
            stream.write_all(IDLE).unwrap();
            stream
        })
        .collect();
    std::thread::sleep(Duration::from_secs(3));
    let after = server.resident();
    println!(
        "idle connections      {name}: {} of them, {before:.0} -> {after:.0} MiB resident, {:.0} \
         more (bound 120)",
        open.len(),
        after - before
    );
}

/// Through the store itself: what a year of use would leave behind, with its audit trail.
async fn fill(dir: &Path, client: &str, counts: &Counts) {
    let data = data(dir);
    let key = master::load_or_make(&data.join("master.key"), false).unwrap();
    let chain = ChainKey::new(Sealer::new(*key).derive("audit head"));
    let store = Arc::new(Embedded::open(&data, "node-1", chain).unwrap());
    let client = store.client(&client.parse().unwrap()).await.unwrap().unwrap();
    let now = client.created_at;
    let stamp = Stamp { actor: Some(Principal::Client(client.id.clone())), ..Stamp::internal(now) };
    let families = stream::iter(0..counts.families).map(|_| {
        let (store, stamp, family) = (store.clone(), stamp.clone(), family(&client, now));
        async move {
            let event =
                stamp.done(Action::TokenIssued, Jti::new().to_string()).in_family(family.id);
            assert_eq!(store.open_family(&family, event).await.unwrap(), Creation::Created);
        }
    });
    families.buffer_unordered(4_096).collect::<()>().await;
    let revocations = stream::iter(0..counts.revocations).map(|_| {
        let (store, stamp, jti) = (store.clone(), stamp.clone(), Jti::new());
        async move {
            let revocation = Revocation {
                revoked: Revoked::Token(jti),
                until: now + Duration::from_secs(100_000),
            };
            store
                .revoke(&revocation, stamp.done(Action::TokenRevoked, jti.to_string()))
                .await
                .unwrap();
        }
    });
    revocations.buffer_unordered(4_096).collect::<()>().await;
    store.close().await.unwrap();
}

fn family(client: &Client, now: Timestamp) -> Family {
    Family {
        id: FamilyId::new(),
        tenant: client.tenant.clone(),
        client: client.id.clone(),
        subject: Subject::of_client(&client.id),
        scopes: Scopes::parse(&["orders:read", "orders:write"]).unwrap(),
        audience: vec!["https://orders.test".parse().unwrap()],
        salt: [7; 32],
        epochs: Epochs { tenant: 0, client: 0, subject: 0 },
        opened_at: now,
        expires_at: now + Duration::from_secs(2_592_000),
        idle: Duration::from_secs(604_800),
        generation: 0,
        rotated_at: now,
        answers: Answers::first(&"local".into()),
        ended_at: None,
    }
}
