//! Recovery of audit events whose node died or was cut off between a change and its record. They
//! are still in the outbox of the changed document, and the node that finds them appends them to
//! its own chain. Such entries are recognised by waiting, not by a clock: an entry that two passes
//! find was not in flight. The record names the node that left it in `recovered_from`.
//!
//! An entry that is recorded already is removed and not recorded again.
//!
//! An entry without a valid MAC, or that cannot be read, was not written by a node: it is removed
//! and reported, never recorded. One that cannot be removed is reported once by each process, and
//! the pass continues after it.
//!
//! A node that resumes after a long stall may append an event that was recovered meanwhile: the
//! event is then in two chains, never in none.
//!
//! The table of an entry's states is in `outbox`.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use futures_util::TryStreamExt as _;
use mongodb::{
    Cursor,
    bson::{Bson, Document, RawBson, RawBsonRef, RawDocument, RawDocumentBuf, doc},
};
use uuid::Uuid;

use super::{
    AuditLog,
    outbox::{Entry, EntryClaim, EntryHeader, OutboxOwner},
    records::{LATE_FIELD, decoded, sealed},
};
use crate::{
    model::{Action, Event, Stamp, Timestamp},
    store::mongo::driver::{
        codec::{Fields, as_uuid, count, elements, lenient, uuid},
        connection::{BACKGROUND_TIMEOUT, pause},
        error::MongoError,
        schema::{AUDIT_LOGS, WITH_OUTBOX, outbox_hint},
    },
};

/// Interval between two passes: longer than any caller waits for a record.
const INTERVAL: Duration = Duration::from_secs(30);
/// Documents read at once, and the most with orphaned entries that one pass handles.
const PAGE_DOCUMENTS: usize = 1_000;
/// Records about forged entries of one document: a document may hold a million.
const FORGED_RECORDS_MAX: usize = 16;
/// Documents with forged entries that one pass cleans, and as many that it only reports.
const FORGED_DOCUMENTS_MAX: usize = 100;
/// Documents that were reported and cannot be cleaned. Beyond that, documents with an unreadable
/// `_id` are not reported.
const REPORTED_MAX: usize = 10_000;
/// Characters of a document's `_id` in a report.
const NAME_CHARS_MAX: usize = 128;

/// Entry found in an outbox.
struct OrphanedEntry {
    owner: OutboxOwner,
    header: EntryHeader,
    entry: Entry,
}

/// Contents of outboxes.
#[derive(Default)]
struct Found {
    orphans: Vec<OrphanedEntry>,
    forged: Vec<Forged>,
}

/// Document whose outbox has entries that no node wrote, or is not an array.
struct Forged {
    owner: OutboxOwner,
    /// Short text for its `_id`.
    name: String,
    /// True if its `_id` cannot be read, so that no write finds it.
    has_unreadable_id: bool,
    entries: usize,
    /// Size of the outbox in bytes.
    size: usize,
    /// Id and MAC of each authentic entry.
    authentic: Vec<Document>,
}

/// Entries that a pass records.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Due {
    /// Those that the last pass found too.
    SeenTwice,
    /// Those of this node's earlier processes as well.
    OfThisNode,
    /// All.
    All,
}

/// Entries seen in the last pass, and documents reported.
#[derive(Default)]
struct Recovery {
    /// Ids of entries, each with its claim.
    previous: HashSet<(Uuid, Option<Uuid>)>,
    /// Documents that could not be cleaned.
    reported: HashSet<(&'static str, String)>,
}

/// Records what earlier processes of this node left behind, then starts the task that looks for
/// the entries of all nodes until the connection is closed.
pub(crate) async fn start(log: &Arc<AuditLog>) -> Result<(), MongoError> {
    let mut recovery = Recovery::default();
    recovery.run(log, Due::OfThisNode).await?;
    let log = log.clone();
    tokio::spawn(async move {
        loop {
            pause(INTERVAL).await;
            if log.connection.is_closed() {
                return;
            }
            if let Err(fault) = recovery.run(&log, Due::SeenTwice).await {
                tracing::warn!(%fault, "cannot check for orphaned audit events");
            }
        }
    });
    Ok(())
}

/// Records what any node left behind. No other node may run: its entries in flight would be recorded
/// twice.
pub(super) async fn record_all(log: &AuditLog) -> Result<(), MongoError> {
    let (mut recovery, mut left) = (Recovery::default(), HashSet::new());
    loop {
        recovery.run(log, Due::All).await?;
        log.flush().await;
        if recovery.previous.is_empty() {
            return Ok(());
        }
        if recovery.previous == left {
            return Err(MongoError::malformed("outbox", "its entries cannot be recorded"));
        }
        left.clone_from(&recovery.previous);
    }
}

impl Recovery {
    /// Runs one pass.
    async fn run(&mut self, log: &AuditLog, due: Due) -> Result<(), MongoError> {
        let mut found = HashSet::new();
        for collection in WITH_OUTBOX {
            let Found { orphans, forged } = self.find_orphans(log, collection).await?;
            for forged in forged {
                if let Err(fault) = self.reject_forged(log, forged).await {
                    tracing::error!(%fault, collection, "cannot remove a forged outbox entry yet");
                }
            }
            for orphan in orphans {
                let (id, claim) =
                    (orphan.header.id, orphan.header.claim.as_ref().map(|claim| claim.id));
                found.insert((id, claim));
                let is_due = match due {
                    Due::All => true,
                    Due::OfThisNode => orphan.header.node == log.node.name.as_ref(),
                    Due::SeenTwice => false,
                };
                // An entry in flight in this node's own chain must not be appended twice.
                if !(is_due || self.previous.contains(&(id, claim))) || log.chain.is_in_flight(id) {
                    continue;
                }
                // An entry that cannot be recorded must not hold up the others; the next pass tries
                // it again.
                if let Err(fault) = recover(log, orphan).await {
                    tracing::error!(
                        %fault, collection,
                        "cannot record an orphaned audit event yet"
                    );
                }
            }
        }
        self.previous = found;
        Ok(())
    }

