//! Writer thread. It takes all queued jobs into one transaction, so that many verbs share one sync
//! of the disk, and replies after the commit has returned, never before.

use std::{mem, sync::Arc, thread::JoinHandle, time::Duration};

use rusqlite::Connection;
use tokio::{
    sync::{broadcast, mpsc, watch},
    time::{Instant, timeout},
};

use super::{
    batch::{Batch, HeadRow, Job, PostCommit, Priority, to_sql},
    error::{ErrorKind, SqliteError},
};
use crate::{
    crypto::chain::ChainKey,
    model::{Record, Timestamp},
    store::{
        Follower,
        embedded::{
            SharedState,
            audit::{index::KeyRow, names},
            files::{directory::Directory, disk_reserve::DiskReserve, head_file::HeadFile},
        },
    },
};

/// Most jobs in one commit.
const BATCH_MAX: usize = 1_024;

/// Time for which jobs without a waiting caller are gathered; well under the promised 50 ms.
const GATHER_TIME: Duration = Duration::from_millis(20);

/// Interval at which counters are written; well under the promised second.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);

/// State of the writer thread.
#[derive(Clone, Debug)]
pub(crate) enum WriterState {
    /// Accepts jobs.
    Running,
    /// Ended: every queued job was written or answered.
    Closed(Result<(), SqliteError>),
}

/// The writer thread's data.
pub(crate) struct WriterThread {
    pub(crate) connection: Connection,
    pub(crate) node: Arc<str>,
    pub(crate) key: ChainKey,
    pub(crate) state: HeadRow,
    pub(crate) shared: Arc<SharedState>,
    pub(crate) followers: Vec<Arc<dyn Follower>>,
    pub(crate) tail: broadcast::Sender<Option<Arc<Record>>>,
    pub(crate) head_file: HeadFile,
    pub(crate) disk_reserve: DiskReserve,
    pub(crate) flushed_at: Instant,
    /// True while the last batch is written.
    pub(crate) closing: bool,
    pub(crate) readers: Vec<JoinHandle<()>>,
    pub(crate) writer_state: watch::Sender<WriterState>,
    pub(crate) directory: Directory,
    /// Ids of some chains.
    pub(crate) chain_ids: Vec<(Arc<str>, i64)>,
    /// Keys of committed records that are not written yet.
    pub(crate) gathered_keys: Vec<KeyRow>,
}

impl WriterThread {
    /// Runs until the queue is closed and empty. The runtime belongs to this thread and only drives
    /// its timeouts.
    pub(crate) fn serve(
        mut self,
        runtime: &tokio::runtime::Runtime,
        mut queue: mpsc::Receiver<Box<dyn Job>>,
    ) {
        let mut waiting = Vec::with_capacity(BATCH_MAX);
        while runtime.block_on(self.gather(&mut queue, &mut waiting)) {
            if !waiting.is_empty() || self.flush_is_due() {
                self.commit(mem::replace(&mut waiting, Vec::with_capacity(BATCH_MAX)));
            }
        }
        self.end();
    }

    /// Waits for jobs; returns false when the queue is closed and empty.
    async fn gather(
        &self,
        queue: &mut mpsc::Receiver<Box<dyn Job>>,
        waiting: &mut Vec<Box<dyn Job>>,
    ) -> bool {
        let first = if self.shared.counters.has_unwritten() {
            let due = FLUSH_INTERVAL.saturating_sub(self.flushed_at.elapsed());
            timeout(due, queue.recv_many(waiting, BATCH_MAX)).await
        } else {
            Ok(queue.recv_many(waiting, BATCH_MAX).await)
        };
        if matches!(first, Ok(0)) {
            return false;
        }
        let since = Instant::now();
        while !waiting.is_empty()
            && waiting.len() < BATCH_MAX
            && waiting.iter().all(|job| job.priority() == Priority::Background)
        {
            let left = GATHER_TIME.saturating_sub(since.elapsed());
            let room = BATCH_MAX.saturating_sub(waiting.len());
            // Timeout or closed queue: the jobs at hand are written first.
            if !matches!(timeout(left, queue.recv_many(waiting, room)).await, Ok(1..)) {
                break;
            }
        }
        true
    }

    fn flush_is_due(&self) -> bool {
        self.shared.counters.has_unwritten()
            && (self.closing || self.flushed_at.elapsed() >= FLUSH_INTERVAL)
    }

