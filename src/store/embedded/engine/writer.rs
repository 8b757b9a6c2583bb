//! The one thread that writes. It takes whatever is waiting into one transaction, so that many
//! verbs share one sync of the disk, and answers when the commit has returned, never before.

use std::{mem, sync::Arc, thread::JoinHandle, time::Duration};

use rusqlite::Connection;
use tokio::{
    sync::{broadcast, mpsc, watch},
    time::{Instant, timeout},
};

use super::{
    batch::{Batch, Effects, Job, State, Urgency, to_sql},
    error::{Fault, Kind},
};
use crate::{
    crypto::chain::ChainKey,
    model::{Record, Timestamp},
    store::{
        Follower,
        embedded::{
            Shared,
            files::{directory::Directory, disk_reserve::Reserve, head_file::Anchor},
        },
    },
};

/// The most verbs in one commit.
const BATCH: usize = 1_024;

/// How long verbs that nobody waits for are gathered; well under the 50 ms that are promised.
const GATHER: Duration = Duration::from_millis(20);

/// How often counters are written; well under the second that is promised.
const FLUSH: Duration = Duration::from_millis(500);

/// How the writer ended.
#[derive(Clone, Debug)]
pub(crate) enum Fate {
    /// Not yet.
    Runs,
    /// Everything that was waiting has been written or answered.
    Ended(Result<(), Fault>),
}

/// The state of the thread.
pub(crate) struct Writer {
    pub(crate) connection: Connection,
    pub(crate) node: Arc<str>,
    pub(crate) chain: Arc<str>,
    pub(crate) key: ChainKey,
    pub(crate) state: State,
    pub(crate) shared: Arc<Shared>,
    pub(crate) followers: Vec<Arc<dyn Follower>>,
    pub(crate) tail: broadcast::Sender<Option<Arc<Record>>>,
    pub(crate) anchor: Anchor,
    pub(crate) reserve: Reserve,
    pub(crate) flushed_at: Instant,
    /// Whether the last batch is being made.
    pub(crate) closing: bool,
    pub(crate) readers: Vec<JoinHandle<()>>,
    pub(crate) fate: watch::Sender<Fate>,
    pub(crate) directory: Directory,
}

impl Writer {
    /// Serves until the queue is closed and empty. The runtime is this thread's own and only keeps
    /// its timeouts.
    pub(crate) fn serve(
        mut self,
        runtime: &tokio::runtime::Runtime,
        mut queue: mpsc::Receiver<Box<dyn Job>>,
    ) {
        let mut waiting = Vec::with_capacity(BATCH);
        while runtime.block_on(self.gather(&mut queue, &mut waiting)) {
            if !waiting.is_empty() || self.flush_is_due() {
                self.commit(mem::replace(&mut waiting, Vec::with_capacity(BATCH)));
            }
        }
        self.end();
    }

    /// Waits for something to do; false when nothing will come any more.
    async fn gather(
        &self,
        queue: &mut mpsc::Receiver<Box<dyn Job>>,
        waiting: &mut Vec<Box<dyn Job>>,
    ) -> bool {
        let first = if self.shared.counters.unwritten() {
            let due = FLUSH.saturating_sub(self.flushed_at.elapsed());
            timeout(due, queue.recv_many(waiting, BATCH)).await
        } else {
            Ok(queue.recv_many(waiting, BATCH).await)
        };
        if matches!(first, Ok(0)) {
            return false;
        }
        let since = Instant::now();
        while !waiting.is_empty()
            && waiting.len() < BATCH
            && waiting.iter().all(|job| job.urgency() == Urgency::Lazy)
        {
            let left = GATHER.saturating_sub(since.elapsed());
            let room = BATCH.saturating_sub(waiting.len());
            // The time is up, or the queue is closed: what is here is written first.
            if !matches!(timeout(left, queue.recv_many(waiting, room)).await, Ok(1..)) {
                break;
            }
        }
        true
    }

    fn flush_is_due(&self) -> bool {
        self.shared.counters.unwritten() && (self.closing || self.flushed_at.elapsed() >= FLUSH)
    }

    fn commit(&mut self, mut jobs: Vec<Box<dyn Job>>) {
        if self.shared.failed() {
            return settle(jobs, &Err(Fault::Failed));
        }
        let before = self.state.sequence;
        let Err(fault) = self.attempt(&mut jobs, false) else {
            // What leaves no record may fit where a record does not.
            if self.state.sequence != before {
                self.shared.is_full(false);
            }
            return settle(jobs, &Ok(()));
        };
        match fault.kind() {
            Some(Kind::Full) => self.economise(jobs, &fault),
            Some(Kind::Broken) => {
                self.fail(&fault);
                settle(jobs, &Err(fault));
            }
            // One verb may have met a damaged page or a foreign lock: the others need not suffer
            // for it.
            Some(Kind::Corrupt | Kind::Other) | None if jobs.len() > 1 => {
                jobs.into_iter().for_each(|job| self.commit(vec![job]));
            }
            Some(Kind::Corrupt | Kind::Other) | None => {
                tracing::error!(%fault, "cannot write to the store");
                settle(jobs, &Err(fault));
            }
        }
    }

