//! Worker threads, one runtime each: a call's tasks, timers and sockets stay on one core.

use std::{
    io,
    net::{IpAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use tokio::{
    runtime,
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

use super::{
    App, Options,
    accepted::{Accepted, Load},
    connection,
    connection_limits::ConnectionPermit,
};

/// Connections that may wait for a worker; more are refused, since it is not keeping up.
const INBOX_MAX: usize = 1_024;
/// Threads of a worker for blocking work (reading files; argon2 has its own limit).
const BLOCKING_THREADS: usize = 16;
/// Time for background work of handlers, once all calls have ended.
const RUNTIME_SHUTDOWN: Duration = Duration::from_millis(500);

/// Worker threads.
pub(super) struct WorkerPool {
    workers: Vec<Worker>,
    next: usize,
}

struct Worker {
    inbox: mpsc::Sender<Accepted>,
    load: Arc<AtomicUsize>,
    finished: oneshot::Receiver<u64>,
}

impl WorkerPool {
    /// Starts the threads.
    pub(super) fn start<A: App>(app: &A, options: &Options) -> io::Result<Self> {
        let start = |number| Worker::start(number, app.clone(), options.clone());
        let workers = (0..options.workers.max(1)).map(start).collect::<io::Result<_>>()?;
        Ok(Self { workers, next: 0 })
    }

    /// Assigns a connection to the worker with the fewest, in turn if several have as few.
    pub(super) fn hand(
        &mut self,
        stream: TcpStream,
        address: IpAddr,
        permit: ConnectionPermit,
    ) -> Result<(), &'static str> {
        self.next = self.next.wrapping_add(1);
        let (later, sooner) = self.workers.split_at(self.next % self.workers.len().max(1));
        let idlest = sooner
            .iter()
            .chain(later)
            .min_by_key(|worker| worker.load.load(Relaxed))
            .ok_or("no worker")?;
        let accepted = Accepted {
            stream,
            address,
            permit,
            load: Load::on(&idlest.load),
            number: self.next as u32,
        };
        idlest.inbox.try_send(accepted).map_err(|_| "worker")
    }

    /// Makes the workers drain and waits for them; returns the number of connections that were cut.
    pub(super) async fn finish(self) -> u64 {
        // Every inbox must close before the first worker is waited for: they drain together.
        let finished: Vec<_> = self.workers.into_iter().map(|worker| worker.finished).collect();
        let mut cut = 0;
        for worker in finished {
            cut += worker.await.unwrap_or(0);
        }
        cut
    }
}

impl Worker {
    fn start<A: App>(number: usize, app: A, options: Options) -> io::Result<Self> {
        let (inbox, accepted) = mpsc::channel(INBOX_MAX);
        let (done, finished) = oneshot::channel();
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS)
            .build()?;
        thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            let cut = runtime.block_on(work(accepted, app, options));
            runtime.shutdown_timeout(RUNTIME_SHUTDOWN);
            // There is no receiver if the server was dropped.
            let _ = done.send(cut);
        })?;
        Ok(Self { inbox, load: Arc::default(), finished })
    }
}

/// Serves connections from the inbox until it closes, then drains.
async fn work<A: App>(mut inbox: mpsc::Receiver<Accepted>, app: A, options: Options) -> u64 {
    let options = Arc::new(options);
    let (stop, stopping) = watch::channel(false);
    let mut open = JoinSet::new();
    tokio::spawn(options.heartbeats.register().keep_beating());
    loop {
        tokio::select! {
            accepted = inbox.recv() => match accepted {
                Some(accepted) => drop(open.spawn(connection::run(accepted, app.clone(), Arc::clone(&options), stopping.clone()))),
                None => break,
            },
            Some(_) = open.join_next() => {}
        }
    }
    stop.send_replace(true);
    let drained = async { while open.join_next().await.is_some() {} };
    if tokio::time::timeout(options.drain, drained).await.is_ok() {
        return 0;
    }
    let cut = open.len() as u64;
    tracing::warn!(connections = cut, "drain timed out, closed connections with calls in flight");
    open.shutdown().await;
    cut
}
