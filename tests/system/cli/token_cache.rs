//! Tokens that commands leave for the next ones (OPERATORS 4.14).

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    thread,
};

use serde_json::Value;

use crate::cli::home::{CliHome, Ran, Server, run};

/// A server with an administrator `adm`, and the file of its secret.
fn with_administrator(home: &CliHome, scopes: &[&str]) -> (Server, PathBuf) {
    let server = home.serve();
    let grants = ["--grant", "client_credentials", "--grant", "refresh_token", "--raw"];
    let mut create = vec!["client", "create", "adm"];
    create.extend(grants);
    scopes.iter().for_each(|scope| create.extend(["--scope", scope]));
    let secret = home.jeton(&create).ok().out;
    (server, home.file("adm.secret", &secret))
}

fn as_adm(home: &CliHome, secret: &Path, arguments: &[&str]) -> Ran {
    let secret = secret.to_str().unwrap();
    let caller = ["--client-id", "adm", "--client-secret-file", secret];
    home.jeton(&[arguments, &caller].concat())
}

/// Events of the issue of tokens to `adm`.
fn issued(home: &CliHome) -> Vec<Value> {
    let list = [
        "audit",
        "list",
        "--client",
        "adm",
        "--action",
        "token.issued",
        "--outcome",
        "ok",
        "--json",
    ];
    home.jeton(&list).ok().json()["events"].as_array().unwrap().clone()
}

fn tokens(home: &CliHome) -> Vec<PathBuf> {
    let files = fs::read_dir(home.path(".config/jeton/tokens")).into_iter().flatten();
    files.map(|file| file.unwrap().path()).collect()
}

#[test]
fn many_commands_leave_one_token_and_no_family() {
    let home = CliHome::new();
    let (server, secret) = with_administrator(&home, &["jeton:admin"]);
    for _ in 0..3 {
        for command in
            [["keys", "list"], ["client", "list"], ["audience", "list"], ["audit", "verify"]]
        {
            as_adm(&home, &secret, &command).ok();
        }
    }
    let events = issued(&home);
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["family"], "", "{events:?}");
    let mode = |path: &PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert!(tokens(&home).iter().all(|file| mode(file) == 0o600));
    assert_eq!(mode(&home.path(".config/jeton/tokens")), 0o700);
    for file in tokens(&home) {
        let text = fs::read_to_string(file).unwrap();
        assert!(!text.contains(fs::read_to_string(&secret).unwrap().trim()), "no secret is kept");
    }
    as_adm(&home, &secret, &["keys", "list", "--no-token-cache"]).ok();
    assert_eq!(issued(&home).len(), 2);
    let mut command = home.command(&["keys", "list", "--client-id", "adm"]);
    command.env("JETON_CLI_CLIENT_SECRET_FILE", &secret).env("JETON_CLI_NO_TOKEN_CACHE", "1");
    run(&mut command, "").ok();
    assert_eq!(issued(&home).len(), 3);
    server.stop();
}

/// A client that may not have `jeton:admin` keeps the token of each narrower scope.
#[test]
fn a_narrow_administrator_keeps_a_token_for_each_scope() {
    let home = CliHome::new();
    let scopes = ["jeton:admin:keys", "jeton:admin:clients"];
    let (server, secret) = with_administrator(&home, &scopes);
    for _ in 0..3 {
        as_adm(&home, &secret, &["keys", "list"]).ok();
        as_adm(&home, &secret, &["client", "list"]).ok();
    }
    assert_eq!(issued(&home).len(), 2);
    assert_eq!(as_adm(&home, &secret, &["audit", "list"]).code, 3);
    server.stop();
}

#[test]
fn a_refused_token_is_replaced_once() {
    let home = CliHome::new();
    let (server, secret) = with_administrator(&home, &["jeton:admin"]);
    as_adm(&home, &secret, &["keys", "list"]).ok();
    home.jeton(&["revoke-all", "--client", "adm"]).ok();
    as_adm(&home, &secret, &["keys", "list"]).ok();
    as_adm(&home, &secret, &["keys", "list"]).ok();
    assert_eq!(issued(&home).len(), 2);
    // Changes too: a refused call has done nothing.
    home.jeton(&["revoke-all", "--client", "adm"]).ok();
    as_adm(&home, &secret, &["client", "create", "other"]).ok();
    home.jeton(&["client", "disable", "adm"]).ok();
    let refused = as_adm(&home, &secret, &["keys", "list"]);
    assert!(refused.code == 3 && refused.err.contains("invalid_client"), "{refused:?}");
    server.stop();
}

#[test]
fn a_token_is_not_used_with_another_secret() {
    let home = CliHome::new();
    let (server, secret) = with_administrator(&home, &["jeton:admin"]);
    as_adm(&home, &secret, &["keys", "list"]).ok();
    let wrong = home.file("wrong", "jcs_wrong");
    let refused = as_adm(&home, &wrong, &["keys", "list"]);
    assert!(refused.code == 3 && refused.err.contains("invalid_client"), "{refused:?}");
    // A token of another server at the same address is refused, and replaced.
    for file in tokens(&home) {
        let text = fs::read_to_string(&file).unwrap();
        let mut entry: Value = serde_json::from_str(&text).unwrap();
        entry["access_token"] = "eyJ.e30.forged".into();
        fs::write(&file, entry.to_string()).unwrap();
    }
    as_adm(&home, &secret, &["keys", "list"]).ok();
    assert_eq!(issued(&home).len(), 2);
    home.jeton(&["context", "remove", "dev"]).ok();
    assert!(tokens(&home).is_empty(), "with a context all tokens are removed");
    server.stop();
}

#[test]
fn commands_at_once_and_without_a_home_work() {
    let home = CliHome::new();
    let (server, secret) = with_administrator(&home, &["jeton:admin"]);
    thread::scope(|threads| {
        for _ in 0..6 {
            threads.spawn(|| as_adm(&home, &secret, &["keys", "list"]).ok());
        }
    });
    as_adm(&home, &secret, &["keys", "list"]).ok();
    let own = tokens(&home).len();
    assert!(own <= 2, "of bootstrap and adm, and no draft: {own}");
    let caller = ["--address", server.address(), "--client-id", "adm"];
    let list = [&["keys", "list", "--client-secret-file", secret.to_str().unwrap()], &caller[..]];
    for nowhere in ["/proc/nowhere", "/dev/null", ""] {
        let mut command = home.command(&list.concat());
        run(command.env("HOME", nowhere), "").ok();
    }
    server.stop();
}
