//! A server in a process of its own, whose memory and descriptors are nobody else's.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Child as Process, Command, Stdio},
    time::Duration,
};

use jeton::api::listen::raise_limit;

use crate::transport::support::{Server, options};

const IS_CHILD: &str = "JETON_TEST_TRANSPORT_CHILD";
/// Set for a server that keeps within its descriptors.
const FITS: &str = "JETON_TEST_TRANSPORT_FITS";
const READY: &str = "listening on ";

/// Serves until its input ends. It is started by the other tests, and does nothing when run among
/// them.
#[tokio::test]
#[ignore = "started by other tests as a process of its own"]
async fn serves_until_its_input_ends() {
    if std::env::var(IS_CHILD).is_err() {
        return;
    }
    let mut options = options();
    if std::env::var(FITS).is_ok() {
        options = options.within(raise_limit());
    }
    let server = Server::with(options, Duration::from_secs(60)).await;
    println!("\n{READY}{}", server.address);
    let input = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    input.await.unwrap().unwrap();
    server.stop().await;
}

/// The process; it ends when this is dropped.
pub(crate) struct Child {
    pub(crate) address: SocketAddr,
    process: Process,
}

impl Child {
    /// With at most so many descriptors, if any number is given.
    pub(crate) fn start(descriptors: Option<u32>) -> Self {
        let limit = descriptors.map_or(String::new(), |most| format!("ulimit -n {most};"));
        Self::run(&mut Command::new("sh"), &limit)
    }

    /// That raises its limit on descriptors to `hard`, and keeps within it.
    pub(crate) fn within(soft: u32, hard: u32) -> Self {
        let limit = format!("ulimit -Sn {soft}; ulimit -Hn {hard};");
        Self::run(Command::new("sh").env(FITS, "1"), &limit)
    }

    fn run(shell: &mut Command, limit: &str) -> Self {
        let mut process = shell
            .args(["-c", &format!("{limit} exec \"$0\" \"$@\"")])
            .arg(std::env::current_exe().unwrap())
            .args([
                "transport::child::serves_until_its_input_ends",
                "--exact",
                "--ignored",
                "--nocapture",
            ])
            .env(IS_CHILD, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let mut lines = output.lines().map(Result::unwrap);
        let address = lines
            .find_map(|line| line.strip_prefix(READY)?.parse().ok())
            .expect("the child said where it listens");
        // Its output stays open, so that it can go on printing.
        std::thread::spawn(move || lines.for_each(drop));
        Self { address, process }
    }

    /// Resident memory, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let pages = fs::read_to_string(format!("/proc/{}/statm", self.process.id())).unwrap();
        pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4_096
    }

    /// Processor time used so far, in clock ticks (100 a second).
    pub(crate) fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        // After the name, which is in brackets: state is field 3, utime and stime are 14 and 15.
        let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
