//! Records of other nodes, for subscribers of the audit trail: a change stream of its own, open
//! only while there are subscribers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use mongodb::bson::doc;
use tokio::sync::broadcast;

use super::records::shown;
use crate::{
    model::Record,
    store::mongo::driver::{
        change_stream::{REFUSALS_MAX, ResumeToken, Stream},
        connection::{Connection, pause},
        error::MongoError,
        schema::AUDIT_LOGS,
    },
};

/// Sender to subscribers; `None` means that records may have been missed.
type Subscribers = broadcast::Sender<Option<Arc<Record>>>;

/// Delay between two attempts to open the stream.
const REOPEN_DELAY: Duration = Duration::from_millis(500);

/// Task that forwards records of other nodes; it runs while there are subscribers.
#[derive(Clone)]
pub(super) struct RemoteTail {
    connection: Arc<Connection>,
    node: Arc<str>,
    subscribers: broadcast::WeakSender<Option<Arc<Record>>>,
    is_running: Arc<AtomicBool>,
}

impl RemoteTail {
    /// A tail of all nodes but `node`, for the subscribers of its chain.
    pub(super) fn new(
        connection: Arc<Connection>,
        node: Arc<str>,
        subscribers: broadcast::WeakSender<Option<Arc<Record>>>,
    ) -> Self {
        Self { connection, node, subscribers, is_running: Arc::default() }
    }

    /// Starts the task, unless it is running. A standalone server has no change streams.
    pub(super) fn start(&self) {
        if self.connection.is_standalone() || self.is_running.swap(true, SeqCst) {
            return;
        }
        let tail = self.clone();
        tokio::spawn(async move {
            let (mut resume_token, mut refused) = (None, 0_u32);
            while let Some(subscribers) = tail.active_subscribers() {
                if let Err(fault) = tail.follow(&subscribers, &mut resume_token, &mut refused).await
                    && !tail.connection.is_closed()
                {
                    refused = if fault.is_server_reply() { refused.saturating_add(1) } else { 0 };
                    // Without a resume token the next stream begins at its own start.
                    resume_token = resume_token
                        .filter(|_| !fault.is_history_lost() && refused <= REFUSALS_MAX);
                    let missed = resume_token.is_none();
                    tracing::warn!(%fault, missed, "audit tail of other nodes interrupted");
                }
                drop(subscribers);
                pause(REOPEN_DELAY).await;
            }
            tail.is_running.store(false, SeqCst);
            // A subscriber may have come in between and relied on this task.
            if tail.active_subscribers().is_some() {
                tail.start();
            }
        });
    }

    /// Sender to subscribers, if there are any and the store is open.
    fn active_subscribers(&self) -> Option<Subscribers> {
        let subscribers =
            self.subscribers.upgrade().filter(|subscribers| subscribers.receiver_count() > 0);
        subscribers.filter(|_| !self.connection.is_closed())
    }

    async fn follow(
        &self,
        subscribers: &Subscribers,
        resume_token: &mut Option<ResumeToken>,
        refused: &mut u32,
    ) -> Result<(), MongoError> {
        let others = doc! { "operationType": "insert", "documentKey._id.chain": { "$ne": self.node.as_ref() } };
        let mut stream = Stream::open(
            &self.connection,
            Some(AUDIT_LOGS),
            resume_token.clone(),
            [doc! { "$match": others }],
        )
        .await?;
        if resume_token.is_none() {
            // Records that were written before this stream began are in the store only.
            notify(subscribers, None);
        }
        // Nothing cancels this task: it ends between two replies of the server.
        while subscribers.receiver_count() > 0 && !self.connection.is_closed() {
            let Some(batch) = stream.next().await? else { break };
            for event in &batch.events {
                // A document without a position is skipped. An unreadable record still has its `_id`.
                let document = event
                    .get_document("fullDocument")
                    .or_else(|_| event.get_document("documentKey"));
                if let Some(record) = document.ok().and_then(shown) {
                    notify(subscribers, Some(Arc::new(record)));
                }
            }
            if batch.is_resumable {
                *refused = 0;
            }
            *resume_token = Some(batch.resume_token);
        }
        Ok(())
    }
}

fn notify(subscribers: &Subscribers, record: Option<Arc<Record>>) {
    // The last subscriber may have left just now.
    let _ = subscribers.send(record);
}
