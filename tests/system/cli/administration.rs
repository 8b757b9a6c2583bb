//! Clients, keys, the trail and the doctor.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::home::{CliHome, Ran, Server};

/// A server with a client `svc`, and its first secret.
pub(crate) fn with_client(home: &CliHome) -> (Server, String) {
    let server = home.serve();
    let grants = ["--grant", "client-credentials", "--grant", "refresh-token"];
    let create = [
        "client",
        "create",
        "svc",
        "--name",
        "A service",
        "--scope",
        "orders:read",
        "--role",
        "reader",
        "--json",
    ];
    let created = home.jeton(&[&create[..], &grants[..]].concat()).ok().json();
    (server, created["client_secret"].as_str().unwrap().to_owned())
}

fn as_svc(home: &CliHome, secret: &str, arguments: &[&str]) -> Ran {
    home.jeton_reading(
        &[arguments, &["--client-id", "svc", "--client-secret-file", "-"]].concat(),
        secret,
    )
}

fn get(home: &CliHome) -> Value {
    home.jeton(&["client", "get", "svc", "--json"]).ok().json()["client"].clone()
}

#[test]
fn a_client_is_registered_changed_and_removed() {
    let home = CliHome::new();
    let (server, secret) = with_client(&home);
    as_svc(&home, &secret, &["token"]).ok();
    assert_eq!(get(&home)["grant_types"], json!(["client_credentials", "refresh_token"]));
    let taken = home.jeton(&["client", "create", "svc"]);
    assert!(taken.code == 3 && taken.err.contains("already_exists"), "{taken:?}");

    let etag = get(&home)["etag"].as_str().unwrap().to_owned();
    let update = [
        "client",
        "update",
        "svc",
        "--scope",
        "a",
        "--scope",
        "b",
        "--clear",
        "roles",
        "--access-lifetime",
        "5m",
    ];
    home.jeton(&[&update[..], &["--etag", &etag]].concat()).ok();
    let changed = get(&home);
    assert_eq!((&changed["scopes"], &changed["roles"]), (&json!(["a", "b"]), &json!([])));
    assert_eq!(
        (&changed["display_name"], &changed["access_token_lifetime_seconds"]),
        (&json!("A service"), &json!(300))
    );
    let stale = home.jeton(&[&update[..], &["--etag", &etag]].concat());
    assert!(stale.code == 3 && stale.err.contains("hint: read the record again"), "{stale:?}");

    home.jeton(&["client", "disable", "svc"]).ok();
    assert_eq!(as_svc(&home, &secret, &["token"]).code, 3);
    home.jeton(&["client", "enable", "svc"]).ok();
    as_svc(&home, &secret, &["token"]).ok();
    home.jeton(&["client", "delete", "svc"]).ok();
    assert_eq!(home.jeton(&["client", "get", "svc"]).code, 5);
    server.stop();
}

#[test]
fn wrong_fields_are_named() {
    let home = CliHome::new();
    let server = home.serve();
    let refused = home.jeton(&["client", "create", "a b", "--json"]);
    assert_eq!(refused.code, 3);
    let error: Value = serde_json::from_str(&refused.err).unwrap();
    assert_eq!(error["error"]["reason"], "invalid_request");
    assert!(
        error["error"]["fields"]
            .as_object()
            .unwrap()
            .keys()
            .any(|field| field.contains("client_id")),
        "{error}"
    );
    server.stop();
}

/// A05: old and new secret work during the overlap, then only the new one.
#[test]
fn secrets_are_rotated_with_overlap() {
    let home = CliHome::new();
    let (server, old) = with_client(&home);
    let added = home.jeton(&["client", "add-secret", "svc", "--json"]).ok().json();
    let new = added["client_secret"].as_str().unwrap();
    as_svc(&home, &old, &["token"]).ok();
    as_svc(&home, new, &["token"]).ok();
    let new_id = added["secret_id"].as_str().unwrap();
    let secrets = get(&home)["secrets"].as_array().unwrap().clone();
    let old_id = secrets
        .iter()
        .map(|secret| secret["secret_id"].as_str().unwrap())
        .find(|id| *id != new_id)
        .unwrap();
    home.jeton(&["client", "retire-secret", "svc", old_id, "--overlap", "1h"]).ok();
    as_svc(&home, &old, &["token"]).ok();
    home.jeton(&["client", "retire-secret", "svc", old_id]).ok();
    assert_eq!(as_svc(&home, &old, &["token"]).code, 3);
    as_svc(&home, new, &["token"]).ok();
    server.stop();
}

