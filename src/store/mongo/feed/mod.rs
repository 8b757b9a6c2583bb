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

use self::decode::Heard;
use super::Shared;
use crate::store::{
    Change, Follower,
    mongo::driver::{
        change_stream::{Batch, Place, REFUSALS, Stream},
        connection::{Connection, pause},
        error::MongoError,
    },
};

/// How long a verb waits for its own change to come back before it tells the followers itself.
const COMES_BACK: Duration = Duration::from_secs(1);
/// After how long a silence the stream is given up: the server answers twice a second, also when
/// there is nothing to tell.
const SILENCE: Duration = Duration::from_millis(2_500);
/// Between two attempts at opening the stream.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a stream may be behind this node's heartbeats before another one is opened.
const BEHIND: Duration = Duration::from_secs(5);
/// Readers that were given up and have not ended yet: no more are begun than these.
const READERS: usize = 3;
/// Batches that are read ahead of what was told.
const AHEAD: usize = 4;
/// How many changes are remembered for verbs that come to wait for them only now.
const REMEMBERED: usize = 4_096;

/// Followers, and verbs that wait for their changes.
#[derive(Default)]
pub(super) struct Feed {
    followers: Mutex<Vec<Arc<dyn Follower>>>,
    waiting: Mutex<Waiting>,
    /// Whether a stream is open.
    streams: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    verbs: HashMap<Uuid, oneshot::Sender<()>>,
    past: VecDeque<Uuid>,
    known: HashSet<Uuid>,
}

impl Feed {
    pub(super) fn join(&self, follower: Arc<dyn Follower>) {
        self.followers().push(follower);
    }

