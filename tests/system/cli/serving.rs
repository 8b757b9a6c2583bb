//! Starting, saying so, stopping, refusing to start.

use std::{fs, os::unix::fs::PermissionsExt, process, time::Duration};

use jeton::proto::token::{TokenRequest, TokenResponse};
use tokio::task::JoinHandle;
use tonic::Status;

use crate::cli::home::{CliHome, is_in_a_file, run};

#[test]
fn a_program_reads_one_line_and_nothing_else_ever_comes() {
    let home = CliHome::new();
    let server = home.serve();
    let said = server.said.as_object().unwrap().clone();
    assert_eq!(said["data_dir"].as_str().unwrap(), home.data().to_str().unwrap());
    assert!(said["client_secret"].as_str().unwrap().starts_with("jcs_"));
    assert_eq!(home.jeton(&["token"]).code, 0);
    server.signal("TERM");
    let (status, rest) = server.ended();
    assert_eq!((status.code(), rest.as_str()), (Some(0), ""));
}

/// O01: the first secret is on stdout once and in the user's own context; not in the log, not in
/// the data directory.
#[test]
fn the_first_secret_is_nowhere_else() {
    let home = CliHome::new();
    let server = home.serve();
    let secret = server.said["client_secret"].as_str().unwrap().to_owned();
    let token = home.jeton(&["token", "--raw"]).ok();
    home.jeton(&[
        "introspect",
        "-",
        "--client-secret-file",
        home.file("wrong", "jcs_wrong").to_str().unwrap(),
    ]);
    server.stop();
    // 32 bytes of base64url, which may hold an underscore itself.
    let value = &secret[secret.len() - 43..];
    for canary in [secret.as_str(), value, token.line()] {
        assert!(!home.log().contains(canary));
        assert!(!is_in_a_file(&home.data(), canary));
    }
    assert!(is_in_a_file(&home.path(".config"), &secret), "the context keeps it");
}

#[test]
fn started_again_it_goes_on_where_it_was() {
    let home = CliHome::new();
    let server = home.serve();
    let client = server.said["client_id"].clone();
    let token = home.jeton(&["token", "--raw"]).ok();
    server.stop();
    let server = home.serve();
    assert_eq!(server.said["client_id"], client);
    assert!(server.said["client_secret"].is_null(), "it is not known any more");
    home.jeton(&["introspect", "--check", token.line()]).ok();
    home.jeton(&["token"]).ok();
    server.stop();
}

#[test]
fn people_get_what_they_can_paste() {
    let home = CliHome::new();
    let server = home.follow(&["serve", "--dev", "--listen", "127.0.0.1:0"]);
    let mut lines = Vec::new();
    while !lines.last().is_some_and(|line: &String| line.ends_with("/Introspect")) {
        lines.push(server.next(Duration::from_secs(120)).unwrap());
    }
    let line = lines.iter().find(|line| line.ends_with(" introspect -")).unwrap();
    let mut shell = process::Command::new("sh");
    shell
        .args(["-c", line.trim()])
        .env_clear()
        .env("HOME", home.path(""))
        .current_dir(home.path(""));
    let judged = run(&mut shell, "").ok();
    assert!(judged.out.starts_with("active      true\n"), "{judged:?}");
}

/// E7: the second one says who holds the directory, at once; after kill -9 the next start works.
#[test]
fn two_servers_do_not_share_a_directory() {
    let home = CliHome::new();
    let server = home.serve();
    let second = home.jeton(&["serve", "--dev", "--json", "--listen", "127.0.0.1:0"]);
    assert_eq!((second.code, second.out.as_str()), (1, ""), "it may pass by itself: {second:?}");
    assert!(second.err.contains(&format!("in use by process {}", server.pid())), "{second:?}");
    server.signal("KILL");
    server.ended();
    home.serve().stop();
}