    /// The disk is full: what ends tokens is tried once more in the room kept for it, the rest is
    /// refused.
    fn economise(&mut self, jobs: Vec<Box<dyn Job>>, fault: &Fault) {
        self.shared.is_full(true);
        let (mut vital, others): (Vec<_>, Vec<_>) =
            jobs.into_iter().partition(|job| job.urgency() == Urgency::Vital);
        settle(others, &Err(fault.clone()));
        if vital.is_empty() {
            return;
        }
        // A first time without it: most refreshes see that they are not meant, and nothing is left
        // that needs room.
        let mut fate = self.attempt(&mut vital, true);
        if matches!(&fate, Err(fault) if fault.kind() == Some(Kind::Full)) && self.reserve.release()
        {
            fate = self.attempt(&mut vital, true);
            // At once, before others use it up.
            self.reserve.top_up();
        }
        if let Err(fault) = &fate
            && fault.kind() == Some(Kind::Broken)
        {
            self.fail(fault);
        }
        settle(vital, &fate);
    }

    /// One transaction. Answers are not given here, all else that follows from a commit is done.
    fn attempt(&mut self, jobs: &mut [Box<dyn Job>], scarce: bool) -> Result<(), Fault> {
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let counters = if self.flush_is_due() {
            self.shared.counters.write(&self.connection)
        } else {
            Ok(Vec::new())
        };
        let flushed = counters.as_ref().is_ok_and(|counters| !counters.is_empty());
        let outcome = counters.and_then(|counters| {
            let filled = self.fill(jobs, scarce);
            filled.inspect_err(|_| self.shared.counters.again(counters))
        });
        match outcome {
            Ok(effects) => {
                if flushed {
                    self.flushed_at = Instant::now();
                }
                self.publish(effects);
                self.reserve.restore();
                Ok(())
            }
            Err(fault) => {
                // SQLite may have undone it already; if it cannot be undone, nothing can be relied
                // on.
                if !self.connection.is_autocommit()
                    && let Err(error) = self.connection.execute_batch("ROLLBACK")
                {
                    self.fail(&error.into());
                }
                Err(fault)
            }
        }
    }

    fn fill(&self, jobs: &mut [Box<dyn Job>], scarce: bool) -> Result<Effects, Fault> {
        let mut state = self.state.clone();
        if self.closing {
            // What was judged at this time, though nothing was written, must not be judged at an
            // earlier one after a restart.
            let brought = self.shared.brought.load(std::sync::atomic::Ordering::SeqCst);
            state.newest = state.newest.max(Timestamp::from_millis(brought));
        }
        let effects =
            Effects { state, changes: Vec::new(), records: Vec::new(), followers: Vec::new() };
        let listening = self.tail.receiver_count() > 0;
        let mut batch = Batch {
            connection: &self.connection,
            node: &self.node,
            chain: &self.chain,
            key: &self.key,
            listening,
            scarce,
            effects,
        };
        jobs.iter_mut().try_for_each(|job| job.run(&mut batch))?;
        let effects = batch.effects;
        if effects.state != self.state {
            save(&self.connection, &self.key, &effects.state)?;
        }
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        Ok(effects)
    }

    fn publish(&mut self, effects: Effects) {
        if effects.state.sequence != self.state.sequence {
            self.anchor.write(&self.directory, (effects.state.sequence, effects.state.hash));
        }
        self.state = effects.state;
        self.shared.saw(self.state.newest);
        // Who joined in this batch hears all of it: its snapshot may hold part of that already, and
        // hearing twice is harmless.
        self.followers.extend(effects.followers);
        for change in &effects.changes {
            self.followers.iter().for_each(|follower| follower.apply(change));
        }
        for record in effects.records {
            // Nobody may be listening any more.
            let _ = self.tail.send(Some(record));
        }
    }

    /// After a failed write the kernel may show as written what never reached the disk, and a
    /// further sync would succeed without it. So nothing is tried again: whoever starts anew reads
    /// what is really there.
    fn fail(&self, fault: &Fault) {
        tracing::error!(%fault, "disk write failed, the store stops");
        self.shared.fail();
    }

    fn end(mut self) {
        self.closing = true;
        let mut result =
            if self.shared.failed() { Err(Fault::Failed) } else { self.attempt(&mut [], false) };
        if matches!(&result, Err(fault) if fault.kind() == Some(Kind::Full))
            && self.reserve.release()
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
        let closed = self.connection.close().map_err(|(_, error)| Fault::from(error));
        // What is not known to be on disk, and a rollback that was accepted and is on no record, is
        // not noted.
        if result.is_ok() && self.anchor.is_begun() {
            self.anchor.end(&self.directory, (self.state.sequence, self.state.hash));
        }
        drop(self.directory);
        self.fate.send_replace(Fate::Ended(result.and(closed)));
    }
}

