//! Takes events out of the outboxes once they are in a chain: some time later, many at once.

use std::{collections::HashMap, sync::Arc, time::Duration};

use mongodb::bson::{Bson, doc};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::{
    codec::uuid,
    link::{Link, pause},
    pending::Owner,
};

/// What waits to be taken out. More than that is left to the recovery.
const QUEUE: usize = 65_536;
/// How long it waits, so that many go together.
const GATHER: Duration = Duration::from_millis(200);
/// Documents in one command.
const BATCH: usize = 2_000;

enum Message {
    Recorded(Owner, Vec<Uuid>),
    Flush(oneshot::Sender<()>),
}

/// The way to the task that takes out.
#[derive(Clone)]
pub(super) struct Settle(mpsc::Sender<Message>);

impl Settle {
    /// Starts the task; it ends when nobody can send any more.
    pub(super) fn start(link: Arc<Link>) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(serve(link, receiver));
        Self(sender)
    }

    /// These events of the owner's outbox are in a chain.
    pub(super) fn push(&self, owner: Owner, entries: Vec<Uuid>) {
        // A full queue: they stay in the outbox until they are found there and seen to be in a chain.
        let _ = self.0.try_send(Message::Recorded(owner, entries));
    }

    /// Waits until everything pushed before was tried.
    pub(super) async fn flush(&self) {
        let (reply, answer) = oneshot::channel();
        if self.0.send(Message::Flush(reply)).await.is_ok() {
            // The task answers or has ended.
            let _ = answer.await;
        }
    }
}

async fn serve(link: Arc<Link>, mut receiver: mpsc::Receiver<Message>) {
    let mut messages = Vec::with_capacity(BATCH);
    while receiver.recv_many(&mut messages, BATCH).await > 0 {
        let in_a_hurry = messages.iter().any(|message| matches!(message, Message::Flush(_)));
        if !in_a_hurry && messages.len() < BATCH {
            pause(GATHER).await;
            while messages.len() < BATCH
                && let Ok(message) = receiver.try_recv()
            {
                messages.push(message);
            }
        }
        let (mut owners, mut waiting) = (HashMap::<&'static str, (Vec<Bson>, Vec<Bson>)>::new(), Vec::new());
        for message in messages.drain(..) {
            match message {
                Message::Recorded(owner, entries) => {
                    let (ids, taken) = owners.entry(owner.collection).or_default();
                    ids.push(owner.id);
                    taken.extend(entries.into_iter().map(uuid));
                }
                Message::Flush(reply) => waiting.push(reply),
            }
        }
        for (collection, (ids, taken)) in owners {
            take_out(&link, collection, ids, taken).await;
        }
        for reply in waiting {
            let _ = reply.send(());
        }
    }
}

/// Failing leaves them where they are, for the recovery.
async fn take_out(link: &Link, collection: &'static str, ids: Vec<Bson>, entries: Vec<Bson>) {
    let owners = link.collection(collection);
    let take = async move {
        let update = doc! { "$pull": { "outbox": { "id": { "$in": entries } } } };
        Ok(owners.update_many(doc! { "_id": { "$in": ids } }, update).await?)
    };
    if let Err(fault) = link.call(take).await
        && !link.is_closed()
    {
        tracing::debug!(%fault, collection, "outboxes could not be emptied");
    }
}
