//! Takes events out of the outboxes once they are in a chain: some time later, many at once.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mongodb::bson::{Bson, Document, doc};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::outbox::Owner;

use crate::store::mongo::driver::{
    codec::uuid,
    connection::{Connection, pause},
    schema::TOKENS,
};

/// What waits to be taken out. More than that is left to the recovery.
const QUEUE: usize = 65_536;
/// How long it waits, so that many go together.
const GATHER: Duration = Duration::from_millis(200);
/// Documents in one command.
const BATCH: usize = 2_000;

enum Message {
    Recorded(Owner, Vec<Uuid>),
    Answered(Owner, Uuid),
    Flush(oneshot::Sender<()>),
}

/// The way to the task that takes out.
#[derive(Clone)]
pub(crate) struct Settle {
    queue: mpsc::Sender<Message>,
    answered: Arc<Mutex<HashSet<Uuid>>>,
}

impl Settle {
    /// Starts the task; it ends when nobody can send any more.
    pub(crate) fn start(connection: Arc<Connection>) -> Self {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let answered = Arc::default();
        tokio::spawn(serve(connection, receiver, Arc::clone(&answered)));
        Self { queue, answered }
    }

    /// These events of the owner's outbox are in a chain.
    pub(crate) fn push(&self, owner: Owner, entries: Vec<Uuid>) {
        // A full queue: they stay in the outbox until they are found there and seen to be in a
        // chain.
        let _ = self.queue.try_send(Message::Recorded(owner, entries));
    }

    /// Whoever made this event happen was told so, and need not ask again: its document's mark goes
    /// with it.
    pub(crate) fn answered(&self, owner: Owner, entry: Uuid) {
        let mut answered = lock(&self.answered);
        if answered.len() < QUEUE {
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
    told: Arc<Mutex<HashSet<Uuid>>>,
) {
    let (mut messages, mut next) = (Vec::with_capacity(BATCH), Round::default());
    while !next.is_empty() || receiver.recv_many(&mut messages, BATCH).await > 0 {
        gather(&mut receiver, &mut messages);
        let in_a_hurry = messages.iter().any(|message| matches!(message, Message::Flush(_)));
        if !in_a_hurry && messages.len() < BATCH {
            pause(GATHER).await;
            gather(&mut receiver, &mut messages);
        }
        let (mut round, mut fresh, mut waiting) = (next, Vec::new(), Vec::new());
        for message in messages.drain(..) {
            match message {
                Message::Recorded(owner, entries) => fresh.push((owner, entries)),
                Message::Answered(owner, entry) => round.answered.push((owner, entry)),
                Message::Flush(reply) => waiting.push(reply),
            }
        }
        // That its caller was answered is heard a moment later than that it was recorded. Both are
        // done in one write where that can be: the recovery finds a mark only by its entry.
        let answered: HashSet<_> = round.answered.iter().map(|(_, entry)| *entry).collect();
        let is_early = |(owner, entries): &(Owner, Vec<Uuid>)| {
            waiting.is_empty()
                && owner.collection == TOKENS
                && !entries.iter().any(|entry| answered.contains(entry))
        };
        let (early, ripe): (Vec<_>, Vec<_>) = fresh.into_iter().partition(is_early);
        round.recorded.extend(ripe);
        next = round.settle(&connection, &told).await;
        next.recorded.extend(early);
        for reply in waiting {
            let _ = reply.send(());
        }
    }
}

/// Takes what is at hand.
fn gather(receiver: &mut mpsc::Receiver<Message>, messages: &mut Vec<Message>) {
    while messages.len() < BATCH
        && let Ok(message) = receiver.try_recv()
    {
        messages.push(message);
    }
}

/// What is to be done at one go.
#[derive(Default)]
struct Round {
    recorded: Vec<(Owner, Vec<Uuid>)>,
    answered: Vec<(Owner, Uuid)>,
}

impl Round {
    fn is_empty(&self) -> bool {
        self.recorded.is_empty() && self.answered.is_empty()
    }

    /// Does it; what failed is for the next round.
    async fn settle(mut self, connection: &Connection, told: &Mutex<HashSet<Uuid>>) -> Self {
        self.leave_marked(&lock(told));
        let (mut marked, mut filled) = (HashMap::<_, Due>::new(), HashMap::<_, Due>::new());
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
            if !due.unmark(connection, collection, recorded).await {
                failed.insert(collection);
            }
        }
        for (collection, due) in filled {
            if !failed.contains(collection) && !due.take_out(connection, collection).await {
                failed.insert(collection);
            }
        }
        let (again, done): (Vec<_>, Vec<_>) =
            self.answered.into_iter().partition(|(owner, _)| failed.contains(owner.collection));
        self.answered = again;
        let mut told = lock(told);
        for (_, entry) in done {
            told.remove(&entry);
        }
        drop(told);
        self.recorded.retain(|(owner, _)| failed.contains(owner.collection));
        // What is too much stays in the outboxes, and is found there by the recovery.
        let room = if connection.is_closed() { 0 } else { BATCH };
        self.answered.truncate(room);
        self.recorded.truncate(room);
        self
    }

    /// Leaves to the recovery what is marked, and not to be unmarked by this round though its
    /// caller was answered.
    fn leave_marked(&mut self, told: &HashSet<Uuid>) {
        let answered: HashSet<_> = self.answered.iter().map(|(_, entry)| *entry).collect();
        self.recorded.retain(|(_, entries)| {
            !entries.iter().any(|entry| told.contains(entry) && !answered.contains(entry))
        });
    }
}

/// Documents of a collection, and the entries to be taken out of them.
#[derive(Default)]
struct Due {
    ids: Vec<Bson>,
    entries: Vec<Bson>,
}

impl Due {
    fn add(&mut self, owner: &Owner, entries: &[Uuid]) {
        self.ids.push(owner.id.clone());
        self.entries.extend(entries.iter().copied().map(uuid));
    }

    /// Takes away the marks of these entries, and in the same write the recorded ones out of the
    /// outboxes; whether it did.
    async fn unmark(
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
    async fn take_out(self, connection: &Connection, collection: &'static str) -> bool {
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
