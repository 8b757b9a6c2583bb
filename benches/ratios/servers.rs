//! The two servers, as processes of their own.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::report::Run;

/// A process started here and ended with this.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    /// From its start to the line that says it serves.
    pub(crate) ready: Duration,
    /// That line.
    pub(crate) said: String,
}

impl Server {
    pub(crate) fn echo(answers: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("echo").arg(answers);
        Self::start(command, |line| line.trim().parse().unwrap())
    }

    /// With limits out of the way, and its log beside the data; over a new database of the MongoDB
    /// at `store`, where that is given: what an earlier run left was sealed by another master key.
    pub(crate) fn jeton(program: &Path, dir: &Path, store: Option<&str>) -> Self {
        fs::create_dir_all(dir).unwrap();
        let mut command = Command::new(program);
        let log = fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
        command
            .args(["serve", "--dev", "--json", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(data(dir))
            .env_clear();
        command
            .env("HOME", dir)
            .env("JETON_METRICS_LISTEN", "127.0.0.1:0")
            .env("JETON_ISSUER", "https://jeton.test");
        if let Some(store) = store {
            let (hosts, options) = store
                .split_once("/?")
                .expect("an address without a database: mongodb://HOSTS/?OPTIONS");
            let store = format!("{hosts}/jeton_bench_{}?{options}", std::process::id());
            command
                .env("JETON_STORE__URI", store)
                .env("JETON_NODE", "bench")
                .env("JETON_STORE__CALL_TIMEOUT_MS", "10000");
        }
        for rate in ["PER_PEER", "PLANS__STANDARD", "PLANS__BULK"] {
            for bound in ["PER_SECOND", "BURST"] {
                command.env(format!("JETON_LIMITS__{rate}__{bound}"), "10000000");
            }
        }
        command.env("JETON_LIMITS__CONNECTIONS_PER_PEER", "20000").stderr(log);
        Self::start(command, |line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["address"].as_str().unwrap().parse().unwrap()
        })
    }

    fn start(mut command: Command, address: impl FnOnce(&str) -> SocketAddr) -> Self {
        let began = Instant::now();
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let ready = began.elapsed();
        assert!(!said.is_empty(), "a server ended before it served");
        Self { child, address: address(&said), ready, said }
    }

    /// Resident memory in MiB.
    pub(crate) fn resident(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }

    /// Puts a load on it and takes down what that cost it.
    pub(crate) fn under(&self, load: impl FnOnce(SocketAddr) -> Run) -> Run {
        let before = self.processor();
        let run = load(self.address);
        Run { processor: (self.processor() - before) / run.calls as f64, ..run }
    }

    /// Processor time taken so far, in microseconds, by all its threads.
    fn processor(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // The name, in brackets, may hold anything; user and system time are the 12th and 13th
        // after it, in hundredths.
        let ticks = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
        ticks.map(|ticks| ticks.parse::<f64>().unwrap() * 10_000.0).sum()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to stop, and waits until it has.
    pub(crate) fn stop(mut self) {
        let asked =
            Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(
            asked.success() && self.child.wait().unwrap().success(),
            "a server did not stop well"
        );
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a server of `dir` keeps its data.
pub(crate) fn data(dir: &Path) -> PathBuf {
    dir.join("data")
}
