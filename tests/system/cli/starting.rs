//! Starts on a store that cannot be opened yet, and probes of the process that runs.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Stdio},
    time::Duration,
};

use rcgen::{CertificateParams, KeyPair};

use crate::cli::home::{CliHome, Ran};

/// Pause between two requests.
const PAUSE: Duration = Duration::from_millis(20);
/// Requests after which an answer is given up that must come: two minutes or more, a hang and not a
/// slow machine.
const REQUESTS_MAX: u32 = 6_000;

/// An address that is free now.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// The answer of `/readyz`; empty while nothing answers.
fn readyz(address: SocketAddr) -> String {
    let mut text = String::new();
    if let Ok(mut stream) = TcpStream::connect(address) {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let asked = stream
            .write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .and_then(|()| stream.read_to_string(&mut text));
        // The answer is judged, not how the connection ended.
        let _ = asked;
    }
    text
}

/// Asks until the answer has this part.
fn until_readyz(address: SocketAddr, part: &str) -> String {
    let mut text = String::new();
    for _ in 0..REQUESTS_MAX {
        text = readyz(address);
        if text.contains(part) {
            return text;
        }
        std::thread::park_timeout(PAUSE);
    }
    panic!("no {part} in {text}");
}

fn start(home: &CliHome, address: SocketAddr, more: &[&str]) -> Child {
    let listen = address.to_string();
    let mut command = home.command(&[&["serve", "--listen", &listen], more].concat());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn terminate(child: &mut Child) -> Option<i32> {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    child.wait().unwrap().code()
}

/// B10: a predecessor that is ending holds the directory; its successor listens, is not ready, says
/// why, and serves once the directory is free.
#[test]
fn a_start_waits_for_a_directory_that_is_held() {
    let home = CliHome::new();
    let first = home.serve();
    let address = free();
    let mut second = start(&home, address, &[]);
    let answer = until_readyz(address, " 503 ");
    assert!(answer.contains("\"reason\":\"the data directory is in use\""), "{answer}");
    first.stop();
    until_readyz(address, " 200 ");
    assert_eq!(terminate(&mut second), Some(0));
}

/// B10: the same for a MongoDB that is away; a stop signal works meanwhile.
#[cfg(feature = "mongodb")]
#[test]
fn a_start_waits_for_a_database_that_is_away_and_can_be_stopped() {
    let home = CliHome::without_patience();
    home.serve().stop();
    let address = free();
    let mut waiting = start(&home, address, &["--store", "mongodb://127.0.0.1:1/db"]);
    let answer = until_readyz(address, "\"reason\":\"the store cannot be reached\"");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert_eq!(terminate(&mut waiting), Some(0));
}

/// OPERATORS 3.10: a data directory whose mount is late is empty. Nothing is created in it, the log and
/// the probe say what it is, and the service starts once the mount is there.
#[test]
fn a_start_waits_for_a_mount_that_is_late() {
    let home = CliHome::new();
    home.serve().stop();
    let (data, aside) = (home.data(), home.path("aside"));
    std::fs::rename(&data, &aside).unwrap();
    let address = free();
    let mut waiting = start(&home, address, &[]);
    let answer = until_readyz(address, "\"reason\":\"the store is empty\"");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(!data.exists(), "nothing is created before the mount");
    std::fs::create_dir(&data).unwrap();
    until_readyz(address, " 503 ");
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0, "nor in the empty directory");
    std::fs::remove_dir(&data).unwrap();
    std::fs::rename(&aside, &data).unwrap();
    until_readyz(address, " 200 ");
    assert_eq!(terminate(&mut waiting), Some(0));
}

/// The error of a start on a directory, or on a database, that stays empty.
fn is_empty(home: &CliHome, more: &[&str]) {
    let key = home.file("key", "Q2Qf8mKTpTqBnSg2OWGLhX0l9H3aiYvHkxS6zVq3r+8=\n");
    let mut serve = home.command(&[&["serve", "--listen", "127.0.0.1:0"], more].concat());
    serve.env("JETON_STORE__START_PATIENCE_SECONDS", "0").env("JETON_MASTER_KEY_FILE", key);
    let refused = crate::cli::home::run(&mut serve, "");
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.err.contains("jeton serve --bootstrap"), "{refused:?}");
}