#[test]
fn a_chosen_secret_is_imported_from_a_file() {
    let home = CliHome::new();
    let server = home.serve();
    let file = home.file("chosen", "a long enough secret\n");
    let create = [
        "client",
        "create",
        "svc",
        "--scope",
        "a",
        "--secret-file",
        file.to_str().unwrap(),
        "--json",
    ];
    assert!(home.jeton(&create).ok().json()["client_secret"].is_null());
    as_svc(&home, "a long enough secret", &["token"]).ok();
    assert_eq!(get(&home)["secrets"][0]["kind"], "argon2id");
    server.stop();
}

#[test]
fn the_list_goes_over_its_pages() {
    let home = CliHome::new();
    let server = home.serve();
    for number in 0..5 {
        home.jeton(&["client", "create", &format!("svc-{number}")]).ok();
    }
    let all = home.jeton(&["client", "list", "--json"]).ok().json();
    assert_eq!(all["clients"].as_array().unwrap().len(), 6);
    let some = home.jeton(&["client", "list", "--limit", "2"]).ok();
    assert_eq!(some.out.lines().count(), 3, "a header and two: {some:?}");
    server.stop();
}

#[test]
fn everything_of_a_client_is_ended_at_once() {
    let home = CliHome::new();
    let (server, secret) = with_client(&home);
    let token = as_svc(&home, &secret, &["token", "--raw"]).ok();
    home.jeton(&["introspect", "--check", token.line()]).ok();
    let refused = home.jeton(&["revoke-all", "--client", "svc", "--reason", "leaked\u{1b}[31m"]);
    assert!(refused.code == 3 && refused.err.matches("reason: ").count() == 1, "{refused:?}");
    // B07: a name that does not exist is no success, and its hint names the subject of a client.
    for (flag, name) in [("--client", "svcc"), ("--tenant", "svc"), ("--subject", "svc")] {
        let unknown = home.jeton(&["revoke-all", flag, name]);
        assert_eq!(unknown.code, 5, "{unknown:?}");
        assert_eq!(unknown.err.contains("hint: did you mean client:svc?"), flag == "--subject");
    }
    home.jeton(&["introspect", "--check", token.line()]).ok();
    let revoked = home.jeton(&["revoke-all", "--client", "svc", "--reason", "leaked"]).ok();
    assert_eq!(revoked.line(), "revoked: every token of client svc");
    assert_eq!(home.jeton(&["introspect", "--check", token.line()]).code, 1);
    let listed = home.jeton(&["audit", "list", "--action", "revocation.", "--json"]).ok().json();
    assert_eq!(
        (&listed["events"][0]["target"], &listed["events"][0]["reason"]),
        (&json!("svc"), &json!("leaked"))
    );
    let tenant = home.jeton(&["revoke-all", "--tenant", "default", "--json"]).ok().json();
    assert_eq!(tenant, json!({"clients": 2, "client_id": null, "token_known": null}));
    server.stop();
}

/// K03: revoking a key ends its tokens; a new one signs.
#[test]
fn keys_are_listed_rotated_and_revoked() {
    let home = CliHome::new();
    let server = home.serve();
    let token = home.jeton(&["token", "--raw"]).ok();
    let keys = home.jeton(&["keys", "list", "--json"]).ok().json();
    let active = keys["keys"]
        .as_array()
        .unwrap()
        .iter()
        .find(|key| key["state"] == "active")
        .unwrap()
        .clone();
    home.jeton(&["keys", "rotate"]).ok();
    home.jeton(&["keys", "revoke", active["kid"].as_str().unwrap()]).ok();
    assert_eq!(home.jeton(&["introspect", "--check", token.line()]).code, 1);
    home.jeton(&["token"]).ok();
    assert_eq!(home.jeton(&["keys", "revoke", "nope"]).code, 5);
    server.stop();
}

