//! Writer of this node's audit chain. One task appends: it takes all waiting jobs, gives each
//! record its sequence and hash, and writes them with one command. A write of unknown outcome is
//! checked and repeated, the same records at the same sequences, until they are stored: an accepted
//! record is never given up while the process lives.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use mongodb::bson::{Bson, Document, doc};
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};
use uuid::Uuid;

use super::{
    node_lease::Node,
    outbox::{CallerWatch, Entry, OutboxOwner},
    outbox_cleaner::OutboxCleaner,
    records::{ChainTip, LATE_FIELD, PAGE_RECORDS, encoded, read_records, sealed, verify_tip},
};
use crate::{
    crypto::chain::{ChainKey, link},
    model::Record,
    store::mongo::driver::{
        codec::Fields,
        connection::{Connection, pause},
        error::MongoError,
        schema::AUDIT_LOGS,
    },
};

/// Jobs in the queue, by which the chain may be behind; further callers wait for room.
const QUEUE_MAX: usize = 4_096;
/// Delay of a command for records that no caller waits for, so that it has many of them.
const BEHIND_DELAY: Duration = Duration::from_millis(20);
/// Jobs in one command.
const BATCH_MAX: usize = 512;
/// Records by which a subscriber may lag behind.
const SUBSCRIBER_LAG_MAX: usize = 1_024;
/// Delay between two attempts of a failing write.
const RETRY_DELAY: Duration = Duration::from_millis(100);
/// Time that closing waits for records in flight.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Age of a running write from which [`ChainHandle::append_soon`] waits for durability as well.
const SLOW_WRITE: Duration = Duration::from_millis(50);

/// Entries to be appended together.
struct Job {
    entries: Vec<Entry>,
    /// Document whose outbox holds the entries.
    owner: Option<OutboxOwner>,
    reply: Option<oneshot::Sender<Result<(), MongoError>>>,
}

/// Handle to the task that appends.
pub(crate) struct ChainHandle {
    queue: ArcSwapOption<mpsc::Sender<Job>>,
    tail: broadcast::WeakSender<Option<Arc<Record>>>,
    state: Arc<ChainState>,
    task: Mutex<Option<JoinHandle<()>>>,
    deadline: Duration,
    /// Sequence of the chain at the start of this process.
    start_sequence: u64,
}

/// State that the task and its callers share.
struct ChainState {
    sequence: AtomicU64,
    /// True if the last attempt to write failed.
    is_retrying: AtomicBool,
    /// Start of the write that is running.
    writing_since: Mutex<Option<Instant>>,
    /// Outbox entries in the queue or in a running write, with or without a waiting caller: they
    /// will be in the chain.
    in_flight: Mutex<HashSet<Uuid>>,
    /// Number of entries in the queue or in a running write, also of those that no outbox holds.
    pending: AtomicUsize,
}

impl ChainState {
    fn writing_since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.writing_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn in_flight(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove_in_flight(&self, entries: &[Entry]) {
        let mut in_flight = self.in_flight();
        for entry in entries {
            in_flight.remove(&entry.id);
        }
    }
}

impl ChainHandle {
    /// Starts the task; it continues after the record `tip`.
    pub(crate) fn start(
        connection: Arc<Connection>,
        node: Arc<Node>,
        key: ChainKey,
        tip: ChainTip,
        cleaner: OutboxCleaner,
    ) -> Self {
        let (queue, jobs) = mpsc::channel(QUEUE_MAX);
        let tail = broadcast::Sender::new(SUBSCRIBER_LAG_MAX);
        let weak = tail.downgrade();
        let state = Arc::new(ChainState {
            sequence: AtomicU64::new(tip.sequence),
            is_retrying: AtomicBool::new(false),
            writing_since: Mutex::default(),
            in_flight: Mutex::default(),
            pending: AtomicUsize::new(0),
        });
        let (deadline, start_sequence) = (connection.deadline(), tip.sequence);
        let writer =
            ChainWriter { connection, node, key, tip, cleaner, tail, state: state.clone() };
        let task = Mutex::new(Some(tokio::spawn(writer.serve(jobs))));
        Self {
            queue: ArcSwapOption::from_pointee(queue),
            tail: weak,
            state,
            task,
            deadline,
            start_sequence,
        }
    }

    /// Sequence of the last durable record.
    pub(crate) fn sequence(&self) -> u64 {
        self.state.sequence.load(SeqCst)
    }

