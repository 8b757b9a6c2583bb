//! Export of the embedded store.

use std::{path::Path, sync::Arc, sync::Mutex, sync::PoisonError};

use async_trait::async_trait;
use rusqlite::Connection;

use crate::{
    crypto::chain::{ChainKey, Claim},
    model::{Audience, ClientId, EpochOf, FamilyId, Keyset, Record, Revoked, SecretId, Timestamp},
    store::{
        Result, TrailSize,
        embedded::{
            Embedded,
            audit::{chains, cuts, size},
            engine::{
                error::{OpenError, SqliteError, check_ascending},
                schema,
            },
            integrity::check,
            tables::{audiences, clients, deleted, families, keys, revocations},
        },
        transfer::{ExportRecord, ExportSource, VERSION, end, hex, start},
    },
};

/// Consistent view of a data directory, whether or not a server writes to it meanwhile.
pub struct ReadOnly {
    connection: Arc<Mutex<Connection>>,
    key: Option<ChainKey>,
    newest: Timestamp,
}

impl Embedded {
    /// Opens a data directory for reading; later commits are not seen. As long as it is open the
    /// server's WAL grows. With the key of the audit chains an export fails if a chain does not end
    /// as it was sealed, and seals the ends itself.
    pub fn read_only(dir: &Path, key: Option<ChainKey>) -> Result<ReadOnly, OpenError> {
        let dir = dir.canonicalize().map_err(OpenError::io(dir))?;
        let connection = schema::reader(&dir)?;
        connection.execute_batch("BEGIN")?;
        // The view is taken with the first read.
        let newest = check::state(&connection, "")?.newest_time;
        Ok(ReadOnly { connection: Arc::new(Mutex::new(connection)), key, newest })
    }
}

impl ReadOnly {
    /// Returns the latest time that is durable.
    pub const fn newest_time(&self) -> Timestamp {
        self.newest
    }

    /// Returns the keyset, from which a server's keys are derived.
    pub fn keyset(&self) -> Result<Option<Keyset>> {
        Ok(keys::find(&self.connection.lock().unwrap_or_else(PoisonError::into_inner))?)
    }

    /// Returns the size of the audit trail and its growth until `now`.
    pub fn trail_size(&self, now: Timestamp) -> Result<TrailSize> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(size::of_trail(&connection, now)?)
    }
}

#[async_trait]
impl ExportSource for ReadOnly {
    async fn export_page(
        &self,
        after: Option<&ExportRecord>,
        limit: usize,
    ) -> Result<Vec<ExportRecord>> {
        let (connection, key, after) = (self.connection.clone(), self.key.clone(), after.cloned());
        let read = move || {
            page(
                &connection.lock().unwrap_or_else(PoisonError::into_inner),
                key.as_ref(),
                after.as_ref(),
                limit,
            )
        };
        let items = tokio::task::spawn_blocking(read).await;
        Ok(items.map_err(|_| crate::store::embedded::closed())??)
    }
}

#[async_trait]
impl ExportSource for Embedded {
    /// Reads each page from the current state: consistent only while nothing is written.
    async fn export_page(
        &self,
        after: Option<&ExportRecord>,
        limit: usize,
    ) -> Result<Vec<ExportRecord>> {
        let (key, after) = (self.key.clone(), after.cloned());
        self.scan(move |connection| page(connection, Some(&key), after.as_ref(), limit)).await
    }
}

/// Returns the next page: records of one type each time, and of the next type when there are no
/// more.
fn page(
    connection: &Connection,
    key: Option<&ChainKey>,
    after: Option<&ExportRecord>,
    limit: usize,
) -> Result<Vec<ExportRecord>, SqliteError> {
    let limit = limit.max(1);
    let mut items = Vec::new();
    let mut position = ExportPosition::of(after);
    while let Some(at) = position
        && items.is_empty()
    {
        items = at.page(connection, key, limit)?;
        position = at.next_type();
    }
    Ok(items)
}

/// Position in an export: a type of record, and the key of the last one returned.
enum ExportPosition {
    Export,
    Clients(Option<ClientId>),
    SecretUses(Option<(ClientId, SecretId)>),
    Deleted(Option<ClientId>),
    Audiences(Option<Audience>),
    Families(Option<FamilyId>),
    Revocations(Option<Revoked>),
    Epochs(Option<EpochOf>),
    Keyset,
    /// After a chain: the next one follows.
    Chain(Option<Arc<str>>),
    Records(Arc<str>, u64),
    End,
}

