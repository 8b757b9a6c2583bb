//! Audit events whose node died, or lost its way, between a change and its record: they are still in the changed document's
//! outbox, and whoever finds them there appends them to its own chain. Which ones those are is told by waiting, not by a clock: an
//! event that was there at one look and still is at the next was not on its way. The record says in its event which node left it.
//!
//! An entry that is in some chain already is taken out, and not recorded again, whoever put it back.
//!
//! An entry without the MAC of a node was put there by somebody else: it is taken out and reported, and never recorded.
//!
//! A node that comes back after a long stall may append an event that was recovered in the meantime: it is then in two chains,
//! never in none.

use std::{collections::HashSet, sync::atomic::Ordering::SeqCst, time::Duration};

use futures_util::TryStreamExt as _;
use mongodb::bson::{Bson, Document, RawDocumentBuf, doc};
use uuid::Uuid;

use super::{
    Shared,
    chain::{LATE, decoded, sealed},
    codec::{Fields, as_uuid, count, lenient, uuid},
    fault::Fault,
    pending::{Claim, Entry, Owner, Way},
    schema::{AUDIT_LOGS, WITH_OUTBOX, outbox_hint},
};
use crate::model::{Action, Event, Stamp, Timestamp};

/// Between two looks: longer than any caller waits for a record.
pub(super) const LOOK: Duration = Duration::from_secs(30);
/// Documents looked at in one turn.
const TURN: i64 = 1_000;
/// Characters of a document's `_id` in a report.
const NAME: usize = 128;

/// An event in an outbox.
struct Left {
    owner: Owner,
    way: Way,
    entry: Entry,
}

