//! Proxy before a member: passes bytes on, or holds them
//! while the way is cut.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::AbortHandle,
};

/// A way that is cut. As on a network that loses every packet: connections stay, new ones hang,
/// nothing arrives; what was sent meanwhile arrives when the way is healed, unless somebody gave
/// up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Between this member and everybody who is no member.
    Clients(usize),
    /// Between this member and this process.
    Process { pid: u32, member: usize },
    /// Between this member and the others.
    Members(usize),
    /// From the other members to this one.
    Incoming(usize),
    /// From this member to the others.
    Outgoing(usize),
}

/// The process that opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Member(usize),
    Process(u32),
}

/// The direction of bytes on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Toward {
    Member,
    Source,
}

impl Cut {
    /// True if bytes on a connection from `source` to member `target` are held.
    pub(crate) fn holds(self, source: Source, target: usize, toward: Toward) -> bool {
        let (to, from) = match (source, self) {
            (Source::Process(_), Self::Clients(member)) => return member == target,
            (Source::Process(of), Self::Process { pid, member }) => {
                return member == target && of == pid;
            }
            // A member's way to itself is never cut: it would not find itself in the configuration.
            (Source::Member(from), _) if from == target => return false,
            (Source::Member(from), _) if toward == Toward::Member => (target, from),
            (Source::Member(from), _) => (from, target),
            (Source::Process(_), _) => return false,
        };
        match self {
            Self::Members(member) => member == to || member == from,
            Self::Incoming(member) => member == to,
            Self::Outgoing(member) => member == from,
            Self::Clients(_) | Self::Process { .. } => false,
        }
    }

    fn touches(self, source: Source, target: usize) -> bool {
        self.holds(source, target, Toward::Member) || self.holds(source, target, Toward::Source)
    }
}

/// All proxies of a set, and what they know in common.
pub(crate) struct Network {
    cuts: watch::Sender<Vec<Cut>>,
    /// The members' processes; 0 while there is none.
    pids: Vec<AtomicU32>,
    /// Processes that have come through a door: most likely it is one of them again.
    seen: Mutex<BTreeSet<u32>>,
    standing: Mutex<HashMap<u64, (Source, usize, AbortHandle)>>,
    next: AtomicU64,
}

impl Network {
    pub(crate) fn new(members: usize) -> Arc<Self> {
        Arc::new(Self {
            cuts: watch::Sender::new(Vec::new()),
            pids: (0..members).map(|_| AtomicU32::new(0)).collect(),
            seen: Mutex::default(),
            standing: Mutex::default(),
            next: AtomicU64::new(0),
        })
    }

    /// From now on this process is that member.
    pub(crate) fn introduce(&self, member: usize, pid: u32) {
        self.pids[member].store(pid, Ordering::SeqCst);
    }

    pub(crate) fn cut(&self, cut: Cut) {
        self.cuts.send_modify(|cuts| cuts.push(cut));
    }

    pub(crate) fn heal(&self) {
        self.cuts.send_modify(Vec::clear);
    }

    /// Ends the connections that go this way; new ones are lawful.
    pub(crate) fn reset(&self, cut: Cut) {
        for (source, target, task) in self.standing.lock().unwrap().values() {
            if cut.touches(*source, *target) {
                task.abort();
            }
        }
    }

    /// Number of connections on this way.
    pub(crate) fn connections(&self, cut: Cut) -> usize {
        self.standing
            .lock()
            .unwrap()
            .values()
            .filter(|(source, target, _)| cut.touches(*source, *target))
            .count()
    }

