//! Outbox cleaner: after an entry is durable in `audit_logs`, removes it from the `outbox` array of
//! its document. Batched, best effort; `recovery` handles whatever it drops.

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

/// Messages in the queue. Further ones are dropped and left to recovery.
const QUEUE_MAX: usize = 65_536;
/// Delay before a batch, so that one command covers many documents.
const BATCH_DELAY: Duration = Duration::from_millis(200);
/// Documents in one command.
const DOCUMENTS_MAX: usize = 2_000;

enum Message {
    Recorded(OutboxOwner, Vec<Uuid>),
    Answered(OutboxOwner, Uuid),
    Flush(oneshot::Sender<()>),
}

/// Handle to the cleaner's task.
#[derive(Clone)]
pub(crate) struct OutboxCleaner {
    queue: mpsc::Sender<Message>,
    answered: Arc<Mutex<HashSet<Uuid>>>,
}

impl OutboxCleaner {
    /// Starts the task; it ends once all handles are dropped.
    pub(crate) fn start(connection: Arc<Connection>) -> Self {
        let (queue, receiver) = mpsc::channel(QUEUE_MAX);
        let answered = Arc::default();
        tokio::spawn(serve(connection, receiver, Arc::clone(&answered)));
        Self { queue, answered }
    }

    /// Notes that these entries of the owner's outbox are recorded.
    pub(crate) fn recorded(&self, owner: OutboxOwner, entries: Vec<Uuid>) {
        // If the queue is full, the entries stay in the outbox until recovery finds them recorded.
        let _ = self.queue.try_send(Message::Recorded(owner, entries));
    }

    /// Notes that the caller of this event got its answer and need not repeat the call: the mark in
    /// the document is removed with the entry.
    pub(crate) fn answered(&self, owner: OutboxOwner, entry: Uuid) {
        let mut answered = lock(&self.answered);
        if answered.len() < QUEUE_MAX {
            answered.insert(entry);
        }
        drop(answered);
        // If the queue is full, recovery finds the entry and asks `was_answered`.
        let _ = self.queue.try_send(Message::Answered(owner, entry));
    }

    /// Returns true if the caller got its answer and the mark is about to be removed.
    pub(crate) fn was_answered(&self, entry: Uuid) -> bool {
        lock(&self.answered).contains(&entry)
    }

    /// Waits until everything queued before was tried.
    pub(crate) async fn flush(&self) {
        let (reply, answer) = oneshot::channel();
        if self.queue.send(Message::Flush(reply)).await.is_ok() {
            // The task replies or has ended.
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
        let (mut batch, mut flushes) = (next, Vec::new());
        let (mut recorded, mut answered) = (Vec::new(), Vec::new());
        for message in messages.drain(..) {
            match message {
                Message::Recorded(owner, entries) => recorded.push((owner, entries)),
                Message::Answered(owner, entry) => answered.push((owner, entry)),
                Message::Flush(reply) => flushes.push(reply),
            }
        }
        // The answer and the record follow each other within a moment. One write removes both mark
        // and entry where possible, since recovery finds a mark only by its entry.
        let of_answers: HashSet<_> =
            batch.answered.iter().chain(&answered).map(|(_, entry)| *entry).collect();
        let of_records: HashSet<_> = batch
            .recorded
            .iter()
            .chain(&recorded)
            .flat_map(|(_, entries)| entries.clone())
            .collect();
        let waits_for_answer = |(owner, entries): &(OutboxOwner, Vec<Uuid>)| {
            flushes.is_empty()
                && owner.collection == TOKENS
                && !entries.iter().any(|entry| of_answers.contains(entry))
        };
        let waits_for_record =
            |(_, entry): &(OutboxOwner, Uuid)| flushes.is_empty() && !of_records.contains(entry);
        let (recorded_later, recorded): (Vec<_>, Vec<_>) =
            recorded.into_iter().partition(waits_for_answer);
        let (answered_later, answered): (Vec<_>, Vec<_>) =
            answered.into_iter().partition(waits_for_record);
        batch.recorded.extend(recorded);
        batch.answered.extend(answered);
        next = batch.run(&connection, &answered_entries).await;
        next.recorded.extend(recorded_later);
        next.answered.extend(answered_later);
        for reply in flushes {
            let _ = reply.send(());
        }
    }
}

/// Takes the messages that are ready.
fn drain_ready(receiver: &mut mpsc::Receiver<Message>, messages: &mut Vec<Message>) {
    while messages.len() < DOCUMENTS_MAX
        && let Ok(message) = receiver.try_recv()
    {
        messages.push(message);
    }
}

/// Entries and marks to be removed together.
#[derive(Default)]
struct CleanupBatch {
    recorded: Vec<(OutboxOwner, Vec<Uuid>)>,
    answered: Vec<(OutboxOwner, Uuid)>,
}

impl CleanupBatch {
    fn is_empty(&self) -> bool {
        self.recorded.is_empty() && self.answered.is_empty()
    }

    /// Removes them; returns what failed, for the next batch.
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
        // The excess stays in the outboxes, where recovery finds it.
        let room = if connection.is_closed() { 0 } else { DOCUMENTS_MAX };
        self.answered.truncate(room);
        self.recorded.truncate(room);
        self
    }

    /// Leaves out entries whose caller was answered but whose mark is not removed by this batch:
    /// recovery needs the entry to find the mark.
    fn skip_still_marked(&mut self, answered_entries: &HashSet<Uuid>) {
        let answered: HashSet<_> = self.answered.iter().map(|(_, entry)| *entry).collect();
        self.recorded.retain(|(_, entries)| {
            !entries
                .iter()
                .any(|entry| answered_entries.contains(entry) && !answered.contains(entry))
        });
    }
}

/// Documents of a collection, and the entries to be removed from them.
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

    /// Removes the marks of these entries, and in the same write the recorded ones from the
    /// outboxes. Returns true on success.
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

    /// Removes the entries from the outboxes. Returns true on success.
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
        tracing::debug!(%fault, collection, "cannot clean outboxes");
    }
    outcome.is_ok()
}
