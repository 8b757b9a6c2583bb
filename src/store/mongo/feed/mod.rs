//! Change feed of a node: a change stream over the database, from which this node's followers are
//! notified of each change in commit order, its own ones included: of those the
//! operation itself has notified them before.
//!
//! | position | event | next | written where |
//! |--|--|--|--|
//! | none, no gap | the first stream opens | following from now on | [`run`] |
//! | following | a batch | following, with the batch's resume token | `follow` |
//! | following | the stream ends, lags, or fails otherwise than below | resumes at the token; without one: gap | `StreamPosition::record_end` |
//! | following | no events from two streams in a row | gap: a resume may take longer than callers wait | `StreamPosition::record_end` |
//! | following | the server has lost the history, or has refused [`REFUSALS_MAX`] times in a row | gap | `StreamPosition::record_end` |
//! | following | an undecodable event, or a collection was dropped | gap | `follow` |
//! | gap: no token | the next stream opens | a full snapshot is notified; then following | `reload_snapshot` |
//! | gap: no token | the snapshot cannot be read | gap | `StreamPosition::record_end` |
//!
//! The age of the data is measured, not assumed: a heartbeat written by this node is seen again on
//! the stream after everything that was committed before it. A primary that is partitioned from the
//! majority cannot pretend to be current.

mod decode;
pub(super) mod snapshot;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use mongodb::bson::Document;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, timeout},
};

use self::decode::StreamEvent;
use crate::store::{
    Change, Follower,
    mongo::{
        audit::node_lease::Node,
        driver::{
            change_stream::{Batch, REFUSALS_MAX, ResumeToken, Stream},
            connection::{BACKGROUND_TIMEOUT, Connection, pause},
            error::MongoError,
        },
    },
};

/// Silence after which a stream is given up: the server replies twice a second, also without
/// events.
const SILENCE_TIMEOUT: Duration = Duration::from_millis(2_500);
/// Delay between two attempts to open the stream.
const REOPEN_DELAY: Duration = Duration::from_millis(200);
/// Lag behind this node's heartbeats after which another stream is opened.
const LAG_MAX: Duration = Duration::from_secs(5);
/// Readers that were given up and have not ended: with this many no further one starts.
const READERS_MAX: usize = 3;
/// Batches read ahead of their notification.
const BATCHES_AHEAD_MAX: usize = 4;

/// Notifies this node's followers of every change, its own and those of other nodes.
pub(crate) struct ChangeFeed {
    connection: Arc<Connection>,
    /// The node, whose heartbeats measure the age of the data.
    node: Arc<Node>,
    /// Clock difference between the shards whose changes the stream merges.
    clock_margin: Duration,
    followers: Mutex<Vec<Arc<dyn Follower>>>,
    /// True once the log reports that the keyset cannot be read.
    is_keyset_unreadable: AtomicBool,
}

impl ChangeFeed {
    /// A feed without followers; nothing runs before [`Self::start`].
    pub(crate) fn new(
        connection: Arc<Connection>,
        node: Arc<Node>,
        clock_margin: Duration,
    ) -> Self {
        Self {
            connection,
            node,
            clock_margin,
            followers: Mutex::default(),
            is_keyset_unreadable: AtomicBool::new(false),
        }
    }

    /// Starts to follow the changes of all nodes until the connection is closed; returns once the
    /// stream is open.
    pub(crate) async fn start(self: &Arc<Self>) -> Result<(), MongoError> {
        let feed = self.clone();
        tokio::spawn(async move {
            if feed.connection.closed().await {
                feed.lost();
            }
        });
        if self.connection.is_standalone() {
            tracing::warn!(
                "MongoDB is standalone: revocations of other nodes arrive up to a second late, and \
                 a disk failure loses acknowledged writes; use a replica set"
            );
            tokio::spawn(poll(self.clone()));
            return Ok(());
        }
        let (opened, answer) = oneshot::channel();
        tokio::spawn(run(self.clone(), opened));
        timeout(BACKGROUND_TIMEOUT, answer)
            .await
            .map_err(|_| MongoError::Timeout(BACKGROUND_TIMEOUT))?
            .map_err(|_| MongoError::Closed)?
    }

