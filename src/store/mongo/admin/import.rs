//! Import into an empty MongoDB database that no node uses.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use mongodb::bson::{Document, doc};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::topology;
use crate::{
    crypto::chain::{ChainKey, Claim},
    model::{EpochOf, Record, Revoked, Timestamp, revocation::Revocation},
    store::{
        Result,
        mongo::{
            Mongo,
            audit::{node_lease, outbox::Entry, records, retention::encode_cut},
            documents::{
                audience, client, family, keyset,
                revocation::{document_id, epoch_location},
            },
            driver::{
                codec::{count, date, encode, uuid},
                connection::{BACKGROUND_TIMEOUT, Connection},
                error::{MongoError, OpenError},
                handshake::handshake,
                schema::{
                    self, AUDIENCES, AUDIT_LOGS, CLIENTS, META, NODES, REVOCATIONS, SIGNING_KEYS,
                    TOKENS, WITH_OUTBOX,
                },
            },
        },
        transfer::{Beginning, Chains, Ending, ExportRecord, ImportTarget, VERSION},
    },
};

/// Target of an import: an empty database.
pub struct Import {
    connection: Arc<Connection>,
    key: ChainKey,
    progress: Mutex<Option<Chains>>,
}

impl Mongo {
    /// Opens a database for an import; `key` seals the audit chains. Nothing else may use the
    /// database meanwhile.
    pub async fn import(uri: &str, key: ChainKey, deadline: Duration) -> Result<Import, OpenError> {
        match Self::open_import(uri, key, deadline).await {
            Err(error) => Err(topology::diagnose_connect_error(uri, error).await),
            opened => opened,
        }
    }

    async fn open_import(
        uri: &str,
        key: ChainKey,
        deadline: Duration,
    ) -> Result<Import, OpenError> {
        // A batch takes longer than a call that a caller waits for.
        let connection = Arc::new(Connection::new(uri, deadline.max(BACKGROUND_TIMEOUT)).await?);
        handshake(&connection).await?;
        schema::prepare(&connection).await?;
        if schema::is_importing(&connection).await? {
            return Err(OpenError::unfinished_import());
        }
        Ok(Import { connection, key, progress: Mutex::default() })
    }
}

#[async_trait]
impl ImportTarget for Import {
    async fn load(&self, items: Vec<ExportRecord>) -> Result<()> {
        let mut progress = self.progress.lock().await;
        for run in items
            .chunk_by(|one, other| std::mem::discriminant(one) == std::mem::discriminant(other))
        {
            self.import_run(run, &mut progress).await?;
        }
        Ok(())
    }
}

