//! The harness itself: that a set of real mongods does what the tests of faults rely on.
//!
//!   bash .ci/with-mongodb --mongod-only cargo t-system --include-ignored --nocapture replica::

use std::{env, path::Path, process::Command, time::Duration};

use mongodb::{
    Client,
    bson::{Document, doc},
    error::ErrorKind,
    options::{ClientOptions, WriteConcern},
};
use tokio::{task::JoinHandle, time::Instant};

use crate::support::replica::{
    Cut, Options, PASSWORD, ReplicaSet, Source, Toward, USER, pause, until,
};

/// As jeton's own: by the URI, named `jeton`, for the majority.
async fn jeton(uri: &str) -> Client {
    let mut options = ClientOptions::parse(uri).await.unwrap();
    options.app_name = Some("jeton".into());
    options.server_selection_timeout = Some(Duration::from_secs(2));
    options.retry_writes = Some(false);
    options.write_concern = Some(WriteConcern::majority());
    Client::with_options(options).unwrap()
}

/// Writes one document, in a task of its own.
fn write(client: &Client) -> JoinHandle<mongodb::error::Result<()>> {
    let collection = client.database("test").collection::<Document>("test");
    tokio::spawn(async move { collection.insert_one(doc! {}).await.map(drop) })
}

/// Answer to that write within a second, if any.
async fn answered(
    write: &mut JoinHandle<mongodb::error::Result<()>>,
) -> Option<mongodb::error::Result<()>> {
    tokio::time::timeout(Duration::from_secs(1), write).await.ok().map(Result::unwrap)
}

fn others(index: usize) -> [usize; 2] {
    [(index + 1) % 3, (index + 2) % 3]
}

/// True if this member thinks well of that one.
async fn healthy(set: &ReplicaSet, index: usize, of: usize) -> bool {
    let status = set.command(index, doc! { "replSetGetStatus": 1 }).await.unwrap();
    status.get_array("members").unwrap()[of].as_document().unwrap().get_f64("health").unwrap()
        == 1.0
}

#[test]
fn each_cut_holds_its_own_way_only() {
    use Source::{Member, Process};
    let ways = [Process(7), Process(8), Member(0), Member(1), Member(2)];
    // Whose bytes are held on a connection to member 1.
    let held = |cut: Cut, toward| ways.map(|source| cut.holds(source, 1, toward));
    let both = |cut| {
        assert_eq!(held(cut, Toward::Member), held(cut, Toward::Source), "{cut:?}");
        held(cut, Toward::Member)
    };
    assert_eq!(both(Cut::Clients(1)), [true, true, false, false, false]);
    assert_eq!(both(Cut::Clients(0)), [false; 5]);
    assert_eq!(both(Cut::Process { pid: 7, member: 1 }), [true, false, false, false, false]);
    assert_eq!(both(Cut::Process { pid: 7, member: 0 }), [false; 5]);
    assert_eq!(both(Cut::Members(1)), [false, false, true, false, true]);
    assert_eq!(both(Cut::Members(0)), [false, false, true, false, false]);
    assert_eq!(held(Cut::Incoming(1), Toward::Member), [false, false, true, false, true]);
    assert_eq!(held(Cut::Incoming(1), Toward::Source), [false; 5]);
    assert_eq!(held(Cut::Incoming(0), Toward::Member), [false; 5]);
    assert_eq!(held(Cut::Incoming(0), Toward::Source), [false, false, true, false, false]);
    assert_eq!(held(Cut::Outgoing(1), Toward::Member), [false; 5]);
    assert_eq!(held(Cut::Outgoing(1), Toward::Source), [false, false, true, false, true]);
    assert_eq!(held(Cut::Outgoing(0), Toward::Member), [false, false, true, false, false]);
    assert_eq!(held(Cut::Outgoing(0), Toward::Source), [false; 5]);
}

#[tokio::test]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn mongodb_set_elects_another_when_its_primary_is_killed_and_takes_that_back() {
    let set = ReplicaSet::start(Options::default()).await;
    let client = jeton(&set.uri()).await;
    write(&client).await.unwrap().unwrap();
    let old = set.primary().await;
    let gone = set.pid(old);
    set.kill(old);
    assert!(!Path::new(&format!("/proc/{gone}")).exists());
    assert_ne!(set.next_primary(old).await, old);
    set.restart(old).await;
    assert_ne!(set.pid(old), gone);
    set.settled().await;
    write(&client).await.unwrap().unwrap();
    let found = set
        .client()
        .await
        .database("test")
        .collection::<Document>("test")
        .count_documents(doc! {})
        .await
        .unwrap();
    assert_eq!(found, 2);
    assert_eq!(set.log(old).matches("\"Build Info\"").count(), 2);

    let pids: Vec<u32> = (0..3).map(|index| set.pid(index)).collect();
    set.pause(0);
    drop(set);
    assert!(
        pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()),
        "also of a paused one nothing is left"
    );
}

