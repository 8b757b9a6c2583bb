//! Records of the other nodes, for who follows the trail: a change stream of its own, open only
//! while somebody listens.

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
            change_stream::{Place, REFUSALS, Stream},
            connection::pause,
            error::MongoError,
            schema::AUDIT_LOGS,
        },
    },
};

/// Who follows the trail; `None` tells them that they may have missed something.
type Listeners = broadcast::Sender<Option<Arc<Record>>>;

/// Between two attempts at opening it.
const PAUSE: Duration = Duration::from_millis(500);

/// Sees to it that what other nodes record is told along with what this one does.
pub(crate) fn listen(shared: &Arc<Shared>) {
    if shared.alone || shared.tailing.swap(true, SeqCst) {
        return;
    }
    let shared = shared.clone();
    tokio::spawn(async move {
        let (mut place, mut refused) = (None, 0_u32);
        while let Some(listeners) = wanted(&shared) {
            if let Err(fault) = follow(&shared, &listeners, &mut place, &mut refused).await
                && !shared.connection.is_closed()
            {
                refused = if fault.is_server_reply() { refused.saturating_add(1) } else { 0 };
                // Without a place the next stream begins at its own moment.
                place = place.filter(|_| !fault.is_history_lost() && refused <= REFUSALS);
                let missed = place.is_none();
                tracing::warn!(%fault, missed, "the trail of the other nodes broke off");
                if missed {
                    tell(&listeners, None);
                }
            }
            drop(listeners);
            pause(PAUSE).await;
        }
        shared.tailing.store(false, SeqCst);
        // Somebody may have come in between, and have left it to this task.
        if wanted(&shared).is_some() {
            listen(&shared);
        }
    });
}

/// Those who listen, unless nobody does.
fn wanted(shared: &Shared) -> Option<Listeners> {
    let listeners = shared.chain.subscribers().filter(|listeners| listeners.receiver_count() > 0);
    listeners.filter(|_| !shared.connection.is_closed())
}

async fn follow(
    shared: &Shared,
    listeners: &Listeners,
    place: &mut Option<Place>,
    refused: &mut u32,
) -> Result<(), MongoError> {
    let others = doc! { "operationType": "insert", "documentKey._id.chain": { "$ne": shared.node.name.as_ref() } };
    let mut stream = Stream::open(
        &shared.connection,
        Some(AUDIT_LOGS),
        place.clone(),
        [doc! { "$match": others }],
    )
    .await?;
    // Nothing cuts this task off: it ends between two answers of the server.
    while listeners.receiver_count() > 0 && !shared.connection.is_closed() {
        let Some(batch) = stream.next().await? else { break };
        for event in &batch.events {
            // A document that is no record is none here either. Of one that cannot be read there is
            // its `_id`.
            let document =
                event.get_document("fullDocument").or_else(|_| event.get_document("documentKey"));
            if let Some(record) = document.ok().and_then(shown) {
                tell(listeners, Some(Arc::new(record)));
            }
        }
        if batch.goes_on {
            *refused = 0;
        }
        *place = Some(batch.place);
    }
    Ok(())
}

fn tell(listeners: &Listeners, record: Option<Arc<Record>>) {
    // The last one may have left just now.
    let _ = listeners.send(record);
}
