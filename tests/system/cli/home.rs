//! A home directory of its own with a server in it, and the binary run as a user would. Nothing of
//! the real home is seen.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

/// Tokens of servers that took different ports must be the same service's.
pub(crate) const ISSUER: &str = "http://127.0.0.1:1";

/// A home directory. Whatever was started in it is killed with it.
pub(crate) struct CliHome {
    home: TempDir,
    /// Milliseconds that a call to a store that nodes share may take.
    store_timeout: u64,
}

/// Commands that call a server.
const REMOTE: [&str; 8] =
    ["token", "introspect", "revoke", "refresh", "client", "keys", "audit", "revoke-all"];

/// A server that serves.
pub(crate) struct Server {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// Its stderr, if it is a pipe.
    pub(crate) stderr: Option<ChildStderr>,
    /// Its first line.
    pub(crate) said: Value,
}

/// A command that goes on. It is killed when it is no longer looked at.
pub(crate) struct Following {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Following {
    /// The next line, if one comes soon.
    pub(crate) fn next(&self, patience: Duration) -> Option<String> {
        self.lines.recv_timeout(patience).ok()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Waits for the end: the exit code.
    pub(crate) fn ended(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Result of a command.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn is_ok(&self) -> bool {
        self.code == 0
    }

    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }

    /// Stdout without the line break at its end.
    pub(crate) fn line(&self) -> &str {
        self.out.trim_end_matches('\n')
    }
}

impl CliHome {
    pub(crate) fn new() -> Self {
        // Enough for a busy machine; the timeout has tests of its own.
        let home = Self { home: tempfile::tempdir().unwrap(), store_timeout: 20_000 };
        fs::DirBuilder::new().mode(0o700).create(home.data()).unwrap();
        home
    }

    /// For a store that cannot be used: that is found out after the default timeout.
    pub(crate) fn without_patience() -> Self {
        Self { store_timeout: 2_000, ..Self::new() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path("data")
    }

    /// A file that only its owner can read.
    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_jeton"));
        command.args(arguments).env_clear().current_dir(self.home.path());
        command.env("HOME", self.home.path()).env("JETON_DATA_DIR", self.data());
        command.env("JETON_ISSUER", ISSUER).env("JETON_METRICS_LISTEN", "off");
        // No test here is about real time: a busy machine is given all of it that can be
        // configured.
        command
            .env("JETON_LIMITS__DEADLINE_SECONDS", "300")
            .env("JETON_LIMITS__DRAIN_SECONDS", "60");
        command
            .env("JETON_LIMITS__HANDSHAKE_SECONDS", "60")
            .env("JETON_STORE__MAX_STALENESS_SECONDS", "60");
        command.env("JETON_STORE__CALL_TIMEOUT_MS", self.store_timeout.to_string());
        if arguments.first().is_some_and(|command| REMOTE.contains(command)) {
            command.args(["--timeout", "5m"]);
        }
        command
    }

    /// Runs a command again and again until its outcome is as it should be: what looks at something
    /// with a timeout of its own may come too early on a busy machine. The last outcome, if none
    /// is.
    pub(crate) fn until(&self, arguments: &[&str], is_so: impl Fn(&Ran) -> bool) -> Ran {
        let mut ran = self.jeton(arguments);
        for _ in 0..60 {
            if is_so(&ran) {
                break;
            }
            ran = self.jeton(arguments);
        }
        ran
    }

    /// Runs a command to its end, with nothing on stdin.
    pub(crate) fn jeton(&self, arguments: &[&str]) -> Ran {
        self.jeton_reading(arguments, "")
    }

    /// Runs a command to its end.
    pub(crate) fn jeton_reading(&self, arguments: &[&str], stdin: &str) -> Ran {
        run(&mut self.command(arguments), stdin)
    }

    /// Starts a command that goes on, and reads along.
    pub(crate) fn follow(&self, arguments: &[&str]) -> Following {
        let log = fs::File::create(self.path("followed")).unwrap();
        let mut child = self
            .command(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = mpsc::channel();
        thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| tell.send(line))
        });
        Following { child, lines }
    }

    pub(crate) fn serve(&self) -> Server {
        self.serve_with(&["serve", "--dev", "--json", "--listen", "127.0.0.1:0"])
    }

    /// Starts a server with `--dev` on a free port, and waits until it serves.
    pub(crate) fn serve_dev(&self, more: &[&str]) -> Server {
        let mut arguments = vec!["serve", "--dev", "--json", "--listen", "127.0.0.1:0"];
        arguments.extend(more);
        self.serve_with(&arguments)
    }

    /// Starts a server and waits until it serves.
    pub(crate) fn serve_with(&self, arguments: &[&str]) -> Server {
        let log = fs::File::create(self.path("log")).unwrap();
        self.serve_by(self.command(arguments).stderr(log))
    }

    /// Starts a server by this command and waits until it serves.
    pub(crate) fn serve_by(&self, command: &mut Command) -> Server {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let said = serde_json::from_str(&line).unwrap_or_else(|error| {
            let _ = child.wait();
            panic!("{error}: {line:?}, and in the log: {}", self.log())
        });
        let stderr = child.stderr.take();
        Server { child, stdout, stderr, said }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

pub(crate) fn run(command: &mut Command, stdin: &str) -> Ran {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that reads nothing may have ended by now.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

impl Server {
    pub(crate) fn address(&self) -> &str {
        self.said["address"].as_str().unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Waits for the end: how it ended, and what else was on stdout.
    pub(crate) fn ended(mut self) -> (ExitStatus, String) {
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap(), rest)
    }

    /// Sends a signal again and again until the process has ended.
    pub(crate) fn signal_until_ended(mut self, name: &str) -> ExitStatus {
        loop {
            self.signal(name);
            thread::park_timeout(Duration::from_millis(50));
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
        }
    }

    pub(crate) fn stop(self) {
        self.signal("TERM");
        assert_eq!(self.ended().0.code(), Some(0));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal(pid: u32, name: &str) {
    let pid = pid.to_string();
    assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
}

/// True if `needle` is in any file under `dir`.
pub(crate) fn is_in_a_file(dir: &Path, needle: &str) -> bool {
    fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        let holds =
            |bytes: Vec<u8>| bytes.windows(needle.len()).any(|window| window == needle.as_bytes());
        if path.is_dir() { is_in_a_file(&path, needle) } else { holds(fs::read(path).unwrap()) }
    })
}
