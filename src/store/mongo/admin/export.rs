//! Export from a MongoDB database. Reads one snapshot where the server supports it, while nodes
//! continue to write.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use mongodb::{
    ClientSession,
    bson::{Bson, Document, doc},
    options::FindOptions,
};
use tokio::sync::Mutex;

use super::topology;
use crate::{
    crypto::chain::{ChainKey, Head},
    model::{
        Audience, ClientId, EpochOf, FamilyId, Record, Revoked, SecretId, Timestamp,
        revocation::Revocation,
    },
    store::{
        Result,
        mongo::{
            Mongo,
            audit::{is_sure, node_lease::decode_head, records, retention::decode_cut},
            documents::{
                audience, client,
                family::{self, revocation_of_family},
                keyset,
                revocation::{document_id, epoch_location, epoch_of, revocation_of},
            },
            driver::{
                codec::{Fields, uuid},
                connection::{BACKGROUND_TIMEOUT, Connection},
                error::{MongoError, OpenError},
                handshake::{ServerInfo, handshake},
                schema::{
                    self, AUDIENCES, AUDIT_LOGS, CLIENTS, EPOCHS, NODES, REVOCATIONS, SIGNING_KEYS,
                    TOKENS,
                },
            },
        },
        transfer::{ExportRecord, ExportSource, VERSION, end, hex, start},
    },
};

/// Source of an export: a database that is read as a whole.
pub struct Export {
    connection: Arc<Connection>,
    key: Option<ChainKey>,
    /// Time of the open, by MongoDB's clock.
    time: Timestamp,
    /// Snapshot session that all pages share; `None` if the server supports no snapshots.
    view: Arc<Mutex<Option<ClientSession>>>,
}

impl Mongo {
    /// Opens a database for an export, with or without running nodes. Writes nothing to it. With
    /// the key of the audit chains, the export fails for a chain that does not end as it was
    /// sealed, and seals the ends of chains itself.
    ///
    /// # Errors
    ///
    /// Those of [`Mongo::open`].
    pub async fn export(
        uri: &str,
        key: Option<ChainKey>,
        deadline: Duration,
    ) -> Result<Export, OpenError> {
        match Self::open_export(uri, key, deadline).await {
            Err(error) => Err(topology::diagnose_connect_error(uri, error).await),
            opened => opened,
        }
    }

    async fn open_export(
        uri: &str,
        key: Option<ChainKey>,
        deadline: Duration,
    ) -> Result<Export, OpenError> {
        // A page takes longer than a call that a caller waits for.
        let connection = Arc::new(Connection::new(uri, deadline.max(BACKGROUND_TIMEOUT)).await?);
        let ServerInfo { shows_snapshots, time, .. } = handshake(&connection).await?;
        schema::check_version(&connection).await?;
        if schema::is_importing(&connection).await? {
            return Err(OpenError::unfinished_import());
        }
        let client = connection.client().clone();
        let session = async move { Ok(client.start_session().snapshot(true).await?) };
        let view = if shows_snapshots { Some(connection.call(session).await?) } else { None };
        if view.is_none() {
            tracing::warn!(
                "MongoDB has no snapshot reads: the export is not consistent if other processes \
                 write meanwhile"
            );
        }
        Ok(Export { connection, key, time, view: Arc::new(Mutex::new(view)) })
    }
}

#[async_trait]
impl ExportSource for Export {
    async fn export_page(
        &self,
        after: Option<&ExportRecord>,
        limit: usize,
    ) -> Result<Vec<ExportRecord>> {
        let mut position = Position::of(after);
        let mut items = Vec::new();
        while let Some(at) = position
            && items.is_empty()
        {
            items = self.page(&at, limit.max(1)).await?;
            position = at.next_type();
        }
        Ok(items)
    }
}

/// Position of an export: a type of record and the last key that was read.
enum Position {
    Export,
    Clients(Option<ClientId>),
    SecretUses(Option<(ClientId, SecretId)>),
    Deleted(Option<ClientId>),
    Audiences(Option<Audience>),
    Families(Option<FamilyId>),
    Revocations(Option<Revoked>),
    Tenants(Option<EpochOf>),
    OfClients(Option<EpochOf>),
    Subjects(Option<EpochOf>),
    Keyset,
    /// After a chain: the next one follows.
    Chain(Option<Arc<str>>),
    Records(Arc<str>, u64),
    End,
}