impl Import {
    /// Imports items of one kind.
    async fn import_run(
        &self,
        run: &[ExportRecord],
        progress: &mut Option<Chains>,
    ) -> Result<(), MongoError> {
        let mut documents = Vec::with_capacity(run.len());
        let mut collection = AUDIT_LOGS;
        for item in run {
            let chains = match (item, progress.as_mut()) {
                (ExportRecord::Export { version }, _) if *version != VERSION => {
                    return Err(MongoError::malformed(
                        "import",
                        format!("version {version} is not supported, expected {VERSION}"),
                    ));
                }
                (ExportRecord::Export { .. }, Some(_)) => return Err(not_empty()),
                (ExportRecord::Export { .. }, None) => {
                    self.begin().await?;
                    *progress = Some(Chains::default());
                    continue;
                }
                (_, None) => {
                    return Err(MongoError::malformed(
                        "import",
                        "the first record must be of type export",
                    ));
                }
                (_, Some(chains)) => chains,
            };
            match item {
                ExportRecord::Export { .. } => {}
                ExportRecord::Client(client) => {
                    collection = CLIENTS;
                    documents.push(doc! {
                        "_id": client.id.as_str(),
                        "deleted": false,
                        "tenant": client.tenant.as_str(),
                        "revision": count(client.revision),
                        "client": client::without_use_counts(client)?,
                    });
                }
                ExportRecord::SecretUse { client, secret, last_used_at, use_count } => {
                    let used = doc! { "secret": secret.as_str(), "count": count(*use_count), "last_used_at": date(*last_used_at) };
                    let once =
                        doc! { "_id": client.as_str(), "uses.secret": { "$ne": secret.as_str() } };
                    self.update(CLIENTS, once, doc! { "$push": { "uses": used } }, false).await?;
                }
                ExportRecord::DeletedClient { client, tenant } => {
                    collection = CLIENTS;
                    documents.push(
                        doc! { "_id": client.as_str(), "deleted": true, "tenant": tenant.as_str() },
                    );
                }
                ExportRecord::Audience(record) => {
                    collection = AUDIENCES;
                    let mut document = doc! { "_id": record.audience.as_str() };
                    document.extend(audience::encoded(record)?);
                    documents.push(document);
                }
                ExportRecord::Family(family) => {
                    collection = TOKENS;
                    documents.push(family::encoded(family)?);
                }
                ExportRecord::Revocation(revocation) => self.revocation(revocation).await?,
                ExportRecord::Epoch { of, value } => self.epoch(of, *value).await?,
                ExportRecord::Keyset(keyset) => {
                    collection = SIGNING_KEYS;
                    let keyset_itself = encode("keyset", keyset)?;
                    documents.push(doc! { "_id": keyset::KEYSET, "revision": count(keyset.revision), "keyset": keyset_itself });
                }
                ExportRecord::ChainStart { chain: name, sequence, hash, at, seal } => {
                    let beginning = Beginning {
                        chain: name,
                        sequence: *sequence,
                        hash,
                        at: *at,
                        seal: seal.as_deref(),
                    };
                    chains
                        .begin(&beginning, Some(&self.key))
                        .map_err(|problem| MongoError::malformed("import", problem))?;
                }
                ExportRecord::Record { chain: name, sequence, node, event, hash } => {
                    let entry = Entry::new(event.clone())?;
                    let hash = chains
                        .step(name, *sequence, node, &entry.body, hash)
                        .map_err(|problem| MongoError::malformed("import", problem))?;
                    let record = Record {
                        chain: name.clone(),
                        sequence: *sequence,
                        node: node.clone(),
                        event: event.clone(),
                        hash,
                    };
                    documents.push(records::encoded(&record, Uuid::nil(), &self.key)?);
                }
                ExportRecord::ChainEnd { chain: name, sequence, hash, open, seal } => {
                    let ending = Ending {
                        chain: name,
                        sequence: *sequence,
                        hash,
                        open: *open,
                        seal: seal.as_deref(),
                    };
                    let closed = chains.close(&ending, Some(&self.key));
                    let hash =
                        closed.map_err(|problem| MongoError::malformed("import", problem))?;
                    let claim =
                        if *open { Claim::Open { at: Timestamp::EPOCH } } else { Claim::Closed };
                    let newest = self.newest(name).await?;
                    let mut head = doc! { "_id": name.as_ref(), "newest": date(newest) };
                    head.extend(node_lease::encode_head(
                        &self.key.seal(name, *sequence, hash, claim),
                    ));
                    if let Some(place) = chains.take_cut() {
                        let mut cut = encode_cut(&self.key.mark_cut(name, place));
                        cut.extend(doc! { "recorded": true, "removed": true });
                        head.insert("cut", cut);
                    }
                    collection = NODES;
                    documents.push(head);
                }
                ExportRecord::End { chains: all } => {
                    chains
                        .finish(*all)
                        .map_err(|problem| MongoError::malformed("import", problem))?;
                    *progress = None;
                    self.clear_mark().await?;
                }
            }
        }
        self.insert(collection, documents).await
    }

