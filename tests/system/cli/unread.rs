//! Channels of the server that nothing reads: stderr, stdout, the supervisor's socket, a scrape. None
//! of them may stop a call, a probe or a signal.

use std::{
    fs,
    io::{ErrorKind, PipeReader, PipeWriter, Read, Write, pipe},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixDatagram,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use rustix::fs::{OFlags, fcntl_setfl};

use crate::cli::{
    home::{CliHome, Server},
    serving::endless_call,
};

const SERVE: [&str; 5] = ["serve", "--dev", "--json", "--listen", "127.0.0.1:0"];

/// An address that was free a moment ago.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// A connection on which a page was requested.
fn asked(address: &str, path: &str) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: jeton\r\nconnection: close\r\n\r\n")?;
    Ok(stream)
}

/// A page with its head; empty if the server cannot be reached.
pub(crate) fn page(address: &str, path: &str) -> String {
    let mut page = String::new();
    if let Ok(mut stream) = asked(address, path) {
        let _ = stream.read_to_string(&mut page);
    }
    page
}

pub(crate) fn is_ok(address: &str, path: &str) -> bool {
    page(address, path).starts_with("HTTP/1.1 200 ")
}

/// A pipe that is full.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = pipe().unwrap();
    fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
    while writer.write(&[b'.'; 512]).is_ok() {}
    fcntl_setfl(&writer, OFlags::empty()).unwrap();
    (reader, writer)
}

fn dropped(metrics: &str) -> f64 {
    let page = page(metrics, "/metrics");
    let value = page.lines().find_map(|line| line.strip_prefix("jeton_log_lines_dropped_total "));
    value.map_or(0.0, |value| value.parse().unwrap())
}

/// A server whose stderr nothing reads, and that has dropped lines because of it; and the address
/// of its metrics.
fn unread(home: &CliHome) -> (Server, String) {
    let metrics = free_address();
    let mut command = home.command(&SERVE);
    command.env("JETON_LOG__LEVEL", "trace").env("JETON_METRICS_LISTEN", &metrics);
    let server = home.serve_by(command.stderr(Stdio::piped()));
    while dropped(&metrics) == 0.0 {
        for _ in 0..50 {
            assert!(is_ok(server.address(), "/readyz"));
        }
    }
    (server, metrics)
}

/// 3.1: with a stderr that nothing reads, calls and probes are answered and SIGTERM drains.
#[test]
fn the_server_works_while_stderr_is_not_read() {
    let home = CliHome::new();
    let (server, metrics) = unread(&home);
    let _scrape = asked(&metrics, "/metrics").unwrap();
    let token = home.jeton(&["token", "--raw"]).ok();
    home.jeton(&["introspect", "--check", token.line()]).ok();
    assert!(is_ok(server.address(), "/healthz") && is_ok(server.address(), "/readyz"));
    assert!(dropped(&metrics) > 0.0);
    server.stop();
}

/// 3.1: a second signal ends the process whatever stderr does.
#[tokio::test]
async fn a_second_signal_ends_it_while_stderr_is_not_read() {
    let home = CliHome::new();
    let (server, _) = unread(&home);
    let call = endless_call(server.address()).await;
    home.jeton(&["token"]).ok();
    let status = server.signal_until_ended("TERM");
    assert_eq!(status.code(), Some(143));
    assert!(call.await.unwrap().is_err());
}

/// 3.1: the log says how many lines are missing, once it is read again.
#[test]
fn dropped_lines_are_reported_when_stderr_is_read_again() {
    let home = CliHome::new();
    let (mut server, _) = unread(&home);
    let mut stderr = server.stderr.take().unwrap();
    let reading = thread::spawn(move || {
        let mut log = Vec::new();
        stderr.read_to_end(&mut log).unwrap();
        String::from_utf8(log).unwrap()
    });
    server.stop();
    let log = reading.join().unwrap();
    let report = log.lines().find(|line| line.contains("log lines were dropped")).unwrap();
    assert!(report.contains("ERROR") && report.contains("lines="), "{report}");
    assert!(log.lines().last().unwrap().contains("stopped"), "the end is in the log");
}

/// 3.1: a full stdout does not prevent the start.
#[test]
fn the_server_starts_while_stdout_is_not_read() {
    let home = CliHome::new();
    let (_reader, writer) = full_pipe();
    let address = free_address();
    let log = fs::File::create(home.path("log")).unwrap();
    let mut child = home
        .command(&["serve", "--dev", "--json", "--listen", &address])
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(log)
        .spawn()
        .unwrap();
    while !is_ok(&address, "/readyz") {
        assert!(child.try_wait().unwrap().is_none(), "{}", home.log());
        thread::park_timeout(Duration::from_millis(20));
    }
    home.jeton(&["token", "--address", &address]);
    while !home.log().contains("stdout is not read") {
        thread::park_timeout(Duration::from_millis(20));
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-s", "TERM", &pid]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0), "{}", home.log());
}

/// 3.1: an error of the start is no reason to wait for a reader of stderr either.
#[test]
fn a_failed_start_ends_while_stderr_is_not_read() {
    let home = CliHome::new();
    let (_reader, writer) = full_pipe();
    let mut command = home.command(&["serve", "--dev", "--listen", "nonsense"]);
    let status = command.stdin(Stdio::null()).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(64));
}

/// 3.5: an export that nothing reads does not hold the store, whose WAL would grow.
#[test]
fn an_export_that_is_not_read_holds_no_view_of_the_store() {
    let home = CliHome::new();
    let server = home.serve();
    let (_reader, writer) = full_pipe();
    let mut command = home.command(&["export"]);
    let mut child = command.stdin(Stdio::null()).stdout(writer).spawn().unwrap();
    let files = || -> Vec<String> {
        let open = fs::read_dir(format!("/proc/{}/fd", child.id())).unwrap();
        let path = |entry: std::io::Result<fs::DirEntry>| fs::read_link(entry.ok()?.path()).ok();
        open.filter_map(path).map(|path| path.display().to_string()).collect()
    };
    // The store is opened before the copy is made.
    let is_copied = |files: &[String]| files.iter().any(|file| file.contains("jeton-export-"));
    let holds_store = |files: &[String]| files.iter().any(|file| file.contains("/data/"));
    loop {
        let files = files();
        if is_copied(&files) && !holds_store(&files) {
            break;
        }
        thread::park_timeout(Duration::from_millis(5));
    }
    assert!(child.try_wait().unwrap().is_none(), "it waits for its reader");
    child.kill().unwrap();
    child.wait().unwrap();
    server.stop();
}

/// 3.1: a supervisor that does not read its socket stops neither the start nor the end.
#[test]
fn the_server_works_while_its_supervisor_does_not_read() {
    let home = CliHome::new();
    let path = home.path("notify");
    let _supervisor = UnixDatagram::bind(&path).unwrap();
    let sender = UnixDatagram::unbound().unwrap();
    sender.set_nonblocking(true).unwrap();
    let error = loop {
        if let Err(error) = sender.send_to(b"STATUS=full", &path) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    let log = fs::File::create(home.path("log")).unwrap();
    let server = home.serve_by(home.command(&SERVE).env("NOTIFY_SOCKET", &path).stderr(log));
    home.jeton(&["token"]).ok();
    server.stop();
}
