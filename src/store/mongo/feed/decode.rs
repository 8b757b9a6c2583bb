//! Pipeline of the change stream, and the decoding of its events.

use std::sync::Arc;

use mongodb::bson::{Bson, Document, doc};

use crate::{
    model::{FamilyId, Revoked, revocation::Revocation},
    store::{
        Change,
        mongo::{
            documents::{
                client, keyset,
                revocation::{epoch_of, revoked_of},
            },
            driver::{
                codec::{Fields, as_uuid},
                error::MongoError,
                schema::{CLIENTS, EPOCHS, NODES, REVOCATIONS, SIGNING_KEYS, TOKENS},
            },
        },
    },
};

/// Decoded event of the stream.
pub(super) enum StreamEvent {
    Changes(Vec<Change>),
    /// Heartbeat of this node.
    Heartbeat(i64),
    /// A collection was dropped or renamed.
    CollectionDropped,
}

/// Pipeline that passes every change that judgements depend on, and this node's heartbeats; not
/// rotations, of which there are many.
pub(crate) fn pipeline(node: &str) -> Vec<Document> {
    let of = |collection: &str, field: &str| {
        let (updated, full) =
            (format!("updateDescription.updatedFields.{field}"), format!("fullDocument.{field}"));
        let either =
            vec![doc! { updated: { "$exists": true } }, doc! { full: { "$exists": true } }];
        doc! { "ns.coll": collection, "$or": either }
    };
    let all = vec![
        of(REVOCATIONS, "until"),
        of(TOKENS, "ended_until"),
        of(EPOCHS, "value"),
        of(CLIENTS, "deleted"),
        of(CLIENTS, "revision"),
        of(CLIENTS, client::EPOCH),
        of(SIGNING_KEYS, "revision"),
        doc! { "ns.coll": NODES, "documentKey._id": node, "updateDescription.updatedFields.beat": { "$exists": true } },
        doc! { "operationType": { "$in": ["drop", "rename", "dropDatabase", "invalidate"] } },
    ];
    let of_updates =
        ["until", "ended_until", "value", "deleted", "revision", client::EPOCH, "keyset", "beat"];
    let mut wanted = doc! { "operationType": 1, "ns": 1, "to": 1, "documentKey": 1 };
    for field in of_updates {
        wanted.insert(format!("updateDescription.updatedFields.{field}"), 1);
        wanted.insert(format!("fullDocument.{field}"), 1);
    }
    vec![doc! { "$match": { "$or": all } }, doc! { "$project": wanted }]
}

pub(crate) fn decode(event: &Document) -> Result<StreamEvent, MongoError> {
    let fields = Fields::of("change", event);
    let ours = [REVOCATIONS, TOKENS, EPOCHS, CLIENTS, SIGNING_KEYS, NODES];
    let named = |field: &str| {
        fields.find(field).and_then(Bson::as_document).and_then(|named| named.get_str("coll").ok())
    };
    let collection = named("ns");
    if matches!(fields.text("operationType")?, "drop" | "rename" | "dropDatabase" | "invalidate") {
        // A collection renamed to one of ours replaces it, and the event shows neither its old nor
        // its new content.
        let concerns_us = collection.is_none_or(|from| {
            [Some(from), named("to")].iter().flatten().any(|name| ours.contains(name))
        });
        return Ok(if concerns_us {
            StreamEvent::CollectionDropped
        } else {
            StreamEvent::Changes(Vec::new())
        });
    }
    let collection =
        collection.ok_or_else(|| MongoError::malformed("change", "it names no collection"))?;
    let key = fields.get("documentKey")?.as_document().and_then(|key| key.get("_id"));
    let key = key.ok_or_else(|| MongoError::malformed("change", "it names no document"))?;
    let update = fields.find("updateDescription").and_then(Bson::as_document);
    let update = update.and_then(|update| update.get_document("updatedFields").ok());
    let changed = update.or_else(|| fields.find("fullDocument").and_then(Bson::as_document));
    let nothing = Document::new();
    let changed = match changed {
        Some(changed) => changed,
        // Unreadable: it is no keyset.
        None if collection == SIGNING_KEYS => &nothing,
        None => return Err(MongoError::malformed("change", "it contains no change")),
    };
    let now = Fields::of("change", changed);
    if collection == NODES {
        return Ok(StreamEvent::Heartbeat(changed.get_i64("beat").unwrap_or_default()));
    }
    Ok(StreamEvent::Changes(changes(collection, key, &now)?))
}

fn changes(collection: &str, key: &Bson, now: &Fields<'_>) -> Result<Vec<Change>, MongoError> {
    let wrong = || MongoError::malformed("change", "malformed _id");
    let text = || key.as_str().ok_or_else(wrong);
    Ok(match collection {
        REVOCATIONS => vec![Change::Revoked(Revocation {
            revoked: revoked_of(text()?)?,
            until: now.time("until")?,
        })],
        TOKENS => {
            let revoked = Revoked::Family(FamilyId(as_uuid(key).ok_or_else(wrong)?));
            vec![Change::Revoked(Revocation { revoked, until: now.time("ended_until")? })]
        }
        EPOCHS => vec![Change::Epoch(epoch_of(text()?)?, now.count("value")?)],
        CLIENTS => {
            let mut changes = Vec::new();
            // No cache has an entry for an `_id` that is no valid client id.
            let id = key.as_str().and_then(|id| id.parse().ok());
            // An epoch alone changes nothing that is cached of a client.
            if now.find("revision").is_some() || now.find("deleted").is_some() {
                changes.extend(id.map(Change::Client));
            }
            if now.find(client::EPOCH).is_some() {
                changes.extend(client::epoch(key, now).map(|(of, value)| Change::Epoch(of, value)));
            }
            changes
        }
        SIGNING_KEYS => {
            let keyset = now.part(keyset::KEYSET).inspect_err(keyset::log_refused).ok();
            keyset.map(|keyset| Change::Keyset(Arc::new(keyset))).into_iter().collect()
        }
        _ => Vec::new(),
    })
}
