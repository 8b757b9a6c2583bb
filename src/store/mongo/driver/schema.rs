//! Collections and their indexes. Uniqueness rests on `_id` alone, so that each collection can be
//! sharded by hashed `_id`. All other indexes are for speed, and those with an expiry are
//! maintenance: the operations themselves decide what is valid.

use std::time::Duration;

use mongodb::{
    IndexModel,
    bson::{Document, doc},
    options::{Hint, IndexOptions},
};

use super::{
    codec::Fields,
    connection::Connection,
    error::{MongoError, OpenError, has_code},
};
use crate::model::{Action, event::Outcome};

/// Clients. A deleted one leaves its epoch and tenant.
pub(crate) const CLIENTS: &str = "clients";
/// Tenants of audiences. A released audience leaves its outbox.
pub(crate) const AUDIENCES: &str = "audiences";
/// Refresh families, ended ones included.
pub(crate) const TOKENS: &str = "tokens";
/// Revoked tokens, and ended families that are deleted and must still be remembered.
pub(crate) const REVOCATIONS: &str = "revocations";
/// Epochs of tenants and subjects; a client's is in its own document.
pub(crate) const EPOCHS: &str = "epochs";
/// The keyset.
pub(crate) const SIGNING_KEYS: &str = "signing_keys";
/// Shared rate-limit counters.
pub(crate) const RATE_LIMITS: &str = "rate_limits";
/// Audit records.
pub(crate) const AUDIT_LOGS: &str = "audit_logs";
/// Nodes, with the heads of their audit chains and their heartbeats.
pub(crate) const NODES: &str = "nodes";
/// Version of the schema, and the mark of a running import.
pub(crate) const META: &str = "meta";

/// Collections whose documents have an outbox.
pub(crate) const WITH_OUTBOX: [&str; 6] =
    [CLIENTS, AUDIENCES, TOKENS, REVOCATIONS, EPOCHS, SIGNING_KEYS];

/// Action of witness records, which have an index of their own.
pub(crate) const WITNESSES: &str = Action::HeadsWitnessed.as_str();

/// Version of the schema. A newer one is refused.
pub(crate) const VERSION: i64 = 1;
/// MongoDB's code for a missing collection.
const NAMESPACE_NOT_FOUND: i32 = 26;
/// Extra time before MongoDB deletes expired documents itself; our own sweep is earlier.
const EXPIRY_MARGIN: Duration = Duration::from_secs(30 * 86_400);
/// Timeout for index builds, which take long on a large collection.
const INDEX_TIMEOUT: Duration = Duration::from_secs(600);

/// Creates missing collections and indexes, repairs differing ones, and refuses a newer schema.
pub(crate) async fn prepare(connection: &Connection) -> Result<(), OpenError> {
    let version = check_version(connection).await?;
    for (collection, indexes) in indexes() {
        let existing = create_and_list(connection, collection).await?;
        for index in indexes {
            ensure_index(connection, collection, &existing, index).await?;
        }
    }
    if version.is_none() {
        // After the indexes: a node that finds the version finds the indexes too.
        let meta = connection.collection(META);
        let write = async move {
            let set = doc! { "$max": { "version": VERSION } };
            Ok(meta.update_one(doc! { "_id": "schema" }, set).upsert(true).await?)
        };
        match connection.call(write).await {
            // Another node wrote it at the same moment.
            Err(fault) if fault.is_duplicate() => {}
            outcome => drop(outcome?),
        }
    }
    Ok(())
}

/// Refuses a newer schema; returns the version, `None` before the first node registered.
pub(crate) async fn check_version(connection: &Connection) -> Result<Option<i64>, OpenError> {
    match version(connection).await? {
        Some(found) if found > VERSION => Err(OpenError::Newer { found, known: VERSION }),
        found => Ok(found),
    }
}

/// Stored schema version; `None` before the first node registered.
pub(crate) async fn version(connection: &Connection) -> Result<Option<i64>, MongoError> {
    let meta = connection.collection(META);
    let found =
        connection.call(async move { Ok(meta.find_one(doc! { "_id": "schema" }).await?) }).await?;
    let version = found.map(|found| Fields::of("schema", &found).count("version")).transpose()?;
    Ok(version.map(|version| i64::try_from(version).unwrap_or(i64::MAX)))
}

