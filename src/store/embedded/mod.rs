//! Embedded store: SQLite in the data directory, with nothing else to install.
//!
//! One thread writes, a few read, and callers reach them through bounded queues. Files of a data
//! directory:
//!
//! | file | content |
//! |--|--|
//! | `jeton.db`, `-wal`, `-shm` | the database |
//! | `lock` | id of the process that holds the directory: see `files::directory` |
//! | `anchor` | last acknowledged audit record, and the file it belongs to: see `files::head_file` |
//! | `reserve` | disk space for revocations when the disk is full: see `files::disk_reserve` |

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

pub use self::{
    admin::{export::ReadOnly, stored::StoredChains},
    engine::error::OpenError,
    files::directory::check_directory,
    integrity::check::Checked,
};
use self::{
    audit::{keyed, trail},
    engine::{
        batch::{Batch, ClosureJob, EventText, Job, Priority},
        error::SqliteError,
        queue::{Queue, closed},
        readers::{self, Read},
        schema,
        writer::{self, WriterState, WriterThread},
    },
    files::{
        directory::Directory,
        disk_reserve::DiskReserve,
        head_file::{self, HeadFile},
    },
    integrity::check,
    tables::counters::Counters,
};
use crate::{
    crypto::chain::ChainKey,
    model::{Event, Record, Timestamp},
    store::{Result, Store, StoreError, StoreShape},
};

/// Capacity of the writer's queue; further callers wait until there is room.
const WRITE_QUEUE_MAX: usize = 4_096;

/// Capacity of the readers' queue.
const READ_QUEUE_MAX: usize = 1_024;

/// Store in one SQLite database. Dropping it without [`Store::close`] also finishes queued writes,
/// and blocks while it does.
pub struct Embedded {
    writer: Queue<Box<dyn Job>>,
    readers: Queue<Read>,
    /// Permit of the one long read that may run at a time.
    scans: Arc<Semaphore>,
    shared: Arc<SharedState>,
    tail: broadcast::WeakSender<Option<Arc<Record>>>,
    key: ChainKey,
    writer_state: watch::Receiver<WriterState>,
    thread: Mutex<Option<JoinHandle<()>>>,
    rollback: Option<String>,
}

/// Risks that an operator accepts when a data directory is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Accept {
    /// Accepts a database that is a copy, or older than the last acknowledged write: revocations
    /// made since are lost.
    pub rollback: bool,
    /// Accepts a directory that other users can write to: for a developer's machine.
    pub open_directory: bool,
}

/// State shared by the store's threads and its callers.
struct SharedState {
    persisted_time: AtomicI64,
    /// Latest time that any operation used; persisted on close.
    observed_time: AtomicI64,
    failed: AtomicBool,
    /// True if the last commit that appended a record failed for lack of disk space.
    full: AtomicBool,
    counters: Counters,
}

impl SharedState {
    fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    fn fail(&self) {
        self.failed.store(true, Ordering::SeqCst);
    }

    /// Records the latest time that any operation used.
    fn observe_time(&self, now: Timestamp) {
        self.observed_time.fetch_max(now.millis(), Ordering::SeqCst);
    }

    fn is_disk_full(&self) -> bool {
        self.full.load(Ordering::SeqCst)
    }