impl Position {
    /// Returns the position after an item; `None` after the last one.
    fn of(after: Option<&ExportRecord>) -> Option<Self> {
        Some(match after {
            None => Self::Export,
            Some(ExportRecord::Export { .. }) => Self::Clients(None),
            Some(ExportRecord::Client(client)) => Self::Clients(Some(client.id.clone())),
            Some(ExportRecord::SecretUse { client, secret, .. }) => {
                Self::SecretUses(Some((client.clone(), secret.clone())))
            }
            Some(ExportRecord::DeletedClient { client, .. }) => Self::Deleted(Some(client.clone())),
            Some(ExportRecord::Audience(record)) => Self::Audiences(Some(record.audience.clone())),
            Some(ExportRecord::Family(family)) => Self::Families(Some(family.id)),
            Some(ExportRecord::Revocation(revocation)) => {
                Self::Revocations(Some(revocation.revoked))
            }
            Some(ExportRecord::Epoch { of: of @ EpochOf::Tenant(_), .. }) => {
                Self::Tenants(Some(of.clone()))
            }
            Some(ExportRecord::Epoch { of: of @ EpochOf::Client(_), .. }) => {
                Self::OfClients(Some(of.clone()))
            }
            Some(ExportRecord::Epoch { of: of @ EpochOf::Subject(_), .. }) => {
                Self::Subjects(Some(of.clone()))
            }
            Some(ExportRecord::Keyset(_)) => Self::Chain(None),
            Some(
                ExportRecord::Record { chain, sequence, .. }
                | ExportRecord::ChainStart { chain, sequence, .. },
            ) => Self::Records(chain.clone(), *sequence),
            Some(ExportRecord::ChainEnd { chain, .. }) => Self::Chain(Some(chain.clone())),
            Some(ExportRecord::End { .. }) => return None,
        })
    }

    const fn next_type(&self) -> Option<Self> {
        Some(match self {
            Self::Export => Self::Clients(None),
            Self::Clients(_) => Self::SecretUses(None),
            Self::SecretUses(_) => Self::Deleted(None),
            Self::Deleted(_) => Self::Audiences(None),
            Self::Audiences(_) => Self::Families(None),
            Self::Families(_) => Self::Revocations(None),
            Self::Revocations(_) => Self::Tenants(None),
            Self::Tenants(_) => Self::OfClients(None),
            Self::OfClients(_) => Self::Subjects(None),
            Self::Subjects(_) => Self::Keyset,
            Self::Keyset => Self::Chain(None),
            Self::Chain(_) | Self::Records(..) => Self::End,
            Self::End => return None,
        })
    }
}

/// Error about a document, with its `_id`.
fn describe_document_error(found: &Document, problem: &dyn std::fmt::Display) -> MongoError {
    let id = found.get("_id").map_or_else(String::new, ToString::to_string);
    MongoError::malformed("export", format!("{id}: {problem}"))
}

