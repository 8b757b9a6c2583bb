//! OPERATORS B44: a way back where no client can administer the service, with the master key.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::Command,
};

use serde_json::Value;

use crate::cli::home::{CliHome, Ran, Server};

const SERVE: &[&str] = &["serve", "--dev", "--json", "--listen", "127.0.0.1:0"];

/// Runs a command as a client with this secret.
fn as_client(home: &CliHome, server: &Server, id: &str, secret: &str, command: &[&str]) -> Ran {
    let file = home.file("secret-of-client", secret);
    let own = ["--client-id", id, "--client-secret-file", file.to_str().unwrap()];
    // The context is the lost client's.
    let own = [&own[..], &["--address", server.address()]].concat();
    home.jeton(&[command, &own].concat())
}

fn created(ran: Ran) -> (String, String) {
    let said = ran.ok().json();
    let text = |field: &str| said[field].as_str().unwrap().to_owned();
    (text("client_id"), text("client_secret"))
}

/// Loses the only administrator, and gets another on the store that the flags name.
fn an_administrator_is_made(home: &CliHome, flags: &[&str]) {
    let reset = |more: &[&str]| home.jeton(&[&["admin", "reset", "--json"], flags, more].concat());
    let server = home.serve_with(&[SERVE, flags].concat());
    home.jeton(&["client", "delete", "bootstrap", "--allow-no-administrator"]).ok();
    assert!(!home.jeton(&["token"]).is_ok(), "the only administrator is lost");
    let (id, secret) = if flags.is_empty() {
        let held = reset(&[]);
        let problem = format!("in use by process {}", server.pid());
        assert!(held.code == 1 && held.err.contains(&problem), "{held:?}");
        server.stop();
        let made = created(reset(&[]));
        let again = home.serve_with(SERVE);
        as_client(home, &again, &made.0, &made.1, &["client", "list"]).ok();
        again.stop();
        made
    } else {
        // Nodes serve on meanwhile.
        let made = created(reset(&[]));
        let listed = ["client", "list"];
        assert!((0..200).any(|_| as_client(home, &server, &made.0, &made.1, &listed).is_ok()));
        server.stop();
        made
    };
    assert_eq!(id, "admin");
    // An existing client is not changed.
    let taken = reset(&["--client-id", "admin"]);
    assert!(taken.code == 1 && taken.err.contains("admin is taken"), "{taken:?}");
    assert_eq!(created(reset(&[])).0, "admin-2");
    let file = home.path("secret-out");
    let out = ["--client-id", "ops", "--secret-out", file.to_str().unwrap()];
    let ran = reset(&out).ok();
    assert_eq!(ran.json(), serde_json::json!({ "client_id": "ops", "secret_file": file }));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(reset(&["--client-id", "late", "--secret-out", out[3]]).code, 1, "a file is there");
    // A secret that cannot be written is the secret of no client.
    for sink in ["/dev/full", "/dev/null"] {
        let stdout = fs::OpenOptions::new().write(true).open(sink).unwrap();
        let mut command =
            home.command(&[&["admin", "reset", "--client-id", "lost"], flags].concat());
        let ended = command.stdout(stdout).output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(1), "{sink}: {said}");
        assert!(said.contains("the new client is deleted again"), "{sink}: {said}");
    }
    let server = home.serve_with(&[SERVE, flags].concat());
    let run = |command: &[&str]| as_client(home, &server, &id, &secret, command).ok().json();
    let listed = run(&["client", "list", "--json"]);
    let ids = |listed: &Value| -> Vec<String> {
        let clients = listed["clients"].as_array().unwrap().iter();
        clients.map(|client| client["client_id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&listed), ["admin", "admin-2", "ops"]);
    let trail = run(&["audit", "list", "--action", "administrator.reset", "--json"]);
    let targets: Vec<&str> = trail["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["target"].as_str().unwrap())
        .collect();
    assert_eq!(targets, ["lost", "lost", "ops", "admin-2", "admin"], "{trail}");
    assert!(as_client(home, &server, &id, &secret, &["audit", "verify"]).is_ok());
    server.stop();
}

#[test]
fn a_lost_administrator_is_replaced_with_the_master_key() {
    an_administrator_is_made(&CliHome::new(), &[]);
}

/// A reset that cannot work names its cause, and leaves no store behind.
#[test]
fn a_reset_that_cannot_work_says_why() {
    let home = CliHome::new();
    let reset = ["admin", "reset"];
    let refused = |said: &str, code: i32| {
        let ran = home.jeton(&reset);
        assert!(
            ran.code == code && ran.err.contains(said) && ran.out.is_empty(),
            "{said}: {ran:?}"
        );
    };
    refused("holds no store", 64);
    home.serve_with(SERVE).stop();
    let key = home.data().join("master.key");
    let right = fs::read(&key).unwrap();
    fs::write(&key, "Q2Qf8mKTpTqBnSg2OWGLhX0l9H3aiYvHkxS6zVq3r+8=\n").unwrap();
    refused("master key", 64);
    fs::write(&key, &right).unwrap();
    let elsewhere = home.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o700)).unwrap();
    fs::copy(&key, elsewhere.join("master.key")).unwrap();
    let wrong = home.jeton(&["admin", "reset", "--data-dir", elsewhere.to_str().unwrap()]);
    assert!(wrong.code == 64 && wrong.err.contains("holds no store"), "{wrong:?}");
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 1);
    let usage = home.jeton(&["admin", "reset", "--client-id", "a b"]);
    assert_eq!(usage.code, 2, "{usage:?}");
    fs::write(
        home.data().join("jeton.db"),
        "not a database, and longer than its header is".repeat(9),
    )
    .unwrap();
    refused("damaged", 64);
}

