//! Takes events out of the outboxes once they are in a chain: some time later, many at once.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mongodb::bson::{Bson, Document, doc};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::outbox::OutboxOwner;

use crate::store::mongo::driver::{
    codec::uuid,
    connection::{Connection, pause},
    schema::TOKENS,
};

/// What waits to be taken out. More than that is left to the recovery.
const QUEUE_MAX: usize = 65_536;
/// How long it waits, so that many go together.
const BATCH_DELAY: Duration = Duration::from_millis(200);
/// Documents in one command.
const DOCUMENTS_MAX: usize = 2_000;

enum Message {
    Recorded(OutboxOwner, Vec<Uuid>),
    Answered(OutboxOwner, Uuid),
    Flush(oneshot::Sender<()>),
}

/// The way to the task that takes out.
#[derive(Clone)]
pub(crate) struct OutboxCleaner {
    queue: mpsc::Sender<Message>,
    answered: Arc<Mutex<HashSet<Uuid>>>,
}

impl OutboxCleaner {
    /// Starts the task; it ends when nobody can send any more.
    pub(crate) fn start(connection: Arc<Connection>) -> Self {
        let (queue, receiver) = mpsc::channel(QUEUE_MAX);
        let answered = Arc::default();
        tokio::spawn(serve(connection, receiver, Arc::clone(&answered)));
        Self { queue, answered }
    }

    /// These events of the owner's outbox are in a chain.
    pub(crate) fn recorded(&self, owner: OutboxOwner, entries: Vec<Uuid>) {
        // A full queue: they stay in the outbox until they are found there and seen to be in a
        // chain.
        let _ = self.queue.try_send(Message::Recorded(owner, entries));
    }

    /// Whoever made this event happen was told so, and need not ask again: its document's mark goes
    /// with it.
    pub(crate) fn answered(&self, owner: OutboxOwner, entry: Uuid) {
        let mut answered = lock(&self.answered);
        if answered.len() < QUEUE_MAX {
            answered.insert(entry);
        }
        drop(answered);
        // A full queue: the recovery finds the entry, and asks whether that is so.
        let _ = self.queue.try_send(Message::Answered(owner, entry));
    }

    /// Whether that is so, and the mark is about to go.
    pub(crate) fn was_answered(&self, entry: Uuid) -> bool {
        lock(&self.answered).contains(&entry)
    }

    /// Waits until everything pushed before was tried.
    pub(crate) async fn flush(&self) {
        let (reply, answer) = oneshot::channel();
        if self.queue.send(Message::Flush(reply)).await.is_ok() {
            // The task answers or has ended.
            let _ = answer.await;
        }
    }
}

fn lock(answered: &Mutex<HashSet<Uuid>>) -> MutexGuard<'_, HashSet<Uuid>> {
    answered.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(
    connection: Arc<Connection>,
    mut receiver: mpsc::Receiver<Message>,
    answered_entries: Arc<Mutex<HashSet<Uuid>>>,
) {
    let (mut messages, mut next) = (Vec::with_capacity(DOCUMENTS_MAX), CleanupBatch::default());
    while !next.is_empty() || receiver.recv_many(&mut messages, DOCUMENTS_MAX).await > 0 {
        drain_ready(&mut receiver, &mut messages);
        let is_flushing = messages.iter().any(|message| matches!(message, Message::Flush(_)));
        if !is_flushing && messages.len() < DOCUMENTS_MAX {
            pause(BATCH_DELAY).await;
            drain_ready(&mut receiver, &mut messages);
        }
        let (mut batch, mut recorded, mut flushes) = (next, Vec::new(), Vec::new());
        for message in messages.drain(..) {
            match message {
                Message::Recorded(owner, entries) => recorded.push((owner, entries)),
                Message::Answered(owner, entry) => batch.answered.push((owner, entry)),
                Message::Flush(reply) => flushes.push(reply),
            }
        }
        // That its caller was answered is heard a moment later than that it was recorded. Both are
        // done in one write where that can be: the recovery finds a mark only by its entry.
        let answered: HashSet<_> = batch.answered.iter().map(|(_, entry)| *entry).collect();
        let is_deferrable = |(owner, entries): &(OutboxOwner, Vec<Uuid>)| {
            flushes.is_empty()
                && owner.collection == TOKENS
                && !entries.iter().any(|entry| answered.contains(entry))
        };
        let (deferred, due_now): (Vec<_>, Vec<_>) = recorded.into_iter().partition(is_deferrable);
        batch.recorded.extend(due_now);
        next = batch.run(&connection, &answered_entries).await;
        next.recorded.extend(deferred);
        for reply in flushes {
            let _ = reply.send(());
        }
    }
}

