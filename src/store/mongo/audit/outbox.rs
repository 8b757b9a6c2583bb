//! Transactional outbox of audit events. A change and its audit record are two documents, so the
//! event is first written into the `outbox` of the changed document: one write, both or neither.
//! With that it is durable, and the operation returns. Then it is appended to this node's chain, and
//! later the entry is removed. Entries that a dead node left behind are recorded by another one.
//!
//! | state of an entry | event | next | written where |
//! |--|--|--|--|
//! | none | a change with events | in the outbox, to be recorded by `node` | same write as the change: [`AuditedChange`] |
//! | in the outbox | the node's chain writer inserts its record | recorded | `chain_writer` |
//! | in the outbox | unrecorded in two recovery passes, or at the start of its own node | claimed: `node`, `after`, `claim`, `from` and `mac` replaced, if they are unchanged | `recovery` |
//! | claimed | the claiming node's chain writer inserts its record, with `recovered_from` | recorded | `chain_writer` |
//! | claimed | unrecorded in two recovery passes | claimed by another process | `recovery` |
//! | recorded | a cleanup batch, or a recovery pass that finds it recorded | removed | `outbox_cleaner` |
//! | no valid MAC, or unreadable | recovery pass | removed and reported, never recorded | `recovery` |
//!
//! An entry carries a MAC under a key of the nodes, over its document and every field that recovery
//! relies on: its place in an outbox proves nothing, since others can write to the database too.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering::SeqCst},
};

use mongodb::bson::{Bson, Document, doc, serialize_to_vec};
use uuid::Uuid;

use super::node_lease::Node;
use crate::{
    crypto::chain::ChainKey,
    model::Event,
    store::mongo::driver::{
        codec::{Fields, bytes, count, encode, uuid},
        error::MongoError,
        group_commands::entries_in,
    },
};

/// States of a caller.
const WAITING: u8 = 0;
const ANSWERED: u8 = 1;
const ABANDONED: u8 = 2;

/// Guard that the future of a caller holds. Dropped without [`Self::answered`], on timeout or
/// because the caller disconnected, the caller has abandoned its call.
pub(crate) struct CallerGuard(Arc<AtomicU8>);

impl CallerGuard {
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicU8::new(WAITING)))
    }

    /// State of this caller, for an operation that runs on without it.
    pub(crate) fn watch(&self) -> CallerWatch {
        CallerWatch(self.0.clone())
    }

    /// Notes that the caller has its answer.
    pub(crate) fn answered(self) {
        self.0.store(ANSWERED, SeqCst);
    }
}

impl Drop for CallerGuard {
    fn drop(&mut self) {
        // Fails if the caller was answered.
        let _ = self.0.compare_exchange(WAITING, ABANDONED, SeqCst, SeqCst);
    }
}

/// State of a caller, as seen by an operation that runs on without it.
#[derive(Clone, Debug)]
pub(crate) struct CallerWatch(Arc<AtomicU8>);

impl CallerWatch {
    /// Returns true if the caller got its answer.
    pub(crate) fn is_answered(&self) -> bool {
        self.0.load(SeqCst) == ANSWERED
    }

    /// Returns true if the caller waits no longer, without an answer.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.0.load(SeqCst) == ABANDONED
    }
}

/// Audit event with its id in an outbox.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) id: Uuid,
    pub(crate) event: Event,
    /// Encoded event, as the chain's hash covers it.
    pub(crate) body: Vec<u8>,
    /// The caller, for an event whose answer is marked in the document.
    pub(crate) caller: Option<CallerWatch>,
}

impl Entry {
    pub(crate) fn new(event: Event) -> Result<Self, MongoError> {
        Self::with_id(Uuid::now_v7(), event)
    }

    pub(super) fn with_id(id: Uuid, event: Event) -> Result<Self, MongoError> {
        let body = serde_json::to_vec(&event)
            .map_err(|error| MongoError::malformed("audit event", error))?;
        Ok(Self { id, event, body, caller: None })
    }
}

/// Outbox entries of one document write.
#[derive(Clone)]
pub(crate) struct AuditedChange {
    pub(crate) entries: Vec<Entry>,
    events: Vec<Bson>,
    node: Arc<Node>,
    after: u64,
}

impl AuditedChange {
    /// Builds a change of `node`, whose chain is at sequence `after`: the records of these events
    /// can only come later.
    pub(crate) fn new(
        node: &Arc<Node>,
        after: u64,
        events: impl IntoIterator<Item = Event>,
    ) -> Result<Self, MongoError> {
        let entries = events.into_iter().map(Entry::new).collect::<Result<Vec<_>, _>>()?;
        let events = entries
            .iter()
            .map(|entry| encode("audit event", &entry.event))
            .collect::<Result<_, _>>()?;
        Ok(Self { entries, events, node: node.clone(), after })
    }

