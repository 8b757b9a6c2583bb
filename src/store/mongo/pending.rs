//! Audit events on their way. A change and its record are two documents. So the event first travels inside the changed document, in
//! its `outbox`: one write, both or neither. Then it is appended to this node's chain, the verb answers, and some time later it is
//! taken out of the outbox. What a node leaves behind when it dies in between, another appends: see `recovery`.

use std::sync::Weak;

use mongodb::bson::{Bson, doc};
use uuid::Uuid;

use super::{
    codec::{encode, uuid},
    fault::Fault,
};
use crate::model::Event;

/// An event with its place in an outbox.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) id: Uuid,
    pub(super) event: Event,
    /// As the chain's hash covers it.
    pub(super) body: Vec<u8>,
    /// Gone when no caller waits any more for the record, of those whose answer is marked.
    pub(super) caller: Option<Weak<()>>,
}

impl Entry {
    pub(super) fn new(event: Event) -> Result<Self, Fault> {
        Self::with_id(Uuid::now_v7(), event)
    }

    pub(super) fn with_id(id: Uuid, event: Event) -> Result<Self, Fault> {
        let body = serde_json::to_vec(&event).map_err(|error| Fault::row("audit event", error))?;
        Ok(Self { id, event, body, caller: None })
    }
}

/// A change's events, and the name under which the feed will bring the change back.
#[derive(Clone, Debug)]
pub(super) struct Deed {
    pub(super) operation: Uuid,
    pub(super) entries: Vec<Entry>,
    outbox: Vec<Bson>,
}

impl Deed {
    /// By `node`, whose chain had come to `after`: its records of these events can only come later.
    pub(super) fn new(node: &str, after: u64, events: impl IntoIterator<Item = Event>) -> Result<Self, Fault> {
        let entries = events.into_iter().map(Entry::new).collect::<Result<Vec<_>, _>>()?;
        let put = |entry: &Entry| {
            let event = encode("audit event", &entry.event)?;
            let after = i64::try_from(after).unwrap_or(i64::MAX);
            Ok(Bson::Document(doc! { "id": uuid(entry.id), "node": node, "after": after, "event": event }))
        };
        let outbox = entries.iter().map(put).collect::<Result<_, Fault>>()?;
        Ok(Self { operation: Uuid::now_v7(), entries, outbox })
    }

    /// With the caller that waits for it.
    pub(super) fn awaited_by(mut self, caller: &Weak<()>) -> Self {
        for entry in &mut self.entries {
            entry.caller = Some(caller.clone());
        }
        self
    }

    pub(super) fn operation(&self) -> Bson {
        uuid(self.operation)
    }

    /// The entries, for a document that is new.
    pub(super) fn outbox(&self) -> Bson {
        Bson::Array(self.outbox.clone())
    }

    /// For `$push`.
    pub(super) fn push(&self) -> Bson {
        Bson::Document(doc! { "$each": self.outbox.clone() })
    }

    /// The outbox with the entries behind what is in it, as an expression. What came from callers is not read as one.
    pub(super) fn concatenated(&self) -> Bson {
        Bson::Document(doc! { "$concatArrays": [{ "$ifNull": ["$outbox", []] }, { "$literal": self.outbox.clone() }] })
    }
}

/// A document with an outbox.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Owner {
    pub(super) collection: &'static str,
    pub(super) id: Bson,
}