/// Index that differs from the one needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Defect {
    /// Missing, or another index has its name. The next node that starts creates it.
    Missing(String),
    /// Unique, although our documents may share the value.
    Unique(String),
}

/// Finds indexes that are missing or wrong. Changes nothing.
pub(crate) async fn defects(connection: &Connection) -> Result<Vec<Defect>, MongoError> {
    use futures_util::TryStreamExt as _;
    let mut defects = Vec::new();
    for (collection, indexes) in indexes() {
        let indexed = connection.collection(collection);
        let read = async move {
            Ok(indexed.list_indexes().await?.try_collect::<Vec<IndexModel>>().await?)
        };
        let existing = match connection.call(read).await {
            Err(MongoError::Driver(error)) if has_code(&error, &[NAMESPACE_NOT_FOUND]) => {
                Vec::new()
            }
            existing => existing?,
        };
        let unique = existing.iter().filter(|model| {
            model.options.as_ref().and_then(|options| options.unique) == Some(true)
        });
        defects.extend(unique.map(|model| {
            Defect::Unique(format!("{collection}.{}", name_of(model).unwrap_or_default()))
        }));
        let missing = indexes.iter().filter(|index| {
            !existing.iter().any(|model| index.is_named(model) && index.matches(model))
        });
        defects
            .extend(missing.map(|index| Defect::Missing(format!("{collection}.{}", index.name))));
    }
    Ok(defects)
}

fn name_of(model: &IndexModel) -> Option<&str> {
    model.options.as_ref()?.name.as_deref()
}

/// Returns true if an import has begun and not finished: such a database must not be served.
pub(crate) async fn is_importing(connection: &Connection) -> Result<bool, MongoError> {
    let meta = connection.collection(META);
    let found =
        connection.call(async move { Ok(meta.find_one(doc! { "_id": "import" }).await?) }).await?;
    Ok(found.is_some())
}

/// Index that is needed.
struct Index {
    name: &'static str,
    keys: Document,
    partial: Option<Document>,
    expires: bool,
}

impl Index {
    fn model(&self) -> IndexModel {
        let options = IndexOptions::builder()
            .name(self.name.to_owned())
            .partial_filter_expression(self.partial.clone())
            .expire_after(self.expires.then_some(EXPIRY_MARGIN))
            .build();
        IndexModel::builder().keys(self.keys.clone()).options(options).build()
    }

    fn is_named(&self, other: &IndexModel) -> bool {
        name_of(other) == Some(self.name)
    }

    fn matches(&self, other: &IndexModel) -> bool {
        let options = other.options.as_ref();
        same_keys(&self.keys, &other.keys)
            && options.and_then(|options| options.expire_after)
                == self.expires.then_some(EXPIRY_MARGIN)
            && options.and_then(|options| options.partial_filter_expression.as_ref())
                == self.partial.as_ref()
            && options.and_then(|options| options.unique) != Some(true)
    }
}

/// Compares keys by value: servers return numbers in another type than was sent.
fn same_keys(one: &Document, other: &Document) -> bool {
    let read = |keys: &Document| -> Vec<(String, Option<i64>)> {
        let number = |value: &mongodb::bson::Bson| {
            value
                .as_i64()
                .or_else(|| value.as_i32().map(i64::from))
                .or_else(|| value.as_f64().map(|value| value.round() as i64))
        };
        keys.iter().map(|(key, value)| (key.clone(), number(value))).collect()
    };
    read(one) == read(other)
}

