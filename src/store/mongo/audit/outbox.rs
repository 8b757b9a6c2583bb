//! Audit events on their way. A change and its record are two documents. So the event first travels
//! inside the changed document, in its `outbox`: one write, both or neither. Then it is appended to
//! this node's chain, the verb answers, and some time later it is taken out of the outbox. What a
//! node leaves behind when it dies in between, another appends: see `recovery`.
//!
//! An entry carries a MAC under a key of the nodes, over the document that it lies in and
//! everything that recovery goes by: that it lies in an outbox proves nothing, since others can
//! write to the database too.

use std::sync::{Arc, Weak};

use mongodb::bson::{Bson, Document, doc, serialize_to_vec};
use uuid::Uuid;

use super::node_lease::Node;
use crate::{
    crypto::chain::ChainKey,
    model::Event,
    store::mongo::driver::{
        codec::{Fields, bytes, count, encode, uuid},
        error::MongoError,
    },
};

/// An event with its place in an outbox.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) id: Uuid,
    pub(crate) event: Event,
    /// As the chain's hash covers it.
    pub(crate) body: Vec<u8>,
    /// Gone when no caller waits any more for the record, of those whose answer is marked.
    pub(crate) caller: Option<Weak<()>>,
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

/// A change's events, and the name under which the feed will bring the change back.
#[derive(Clone)]
pub(crate) struct AuditedChange {
    pub(crate) operation: Uuid,
    pub(crate) entries: Vec<Entry>,
    events: Vec<Bson>,
    node: Arc<Node>,
    after: u64,
}

impl AuditedChange {
    /// By `node`, whose chain had come to `after`: its records of these events can only come later.
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
        Ok(Self { operation: Uuid::now_v7(), entries, events, node: node.clone(), after })
    }

    /// With the caller that waits for it.
    pub(crate) fn awaited_by(mut self, caller: &Weak<()>) -> Self {
        for entry in &mut self.entries {
            entry.caller = Some(caller.clone());
        }
        self
    }

    pub(crate) fn operation(&self) -> Bson {
        uuid(self.operation)
    }

    /// The entries for the outbox of `owner`, where they are new.
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

    /// For `$push`.
    pub(crate) fn push(&self, owner: &OutboxOwner) -> Bson {
        Bson::Document(doc! { "$each": self.outbox_entries(owner) })
    }

    /// The outbox with the entries behind what is in it, as an expression. What came from callers
    /// is not read as one.
    pub(crate) fn concatenated(&self, owner: &OutboxOwner) -> Bson {
        Bson::Document(
            doc! { "$concatArrays": [{ "$ifNull": ["$outbox", []] }, { "$literal": self.outbox_entries(owner) }] },
        )
    }
}

/// A document with an outbox.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OutboxOwner {
    pub(crate) collection: &'static str,
    pub(crate) id: Bson,
}

impl OutboxOwner {
    /// Its `_id` with its type, which differs from any other's.
    fn id_bytes(&self) -> Vec<u8> {
        // One value encodes; what does not would have no MAC that is right.
        serialize_to_vec(&doc! { "_id": self.id.clone() }).unwrap_or_default()
    }
}

/// The way of an event into a chain, as its entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EntryHeader {
    pub(crate) id: Uuid,
    /// The node that is to record it, and how far its chain had come.
    pub(crate) node: String,
    pub(crate) after: u64,
    pub(crate) claim: Option<Claim>,
}

/// An entry that another node, or a later process, took over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) id: Uuid,
    /// The node that made the change.
    pub(crate) from: String,
}

impl EntryHeader {
    pub(crate) fn read(entry: &Document) -> Result<Self, MongoError> {
        let fields = Fields::of("outbox", entry);
        let claim = match fields.find("claim") {
            Some(_) => {
                Some(Claim { id: fields.uuid("claim")?, from: fields.text("from")?.to_owned() })
            }
            None => None,
        };
        Ok(Self {
            id: fields.uuid("id")?,
            node: fields.text("node")?.to_owned(),
            after: fields.count("after")?,
            claim,
        })
    }

    /// The node that made the change.
    pub(crate) fn origin(&self) -> &str {
        self.claim.as_ref().map_or(&self.node, |claim| &claim.from)
    }

    /// The fields of an entry, but for its event.
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

    /// Returns true if an entry that lies with `owner` bears the MAC of this way and event.
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
    use crate::model::{Action, Stamp, Timestamp};

    /// AZ2: the MAC covers each field that recovery goes by, the event, and the document that the
    /// entry lies in.
    #[test]
    fn an_entry_is_bound_to_its_fields_and_its_document() {
        let (key, body) = (ChainKey::new([7; 32]), b"event".as_slice());
        let owner = OutboxOwner { collection: "clients", id: "svc".into() };
        let header =
            EntryHeader { id: Uuid::now_v7(), node: "a".to_owned(), after: 7, claim: None };
        let claimed = EntryHeader {
            claim: Some(Claim { id: Uuid::now_v7(), from: "b".to_owned() }),
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
            let other_claim = Some(Claim { id: Uuid::now_v7(), from: "b".to_owned() });
            let other_from =
                header.claim.clone().map(|claim| Claim { from: "c".to_owned(), ..claim });
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
        stamp.client = Some("orders".parse().unwrap());
        stamp.secret = Some("s1".parse().unwrap());
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