    /// Returns true if an entry that was made at sequence `after`, and is in the chain, was
    /// recorded by an earlier process of this node.
    pub(super) fn is_from_earlier_process(&self, after: u64) -> bool {
        after < self.start_sequence
    }

    /// Appends the entries of a document's outbox; returns before they are recorded. Waits for room
    /// in the queue.
    pub(crate) async fn append_behind(
        &self,
        entries: Vec<Entry>,
        owner: OutboxOwner,
    ) -> Result<(), MongoError> {
        self.enqueue(Job { entries, owner: Some(owner), reply: None }).await
    }

    /// Waits until everything accepted before is durable; returns at once while writes fail.
    pub(super) async fn await_pending(&self) -> Result<(), MongoError> {
        if self.pending() == 0 || self.state.is_retrying.load(SeqCst) {
            return Ok(());
        }
        self.append(Vec::new(), None).await
    }

    async fn enqueue(&self, job: Job) -> Result<(), MongoError> {
        let queue = self.queue.load_full().ok_or(MongoError::Closed)?;
        let place = timeout(self.deadline, queue.reserve()).await;
        let place = place
            .map_err(|_| MongoError::Timeout(self.deadline))?
            .map_err(|_| MongoError::Closed)?;
        if job.owner.is_some() {
            self.state.in_flight().extend(job.entries.iter().map(|entry| entry.id));
        }
        self.state.pending.fetch_add(job.entries.len(), SeqCst);
        place.send(job);
        Ok(())
    }

    /// Appends entries; returns once they are durable.
    pub(crate) async fn append(
        &self,
        entries: Vec<Entry>,
        owner: Option<OutboxOwner>,
    ) -> Result<(), MongoError> {
        let since = Instant::now();
        let (reply, answer) = oneshot::channel();
        self.enqueue(Job { entries, owner, reply: Some(reply) }).await?;
        let left = self.deadline.saturating_sub(since.elapsed());
        timeout(left, answer)
            .await
            .map_err(|_| MongoError::Timeout(self.deadline))?
            .map_err(|_| MongoError::Closed)?
    }

    /// Appends an entry and returns before it is durable; waits as [`Self::append`] does while
    /// writes are slow or fail.
    pub(super) async fn append_soon(&self, entry: Entry) -> Result<(), MongoError> {
        let slow = self.state.writing_since().is_some_and(|since| since.elapsed() > SLOW_WRITE);
        if slow || self.state.is_retrying.load(SeqCst) {
            return self.append(vec![entry], None).await;
        }
        self.enqueue(Job { entries: vec![entry], owner: None, reply: None }).await
    }

    /// Returns true if this outbox entry is on its way into the chain.
    pub(crate) fn is_in_flight(&self, entry: Uuid) -> bool {
        self.state.in_flight().contains(&entry)
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Option<Arc<Record>>> {
        self.tail.upgrade().map_or_else(|| broadcast::channel(1).1, |tail| tail.subscribe())
    }

    /// Sender of new records, as long as the store is open.
    pub(super) fn weak_subscribers(&self) -> broadcast::WeakSender<Option<Arc<Record>>> {
        self.tail.clone()
    }

    /// Number of entries that are accepted and not yet durable.
    pub(super) fn pending(&self) -> usize {
        self.state.pending.load(SeqCst)
    }

    /// Accepts no more entries and waits for those in flight, up to a timeout. Returns true if none
    /// is left in flight.
    pub(crate) async fn close(&self) -> bool {
        self.queue.store(None);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(task) = task else { return false };
        let abort = task.abort_handle();
        let ended = timeout(CLOSE_TIMEOUT, task).await.is_ok_and(|ended| ended.is_ok());
        if !ended {
            // The task holds no driver future: those run in tasks of their own.
            abort.abort();
            tracing::error!(
                records = self.pending(),
                "shutdown timed out before these audit records were written; those of changes are recorded \
                 at the next start"
            );
        }
        ended
    }
}

struct ChainWriter {
    connection: Arc<Connection>,
    node: Arc<Node>,
    key: ChainKey,
    tip: ChainTip,
    cleaner: OutboxCleaner,
    tail: broadcast::Sender<Option<Arc<Record>>>,
    state: Arc<ChainState>,
}

/// Record with its document.
#[derive(Clone)]
struct PreparedRecord {
    record: Arc<Record>,
    document: Document,
    /// See [`Entry::caller`].
    caller: Option<CallerWatch>,
}

/// Waits a moment for further jobs, unless a caller waits for one of these.
async fn gather(queue: &mut mpsc::Receiver<Job>, jobs: &mut Vec<Job>) {
    let until = Instant::now() + BEHIND_DELAY;
    while jobs.len() < BATCH_MAX && jobs.iter().all(|job| job.reply.is_none()) {
        let room = BATCH_MAX.saturating_sub(jobs.len());
        // No further job: the time is over, or the chain is being closed.
        if !matches!(timeout_at(until, queue.recv_many(jobs, room)).await, Ok(1..)) {
            return;
        }
    }
}

impl ChainWriter {
    async fn serve(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut jobs = Vec::with_capacity(BATCH_MAX);
        while queue.recv_many(&mut jobs, BATCH_MAX).await > 0 {
            gather(&mut queue, &mut jobs).await;
            *self.state.writing_since() = Some(Instant::now());
            let written = self.write(&jobs).await;
            *self.state.writing_since() = None;
            for job in jobs.drain(..) {
                self.state.remove_in_flight(&job.entries);
                self.state.pending.fetch_sub(job.entries.len(), SeqCst);
                if let Some(reply) = job.reply {
                    // The receiver may be gone; that is fine.
                    let _ = reply.send(written.clone());
                }
                if let (Ok(()), Some(owner)) = (&written, job.owner) {
                    self.cleaner
                        .recorded(owner, job.entries.iter().map(|entry| entry.id).collect());
                }
            }
        }
    }

