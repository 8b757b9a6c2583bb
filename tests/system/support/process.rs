//! A home directory and the binary that serves in it. What it started is killed with it.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

/// Tokens of every start must be the same service's, whichever port it took.
const ISSUER: &str = "http://127.0.0.1:1";

/// Directory of a server, and the way it is started.
pub(crate) struct Home {
    dir: TempDir,
    before: Vec<String>,
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
}

/// A server that did not start.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) status: ExitStatus,
    /// Its standard error, of this start and of earlier ones.
    pub(crate) log: String,
}

/// A server that serves.
pub(crate) struct Server {
    child: Child,
    // Open for as long as the server lives, so that it may write to it.
    _stdout: BufReader<ChildStdout>,
    pub(crate) address: SocketAddr,
    /// The first client's, at the first start.
    pub(crate) secret: Option<String>,
    /// From the start of the process to its first line.
    pub(crate) took: Duration,
}

impl Home {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::DirBuilder::new().mode(0o700).create(dir.path().join("data")).unwrap();
        Self { dir, before: Vec::new(), arguments: Vec::new(), environment: Vec::new() }
    }

    /// With deadlines that a busy machine keeps, for what is about something else.
    pub(crate) fn patient() -> Self {
        Self::new()
            .setting("JETON_LIMITS__DEADLINE_SECONDS", "300")
            .setting("JETON_LIMITS__DRAIN_SECONDS", "60")
    }

    pub(crate) fn setting(mut self, name: &'static str, value: &str) -> Self {
        self.environment.push((name, value.to_owned()));
        self
    }

    /// A further argument of `serve`.
    pub(crate) fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Starts the binary by way of this command, which must become it (`exec`).
    pub(crate) fn by_way_of(mut self, command: &[&str]) -> Self {
        self.before = command.iter().map(|&word| word.to_owned()).collect();
        self
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Logs of every server in this home.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn start(&self) -> Server {
        self.start_at("127.0.0.1:0".parse().unwrap())
    }

    /// Starts and waits until it serves.
    pub(crate) fn start_at(&self, address: SocketAddr) -> Server {
        self.attempt(address).unwrap_or_else(|refused| panic!("it does not start: {refused:?}"))
    }

    /// Starts and waits until it serves, or has ended.
    pub(crate) fn attempt(&self, address: SocketAddr) -> Result<Server, Refused> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .unwrap();
        let words: Vec<&str> = self
            .before
            .iter()
            .map(String::as_str)
            .chain([env!("CARGO_BIN_EXE_jeton"), "serve", "--dev", "--json"])
            .collect();
        let (program, arguments) = words.split_first().unwrap();
        let mut command = Command::new(program);
        command
            .args(arguments)
            .args(["--listen", &address.to_string()])
            .arg("--data-dir")
            .arg(self.data());
        command.args(&self.arguments);
        // Those of the tests themselves, such as `JETON_TEST_SEED`, are no settings: the binary refuses
        // what it does not know.
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"JETON_"))
        {
            command.env_remove(name);
        }
        command
            .env("XDG_CONFIG_HOME", self.path())
            .env("XDG_STATE_HOME", self.path())
            .current_dir(self.path());
        command
            .env("JETON_ISSUER", ISSUER)
            .env("JETON_METRICS_LISTEN", "off")
            .envs(self.environment.iter().cloned());
        let since = Instant::now();
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let took = since.elapsed();
        let Ok(said) = serde_json::from_str::<Value>(&line) else {
            assert_eq!(line, "", "the first line is JSON, or there is none");
            return Err(Refused { status: child.wait().unwrap(), log: self.log() });
        };
        let text = |field: &str| said.get(field).and_then(Value::as_str).map(str::to_owned);
        let address = text("address").unwrap().parse().unwrap();
        Ok(Server { child, _stdout: stdout, address, secret: text("client_secret"), took })
    }
}

impl Server {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// kill -9, and waits until it is gone.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        assert!(
            Command::new("kill")
                .args(["-s", "TERM", &self.pid().to_string()])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Waits for its end, but not longer than this.
    pub(crate) async fn ended(mut self, within: Duration) -> ExitStatus {
        let until = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "it has not ended after {within:?}");
            pause(Duration::from_millis(5)).await;
        }
    }

    /// A connection of its own.
    pub(crate) async fn connect(&self) -> Channel {
        endpoint(self.address).connect().await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .connect_timeout(Duration::from_secs(60))
        .timeout(Duration::from_secs(300))
}

/// Lets a real process do something for so long.
pub(crate) async fn pause(time: Duration) {
    tokio::time::sleep_until(Instant::now() + time).await;
}

/// The longest a start may take after whatever came before it. The promise is one second, and
/// optimised code is held to it; unoptimised code on a machine that others use as well is given
/// minutes, and what it took is printed.
pub(crate) const READY: Duration =
    if cfg!(debug_assertions) { PATIENCE } else { Duration::from_secs(1) };

/// Only a test that fails waits for this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