    fn commit(&mut self, mut jobs: Vec<Box<dyn Job>>) {
        if self.shared.has_failed() {
            return reply_all(jobs, &Err(SqliteError::Failed));
        }
        let before = self.state.sequence;
        let Err(fault) = self.attempt(&mut jobs, false) else {
            // A write without a record may fit where a record does not.
            if self.state.sequence != before {
                self.shared.set_disk_full(false);
            }
            return reply_all(jobs, &Ok(()));
        };
        match fault.kind() {
            Some(ErrorKind::Full) => self.commit_revocations_only(jobs, &fault),
            Some(ErrorKind::Broken) => {
                self.fail(&fault);
                reply_all(jobs, &Err(fault));
            }
            // One verb may have met a damaged page or a foreign lock: the others are retried one by
            // one.
            Some(ErrorKind::Corrupt | ErrorKind::Other) | None if jobs.len() > 1 => {
                jobs.into_iter().for_each(|job| self.commit(vec![job]));
            }
            Some(ErrorKind::Corrupt | ErrorKind::Other) | None => {
                tracing::error!(%fault, "cannot write to the store");
                reply_all(jobs, &Err(fault));
            }
        }
    }

    /// Retries the jobs that revoke tokens with the disk reserve, and refuses the rest: the disk is
    /// full.
    fn commit_revocations_only(&mut self, jobs: Vec<Box<dyn Job>>, fault: &SqliteError) {
        self.shared.set_disk_full(true);
        let (mut revocations, rest): (Vec<_>, Vec<_>) =
            jobs.into_iter().partition(|job| job.priority() == Priority::Revocation);
        reply_all(rest, &Err(fault.clone()));
        if revocations.is_empty() {
            return;
        }
        // First without the reserve: most refreshes turn out not to revoke anything, and then none
        // is left that needs room.
        let mut outcome = self.attempt(&mut revocations, true);
        if matches!(&outcome, Err(fault) if fault.kind() == Some(ErrorKind::Full))
            && self.disk_reserve.release()
        {
            outcome = self.attempt(&mut revocations, true);
            // At once, before other processes use the space.
            self.disk_reserve.top_up();
        }
        if let Err(fault) = &outcome
            && fault.kind() == Some(ErrorKind::Broken)
        {
            self.fail(fault);
        }
        reply_all(revocations, &outcome);
    }

    /// Runs one transaction and everything that follows its commit except the replies.
    fn attempt(
        &mut self,
        jobs: &mut [Box<dyn Job>],
        reserve_only: bool,
    ) -> Result<(), SqliteError> {
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let counters = if self.flush_is_due() {
            self.shared.counters.write(&self.connection)
        } else {
            Ok(Vec::new())
        };
        let flushed = counters.as_ref().is_ok_and(|counters| !counters.is_empty());
        let outcome = counters.and_then(|counters| {
            let filled = self.fill(jobs, reserve_only);
            filled.inspect_err(|_| self.shared.counters.mark_unwritten(counters))
        });
        match outcome {
            Ok(post_commit) => {
                if flushed {
                    self.flushed_at = Instant::now();
                }
                self.publish(post_commit);
                self.disk_reserve.restore();
                Ok(())
            }
            Err(fault) => {
                // SQLite may have rolled back already; if it cannot, nothing can be relied on.
                if !self.connection.is_autocommit()
                    && let Err(error) = self.connection.execute_batch("ROLLBACK")
                {
                    self.fail(&error.into());
                }
                Err(fault)
            }
        }
    }

    fn fill(
        &self,
        jobs: &mut [Box<dyn Job>],
        reserve_only: bool,
    ) -> Result<PostCommit, SqliteError> {
        let mut state = self.state.clone();
        if self.closing {
            // A time that was acted on without a write must not be followed by an earlier one after
            // a restart.
            let observed_time = self.shared.observed_time.load(std::sync::atomic::Ordering::SeqCst);
            state.newest_time = state.newest_time.max(Timestamp::from_millis(observed_time));
        }
        let post_commit = PostCommit {
            state,
            changes: Vec::new(),
            records: Vec::new(),
            followers: Vec::new(),
            chain_ids: self.chain_ids.clone(),
            keys: Vec::new(),
            are_keys_written: false,
        };
        let has_tail_readers = self.tail.receiver_count() > 0;
        let mut batch = Batch {
            connection: &self.connection,
            node: &self.node,
            key: &self.key,
            has_tail_readers,
            reserve_only,
            post_commit,
        };
        jobs.iter_mut().try_for_each(|job| job.run(&mut batch))?;
        if !batch.post_commit.keys.is_empty() {
            let PostCommit { state, chain_ids, .. } = &batch.post_commit;
            let own = chain_ids.iter().find(|(name, _)| *name == state.chain);
            let own = match own {
                Some((_, id)) => Some(*id),
                None => names::id_of(&self.connection, &state.chain)?,
            };
            batch.write_keys(&self.gathered_keys, own)?;
        }
        let post_commit = batch.post_commit;
        if post_commit.state != self.state {
            save(&self.connection, &self.key, &post_commit.state)?;
        }
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        Ok(post_commit)
    }

