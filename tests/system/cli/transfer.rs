//! Export and import: what comes over, and what must not come back to life.

use std::{fs, path::Path};

use serde_json::Value;

use crate::cli::home::{CliHome, Ran};

/// Another machine with the master key of the first, and nothing else.
fn fresh(of: &CliHome) -> CliHome {
    let home = CliHome::new();
    fs::copy(of.data().join("master.key"), home.data().join("master.key")).unwrap();
    home
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Credentials of the first machine's first client, for the other.
fn credentials(home: &CliHome, secret: &str) -> [String; 4] {
    let file = home.file("secret", secret);
    ["--client-id".into(), "bootstrap".into(), "--client-secret-file".into(), text(&file).into()]
}

/// E9: a backup is taken while the server runs. Restored, no token of before stands, whether it was
/// revoked since or not, issued before or after; clients and their secrets come over, and the trail
/// goes on unbroken and says so.
#[test]
fn an_old_backup_brings_no_token_back() {
    no_token_comes_back(&[], &[]);
}

/// `from` and `to` are the flags that name a store; none is the one in the data directory.
fn no_token_comes_back(from: &[&str], to: &[&str]) {
    let serve: &[&str] = &["serve", "--dev", "--json", "--listen", "127.0.0.1:0"];
    let with = |home: &CliHome, arguments: &[&str], store: &[&str]| -> Ran {
        home.jeton(&[arguments, store].concat()).ok()
    };
    let home = CliHome::new();
    let server = home.serve_with(&[serve, from].concat());
    let secret = server.said["client_secret"].as_str().unwrap().to_owned();
    let before = home.jeton(&["token", "--json"]).ok().json();
    let backup = home.path("backup.ndjson");
    with(&home, &["export", text(&backup)], from);
    home.jeton(&["revoke", before["refresh_token"].as_str().unwrap()]).ok();
    let after = home.jeton(&["token", "--raw"]).ok();
    home.jeton(&["revoke", after.line()]).ok();
    server.stop();

    let restored = fresh(&home);
    let import = with(&restored, &["import", text(&backup)], to);
    assert!(import.err.contains("all tokens are revoked"), "{import:?}");
    let server = restored.serve_with(&[serve, to].concat());
    let own = credentials(&restored, &secret);
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let run = |arguments: &[&str]| restored.jeton(&[arguments, &own[..]].concat());
    for token in [before["access_token"].as_str().unwrap(), after.line()] {
        assert_eq!(run(&["introspect", "--check", token]).code, 1);
    }
    let refused = run(&["refresh", before["refresh_token"].as_str().unwrap()]);
    assert!(refused.code == 3 && refused.err.contains("invalid_grant"), "{refused:?}");
    let new = run(&["token", "--raw"]).ok();
    run(&["introspect", "--check", new.line()]).ok();
    run(&["audit", "verify"]).ok();
    let listed = run(&["audit", "list", "--action", "store.imported", "--json"]).ok().json();
    assert_eq!(listed["events"][0]["reason"], "all tokens revoked");
    server.stop();
}

/// E9: whoever accepts the rollback gets it, and the trail says that too.
#[test]
fn an_accepted_rollback_is_one_and_is_audited() {
    let home = CliHome::new();
    let server = home.serve();
    let secret = server.said["client_secret"].as_str().unwrap().to_owned();
    let token = home.jeton(&["token", "--raw"]).ok();
    let backup = home.path("backup.ndjson");
    home.jeton(&["export", text(&backup)]).ok();
    server.stop();
    let restored = fresh(&home);
    restored.jeton(&["import", "--accept-rollback", text(&backup)]).ok();
    let server = restored.serve();
    let own = credentials(&restored, &secret);
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let run = |arguments: &[&str]| restored.jeton(&[arguments, &own[..]].concat());
    run(&["introspect", "--check", token.line()]).ok();
    let listed = run(&["audit", "list", "--action", "store.imported", "--json"]).ok().json();
    assert_eq!(listed["events"][0]["reason"], "rollback accepted");
    server.stop();
}

#[test]
fn an_export_without_a_server_is_the_same_on_stdout_and_private_in_a_file() {
    use std::os::unix::fs::PermissionsExt;
    let home = CliHome::new();
    home.serve().stop();
    let file = home.path("backup.ndjson");
    let told = home.jeton(&["export", text(&file), "--json"]).ok().json();
    let written = fs::read_to_string(&file).unwrap();
    assert_eq!(told["records"], written.lines().count() - 1, "the last line is not a record");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(home.jeton(&["export"]).ok().out, written);
    let first: Value = serde_json::from_str(written.lines().next().unwrap()).unwrap();
    assert_eq!(first["type"], "export");
    let last: Value = serde_json::from_str(written.lines().last().unwrap()).unwrap();
    assert_eq!(
        (last["type"].as_str(), last["mac"].as_str().map(str::len)),
        (Some("mac"), Some(64))
    );
    assert_eq!(home.jeton(&["export", text(&file)]).code, 1, "a backup is never written over");
}

#[test]
fn an_import_wants_an_empty_store_its_key_and_a_whole_export() {
    let home = CliHome::new();
    home.serve().stop();
    let export = home.jeton(&["export"]).ok().out;
    let file = home.file("backup.ndjson", &export);
    let full = home.jeton(&["import", text(&file)]);
    assert!(
        full.code == 1 && full.err.contains("not empty") && !full.err.contains(CLEAN_UP),
        "{full:?}"
    );
    home.serve().stop();

    let keyless = CliHome::new().jeton(&["import", text(&file)]);
    assert!(keyless.code == 64 && keyless.err.contains("master_key_file"), "{keyless:?}");
    let other = CliHome::new();
    fs::rename(
        other.file("key", "Q2Qf8mKTpTqBnSg2OWGLhX0l9H3aiYvHkxS6zVq3r+8=\n"),
        other.data().join("master.key"),
    )
    .unwrap();
    let wrong = other.jeton(&["import", text(&file)]);
    assert!(wrong.code == 1 && wrong.err.contains("another master key"), "{wrong:?}");

    let lines: Vec<&str> = export.lines().collect();
    let cut = lines[..lines.len() - 1].join("\n");
    let garbled = export.replacen("\"type\":\"record\"", "\"type\":\"recrod\"", 1);
    let altered = export.replacen("server.started", "keys.rotated", 1);
    for (damaged, said) in [
        (cut, "truncated"),
        (garbled, "is not a record"),
        (altered, "altered"),
        (String::new(), "truncated"),
    ] {
        let target = fresh(&home);
        let refused = target.jeton_reading(&["import", "-"], &damaged);
        assert!(refused.code == 1 && refused.err.contains(said), "{said}: {refused:?}");
        assert!(!refused.err.contains(CLEAN_UP), "{refused:?}");
        assert!(is_untouched(&target));
    }
}

/// True if there is nothing but the master key.
fn is_untouched(home: &CliHome) -> bool {
    fs::read_dir(home.data()).unwrap().all(|entry| entry.unwrap().file_name() == "master.key")
}

/// The lines of an export, to be changed as somebody without the master key would.
struct Forgery(Vec<Value>);

impl Forgery {
    fn of(export: &str) -> Self {
        Self(export.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
    }

    fn first(&mut self, kind: &str) -> (usize, &mut Value) {
        self.0.iter_mut().enumerate().find(|(_, line)| line["type"] == kind).unwrap()
    }

    /// AZ4: one more administrator.
    fn add_client(mut self) -> Self {
        let (at, client) = self.first("client");
        let mut added = client.clone();
        added["id"] = "zz-backdoor".into();
        self.0.insert(at + 1, added);
        self
    }

    /// AZ4: leaves a record out and computes the links anew.
    fn leave_record_out(mut self) -> Self {
        use jeton::{
            crypto::chain::{START, link},
            model::Event,
        };
        let (at, _) = self.first("record");
        self.0.remove(at + 1);
        let (mut previous, mut sequence) = (START, 0);
        let hex =
            |hash: &[u8; 32]| hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        for line in &mut self.0 {
            if line["type"] == "record" {
                sequence += 1;
                let event: Event = serde_json::from_value(line["event"].clone()).unwrap();
                let body = serde_json::to_vec(&event).unwrap();
                previous = link(&previous, sequence, line["node"].as_str().unwrap(), &body);
                line["sequence"] = sequence.into();
                line["hash"] = hex(&previous).into();
            } else if line["type"] == "chain_end" {
                line["sequence"] = sequence.into();
                line["hash"] = hex(&previous).into();
            }
        }
        self
    }

    /// AZ5: the active key a second time, revoked, in front of itself.
    fn name_kid_twice(mut self) -> Self {
        let (_, keyset) = self.first("keyset");
        let keys = keyset["keys"].as_array_mut().unwrap();
        let mut twin = keys.iter().find(|key| key["state"] == "active").unwrap().clone();
        twin.as_object_mut().unwrap().remove("since");
        twin["state"] = "revoked".into();
        twin["remove_at"] = 4_000_000_000_000_u64.into();
        keys.insert(0, twin);
        self
    }

    fn remove(mut self, kind: &str) -> Self {
        let (at, _) = self.first(kind);
        self.0.remove(at);
        self
    }

    /// In the place of the MAC, that there is none.
    fn unsigned(mut self) -> Self {
        *self.0.last_mut().unwrap() = serde_json::json!({ "type": "unsigned" });
        self
    }

    fn text(&self) -> String {
        self.0.iter().map(|line| format!("{line}\n")).collect()
    }
}

/// An export with a revocation in it, the credentials' secret, and a token that was revoked before.
fn exported() -> (CliHome, String, String, String) {
    let home = CliHome::new();
    let server = home.serve();
    let secret = server.said["client_secret"].as_str().unwrap().to_owned();
    let token = home.jeton(&["token", "--raw"]).ok();
    home.jeton(&["revoke", token.line()]).ok();
    let export = home.jeton(&["export"]).ok().out;
    server.stop();
    (home, export, secret, token.line().to_owned())
}

/// AZ4, AZ5: a file that was altered is refused before anything is written, whatever was altered,
/// from a file and from stdin.
#[test]
fn an_altered_export_is_refused_and_leaves_nothing_behind() {
    let (home, export, ..) = exported();
    let lines: Vec<&str> = export.lines().collect();
    let whole = |lines: &[&str]| lines.join("\n") + "\n";
    let cases = [
        ("MAC of the export is invalid", Forgery::of(&export).add_client().text()),
        ("the seal of its end is invalid", Forgery::of(&export).leave_record_out().text()),
        ("MAC of the export is invalid", Forgery::of(&export).remove("revocation").text()),
        ("twice", Forgery::of(&export).name_kid_twice().text()),
        (
            "keyset's MAC is invalid",
            export.replacen(
                "\"state\":\"prepared\"",
                "\"state\":\"retiring\",\"remove_at\":4000000000000",
                1,
            ),
        ),
        ("unsigned", Forgery::of(&export).unsigned().text()),
        ("unsigned", Forgery::of(&export).add_client().unsigned().text()),
        ("truncated", whole(&lines[..lines.len() - 1])),
        ("data follows the end", format!("{export}{}\n", lines[1])),
        ("data follows the end", format!("{export}{}\n", lines[lines.len() - 1])),
        (
            "MAC of the export is invalid",
            export.replacen("\"type\":\"client\"", "\"type\": \"client\"", 1),
        ),
    ];
    for (said, altered) in cases {
        assert_ne!(altered, export, "{said}");
        let target = fresh(&home);
        let file = target.file("backup.ndjson", &altered);
        for refused in [
            target.jeton(&["import", text(&file)]),
            target.jeton_reading(&["import", "-"], &altered),
        ] {
            assert!(refused.code == 1 && refused.err.contains(said), "{said}: {refused:?}");
            assert!(is_untouched(&target), "{said}");
        }
        let rollback = target.jeton(&["import", "--accept-rollback", text(&file)]);
        assert!(rollback.code == 1 && is_untouched(&target), "{said}: {rollback:?}");
    }
    // What was not altered is taken in.
    fresh(&home).jeton_reading(&["import", "-"], &export).ok();
}

/// AZ4, AZ5: --accept-unsigned takes what no MAC vouches for, and the trail says so; the keyset and
/// the chains still must check.
#[test]
fn an_unsigned_export_is_taken_only_when_asked_for() {
    let (home, export, secret, revoked) = exported();
    let unsigned = home.jeton(&["export", "--unsigned"]).ok().out;
    assert!(
        unsigned.ends_with("{\"type\":\"unsigned\"}\n") && !unsigned.contains("\"seal\""),
        "no key was used"
    );
    let keyless = CliHome::new();
    let refused = keyless.jeton(&["export"]);
    assert!(refused.code == 64 && refused.err.contains("--unsigned"), "{refused:?}");

    let forged = Forgery::of(&export);
    for (said, altered) in [
        (
            "the seal of its end is invalid",
            Forgery(forged.0.clone()).leave_record_out().unsigned().text(),
        ),
        ("twice", Forgery(forged.0.clone()).name_kid_twice().unsigned().text()),
        ("MAC of the export is invalid", Forgery(forged.0.clone()).add_client().text()),
        ("removed", Forgery::of(&unsigned).remove("record").text()),
    ] {
        let target = fresh(&home);
        let file = target.file("backup.ndjson", &altered);
        let refused = target.jeton(&["import", "--accept-unsigned", text(&file)]);
        assert!(refused.code == 1 && refused.err.contains(said), "{said}: {refused:?}");
        assert!(is_untouched(&target), "{said}");
    }

    let target = fresh(&home);
    let file = target.file("backup.ndjson", &unsigned);
    let refused = target.jeton(&["import", text(&file)]);
    assert!(
        refused.code == 1 && refused.err.contains("--accept-unsigned") && is_untouched(&target),
        "{refused:?}"
    );
    target.jeton(&["import", "--accept-unsigned", text(&file)]).ok();
    let server = target.serve();
    let own = credentials(&target, &secret);
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let run = |arguments: &[&str]| target.jeton(&[arguments, &own[..]].concat());
    assert_eq!(run(&["introspect", "--check", &revoked]).code, 1);
    let listed = run(&["audit", "list", "--action", "store.imported", "--json"]).ok().json();
    assert_eq!(listed["events"][0]["reason"], "all tokens revoked, unsigned export accepted");
    let target_of_event = listed["events"][0]["target"].as_str().unwrap();
    let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, unsigned.as_bytes());
    let sum: String = sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(target_of_event.ends_with(&format!("sha256 {sum}")), "{target_of_event}");
    run(&["audit", "verify"]).ok();
    server.stop();
}

/// Message about a store that is half full.
const CLEAN_UP: &str = "empty the directory and import again";

/// The chains of an export and their heads, as `audit verify` takes them.
fn heads(export: &str) -> Vec<String> {
    let values = export.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let ends = values.filter(|value| value["type"] == "chain_end");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    ends.map(|end| format!("{}:{}:{}", text(&end["chain"]), end["sequence"], text(&end["hash"])))
        .collect()
}

/// E9, O04: on a machine of another name the old chain stays as it was beside that machine's own,
/// which tells of the import first. Back on one of the old name that chain goes on.
#[test]
fn a_trail_stays_whole_on_machines_of_other_names() {
    let home = CliHome::new();
    let server = home.serve();
    let secret = server.said["client_secret"].as_str().unwrap().to_owned();
    server.stop();
    let export = home.jeton(&["export"]).ok().out;
    let first = heads(&export);
    assert!(first.len() == 1 && first[0].starts_with("node-1:"), "{first:?}");
    let moved = fresh(&home);
    let named = moved.file("jeton.toml", "node = \"node-0\"\n");
    moved.jeton_reading(&["import", "-", "--config", text(&named)], &export).ok();
    let server = moved.serve_with(&[
        "serve",
        "--dev",
        "--json",
        "--listen",
        "127.0.0.1:0",
        "--config",
        text(&named),
    ]);
    let own = credentials(&moved, &secret);
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let run = |arguments: &[&str]| moved.jeton(&[arguments, &own[..]].concat());
    let verified = run(&["audit", "verify", "--known", &first[0]]).ok();
    let lines: Vec<&str> = verified.out.lines().collect();
    assert!(lines[0].starts_with("node-0:") && lines[1].starts_with(&first[0]), "{verified:?}");
    assert!(lines[2].starts_with("intact: 2 chains, "), "{verified:?}");
    let listed = run(&["audit", "list", "--action", "store.imported", "--json"]).ok().json();
    assert_eq!(
        (&listed["events"][0]["chain"], &listed["events"][0]["sequence"]),
        (&"node-0".into(), &1.into())
    );
    server.stop();

    let both = moved.jeton(&["export"]).ok().out;
    let back = fresh(&home);
    back.jeton_reading(&["import", "-"], &both).ok();
    let held = heads(&back.jeton(&["export"]).ok().out);
    assert_eq!(held[0], heads(&both)[0], "nobody goes on with it here");
    let next = first[0].split(':').nth(1).unwrap().parse::<u64>().unwrap() + 1;
    assert!(held.len() == 2 && held[1].starts_with(&format!("node-1:{next}:")), "{held:?}");
    let server = back.serve();
    let own = credentials(&back, &secret);
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    back.jeton(
        &[&["audit", "verify", "--known", &held[0], "--known", &first[0]], &own[..]].concat(),
    )
    .ok();
    server.stop();
}

mod mongodb {
    use super::no_token_comes_back;
    use crate::support::database::Database;

    /// E9: the same from one database into another, and between one and a directory, both ways.
    #[test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    fn an_old_backup_brings_no_token_back() {
        let (old, new) = (Database::new(), Database::new());
        no_token_comes_back(
            &["--store", old.uri(), "--node", "n"],
            &["--store", new.uri(), "--node", "n"],
        );
        let (old, new) = (Database::new(), Database::new());
        no_token_comes_back(&[], &["--store", new.uri(), "--node", "n"]);
        no_token_comes_back(&["--store", old.uri(), "--node", "n"], &[]);
    }
}
