//! The store that needs nothing installed: SQLite in the data directory.
//!
//! One thread writes, a few read, and callers reach them by bounded queues. The files of a data
//! directory:
//!
//! | file | what |
//! |--|--|
//! | `jeton.db`, `-wal`, `-shm` | the database |
//! | `lock` | the id of the process that holds the directory: see `files::directory` |
//! | `anchor` | the last acknowledged audit record, and of which file: see `files::head_file` |
//! | `reserve` | room for revocations when the disk is full: see `files::disk_reserve` |

mod admin;
mod audit;
mod engine;
mod files;
mod integrity;
mod tables;

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    thread::JoinHandle,
};

use async_trait::async_trait;
use tokio::{
    sync::{Semaphore, broadcast, oneshot, watch},
    time::Instant,
};

pub use self::{admin::export::ReadOnly, engine::error::OpenError, integrity::check::Checked};
use self::{
    audit::own_chain,
    engine::{
        batch::{Batch, Job, Urgency, Work},
        error::Fault,
        queue::{Queue, closed},
        readers::{self, Read},
        schema,
        writer::{self, Fate, Writer},
    },
    files::{
        directory::Directory,
        disk_reserve::Reserve,
        head_file::{self, Anchor},
    },
    integrity::check,
    tables::counters::Counters,
};
use crate::{
    crypto::chain::ChainKey,
    model::{Record, Timestamp},
    store::{Result, Store, StoreError},
};

/// Verbs on their way to the writer; more wait in their callers.
const WRITES: usize = 4_096;

/// Reads on their way to the readers.
const READS: usize = 1_024;

/// The embedded store. Dropping it without [`Store::close`] also finishes what is waiting, and
/// blocks while it does.
pub struct Embedded {
    writer: Queue<Box<dyn Job>>,
    readers: Queue<Read>,
    /// One long read at a time.
    scans: Arc<Semaphore>,
    shared: Arc<Shared>,
    tail: broadcast::WeakSender<Option<Arc<Record>>>,
    key: ChainKey,
    fate: watch::Receiver<Fate>,
    thread: Mutex<Option<JoinHandle<()>>>,
    rollback: Option<String>,
}

/// What an operator takes upon itself when a data directory is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Accept {
    /// The database may be a copy, or older than what was acknowledged: what was revoked since is
    /// valid again.
    pub rollback: bool,
    /// Others may be able to write to the directory: a developer's machine.
    pub open_directory: bool,
}

/// What the store's threads and its callers both see.
struct Shared {
    newest: AtomicI64,
    /// The newest time that any verb brought along; kept on closing.
    brought: AtomicI64,
    failed: AtomicBool,
    /// Whether the last commit that mattered found no room.
    full: AtomicBool,
    counters: Counters,
}

impl Shared {
    fn failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    fn fail(&self) {
        self.failed.store(true, Ordering::SeqCst);
    }

    /// A verb acts on this time.
    fn brings(&self, now: Timestamp) {
        self.brought.fetch_max(now.millis(), Ordering::SeqCst);
    }

    fn full(&self) -> bool {
        self.full.load(Ordering::SeqCst)
    }

    /// Says so when it changes.
    fn is_full(&self, full: bool) {
        if self.full.swap(full, Ordering::SeqCst) == full {
            return;
        }
        if full {
            tracing::error!("disk is full, writing only revocations");
        } else {
            tracing::info!("disk has space again");
        }
    }
}

impl Embedded {
    /// Opens a data directory, makes it if it is not there, and starts the threads. `node` is this
    /// node's name in the audit trail, `chain` the key that seals it.
    ///
    /// What is found must carry on from what was last acknowledged: a database that lost its end,
    /// its revocations or the end of its audit trail is refused, and so is a copy. Everything older
    /// is [`Self::check`]ed on demand.
    pub fn open(dir: &Path, node: &str, chain: ChainKey) -> Result<Self, OpenError> {
        Self::open_accepting(dir, node, chain, Accept::default())
    }