    /// Sets whether the disk is full, and logs a change.
    fn set_disk_full(&self, full: bool) {
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
    /// Returns false if it is certain that a directory holds no database.
    pub fn is_in(dir: &Path) -> bool {
        dir.join("jeton.db").try_exists().unwrap_or(true)
    }

    /// Opens a data directory, creates it if it is missing, and starts the threads. `node` is this
    /// node's name in the audit trail, `chain` the key that seals it.
    ///
    /// The content must continue from the last acknowledged write: a database without its end, its
    /// revocations or the end of its audit trail is refused, and so is a copy. Everything older is
    /// checked on demand, by [`Self::check`].
    pub fn open(dir: &Path, node: &str, chain: ChainKey) -> Result<Self, OpenError> {
        Self::open_accepting(dir, node, chain, Accept::default())
    }

    /// Opens a data directory as [`Self::open`] does, with the risks in `accept` accepted.
    pub fn open_accepting(
        dir: &Path,
        node: &str,
        chain: ChainKey,
        accept: Accept,
    ) -> Result<Self, OpenError> {
        let directory = Directory::take(dir, accept.open_directory)?;
        let dir = directory.path();
        let (connection, database) = schema::writer(dir)?;
        let (mut head_file, acked) = HeadFile::open(&directory, database, chain.clone())?;
        let (state, rollback) =
            check::verify_on_open(&connection, acked.as_ref(), node, &chain, accept.rollback)?;
        // The WAL of an earlier process is synced before anything is built on it: that process may
        // have met a disk error that this one cannot see.
        writer::checkpoint(&connection)?;
        if rollback.is_none() {
            head_file.begin(&directory, (state.sequence, state.hash), acked.is_some())?;
        }
        let counters = Counters::load(&connection)?;
        let gathered_keys = keyed::gathered(&connection, &state.chain)?;
        let shared = Arc::new(SharedState {
            persisted_time: AtomicI64::new(state.newest_time.millis()),
            observed_time: AtomicI64::new(state.newest_time.millis()),
            failed: AtomicBool::new(false),
            full: AtomicBool::new(false),
            counters,
        });
        let path = dir.to_owned();
        let (readers, reads) = Queue::new(READ_QUEUE_MAX);
        let reading = readers::start(dir, reads)?;
        // Created after every step that damage can make fail: a runtime must not be dropped by a
        // caller that runs in one.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(OpenError::io(dir))?;
        let (queue, writes) = Queue::new(WRITE_QUEUE_MAX);
        let (writer_state, state_receiver) = watch::channel(WriterState::Running);
        let tail = broadcast::Sender::new(trail::TAIL_LAG_MAX);
        let weak_tail = tail.downgrade();
        let writer = WriterThread {
            connection,
            node: node.into(),
            key: chain.clone(),
            state,
            shared: shared.clone(),
            followers: Vec::new(),
            tail,
            head_file,
            disk_reserve: DiskReserve::open(dir),
            flushed_at: Instant::now(),
            closing: false,
            readers: reading,
            writer_state,
            directory,
            chain_ids: Vec::new(),
            gathered_keys,
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
            writer_state: state_receiver,
            thread: Mutex::new(Some(thread)),
            rollback,
        })
    }

    /// Reason of the rollback that was accepted; `None` if there was nothing to accept. The caller
    /// records it with the first commit: until then the next start refuses the directory again.
    pub fn accepted_rollback(&self) -> Option<&str> {
        self.rollback.as_deref()
    }

    /// Treats a copied directory as the original: simulates a killed process in tests.
    #[doc(hidden)]
    pub fn adopt(dir: &Path, chain: ChainKey) -> Result<(), OpenError> {
        head_file::adopt(dir, chain)
    }

    /// Runs `work` on the writer's thread; returns when its batch is on disk.
    async fn write<T: Send + 'static>(
        &self,
        priority: Priority,
        work: impl FnMut(&mut Batch<'_>) -> Result<T, SqliteError> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.writer.send(Box::new(ClosureJob::new(priority, work, reply))).await?;
        answer.await.map_err(|_| closed())?
    }

    /// Limits the database to this number of pages of 4 KiB: simulates a full disk in tests.
    #[doc(hidden)]
    pub async fn bound_pages(&self, pages: u32) -> Result<()> {
        self.write(Priority::Normal, move |batch| {
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
        // A write that changes nothing still reaches the disk.
        self.write(Priority::Normal, |batch| batch.execute("UPDATE head SET id = id", []).map(drop))
            .await
    }

    async fn close(&self) -> Result<()> {
        self.readers.close();
        self.writer.close();
        let mut writer_state = self.writer_state.clone();
        let ended = writer_state
            .wait_for(|writer_state| matches!(writer_state, WriterState::Closed(_)))
            .await;
        match ended.as_deref() {
            Ok(WriterState::Closed(result)) => result.clone().map_err(Into::into),
            Ok(WriterState::Running) | Err(_) => {
                Err(StoreError::Unavailable("the writer thread stopped".into()))
            }
        }
    }

    fn newest_time(&self) -> Timestamp {
        Timestamp::from_millis(self.shared.persisted_time.load(Ordering::SeqCst))
    }

    async fn latest_time(&self) -> Result<Timestamp> {
        let observed = self.shared.observed_time.load(Ordering::SeqCst);
        Ok(self.newest_time().max(Timestamp::from_millis(observed)))
    }

    async fn reset_time(&self, to: Timestamp, event: Event) -> Result<()> {
        let entry = EventText::new(event)?;
        self.write(Priority::Normal, move |batch| {
            batch.append(&entry)?;
            batch.post_commit.state.newest_time = to;
            Ok(())
        })
        .await?;
        self.shared.observed_time.store(to.millis(), Ordering::SeqCst);
        Ok(())
    }

    async fn time(&self) -> Result<Option<Timestamp>> {
        Ok(None)
    }

    async fn shape(&self) -> Result<Option<StoreShape>> {
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