#[tokio::test]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn mongodb_clients_are_cut_off_while_members_stay_together() {
    let set = ReplicaSet::start(Options::default()).await;
    let client = jeton(&set.uri()).await;
    write(&client).await.unwrap().unwrap();
    let primary = set.primary().await;
    assert!(set.connections(Cut::Clients(primary)) >= 1);
    assert!(set.connections(Cut::Members(primary)) >= 4, "both ways, to two members");
    set.cut(Cut::Clients(primary));
    let mut held = write(&client);
    assert!(answered(&mut held).await.is_none());
    // Longer than an election takes.
    pause(Duration::from_secs(4)).await;
    assert_eq!(set.primary().await, primary);
    for other in others(primary) {
        assert!(healthy(&set, primary, other).await && healthy(&set, other, primary).await);
    }
    // The majority goes on.
    write(&set.client().await).await.unwrap().unwrap();
    assert!(!held.is_finished());
    set.heal();
    // What was sent arrives, if the driver has not given that connection up.
    let outcome = held.await.unwrap();
    println!("held over the cut: {outcome:?}");
    write(&client).await.unwrap().unwrap();

    // Another process's way is its own.
    set.cut(Cut::Process { pid: 1, member: primary });
    write(&client).await.unwrap().unwrap();
    set.cut(Cut::Process { pid: std::process::id(), member: primary });
    assert!(answered(&mut write(&client)).await.is_none());
    set.reset(Cut::Clients(primary));
    assert_eq!(set.primary().await, primary);
}

#[tokio::test]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn mongodb_primary_cut_from_the_others_is_replaced_and_comes_back() {
    let set = ReplicaSet::start(Options::default()).await;
    let old = set.primary().await;
    set.cut(Cut::Members(old));
    let new = set.next_primary(old).await;
    let [one, other] = others(old);
    assert!(healthy(&set, one, other).await, "the two are together");
    // It learns that it has no majority.
    until("the old one knows", async || !healthy(&set, old, new).await).await;
    let client = jeton(&set.uri()).await;
    assert!(
        client.database("admin").run_command(doc! { "ping": 1 }).await.is_ok(),
        "clients reach it"
    );
    set.heal();
    set.settled().await;
    until("the old one is with them again", async || healthy(&set, old, new).await).await;
}

#[tokio::test]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn mongodb_ways_are_cut_in_one_direction() {
    let set = ReplicaSet::start(Options::default()).await;
    let primary = set.primary().await;
    let [deaf, third] = others(primary);
    // It hears nothing; requests of its own get no answer either, but what it says arrives.
    set.cut(Cut::Incoming(deaf));
    until("it thinks ill of the primary", async || !healthy(&set, deaf, primary).await).await;
    assert!(healthy(&set, primary, third).await && healthy(&set, third, primary).await);
    assert_eq!(set.primary().await, primary);
    set.heal();
    set.settled().await;

    // Nobody hears the primary.
    let old = set.primary().await;
    set.cut(Cut::Outgoing(old));
    set.next_primary(old).await;
    set.heal();
    set.settled().await;
}

#[tokio::test]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn mongodb_primary_steps_down_and_members_stop_cleanly() {
    // A second instead of 15 for its clients to hear of it.
    let arguments = ["--setParameter", "shutdownTimeoutMillisForSignaledShutdown=1000"]
        .map(str::to_owned)
        .to_vec();
    let dir = tempfile::tempdir().unwrap();
    let set = ReplicaSet::start(Options {
        arguments,
        dir: Some(dir.path().to_owned()),
        ..Options::default()
    })
    .await;
    for _ in 0..4 {
        let (old, since) = (set.primary().await, Instant::now());
        let new = set.step_down().await;
        assert_ne!(new, old);
        println!("stepped down: another after {:?}", since.elapsed());
        set.settled().await;
    }
    let (old, since) = (set.primary().await, Instant::now());
    set.stop_cleanly(old).await;
    println!("stopped cleanly after {:?}", since.elapsed());
    set.next_primary(old).await;
    set.restart(old).await;
    set.settled().await;

    // And of one that ends for reasons of its own it is known.
    let old = set.primary().await;
    assert!(
        Command::new("kill").args(["-ABRT", &set.pid(old).to_string()]).status().unwrap().success()
    );
    set.ends(old).await;
    set.next_primary(old).await;
    assert!(dir.path().join(format!("member-{old}/WiredTiger")).exists());
}

