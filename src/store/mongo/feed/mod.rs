//! What every node hears: a change stream over the database, from which the followers of this node
//! are told of each change in the order of the commits, its own ones included. Where the stream
//! breaks off it is taken up again behind the last thing heard; where the server has forgotten that
//! place, or the feed was told nothing for too long, everything is read afresh.
//!
//! How much is known is measured, not assumed: a heartbeat written by this node comes back over the
//! stream behind everything that was committed before it. A primary that was cut off from the
//! others cannot pretend to be one.

mod decode;
pub(super) mod snapshot;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use mongodb::bson::Document;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, timeout},
};
use uuid::Uuid;

use self::decode::StreamEvent;
use super::Shared;
use crate::store::{
    Change, Follower,
    mongo::driver::{
        change_stream::{Batch, REFUSALS_MAX, ResumeToken, Stream},
        connection::{Connection, pause},
        error::MongoError,
    },
};

/// How long a verb waits for its own change to come back before it tells the followers itself.
const OWN_CHANGE_TIMEOUT: Duration = Duration::from_secs(1);
/// After how long a silence the stream is given up: the server answers twice a second, also when
/// there is nothing to tell.
const SILENCE_TIMEOUT: Duration = Duration::from_millis(2_500);
/// Between two attempts at opening the stream.
const REOPEN_DELAY: Duration = Duration::from_millis(200);
/// How long a stream may be behind this node's heartbeats before another one is opened.
const LAG_MAX: Duration = Duration::from_secs(5);
/// Readers that were given up and have not ended yet: no more are begun than these.
const READERS_MAX: usize = 3;
/// Batches that are read ahead of what was told.
const BATCHES_AHEAD_MAX: usize = 4;
/// How many changes are remembered for verbs that come to wait for them only now.
const RECENT_MAX: usize = 4_096;

/// Followers, and verbs that wait for their changes.
#[derive(Default)]
pub(super) struct Feed {
    followers: Mutex<Vec<Arc<dyn Follower>>>,
    own_changes: Mutex<OwnChanges>,
    /// Whether a stream is open.
    is_streaming: AtomicBool,
}

#[derive(Default)]
struct OwnChanges {
    waiters: HashMap<Uuid, oneshot::Sender<()>>,
    recent: VecDeque<Uuid>,
    recent_set: HashSet<Uuid>,
}

impl Feed {
    pub(super) fn subscribe(&self, follower: Arc<dyn Follower>) {
        self.followers().push(follower);
    }

    /// Tells every follower.
    pub(super) fn notify(&self, changes: &[Change]) {
        let followers = self.followers();
        for change in changes {
            followers.iter().for_each(|follower| follower.apply(change));
        }
    }

    /// Everything that was committed before `at` has been told.
    pub(super) fn knows_up_to(&self, at: Instant) {
        self.followers().iter().for_each(|follower| follower.knows_up_to(at));
    }

    /// Nothing will be told any more: another process is this node now.
    pub(super) fn lost(&self) {
        self.followers().iter().for_each(|follower| follower.lost());
    }

    /// Waits until the change of this operation was told; tells it itself where the stream is late.
    pub(super) async fn await_own_change(&self, operation: Uuid, changes: &[Change]) {
        if self.is_streaming.load(SeqCst) {
            let Some(own_change_notified) = self.own_changes().register(operation) else { return };
            if matches!(timeout(OWN_CHANGE_TIMEOUT, own_change_notified).await, Ok(Ok(()))) {
                return;
            }
            self.own_changes().waiters.remove(&operation);
        }
        self.notify(changes);
    }

    fn own_change_seen(&self, operation: Uuid) {
        let mut own_changes = self.own_changes();
        if let Some(verb) = own_changes.waiters.remove(&operation) {
            // It may have given up just now.
            let _ = verb.send(());
            return;
        }
        own_changes.recent_set.insert(operation);
        own_changes.recent.push_back(operation);
        if own_changes.recent.len() > RECENT_MAX
            && let Some(oldest) = own_changes.recent.pop_front()
        {
            own_changes.recent_set.remove(&oldest);
        }
    }