    /// Marks the database as partly imported: nothing opens it until the import has finished.
    async fn begin(&self) -> Result<(), MongoError> {
        // Checked before the mark too: nodes that already serve from this database must never see
        // it.
        if !self.is_empty().await? {
            return Err(not_empty());
        }
        let meta = self.connection.collection(META);
        match self
            .connection
            .call(async move { Ok(meta.insert_one(doc! { "_id": "import" }).await?) })
            .await
        {
            Err(fault) if fault.is_duplicate() => return Err(not_empty()),
            outcome => drop(outcome?),
        }
        // Checked after the mark: a node that opens looks for the mark after its registration.
        let problem = match self.is_empty().await {
            Ok(true) => return Ok(()),
            Ok(false) => not_empty(),
            Err(fault) => fault,
        };
        // If this fails too, the first error is still the one to report.
        let _ = self.clear_mark().await;
        Err(problem)
    }

    async fn is_empty(&self) -> Result<bool, MongoError> {
        for name in WITH_OUTBOX.into_iter().chain([AUDIT_LOGS, NODES]) {
            let collection = self.connection.collection(name);
            if self
                .connection
                .call(async move { Ok(collection.find_one(doc! {}).await?) })
                .await?
                .is_some()
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn clear_mark(&self) -> Result<(), MongoError> {
        let meta = self.connection.collection(META);
        self.connection
            .call(async move { Ok(meta.delete_one(doc! { "_id": "import" }).await?) })
            .await
            .map(drop)
    }

    async fn insert(
        &self,
        collection: &'static str,
        documents: Vec<Document>,
    ) -> Result<(), MongoError> {
        if documents.is_empty() {
            return Ok(());
        }
        let into = self.connection.collection(collection);
        match self.connection.call(async move { Ok(into.insert_many(documents).await?) }).await {
            Err(fault) if fault.is_duplicate() => {
                Err(MongoError::malformed("import", "a record is repeated"))
            }
            outcome => outcome.map(drop),
        }
    }

    async fn update(
        &self,
        collection: &'static str,
        filter: Document,
        update: Document,
        upsert: bool,
    ) -> Result<bool, MongoError> {
        let into = self.connection.collection(collection);
        let update = async move { Ok(into.update_one(filter, update).upsert(upsert).await?) };
        Ok(self.connection.call(update).await?.matched_count > 0)
    }

    /// Imports a revocation: into the family's document if there is one, else as its own document.
    async fn revocation(&self, revocation: &Revocation) -> Result<(), MongoError> {
        let until = date(revocation.until);
        if let Revoked::Family(id) = revocation.revoked {
            let ended =
                doc! { "$max": { "ended_until": until.clone() }, "$set": { "ended": true } };
            if self.update(TOKENS, doc! { "_id": uuid(id.0) }, ended, false).await? {
                return Ok(());
            }
        }
        let filter = doc! { "_id": document_id(revocation.revoked) };
        self.update(REVOCATIONS, filter, doc! { "$max": { "until": until } }, true).await.map(drop)
    }

    async fn epoch(&self, of: &EpochOf, value: u64) -> Result<(), MongoError> {
        let (collection, id, field) = epoch_location(of);
        let mut update = doc! { "$max": { field: count(value) } };
        if collection == CLIENTS {
            update.insert("$setOnInsert", doc! { "deleted": true });
        }
        self.update(collection, doc! { "_id": id }, update, true).await.map(drop)
    }

    /// Newest time in a chain that was imported.
    async fn newest(&self, name: &str) -> Result<Timestamp, MongoError> {
        let (logs, filter) =
            (self.connection.collection(AUDIT_LOGS), records::records_after(name, 0));
        let newest = async move { Ok(logs.find_one(filter).sort(doc! { "event.at": -1 }).await?) };
        let found = self.connection.call(newest).await?;
        Ok(found
            .as_ref()
            .map(records::decoded)
            .transpose()?
            .map_or(Timestamp::EPOCH, |record| record.event.at))
    }
}

fn not_empty() -> MongoError {
    MongoError::malformed("import", "the store is not empty")
}