impl Export {
    async fn page(&self, at: &Position, limit: usize) -> Result<Vec<ExportRecord>, MongoError> {
        Ok(match at {
            Position::Export => vec![ExportRecord::Export { version: VERSION }],
            Position::Clients(after) => {
                let after = after.as_ref().map_or("", ClientId::as_str);
                let found = self
                    .find(CLIENTS, doc! { "deleted": false, "_id": { "$gt": after } }, limit)
                    .await?;
                // A copy under another `_id` would make the export resume from its id, without end.
                let read = |found: &Document| match client::decode_without_use_counts(found)? {
                    client if found.get_str("_id").is_ok_and(|id| id == client.id.as_str()) => {
                        Ok(ExportRecord::Client(client))
                    }
                    client => Err(describe_document_error(
                        found,
                        &format!("the record belongs to the client {}", client.id),
                    )),
                };
                found.iter().map(read).collect::<Result<_, MongoError>>()?
            }
            Position::SecretUses(after) => self.secret_uses(after.as_ref(), limit).await?,
            Position::Deleted(after) => {
                let after = after.as_ref().map_or("", ClientId::as_str);
                let filter = doc! { "deleted": true, "tenant": { "$exists": true }, "_id": { "$gt": after } };
                let read = |found: &Document| {
                    let fields = Fields::of("client", found);
                    Ok(ExportRecord::DeletedClient {
                        client: fields.parse("_id")?,
                        tenant: fields.parse("tenant")?,
                    })
                };
                self.find(CLIENTS, filter, limit)
                    .await?
                    .iter()
                    .map(read)
                    .collect::<Result<_, MongoError>>()?
            }
            Position::Audiences(after) => {
                let after = after.as_ref().map_or("", Audience::as_str);
                let found = self
                    .find(
                        AUDIENCES,
                        doc! { "released": { "$ne": true }, "_id": { "$gt": after } },
                        limit,
                    )
                    .await?;
                let read = |found: &Document| {
                    audience::decoded(found)
                        .map(ExportRecord::Audience)
                        .map_err(|why| describe_document_error(found, &why))
                };
                found.iter().map(read).collect::<Result<_, _>>()?
            }
            Position::Families(after) => {
                let filter = after
                    .map_or_else(Document::new, |after| doc! { "_id": { "$gt": uuid(after.0) } });
                let found = self.find(TOKENS, filter, limit).await?;
                found
                    .iter()
                    .map(|found| family::decoded(found).map(ExportRecord::Family))
                    .collect::<Result<_, _>>()?
            }
            Position::Revocations(after) => self.revocations(*after, limit).await?,
            Position::Tenants(after) => self.epochs("tenant", after.as_ref(), limit).await?,
            Position::OfClients(after) => {
                let after = if let Some(EpochOf::Client(id)) = after { id.as_str() } else { "" };
                let filter = doc! { client::EPOCH: { "$gt": 0 }, "_id": { "$gt": after } };
                let read = |found: &Document| {
                    let fields = Fields::of("client", found);
                    Ok(ExportRecord::Epoch {
                        of: EpochOf::Client(fields.parse("_id")?),
                        value: fields.count(client::EPOCH)?,
                    })
                };
                self.find(CLIENTS, filter, limit)
                    .await?
                    .iter()
                    .map(read)
                    .collect::<Result<_, MongoError>>()?
            }
            Position::Subjects(after) => self.epochs("subject", after.as_ref(), limit).await?,
            Position::Keyset => {
                let found = self.find(SIGNING_KEYS, doc! { "_id": keyset::KEYSET }, 1).await?;
                found
                    .iter()
                    .map(|found| keyset::decoded(found).map(ExportRecord::Keyset))
                    .collect::<Result<_, _>>()?
            }
            Position::Chain(after) => {
                let next = self
                    .names()
                    .await?
                    .into_iter()
                    .find(|name| after.as_ref().is_none_or(|after| name > after));
                match next {
                    Some(next) => self.first_records(&next, limit).await?,
                    None => Vec::new(),
                }
            }
            Position::Records(chain, after) => self.records(chain, *after, limit).await?,
            Position::End => {
                let chains = self.names().await?.len();
                vec![ExportRecord::End { chains: u64::try_from(chains).unwrap_or(u64::MAX) }]
            }
        })
    }

    /// Reads up to `limit` documents in the order of their ids.
    async fn find(
        &self,
        collection: &'static str,
        filter: Document,
        limit: usize,
    ) -> Result<Vec<Document>, MongoError> {
        // A snapshot session sets the read concern itself.
        let documents = self
            .connection
            .client()
            .database(self.connection.database().name())
            .collection::<Document>(collection);
        let (view, plain) = (self.view.clone(), self.connection.collection(collection));
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let options = FindOptions::builder()
            .sort(doc! { "_id": 1 })
            .limit(limit)
            .projection(doc! { "outbox": 0 })
            .build();
        let read = async move {
            let (mut found, mut view) = (Vec::new(), view.lock().await);
            if let Some(session) = view.as_mut() {
                let mut cursor =
                    documents.find(filter).with_options(options).session(&mut *session).await?;
                while let Some(document) = cursor.next(session).await {
                    found.push(document?);
                }
                return Ok(found);
            }
            let mut cursor = plain.find(filter).with_options(options).await?;
            while cursor.advance().await? {
                found.push(cursor.deserialize_current()?);
            }
            Ok(found)
        };
        self.connection.call(read).await
    }

