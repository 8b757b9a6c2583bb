//! `audit verify` with and without a server, and the trail after a cut by `audit.keep`.

use std::{fs, path::Path, thread, time::Duration};

use jeton::{
    config::{Config, Keep},
    crypto::{chain::ChainKey, master, seal::Sealer},
    model::{Action, Stamp, Timestamp},
    server::retention::Retention,
    store::{AuditStore, Store, embedded::Embedded},
};
use rusqlite::Connection;

use crate::cli::home::CliHome;

/// Only a test that fails waits for this long.
const PATIENCE: Duration = Duration::from_secs(120);

/// Time of the first record that is added.
const FIRST: i64 = 1_700_000_000;

fn chain_key(data: &Path) -> ChainKey {
    let master = master::load_or_make(&data.join("master.key"), false).unwrap();
    ChainKey::new(Sealer::new(*master).derive("audit head"))
}

/// Adds records, one a second, to the trail of a stopped server, and cuts those of the first
/// `cut` seconds.
fn add(home: &CliHome, count: i64, cut: u64) {
    let (data, key) = (home.data(), chain_key(&home.data()));
    tokio::runtime::Runtime::new().unwrap().block_on(async move {
        let store = Embedded::open(&data, &Config::default().node, key.clone()).unwrap();
        let chain = store.chains().await.unwrap().remove(0);
        let head = async || store.head(&chain).await.unwrap().unwrap().sequence;
        let last = head().await + count.unsigned_abs();
        for n in 0..count {
            let at = Timestamp::from_seconds(FIRST + n);
            let issued = Stamp::internal(at).done(Action::TokenIssued, n.to_string());
            store.append_soon(issued).await.unwrap();
        }
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        while head().await < last {
            tick.tick().await;
        }
        if cut > 0 {
            let now = Timestamp::from_seconds(FIRST + count);
            let age = Duration::from_secs(count.unsigned_abs() - cut);
            let retention = Retention { keep: Keep::Age(age), archive: None };
            assert!(retention.pass(&store, &key, now).await.unwrap() > 0);
        }
        store.close().await.unwrap();
    });
}

/// The head in the first line of an output.
fn head(out: &str) -> (&str, i64, &str) {
    let line = out.split_whitespace().next().unwrap();
    let mut parts = line.split(':');
    let mut part = || parts.next().unwrap();
    (part(), part().parse().unwrap(), part())
}

/// B05: results are printed chain by chain, a later run begins at the heads that an earlier one
/// printed, and a head that is not on the chain is refused, with a server and without one.
#[test]
fn a_verification_begins_at_the_heads_of_an_earlier_one() {
    let home = CliHome::new();
    home.serve().stop();
    let verify = |more: &[&str]| home.jeton(&[&["audit", "verify"], more].concat());
    let data = home.data();
    let stored = ["--data-dir", data.to_str().unwrap()];
    let first = verify(&stored).ok();
    let (chain, sequence, _) = head(&first.out);
    let records = if sequence == 1 { "1 record".to_owned() } else { format!("{sequence} records") };
    assert!(first.out.ends_with(&format!("intact: 1 chain, {records}\n")), "{first:?}");
    let heads = home.file("heads", &first.out);
    let heads = ["--from-head", heads.to_str().unwrap()];
    let again = verify(&[&stored[..], &heads].concat()).ok();
    assert!(again.out.ends_with("intact: 1 chain, 0 records\n"), "{again:?}");

    let server = home.serve();
    let served = verify(&["--json"]).ok().json();
    assert_eq!((&served["complete"], &served["intact"]), (&true.into(), &true.into()));
    let newer = verify(&[&heads[..], &["--json"]].concat()).ok().json();
    let end = newer["chains"][0]["head_sequence"].as_i64().unwrap();
    assert_eq!(newer["checked"], end - sequence);
    // A server may run meanwhile.
    let beside = verify(&[&stored[..], &heads, &["--json"]].concat()).ok().json();
    assert!(beside["checked"].as_i64() >= Some(end - sequence), "{beside}");
    let document = home.file("document", &newer.to_string());
    let from = ["--from-head", document.to_str().unwrap()];
    let newest = verify(&[&from[..], &["--json"]].concat()).ok().json();
    assert!(newest["checked"].as_i64() < newer["checked"].as_i64(), "{newest}");

    let other = home.file("other", &format!("{chain}:{sequence}:{}\n", "ab".repeat(32)));
    let other = ["--from-head", other.to_str().unwrap()];
    let broken = format!("broken at record {sequence}: differs from the hash of a known head");
    for mode in [&[][..], &stored] {
        let ran = verify(&[mode, &other].concat());
        assert!(ran.code == 1 && ran.out.contains(&broken), "{ran:?}");
        let gone = verify(&[mode, &["--chain", "gone"]].concat());
        assert!(gone.code == 5 && gone.out.is_empty(), "{gone:?}");
    }
    server.stop();
}

/// A record that was tampered with is named at the same place with a server and without one, from
/// the beginning and from a head before it.
#[test]
fn a_verification_names_the_same_place_with_and_without_a_server() {
    let home = CliHome::new();
    home.serve().stop();
    let verify = |more: &[&str]| home.jeton(&[&["audit", "verify"], more].concat());
    let data = home.data();
    let stored = ["--data-dir", data.to_str().unwrap()];
    let before = verify(&stored).ok();
    let heads = home.file("heads", &before.out);
    let heads = ["--from-head", heads.to_str().unwrap()];
    add(&home, 3_000, 0);
    let database = Connection::open(data.join("jeton.db")).unwrap();
    let altered =
        "UPDATE audit SET event = replace(event, 'token.', 'taken.') WHERE sequence = 1500";
    assert_eq!(database.execute(altered, []).unwrap(), 1);
    drop(database);
    for with_server in [false, true] {
        let server = with_server.then(|| home.serve());
        let mode = if with_server { &[][..] } else { &stored };
        for from in [&[][..], &heads] {
            let ran = verify(&[mode, from].concat());
            assert!(ran.code == 1 && ran.out.contains("broken at record 1500: "), "{ran:?}");
            // The head of a broken chain is no place to begin from.
            let found = home.file("found", &ran.out);
            let again = verify(&[mode, &["--from-head", found.to_str().unwrap()]].concat());
            assert_eq!(again.code, 1, "{again:?}");
        }
        if let Some(server) = server {
            server.stop();
        }
    }
}