/// FT2, E9: an old copy of the data directory does not bring a revoked token back; where that is
/// accepted it does, and the trail says so.
#[test]
fn an_old_copy_of_the_data_directory_is_refused() {
    let home = CliHome::new();
    let server = home.serve();
    let token = home.jeton(&["token", "--raw"]).ok();
    let copied = |from: &str, to: &str| {
        let status = process::Command::new("cp")
            .arg("-r")
            .arg(home.path(from))
            .arg(home.path(to))
            .status()
            .unwrap();
        assert!(status.success());
    };
    copied("data", "copy");
    home.jeton(&["revoke", token.line()]).ok();
    assert_eq!(home.jeton(&["introspect", "--check", token.line()]).code, 1);
    server.stop();
    home.serve().stop();

    fs::rename(home.data(), home.path("newest")).unwrap();
    fs::rename(home.path("copy"), home.data()).unwrap();
    let serve = ["serve", "--dev", "--json", "--listen", "127.0.0.1:0"];
    let refused = home.jeton(&serve);
    assert_eq!((refused.code, refused.out.as_str()), (64, ""), "{refused:?}");
    for said in ["the database is a copy", "--accept-rollback", "`jeton export`"] {
        assert!(refused.err.contains(said), "{refused:?}");
    }
    let server = home.serve_with(&[&serve[..], &["--accept-rollback"]].concat());
    home.jeton(&["introspect", "--check", token.line()]).ok();
    let listed =
        home.jeton(&["audit", "list", "--action", "store.rollback_accepted", "--json"]).ok().json();
    let events = listed["events"].as_array().unwrap();
    assert_eq!(events.len(), 1, "{listed}");
    assert!(events[0]["target"].as_str().unwrap().contains("is a copy"), "{listed}");
    assert!(home.log().contains("rollback accepted"), "{}", home.log());
    home.jeton(&["audit", "verify"]).ok();
    server.stop();
    home.serve().stop();

    // The newest one was only moved, and still opens.
    fs::rename(home.data(), home.path("copy")).unwrap();
    fs::rename(home.path("newest"), home.data()).unwrap();
    let server = home.serve();
    assert_eq!(home.jeton(&["introspect", "--check", token.line()]).code, 1);
    server.stop();
}

/// AZ16 a, TL8: outside of development a data directory that others can write to is not served
/// from, and nothing is made in it.
#[test]
fn an_open_data_directory_is_refused() {
    let home = CliHome::new();
    let key = home.file("key", "Q2Qf8mKTpTqBnSg2OWGLhX0l9H3aiYvHkxS6zVq3r+8=\n");
    let config =
        home.file("c.toml", &format!("master_key_file = {key:?}\nlisten = \"127.0.0.1:0\"\n"));
    let serve = ["serve", "--json", "--bootstrap", "--config", config.to_str().unwrap()];
    let chmod =
        |mode: u32| fs::set_permissions(home.data(), fs::Permissions::from_mode(mode)).unwrap();
    chmod(0o777);
    let refused = home.jeton(&serve);
    assert_eq!((refused.code, refused.out.as_str()), (64, ""), "{refused:?}");
    assert!(
        refused.err.contains("is writable by other users (mode 0777): chmod 0700"),
        "{refused:?}"
    );
    assert_eq!(fs::read_dir(home.data()).unwrap().count(), 0);
    home.serve_with(&[&serve[..], &["--dev"]].concat()).stop();
    assert!(
        home.log().contains("other users can access this path"),
        "a developer's machine is warned"
    );
    chmod(0o755);
    home.serve_with(&serve).stop();
    assert!(home.log().contains("other users can access this path"), "{}", home.log());
}

/// A call whose message never comes: it is in flight until its deadline.
pub(crate) async fn endless_call(address: &str) -> JoinHandle<Result<TokenResponse, Status>> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    let channel = endpoint.connect().await.unwrap();
    tokio::spawn(async move {
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await.unwrap();
        let message = tonic::Request::new(futures_util::stream::pending::<TokenRequest>());
        let path = http::uri::PathAndQuery::from_static("/jeton.token.v1.TokenService/Token");
        let codec = tonic_prost::ProstCodec::<TokenRequest, TokenResponse>::default();
        grpc.client_streaming(message, path, codec).await.map(|answer| answer.into_inner())
    })
}