fn settle(jobs: Vec<Box<dyn Job>>, fate: &Result<(), Fault>) {
    jobs.into_iter().for_each(|job| job.settle(fate.clone()));
}

/// Syncs the WAL, moves everything from it into the database and syncs that. Where the disk is full
/// the WAL keeps it.
pub(crate) fn checkpoint(connection: &Connection) -> Result<(), Fault> {
    match connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .map_err(Fault::from)
    {
        Err(fault) if fault.kind() == Some(Kind::Full) => {
            tracing::warn!("disk is full, cannot checkpoint the WAL");
            Ok(())
        }
        other => other,
    }
}

/// Writes the row `head`, sealed.
fn save(connection: &Connection, key: &ChainKey, state: &State) -> Result<(), Fault> {
    let head = state.head(key);
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO head (id, node, sequence, hash, seal, newest, tally, importing, sum)
             VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute((
            head.node.as_ref(),
            to_sql(head.sequence),
            head.hash,
            head.seal,
            state.newest.millis(),
            state.tally.to_bytes(),
            state.import.is_some(),
            state.sum(),
        ))?;
    Ok(())
}

impl Shared {
    fn saw(&self, newest: Timestamp) {
        self.newest.store(newest.millis(), std::sync::atomic::Ordering::SeqCst);
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
                    batch::{Batch, Entry, Urgency},
                    error::Fault,
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

    fn fault(code: i32) -> Fault {
        rusqlite::Error::SqliteFailure(ffi::Error::new(code), None).into()
    }

    /// Writes a record and then meets a fault.
    fn spoiled(code: i32) -> impl FnMut(&mut Batch<'_>) -> Result<(), Fault> + Send + 'static {
        move |batch| {
            batch.append(&Entry::new(event())?)?;
            Err(fault(code))
        }
    }

    /// E5: after a failed sync nothing is acknowledged any more, and a new start has what was.
    #[tokio::test]
    async fn a_failed_disk_stops_the_store() {
        for code in [ffi::SQLITE_IOERR, ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_IOERR_WRITE] {
            let dir = tempfile::tempdir().unwrap();
            let store = open(dir.path());
            store.append(event()).await.unwrap();
            let failed = store.write(Urgency::Normal, spoiled(code)).await;
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

    /// Verbs that share a batch with one that fails are carried out without it.
    #[tokio::test]
    async fn one_that_meets_damage_does_not_take_others_along() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(open(dir.path()));
        let tasks: Vec<_> = (0..60)
            .map(|n| {
                let store = store.clone();
                tokio::spawn(async move {
                    match n % 3 {
                        0 => store.write(Urgency::Normal, spoiled(ffi::SQLITE_CORRUPT)).await,
                        1 => store.write(Urgency::Normal, spoiled(ffi::SQLITE_BUSY)).await,
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
        assert!(store.check().await.unwrap().sound());
    }

    /// A disk that has room only once the reserve is gone.
    async fn on_a_full_disk(
        store: &Embedded,
        dir: &Path,
        urgency: Urgency,
        seen: &Arc<Mutex<Vec<bool>>>,
    ) -> bool {
        let (reserve, seen) = (dir.join("reserve"), seen.clone());
        let write = move |batch: &mut Batch<'_>| {
            seen.lock().unwrap().push(batch.scarce);
            batch.append(&Entry::new(event())?)?;
            if reserve.exists() { Err(fault(ffi::SQLITE_FULL)) } else { Ok(()) }
        };
        match store.write(urgency, write).await {
            Ok(()) => true,
            Err(StoreError::Full(_)) => false,
            Err(other) => panic!("{other:?}"),
        }
    }

    /// E4: what ends tokens under another name may use the reserve too.
    #[test]
    fn ending_a_key_a_client_or_a_secret_is_vital() {
        let vital = [Action::KeyRevoked, Action::ClientDisabled, Action::SecretRetired];
        for action in Action::ALL {
            let expected = if vital.contains(action) { Urgency::Vital } else { Urgency::Normal };
            assert_eq!(Urgency::of(*action), expected, "{action:?}");
        }
    }

    /// E4: the reserve is for what ends tokens, again and again, and is taken back at once.
    #[tokio::test]
    async fn a_full_disk_still_takes_revocations() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let seen = Arc::default();
        for _ in 0..3 {
            assert!(!on_a_full_disk(&store, dir.path(), Urgency::Normal, &seen).await);
            assert!(on_a_full_disk(&store, dir.path(), Urgency::Vital, &seen).await);
            assert_eq!(std::fs::metadata(dir.path().join("reserve")).unwrap().len(), 1 << 20);
        }
        assert_eq!(seen.lock().unwrap()[..4], [false, false, true, true]);
        assert_eq!(store.chain("node", 0, 9).await.unwrap().len(), 3);
        assert!(store.check().await.unwrap().sound());
    }
}