    fn publish(&mut self, post_commit: PostCommit) {
        if post_commit.state.sequence != self.state.sequence {
            self.head_file
                .write(&self.directory, (post_commit.state.sequence, post_commit.state.hash));
        }
        self.state = post_commit.state;
        self.chain_ids = post_commit.chain_ids;
        if post_commit.are_keys_written {
            self.gathered_keys.clear();
        } else {
            self.gathered_keys.extend(post_commit.keys);
        }
        self.shared.persist_time(self.state.newest_time);
        // A follower that subscribed in this batch receives all of its changes: the snapshot may
        // hold some of them already, and a repetition is harmless.
        self.followers.extend(post_commit.followers);
        for change in &post_commit.changes {
            self.followers.iter().for_each(|follower| follower.apply(change));
        }
        for record in post_commit.records {
            // There may be no receiver left.
            let _ = self.tail.send(Some(record));
        }
    }

    /// Stops the store. After a failed write the kernel may show as written data that never reached
    /// the disk, and a further sync would succeed without it. So nothing is retried: the next
    /// process reads the true content.
    fn fail(&self, fault: &SqliteError) {
        tracing::error!(%fault, "disk write failed, the store stops");
        self.shared.fail();
    }

    fn end(mut self) {
        self.closing = true;
        let mut result = if self.shared.has_failed() {
            Err(SqliteError::Failed)
        } else {
            self.attempt(&mut [], false)
        };
        if matches!(&result, Err(fault) if fault.kind() == Some(ErrorKind::Full))
            && self.disk_reserve.release()
        {
            result = self.attempt(&mut [], true);
        }
        for reader in self.readers {
            // A reader that panicked has nothing left to finish.
            let _ = reader.join();
        }
        if result.is_ok() {
            result = checkpoint(&self.connection);
        }
        let closed = self.connection.close().map_err(|(_, error)| SqliteError::from(error));
        // Skipped if the last write is not known to be durable, or if an accepted rollback is on no
        // record yet.
        if result.is_ok() && self.head_file.is_begun() {
            self.head_file.finish(&self.directory, (self.state.sequence, self.state.hash));
        }
        drop(self.directory);
        self.writer_state.send_replace(WriterState::Closed(result.and(closed)));
    }
}

fn reply_all(jobs: Vec<Box<dyn Job>>, outcome: &Result<(), SqliteError>) {
    jobs.into_iter().for_each(|job| job.reply(outcome.clone()));
}

/// Syncs the WAL, moves its content into the database and syncs that. On a full disk the content
/// stays in the WAL.
pub(crate) fn checkpoint(connection: &Connection) -> Result<(), SqliteError> {
    match connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .map_err(SqliteError::from)
    {
        Err(fault) if fault.kind() == Some(ErrorKind::Full) => {
            tracing::warn!("disk is full, cannot checkpoint the WAL");
            Ok(())
        }
        other => other,
    }
}

/// Writes the row `head`, sealed.
fn save(connection: &Connection, key: &ChainKey, state: &HeadRow) -> Result<(), SqliteError> {
    let head = state.head(key);
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO head
             (id, chain, node, sequence, hash, seal, newest, tally, importing, sum)
             VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?
        .execute((
            state.chain.as_ref(),
            head.node.as_ref(),
            to_sql(head.sequence),
            head.hash,
            head.seal,
            state.newest_time.millis(),
            state.set_checksum.to_bytes(),
            state.import.is_some(),
            state.sum(),
        ))?;
    Ok(())
}

