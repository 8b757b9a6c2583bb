//! This node's audit chain. One task appends: it takes whatever waits, gives each record its place
//! and its hash, and writes them with one command. A write of unknown outcome is asked about and
//! written again, the same records at the same places, until they are there: what was promised to a
//! caller is never given up while the process lives.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use mongodb::bson::{Bson, Document, doc};
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, timeout},
};
use uuid::Uuid;

use super::{
    node_lease::Node,
    outbox::{Entry, OutboxOwner},
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

/// Events on their way; more wait in their callers.
const QUEUE_MAX: usize = 4_096;
/// Jobs in one command.
const BATCH_MAX: usize = 512;
/// How far a listener may lag behind.
const SUBSCRIBER_LAG_MAX: usize = 1_024;
/// Between two attempts at a write that does not succeed.
const RETRY_DELAY: Duration = Duration::from_millis(100);
/// How long closing waits for what is on its way.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a write may be under way before who need not wait waits all the same.
const SLOW_WRITE: Duration = Duration::from_millis(50);

/// Events to be appended together.
struct Job {
    entries: Vec<Entry>,
    /// Whose outbox they are in.
    owner: Option<OutboxOwner>,
    reply: Option<oneshot::Sender<Result<(), MongoError>>>,
}

/// The way to the task that appends.
pub(crate) struct ChainHandle {
    queue: ArcSwapOption<mpsc::Sender<Job>>,
    tail: broadcast::WeakSender<Option<Arc<Record>>>,
    state: Arc<State>,
    task: Mutex<Option<JoinHandle<()>>>,
    deadline: Duration,
    /// Where it was when this process began.
    start_sequence: u64,
}

/// What the task and its callers both see.
struct State {
    sequence: AtomicU64,
    /// Whether the last write did not succeed at once.
    is_retrying: AtomicBool,
    /// Since when a write is under way.
    writing_since: Mutex<Option<Instant>>,
    /// The entries in the queue and under way, whether or not anybody still waits for them: they
    /// will be in the chain.
    in_flight: Mutex<HashSet<Uuid>>,
}

impl State {
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
    /// Starts the task, behind the record `tip`.
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
        let state = Arc::new(State {
            sequence: AtomicU64::new(tip.sequence),
            is_retrying: AtomicBool::new(false),
            writing_since: Mutex::default(),
            in_flight: Mutex::default(),
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

    /// The last record that is kept.
    pub(crate) fn sequence(&self) -> u64 {
        self.state.sequence.load(SeqCst)
    }

    /// Whether what came after this record, and is in the chain, was put there before this process
    /// began.
    pub(super) fn is_from_earlier_process(&self, after: u64) -> bool {
        after < self.start_sequence
    }

    /// Durable when it answers.
    pub(crate) async fn append(
        &self,
        entries: Vec<Entry>,
        owner: Option<OutboxOwner>,
    ) -> Result<(), MongoError> {
        let queue = self.queue.load_full().ok_or(MongoError::Closed)?;
        let since = Instant::now();
        let place = timeout(self.deadline, queue.reserve()).await;
        let place = place
            .map_err(|_| MongoError::Timeout(self.deadline))?
            .map_err(|_| MongoError::Closed)?;
        let (reply, answer) = oneshot::channel();
        if owner.is_some() {
            self.state.in_flight().extend(entries.iter().map(|entry| entry.id));
        }
        place.send(Job { entries, owner, reply: Some(reply) });
        let left = self.deadline.saturating_sub(since.elapsed());
        timeout(left, answer)
            .await
            .map_err(|_| MongoError::Timeout(self.deadline))?
            .map_err(|_| MongoError::Closed)?
    }

    /// Answers before it is durable; while MongoDB does not take records at once, as
    /// [`Self::append`].
    pub(super) async fn append_soon(&self, entry: Entry) -> Result<(), MongoError> {
        let slow = self.state.writing_since().is_some_and(|since| since.elapsed() > SLOW_WRITE);
        if slow || self.state.is_retrying.load(SeqCst) {
            return self.append(vec![entry], None).await;
        }
        let queue = self.queue.load_full().ok_or(MongoError::Closed)?;
        let sent = queue.send(Job { entries: vec![entry], owner: None, reply: None });
        timeout(self.deadline, sent)
            .await
            .map_err(|_| MongoError::TooManyPending)?
            .map_err(|_| MongoError::Closed)
    }

    /// Whether this outbox entry is on its way into the chain.
    pub(crate) fn is_in_flight(&self, entry: Uuid) -> bool {
        self.state.in_flight().contains(&entry)
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Option<Arc<Record>>> {
        self.tail.upgrade().map_or_else(|| broadcast::channel(1).1, |tail| tail.subscribe())
    }

    /// Where records are told; none once the store is closed.
    pub(super) fn subscribers(&self) -> Option<broadcast::Sender<Option<Arc<Record>>>> {
        self.tail.upgrade()
    }

    /// Takes nothing more and waits for what is on its way, but not for ever; whether nothing is on
    /// its way any more.
    pub(crate) async fn close(&self) -> bool {
        self.queue.store(None);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(task) = task else { return false };
        let abort = task.abort_handle();
        let ended = timeout(CLOSE_TIMEOUT, task).await.is_ok_and(|ended| ended.is_ok());
        if !ended {
            // It holds no driver future: those run in tasks of their own.
            abort.abort();
            tracing::error!(
                "MongoDB does not answer: audit records that nobody was promised are lost"
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
    state: Arc<State>,
}

/// A record, and how it is kept.
#[derive(Clone)]
struct PreparedRecord {
    record: Arc<Record>,
    document: Document,
    /// Gone when no caller waits any more: see [`Entry::caller`].
    caller: Option<Weak<()>>,
}

impl ChainWriter {
    async fn serve(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut jobs = Vec::with_capacity(BATCH_MAX);
        while queue.recv_many(&mut jobs, BATCH_MAX).await > 0 {
            *self.state.writing_since() = Some(Instant::now());
            let written = self.write(&jobs).await;
            *self.state.writing_since() = None;
            for job in jobs.drain(..) {
                self.state.remove_in_flight(&job.entries);
                if let Some(reply) = job.reply {
                    // Who does not wait any more does not mind.
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
                // Somebody else's records stand where ours should.
                Ok(false) => match self.catch_up().await {
                    // What both this process and that one were to record, that one has.
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
            tracing::info!("audit records are written again");
        }
        self.state.sequence.store(tip.sequence, SeqCst);
        self.node.set_chain_tip(&tip);
        self.tip = tip;
        for prepared in prepared {
            // Nobody may be listening.
            let _ = self.tail.send(Some(prepared.record));
        }
        Ok(())
    }

    /// Goes on from what an earlier process of this node wrote, which was on its way when this one
    /// began; which entries that recorded. `None` if a later process has the name.
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
            verify_tip(&self.connection, &self.key, &self.node.name, self.tip.clone()).await?;
        Ok(Some(there))
    }

    /// Waits before the next attempt; the fault, if there shall be none.
    async fn back_off(&self, fault: MongoError) -> Result<(), MongoError> {
        if self.connection.is_closed() {
            return Err(fault);
        }
        if !self.state.is_retrying.swap(true, SeqCst) {
            tracing::warn!(%fault, "audit records cannot be written, trying on");
        }
        pause(RETRY_DELAY).await;
        Ok(())
    }

    /// The records, but for those that are there, and the end of the chain with them.
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

    /// Notes of records that are kept that their callers were not answered in time.
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

    /// Whether all of them stand; false if others stand in their places.
    async fn insert(
        &self,
        prepared: &[PreparedRecord],
        is_retry: bool,
    ) -> Result<bool, MongoError> {
        // An attempt may have been kept at any time since: after a failed one, nobody knows whether
        // the caller still waited.
        let is_late = |prepared: &PreparedRecord| {
            prepared.caller.is_some() && (is_retry || prepared.is_late())
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
        // It was under way when the caller gave up.
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
    /// Whether its caller has been told that the outcome is not known.
    fn is_late(&self) -> bool {
        self.caller.as_ref().is_some_and(|caller| caller.strong_count() == 0)
    }

    /// The document, as it is to be kept if it is written now.
    fn document_to_insert(&self, late: bool) -> Document {
        let mut document = self.document.clone();
        if late {
            document.insert(LATE_FIELD, true);
        }
        document
    }
}
