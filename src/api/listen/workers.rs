//! The threads that serve connections, one runtime each: a call's tasks, timers and sockets stay on
//! one core.

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
    caps::Place,
    connection,
};

/// Connections a worker may be behind with; more are refused, it is not keeping up.
const WAITING: usize = 1_024;
/// Threads a worker may use for what blocks (reading files; argon2 has its own bound).
const BLOCKING: usize = 16;
/// What a handler left running in the background gets, once all calls are answered.
const LAST_ORDERS: Duration = Duration::from_millis(500);

/// The workers.
pub(super) struct Crew {
    workers: Vec<Worker>,
    next: usize,
}

struct Worker {
    inbox: mpsc::Sender<Accepted>,
    load: Arc<AtomicUsize>,
    finished: oneshot::Receiver<u64>,
}

impl Crew {
    /// Starts the threads.
    pub(super) fn start<A: App>(app: &A, options: &Options) -> io::Result<Self> {
        let start = |number| Worker::start(number, app.clone(), options.clone());
        let workers = (0..options.workers.max(1)).map(start).collect::<io::Result<_>>()?;
        Ok(Self { workers, next: 0 })
    }

    /// Gives a connection to the worker with the fewest, in turn where they are equal.
    pub(super) fn hand(
        &mut self,
        stream: TcpStream,
        address: IpAddr,
        place: Place,
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
            place,
            load: Load::on(&idlest.load),
            number: self.next as u32,
        };
        idlest.inbox.try_send(accepted).map_err(|_| "worker")
    }

    /// Tells the workers to drain and waits for them: how many connections had to be cut.
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
        let (inbox, accepted) = mpsc::channel(WAITING);
        let (done, finished) = oneshot::channel();
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING)
            .build()?;
        thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            let cut = runtime.block_on(work(accepted, app, options));
            runtime.shutdown_timeout(LAST_ORDERS);
            // Nobody waits any more if the server was dropped.
            let _ = done.send(cut);
        })?;
        Ok(Self { inbox, load: Arc::default(), finished })
    }
}

/// Serves what comes through the inbox until it closes, then drains.
async fn work<A: App>(mut inbox: mpsc::Receiver<Accepted>, app: A, options: Options) -> u64 {
    let options = Arc::new(options);
    let (stop, stopping) = watch::channel(false);
    let mut open = JoinSet::new();
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