fn indexes() -> Vec<(&'static str, Vec<Index>)> {
    let plain = |name, keys| Index { name, keys, partial: None, expires: false };
    let expiring = |name, keys| Index { name, keys, partial: None, expires: true };
    let partial = |name, keys, filter| Index { name, keys, partial: Some(filter), expires: false };
    let outbox =
        || partial("outbox", doc! { "outbox.id": 1 }, doc! { "outbox.id": { "$exists": true } });
    vec![
        (
            CLIENTS,
            vec![
                outbox(),
                plain("tenant", doc! { "tenant": 1, "_id": 1 }),
                plain("epoch", doc! { "epoch": 1 }),
            ],
        ),
        (AUDIENCES, vec![outbox(), plain("tenant", doc! { "tenant": 1, "_id": 1 })]),
        (
            TOKENS,
            vec![
                outbox(),
                Index {
                    name: "ends_at",
                    keys: doc! { "ends_at": 1 },
                    partial: Some(doc! { "ended": false }),
                    expires: true,
                },
                partial("ended_ends_at", doc! { "ends_at": 1, "_id": 1 }, doc! { "ended": true }),
                partial(
                    "ended_until",
                    doc! { "ended_until": 1 },
                    doc! { "ended_until": { "$exists": true } },
                ),
            ],
        ),
        (REVOCATIONS, vec![outbox(), expiring("until", doc! { "until": 1 })]),
        (EPOCHS, vec![outbox()]),
        (SIGNING_KEYS, vec![outbox()]),
        (RATE_LIMITS, vec![expiring("until", doc! { "until": 1 })]),
        (
            AUDIT_LOGS,
            vec![
                plain("time", doc! { "event.at": 1, "_id": 1 }),
                // With one field that a filter names a list has its order from the index. Two
                // fields of one filter are compared in the record.
                plain("actor", doc! { "event.actor": 1, "event.at": 1, "_id": 1 }),
                plain("tenant", doc! { "event.tenant": 1, "event.at": 1, "_id": 1 }),
                plain("target", doc! { "event.target": 1, "event.at": 1, "_id": 1 }),
                plain("action", doc! { "event.action": 1, "event.at": 1, "_id": 1 }),
                partial(
                    "family",
                    doc! { "event.family": 1, "event.at": 1, "_id": 1 },
                    doc! { "event.family": { "$exists": true } },
                ),
                partial(
                    "refused",
                    doc! { "event.at": 1, "_id": 1, "event.outcome": 1 },
                    doc! { "event.outcome": Outcome::Refused.as_str() },
                ),
                partial(
                    "witnesses",
                    doc! { "event.action": 1, "_id": 1 },
                    doc! { "event.action": WITNESSES },
                ),
            ],
        ),
        (NODES, vec![]),
    ]
}

async fn create_and_list(
    connection: &Connection,
    collection: &'static str,
) -> Result<Vec<IndexModel>, MongoError> {
    use futures_util::TryStreamExt as _;
    let (database, indexed) = (connection.database().clone(), connection.collection(collection));
    connection
        .within(INDEX_TIMEOUT, async move {
            // Created here and not by the first write, whose deadline of two seconds may be too
            // short.
            match database.create_collection(collection).await.map_err(MongoError::from) {
                Err(MongoError::Driver(error)) if exists_already(&error) => {}
                outcome => outcome?,
            }
            Ok(indexed.list_indexes().await?.try_collect().await?)
        })
        .await
}

fn exists_already(error: &mongodb::error::Error) -> bool {
    matches!(&*error.kind, mongodb::error::ErrorKind::Command(command) if command.code == 48)
}

fn is_missing_index(error: &mongodb::error::Error) -> bool {
    matches!(&*error.kind, mongodb::error::ErrorKind::Command(command) if command.code == 27)
}

async fn ensure_index(
    connection: &Connection,
    name: &'static str,
    existing: &[IndexModel],
    index: Index,
) -> Result<(), MongoError> {
    let named = |model: &&IndexModel| index.is_named(model);
    // An index with the same keys under another name is in the way too; the one on `_id` is never
    // touched.
    let alike = |model: &&IndexModel| {
        same_keys(&model.keys, &index.keys) && !same_keys(&model.keys, &doc! { "_id": 1 })
    };
    let in_the_way: Vec<_> = existing.iter().filter(|model| named(model) || alike(model)).collect();
    if in_the_way.iter().any(|model| named(model) && index.matches(model)) {
        return Ok(());
    }
    let stale: Vec<String> =
        in_the_way.iter().filter_map(|model| name_of(model).map(str::to_owned)).collect();
    let (collection, model) = (connection.collection(name), index.model());
    connection
        .within(INDEX_TIMEOUT, async move {
            for stale in stale {
                tracing::warn!(
                    collection = name,
                    index = stale,
                    "recreating an index with a wrong definition"
                );
                match collection.drop_index(stale).await.map_err(MongoError::from) {
                    // Another node repairs it too.
                    Err(MongoError::Driver(error)) if is_missing_index(&error) => {}
                    outcome => outcome?,
                }
            }
            collection.create_index(model).await?;
            Ok(())
        })
        .await
}

/// Hint for the index on outboxes.
pub(crate) fn outbox_hint() -> Hint {
    Hint::Name("outbox".to_owned())
}