/// Takes what is at hand.
fn drain_ready(receiver: &mut mpsc::Receiver<Message>, messages: &mut Vec<Message>) {
    while messages.len() < DOCUMENTS_MAX
        && let Ok(message) = receiver.try_recv()
    {
        messages.push(message);
    }
}

/// What is to be done at one go.
#[derive(Default)]
struct CleanupBatch {
    recorded: Vec<(OutboxOwner, Vec<Uuid>)>,
    answered: Vec<(OutboxOwner, Uuid)>,
}

impl CleanupBatch {
    fn is_empty(&self) -> bool {
        self.recorded.is_empty() && self.answered.is_empty()
    }

    /// Does it; what failed is for the next round.
    async fn run(
        mut self,
        connection: &Connection,
        answered_entries: &Mutex<HashSet<Uuid>>,
    ) -> Self {
        self.skip_still_marked(&lock(answered_entries));
        let (mut marked, mut filled) =
            (HashMap::<_, PendingRemoval>::new(), HashMap::<_, PendingRemoval>::new());
        for (owner, entry) in &self.answered {
            marked.entry(owner.collection).or_default().add(owner, &[*entry]);
        }
        for (owner, entries) in &self.recorded {
            filled.entry(owner.collection).or_default().add(owner, entries);
        }
        let mut failed = HashSet::new();
        for (collection, due) in marked {
            let recorded =
                filled.get(collection).map(|due| due.entries.clone()).unwrap_or_default();
            if !due.clear_unanswered(connection, collection, recorded).await {
                failed.insert(collection);
            }
        }
        for (collection, due) in filled {
            if !failed.contains(collection) && !due.remove_entries(connection, collection).await {
                failed.insert(collection);
            }
        }
        let (failed_answers, done): (Vec<_>, Vec<_>) =
            self.answered.into_iter().partition(|(owner, _)| failed.contains(owner.collection));
        self.answered = failed_answers;
        let mut answered_entries = lock(answered_entries);
        for (_, entry) in done {
            answered_entries.remove(&entry);
        }
        drop(answered_entries);
        self.recorded.retain(|(owner, _)| failed.contains(owner.collection));
        // What is too much stays in the outboxes, and is found there by the recovery.
        let room = if connection.is_closed() { 0 } else { DOCUMENTS_MAX };
        self.answered.truncate(room);
        self.recorded.truncate(room);
        self
    }

    /// Leaves to the recovery what is marked, and not to be unmarked by this round though its
    /// caller was answered.
    fn skip_still_marked(&mut self, answered_entries: &HashSet<Uuid>) {
        let answered: HashSet<_> = self.answered.iter().map(|(_, entry)| *entry).collect();
        self.recorded.retain(|(_, entries)| {
            !entries
                .iter()
                .any(|entry| answered_entries.contains(entry) && !answered.contains(entry))
        });
    }
}

/// Documents of a collection, and the entries to be taken out of them.
#[derive(Default)]
struct PendingRemoval {
    ids: Vec<Bson>,
    entries: Vec<Bson>,
}

impl PendingRemoval {
    fn add(&mut self, owner: &OutboxOwner, entries: &[Uuid]) {
        self.ids.push(owner.id.clone());
        self.entries.extend(entries.iter().copied().map(uuid));
    }

    /// Takes away the marks of these entries, and in the same write the recorded ones out of the
    /// outboxes; whether it did.
    async fn clear_unanswered(
        self,
        connection: &Connection,
        collection: &'static str,
        recorded: Vec<Bson>,
    ) -> bool {
        let marked =
            doc! { "_id": { "$in": self.ids }, "last.unanswered": { "$in": &self.entries } };
        let update = doc! { "$pull": { "last.unanswered": { "$in": self.entries }, "outbox": { "id": { "$in": recorded } } } };
        write(connection, collection, marked, update).await
    }

    /// Takes the entries out of the outboxes; whether it did.
    async fn remove_entries(self, connection: &Connection, collection: &'static str) -> bool {
        let filled = doc! { "_id": { "$in": self.ids }, "outbox.id": { "$in": &self.entries } };
        write(
            connection,
            collection,
            filled,
            doc! { "$pull": { "outbox": { "id": { "$in": self.entries } } } },
        )
        .await
    }
}

async fn write(
    connection: &Connection,
    collection: &'static str,
    filter: Document,
    update: Document,
) -> bool {
    let owners = connection.collection(collection);
    let outcome =
        connection.call(async move { Ok(owners.update_many(filter, update).await?) }).await;
    if let Err(fault) = &outcome
        && !connection.is_closed()
    {
        tracing::debug!(%fault, collection, "outboxes could not be emptied");
    }
    outcome.is_ok()
}