/// S1: the first signal waits for calls in flight, the second does not.
#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let home = CliHome::new();
    let server = home.serve();
    let call = endless_call(server.address()).await;
    // Once this one has been answered on another connection, the first has long been read.
    home.jeton(&["token"]).ok();
    server.signal("TERM");
    while !home.log().contains("draining") {
        tokio::task::yield_now().await;
    }
    // One in the first 250 ms belongs to the first.
    let status = server.signal_until_ended("INT");
    assert_eq!(status.code(), Some(130), "{}", home.log());
    assert!(call.await.unwrap().is_err());
}

#[test]
fn a_hangup_does_not_end_it() {
    let home = CliHome::new();
    let server = home.serve();
    server.signal("HUP");
    home.jeton(&["token"]).ok();
    server.stop();
}

/// T03, and every other wrong setting: one clear line, exit code 64, nothing on stdout.
#[test]
fn half_a_configuration_does_not_start() {
    let home = CliHome::new();
    let unknown = home.file("unknown.toml", "lisen = \"127.0.0.1:1\"\n");
    let cases: &[(&[&str], &str)] = &[
        (&["serve", "--dev", "--listen", "0.0.0.0:0"], "flag --listen"),
        (&["serve", "--config", unknown.to_str().unwrap()], "lisen"),
        (&["serve", "--config", "/nowhere.toml"], "/nowhere.toml"),
        (&["serve", "--bootstrap", "--listen", "127.0.0.1:0"], "master key"),
        (&["serve", "--dev", "--listen", "nonsense"], "listen"),
    ];
    for (arguments, named) in cases {
        let refused = home.jeton(arguments);
        assert_eq!((refused.code, refused.out.as_str()), (64, ""), "{refused:?}");
        let error = refused.err.lines().last().unwrap();
        assert!(error.starts_with("error: ") && error.contains(named), "{refused:?}");
    }
    let mut command = home.command(&["serve", "--dev", "--listen", "127.0.0.1:0"]);
    let refused = run(command.env("JETON_TOKEN__ACCESS_LIFETIME", "5"), "");
    assert!(
        refused.code == 64 && refused.err.contains("environment JETON_TOKEN__ACCESS_LIFETIME"),
        "{refused:?}"
    );
}

#[test]
fn outside_development_the_first_client_is_made_when_asked_for() {
    let home = CliHome::new();
    let key = home.file("key", "Q2Qf8mKTpTqBnSg2OWGLhX0l9H3aiYvHkxS6zVq3r+8=\n");
    let environment =
        home.file("c.toml", &format!("master_key_file = {key:?}\nlisten = \"127.0.0.1:0\"\n"));
    let config = environment.to_str().unwrap();
    let server = home.serve_with(&["serve", "--json", "--config", config, "--bootstrap"]);
    assert!(server.said["client_secret"].is_string());
    server.stop();
    assert!(!home.log().contains("--bootstrap created no client"), "{}", home.log());
    // OPERATORS B44, 3.6: a flag that does nothing is logged, and a setting that waits.
    let serve = ["serve", "--json", "--config", config, "--bootstrap"];
    let doctor = || {
        let mut doctor = home.command(&["doctor", "--config", config]);
        run(doctor.env("JETON_KEYS__ALGORITHM", "ES256"), "")
    };
    let said = doctor();
    let waits = "sign with EdDSA; keys.algorithm ES256 applies ";
    assert!(said.out.contains(&format!("{waits}after the next start")), "{said:?}");
    let log = fs::File::create(home.path("log")).unwrap();
    let mut command = home.command(&serve);
    let server = home.serve_by(command.env("JETON_KEYS__ALGORITHM", "ES256").stderr(log));
    assert!(server.said["client_secret"].is_null());
    server.stop();
    let said = doctor();
    assert!(said.out.contains(&format!("{waits}from 2")), "{said:?}");
    for line in ["--bootstrap created no client", "keys.algorithm was changed"] {
        assert!(home.log().contains(line), "{line}: {}", home.log());
    }
    let server = home.serve_with(&["serve", "--json", "--config", config]);
    assert!(server.said["client_id"].is_null());
    server.stop();
    assert!(!home.path(".config/jeton/contexts.toml").exists(), "a context is for development");
}

