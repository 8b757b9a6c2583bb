//! A member's disk is full (M11).

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    os::unix::fs::{MetadataExt, symlink},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
};

use super::{Stage, s};
use crate::{
    fleet::{nodes::Plan, traffic::Load},
    support::{replica::Options, seed::long},
};

/// A small disk in a mount namespace of its own, which ends with it: no test leaves a mount behind.
struct Disk {
    holder: Child,
    _stdin: ChildStdin,
    path: PathBuf,
}

impl Disk {
    /// `None` where this machine lets us mount nothing.
    fn new() -> Option<Self> {
        let root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
        let script = "mount -t tmpfs -o size=400m,mode=700 tmpfs /mnt && echo ready && exec cat";
        let mut command = Command::new("unshare");
        command.arg(if root { "-m" } else { "-rm" }).args(["sh", "-c", script]);
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
        let mut line = String::new();
        BufReader::new(holder.stdout.as_mut()?).read_line(&mut line).ok()?;
        let path = PathBuf::from(format!("/proc/{}/root/mnt", holder.id()));
        let stdin = holder.stdin.take()?;
        let disk = Self { holder, _stdin: stdin, path };
        (line == "ready\n").then_some(disk)
    }

    fn fill(&self) {
        let mut ballast =
            File::options().create(true).append(true).open(self.path.join("ballast")).unwrap();
        for size in [1 << 20, 4_096] {
            while ballast.write_all(&vec![0xff; size]).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(self.path.join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// M11: the primary's disk is full: mongod ends itself, and that is as M1, but for the time it
/// takes to: changes go on within 8 s. With room again it starts and has lost nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs mongod: see .ci/with-mongodb"]
async fn a_disk_that_is_full() {
    let Some(disk) = Disk::new() else {
        assert!(std::env::var_os("CI").is_none(), "CI must be able to mount a tmpfs");
        eprintln!("NOT RUN: no leave to mount a tmpfs, as root or in a user namespace");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    symlink(&disk.path, dir.path().join("member-0")).unwrap();
    let options = Options { dir: Some(dir.path().to_owned()), ..Options::default() };
    let mut stage = Stage::with(Plan::new("m11-full", 2), options, Load::default()).await;
    for _ in 0..if long() { 5 } else { 1 } {
        stage.work(500, 1_500).await;
        while stage.set.primary().await != 0 {
            let hand_over = async |stage: &mut Stage| {
                stage.set.step_down().await;
                stage.set.settled().await;
            };
            stage.fault("M11: on the way there", s(2), hand_over).await;
        }
        let fill = async |stage: &mut Stage| {
            disk.fill();
            stage.set.ends(0).await;
            stage.set.next_primary(0).await;
            stage.work(1_000, 2_000).await;
            disk.free();
            stage.set.restart(0).await;
            stage.set.settled().await;
        };
        stage.fault("M11: the primary's disk is full", s(2), fill).await;
    }
    let told = stage.close().await;
    told.goes_on_within(s(8), "M11");
}
