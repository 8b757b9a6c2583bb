//! Records of other nodes, for subscribers of the audit trail: a change stream of its own, open
//! only while there are subscribers.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use mongodb::bson::doc;
use tokio::sync::broadcast;

use super::records::shown;
use crate::{
    model::Record,
    store::mongo::{
        Shared,
        driver::{
            change_stream::{REFUSALS_MAX, ResumeToken, Stream},
            connection::pause,
            error::MongoError,
            schema::AUDIT_LOGS,
        },
    },
};

/// Sender to subscribers; `None` means that records may have been missed.
type Subscribers = broadcast::Sender<Option<Arc<Record>>>;

/// Delay between two attempts to open the stream.
const REOPEN_DELAY: Duration = Duration::from_millis(500);

/// Starts to forward records of other nodes to the subscribers of this node's chain, unless that is
/// running.
pub(crate) fn listen(shared: &Arc<Shared>) {
    if shared.is_standalone || shared.tailing.swap(true, SeqCst) {
        return;
    }
    let shared = shared.clone();
    tokio::spawn(async move {
        let (mut resume_token, mut refused) = (None, 0_u32);
        while let Some(subscribers) = active_subscribers(&shared) {
            if let Err(fault) = follow(&shared, &subscribers, &mut resume_token, &mut refused).await
                && !shared.connection.is_closed()
            {
                refused = if fault.is_server_reply() { refused.saturating_add(1) } else { 0 };
                // Without a resume token the next stream begins at its own start.
                resume_token =
                    resume_token.filter(|_| !fault.is_history_lost() && refused <= REFUSALS_MAX);
                let missed = resume_token.is_none();
                tracing::warn!(%fault, missed, "audit tail of other nodes interrupted");
                if missed {
                    notify(&subscribers, None);
                }
            }
            drop(subscribers);
            pause(REOPEN_DELAY).await;
        }
        shared.tailing.store(false, SeqCst);
        // A subscriber may have come in between and relied on this task.
        if active_subscribers(&shared).is_some() {
            listen(&shared);
        }
    });
}

/// Sender to subscribers, if there are any and the store is open.
fn active_subscribers(shared: &Shared) -> Option<Subscribers> {
    let subscribers =
        shared.chain.subscribers().filter(|subscribers| subscribers.receiver_count() > 0);
    subscribers.filter(|_| !shared.connection.is_closed())
}

async fn follow(
    shared: &Shared,
    subscribers: &Subscribers,
    resume_token: &mut Option<ResumeToken>,
    refused: &mut u32,
) -> Result<(), MongoError> {
    let others = doc! { "operationType": "insert", "documentKey._id.chain": { "$ne": shared.node.name.as_ref() } };
    let mut stream = Stream::open(
        &shared.connection,
        Some(AUDIT_LOGS),
        resume_token.clone(),
        [doc! { "$match": others }],
    )
    .await?;
    // Nothing cancels this task: it ends between two replies of the server.
    while subscribers.receiver_count() > 0 && !shared.connection.is_closed() {
        let Some(batch) = stream.next().await? else { break };
        for event in &batch.events {
            // A document without a position is skipped. An unreadable record still has its `_id`.
            let document =
                event.get_document("fullDocument").or_else(|_| event.get_document("documentKey"));
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

fn notify(subscribers: &Subscribers, record: Option<Arc<Record>>) {
    // The last subscriber may have left just now.
    let _ = subscribers.send(record);
}
