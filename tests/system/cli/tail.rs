//! `audit tail` over breaks: restarts of the server, the end of its token, restarts of its own.

use std::{fs, thread, time::Duration};

use serde_json::Value;

use crate::cli::home::{CliHome, Following, Server};

/// Only a test that fails waits for this long.
const PATIENCE: Duration = Duration::from_secs(120);

const TAIL: [&str; 7] =
    ["audit", "tail", "--json", "--action", "client.created", "--from-last", "place"];

/// Starts a tail and waits until it has its first positions.
fn follow(home: &CliHome, more: &[&str]) -> Following {
    let tail = home.follow(&[&TAIL[..], more].concat());
    let ticks = PATIENCE.as_millis() / 10;
    let begun = (0..ticks).any(|_| {
        thread::park_timeout(Duration::from_millis(10));
        home.path("place").exists()
    });
    assert!(begun, "{}", stderr(home));
    tail
}

fn stderr(home: &CliHome) -> String {
    fs::read_to_string(home.path("followed")).unwrap()
}

fn next(home: &CliHome, tail: &Following) -> (String, i64) {
    let line = tail.next(PATIENCE).unwrap_or_else(|| panic!("{}", stderr(home)));
    let event: Value = serde_json::from_str(&line).unwrap();
    (event["target"].as_str().unwrap().to_owned(), event["sequence"].as_i64().unwrap())
}

fn create(home: &CliHome, client: &str) {
    home.jeton(&["client", "create", client]).ok();
}

fn again(home: &CliHome, address: &str) -> Server {
    home.serve_with(&["serve", "--dev", "--json", "--listen", address])
}

/// B22, B23: a tail outlives stops and kills of the server and the end of its token, prints every
/// event once, and ends with 0 only by a signal; the next one goes on from its file.
#[test]
fn a_tail_goes_on_without_gap_or_repetition() {
    let home = CliHome::new();
    let server = home.serve();
    let address = server.address().to_owned();
    let tail = follow(&home, &[]);
    create(&home, "c0");
    assert_eq!(next(&home, &tail).0, "c0");

    server.stop();
    let server = again(&home, &address);
    create(&home, "c1");
    create(&home, "c2");
    let (c1, c2) = (next(&home, &tail), next(&home, &tail));
    assert_eq!((c1.0.as_str(), c2.0.as_str()), ("c1", "c2"));
    assert!(c1.1 < c2.1);
    assert!(stderr(&home).contains("connecting again"), "{}", stderr(&home));

    server.signal("KILL");
    server.ended();
    let server = again(&home, &address);
    create(&home, "c3");
    assert_eq!(next(&home, &tail).0, "c3");

    // No token of this client is valid any more, that of the tail included.
    home.jeton(&["revoke-all", "--client", "bootstrap"]).ok();
    create(&home, "c4");
    assert_eq!(next(&home, &tail).0, "c4");

    tail.signal("TERM");
    assert_eq!(tail.ended(), Some(0));
    create(&home, "c5");
    let tail = follow(&home, &[]);
    assert_eq!(next(&home, &tail).0, "c5");
    create(&home, "c6");
    assert_eq!(next(&home, &tail).0, "c6");
    tail.signal("INT");
    assert_eq!(tail.ended(), Some(0));
    server.stop();
}

/// B23: what no new attempt helps against ends a tail with the code of the refusal: a deleted
/// client, and positions of another store.
#[test]
fn a_tail_ends_with_the_refusal_that_lasts() {
    let home = CliHome::new();
    let server = home.serve();
    let created =
        home.jeton(&["client", "create", "watcher", "--scope", "jeton:admin:audit", "--json"]);
    let secret = created.ok().json()["client_secret"].as_str().unwrap().to_owned();
    let secret = home.file("secret", &secret);
    let secret = secret.to_str().unwrap();
    let own = ["--client-id", "watcher", "--client-secret-file", secret];
    let own = [&own[..], &["--address", server.address()]].concat();
    let tail = follow(&home, &own);
    home.jeton(&["client", "delete", "watcher"]).ok();
    assert_eq!(tail.ended(), Some(3));
    assert!(stderr(&home).contains("invalid_client"), "{}", stderr(&home));

    home.file("place", "{\"node-1\":1000000}");
    let tail = home.follow(&TAIL);
    assert_eq!(tail.ended(), Some(3));
    assert!(stderr(&home).contains("the chain node-1 ends at"), "{}", stderr(&home));
    assert!(stderr(&home).contains("remove the file of --from-last"), "{}", stderr(&home));
    server.stop();
}
