//! The disk is full.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use tonic::{Code, Status};

use crate::{
    crash::callers::{Admin, Caller},
    support::{
        process::{Home, PATIENCE, pause},
        seed::{Chance, long},
    },
};

/// A small disk in a mount namespace of its own, which ends with it: no test leaves a mount behind.
struct Disk {
    holder: Child,
    _stdin: ChildStdin,
    path: PathBuf,
    namespace: Vec<String>,
}

impl Disk {
    /// 8 MiB at the data directory of `home`; `None` where this machine lets us mount nothing.
    fn over(home: &Home) -> Option<Self> {
        let root = fs::metadata("/proc/self")
            .is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
        let script = r#"mount -t tmpfs -o size=8m,mode=700 tmpfs "$0" && echo ready && exec cat"#;
        let mut command = Command::new("unshare");
        command.arg(if root { "-m" } else { "-rm" }).args(["sh", "-c", script]).arg(home.data());
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
        let mut line = String::new();
        BufReader::new(holder.stdout.as_mut()?).read_line(&mut line).ok()?;
        let pid = holder.id().to_string();
        let mut namespace =
            vec!["nsenter".to_owned(), "-m".to_owned(), "-t".to_owned(), pid.clone()];
        if !root {
            namespace.extend(["-U".to_owned(), "--preserve-credentials".to_owned()]);
        }
        let path = PathBuf::from(format!("/proc/{pid}/root{}", home.data().display()));
        let stdin = holder.stdin.take()?;
        let disk = Self { holder, _stdin: stdin, path, namespace };
        (line == "ready\n").then_some(disk)
    }

    /// Fills it up but for so many bytes.
    fn fill(&self, leave: u64) {
        let mut ballast =
            File::options().create(true).append(true).open(self.path.join("ballast")).unwrap();
        for size in [65_536, 4_096] {
            while ballast.write_all(&vec![0xff; size]).is_ok() {}
        }
        let length = ballast.metadata().unwrap().len();
        ballast.set_len(length - leave).unwrap();
    }

    /// Gives so many bytes back.
    fn free(&self, bytes: u64) {
        let ballast = File::options().write(true).open(self.path.join("ballast")).unwrap();
        let length = ballast.metadata().unwrap().len();
        ballast.set_len(length - bytes).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn is_refusal(status: &Status) -> bool {
    matches!(status.code(), Code::ResourceExhausted | Code::Unavailable)
}

/// Takes tokens until there is no room for another: those it got, and how it was refused.
async fn exhaust(caller: &mut Caller) -> (Vec<String>, Status) {
    let mut tokens = Vec::new();
    loop {
        match caller.token(&[]).await {
            Ok(issued) => tokens.push(issued.access_token),
            Err(status) => return (tokens, status),
        }
        assert!(tokens.len() < 20_000, "the disk is never full");
    }
}

/// Registers clients, a write of another size, until there is no room for another.
async fn refuses_to_register(admin: &Admin) -> Status {
    for _ in 0..5_000 {
        if let Err(status) = admin.register().await {
            return status;
        }
    }
    panic!("the disk is never full")
}

/// E4: on a full disk issuing is refused with a status that says so, judging goes on, and ending
/// tokens still works, in the room kept for that. Once there is room again issuing works without a
/// restart. Nothing of it is lost to kill -9.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_does_not_keep_stolen_tokens_alive() {
    let mut chance = Chance::new();
    let home = Home::patient();
    let Some(disk) = Disk::over(&home) else {
        assert!(std::env::var_os("CI").is_none(), "CI must be able to mount a tmpfs");
        eprintln!("NOT RUN: no leave to mount a tmpfs, as root or in a user namespace");
        return;
    };
    let namespace: Vec<&str> = disk.namespace.iter().map(String::as_str).collect();
    let home = home.by_way_of(&namespace);
    let mut server = home.start();
    let mut admin = Admin::new(server.secret.as_deref().unwrap(), server.connect().await).await;
    let mut caller = admin.registered().await;
    let mut kept = Vec::new();
    let mut ended = Vec::new();
    let rounds = if long() { 20 } else { 3 };
    for round in 0..rounds {
        let early = caller.token(&[]).await.unwrap();
        let family = caller.token(&[]).await.unwrap();
        let known = admin.verify(None).await;
        disk.fill(chance.within(0..17) * 4_096);
        let (tokens, status) = exhaust(&mut caller).await;
        assert!(is_refusal(&status), "round {round}: {status:?}");
        let refusal = refuses_to_register(&admin).await;
        assert!(is_refusal(&refusal), "round {round}: {refusal:?}");

        // It still judges.
        kept.extend(tokens);
        assert!(admin.caller.active(&kept).await.iter().all(|&active| active), "round {round}");
        assert!(caller.introspect(&early.access_token).await.unwrap_or(true), "round {round}");
        // It still ends tokens, one and a family, and refreshes or says why not.
        caller
            .revoke(&early.access_token)
            .await
            .unwrap_or_else(|status| panic!("round {round}: {status:?} {}", home.log()));
        caller
            .revoke(&family.refresh_token)
            .await
            .unwrap_or_else(|status| panic!("round {round}: {status:?} {}", home.log()));
        ended.extend([early.access_token, family.access_token]);
        assert!(!admin.caller.active(&ended).await.contains(&true), "round {round}");
        // Nor does ending tokens open the door again for others.
        assert!(exhaust(&mut caller).await.0.len() < 5_000, "round {round}");

        // A crash of a full disk.
        if round % 3 == 1 {
            server.kill();
            server = home.start();
            let channel = server.connect().await;
            (admin, caller) = (admin.over(channel.clone()), caller.over(channel));
            assert!(
                !admin.caller.active(&ended).await.contains(&true),
                "round {round}: a revocation was lost"
            );
        }
        disk.free(1 << 20);
        recovers(&mut caller).await;
        assert!(admin.caller.active(&kept).await.iter().all(|&active| active), "round {round}");
        assert!(!admin.caller.active(&ended).await.contains(&true), "round {round}");
        admin.verify(Some(&known)).await;
        disk.free(fs::metadata(disk.path.join("ballast")).unwrap().len());
        // The reserve is taken again once there is room for it.
        pause(Duration::from_millis(1_100)).await;
        caller.token(&[]).await.unwrap();
    }
    server.kill();
    let server = home.start();
    let mut admin = admin.over(server.connect().await);
    assert!(admin.caller.active(&kept).await.iter().all(|&active| active));
    assert!(!admin.caller.active(&ended).await.contains(&true));
    admin.verify(None).await;
}

/// Without a restart.
async fn recovers(caller: &mut Caller) {
    let attempts = async {
        while let Err(status) = caller.token(&[]).await {
            assert!(is_refusal(&status), "{status:?}");
            pause(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, attempts)
        .await
        .expect("there is room again and nothing is issued");
}
