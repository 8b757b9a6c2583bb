//! Contexts, made by hand and by servers (OPERATORS 4.4).

use std::{fs, os::unix::fs::PermissionsExt};

use crate::cli::{
    administration::with_client,
    home::{House, Server},
    tls::certificates,
};

const KEPT: &str = ".config/jeton/contexts.toml";

/// A server with a data directory of its own.
fn serve_in(house: &House, name: &str) -> Server {
    let dir = house.path(name);
    house.serve_dev(&["--data-dir", dir.to_str().unwrap()])
}

#[test]
fn contexts_are_added_changed_and_removed() {
    let house = House::new();
    let (server, secret) = with_client(&house);
    let file = house.file("svc.secret", &format!("{secret}\n"));
    let (file, address) = (file.to_str().unwrap(), server.address());
    let credentials = ["--address", address, "--client-id", "svc", "--client-secret-file"];
    for name in ["svc", "a b", "\"quoted\".[x]", "ä=#"] {
        let add = [&["context", "add", name][..], &credentials[..], &[file]].concat();
        house.jeton(&add).ok();
        house.jeton(&["token", "--context", name]).ok();
        let twice = house.jeton(&add);
        assert!(twice.code == 2 && twice.err.contains("context edit"), "{twice:?}");
    }
    for name in ["", "a\nb", "-x"] {
        let refused =
            house.jeton(&[&["context", "add"], &credentials[..], &[file, "--", name]].concat());
        assert_eq!(refused.code, 2, "{refused:?}");
    }
    let kept = fs::read_to_string(house.path(KEPT)).unwrap();
    assert!(!kept.contains(&secret), "the secret is in its file alone");
    let mode = fs::metadata(house.path(KEPT)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let inside = [&["context", "add", "inside"][..], &credentials[..], &["-"]].concat();
    house.jeton_reading(&inside, &format!("{secret}\n")).ok();
    house.jeton(&["token", "--context", "inside"]).ok();
    assert!(fs::read_to_string(house.path(KEPT)).unwrap().contains(&secret));
    let shown = house.jeton(&["context", "show", "inside", "--json"]).ok();
    assert!(!shown.out.contains(&secret), "{shown:?}");

    house.jeton(&["context", "edit", "svc", "--address", "127.0.0.1:1"]).ok();
    assert_eq!(house.jeton(&["token", "--context", "svc"]).code, 4);
    assert_eq!(house.jeton(&["context", "edit", "svc"]).code, 2);
    house.jeton(&["context", "remove", "svc"]).ok();
    assert_eq!(house.jeton(&["token", "--context", "svc"]).code, 64);
    assert_eq!(house.jeton(&["context", "remove", "svc"]).code, 64);
    house.jeton(&["token"]).ok();
    assert_eq!(house.jeton(&["context", "add", "svc"]).code, 2);
    server.stop();
}

#[test]
fn files_of_a_context_are_checked() {
    let house = House::new();
    let [ca, cert, key] = certificates(&house).map(|file| file.to_str().unwrap().to_owned());
    let other = House::new();
    let [_, _, other_key] = certificates(&other).map(|file| file.to_str().unwrap().to_owned());
    let secret = house.file("secret", "jcs_x");
    let (secret, empty) = (secret.to_str().unwrap(), house.file("empty", "\n"));
    let add = ["context", "add", "c", "--address", "127.0.0.1:1", "--client-id", "svc"];
    let refused = |more: &[&str], code: i32, why: &str| {
        let ran = house.jeton(&[&add[..], more].concat());
        assert!(ran.code == code && ran.err.contains(why), "{more:?}: {ran:?}");
        assert!(!house.path(KEPT).exists(), "{more:?}");
    };
    refused(&["--client-secret-file", "none"], 1, "cannot read none");
    refused(&["--client-secret-file", empty.to_str().unwrap()], 64, "contains no secret");
    refused(&["--ca", "none"], 1, "cannot read none");
    refused(&["--ca", secret], 64, "is not a PEM file with certificates");
    refused(&["--cert", &cert], 2, "--cert and --key");
    refused(&["--cert", secret, "--key", &key], 64, "is not a PEM file with certificates");
    refused(&["--cert", &cert, "--key", secret], 64, "is not a PEM file with an unencrypted key");
    refused(&["--cert", &cert, "--key", &other_key], 64, "cannot use");
    let good = ["--client-secret-file", secret, "--ca", &ca, "--cert", &cert, "--key", &key];
    house.jeton(&[&add[..], &good].concat()).ok();
    // The file may go later.
    fs::remove_file(secret).unwrap();
    let missing = house.jeton(&["token", "--context", "c"]);
    assert!(missing.code == 64 && missing.err.contains("client_secret_file"), "{missing:?}");
}

/// Commands go on reaching the server that they reached before, as long as it runs.
#[test]
fn a_second_server_takes_over_when_the_first_has_ended() {
    let house = House::new();
    let first = serve_in(&house, "one");
    let second = serve_in(&house, "two");
    let current = || house.jeton(&["context", "show", "--json"]).ok().json()["address"].clone();
    assert_eq!(current(), first.address());
    house.jeton(&["token"]).ok();
    house.jeton(&["token", "--context", "dev-2"]).ok();
    first.stop();
    second.stop();
    let second = serve_in(&house, "two");
    assert_eq!(current(), second.address());
    assert!(house.log().contains("commands use this server's context now"), "{}", house.log());
    second.stop();
}

#[test]
fn a_context_whose_store_is_gone_says_so() {
    let house = House::new();
    serve_in(&house, "one").stop();
    fs::remove_dir_all(house.path("one")).unwrap();
    let listed = house.jeton(&["context", "list"]).ok();
    assert!(listed.out.contains("gone"), "{listed:?}");
    let shown = house.jeton(&["context", "show", "--json"]).ok().json();
    assert_eq!(shown["is_gone"], true);
    let refused = house.jeton(&["token"]);
    assert!(refused.err.contains("the data directory of context dev is gone"), "{refused:?}");
    serve_in(&house, "two").stop();
    assert!(house.log().contains("data directory is gone"), "{}", house.log());
    let shown = house.jeton(&["context", "show", "dev", "--json"]).ok().json();
    assert_eq!(shown["is_gone"], false);
}