/// O04: the chain is whole, and a head noted earlier is in it; a chain of which one was noted and
/// that is gone is missed.
#[test]
fn the_trail_is_listed_verified_and_followed() {
    let home = CliHome::new();
    let server = home.serve();
    let verified = home.jeton(&["audit", "verify", "--json"]).ok().json();
    let chain = &verified["chains"][0];
    assert_eq!(
        (&verified["intact"], &verified["checked"], &chain["chain"]),
        (&true.into(), &chain["checked"], &"node-1".into())
    );
    let shown = home.jeton(&["audit", "verify", "--chain", "node-1"]).ok();
    let lines: Vec<&str> = shown.out.lines().collect();
    assert!(
        lines.len() == 2
            && lines[0].contains("  intact, ")
            && lines[1].starts_with("intact: 1 chain, "),
        "{shown:?}"
    );
    // As it is printed it is given back.
    let head = lines[0].split_whitespace().next().unwrap();
    home.jeton(&["audit", "verify", "--known", head]).ok();
    let sequence = &chain["head_sequence"];
    let forged = format!("node-1:{sequence}:{}", "00".repeat(32));
    let found = home.jeton(&["audit", "verify", "--known", head, "--known", &forged]);
    assert!(
        found.code == 1 && found.out.contains(&format!("broken at record {sequence}: differs")),
        "{found:?}"
    );
    assert!(found.out.lines().last().unwrap().starts_with("broken: 1 chain, "), "{found:?}");
    let gone = head.replacen("node-1", "node-0", 1);
    let missed = home.jeton(&["audit", "verify", "--known", &gone, "--json"]);
    assert_eq!(missed.code, 1);
    let missed = missed.json();
    let intact: Vec<_> = missed["chains"]
        .as_array()
        .unwrap()
        .iter()
        .map(|chain| (&chain["chain"], &chain["intact"]))
        .collect();
    assert_eq!(intact, [(&"node-0".into(), &false.into()), (&"node-1".into(), &true.into())]);
    assert_eq!(missed["chains"][0]["problem"], "the whole chain is missing");
    assert_eq!(home.jeton(&["audit", "verify", "--chain", "node-0"]).code, 5, "not found");
    let listed = home
        .jeton(&["audit", "list", "--limit", "3", "--since", "1h", "--outcome", "ok", "--json"])
        .ok()
        .json();
    assert_eq!(listed["events"].as_array().unwrap().len(), 3);
    assert_eq!(listed["events"][0]["chain"], "node-1");
    assert!(home.jeton(&["audit", "list", "--limit", "1"]).ok().out.starts_with("CHAIN "));

    let tail = home.follow(&["audit", "tail", "--json", "--action", "client.created"]);
    // The stream may stand only after some of these.
    let told = (0..100).find_map(|number| {
        home.jeton(&["client", "create", &format!("c{number}")]).ok();
        tail.next(Duration::from_millis(50))
    });
    let first = told.unwrap();
    let event: Value = serde_json::from_str(&first).unwrap();
    assert_eq!(event["action"], "client.created");
    server.stop();
}

#[test]
fn the_doctor_finds_a_healthy_service_healthy_and_says_what_ails_another() {
    let home = CliHome::new();
    let server = home.serve();
    let well = home
        .until(&["doctor", "--dev", "--listen", server.address(), "--json"], Ran::is_ok)
        .ok()
        .json();
    let verdict = |report: &Value, subject: &str| {
        let findings = report["findings"].as_array().unwrap();
        findings.iter().find(|finding| finding["subject"] == subject).unwrap()["verdict"].clone()
    };
    let subjects =
        ["configuration", "clock", "data directory", "master key", "audit trail", "service"];
    for subject in subjects {
        assert_eq!(verdict(&well, subject), "ok", "{subject}: {well}");
    }
    home.until(&["doctor", "--service-only", "--listen", server.address()], Ran::is_ok).ok();
    let address = server.address().to_owned();
    server.stop();
    let ill = home.jeton(&["doctor", "--dev", "--listen", &address, "--json"]);
    assert_eq!((ill.code, verdict(&ill.json(), "service")), (1, "problem".into()));
}