/// AZ16: under a supervisor stdout is the log: the first secret can go to a file instead, and to
/// that file alone.
#[test]
fn the_first_secret_can_go_to_a_file() {
    let home = CliHome::new();
    let key = home.file("key", "Q2Qf8mKTpTqBnSg2OWGLhX0l9H3aiYvHkxS6zVq3r+8=\n");
    let config =
        home.file("c.toml", &format!("master_key_file = {key:?}\nlisten = \"127.0.0.1:0\"\n"));
    let path = home.path("first");
    let serve = [
        "serve",
        "--json",
        "--config",
        config.to_str().unwrap(),
        "--bootstrap",
        "--bootstrap-secret-file",
    ];
    let serve = [&serve[..], &[path.to_str().unwrap()]].concat();
    let server = home.serve_with(&serve);
    assert!(server.said["client_secret"].is_null(), "{}", server.said);
    let secret = fs::read_to_string(&path).unwrap();
    assert!(secret.starts_with("jcs_"));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!home.log().contains(secret.trim()));
    let flags = [
        "token",
        "--address",
        server.address(),
        "--client-id",
        "bootstrap",
        "--client-secret-file",
    ];
    home.jeton(&[&flags[..], &[path.to_str().unwrap()]].concat()).ok();
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let core: Vec<&str> = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(core[4..6], ["0", "0"], "TL14: the server leaves no core behind");
    server.stop();
    // What is there is not written over, and where there is nothing to write no file is left.
    home.serve_with(&serve).stop();
    assert_eq!(fs::read_to_string(&path).unwrap(), secret);
    fs::remove_file(&path).unwrap();
    home.serve_with(&serve).stop();
    assert!(!path.exists());
}

/// OPERATORS B44: a first secret that cannot be shown leaves no client behind.
#[test]
fn a_first_secret_that_cannot_be_written_takes_the_client_back() {
    let home = CliHome::new();
    let key = home.file("key", "Q2Qf8mKTpTqBnSg2OWGLhX0l9H3aiYvHkxS6zVq3r+8=\n");
    let config =
        home.file("c.toml", &format!("master_key_file = {key:?}\nlisten = \"127.0.0.1:0\"\n"));
    let serve = ["serve", "--json", "--bootstrap", "--config", config.to_str().unwrap()];
    for sink in ["/dev/full", "/dev/null"] {
        let stdout = fs::OpenOptions::new().write(true).open(sink).unwrap();
        let ended = home.command(&serve).stdout(stdout).output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(1), "{sink}: {said}");
        assert!(said.contains("cannot write the first client's secret"), "{sink}: {said}");
    }
    let there = home.file("there", "mine");
    let to_file = [&serve[..], &["--bootstrap-secret-file", there.to_str().unwrap()]].concat();
    assert_eq!(home.jeton(&to_file).code, 1);
    assert_eq!(fs::read_to_string(&there).unwrap(), "mine");
    // Nor does a start that fails before it can show the secret.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let metrics = taken.local_addr().unwrap().to_string();
    let ended = home.command(&serve).env("JETON_METRICS_LISTEN", metrics).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!((ended.status.code(), &*ended.stdout), (Some(1), &b""[..]), "{said}");
    assert!(said.contains("the new client is deleted again"), "{said}");
    // The next start has a first client to make.
    let server = home.serve_with(&serve);
    assert!(server.said["client_secret"].is_string(), "{}", server.said);
    server.stop();
}

#[test]
fn the_configuration_is_shown_with_its_origins() {
    let home = CliHome::new();
    let shown = home.jeton(&["config", "show", "--listen", "127.0.0.1:7", "--json"]).ok().json();
    assert_eq!(
        shown["listen"],
        serde_json::json!({ "value": "127.0.0.1:7", "origin": "flag --listen" })
    );
    assert_eq!(shown["issuer"]["origin"], "environment JETON_ISSUER");
    assert_eq!(shown["node"]["origin"], "default");
    let refused = home.jeton(&["config", "show", "--listen", "0.0.0.0:7"]);
    assert!(
        refused.code == 64 && refused.out.contains("0.0.0.0:7"),
        "shown, and then judged: {refused:?}"
    );
}