    async fn write(&mut self, jobs: &[Job]) -> Result<(), MongoError> {
        let (mut prepared, mut tip) = self.prepare(jobs, &HashSet::new())?;
        let mut is_retry = false;
        loop {
            match self.insert(&prepared, is_retry).await {
                Ok(true) => break,
                // Records of another process have these sequences.
                Ok(false) => match self.catch_up().await {
                    // Entries that the other process has recorded are left out.
                    Ok(Some(there)) => (prepared, tip) = self.prepare(jobs, &there)?,
                    Ok(None) => {
                        self.connection.close_name_taken();
                        return Err(MongoError::NodeNameTaken);
                    }
                    Err(fault) => self.back_off(fault).await?,
                },
                Err(fault) => self.back_off(fault).await?,
            }
            is_retry = true;
        }
        if self.state.is_retrying.swap(false, SeqCst) {
            tracing::info!("audit writes recovered");
        }
        self.state.sequence.store(tip.sequence, SeqCst);
        self.node.set_chain_tip(&tip);
        self.tip = tip;
        for prepared in prepared {
            // There may be no subscriber.
            let _ = self.tail.send(Some(prepared.record));
        }
        Ok(())
    }

    /// Continues after the records of an earlier process of this node whose write was in flight
    /// when this one began; returns the entries that it recorded. `None` if a later process holds
    /// the name.
    async fn catch_up(&mut self) -> Result<Option<HashSet<Uuid>>, MongoError> {
        if !self.node.holds_name(&self.connection).await? {
            return Ok(None);
        }
        let written =
            read_records(&self.connection, &self.node.name, self.tip.sequence, PAGE_RECORDS)
                .await?;
        let ours =
            written.iter().filter(|record| sealed(record).is_ok_and(|head| self.key.check(&head)));
        let there = ours
            .filter_map(|record| Fields::of("audit record", record).uuid("entry").ok())
            .collect();
        self.tip =
            verify_tip(&self.connection, &self.key, &self.node.name, self.tip.clone(), 0).await?;
        Ok(Some(there))
    }

    /// Waits before the next attempt; fails with `fault` once the store is closed.
    async fn back_off(&self, fault: MongoError) -> Result<(), MongoError> {
        if self.connection.is_closed() {
            return Err(fault);
        }
        if !self.state.is_retrying.swap(true, SeqCst) {
            tracing::warn!(%fault, "audit write failed, retrying");
        }
        pause(RETRY_DELAY).await;
        Ok(())
    }

    /// Prepares the records of all entries that are not in `there`, and the tip of the chain after
    /// them.
    fn prepare(
        &self,
        jobs: &[Job],
        there: &HashSet<Uuid>,
    ) -> Result<(Vec<PreparedRecord>, ChainTip), MongoError> {
        let mut tip = self.tip.clone();
        let mut prepared = Vec::new();
        for entry in
            jobs.iter().flat_map(|job| &job.entries).filter(|entry| !there.contains(&entry.id))
        {
            let sequence = tip.sequence.saturating_add(1);
            let hash = link(&tip.hash, sequence, &self.node.name, &entry.body);
            let name = self.node.name.clone();
            tip =
                ChainTip { sequence, hash, newest_time: tip.newest_time_with(&name, &entry.event) };
            let record = Record {
                chain: name.clone(),
                sequence,
                node: name,
                event: entry.event.clone(),
                hash,
            };
            let document = encoded(&record, entry.id, &self.key)?;
            prepared.push(PreparedRecord {
                record: Arc::new(record),
                document,
                caller: entry.caller.clone(),
            });
        }
        Ok((prepared, tip))
    }