    /// Removes forged entries and reports them. Of several nodes that find them, the one that
    /// removes them reports.
    async fn reject_forged(&mut self, log: &AuditLog, forged: Forged) -> Result<(), MongoError> {
        let Forged { owner, name, entries, .. } = &forged;
        let is_taken_out = match forged.remove(log).await? {
            Outcome::Removed => true,
            Outcome::NotFound => false,
            Outcome::Changed => return Ok(()),
        };
        let target = format!("{}/{name}", owner.collection);
        crate::metrics::METRICS.outbox_entries_refused.inc_by(*entries as u64);
        tracing::error!(
            target,
            entries,
            is_taken_out,
            "rejected a forged outbox entry; check who can write to the database"
        );
        let now = Timestamp::from_millis(
            log.node.observed_time.load(SeqCst).max(log.node.persisted_time.load(SeqCst)),
        );
        // Remembered before it is recorded, so that a failing trail does not make every pass start
        // anew.
        if !is_taken_out {
            self.reported.insert((owner.collection, name.clone()));
        }
        for _ in 0..(*entries).min(FORGED_RECORDS_MAX) {
            log.append_event(Stamp::internal(now).refused(
                Action::EntryRefused,
                target.as_str(),
                "forged",
            ))
            .await?;
        }
        Ok(())
    }

    /// Reads on until enough documents have an authentic entry: those without must not hide them.
    async fn find_orphans(
        &self,
        log: &AuditLog,
        collection: &'static str,
    ) -> Result<Found, MongoError> {
        let owners = log.connection.collection(collection).clone_with_type::<RawDocumentBuf>();
        let query = async move {
            let found = owners.find(doc! { "outbox.id": { "$exists": true } }).hint(outbox_hint());
            Ok(found.projection(doc! { "outbox": 1 }).batch_size(PAGE_DOCUMENTS as u32).await?)
        };
        let mut cursor = log.connection.call(query).await?;
        let (mut all, mut with_orphans) = (Found::default(), 0);
        while with_orphans < PAGE_DOCUMENTS {
            let (rest, page) = log.connection.call(read_page(cursor)).await?;
            for raw in &page {
                let Found { orphans, forged } = read_outbox(log, collection, raw);
                with_orphans += usize::from(!orphans.is_empty());
                all.orphans.extend(orphans);
                if let Some(forged) = forged.into_iter().find(|forged| self.is_unreported(forged))
                    && all
                        .forged
                        .iter()
                        .filter(|other| other.has_unreadable_id == forged.has_unreadable_id)
                        .count()
                        < FORGED_DOCUMENTS_MAX
                {
                    all.forged.push(forged);
                }
            }
            if page.len() < PAGE_DOCUMENTS {
                break;
            }
            cursor = rest;
        }
        Ok(all)
    }