    /// Opens a data directory as [`Self::open`] does, and lets pass what is accepted.
    pub fn open_accepting(
        dir: &Path,
        node: &str,
        chain: ChainKey,
        accept: Accept,
    ) -> Result<Self, OpenError> {
        let directory = Directory::take(dir, accept.open_directory)?;
        let dir = directory.path();
        let (connection, database) = schema::writer(dir)?;
        let (mut anchor, note) = Anchor::find(&directory, database, chain.clone())?;
        let (state, rollback) =
            check::opening(&connection, note.as_ref(), node, &chain, accept.rollback)?;
        // Whatever an earlier process left in the WAL is synced before anything is built upon it:
        // it may have met an error of the disk that this process cannot see.
        writer::checkpoint(&connection)?;
        if rollback.is_none() {
            anchor.begin(&directory, (state.sequence, state.hash), note.is_some())?;
        }
        let counters = Counters::load(&connection)?;
        let shared = Arc::new(Shared {
            newest: AtomicI64::new(state.newest.millis()),
            brought: AtomicI64::new(state.newest.millis()),
            failed: AtomicBool::new(false),
            full: AtomicBool::new(false),
            counters,
        });
        let path = dir.to_owned();
        let name = own_chain::name(&connection)?.unwrap_or_else(|| node.into());
        let (readers, reads) = Queue::new(READS);
        let reading = readers::start(dir, reads)?;
        // Behind all that damage can make fail: a runtime must not be dropped by a caller that runs
        // in one.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(OpenError::io(dir))?;
        let (queue, writes) = Queue::new(WRITES);
        let (fate, ended) = watch::channel(Fate::Runs);
        let tail = broadcast::Sender::new(own_chain::LAG);
        let weak_tail = tail.downgrade();
        let writer = Writer {
            chain: name,
            connection,
            node: node.into(),
            key: chain.clone(),
            state,
            shared: shared.clone(),
            followers: Vec::new(),
            tail,
            anchor,
            reserve: Reserve::of(dir),
            flushed_at: Instant::now(),
            closing: false,
            readers: reading,
            fate,
            directory,
        };
        let thread = std::thread::Builder::new().name("store-writer".into());
        let thread =
            thread.spawn(move || writer.serve(&runtime, writes)).map_err(OpenError::io(path))?;
        Ok(Self {
            writer: queue,
            readers,
            scans: Arc::new(Semaphore::new(1)),
            shared,
            tail: weak_tail,
            key: chain,
            fate: ended,
            thread: Mutex::new(Some(thread)),
            rollback,
        })
    }

    /// Why the rollback that was accepted had to be; `None` where there was nothing to accept. The
    /// caller records it, with the first commit: until then the next start refuses the directory
    /// again.
    pub fn accepted_rollback(&self) -> Option<&str> {
        self.rollback.as_deref()
    }

    /// Takes a copied directory for the one it was copied from: stands in for a process that was
    /// killed, in tests.
    #[doc(hidden)]
    pub fn adopt(dir: &Path, chain: ChainKey) -> Result<(), OpenError> {
        head_file::adopt(dir, chain)
    }

    /// Writes on the writer's thread; answers when the batch it went into is on disk.
    async fn write<T: Send + 'static>(
        &self,
        urgency: Urgency,
        work: impl FnMut(&mut Batch<'_>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.writer.send(Box::new(Work::new(urgency, work, reply))).await?;
        answer.await.map_err(|_| closed())?
    }

    /// Bounds the database to so many pages of 4 KiB: stands in for a full disk in tests.
    #[doc(hidden)]
    pub async fn bound_pages(&self, pages: u32) -> Result<()> {
        self.write(Urgency::Normal, move |batch| {
            Ok(batch.connection.query_row(
                &format!("PRAGMA max_page_count = {pages}"),
                [],
                |_| Ok(()),
            )?)
        })
        .await
    }
}

#[async_trait]
impl Store for Embedded {
    async fn ready(&self) -> Result<()> {
        // A write that changes nothing still goes to the disk and back.
        self.write(Urgency::Normal, |batch| batch.execute("UPDATE head SET id = id", []).map(drop))
            .await
    }

    async fn close(&self) -> Result<()> {
        self.readers.close();
        self.writer.close();
        let mut fate = self.fate.clone();
        let ended = fate.wait_for(|fate| matches!(fate, Fate::Ended(_))).await;
        match ended.as_deref() {
            Ok(Fate::Ended(result)) => result.clone().map_err(Into::into),
            Ok(Fate::Runs) | Err(_) => {
                Err(StoreError::Unavailable("the writer thread stopped".into()))
            }
        }
    }

    fn newest(&self) -> Timestamp {
        Timestamp::from_millis(self.shared.newest.load(Ordering::SeqCst))
    }

    async fn time(&self) -> Result<Option<Timestamp>> {
        Ok(None)
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.readers.close();
        self.writer.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A writer that panicked has nothing left to finish.
            let _ = thread.join();
        }
    }
}
