//! Collections and their indexes. `_id` carries every uniqueness, so that each collection can be
//! sharded by hashed `_id`; all other indexes are for speed, and the ones that let MongoDB delete
//! by age are housekeeping: whether something stands is judged in the verbs.

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
use crate::model::Action;

/// Registered machines. What is left of a deleted one is its epoch and its tenant.
pub(crate) const CLIENTS: &str = "clients";
/// Tenants of audiences. What is left of a released one is its outbox.
pub(crate) const AUDIENCES: &str = "audiences";
/// Refresh families, those that were ended included.
pub(crate) const TOKENS: &str = "tokens";
/// Single tokens that were ended, and families that are gone and must still be remembered.
pub(crate) const REVOCATIONS: &str = "revocations";
/// Epochs of tenants and subjects; a client's is kept with the client.
pub(crate) const EPOCHS: &str = "epochs";
/// The keyset.
pub(crate) const SIGNING_KEYS: &str = "signing_keys";
/// Shared rate-limit counters.
pub(crate) const RATE_LIMITS: &str = "rate_limits";
/// Audit records.
pub(crate) const AUDIT_LOGS: &str = "audit_logs";
/// Nodes, the ends of their audit chains, and their heartbeat.
pub(crate) const NODES: &str = "nodes";
/// The schema's version, and whether an import is going on.
pub(crate) const META: &str = "meta";

/// Those whose documents carry audit events until these are in a chain.
pub(crate) const WITH_OUTBOX: [&str; 6] =
    [CLIENTS, AUDIENCES, TOKENS, REVOCATIONS, EPOCHS, SIGNING_KEYS];

/// The action of witness records, which are found by an index of their own.
pub(crate) const WITNESSES: &str = Action::HeadsWitnessed.as_str();

/// The version written here. What one is brought up by is in [`migrate`].
pub(crate) const VERSION: i64 = 2;
/// MongoDB's code for a collection that is not there.
const NAMESPACE_NOT_FOUND: i32 = 26;
/// How long MongoDB keeps what our own sweep would have deleted.
const EXPIRY_MARGIN: Duration = Duration::from_secs(86_400);
/// Building indexes over a large collection takes long.
const INDEX_TIMEOUT: Duration = Duration::from_secs(600);

/// Makes what is missing, mends what differs, and refuses what a newer version wrote.
pub(crate) async fn prepare(connection: &Connection) -> Result<(), OpenError> {
    let version = check_version(connection).await?;
    for (collection, indexes) in indexes() {
        let existing = create_and_list(connection, collection).await?;
        for index in indexes {
            ensure_index(connection, collection, &existing, index).await?;
        }
    }
    if version < VERSION {
        migrate(connection, version).await?;
        // After the indexes, so that whoever finds the version finds them too.
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

/// Refuses what a newer version wrote; the version, 0 before the first node was there.
pub(crate) async fn check_version(connection: &Connection) -> Result<i64, OpenError> {
    let version = version(connection).await?.unwrap_or(0);
    if version > VERSION {
        return Err(OpenError::Newer { found: version, known: VERSION });
    }
    Ok(version)
}

/// From an older version, step by step. Each may be cut off and begun again, and made by two nodes
/// at once.
async fn migrate(connection: &Connection, version: i64) -> Result<(), MongoError> {
    // 1 to 2: counters hold what each process counted, instead of a sum. Windows are over after
    // some seconds.
    if version == 1 {
        tracing::info!("bringing the database from schema 1 to 2");
        let counters = connection.collection(RATE_LIMITS);
        connection
            .within(INDEX_TIMEOUT, async move { Ok(counters.delete_many(doc! {}).await?) })
            .await?;
    }
    Ok(())
}

/// The version that is written there; `None` before the first node was there.
pub(crate) async fn version(connection: &Connection) -> Result<Option<i64>, MongoError> {
    let meta = connection.collection(META);
    let found =
        connection.call(async move { Ok(meta.find_one(doc! { "_id": "schema" }).await?) }).await?;
    let version = found.map(|found| Fields::of("schema", &found).count("version")).transpose()?;
    Ok(version.map(|version| i64::try_from(version).unwrap_or(i64::MAX)))
}

/// An index that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Defect {
    /// It is not there, or there is another one in its place. The next node that starts makes it.
    Missing(String),
    /// It lets no two documents have the same, where ours may.
    Unique(String),
}

/// What is wrong with the indexes. Makes nothing.
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

/// An import that has begun and not ended leaves nothing to serve.
pub(crate) async fn is_importing(connection: &Connection) -> Result<bool, MongoError> {
    let meta = connection.collection(META);
    let found =
        connection.call(async move { Ok(meta.find_one(doc! { "_id": "import" }).await?) }).await?;
    Ok(found.is_some())
}

/// An index, by its name.
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

/// Servers give numbers back as another type than they were given.
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
            // Made here rather than by the first write, which would find a deadline of two seconds
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
    // One of the same keys under another name stands in the way too; the one on `_id` is never
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
                    "an index is not what it should be and is made anew"
                );
                match collection.drop_index(stale).await.map_err(MongoError::from) {
                    // Another node mends it too.
                    Err(MongoError::Driver(error)) if is_missing_index(&error) => {}
                    outcome => outcome?,
                }
            }
            collection.create_index(model).await?;
            Ok(())
        })
        .await
}

/// By which index the outboxes are found.
pub(crate) fn outbox_hint() -> Hint {
    Hint::Name("outbox".to_owned())
}