/// AUDIT AZ10: the operator gives, shows and releases audiences.
#[test]
fn audiences_are_assigned_listed_and_released() {
    const PAY: &str = "https://pay.example";
    let home = CliHome::new();
    let server = home.serve();
    let assigned = home
        .jeton(&["audience", "assign", PAY, "--tenant", "globex", "--json"])
        .ok()
        .json()["audience"]
        .clone();
    assert_eq!((&assigned["audience"], &assigned["tenant"]), (&json!(PAY), &json!("globex")));
    assert_eq!(assigned["claimed_by"], "bootstrap");
    let moved = home.jeton(&["audience", "assign", PAY, "--tenant", "acme", "--json"]).ok().json()
        ["audience"]
        .clone();
    assert_eq!(moved["tenant"], "acme");
    home.jeton(&["audience", "assign", PAY, "--tenant", "globex"]).ok();
    let spelled =
        home.jeton(&["audience", "assign", "https://PAY.example:443", "--tenant", "acme"]);
    assert!(spelled.code != 0 && spelled.err.contains(&format!("write {PAY}")), "{spelled:?}");
    home.jeton(&["client", "create", "orders", "--serves", "https://orders.example"]).ok();
    let listed = home.jeton(&["audience", "list", "--json"]).ok().json();
    let tenants: Vec<_> = listed["audiences"]
        .as_array()
        .unwrap()
        .iter()
        .map(|audience| &audience["tenant"])
        .collect();
    assert_eq!(
        (tenants, &listed["not_authentic"]),
        (vec![&json!("default"), &json!("globex")], &json!([]))
    );
    let table = home.jeton(&["audience", "list", "--tenant", "globex"]).ok().out;
    assert!(
        table.contains("AUDIENCE") && table.contains(PAY) && !table.contains("orders"),
        "{table}"
    );

    let listing = home.jeton(&["audience", "release", "https://orders.example"]);
    assert!(listing.code == 3 && listing.err.contains("client orders lists"), "{listing:?}");
    assert_eq!(home.jeton(&["audience", "release", PAY]).ok().out, "released\n");
    assert_eq!(home.jeton(&["audience", "release", PAY, "--json"]).code, 5);
    server.stop();
}

/// OPERATORS 3.8, 4.15: an update takes nothing away that it did not name, and says what it did.
#[test]
fn lists_of_a_client_are_changed_by_single_entries() {
    let home = CliHome::new();
    let (server, _) = with_client(&home);
    let update = |more: &[&str]| home.jeton(&[&["client", "update", "svc"][..], more].concat());
    update(&["--add-scope", "orders:write", "--add-role", "writer"]).ok();
    assert_eq!(get(&home)["scopes"], json!(["orders:read", "orders:write"]));
    assert_eq!(get(&home)["roles"], json!(["reader", "writer"]));
    let removed = update(&["--remove-scope", "orders:read"]).ok();
    assert!(removed.err.contains("removed from scopes: orders:read"), "{removed:?}");
    let replaced = update(&["--grant", "client_credentials"]).ok();
    assert!(replaced.err.contains("removed from grant_types: refresh_token"), "{replaced:?}");
    update(&["--add-grant", "refresh_token"]).ok();
    assert_eq!(get(&home)["grant_types"], json!(["client_credentials", "refresh_token"]));
    let typo = update(&["--remove-scope", "orders:raed"]);
    assert!(typo.code == 1 && typo.err.contains("orders:raed is not among"), "{typo:?}");
    assert_eq!(update(&["--scope", "a", "--add-scope", "b"]).code, 2);
    server.stop();
}

/// OPERATORS 4.17: a script gets a secret without parsing a table.
#[test]
fn a_new_secret_is_printed_alone_or_written_to_a_new_file() {
    let home = CliHome::new();
    let (server, _) = with_client(&home);
    let raw = home.jeton(&["client", "add-secret", "svc", "--raw"]).ok();
    assert!(raw.line().starts_with("jcs_") && !raw.line().contains(char::is_whitespace));
    as_svc(&home, raw.line(), &["token"]).ok();
    let path = home.path("secret");
    let file = path.to_str().unwrap();
    let create = ["client", "create", "two", "--secret-out", file];
    let made = home.jeton(&create).ok();
    let secret = std::fs::read_to_string(&path).unwrap();
    assert!(secret.starts_with("jcs_") && !made.out.contains(secret.trim_end()), "{made:?}");
    let again = home.jeton(&["client", "create", "three", "--secret-out", file]);
    assert_eq!(again.code, 1, "{again:?}");
    assert_eq!(home.jeton(&["client", "get", "three"]).code, 5, "nothing was made");
    server.stop();
}
