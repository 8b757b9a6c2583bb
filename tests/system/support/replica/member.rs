//! One mongod: a process that is started, killed, stopped and slowed down.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// Longest wait for a process to listen, or to end when it was asked to.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Member {
    /// Below it lies the data.
    dir: PathBuf,
    log: PathBuf,
    arguments: Vec<String>,
    /// Its own port: a new one at each start. Nobody but its proxy and the harness goes
    /// there.
    pub(crate) port: Arc<AtomicU16>,
    child: Option<Child>,
    pub(crate) paused: bool,
    tracer: Option<Tracer>,
}

impl Member {
    pub(crate) fn new(dir: PathBuf, log: PathBuf, arguments: Vec<String>) -> Self {
        let port = Arc::new(AtomicU16::new(0));
        Self { dir, log, arguments, port, child: None, paused: false, tracer: None }
    }

    /// Starts the process. It ends with the thread that calls this, should that die: Linux looks at
    /// threads.
    pub(crate) fn spawn(&mut self, mongod: &Path) {
        assert!(self.child.is_none(), "it runs already");
        fs::create_dir_all(&self.dir).unwrap();
        let port =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        self.port.store(port, Ordering::SeqCst);
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(mongod)
            .args(["--port", &port.to_string(), "--dbpath"])
            .arg(&self.dir)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("setpriv and mongod run"));
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// True if it runs, and is not paused.
    pub(crate) fn answers(&self) -> bool {
        self.child.is_some() && !self.paused
    }

    /// True if it listens; panics if it ended instead.
    pub(crate) fn listens(&mut self) -> bool {
        let ended = self.child.as_mut().expect("started").try_wait().unwrap();
        assert!(ended.is_none(), "mongod ended with {ended:?}: {}", self.tail());
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.port.load(Ordering::SeqCst))).is_ok()
    }

    /// SIGKILL; returns when it is gone.
    pub(crate) fn kill(&mut self) {
        self.tracer = None;
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.paused = false;
    }

    pub(crate) fn signal(&mut self, signal: &str) {
        let pid = self.pid().expect("it runs").to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        match signal {
            "-STOP" => self.paused = true,
            "-CONT" => self.paused = false,
            _ => {}
        }
    }

    /// True if the process ended by itself.
    pub(crate) fn ended(&mut self) -> bool {
        let ended = self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some());
        if ended {
            self.kill();
        }
        ended
    }

    /// Every sync takes so much longer from now on; zero means no longer.
    pub(crate) fn delay_sync(&mut self, delay: Duration) {
        self.tracer = None;
        if !delay.is_zero() {
            self.tracer = Some(Tracer::start(
                self.pid().expect("it runs"),
                delay,
                &self.log.with_extension("strace"),
            ));
        }
    }

    /// True if the tracer is at work; panics if it ended.
    pub(crate) fn delayed(&mut self) -> bool {
        self.tracer.as_mut().is_some_and(Tracer::attached)
    }

    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().rev().take(5).collect();
        lines.join("\n")
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// strace at a member; it lets go when this is dropped.
struct Tracer {
    child: Child,
    said: PathBuf,
}

impl Tracer {
    fn start(pid: u32, delay: Duration, said: &Path) -> Self {
        let child = Command::new("strace")
            .args(["-f", "-p", &pid.to_string(), "-e", "trace=fsync,fdatasync"])
            .args(["-e", &format!("inject=fsync,fdatasync:delay_enter={}", delay.as_micros())])
            .stdin(Stdio::null())
            .stderr(fs::File::create(said).unwrap())
            .spawn()
            .expect("strace is installed");
        Self { child, said: said.to_owned() }
    }

    fn attached(&mut self) -> bool {
        let said = fs::read_to_string(&self.said).unwrap_or_default();
        assert!(self.child.try_wait().unwrap().is_none(), "strace ended: {said}");
        said.contains("attached")
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Looks again and again until this is so; panics with `what` if it takes longer than anybody
/// waits.
pub(crate) async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so().await {
        assert!(Instant::now() < deadline, "{what}: not after {PATIENCE:?}");
        pause(Duration::from_millis(10)).await;
    }
}

#[expect(clippy::disallowed_methods, reason = "other processes are waited for")]
pub(crate) async fn pause(duration: Duration) {
    tokio::time::sleep(duration).await;
}
