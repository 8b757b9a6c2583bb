//! `audit tail` over breaks: restarts of the server, the end of its token, restarts of its own.

use std::{fs, thread, time::Duration};

use serde_json::Value;

use crate::cli::home::{Following, House, Server};

/// Only a test that fails waits for this long.
const PATIENCE: Duration = Duration::from_secs(120);

const TAIL: [&str; 7] =
    ["audit", "tail", "--json", "--action", "client.created", "--from-last", "place"];

/// Starts a tail and waits until it has its first positions.
fn follow(house: &House, more: &[&str]) -> Following {
    let tail = house.follow(&[&TAIL[..], more].concat());
    let ticks = PATIENCE.as_millis() / 10;
    let begun = (0..ticks).any(|_| {
        thread::park_timeout(Duration::from_millis(10));
        house.path("place").exists()
    });
    assert!(begun, "{}", stderr(house));
    tail
}

fn stderr(house: &House) -> String {
    fs::read_to_string(house.path("followed")).unwrap()
}

fn next(house: &House, tail: &Following) -> (String, i64) {
    let line = tail.next(PATIENCE).unwrap_or_else(|| panic!("{}", stderr(house)));
    let event: Value = serde_json::from_str(&line).unwrap();
    (event["target"].as_str().unwrap().to_owned(), event["sequence"].as_i64().unwrap())
}

fn create(house: &House, client: &str) {
    house.jeton(&["client", "create", client]).ok();
}

fn again(house: &House, address: &str) -> Server {
    house.serve_with(&["serve", "--dev", "--json", "--listen", address])
}

/// B22, B23: a tail outlives stops and kills of the server and the end of its token, prints every
/// event once, and ends with 0 only by a signal; the next one goes on from its file.
#[test]
fn a_tail_goes_on_without_gap_or_repetition() {
    let house = House::new();
    let server = house.serve();
    let address = server.address().to_owned();
    let tail = follow(&house, &[]);
    create(&house, "c0");
    assert_eq!(next(&house, &tail).0, "c0");

    server.stop();
    let server = again(&house, &address);
    create(&house, "c1");
    create(&house, "c2");
    let (c1, c2) = (next(&house, &tail), next(&house, &tail));
    assert_eq!((c1.0.as_str(), c2.0.as_str()), ("c1", "c2"));
    assert!(c1.1 < c2.1);
    assert!(stderr(&house).contains("connecting again"), "{}", stderr(&house));

    server.signal("KILL");
    server.ended();
    let server = again(&house, &address);
    create(&house, "c3");
    assert_eq!(next(&house, &tail).0, "c3");

    // No token of this client is valid any more, that of the tail included.
    house.jeton(&["revoke-all", "--client", "bootstrap"]).ok();
    create(&house, "c4");
    assert_eq!(next(&house, &tail).0, "c4");

    tail.signal("TERM");
    assert_eq!(tail.ended(), Some(0));
    create(&house, "c5");
    let tail = follow(&house, &[]);
    assert_eq!(next(&house, &tail).0, "c5");
    create(&house, "c6");
    assert_eq!(next(&house, &tail).0, "c6");
    tail.signal("INT");
    assert_eq!(tail.ended(), Some(0));
    server.stop();
}

/// B23: what no new attempt helps against ends a tail with the code of the refusal: a deleted
/// client, and positions of another store.
#[test]
fn a_tail_ends_with_the_refusal_that_lasts() {
    let house = House::new();
    let server = house.serve();
    let created =
        house.jeton(&["client", "create", "watcher", "--scope", "jeton:admin:audit", "--json"]);
    let secret = created.ok().json()["client_secret"].as_str().unwrap().to_owned();
    let secret = house.file("secret", &secret);
    let secret = secret.to_str().unwrap();
    let own = ["--client-id", "watcher", "--client-secret-file", secret];
    let own = [&own[..], &["--address", server.address()]].concat();
    let tail = follow(&house, &own);
    house.jeton(&["client", "delete", "watcher"]).ok();
    assert_eq!(tail.ended(), Some(3));
    assert!(stderr(&house).contains("invalid_client"), "{}", stderr(&house));

    house.file("place", "{\"node-1\":1000000}");
    let tail = house.follow(&TAIL);
    assert_eq!(tail.ended(), Some(3));
    assert!(stderr(&house).contains("the chain node-1 ends at"), "{}", stderr(&house));
    assert!(stderr(&house).contains("remove the file of --from-last"), "{}", stderr(&house));
    server.stop();
}