/// The content of the outboxes of a collection.
#[derive(Default)]
struct Found {
    left: Vec<Left>,
    /// Entries that no node made, or an outbox that is no list, each with its document.
    forged: Vec<(Owner, Bson)>,
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
            let Found { left, forged } = find(shared, collection).await?;
            for (owner, entry) in forged {
                if let Err(fault) = refuse(shared, &owner, entry).await {
                    tracing::error!(%fault, collection, "a forged outbox entry cannot be taken out yet");
                }
            }
            for left in left {
                let (id, claim) = (left.way.id, left.way.claim.as_ref().map(|claim| claim.id));
                found.insert((id, claim));
                let own = once && left.way.node == shared.node.name.as_ref();
                // What waits in this node's own chain will be there: it is not put there twice.
                if !(own || self.seen.contains(&(id, claim))) || shared.chain.holds(id) {
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

async fn find(shared: &Shared, collection: &'static str) -> Result<Found, Fault> {
    let owners = shared.link.collection(collection).clone_with_type::<RawDocumentBuf>();
    let look = async move {
        let found = owners.find(doc! { "outbox.id": { "$exists": true } }).hint(outbox_hint()).limit(TURN);
        let found = found.projection(doc! { "outbox": 1 }).await?;
        Ok(found.map_ok(|raw| lenient(&raw)).try_collect::<Vec<_>>().await?)
    };
    let mut all = Found::default();
    for document in shared.link.call(look).await? {
        let owner = Owner { collection, id: document.get("_id").cloned().unwrap_or_default() };
        match document.get("outbox") {
            Some(Bson::Array(entries)) => {
                for entry in entries {
                    match entry.as_document().and_then(|entry| ours(shared, &owner, entry)) {
                        Some((way, event)) => all.left.push(Left { owner: owner.clone(), way, entry: event }),
                        None => all.forged.push((owner.clone(), entry.clone())),
                    }
                }
            }
            Some(other) => all.forged.push((owner, other.clone())),
            None => {}
        }
    }
    Ok(all)
}

/// An entry that a node put there; `None` for any other.
fn ours(shared: &Shared, owner: &Owner, entry: &Document) -> Option<(Way, Entry)> {
    let way = Way::read(entry).ok()?;
    let event = Entry::with_id(way.id, Fields::of("outbox", entry).part("event").ok()?).ok()?;
    way.is_ours(&shared.node.key, owner, &event.body, entry).then_some((way, event))
}

/// Takes out what no node put there, and reports it. Of several nodes that find it, the one that takes it out does.
async fn refuse(shared: &Shared, owner: &Owner, entry: Bson) -> Result<(), Fault> {
    let filter = doc! { "_id": owner.id.clone(), "outbox": { "$eq": entry.clone() } };
    let others = doc! { "$filter": { "input": "$outbox", "cond": { "$ne": ["$$this", { "$literal": entry }] } } };
    let kept = doc! { "$cond": [{ "$isArray": "$outbox" }, others, "$$REMOVE"] };
    let owners = shared.link.collection(owner.collection);
    let update = vec![doc! { "$set": { "outbox": kept } }];
    let written = shared.link.call(async move { Ok(owners.update_one(filter, update).await?) }).await?;
    if written.modified_count == 0 {
        return Ok(());
    }
    let target = format!("{}/{}", owner.collection, named(&owner.id));
    metrics::counter!("jeton_outbox_entries_refused_total").increment(1);
    tracing::error!(
        target,
        "an outbox entry that no node of this service wrote was refused and taken out: find out who else can write to the database"
    );
    let now = Timestamp::from_millis(shared.node.brought.load(SeqCst).max(shared.node.newest.load(SeqCst)));
    shared.append(Stamp::internal(now).refused(Action::EntryRefused, target, "forged")).await
}

/// An `_id` in a few words, whatever was put there.
fn named(id: &Bson) -> String {
    let text = id.as_str().map(str::to_owned).or_else(|| as_uuid(id).map(|id| id.to_string()));
    let text = text.unwrap_or_else(|| id.to_string());
    text.chars().take(NAME).collect()
}

/// The record of an entry, sealed by a node, whichever chain it is in: an entry that was taken out after another node had recorded
/// it may be put back with its MAC, by who kept a copy. It is found by its time, which is the same in each, and preferred in the
/// chain of the node that is to record it. A record that came with an import names no entry: there the event tells.
async fn recorded(shared: &Shared, way: &Way, event: &Event) -> Result<Option<Recorded>, Fault> {
    let none = Uuid::nil();
    let filter = doc! { "event.at": event.at.millis(), "entry": { "$in": [uuid(way.id), uuid(none)] } };
    let logs = shared.link.collection(AUDIT_LOGS).clone_with_type::<RawDocumentBuf>();
    let read = async move { Ok(logs.find(filter).await?.map_ok(|raw| lenient(&raw)).try_collect::<Vec<_>>().await?) };
    let found = shared.link.within(super::LONG, read).await?;
    let ours = found.iter().filter(|found| sealed(found).is_ok_and(|head| shared.node.key.check(&head)));
    let of_it = ours.filter_map(|found| {
        let (record, entry) = (decoded(found).ok()?, Fields::of("audit record", found).uuid("entry").ok()?);
        let is_it = entry == way.id || Event { recovered_from: None, ..record.event } == *event;
        let is_late = found.get_bool(LATE).unwrap_or(false);
        is_it.then_some(Recorded { is_late, by_its_node: entry == way.id && *record.chain == *way.node })
    });
    Ok(of_it.max_by_key(|recorded| recorded.by_its_node))
}

/// A record of an entry.
struct Recorded {
    /// Whether it is in the chain of the node that is to record it.
    by_its_node: bool,
    /// Whether it came when its caller had been told that the outcome is not known.
    is_late: bool,
}

async fn recover(shared: &Shared, left: Left) -> Result<(), Fault> {
    let Left { owner, way, entry } = left;
    // Its node may have appended it and not come to take it out.
    let Some(recorded) = recorded(shared, &way, &entry.event).await? else {
        // Of two nodes that find it, the one whose claim is the next appends it.
        let claim = Claim { id: Uuid::now_v7(), from: way.from().to_owned() };
        let (name, after) = (shared.node.name.as_ref().to_owned(), shared.chain.sequence());
        let mine = Way { id: way.id, node: name, after, claim: Some(claim) };
        let fields = mine.fields(&shared.node.key, &owner, &entry.body);
        let mine: Document = fields.into_iter().map(|(field, value)| (format!("outbox.$.{field}"), value)).collect();
        let theirs = doc! {
            "id": uuid(way.id),
            "node": &way.node,
            "after": count(way.after),
            "claim": way.claim.as_ref().map(|claim| uuid(claim.id)),
        };
        let filter = doc! { "_id": owner.id.clone(), "outbox": { "$elemMatch": theirs } };
        let owners = shared.link.collection(owner.collection);
        let claimed = shared.link.call(async move { Ok(owners.update_one(filter, doc! { "$set": mine }).await?) }).await?;
        if claimed.matched_count == 0 {
            return Ok(());
        }
        let from = way.from();
        tracing::warn!(from, action = entry.event.action.as_str(), "an audit event was left behind and is recorded now");
        let event = Event { recovered_from: Some(from.into()), ..entry.event };
        return shared.chain.append(vec![Entry::with_id(way.id, event)?], Some(owner)).await;
    };
    // By its own process, which in all likelihood answered its caller too, if that still waited. Not so who claimed it; and what
    // this process did itself it knows.
    let was_awaited = recorded.by_its_node && !recorded.is_late;
    let is_anothers = way.node != shared.node.name.as_ref() || shared.chain.is_of_an_earlier_process(way.after);
    if way.claim.is_none() && ((was_awaited && is_anothers) || shared.settle.was_answered(way.id)) {
        shared.settle.answered(owner.clone(), way.id);
    }
    shared.settle.push(owner, vec![way.id]);
    Ok(())
}