/// A verification without a result has another exit code than one that found something, and none
/// of 0: it may have been told so by a signal, or have nothing to read.
#[test]
fn a_verification_without_a_result_is_no_result() {
    let home = CliHome::new();
    let verify = |more: &[&str]| home.jeton(&[&["audit", "verify"], more].concat());
    let data = home.data();
    let stored = ["--data-dir", data.to_str().unwrap()];
    let none = verify(&stored);
    assert!(none.code == 64 && none.out.is_empty(), "{none:?}");
    let server = home.serve();
    // A server that does not answer: nothing is known of the trail.
    server.signal("STOP");
    let waiting = home.follow(&["audit", "verify"]);
    let status = format!("/proc/{}/status", waiting.pid());
    let catches_sigint = || {
        let status = fs::read_to_string(&status).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        u64::from_str_radix(caught.trim(), 16).unwrap() & 0b10 != 0
    };
    let ticks = PATIENCE.as_millis() / 10;
    assert!((0..ticks).any(|_| {
        thread::park_timeout(Duration::from_millis(10));
        catches_sigint()
    }));
    waiting.signal("INT");
    assert_eq!(waiting.ended(), Some(6));
    let said = fs::read_to_string(home.path("followed")).unwrap();
    assert!(said.contains("stopped by a signal"), "{said}");
    server.signal("CONT");
    server.stop();
    let away = verify(&[]);
    assert!(away.code == 4 && away.out.is_empty(), "{away:?}");

    let key = data.join("master.key");
    fs::write(&key, "Q2Qf8mKTpTqBnSg2OWGLhX0l9H3aiYvHkxS6zVq3r+8=\n").unwrap();
    let other = verify(&stored);
    assert!(other.code == 64 && other.err.contains("master key"), "{other:?}");
    fs::remove_file(&key).unwrap();
    let missing = verify(&stored);
    assert!(missing.code == 64 && missing.err.contains("master key"), "{missing:?}");
}

/// After a cut a list says until when, and a tail that was behind it ends and names the records.
#[test]
fn a_cut_is_said_by_lists_and_tails() {
    let home = CliHome::new();
    home.serve().stop();
    add(&home, 5_000, 2_200);
    let server = home.serve();
    let listed = home.jeton(&["audit", "list", "--limit", "100000", "--json"]).ok().json();
    let cut = listed["cut_time"].as_str().unwrap().to_owned();
    assert!(cut.starts_with("2023-11-14T22:"), "{cut}");
    let text = home.jeton(&["audit", "list", "--limit", "100000"]).ok();
    assert!(text.err.contains(&format!("records up to {cut} were cut by audit.keep")), "{text:?}");
    let later = home.jeton(&["audit", "list", "--since", "1h", "--json"]).ok().json();
    assert_eq!(later["cut_time"], serde_json::Value::Null);
    let part = home.jeton(&["audit", "list", "--limit", "10", "--json"]).ok().json();
    assert_eq!(part["cut_time"], serde_json::Value::Null);

    let verdict = home.jeton(&["audit", "verify", "--json"]).ok().json();
    let cut = verdict["chains"][0]["cut_sequence"].as_i64().unwrap();
    assert!(cut > 0, "{verdict}");
    let chain = verdict["chains"][0]["chain"].as_str().unwrap();
    let place = home.file("place", &serde_json::json!({ chain: cut - 1 }).to_string());
    let tail = ["audit", "tail", "--json", "--from-last", place.to_str().unwrap()];
    let ran = home.jeton(&tail);
    let named = format!("records {cut} to {cut} of the chain {chain} were cut by audit.keep");
    assert!(ran.code == 3 && ran.err.contains(&named), "{ran:?}");
    home.file("place", &serde_json::json!({ chain: cut }).to_string());
    let tail = home.follow(&tail);
    let event: serde_json::Value = serde_json::from_str(&tail.next(PATIENCE).unwrap()).unwrap();
    assert_eq!(event["sequence"], cut + 1);
    server.stop();
}

#[cfg(feature = "mongodb")]
mod mongodb {
    use crate::{cli::home::CliHome, support::database::Database};

    /// On MongoDB's address, while nodes run and after they stopped.
    #[test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    fn chains_of_a_database_are_verified_without_a_node() {
        let (home, own) = (CliHome::new(), Database::new());
        let flags = ["--store", own.uri()];
        let server = home.serve_dev(&flags);
        let verify = || home.jeton(&[&["audit", "verify", "--json"], &flags[..]].concat());
        let beside = verify().ok().json();
        assert_eq!(
            (&beside["intact"], beside["chains"].as_array().unwrap().len()),
            (&true.into(), 1)
        );
        server.stop();
        let after = verify().ok().json();
        assert_eq!(
            (&after["intact"], after["chains"].as_array().unwrap().len()),
            (&true.into(), 1)
        );
        assert!(after["checked"].as_i64() >= beside["checked"].as_i64());
    }
}