    /// Tells every follower.
    pub(super) fn tell(&self, changes: &[Change]) {
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
    pub(super) async fn heard(&self, operation: Uuid, changes: &[Change]) {
        if self.streams.load(SeqCst) {
            let Some(told) = self.waiting().expect(operation) else { return };
            if matches!(timeout(COMES_BACK, told).await, Ok(Ok(()))) {
                return;
            }
            self.waiting().verbs.remove(&operation);
        }
        self.tell(changes);
    }

    fn came(&self, operation: Uuid) {
        let mut waiting = self.waiting();
        if let Some(verb) = waiting.verbs.remove(&operation) {
            // It may have given up just now.
            let _ = verb.send(());
            return;
        }
        waiting.known.insert(operation);
        waiting.past.push_back(operation);
        if waiting.past.len() > REMEMBERED
            && let Some(oldest) = waiting.past.pop_front()
        {
            waiting.known.remove(&oldest);
        }
    }

    fn followers(&self) -> MutexGuard<'_, Vec<Arc<dyn Follower>>> {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// `None` if it has come already.
    fn expect(&mut self, operation: Uuid) -> Option<oneshot::Receiver<()>> {
        if self.known.contains(&operation) {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        self.verbs.insert(operation, sender);
        Some(receiver)
    }
}

/// What the task that reads the stream tells.
enum Message {
    Opened,
    Heard(Batch),
    Failed(MongoError),
}

/// Reads from a stream, in a task that nothing cuts off: it ends when nobody listens any more, or
/// with the stream.
fn read(shared: &Shared, from: Option<Place>) -> (JoinHandle<()>, mpsc::Receiver<Message>) {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let (connection, pipeline) = (shared.connection.clone(), decode::pipeline(&shared.node.name));
    let reader = tokio::spawn(async move {
        if let Err(fault) = tell(&connection, from, pipeline, &sender).await {
            // Perhaps nobody listens any more.
            let _ = sender.send(Message::Failed(fault)).await;
        }
    });
    (reader, receiver)
}

async fn tell(
    connection: &Connection,
    from: Option<Place>,
    pipeline: Vec<Document>,
    to: &mpsc::Sender<Message>,
) -> Result<(), MongoError> {
    let mut stream = Stream::open(connection, None, from, pipeline).await?;
    let mut listens = to.send(Message::Opened).await.is_ok();
    while listens && let Some(batch) = stream.next().await? {
        listens = to.send(Message::Heard(batch)).await.is_ok();
    }
    Ok(())
}

/// How a stream ended.
enum Broken {
    /// It can be taken up where it was.
    Off,
    /// It said nothing at all.
    Silent,
    /// What came in between is lost.
    Lost,
}

/// How far the stream was heard.
#[derive(Default)]
struct Position {
    place: Option<Place>,
    /// Whether there is a gap before the next stream: then everything is read afresh once that is
    /// open.
    lost: bool,
    /// How many streams in a row said nothing.
    silent: u32,
    /// How many times in a row the server refused.
    refused: u32,
    /// Whether the log knows that it broke off: an outage is one line, not one for each attempt.
    logged: bool,
}

impl Position {
    /// Goes on at whatever moment the next stream begins.
    fn lose(&mut self) {
        (self.place, self.lost) = (None, true);
    }

    fn breaks_off(&mut self, broken: &Result<Broken, MongoError>) {
        self.silent =
            if matches!(broken, Ok(Broken::Silent)) { self.silent.saturating_add(1) } else { 0 };
        self.refused = if broken.as_ref().is_err_and(MongoError::is_server_reply) {
            self.refused.saturating_add(1)
        } else {
            0
        };
        match broken {
            Ok(Broken::Lost) => self.lose(),
            // The way from there to here may be longer than anybody waits for: then everything is
            // read afresh instead.
            Ok(Broken::Silent) if self.silent > 1 => self.lose(),
            Err(fault) if fault.is_history_lost() => self.lose(),
            // Nor is a place of any use that the server goes on refusing for another reason.
            Err(_) if self.refused > REFUSALS => self.lose(),
            // Without a place the next stream begins at its own moment.
            Ok(Broken::Off | Broken::Silent) | Err(_) => {
                self.lost = self.lost || self.place.is_none()
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
        if readers.len() >= READERS {
            pause(PAUSE).await;
            continue;
        }
        let (reader, messages) = read(&shared, position.place.clone());
        readers.push(reader);
        let broken = follow(&shared, messages, &mut position, &mut opened).await;
        shared.feed.streams.store(false, SeqCst);
        position.breaks_off(&broken);
        if let Err(fault) = broken {
            if let Some(opened) = opened.take() {
                let _ = opened.send(Err(fault));
                return;
            }
            if !shared.connection.is_closed() && !std::mem::replace(&mut position.logged, true) {
                tracing::warn!(%fault, rebuilds = position.lost, "the change stream broke off");
            }
        }
        // Who refuses again and again is not asked many times a second, each time after everything
        // was read.
        pause(PAUSE.saturating_mul(position.refused.clamp(1, REFUSALS))).await;
    }
}

/// One stream, to its end.
async fn follow(
    shared: &Arc<Shared>,
    mut messages: mpsc::Receiver<Message>,
    position: &mut Position,
    opened: &mut Option<oneshot::Sender<Result<(), MongoError>>>,
) -> Result<Broken, MongoError> {
    let (mut heard_any, mut began) = (false, Instant::now());
    loop {
        let message = match timeout(SILENCE, messages.recv()).await {
            Ok(Some(message)) => message,
            // A frozen server keeps the connection and says nothing.
            Ok(None) | Err(_) => return Ok(if heard_any { Broken::Off } else { Broken::Silent }),
        };
        if shared.connection.is_closed() {
            return Ok(Broken::Off);
        }
        match message {
            Message::Failed(fault) => return Err(fault),
            Message::Opened => {
                if position.lost {
                    rebuild(shared).await?;
                    position.lost = false;
                    // However long that took: what came meanwhile is waiting to be heard.
                    began = Instant::now();
                }
                shared.feed.streams.store(true, SeqCst);
                if let Some(opened) = opened.take() {
                    // The store may have been given up while it was opening.
                    let _ = opened.send(Ok(()));
                }
            }
            Message::Heard(batch) => {
                for event in &batch.events {
                    let heard = decode::heard(event).inspect_err(|fault| {
                        // Not passed over: what it says may be that a token was ended.
                        tracing::error!(%fault, "a change cannot be understood, reading everything \
                                                 afresh");
                    });
                    let Ok(heard) = heard else { return Ok(Broken::Lost) };
                    if !shared.take_in(heard) {
                        tracing::error!("a collection was dropped or renamed");
                        return Ok(Broken::Lost);
                    }
                }
                position.place = Some(batch.place);
                if batch.goes_on {
                    heard_any = true;
                    position.refused = 0;
                    if std::mem::take(&mut position.logged) {
                        tracing::info!("the change stream goes on");
                    }
                }
            }
        }
        // Only once everything at hand was heard.
        if messages.is_empty()
            && began.elapsed() > BEHIND
            && shared.node.has_unseen_heartbeat(BEHIND / 2)
        {
            tracing::warn!("the change stream is behind the majority, opening another one");
            return Ok(Broken::Off);
        }
    }
}

impl Shared {
    /// Tells the followers; `false` if there is nothing left to go on from.
    fn take_in(&self, heard: Heard) -> bool {
        match heard {
            Heard::Changes(operation, changes) => {
                self.feed.tell(&changes);
                if let Some(operation) = operation {
                    self.feed.came(operation);
                }
            }
            Heard::Beat(beat) => {
                if let Some(at) = self.node.heartbeat_seen(beat) {
                    self.feed.knows_up_to(at.checked_sub(self.margin).unwrap_or(at));
                }
            }
            Heard::Gone => return false,
        }
        true
    }
}

/// Tells the followers everything as it stands. The stream is open already, so nothing falls in
/// between.
async fn rebuild(shared: &Arc<Shared>) -> Result<(), MongoError> {
    let known = shared.known().await?;
    tracing::info!(revocations = known.standing.revocations.len(), "read afresh what was ended");
    shared.feed.tell(&known.changes());
    Ok(())
}

/// Where there are no change streams, a server alone: everything is read again and again.
pub(super) async fn poll(shared: Arc<Shared>) {
    let (least, most) = (Duration::from_secs(1), Duration::from_secs(2));
    let mut time = least;
    while !shared.connection.is_closed() {
        pause(time).await;
        let at = Instant::now();
        match shared.known().await {
            Ok(known) => {
                shared.feed.tell(&known.changes());
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
