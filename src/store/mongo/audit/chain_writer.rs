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
    records::{End, LATE, STRIDE, encoded, last, records, sealed},
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
const QUEUE: usize = 4_096;
/// Jobs in one command.
const BATCH: usize = 512;
/// How far a listener may lag behind.
const LAG: usize = 1_024;
/// Between two attempts at a write that does not succeed.
const PAUSE: Duration = Duration::from_millis(100);
/// How long closing waits for what is on its way.
const LAST: Duration = Duration::from_secs(5);

/// How long a write may be under way before who need not wait waits all the same.
const SOON: Duration = Duration::from_millis(50);

/// Events to be appended together.
struct Job {
    entries: Vec<Entry>,
    /// Whose outbox they are in.
    owner: Option<OutboxOwner>,
    reply: Option<oneshot::Sender<Result<(), MongoError>>>,
}

/// The way to the task that appends.
pub(crate) struct Chain {
    queue: ArcSwapOption<mpsc::Sender<Job>>,
    tail: broadcast::WeakSender<Option<Arc<Record>>>,
    state: Arc<State>,
    task: Mutex<Option<JoinHandle<()>>>,
    deadline: Duration,
    /// Where it was when this process began.
    begin: u64,
}

/// What the task and its callers both see.
struct State {
    sequence: AtomicU64,
    /// Whether the last write did not succeed at once.
    struggles: AtomicBool,
    /// Since when a write is under way.
    writing: Mutex<Option<Instant>>,
    /// The entries in the queue and under way, whether or not anybody still waits for them: they
    /// will be in the chain.
    held: Mutex<HashSet<Uuid>>,
}

impl State {
    fn writing(&self) -> MutexGuard<'_, Option<Instant>> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn let_go(&self, entries: &[Entry]) {
        let mut held = self.held();
        for entry in entries {
            held.remove(&entry.id);
        }
    }
}

impl Chain {
    /// Starts the task, behind the record `end`.
    pub(crate) fn start(
        connection: Arc<Connection>,
        node: Arc<Node>,
        key: ChainKey,
        end: End,
        cleaner: OutboxCleaner,
    ) -> Self {
        let (queue, jobs) = mpsc::channel(QUEUE);
        let tail = broadcast::Sender::new(LAG);
        let weak = tail.downgrade();
        let state = Arc::new(State {
            sequence: AtomicU64::new(end.sequence),
            struggles: AtomicBool::new(false),
            writing: Mutex::default(),
            held: Mutex::default(),
        });
        let (deadline, begin) = (connection.deadline(), end.sequence);
        let writer = Writer { connection, node, key, end, cleaner, tail, state: state.clone() };
        let task = Mutex::new(Some(tokio::spawn(writer.serve(jobs))));
        Self { queue: ArcSwapOption::from_pointee(queue), tail: weak, state, task, deadline, begin }
    }

    /// The last record that is kept.
    pub(crate) fn sequence(&self) -> u64 {
        self.state.sequence.load(SeqCst)
    }