impl ExportPosition {
    /// Returns the position after a record; `None` after the last.
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
            Some(ExportRecord::Epoch { of, .. }) => Self::Epochs(Some(of.clone())),
            Some(ExportRecord::Keyset(_)) => Self::Chain(None),
            Some(
                ExportRecord::Record { chain, sequence, .. }
                | ExportRecord::ChainStart { chain, sequence, .. },
            ) => Self::Records(chain.clone(), *sequence),
            Some(ExportRecord::ChainEnd { chain, .. }) => Self::Chain(Some(chain.clone())),
            Some(ExportRecord::End { .. }) => return None,
        })
    }

    fn next_type(&self) -> Option<Self> {
        Some(match self {
            Self::Export => Self::Clients(None),
            Self::Clients(_) => Self::SecretUses(None),
            Self::SecretUses(_) => Self::Deleted(None),
            Self::Deleted(_) => Self::Audiences(None),
            Self::Audiences(_) => Self::Families(None),
            Self::Families(_) => Self::Revocations(None),
            Self::Revocations(_) => Self::Epochs(None),
            Self::Epochs(_) => Self::Keyset,
            Self::Keyset => Self::Chain(None),
            Self::Chain(_) | Self::Records(..) => Self::End,
            Self::End => return None,
        })
    }

    fn page(
        &self,
        connection: &Connection,
        key: Option<&ChainKey>,
        limit: usize,
    ) -> Result<Vec<ExportRecord>, SqliteError> {
        let rows = i64::try_from(limit).unwrap_or(i64::MAX);
        Ok(match self {
            Self::Export => vec![ExportRecord::Export { version: VERSION }],
            Self::Clients(after) => {
                let clients = clients::without_use_counts(connection, after.as_ref(), limit)?;
                clients.into_iter().map(ExportRecord::Client).collect()
            }
            Self::SecretUses(after) => secret_uses(connection, after.as_ref(), rows)?,
            Self::Deleted(after) => deleted::page(connection, after.as_ref(), rows)?,
            Self::Audiences(after) => {
                let records = audiences::page(connection, after.as_ref(), limit)?;
                records.into_iter().map(ExportRecord::Audience).collect()
            }
            Self::Families(after) => families::page(connection, *after, rows)?
                .into_iter()
                .map(ExportRecord::Family)
                .collect(),
            Self::Revocations(after) => {
                let revocations = revocations::page(connection, *after, rows)?;
                revocations.into_iter().map(ExportRecord::Revocation).collect()
            }
            Self::Epochs(after) => {
                let all = revocations::read_epochs(connection)?.into_iter();
                // Kinds are stored in the order in which `EpochOf` declares them.
                let later = all.filter(|(of, _)| after.as_ref().is_none_or(|after| of > after));
                later.take(limit).map(|(of, value)| ExportRecord::Epoch { of, value }).collect()
            }
            Self::Keyset => keys::find(connection)?.into_iter().map(ExportRecord::Keyset).collect(),
            Self::Chain(after) => {
                let next = chains::names(connection)?
                    .into_iter()
                    .find(|name| after.as_ref().is_none_or(|after| name > after));
                next.map_or_else(
                    || Ok(Vec::new()),
                    |chain| match cuts::mark(connection, &chain)? {
                        Some(mark) => {
                            Ok(vec![start(&chain, &mark, key).map_err(SqliteError::Malformed)?])
                        }
                        None => records(connection, key, &chain, 0, limit),
                    },
                )?
            }
            Self::Records(chain, after) => records(connection, key, chain, *after, limit)?,
            Self::End => {
                let chains = u64::try_from(chains::names(connection)?.len()).unwrap_or(u64::MAX);
                vec![ExportRecord::End { chains }]
            }
        })
    }
}

fn secret_uses(
    connection: &Connection,
    after: Option<&(ClientId, SecretId)>,
    limit: i64,
) -> Result<Vec<ExportRecord>, SqliteError> {
    let (client, secret) =
        after.map_or(("", ""), |(client, secret)| (client.as_str(), secret.as_str()));
    let mut last = after.cloned();
    let mut statement = connection.prepare_cached(
        "SELECT client, secret, last_used_at, uses, sum FROM secret_uses
         WHERE (client, secret) > (?1, ?2)
         ORDER BY client, secret LIMIT ?3",
    )?;
    let rows = statement.query_map((client, secret, limit), |row| {
        Ok((
            row.get::<_, String>(0)?,
            row.get::<_, String>(1)?,
            (row.get(2)?, row.get(3)?, row.get(4)?),
        ))
    })?;
    let invalid = |invalid| SqliteError::Malformed(format!("secret use: {invalid}"));
    rows.map(|row| {
        let (client, secret, uses) = row?;
        let (last_used_at, use_count) = clients::decode_use(&client, &secret, uses)?;
        let (client, secret): (ClientId, SecretId) =
            (client.parse().map_err(invalid)?, secret.parse().map_err(invalid)?);
        let key = (client.clone(), secret.clone());
        check_ascending(last.replace(key.clone()), [key])?;
        Ok(ExportRecord::SecretUse { client, secret, last_used_at, use_count })
    })
    .collect()
}

/// Returns the next records of a chain; its end, if there are no more.
fn records(
    connection: &Connection,
    key: Option<&ChainKey>,
    chain: &Arc<str>,
    after: u64,
    limit: usize,
) -> Result<Vec<ExportRecord>, SqliteError> {
    let records = chains::page(connection, chain, after, limit)?;
    if records.is_empty() {
        let head = chains::head(connection, chain)?;
        let head = head.ok_or_else(|| {
            SqliteError::Malformed(format!("audit chain {chain}: the sealed end is missing"))
        })?;
        // The own chain ends with the store.
        let open = head.claim != Claim::Closed && chains::own(connection)?.as_ref() != Some(chain);
        return Ok(vec![end(chain, &head, open, key).map_err(SqliteError::Malformed)?]);
    }
    let item = |record: Record| {
        let Record { chain, sequence, node, event, hash } = record;
        ExportRecord::Record { chain, sequence, node, event, hash: hex(&hash) }
    };
    Ok(records.into_iter().map(item).collect())
}