    /// Opens the door of this member; the port it is at stands in `port`. Returns the door's. Call
    /// it inside the runtime that is to carry the connections.
    pub(crate) async fn open(self: &Arc<Self>, member: usize, port: Arc<AtomicU16>) -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let door = listener.local_addr().unwrap().port();
        let network = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                network.accept(stream, peer, member, &port);
            }
        });
        door
    }

    fn accept(
        self: &Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        target: usize,
        port: &AtomicU16,
    ) {
        // Nobody's: it was closed again already.
        let Some(source) = self.source(peer, stream.local_addr().unwrap()) else { return };
        let port = port.load(Ordering::SeqCst);
        let id = self.next.fetch_add(1, Ordering::SeqCst);
        let network = self.clone();
        let mut standing = self.standing.lock().unwrap();
        let task = tokio::spawn(async move {
            // Removed however it ends, also by `reset`.
            let _removed = Removed { network: network.clone(), id };
            carry(stream, port, source, target, network.cuts.subscribe()).await;
        });
        standing.insert(id, (source, target, task.abort_handle()));
    }

    /// The process that has the other end: asked of the kernel, since TLS hides what a first message
    /// would say.
    fn source(&self, peer: SocketAddr, local: SocketAddr) -> Option<Source> {
        let inode = inode(peer, local)?;
        let members: Vec<u32> = self.pids.iter().map(|pid| pid.load(Ordering::SeqCst)).collect();
        let seen: Vec<u32> = self.seen.lock().unwrap().iter().copied().collect();
        let processes = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let likely = seen
            .into_iter()
            .chain(members.iter().copied().filter(|pid| *pid != 0))
            .chain([std::process::id()]);
        let pid = likely.chain(processes).find(|&pid| owns(pid, &inode))?;
        if let Some(member) = members.iter().position(|member| *member == pid) {
            return Some(Source::Member(member));
        }
        self.seen.lock().unwrap().insert(pid);
        Some(Source::Process(pid))
    }
}

/// The connection as /proc/net/tcp has it, seen from the peer; its inode.
fn inode(peer: SocketAddr, local: SocketAddr) -> Option<String> {
    let hex = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => {
            format!("{:08X}:{:04X}", u32::from_le_bytes(v4.ip().octets()), v4.port())
        }
        SocketAddr::V6(_) => unreachable!("the doors are at 127.0.0.1"),
    };
    let (peer, local) = (hex(peer), hex(local));
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(1) == Some(&peer.as_str()) && fields.get(2) == Some(&local.as_str()))
            .then(|| fields[9].to_owned())
    })
}

fn owns(pid: u32, inode: &str) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    let socket = format!("socket:[{inode}]");
    files
        .filter_map(|file| fs::read_link(file.ok()?.path()).ok())
        .any(|target| target.as_os_str() == socket.as_str())
}

struct Removed {
    network: Arc<Network>,
    id: u64,
}

impl Drop for Removed {
    fn drop(&mut self) {
        self.network.standing.lock().unwrap().remove(&self.id);
    }
}

async fn carry(
    stream: TcpStream,
    port: u16,
    source: Source,
    target: usize,
    mut cuts: watch::Receiver<Vec<Cut>>,
) {
    let whole =
        cuts.wait_for(|cuts| !cuts.iter().any(|cut| cut.touches(source, target))).await.is_ok();
    let Some(member) =
        (if whole { TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok() } else { None })
    else {
        // As near as one comes to a refused connection once it was accepted.
        let _ = stream.set_zero_linger();
        return;
    };
    let _ = (stream.set_nodelay(true), member.set_nodelay(true));
    let ((from_source, to_source), (from_member, to_member)) =
        (stream.into_split(), member.into_split());
    let held =
        |toward| move |cuts: &Vec<Cut>| cuts.iter().any(|cut| cut.holds(source, target, toward));
    tokio::join!(
        pump(from_source, to_member, cuts.clone(), held(Toward::Member)),
        pump(from_member, to_source, cuts, held(Toward::Source)),
    );
}

/// Passes bytes on until the end, which is passed on too. Nothing passes while it is held: what was
/// read by then waits here.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut cuts: watch::Receiver<Vec<Cut>>,
    held: impl Fn(&Vec<Cut>) -> bool,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        let passes = cuts.wait_for(|cuts| !held(cuts)).await.is_ok();
        if !passes || read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}
