//! Contexts, made by hand and by servers (OPERATORS 4.4).

use std::{fs, os::unix::fs::PermissionsExt};

use crate::cli::{
    administration::with_client,
    home::{CliHome, Server},
    tls::certificates,
};

const KEPT: &str = ".config/jeton/contexts.toml";

/// A server with a data directory of its own.
fn serve_in(home: &CliHome, name: &str) -> Server {
    let dir = home.path(name);
    home.serve_dev(&["--data-dir", dir.to_str().unwrap()])
}

#[test]
fn contexts_are_added_changed_and_removed() {
    let home = CliHome::new();
    let (server, secret) = with_client(&home);
    let file = home.file("svc.secret", &format!("{secret}\n"));
    let (file, address) = (file.to_str().unwrap(), server.address());
    let credentials = ["--address", address, "--client-id", "svc", "--client-secret-file"];
    for name in ["svc", "a b", "\"quoted\".[x]", "ä=#"] {
        let add = [&["context", "add", name][..], &credentials[..], &[file]].concat();
        home.jeton(&add).ok();
        home.jeton(&["token", "--context", name]).ok();
        let twice = home.jeton(&add);
        assert!(twice.code == 2 && twice.err.contains("context edit"), "{twice:?}");
    }
    for name in ["", "a\nb", "-x"] {
        let refused =
            home.jeton(&[&["context", "add"], &credentials[..], &[file, "--", name]].concat());
        assert_eq!(refused.code, 2, "{refused:?}");
    }
    let kept = fs::read_to_string(home.path(KEPT)).unwrap();
    assert!(!kept.contains(&secret), "the secret is in its file alone");
    let mode = fs::metadata(home.path(KEPT)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let inside = [&["context", "add", "inside"][..], &credentials[..], &["-"]].concat();
    home.jeton_reading(&inside, &format!("{secret}\n")).ok();
    home.jeton(&["token", "--context", "inside"]).ok();
    assert!(fs::read_to_string(home.path(KEPT)).unwrap().contains(&secret));
    let shown = home.jeton(&["context", "show", "inside", "--json"]).ok();
    assert!(!shown.out.contains(&secret), "{shown:?}");

    home.jeton(&["context", "edit", "svc", "--address", "127.0.0.1:1"]).ok();
    assert_eq!(home.jeton(&["token", "--context", "svc"]).code, 4);
    assert_eq!(home.jeton(&["context", "edit", "svc"]).code, 2);
    home.jeton(&["context", "remove", "svc"]).ok();
    assert_eq!(home.jeton(&["token", "--context", "svc"]).code, 64);
    assert_eq!(home.jeton(&["context", "remove", "svc"]).code, 64);
    home.jeton(&["token"]).ok();
    assert_eq!(home.jeton(&["context", "add", "svc"]).code, 2);
    server.stop();
}

#[test]
fn files_of_a_context_are_checked() {
    let home = CliHome::new();
    let [ca, cert, key] = certificates(&home).map(|file| file.to_str().unwrap().to_owned());
    let other = CliHome::new();
    let [_, _, other_key] = certificates(&other).map(|file| file.to_str().unwrap().to_owned());
    let secret = home.file("secret", "jcs_x");
    let (secret, empty) = (secret.to_str().unwrap(), home.file("empty", "\n"));
    let add = ["context", "add", "c", "--address", "127.0.0.1:1", "--client-id", "svc"];
    let refused = |more: &[&str], code: i32, why: &str| {
        let ran = home.jeton(&[&add[..], more].concat());
        assert!(ran.code == code && ran.err.contains(why), "{more:?}: {ran:?}");
        assert!(!home.path(KEPT).exists(), "{more:?}");
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
    home.jeton(&[&add[..], &good].concat()).ok();
    // The file may go later.
    fs::remove_file(secret).unwrap();
    let missing = home.jeton(&["token", "--context", "c"]);
    assert!(missing.code == 64 && missing.err.contains("client_secret_file"), "{missing:?}");
}

/// Commands go on reaching the server that they reached before, as long as it runs.
#[test]
fn a_second_server_takes_over_when_the_first_has_ended() {
    let home = CliHome::new();
    let first = serve_in(&home, "one");
    let second = serve_in(&home, "two");
    let current = || home.jeton(&["context", "show", "--json"]).ok().json()["address"].clone();
    assert_eq!(current(), first.address());
    home.jeton(&["token"]).ok();
    home.jeton(&["token", "--context", "dev-2"]).ok();
    first.stop();
    second.stop();
    let second = serve_in(&home, "two");
    assert_eq!(current(), second.address());
    assert!(home.log().contains("commands use this server's context now"), "{}", home.log());
    second.stop();
}

#[test]
fn a_context_whose_store_is_gone_says_so() {
    let home = CliHome::new();
    serve_in(&home, "one").stop();
    fs::remove_dir_all(home.path("one")).unwrap();
    let listed = home.jeton(&["context", "list"]).ok();
    assert!(listed.out.contains("gone"), "{listed:?}");
    let shown = home.jeton(&["context", "show", "--json"]).ok().json();
    assert_eq!(shown["is_gone"], true);
    let refused = home.jeton(&["token"]);
    assert!(refused.err.contains("the data directory of context dev is gone"), "{refused:?}");
    serve_in(&home, "two").stop();
    assert!(home.log().contains("data directory is gone"), "{}", home.log());
    let shown = home.jeton(&["context", "show", "dev", "--json"]).ok().json();
    assert_eq!(shown["is_gone"], false);
}