    /// Whether what came after this record, and is in the chain, was put there before this process
    /// began.
    pub(super) fn is_of_an_earlier_process(&self, after: u64) -> bool {
        after < self.begin
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
            self.state.held().extend(entries.iter().map(|entry| entry.id));
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
        let slow = self.state.writing().is_some_and(|since| since.elapsed() > SOON);
        if slow || self.state.struggles.load(SeqCst) {
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
    pub(crate) fn holds(&self, entry: Uuid) -> bool {
        self.state.held().contains(&entry)
    }

    pub(crate) fn tail(&self) -> broadcast::Receiver<Option<Arc<Record>>> {
        self.tail.upgrade().map_or_else(|| broadcast::channel(1).1, |tail| tail.subscribe())
    }

    /// Where records are told; none once the store is closed.
    pub(super) fn listeners(&self) -> Option<broadcast::Sender<Option<Arc<Record>>>> {
        self.tail.upgrade()
    }

    /// Takes nothing more and waits for what is on its way, but not for ever; whether nothing is on
    /// its way any more.
    pub(crate) async fn close(&self) -> bool {
        self.queue.store(None);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(task) = task else { return false };
        let abort = task.abort_handle();
        let ended = timeout(LAST, task).await.is_ok_and(|ended| ended.is_ok());
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

struct Writer {
    connection: Arc<Connection>,
    node: Arc<Node>,
    key: ChainKey,
    end: End,
    cleaner: OutboxCleaner,
    tail: broadcast::Sender<Option<Arc<Record>>>,
    state: Arc<State>,
}

/// A record, and how it is kept.
#[derive(Clone)]
struct Made {
    record: Arc<Record>,
    document: Document,
    /// Gone when no caller waits any more: see [`Entry::caller`].
    caller: Option<Weak<()>>,
}

impl Writer {
    async fn serve(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut jobs = Vec::with_capacity(BATCH);
        while queue.recv_many(&mut jobs, BATCH).await > 0 {
            *self.state.writing() = Some(Instant::now());
            let written = self.write(&jobs).await;
            *self.state.writing() = None;
            for job in jobs.drain(..) {
                self.state.let_go(&job.entries);
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
        let (mut made, mut end) = self.make(jobs, &HashSet::new())?;
        let mut again = false;
        loop {
            match self.insert(&made, again).await {
                Ok(true) => break,
                // Somebody else's records stand where ours should.
                Ok(false) => match self.catch_up().await {
                    // What both this process and that one were to record, that one has.
                    Ok(Some(there)) => (made, end) = self.make(jobs, &there)?,
                    Ok(None) => {
                        self.connection.close_name_taken();
                        return Err(MongoError::NodeNameTaken);
                    }
                    Err(fault) => self.struggle(fault).await?,
                },
                Err(fault) => self.struggle(fault).await?,
            }
            again = true;
        }
        if self.state.struggles.swap(false, SeqCst) {
            tracing::info!("audit records are written again");
        }
        self.state.sequence.store(end.sequence, SeqCst);
        self.node.came_to(&end);
        self.end = end;
        for made in made {
            // Nobody may be listening.
            let _ = self.tail.send(Some(made.record));
        }
        Ok(())
    }

    /// Goes on from what an earlier process of this node wrote, which was on its way when this one
    /// began; which entries that recorded. `None` if a later process has the name.
    async fn catch_up(&mut self) -> Result<Option<HashSet<Uuid>>, MongoError> {
        if !self.node.is_ours(&self.connection).await? {
            return Ok(None);
        }
        let written = records(&self.connection, &self.node.name, self.end.sequence, STRIDE).await?;
        let ours =
            written.iter().filter(|record| sealed(record).is_ok_and(|head| self.key.check(&head)));
        let there = ours
            .filter_map(|record| Fields::of("audit record", record).uuid("entry").ok())
            .collect();
        self.end = last(&self.connection, &self.key, &self.node.name, self.end.clone()).await?;
        Ok(Some(there))
    }

    /// Waits before the next attempt; the fault, if there shall be none.
    async fn struggle(&self, fault: MongoError) -> Result<(), MongoError> {
        if self.connection.is_closed() {
            return Err(fault);
        }
        if !self.state.struggles.swap(true, SeqCst) {
            tracing::warn!(%fault, "audit records cannot be written, trying on");
        }
        pause(PAUSE).await;
        Ok(())
    }

    /// The records, but for those that are there, and the end of the chain with them.
    fn make(&self, jobs: &[Job], there: &HashSet<Uuid>) -> Result<(Vec<Made>, End), MongoError> {
        let mut end = self.end.clone();
        let mut made = Vec::new();
        for entry in
            jobs.iter().flat_map(|job| &job.entries).filter(|entry| !there.contains(&entry.id))
        {
            let sequence = end.sequence.saturating_add(1);
            let hash = link(&end.hash, sequence, &self.node.name, &entry.body);
            let name = self.node.name.clone();
            end = End { sequence, hash, newest: end.newest_with(&name, &entry.event) };
            let record = Record {
                chain: name.clone(),
                sequence,
                node: name,
                event: entry.event.clone(),
                hash,
            };
            let document = encoded(&record, entry.id, &self.key)?;
            made.push(Made { record: Arc::new(record), document, caller: entry.caller.clone() });
        }
        Ok((made, end))
    }

    /// Notes of records that are kept that their callers were not answered in time.
    async fn note_late(&self, late: impl Iterator<Item = &Made>) -> Result<(), MongoError> {
        let ids: Vec<Bson> = late.filter_map(|made| made.document.get("_id").cloned()).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let logs = self.connection.collection(AUDIT_LOGS);
        let late = doc! { "_id": { "$in": ids } };
        self.connection
            .call(async move { Ok(logs.update_many(late, doc! { "$set": { LATE: true } }).await?) })
            .await
            .map(drop)
    }

    /// Whether all of them stand; false if others stand in their places.
    async fn insert(&self, made: &[Made], again: bool) -> Result<bool, MongoError> {
        // An attempt may have been kept at any time since: after a failed one, nobody knows whether
        // the caller still waited.
        let is_late = |made: &Made| made.caller.is_some() && (again || made.is_late());
        let late: Vec<bool> = made.iter().map(is_late).collect();
        let mut missing: Vec<Document> =
            made.iter().zip(&late).map(|(made, late)| made.kept(*late)).collect();
        if again {
            let first = made.first().map_or(0, |made| made.record.sequence);
            let there =
                records(&self.connection, &self.node.name, first.saturating_sub(1), made.len())
                    .await?;
            for (found, made) in there.iter().zip(made) {
                if Fields::of("audit record", found).hash("hash")? != made.record.hash {
                    return Ok(false);
                }
            }
            self.note_late(made.iter().take(there.len()).filter(|made| is_late(made))).await?;
            missing.drain(..there.len().min(missing.len()));
        }
        if missing.is_empty() {
            return Ok(true);
        }
        let logs = self.connection.collection(AUDIT_LOGS);
        self.connection.call(async move { Ok(logs.insert_many(missing).await?) }).await?;
        // It was under way when the caller gave up.
        self.note_late(
            made.iter()
                .zip(&late)
                .filter(|(made, late)| !**late && made.is_late())
                .map(|(made, _)| made),
        )
        .await?;
        Ok(true)
    }
}

impl Made {
    /// Whether its caller has been told that the outcome is not known.
    fn is_late(&self) -> bool {
        self.caller.as_ref().is_some_and(|caller| caller.strong_count() == 0)
    }

    /// The document, as it is to be kept if it is written now.
    fn kept(&self, late: bool) -> Document {
        let mut document = self.document.clone();
        if late {
            document.insert(LATE, true);
        }
        document
    }
}