    async fn secret_uses(
        &self,
        after: Option<&(ClientId, SecretId)>,
        limit: usize,
    ) -> Result<Vec<ExportRecord>, MongoError> {
        let from = after.map_or("", |(client, _)| client.as_str());
        let used =
            doc! { "deleted": false, "uses.0": { "$exists": true }, "_id": { "$gte": from } };
        let mut items = Vec::new();
        // One more than `limit`, since the first document may have no uses left after this key.
        for found in self.find(CLIENTS, used, limit.saturating_add(1)).await? {
            let mut uses = client::uses(&found)?;
            uses.sort_unstable_by(|one, other| one.secret.as_str().cmp(other.secret.as_str()));
            uses.retain(|used| {
                after.is_none_or(|(client, secret)| {
                    (used.client.as_str(), used.secret.as_str())
                        > (client.as_str(), secret.as_str())
                })
            });
            items.extend(uses.into_iter().map(|used| ExportRecord::SecretUse {
                client: used.client,
                secret: used.secret,
                last_used_at: used.at,
                use_count: used.count,
            }));
        }
        items.truncate(limit);
        Ok(items)
    }

    /// Reads revocations: single tokens first, then families, stored and deleted ones in one order.
    async fn revocations(
        &self,
        after: Option<Revoked>,
        limit: usize,
    ) -> Result<Vec<ExportRecord>, MongoError> {
        if !matches!(after, Some(Revoked::Family(_))) {
            let from = after.map_or_else(|| "token:".to_owned(), document_id);
            let found = self
                .find(REVOCATIONS, doc! { "_id": { "$gt": from, "$lt": "token;" } }, limit)
                .await?;
            if !found.is_empty() {
                return found
                    .iter()
                    .map(|found| revocation_of(found).map(ExportRecord::Revocation))
                    .collect();
            }
        }
        let after = if let Some(Revoked::Family(id)) = after { Some(id) } else { None };
        let from =
            after.map_or_else(|| "family:".to_owned(), |id| document_id(Revoked::Family(id)));
        let mut there = doc! { "ended_until": { "$exists": true } };
        there.extend(
            after.map(|after| ("_id".to_owned(), Bson::Document(doc! { "$gt": uuid(after.0) }))),
        );
        // Stored families first: the sweep moves revocations from `tokens` to `revocations`, never
        // back.
        let there = self.find(TOKENS, there, limit).await?;
        let gone = self
            .find(REVOCATIONS, doc! { "_id": { "$gt": from, "$lt": "family;" } }, limit)
            .await?;
        let gone = gone.iter().map(revocation_of);
        let mut all = gone
            .chain(there.iter().map(revocation_of_family))
            .collect::<Result<Vec<Revocation>, _>>()?;
        // Of two revocations of one family the one with the later time sorts first and is kept.
        all.sort_unstable_by(|one, other| {
            one.revoked.cmp(&other.revoked).then(other.until.cmp(&one.until))
        });
        all.dedup_by_key(|revocation| revocation.revoked);
        all.truncate(limit);
        Ok(all.into_iter().map(ExportRecord::Revocation).collect())
    }

    async fn epochs(
        &self,
        kind: &str,
        after: Option<&EpochOf>,
        limit: usize,
    ) -> Result<Vec<ExportRecord>, MongoError> {
        let from = after.map_or_else(|| format!("{kind}:"), |of| epoch_location(of).1);
        let filter = doc! { "_id": { "$gt": from, "$lt": format!("{kind};") } };
        let read = |found: &Document| {
            let fields = Fields::of("epoch", found);
            Ok(ExportRecord::Epoch {
                of: epoch_of(fields.text("_id")?)?,
                value: fields.count("value")?,
            })
        };
        self.find(EPOCHS, filter, limit).await?.iter().map(read).collect()
    }