    fn is_unreported(&self, forged: &Forged) -> bool {
        let is_too_many = forged.has_unreadable_id && self.reported.len() >= REPORTED_MAX;
        !is_too_many && !self.reported.contains(&(forged.owner.collection, forged.name.clone()))
    }
}

/// Outcome of removing forged entries.
enum Outcome {
    Removed,
    /// The outbox changed since it was read: another node removed them, or the next pass does.
    Changed,
    /// No document has this `_id`.
    NotFound,
}

impl Forged {
    /// Keeps the authentic entries and removes the rest. An unreadable entry can be named neither
    /// by content nor by id, so an outbox that has changed since it was read is left to the next
    /// pass: an event may have been added.
    async fn remove(&self, log: &AuditLog) -> Result<Outcome, MongoError> {
        if self.has_unreadable_id {
            return Ok(Outcome::NotFound);
        }
        let (authentic, key) = (
            doc! { "$literal": self.authentic.clone() },
            doc! { "id": "$$this.id", "mac": "$$this.mac" },
        );
        // The document around the array adds 8 bytes: length, type, a name of one character,
        // terminators.
        let size = count(self.size as u64 + 8);
        let is_as_it_was = doc! { "$and": [
            { "$eq": [{ "$bsonSize": { "o": "$outbox" } }, size] },
            { "$setIsSubset": [authentic.clone(), { "$map": { "input": "$outbox", "in": key.clone() } }] },
        ] };
        let others =
            doc! { "$filter": { "input": "$outbox", "cond": { "$in": [key, authentic] } } };
        let kept = doc! { "$cond": [is_as_it_was, others, "$outbox"] };
        let update = vec![
            doc! { "$set": { "outbox": { "$cond": [{ "$isArray": "$outbox" }, kept, "$$REMOVE"] } } },
        ];
        let (owners, filter) = (
            log.connection.collection(self.owner.collection),
            doc! { "_id": self.owner.id.clone() },
        );
        let written = log
            .connection
            .call(async move { Ok(owners.update_one(filter, update).await?) })
            .await?;
        Ok(match (written.matched_count, written.modified_count) {
            (0, _) => Outcome::NotFound,
            (_, 0) => Outcome::Changed,
            _ => Outcome::Removed,
        })
    }
}

async fn read_page(
    mut cursor: Cursor<RawDocumentBuf>,
) -> Result<(Cursor<RawDocumentBuf>, Vec<RawDocumentBuf>), MongoError> {
    let mut page = Vec::new();
    while page.len() < PAGE_DOCUMENTS
        && let Some(raw) = cursor.try_next().await?
    {
        page.push(raw);
    }
    Ok((cursor, page))
}

/// Reads the outbox of a document.
fn read_outbox(log: &AuditLog, collection: &'static str, raw: &RawDocument) -> Found {
    let field = |name: &str| {
        let mut fields = raw.iter_elements().map_while(Result::ok);
        fields.find(|field| field.key().as_str() == name)
    };
    let id = lenient(raw).remove("_id");
    let lossy = field("_id").and_then(|id| id.value_utf8_lossy().ok());
    let name = match (&id, &lossy) {
        (Some(id), _) => short_id(id),
        (None, Some(RawBson::String(lossy))) => short_id(&lossy.as_str().into()),
        (None, lossy) => short_id(&format!("{lossy:?}").into()),
    };
    let has_unreadable_id = id.is_none();
    let owner = OutboxOwner { collection, id: id.unwrap_or_default() };
    let mut found = Found::default();
    let (mut entries, mut size, mut authentic) = (1, 0, Vec::new());
    if let Some(Ok(RawBsonRef::Array(list))) = field("outbox").map(|outbox| outbox.value()) {
        (entries, size) = (0, list.as_bytes().len());
        for entry in elements(list) {
            match entry
                .as_ref()
                .and_then(Bson::as_document)
                .and_then(|entry| authentic_entry(log, &owner, entry))
            {
                Some((orphan, key)) => {
                    found.orphans.push(orphan);
                    authentic.push(key);
                }
                None => entries += 1,
            }
        }
    }
    if entries > 0 {
        found.forged.push(Forged { owner, name, has_unreadable_id, entries, size, authentic });
    }
    found
}

/// Decodes an authentic entry, with its id and MAC; `None` for any other.
fn authentic_entry(
    log: &AuditLog,
    owner: &OutboxOwner,
    entry: &Document,
) -> Option<(OrphanedEntry, Document)> {
    let header = EntryHeader::read(entry).ok()?;
    let event = Entry::with_id(header.id, Fields::of("outbox", entry).part("event").ok()?).ok()?;
    let is_authentic = header.is_authentic(&log.node.key, owner, &event.body, entry);
    let key = doc! { "id": uuid(header.id), "mac": entry.get("mac").cloned().unwrap_or_default() };
    is_authentic.then(|| (OrphanedEntry { owner: owner.clone(), header, entry: event }, key))
}

/// Short text for an `_id` of any type.
fn short_id(id: &Bson) -> String {
    let text = id.as_str().map(str::to_owned).or_else(|| as_uuid(id).map(|id| id.to_string()));
    let text = text.unwrap_or_else(|| id.to_string());
    text.chars().take(NAME_CHARS_MAX).collect()
}

/// Finds the sealed record of an entry in any chain. An entry that was removed after another node
/// had recorded it may be put back with its MAC by a party that kept a copy. The record is found by
/// its time, which is the same in each chain; one in the chain of the node that had to record it is
/// preferred. A record from an import names no entry: there the event decides.
async fn find_record(
    log: &AuditLog,
    header: &EntryHeader,
    event: &Event,
) -> Result<Option<ExistingRecord>, MongoError> {
    let none = Uuid::nil();
    let filter =
        doc! { "event.at": event.at.millis(), "entry": { "$in": [uuid(header.id), uuid(none)] } };
    let logs = log.connection.collection(AUDIT_LOGS).clone_with_type::<RawDocumentBuf>();
    let read = async move {
        Ok(logs.find(filter).await?.map_ok(|raw| lenient(&raw)).try_collect::<Vec<_>>().await?)
    };
    let found = log.connection.within(BACKGROUND_TIMEOUT, read).await?;
    let authentic =
        found.iter().filter(|found| sealed(found).is_ok_and(|head| log.node.key.check(&head)));
    let of_entry = authentic.filter_map(|found| {
        let (record, entry) =
            (decoded(found).ok()?, Fields::of("audit record", found).uuid("entry").ok()?);
        let is_of_entry =
            entry == header.id || Event { recovered_from: None, ..record.event } == *event;
        let is_late = found.get_bool(LATE_FIELD).unwrap_or(false);
        is_of_entry.then_some(ExistingRecord {
            is_late,
            by_its_node: entry == header.id && *record.chain == *header.node,
        })
    });
    Ok(of_entry.max_by_key(|recorded| recorded.by_its_node))
}

/// Existing record of an entry.
struct ExistingRecord {
    /// True if it is in the chain of the node that had to record it.
    by_its_node: bool,
    /// True if it was written after its caller got an unknown outcome.
    is_late: bool,
}

async fn recover(log: &AuditLog, orphan: OrphanedEntry) -> Result<(), MongoError> {
    let OrphanedEntry { owner, header, entry } = orphan;
    // The node may have recorded it and died before the cleanup.
    let Some(recorded) = find_record(log, &header, &entry.event).await? else {
        // A copy of an entry whose record was cut meanwhile.
        let mark = log.mark_of(&header.node).await.map_err(|_| MongoError::Closed)?;
        if mark.is_some_and(|mark| {
            log.node.key.check_cut(&header.node, &mark) && entry.event.at <= mark.place.at
        }) {
            log.cleaner.recorded(owner, vec![header.id]);
            return Ok(());
        }
        // Of two nodes that find it, the one whose claim is applied appends it.
        let claim = EntryClaim { id: Uuid::now_v7(), from: header.origin().to_owned() };
        let (name, after) = (log.node.name.as_ref().to_owned(), log.chain.sequence());
        let claimed_header = EntryHeader { id: header.id, node: name, after, claim: Some(claim) };
        let fields = claimed_header.fields(&log.node.key, &owner, &entry.body);
        let claimed_header: Document =
            fields.into_iter().map(|(field, value)| (format!("outbox.$.{field}"), value)).collect();
        let found_header = doc! {
            "id": uuid(header.id),
            "node": &header.node,
            "after": count(header.after),
            "claim": header.claim.as_ref().map(|claim| uuid(claim.id)),
        };
        let filter = doc! { "_id": owner.id.clone(), "outbox": { "$elemMatch": found_header } };
        let owners = log.connection.collection(owner.collection);
        let claimed =
            log.connection
                .call(async move {
                    Ok(owners.update_one(filter, doc! { "$set": claimed_header }).await?)
                })
                .await?;
        if claimed.matched_count == 0 {
            return Ok(());
        }
        let from = header.origin();
        tracing::warn!(
            from,
            action = entry.event.action.as_str(),
            "recorded an orphaned audit event"
        );
        let event = Event { recovered_from: Some(from.into()), ..entry.event };
        return log.chain.append(vec![Entry::with_id(header.id, event)?], Some(owner)).await;
    };
    // Recorded by the process that made the change, which in all likelihood answered its caller if
    // that still waited. Not so after a claim; and this process knows its own answers.
    let was_awaited = recorded.by_its_node && !recorded.is_late;
    let from_other_process =
        header.node != log.node.name.as_ref() || log.chain.is_from_earlier_process(header.after);
    if header.claim.is_none()
        && ((was_awaited && from_other_process) || log.cleaner.was_answered(header.id))
    {
        log.cleaner.answered(owner.clone(), header.id);
    }
    log.cleaner.recorded(owner, vec![header.id]);
    Ok(())
}