/// A reset on a read-only disk says so and leaves nothing behind, no file for the secret either.
#[test]
fn a_reset_on_a_read_only_disk_changes_nothing() {
    let home = CliHome::new();
    home.serve_with(SERVE).stop();
    let content = || {
        let files = fs::read_dir(home.data()).unwrap().map(|file| file.unwrap().path());
        files.map(|path| (fs::read(&path).unwrap(), path)).collect::<BTreeSet<_>>()
    };
    let (before, secret) = (content(), home.path("secret-out"));
    let run = home.command(&["admin", "reset", "--secret-out", secret.to_str().unwrap()]);
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let script = r#"mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@""#;
    let mut command = Command::new("unshare");
    command.arg(if is_root { "-m" } else { "-rm" }).args(["sh", "-c", script]).arg(home.data());
    command.env_clear().envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.current_dir(home.path("")).arg(run.get_program()).args(run.get_args());
    let ran = crate::cli::home::run(&mut command, "");
    if !ran.err.contains("error: ") {
        println!("NOT RUN: no mount here: {ran:?}");
        return;
    }
    assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{ran:?}");
    assert!(ran.err.contains("Read-only file system"), "{ran:?}");
    assert!(ran.err.contains("nothing was changed"), "{ran:?}");
    assert!(!secret.exists());
    assert_eq!(content(), before);
}

/// OPERATORS 3.2: a store that is not ahead is left alone, also while a server holds it.
#[test]
fn a_clock_is_reset_on_a_stopped_store_alone() {
    let home = CliHome::new();
    let reset = ["admin", "reset-clock", "--yes", "--json"];
    let server = home.serve_with(SERVE);
    let held = home.jeton(&reset);
    assert!(held.code == 1 && held.err.contains("in use by process"), "{held:?}");
    let token = home.jeton(&["token", "--raw"]).ok();
    server.stop();
    let said = home.jeton(&reset).ok().json();
    assert_eq!(said["reset"], false, "{said}");
    let server = home.serve_with(SERVE);
    home.jeton(&["introspect", "--check", token.line()]).ok();
    server.stop();
}

mod mongodb {
    use super::an_administrator_is_made;
    use crate::{cli::home::CliHome, support::database::Database};

    /// Another node goes on, and its name stays its own.
    #[test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    fn a_lost_administrator_is_replaced_while_nodes_run() {
        let database = Database::new();
        an_administrator_is_made(&CliHome::new(), &["--store", database.uri()]);
    }
}
