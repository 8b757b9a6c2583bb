//! Audit events whose node died, or lost its way, between a change and its record: they are still in the changed document's
//! outbox, and whoever finds them there appends them to its own chain. Which ones those are is told by waiting, not by a clock: an
//! event that was there at one look and still is at the next was not on its way.
//!
//! A node that comes back after a long stall may append an event that was recovered in the meantime: it is then in two chains,
//! never in none.

use std::{collections::HashSet, time::Duration};

use futures_util::TryStreamExt as _;
use mongodb::bson::{Bson, Document, doc};
use uuid::Uuid;

use super::{
    Shared,
    chain::{LATE, behind},
    codec::{Fields, uuid},
    fault::Fault,
    pending::{Entry, Owner},
    schema::{AUDIT_LOGS, WITH_OUTBOX, outbox_hint},
};

/// Between two looks: longer than any caller waits for a record.
pub(super) const LOOK: Duration = Duration::from_secs(30);
/// Documents looked at in one turn.
const TURN: i64 = 1_000;

/// An event in an outbox.
struct Left {
    owner: Owner,
    id: Uuid,
    node: String,
    /// Whether it came to that node from another one.
    foreign: bool,
    after: u64,
    /// Who found it before.
    claim: Option<Uuid>,
    event: Document,
}

/// What was seen at the last look.
#[derive(Default)]
pub(super) struct Recovery {
    /// Each with who found it before.
    seen: HashSet<(Uuid, Option<Uuid>)>,
}

impl Recovery {
    /// One look. At `once`, what this node itself left behind in an earlier life does not wait for a second look.
    pub(super) async fn look(&mut self, shared: &Shared, once: bool) -> Result<(), Fault> {
        let mut found = HashSet::new();
        for collection in WITH_OUTBOX {
            for left in left(shared, collection).await? {
                let id = left.id;
                found.insert((id, left.claim));
                let own = once && left.node == shared.node.name.as_ref();
                // What waits in this node's own chain will be there: it is not put there twice.
                if !(own || self.seen.contains(&(id, left.claim))) || shared.chain.holds(id) {
                    continue;
                }
                // One that cannot be recorded does not stand in the way of the others, and is tried again at the next look.
                if let Err(fault) = recover(shared, left).await {
                    tracing::error!(%fault, collection, "an audit event that was left behind cannot be recorded yet");
                }
            }
        }
        self.seen = found;
        Ok(())
    }
}

async fn left(shared: &Shared, collection: &'static str) -> Result<Vec<Left>, Fault> {
    let owners = shared.link.collection(collection);
    let look = async move {
        let found = owners.find(doc! { "outbox.id": { "$exists": true } }).hint(outbox_hint()).limit(TURN);
        let found: Vec<Document> = found.projection(doc! { "outbox": 1 }).await?.try_collect().await?;
        Ok(found)
    };
    let mut all = Vec::new();
    for document in shared.link.call(look).await? {
        let id = Fields::of("outbox", &document).get("_id")?.clone();
        for entry in document.get_array("outbox").into_iter().flatten().filter_map(Bson::as_document) {
            match read(&Owner { collection, id: id.clone() }, entry) {
                Ok(left) => all.push(left),
                Err(fault) => tracing::error!(%fault, collection, "what is in an outbox cannot be read"),
            }
        }
    }
    Ok(all)
}

fn read(owner: &Owner, entry: &Document) -> Result<Left, Fault> {
    let fields = Fields::of("outbox", entry);
    let event = fields.get("event")?.as_document().cloned();
    Ok(Left {
        owner: owner.clone(),
        id: fields.uuid("id")?,
        node: fields.text("node")?.to_owned(),
        foreign: entry.get_bool("foreign").unwrap_or(false),
        after: fields.count("after")?,
        claim: fields.find("claim").map(|_| fields.uuid("claim")).transpose()?,
        event: event.ok_or_else(|| Fault::row("outbox", "an event is not what it should be"))?,
    })
}

async fn recover(shared: &Shared, left: Left) -> Result<(), Fault> {
    let is_foreign = left.node != shared.node.name.as_ref();
    // Its node may have appended it and not come to take it out.
    let (logs, mut filter) = (shared.link.collection(AUDIT_LOGS), behind(&left.node, left.after));
    filter.insert("entry", uuid(left.id));
    let recorded = shared.link.within(super::LONG, async move { Ok(logs.find_one(filter).await?) }).await?;
    let Some(recorded) = recorded else {
        // Of two nodes that find it, the one whose claim is the next appends it.
        let foreign = left.foreign || is_foreign;
        let mine = doc! { "$set": {
            "outbox.$.node": shared.node.name.as_ref(),
            "outbox.$.foreign": foreign,
            "outbox.$.after": i64::try_from(shared.chain.sequence()).unwrap_or(i64::MAX),
            "outbox.$.claim": uuid(Uuid::now_v7()),
        } };
        let theirs = doc! {
            "id": uuid(left.id),
            "node": &left.node,
            "after": i64::try_from(left.after).unwrap_or(i64::MAX),
            "claim": left.claim.map(uuid),
        };
        let filter = doc! { "_id": left.owner.id.clone(), "outbox": { "$elemMatch": theirs } };
        let owners = shared.link.collection(left.owner.collection);
        let claimed = shared.link.call(async move { Ok(owners.update_one(filter, mine).await?) }).await?;
        if claimed.matched_count == 0 {
            return Ok(());
        }
        let event = mongodb::bson::deserialize_from_document(left.event).map_err(|error| Fault::row("outbox", error))?;
        let entry = Entry::with_id(left.id, event)?;
        tracing::warn!(
            from = left.node,
            action = entry.event.action.as_str(),
            "an audit event was left behind and is recorded now"
        );
        return shared.chain.append_left(entry, left.owner, foreign).await;
    };
    // By its own process, which in all likelihood answered its caller too, if that still waited. Not so who claimed it; and what
    // this process did itself it knows.
    let was_awaited = !recorded.get_bool(LATE).unwrap_or(false);
    let another_did = was_awaited && (is_foreign || shared.chain.is_of_an_earlier_process(left.after));
    if left.claim.is_none() && !left.foreign && (another_did || shared.settle.was_answered(left.id)) {
        shared.settle.answered(left.owner.clone(), left.id);
    }
    shared.settle.push(left.owner, vec![left.id]);
    Ok(())
}