impl SharedState {
    fn persist_time(&self, newest_time: Timestamp) {
        self.persisted_time.store(newest_time.millis(), std::sync::atomic::Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        sync::{Arc, Mutex},
    };

    use rusqlite::ffi;

    use crate::{
        crypto::chain::ChainKey,
        model::{Action, Event, Stamp, Timestamp},
        store::{
            AuditStore, ClientStore, CounterStore, Store, StoreError,
            embedded::{
                Embedded,
                engine::{
                    batch::{Batch, EventText, Priority},
                    error::SqliteError,
                },
            },
        },
    };

    fn open(dir: &Path) -> Embedded {
        Embedded::open(dir, "node", ChainKey::new([1; 32])).unwrap()
    }

    fn event() -> Event {
        Stamp::internal(Timestamp::EPOCH).done(Action::TokenIssued, "target")
    }

    fn fault(code: i32) -> SqliteError {
        rusqlite::Error::SqliteFailure(ffi::Error::new(code), None).into()
    }

    /// Job that writes a record and then fails.
    fn spoiled(
        code: i32,
    ) -> impl FnMut(&mut Batch<'_>) -> Result<(), SqliteError> + Send + 'static {
        move |batch| {
            batch.append(&EventText::new(event())?)?;
            Err(fault(code))
        }
    }

    /// E5: after a failed sync nothing is acknowledged any more, and a restart has everything
    /// acknowledged before.
    #[tokio::test]
    async fn a_failed_disk_stops_the_store() {
        for code in [ffi::SQLITE_IOERR, ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_IOERR_WRITE] {
            let dir = tempfile::tempdir().unwrap();
            let store = open(dir.path());
            store.append(event()).await.unwrap();
            let failed = store.write(Priority::Normal, spoiled(code)).await;
            assert!(matches!(failed, Err(StoreError::Unavailable(_))));
            assert!(matches!(store.append(event()).await, Err(StoreError::Unavailable(_))));
            assert!(matches!(store.append_soon(event()).await, Err(StoreError::Unavailable(_))));
            assert!(matches!(store.ready().await, Err(StoreError::Unavailable(_))));
            assert!(matches!(store.clients(None, None, 1).await, Err(StoreError::Unavailable(_))));
            assert!(matches!(
                store.count(&[], Timestamp::EPOCH).await,
                Err(StoreError::Unavailable(_))
            ));
            assert!(matches!(store.close().await, Err(StoreError::Unavailable(_))));
            let store = open(dir.path());
            assert_eq!(store.chain("node", 0, 9).await.unwrap().len(), 1);
            store.append(event()).await.unwrap();
        }
    }

    /// Verbs that share a batch with a failing one are executed without it.
    #[tokio::test]
    async fn one_that_meets_damage_does_not_take_others_along() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(open(dir.path()));
        let tasks: Vec<_> = (0..60)
            .map(|n| {
                let store = store.clone();
                tokio::spawn(async move {
                    match n % 3 {
                        0 => store.write(Priority::Normal, spoiled(ffi::SQLITE_CORRUPT)).await,
                        1 => store.write(Priority::Normal, spoiled(ffi::SQLITE_BUSY)).await,
                        _ => store.append(event()).await,
                    }
                })
            })
            .collect();
        for (n, task) in tasks.into_iter().enumerate() {
            match (n % 3, task.await.unwrap()) {
                (0, Err(StoreError::Corrupt(_)))
                | (1, Err(StoreError::Unavailable(_)))
                | (2, Ok(())) => {}
                (_, other) => panic!("{n}: {other:?}"),
            }
        }
        assert_eq!(store.chain("node", 0, 99).await.unwrap().len(), 20);
        assert!(store.check().await.unwrap().is_intact());
    }

    /// Job on a disk that has room only after the reserve was released.
    async fn on_a_full_disk(
        store: &Embedded,
        dir: &Path,
        priority: Priority,
        seen: &Arc<Mutex<Vec<bool>>>,
    ) -> bool {
        let (reserve, seen) = (dir.join("reserve"), seen.clone());
        let write = move |batch: &mut Batch<'_>| {
            seen.lock().unwrap().push(batch.reserve_only);
            batch.append(&EventText::new(event())?)?;
            if reserve.exists() { Err(fault(ffi::SQLITE_FULL)) } else { Ok(()) }
        };
        match store.write(priority, write).await {
            Ok(()) => true,
            Err(StoreError::Full(_)) => false,
            Err(other) => panic!("{other:?}"),
        }
    }

    /// E4: actions that revoke tokens under another name may use the reserve too.
    #[test]
    fn ending_a_key_a_client_or_a_secret_is_vital() {
        let revocations = [Action::KeyRevoked, Action::ClientDisabled, Action::SecretRetired];
        for action in Action::ALL {
            let expected =
                if revocations.contains(action) { Priority::Revocation } else { Priority::Normal };
            assert_eq!(Priority::of(*action), expected, "{action:?}");
        }
    }

    /// E4: the reserve serves revocations repeatedly, and is refilled at once.
    #[tokio::test]
    async fn a_full_disk_still_takes_revocations() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let seen = Arc::default();
        for _ in 0..3 {
            assert!(!on_a_full_disk(&store, dir.path(), Priority::Normal, &seen).await);
            assert!(on_a_full_disk(&store, dir.path(), Priority::Revocation, &seen).await);
            assert_eq!(std::fs::metadata(dir.path().join("reserve")).unwrap().len(), 1 << 20);
        }
        assert_eq!(seen.lock().unwrap()[..4], [false, false, true, true]);
        assert_eq!(store.chain("node", 0, 9).await.unwrap().len(), 3);
        assert!(store.check().await.unwrap().is_intact());
    }
}