#[tokio::test]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn mongodb_commands_fail_as_told_for_jeton_only() {
    let set = ReplicaSet::start(Options::default()).await;
    let client = jeton(&set.uri()).await;
    let point =
        doc! { "mode": "alwaysOn", "data": { "failCommands": ["insert"], "errorCode": 91 } };
    set.fail_command(set.primary().await, point).await;
    let error = write(&client).await.unwrap().unwrap_err();
    assert!(
        matches!(*error.kind, ErrorKind::Command(ref command) if command.code == 91),
        "{error}"
    );
    write(&set.client().await).await.unwrap().unwrap();
    set.clear_failpoints().await;
    until("it is known again", async || write(&client).await.unwrap().is_ok()).await;

    let point = doc! { "mode": { "times": 1 }, "data": { "failCommands": ["insert"], "closeConnection": true } };
    set.fail_command(set.primary().await, point).await;
    assert!(write(&client).await.unwrap().is_err());
    until("it is known again", async || write(&client).await.unwrap().is_ok()).await;
}

#[tokio::test]
#[ignore = "needs mongod and strace: see .ci/with-mongodb"]
async fn mongodb_syncs_take_longer_until_told_otherwise() {
    let set = ReplicaSet::start(Options::default()).await;
    let client = jeton(&set.uri()).await;
    let timed = async || {
        let since = Instant::now();
        write(&client).await.unwrap().unwrap();
        since.elapsed()
    };
    timed().await;
    let before = timed().await;
    let primary = set.primary().await;
    // Longer than a slow machine takes without it.
    let delay = Duration::from_millis(300) + before * 10;
    for index in 0..3 {
        set.delay_sync(index, delay).await;
    }
    let delayed = timed().await;
    assert!(delayed >= delay, "{delayed:?} of {delay:?}");
    for index in 0..3 {
        set.delay_sync(index, Duration::ZERO).await;
    }
    until("writes are as fast as before", async || timed().await < delay).await;
    println!("a write: {before:?}, with slow syncs {delayed:?}");
    assert_eq!(set.primary().await, primary);
}

#[tokio::test]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn mongodb_users_and_certificates_are_asked_for() {
    let set = ReplicaSet::start(Options { auth: true, tls: true, ..Options::default() }).await;
    let client = jeton(&set.uri_of("test")).await;
    write(&client).await.unwrap().unwrap();
    let wrong = jeton(&set.uri_as("test", USER, "wrong")).await;
    let error = write(&wrong).await.unwrap().unwrap_err();
    assert!(matches!(*error.kind, ErrorKind::Authentication { .. }), "{error}");
    assert!(!format!("{error:?}").contains(PASSWORD));
    let plain = jeton(set.uri().replace("&tls=true", "").split("&tlsCAFile").next().unwrap()).await;
    assert!(write(&plain).await.unwrap().is_err());

    let primary = set.primary().await;
    set.expire_certificate(primary).await;
    assert_eq!(set.primary().await, primary, "members keep their connections");
    let error = write(&client).await.unwrap().unwrap_err();
    println!("with an expired certificate: {error}");
    set.renew_certificate(primary).await;
    until("it is trusted again", async || write(&client).await.unwrap().is_ok()).await;

    // All of it outlives a restart.
    set.kill(primary);
    set.restart(primary).await;
    set.settled().await;
    until("it is known again", async || write(&client).await.unwrap().is_ok()).await;
}

/// The time without a primary, on which README's settings rest, is shorter with the recommended
/// settings, on a slow machine too. One round each, with `JETON_TEST_LONG=1` three.
#[tokio::test]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn mongodb_another_primary_is_there_in_time() {
    let rounds = if env::var_os("JETON_TEST_LONG").is_some_and(|long| long == "1") { 3 } else { 1 };
    let mut longest = [Duration::ZERO; 2];
    for (name, defaults) in [("recommended", false), ("default", true)] {
        let set = ReplicaSet::start(Options { defaults, ..Options::default() }).await;
        for _ in 0..rounds {
            let old = set.primary().await;
            let since = Instant::now();
            set.kill(old);
            set.next_primary(old).await;
            let killed = since.elapsed();
            set.restart(old).await;
            set.settled().await;

            let old = set.primary().await;
            let since = Instant::now();
            set.pause(old);
            set.next_primary(old).await;
            let paused = since.elapsed();
            set.resume(old);
            set.settled().await;
            println!(
                "{name} settings: another primary {killed:.1?} after kill -9, {paused:.1?} after \
                 SIGSTOP"
            );
            let longest = &mut longest[usize::from(defaults)];
            *longest = killed.max(paused).max(*longest);
        }
    }
    let [recommended, default] = longest;
    assert!(
        recommended < default,
        "with recommended settings {recommended:?}, with defaults {default:?}"
    );
}