    /// Names of all chains, sorted; also of those whose node's document is gone.
    async fn names(&self) -> Result<Vec<Arc<str>>, MongoError> {
        let mut names = BTreeSet::new();
        for node in self.find(NODES, doc! {}, usize::MAX).await? {
            if let (Ok(name), Ok(Some(_))) =
                (Fields::of("node", &node).text("_id"), decode_head(&node))
            {
                names.insert(Arc::from(name));
            }
        }
        let mut after = doc! { "chain": "" };
        loop {
            let mut filter = doc! { "_id": { "$gt": after, "$lt": { "chain": {} } } };
            filter.extend(records::has_position());
            let found = self.find(AUDIT_LOGS, filter, 1).await?;
            let Some(id) = found.first().and_then(|record| record.get_document("_id").ok()) else {
                break;
            };
            let Ok(name) = id.get_str("chain") else { break };
            after = records::chain_end_id(name);
            names.insert(Arc::from(name));
        }
        Ok(names.into_iter().collect())
    }

    /// Reads the beginning of a chain that was cut, or the first records of a whole one.
    async fn first_records(
        &self,
        chain: &Arc<str>,
        limit: usize,
    ) -> Result<Vec<ExportRecord>, MongoError> {
        let node = self.find(NODES, doc! { "_id": chain.as_ref() }, 1).await?;
        let mark = node.first().and_then(decode_cut);
        let Some(mark) = mark else { return self.records(chain, 0, limit).await };
        let start = start(chain, &mark, self.key.as_ref());
        Ok(vec![start.map_err(|problem| MongoError::malformed("export", problem))?])
    }

    /// Reads the next records of a chain, or its end if there are no more.
    async fn records(
        &self,
        chain: &Arc<str>,
        after: u64,
        limit: usize,
    ) -> Result<Vec<ExportRecord>, MongoError> {
        let mut found = self.find(AUDIT_LOGS, records::records_after(chain, after), limit).await?;
        if found.is_empty() {
            let stored = self.find(NODES, doc! { "_id": chain.as_ref() }, 1).await?;
            let stored = stored.first().map(decode_head).transpose()?.flatten();
            if stored.as_ref().is_some_and(|head| head.sequence > after) {
                // Without a snapshot the chain's node may have appended since.
                found = self.find(AUDIT_LOGS, records::records_after(chain, after), limit).await?;
            }
            if found.is_empty() {
                return Ok(vec![self.end(chain, after, stored).await?]);
            }
        }
        let item = |found: &Document| {
            let Record { chain, sequence, node, event, hash } = records::decoded(found)?;
            Ok(ExportRecord::Record { chain, sequence, node, event, hash: hex(&hash) })
        };
        found.iter().map(item).collect()
    }

    /// End of a chain at its last record. The head that its node stored must lie on the way to it,
    /// and a last record after that head must have its own seal.
    async fn end(
        &self,
        chain: &Arc<str>,
        last: u64,
        stored: Option<Head>,
    ) -> Result<ExportRecord, MongoError> {
        let wrong = |problem: String| {
            MongoError::malformed("export", format!("audit chain {chain}: {problem}"))
        };
        let read =
            self.find(AUDIT_LOGS, doc! { "_id": records::record_id(chain, last) }, 1).await?;
        let read = read.first().ok_or_else(|| wrong("its records are missing".to_owned()))?;
        let sealed = records::sealed(read)?;
        let key = self.key.as_ref();
        let forged = |head: &Head| key.is_some_and(|key| !key.check(head));
        match stored {
            Some(head) if head.sequence > last => {
                Err(wrong(format!("it ends at record {last}, expected {} or later", head.sequence)))
            }
            Some(head) if forged(&head) => Err(wrong("the seal of its head is invalid".to_owned())),
            stored => {
                let open = !stored.is_some_and(|head| is_sure(&head, self.time));
                end(chain, &sealed, open, key)
                    .map_err(|problem| MongoError::malformed("export", problem))
            }
        }
    }
}