    /// Marks stored records whose callers got no answer in time.
    async fn mark_late(
        &self,
        late: impl Iterator<Item = &PreparedRecord>,
    ) -> Result<(), MongoError> {
        let ids: Vec<Bson> =
            late.filter_map(|prepared| prepared.document.get("_id").cloned()).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let logs = self.connection.collection(AUDIT_LOGS);
        let late = doc! { "_id": { "$in": ids } };
        self.connection
            .call(async move {
                Ok(logs.update_many(late, doc! { "$set": { LATE_FIELD: true } }).await?)
            })
            .await
            .map(drop)
    }

    /// Inserts the records. Returns false if other records have their sequences.
    async fn insert(
        &self,
        prepared: &[PreparedRecord],
        is_retry: bool,
    ) -> Result<bool, MongoError> {
        // An earlier attempt may have been applied at any time since: after a failure it is unknown
        // whether the caller still waited then.
        let is_late = |prepared: &PreparedRecord| {
            prepared.is_late() || (is_retry && prepared.is_unanswered())
        };
        let late: Vec<bool> = prepared.iter().map(is_late).collect();
        let mut missing: Vec<Document> = prepared
            .iter()
            .zip(&late)
            .map(|(prepared, late)| prepared.document_to_insert(*late))
            .collect();
        if is_retry {
            let first = prepared.first().map_or(0, |prepared| prepared.record.sequence);
            let there = read_records(
                &self.connection,
                &self.node.name,
                first.saturating_sub(1),
                prepared.len(),
            )
            .await?;
            for (found, prepared) in there.iter().zip(prepared) {
                if Fields::of("audit record", found).hash("hash")? != prepared.record.hash {
                    return Ok(false);
                }
            }
            self.mark_late(prepared.iter().take(there.len()).filter(|prepared| is_late(prepared)))
                .await?;
            missing.drain(..there.len().min(missing.len()));
        }
        if missing.is_empty() {
            return Ok(true);
        }
        let logs = self.connection.collection(AUDIT_LOGS);
        self.connection.call(async move { Ok(logs.insert_many(missing).await?) }).await?;
        // The caller gave up while the write was running.
        self.mark_late(
            prepared
                .iter()
                .zip(&late)
                .filter(|(prepared, late)| !**late && prepared.is_late())
                .map(|(prepared, _)| prepared),
        )
        .await?;
        Ok(true)
    }
}

impl PreparedRecord {
    /// Returns true if its caller has got an error, and does not know the outcome.
    fn is_late(&self) -> bool {
        self.caller.as_ref().is_some_and(CallerWatch::is_abandoned)
    }

    /// Returns true if its caller has no answer, so far.
    fn is_unanswered(&self) -> bool {
        self.caller.as_ref().is_some_and(|caller| !caller.is_answered())
    }

    /// Document to insert if it is written now.
    fn document_to_insert(&self, late: bool) -> Document {
        let mut document = self.document.clone();
        if late {
            document.insert(LATE_FIELD, true);
        }
        document
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Action, Stamp, Timestamp};

    /// Records that are not durable when the time for closing is over are counted, with those that
    /// no caller waits for.
    #[tokio::test(start_paused = true)]
    async fn records_dropped_at_a_stop_are_counted() {
        // Nothing listens there.
        let connection = Connection::new("mongodb://127.0.0.1:1", Duration::from_secs(1)).await;
        let connection = Arc::new(connection.unwrap());
        let key = ChainKey::new([7; 32]);
        let node = Arc::new(Node::unregistered("a", key.clone()));
        let cleaner = OutboxCleaner::start(connection.clone());
        let chain = ChainHandle::start(connection, node, key, ChainTip::GENESIS, cleaner);
        let entry = || {
            let event = Stamp::internal(Timestamp::EPOCH).done(Action::ServerStarted, "");
            Entry::new(event).unwrap()
        };
        chain.append_soon(entry()).await.unwrap();
        chain.append(vec![entry(), entry()], None).await.unwrap_err();
        assert_eq!(chain.pending(), 3);
        assert!(!chain.close().await);
        assert_eq!(chain.pending(), 3);
    }
}