    pub(crate) fn subscribe(&self, follower: Arc<dyn Follower>) {
        self.followers().push(follower);
    }

    /// Notifies every follower of changes.
    pub(super) fn notify(&self, changes: &[Change]) {
        let followers = self.followers();
        for change in changes {
            followers.iter().for_each(|follower| follower.apply(change));
        }
    }

    /// Reports that every change committed before `at` was notified.
    fn knows_up_to(&self, at: Instant) {
        self.followers().iter().for_each(|follower| follower.knows_up_to(at));
    }

    /// Reports that no further notification follows: another process has taken this node's name.
    fn lost(&self) {
        self.followers().iter().for_each(|follower| follower.lost());
    }

    fn followers(&self) -> MutexGuard<'_, Vec<Arc<dyn Follower>>> {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Message of the task that reads the stream.
enum Message {
    Opened,
    Batch(Batch),
    Failed(MongoError),
}

/// Starts a reader in a task that nothing cancels: it ends with the stream, or when the receiver is
/// dropped.
fn spawn_reader(
    feed: &ChangeFeed,
    from: Option<ResumeToken>,
) -> (JoinHandle<()>, mpsc::Receiver<Message>) {
    let (sender, receiver) = mpsc::channel(BATCHES_AHEAD_MAX);
    let (connection, pipeline) = (feed.connection.clone(), decode::pipeline(&feed.node.name));
    let reader = tokio::spawn(async move {
        if let Err(fault) = forward_batches(&connection, from, pipeline, &sender).await {
            // The receiver may be gone.
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

/// Reason for the end of a stream.
enum StreamEnd {
    /// It can be resumed at its token.
    Resumable,
    /// It sent nothing at all.
    NoEvents,
    /// Changes since the token are lost.
    PositionLost,
}

/// Position in the change stream.
#[derive(Default)]
struct StreamPosition {
    resume_token: Option<ResumeToken>,
    /// True if there is a gap before the next stream: a full snapshot is read once that is open.
    has_gap: bool,
    /// Consecutive streams without a message.
    empty_streams: u32,
    /// Consecutive refusals by the server.
    refused: u32,
    /// True once the log reports the break: one line for each outage, not for each attempt.
    logged: bool,
}

impl StreamPosition {
    /// Drops the token: the next stream begins at its own start, after a gap.
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
            // The resume may take longer than any caller waits: a snapshot is read instead.
            Ok(StreamEnd::NoEvents) if self.empty_streams > 1 => self.forget_position(),
            Err(fault) if fault.is_history_lost() => self.forget_position(),
            // A token that the server keeps refusing for another reason is of no use either.
            Err(_) if self.refused > REFUSALS_MAX => self.forget_position(),
            // Without a token the next stream begins at its own start.
            Ok(StreamEnd::Resumable | StreamEnd::NoEvents) | Err(_) => {
                self.has_gap = self.has_gap || self.resume_token.is_none()
            }
        }
    }
}

/// Keeps the followers notified while the store is open. Replies on `opened` once the first stream
/// is open.
async fn run(feed: Arc<ChangeFeed>, opened: oneshot::Sender<Result<(), MongoError>>) {
    let (mut opened, mut position) = (Some(opened), StreamPosition::default());
    let mut readers: Vec<JoinHandle<()>> = Vec::new();
    while !feed.connection.is_closed() {
        readers.retain(|reader| !reader.is_finished());
        if readers.len() >= READERS_MAX {
            pause(REOPEN_DELAY).await;
            continue;
        }
        let (reader, messages) = spawn_reader(&feed, position.resume_token.clone());
        readers.push(reader);
        let end = follow(&feed, messages, &mut position, &mut opened).await;
        position.record_end(&end);
        if let Err(fault) = end {
            if let Some(opened) = opened.take() {
                let _ = opened.send(Err(fault));
                return;
            }
            if !feed.connection.is_closed() && !std::mem::replace(&mut position.logged, true) {
                tracing::warn!(
                    %fault, rebuilds = position.has_gap,
                    "change stream interrupted, reconnecting"
                );
            }
        }
        // A server that keeps refusing is not asked many times a second, each time after a full
        // snapshot.
        pause(REOPEN_DELAY.saturating_mul(position.refused.clamp(1, REFUSALS_MAX))).await;
    }
}

/// Follows one stream to its end.
async fn follow(
    feed: &ChangeFeed,
    mut messages: mpsc::Receiver<Message>,
    position: &mut StreamPosition,
    opened: &mut Option<oneshot::Sender<Result<(), MongoError>>>,
) -> Result<StreamEnd, MongoError> {
    let (mut received_any, mut open_since) = (false, Instant::now());
    loop {
        let message = match timeout(SILENCE_TIMEOUT, messages.recv()).await {
            Ok(Some(message)) => message,
            // A frozen server keeps the connection open and sends nothing.
            Ok(None) | Err(_) => {
                return Ok(if received_any { StreamEnd::Resumable } else { StreamEnd::NoEvents });
            }
        };
        if feed.connection.is_closed() {
            return Ok(StreamEnd::Resumable);
        }
        match message {
            Message::Failed(fault) => return Err(fault),
            Message::Opened => {
                if position.has_gap {
                    reload_snapshot(feed).await?;
                    position.has_gap = false;
                    // The snapshot may have taken long: later events are waiting in the channel.
                    open_since = Instant::now();
                }
                if let Some(opened) = opened.take() {
                    // The open may have been given up.
                    let _ = opened.send(Ok(()));
                }
            }
            Message::Batch(batch) => {
                for document in &batch.events {
                    let event = decode::decode(document).inspect_err(|fault| {
                        // Never skipped: it may be a revocation.
                        tracing::error!(
                            %fault,
                            "malformed change event, reloading the revocation snapshot"
                        );
                    });
                    let Ok(event) = event else { return Ok(StreamEnd::PositionLost) };
                    if !feed.apply_event(event) {
                        tracing::error!("a collection was dropped or renamed");
                        return Ok(StreamEnd::PositionLost);
                    }
                }
                position.resume_token = Some(batch.resume_token);
                if batch.is_resumable {
                    received_any = true;
                    position.refused = 0;
                    if std::mem::take(&mut position.logged) {
                        tracing::info!("change stream resumed");
                    }
                }
            }
        }
        // Only after all batches at hand were applied.
        if messages.is_empty()
            && open_since.elapsed() > LAG_MAX
            && feed.node.has_unseen_heartbeat(LAG_MAX / 2)
        {
            tracing::warn!("change stream lags behind the majority, reopening it");
            return Ok(StreamEnd::Resumable);
        }
    }
}

impl ChangeFeed {
    /// Applies an event. Returns false if the stream cannot continue after it.
    fn apply_event(&self, event: StreamEvent) -> bool {
        match event {
            StreamEvent::Changes(changes) => self.notify(&changes),
            StreamEvent::Heartbeat(number) => {
                if let Some(at) = self.node.heartbeat_seen(number) {
                    self.knows_up_to(at.checked_sub(self.clock_margin).unwrap_or(at));
                }
            }
            StreamEvent::CollectionDropped => return false,
        }
        true
    }
}

/// Notifies the followers of a full snapshot. The stream is open already, so no change is missed.
async fn reload_snapshot(feed: &ChangeFeed) -> Result<(), MongoError> {
    let full = feed.read_snapshot().await?;
    tracing::info!(revocations = full.snapshot.revocations.len(), "revocation snapshot reloaded");
    feed.notify(&full.changes());
    Ok(())
}

/// Polls a standalone server, which has no change streams: a full snapshot again and again.
async fn poll(feed: Arc<ChangeFeed>) {
    let (least, most) = (Duration::from_secs(1), Duration::from_secs(2));
    let mut time = least;
    while !feed.connection.is_closed() {
        pause(time).await;
        let at = Instant::now();
        match feed.read_snapshot().await {
            Ok(full) => {
                feed.notify(&full.changes());
                feed.knows_up_to(at);
            }
            Err(fault) if !feed.connection.is_closed() => {
                tracing::warn!(%fault, "cannot read the revocation snapshot")
            }
            Err(_) => {}
        }
        // A slow snapshot must not become the server's only work, nor may the pause make this node
        // stale.
        time = at.elapsed().saturating_mul(3).clamp(least, most);
    }
}