    /// Attaches the caller that waits for the change.
    pub(crate) fn awaited_by(mut self, caller: &CallerWatch) -> Self {
        for entry in &mut self.entries {
            entry.caller = Some(caller.clone());
        }
        self
    }

    /// Id of the first entry, by which the change is recognised.
    pub(crate) fn first_entry(&self) -> Result<Uuid, MongoError> {
        let first = self.entries.first().map(|entry| entry.id);
        first.ok_or_else(|| MongoError::malformed("change", "it has no event"))
    }

    /// Returns true if this change was applied to a document, as far as its outbox shows.
    pub(crate) fn is_in(&self, document: &Document) -> bool {
        self.entries.iter().all(|entry| entries_in(document).any(|there| there == entry.id))
    }

    /// Entries for a new outbox of `owner`.
    pub(crate) fn outbox_entries(&self, owner: &OutboxOwner) -> Bson {
        let entry_document = |(entry, event): (&Entry, &Bson)| {
            let header = EntryHeader {
                id: entry.id,
                node: self.node.name.as_ref().into(),
                after: self.after,
                claim: None,
            };
            let mut document = header.fields(&self.node.key, owner, &entry.body);
            document.insert("event", event.clone());
            Bson::Document(document)
        };
        Bson::Array(self.entries.iter().zip(&self.events).map(entry_document).collect())
    }

    /// Operand of `$push`.
    pub(crate) fn push(&self, owner: &OutboxOwner) -> Bson {
        Bson::Document(doc! { "$each": self.outbox_entries(owner) })
    }

    /// Expression for the outbox with the entries appended. Values from callers are literals in it.
    pub(crate) fn concatenated(&self, owner: &OutboxOwner) -> Bson {
        Bson::Document(
            doc! { "$concatArrays": [{ "$ifNull": ["$outbox", []] }, { "$literal": self.outbox_entries(owner) }] },
        )
    }
}

/// Document with an outbox.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OutboxOwner {
    pub(crate) collection: &'static str,
    pub(crate) id: Bson,
}

impl OutboxOwner {
    /// Encoding of the `_id` with its type, which differs from that of any other.
    fn id_bytes(&self) -> Vec<u8> {
        // A single value always encodes; a failure would yield a MAC that is never valid.
        serialize_to_vec(&doc! { "_id": self.id.clone() }).unwrap_or_default()
    }
}

/// Fields of an entry that say who records it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EntryHeader {
    pub(crate) id: Uuid,
    /// Node that must record it, and the sequence of that node's chain when it took the entry on.
    pub(crate) node: String,
    pub(crate) after: u64,
    pub(crate) claim: Option<EntryClaim>,
}

/// Claim on an entry by another node, or by a later process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EntryClaim {
    pub(crate) id: Uuid,
    /// Node that made the change.
    pub(crate) from: String,
}

impl EntryHeader {
    pub(crate) fn read(entry: &Document) -> Result<Self, MongoError> {
        let fields = Fields::of("outbox", entry);
        let claim = match fields.find("claim") {
            Some(_) => Some(EntryClaim {
                id: fields.uuid("claim")?,
                from: fields.text("from")?.to_owned(),
            }),
            None => None,
        };
        Ok(Self {
            id: fields.uuid("id")?,
            node: fields.text("node")?.to_owned(),
            after: fields.count("after")?,
            claim,
        })
    }

    /// Node that made the change.
    pub(crate) fn origin(&self) -> &str {
        self.claim.as_ref().map_or(&self.node, |claim| &claim.from)
    }

    /// Fields of an entry, except its event.
    pub(crate) fn fields(&self, key: &ChainKey, owner: &OutboxOwner, body: &[u8]) -> Document {
        let mut fields =
            doc! { "id": uuid(self.id), "node": &self.node, "after": count(self.after) };
        if let Some(claim) = &self.claim {
            fields.extend(doc! { "claim": uuid(claim.id), "from": &claim.from });
        }
        let tag = self.with_mac_parts(owner, body, |parts| key.mac_entry(parts));
        fields.insert("mac", bytes(&tag));
        fields
    }