    fn followers(&self) -> MutexGuard<'_, Vec<Arc<dyn Follower>>> {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn own_changes(&self) -> MutexGuard<'_, OwnChanges> {
        self.own_changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OwnChanges {
    /// `None` if it has come already.
    fn register(&mut self, operation: Uuid) -> Option<oneshot::Receiver<()>> {
        if self.recent_set.contains(&operation) {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        self.waiters.insert(operation, sender);
        Some(receiver)
    }
}

/// What the task that reads the stream tells.
enum Message {
    Opened,
    Batch(Batch),
    Failed(MongoError),
}

/// Reads from a stream, in a task that nothing cuts off: it ends when nobody listens any more, or
/// with the stream.
fn spawn_reader(
    shared: &Shared,
    from: Option<ResumeToken>,
) -> (JoinHandle<()>, mpsc::Receiver<Message>) {
    let (sender, receiver) = mpsc::channel(BATCHES_AHEAD_MAX);
    let (connection, pipeline) = (shared.connection.clone(), decode::pipeline(&shared.node.name));
    let reader = tokio::spawn(async move {
        if let Err(fault) = forward_batches(&connection, from, pipeline, &sender).await {
            // Perhaps nobody listens any more.
            let _ = sender.send(Message::Failed(fault)).await;
        }
    });
    (reader, receiver)
}

async fn forward_batches(
    connection: &Connection,
    from: Option<ResumeToken>,
    pipeline: Vec<Document>,
    sender: &mpsc::Sender<Message>,
) -> Result<(), MongoError> {
    let mut stream = Stream::open(connection, None, from, pipeline).await?;
    let mut listens = sender.send(Message::Opened).await.is_ok();
    while listens && let Some(batch) = stream.next().await? {
        listens = sender.send(Message::Batch(batch)).await.is_ok();
    }
    Ok(())
}

/// How a stream ended.
enum StreamEnd {
    /// It can be taken up where it was.
    Resumable,
    /// It said nothing at all.
    NoEvents,
    /// What came in between is lost.
    PositionLost,
}

/// How far the stream was heard.
#[derive(Default)]
struct Position {
    resume_token: Option<ResumeToken>,
    /// Whether there is a gap before the next stream: then everything is read afresh once that is
    /// open.
    has_gap: bool,
    /// How many streams in a row said nothing.
    empty_streams: u32,
    /// How many times in a row the server refused.
    refused: u32,
    /// Whether the log knows that it broke off: an outage is one line, not one for each attempt.
    logged: bool,
}

impl Position {
    /// Goes on at whatever moment the next stream begins.
    fn forget_position(&mut self) {
        (self.resume_token, self.has_gap) = (None, true);
    }

    fn record_end(&mut self, end: &Result<StreamEnd, MongoError>) {
        self.empty_streams = if matches!(end, Ok(StreamEnd::NoEvents)) {
            self.empty_streams.saturating_add(1)
        } else {
            0
        };
        self.refused = if end.as_ref().is_err_and(MongoError::is_server_reply) {
            self.refused.saturating_add(1)
        } else {
            0
        };
        match end {
            Ok(StreamEnd::PositionLost) => self.forget_position(),
            // The way from there to here may be longer than anybody waits for: then everything is
            // read afresh instead.
            Ok(StreamEnd::NoEvents) if self.empty_streams > 1 => self.forget_position(),
            Err(fault) if fault.is_history_lost() => self.forget_position(),
            // Nor is a place of any use that the server goes on refusing for another reason.
            Err(_) if self.refused > REFUSALS_MAX => self.forget_position(),
            // Without a place the next stream begins at its own moment.
            Ok(StreamEnd::Resumable | StreamEnd::NoEvents) | Err(_) => {
                self.has_gap = self.has_gap || self.resume_token.is_none()
            }
        }
    }
}

/// Keeps the followers told for as long as the store is open. Answers `opened` when the first
/// stream is.
pub(super) async fn run(shared: Arc<Shared>, opened: oneshot::Sender<Result<(), MongoError>>) {
    let (mut opened, mut position) = (Some(opened), Position::default());
    let mut readers: Vec<JoinHandle<()>> = Vec::new();
    while !shared.connection.is_closed() {
        readers.retain(|reader| !reader.is_finished());
        if readers.len() >= READERS_MAX {
            pause(REOPEN_DELAY).await;
            continue;
        }
        let (reader, messages) = spawn_reader(&shared, position.resume_token.clone());
        readers.push(reader);
        let end = follow(&shared, messages, &mut position, &mut opened).await;
        shared.feed.is_streaming.store(false, SeqCst);
        position.record_end(&end);
        if let Err(fault) = end {
            if let Some(opened) = opened.take() {
                let _ = opened.send(Err(fault));
                return;
            }
            if !shared.connection.is_closed() && !std::mem::replace(&mut position.logged, true) {
                tracing::warn!(%fault, rebuilds = position.has_gap, "the change stream broke off");
            }
        }
        // Who refuses again and again is not asked many times a second, each time after everything
        // was read.
        pause(REOPEN_DELAY.saturating_mul(position.refused.clamp(1, REFUSALS_MAX))).await;
    }
}

/// One stream, to its end.
async fn follow(
    shared: &Arc<Shared>,
    mut messages: mpsc::Receiver<Message>,
    position: &mut Position,
    opened: &mut Option<oneshot::Sender<Result<(), MongoError>>>,
) -> Result<StreamEnd, MongoError> {
    let (mut received_any, mut open_since) = (false, Instant::now());
    loop {
        let message = match timeout(SILENCE_TIMEOUT, messages.recv()).await {
            Ok(Some(message)) => message,
            // A frozen server keeps the connection and says nothing.
            Ok(None) | Err(_) => {
                return Ok(if received_any { StreamEnd::Resumable } else { StreamEnd::NoEvents });
            }
        };
        if shared.connection.is_closed() {
            return Ok(StreamEnd::Resumable);
        }
        match message {
            Message::Failed(fault) => return Err(fault),
            Message::Opened => {
                if position.has_gap {
                    reload_snapshot(shared).await?;
                    position.has_gap = false;
                    // However long that took: what came meanwhile is waiting to be heard.
                    open_since = Instant::now();
                }
                shared.feed.is_streaming.store(true, SeqCst);
                if let Some(opened) = opened.take() {
                    // The store may have been given up while it was opening.
                    let _ = opened.send(Ok(()));
                }
            }
            Message::Batch(batch) => {
                for document in &batch.events {
                    let event = decode::decode(document).inspect_err(|fault| {
                        // Not passed over: what it says may be that a token was ended.
                        tracing::error!(%fault, "a change cannot be understood, reading everything \
                                                 afresh");
                    });
                    let Ok(event) = event else { return Ok(StreamEnd::PositionLost) };
                    if !shared.apply_event(event) {
                        tracing::error!("a collection was dropped or renamed");
                        return Ok(StreamEnd::PositionLost);
                    }
                }
                position.resume_token = Some(batch.resume_token);
                if batch.is_resumable {
                    received_any = true;
                    position.refused = 0;
                    if std::mem::take(&mut position.logged) {
                        tracing::info!("the change stream goes on");
                    }
                }
            }
        }
        // Only once everything at hand was heard.
        if messages.is_empty()
            && open_since.elapsed() > LAG_MAX
            && shared.node.has_unseen_heartbeat(LAG_MAX / 2)
        {
            tracing::warn!("the change stream is behind the majority, opening another one");
            return Ok(StreamEnd::Resumable);
        }
    }
}

impl Shared {
    /// Tells the followers; `false` if there is nothing left to go on from.
    fn apply_event(&self, event: StreamEvent) -> bool {
        match event {
            StreamEvent::Changes(operation, changes) => {
                self.feed.notify(&changes);
                if let Some(operation) = operation {
                    self.feed.own_change_seen(operation);
                }
            }
            StreamEvent::Heartbeat(number) => {
                if let Some(at) = self.node.heartbeat_seen(number) {
                    self.feed.knows_up_to(at.checked_sub(self.clock_margin).unwrap_or(at));
                }
            }
            StreamEvent::CollectionDropped => return false,
        }
        true
    }
}

/// Tells the followers everything as it stands. The stream is open already, so nothing falls in
/// between.
async fn reload_snapshot(shared: &Arc<Shared>) -> Result<(), MongoError> {
    let full = shared.read_snapshot().await?;
    tracing::info!(revocations = full.snapshot.revocations.len(), "read afresh what was ended");
    shared.feed.notify(&full.changes());
    Ok(())
}

/// Where there are no change streams, a server alone: everything is read again and again.
pub(super) async fn poll(shared: Arc<Shared>) {
    let (least, most) = (Duration::from_secs(1), Duration::from_secs(2));
    let mut time = least;
    while !shared.connection.is_closed() {
        pause(time).await;
        let at = Instant::now();
        match shared.read_snapshot().await {
            Ok(full) => {
                shared.feed.notify(&full.changes());
                shared.feed.knows_up_to(at);
            }
            Err(fault) if !shared.connection.is_closed() => {
                tracing::warn!(%fault, "cannot read what was ended")
            }
            Err(_) => {}
        }
        // A long answer must not become all that the server does, nor the pause what makes this
        // node be behind.
        time = at.elapsed().saturating_mul(3).clamp(least, most);
    }
}