#[test]
fn an_empty_store_is_not_served() {
    let home = CliHome::new();
    is_empty(&home, &[]);
    assert_eq!(std::fs::read_dir(home.data()).unwrap().count(), 0);
}

/// DECISIONS 15: an archive that cannot be written stops no start, and one that others can write to
/// does.
#[test]
fn an_archive_that_is_away_stops_no_start() {
    use std::os::unix::fs::PermissionsExt as _;
    let home = CliHome::new();
    let (file, open) = (home.file("file", ""), home.path("open"));
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    let config = |archive: &std::path::Path| {
        let text = format!("[audit]\nkeep = \"400d\"\narchive = {archive:?}\n");
        home.file("c.toml", &text).to_str().unwrap().to_owned()
    };
    let server = home.serve_dev(&["--config", &config(&file.join("below"))]);
    assert!(home.log().contains("cannot write audit.archive"), "{}", home.log());
    home.jeton(&["token"]).ok();
    server.stop();
    let refused = home.jeton(&["serve", "--listen", "127.0.0.1:0", "--config", &config(&open)]);
    assert_eq!(refused.code, 64, "{refused:?}");
    assert!(refused.err.contains("is writable by other users (mode 0777)"), "{refused:?}");
    let missing = home.path("new");
    home.serve_dev(&["--config", &config(&missing)]).stop();
    assert_eq!(std::fs::metadata(&missing).unwrap().permissions().mode() & 0o777, 0o700);
}

mod mongodb {
    use super::{CliHome, is_empty};
    use crate::support::database::Database;

    #[test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    fn an_empty_database_is_not_served() {
        let own = Database::new();
        for node in ["one", "two"] {
            is_empty(&CliHome::new(), &["--node", node, "--store", own.uri()]);
        }
    }
}

/// Patience that is used up is an error that a supervisor retries.
#[test]
fn a_start_without_patience_fails_at_once() {
    let home = CliHome::new();
    let first = home.serve();
    let mut second = home.command(&["serve", "--listen", "127.0.0.1:0"]);
    second.env("JETON_STORE__START_PATIENCE_SECONDS", "0");
    let refused = crate::cli::home::run(&mut second, "");
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.err.contains("in use by process"), "{refused:?}");
    first.stop();
}

/// B20 and B14: the probe finds the port that the process really has, also under TLS and where it
/// requires client certificates, and a process that stands still fails.
#[test]
fn the_probe_asks_the_process_that_runs() {
    let home = CliHome::new();
    let key = KeyPair::generate().unwrap();
    let names = vec!["elsewhere.example".to_owned()];
    let cert = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    let cert = home.file("cert", &cert.pem());
    let key = home.file("key", &key.serialize_pem());
    let tls = format!("[tls]\ncert_file = {cert:?}\nkey_file = {key:?}\n");
    let mutual = format!("{tls}client_ca_file = {cert:?}\n");
    for settings in ["", &tls, &mutual] {
        let config = home.file("c.toml", settings);
        let server = home.serve_dev(&["--config", config.to_str().unwrap()]);
        // Without the file of the service.
        let probed = home.until(&["doctor", "--service-only"], Ran::is_ok).ok();
        assert!(probed.out.contains("is healthy on"), "{settings} {probed:?}");
        assert!(probed.out.contains(server.address()), "{settings} {probed:?}");
        server.signal("STOP");
        let frozen = home.jeton(&["doctor", "--service-only"]);
        assert_eq!(frozen.code, 1, "{settings} {frozen:?}");
        server.signal("CONT");
        server.stop();
        assert_eq!(home.jeton(&["doctor", "--service-only"]).code, 1, "{settings}");
    }
}