    /// Returns true if an entry in the outbox of `owner` has the MAC of this header and event.
    pub(super) fn is_authentic(
        &self,
        key: &ChainKey,
        owner: &OutboxOwner,
        body: &[u8],
        entry: &Document,
    ) -> bool {
        let tag = Fields::of("outbox", entry).hash("mac");
        tag.is_ok_and(|tag| self.with_mac_parts(owner, body, |parts| key.check_entry(parts, &tag)))
    }

    fn with_mac_parts<T>(
        &self,
        owner: &OutboxOwner,
        body: &[u8],
        take: impl FnOnce(&[&[u8]]) -> T,
    ) -> T {
        let (owner_id, after) = (owner.id_bytes(), self.after.to_be_bytes());
        let claim = self.claim.as_ref();
        let (claimed, from) = claim
            .map_or((&[][..], ""), |claim| (claim.id.as_bytes().as_slice(), claim.from.as_str()));
        let collection = owner.collection.as_bytes();
        take(&[
            self.id.as_bytes(),
            self.node.as_bytes(),
            &after,
            claimed,
            from.as_bytes(),
            collection,
            &owner_id,
            body,
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Action, AuthMethod, Principal, Stamp, Timestamp};

    /// AZ2: the MAC covers each field that recovery relies on, the event, and the document of the
    /// entry.
    #[test]
    fn an_entry_is_bound_to_its_fields_and_its_document() {
        let (key, body) = (ChainKey::new([7; 32]), b"event".as_slice());
        let owner = OutboxOwner { collection: "clients", id: "svc".into() };
        let header =
            EntryHeader { id: Uuid::now_v7(), node: "a".to_owned(), after: 7, claim: None };
        let claimed = EntryHeader {
            claim: Some(EntryClaim { id: Uuid::now_v7(), from: "b".to_owned() }),
            ..header.clone()
        };
        for header in [&header, &claimed] {
            let entry = header.fields(&key, &owner, body);
            assert_eq!(EntryHeader::read(&entry).unwrap(), *header);
            assert!(header.is_authentic(&key, &owner, body, &entry));
            assert!(!header.is_authentic(&ChainKey::new([8; 32]), &owner, body, &entry));
            assert!(!header.is_authentic(&key, &owner, b"Event", &entry));
            let elsewhere = [
                ("tokens", Bson::from("svc")),
                ("clients", "svd".into()),
                ("clients", Bson::Int32(1)),
            ];
            for (collection, id) in elsewhere {
                assert!(!header.is_authentic(&key, &OutboxOwner { collection, id }, body, &entry));
            }
            let other_claim = Some(EntryClaim { id: Uuid::now_v7(), from: "b".to_owned() });
            let other_from =
                header.claim.clone().map(|claim| EntryClaim { from: "c".to_owned(), ..claim });
            let no_claim =
                header.claim.as_ref().map(|_| EntryHeader { claim: None, ..header.clone() });
            let changed = [
                EntryHeader { id: Uuid::now_v7(), ..header.clone() },
                EntryHeader { node: "A".to_owned(), ..header.clone() },
                EntryHeader { after: 6, ..header.clone() },
                EntryHeader { claim: other_claim, ..header.clone() },
            ];
            let others = changed.into_iter().chain(no_claim).chain(
                other_from.map(|claim| EntryHeader { claim: Some(claim), ..header.clone() }),
            );
            for other in others {
                assert!(!other.is_authentic(&key, &owner, body, &entry), "{other:?}");
            }
            let mut bare = entry.clone();
            bare.remove("mac");
            assert!(!header.is_authentic(&key, &owner, body, &bare));
        }
    }

    /// AZ2: an event reads back from BSON as the bytes that its MAC covers.
    #[test]
    fn an_event_keeps_its_bytes_in_an_outbox() {
        let mut stamp = Stamp::internal(Timestamp::from_millis(1_790_000_000_123));
        stamp.tenant = Some("shop".parse().unwrap());
        stamp.actor = Some(Principal::Client("orders".parse().unwrap()));
        stamp.auth = Some(AuthMethod::Secret("s1".parse().unwrap()));
        let event = stamp
            .refused(Action::RefreshReused, "é\u{202e}\0", "invalid_grant")
            .in_family(crate::model::FamilyId::new());
        for event in [event.clone(), Event { recovered_from: Some("node-2".into()), ..event }] {
            let entry = Entry::new(event).unwrap();
            let encoded = doc! { "event": encode("audit event", &entry.event).unwrap() };
            let decoded = Fields::of("outbox", &encoded).part("event").unwrap();
            assert_eq!(Entry::with_id(entry.id, decoded).unwrap().body, entry.body);
        }
    }
}
