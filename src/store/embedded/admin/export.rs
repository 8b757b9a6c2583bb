//! Export of the embedded store.

use std::{path::Path, sync::Arc, sync::Mutex, sync::PoisonError};

use async_trait::async_trait;
use rusqlite::Connection;

use crate::{
    crypto::chain::{ChainKey, Claim},
    model::{Audience, ClientId, EpochOf, FamilyId, Keyset, Record, Revoked, SecretId},
    store::{
        Result,
        embedded::{
            Embedded,
            audit::own_chain,
            engine::{
                error::{Fault, OpenError, ascending},
                schema,
            },
            integrity::check,
            tables::{audiences, clients, deleted, families, keys, revocations},
        },
        transfer::{Dump, Item, VERSION, end, hex},
    },
};

/// A data directory as it was at one moment, to be read while a server goes on writing to it, or
/// while none runs.
pub struct ReadOnly {
    connection: Arc<Mutex<Connection>>,
    key: Option<ChainKey>,
}

impl Embedded {
    /// Opens a data directory for reading; what is committed later is not seen. As long as it is
    /// open the server's WAL grows. With the key of the audit chains an export is refused where one
    /// does not end as it was sealed, and seals their ends itself.
    pub fn read_only(dir: &Path, key: Option<ChainKey>) -> Result<ReadOnly, OpenError> {
        let dir = dir.canonicalize().map_err(OpenError::io(dir))?;
        let connection = schema::reader(&dir)?;
        connection.execute_batch("BEGIN")?;
        // The view is taken with the first read.
        check::state(&connection, "")?;
        Ok(ReadOnly { connection: Arc::new(Mutex::new(connection)), key })
    }
}

impl ReadOnly {
    /// The keyset, from which a server's keys are derived.
    pub fn keyset(&self) -> Result<Option<Keyset>> {
        Ok(keys::find(&self.connection.lock().unwrap_or_else(PoisonError::into_inner))?)
    }
}

#[async_trait]
impl Dump for ReadOnly {
    async fn dump(&self, after: Option<&Item>, limit: usize) -> Result<Vec<Item>> {
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
impl Dump for Embedded {
    /// Page by page from the newest state: whole only while nothing is written.
    async fn dump(&self, after: Option<&Item>, limit: usize) -> Result<Vec<Item>> {
        let (key, after) = (self.key.clone(), after.cloned());
        self.scan(move |connection| page(connection, Some(&key), after.as_ref(), limit)).await
    }
}

/// The next page: of one type of record each time, and of the next type when there are no more.
fn page(
    connection: &Connection,
    key: Option<&ChainKey>,
    after: Option<&Item>,
    limit: usize,
) -> Result<Vec<Item>, Fault> {
    let limit = limit.max(1);
    let mut items = Vec::new();
    let mut position = Position::of(after);
    while let Some(at) = position
        && items.is_empty()
    {
        items = at.page(connection, key, limit)?;
        position = at.next_type();
    }
    Ok(items)
}

/// Where an export stands: in a type of record, behind a key of it.
enum Position {
    Export,
    Clients(Option<ClientId>),
    SecretUses(Option<(ClientId, SecretId)>),
    Deleted(Option<ClientId>),
    Audiences(Option<Audience>),
    Families(Option<FamilyId>),
    Revocations(Option<Revoked>),
    Epochs(Option<EpochOf>),
    Keyset,
    /// Behind a chain: in the next one.
    Chain(Option<Arc<str>>),
    Records(Arc<str>, u64),
    End,
}

impl Position {
    /// Behind an item; `None` behind the last.
    fn of(after: Option<&Item>) -> Option<Self> {
        Some(match after {
            None => Self::Export,
            Some(Item::Export { .. }) => Self::Clients(None),
            Some(Item::Client(client)) => Self::Clients(Some(client.id.clone())),
            Some(Item::SecretUse { client, secret, .. }) => {
                Self::SecretUses(Some((client.clone(), secret.clone())))
            }
            Some(Item::DeletedClient { client, .. }) => Self::Deleted(Some(client.clone())),
            Some(Item::Audience(record)) => Self::Audiences(Some(record.audience.clone())),
            Some(Item::Family(family)) => Self::Families(Some(family.id)),
            Some(Item::Revocation(revocation)) => Self::Revocations(Some(revocation.revoked)),
            Some(Item::Epoch { of, .. }) => Self::Epochs(Some(of.clone())),
            Some(Item::Keyset(_)) => Self::Chain(None),
            Some(Item::Record { chain, sequence, .. }) => Self::Records(chain.clone(), *sequence),
            Some(Item::ChainEnd { chain, .. }) => Self::Chain(Some(chain.clone())),
            Some(Item::End { .. }) => return None,
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
    ) -> Result<Vec<Item>, Fault> {
        let rows = i64::try_from(limit).unwrap_or(i64::MAX);
        Ok(match self {
            Self::Export => vec![Item::Export { version: VERSION }],
            Self::Clients(after) => {
                let clients = clients::bare(connection, after.as_ref(), limit)?;
                clients.into_iter().map(Item::Client).collect()
            }
            Self::SecretUses(after) => secret_uses(connection, after.as_ref(), rows)?,
            Self::Deleted(after) => deleted::page(connection, after.as_ref(), rows)?,
            Self::Audiences(after) => {
                let records = audiences::page(connection, after.as_ref(), limit)?;
                records.into_iter().map(Item::Audience).collect()
            }
            Self::Families(after) => {
                families::page(connection, *after, rows)?.into_iter().map(Item::Family).collect()
            }
            Self::Revocations(after) => {
                let revocations = revocations::page(connection, *after, rows)?;
                revocations.into_iter().map(Item::Revocation).collect()
            }
            Self::Epochs(after) => {
                let all = revocations::read_epochs(connection)?.into_iter();
                // Kinds are kept in the order in which `EpochOf` declares them.
                let later = all.filter(|(of, _)| after.as_ref().is_none_or(|after| of > after));
                later.take(limit).map(|(of, value)| Item::Epoch { of, value }).collect()
            }
            Self::Keyset => keys::find(connection)?.into_iter().map(Item::Keyset).collect(),
            Self::Chain(after) => {
                let next = own_chain::names(connection)?
                    .into_iter()
                    .find(|name| after.as_ref().is_none_or(|after| name > after));
                next.map_or_else(
                    || Ok(Vec::new()),
                    |chain| records(connection, key, &chain, 0, limit),
                )?
            }
            Self::Records(chain, after) => records(connection, key, chain, *after, limit)?,
            Self::End => {
                let chains = u64::try_from(own_chain::names(connection)?.len()).unwrap_or(u64::MAX);
                vec![Item::End { chains }]
            }
        })
    }
}

fn secret_uses(
    connection: &Connection,
    after: Option<&(ClientId, SecretId)>,
    limit: i64,
) -> Result<Vec<Item>, Fault> {
    let (client, secret) =
        after.map_or(("", ""), |(client, secret)| (client.as_str(), secret.as_str()));
    let mut last = after.cloned();
    let mut statement = connection.prepare_cached(
        "SELECT client, secret, last_used_at, uses, sum FROM secret_uses WHERE (client, secret) > (?1, ?2)
         ORDER BY client, secret LIMIT ?3",
    )?;
    let rows = statement.query_map((client, secret, limit), |row| {
        Ok((
            row.get::<_, String>(0)?,
            row.get::<_, String>(1)?,
            (row.get(2)?, row.get(3)?, row.get(4)?),
        ))
    })?;
    let invalid = |invalid| Fault::Row(format!("secret use: {invalid}"));
    rows.map(|row| {
        let (client, secret, uses) = row?;
        let (last_used_at, use_count) = clients::decode_use(&client, &secret, uses)?;
        let (client, secret): (ClientId, SecretId) =
            (client.parse().map_err(invalid)?, secret.parse().map_err(invalid)?);
        let key = (client.clone(), secret.clone());
        ascending(last.replace(key.clone()), [key])?;
        Ok(Item::SecretUse { client, secret, last_used_at, use_count })
    })
    .collect()
}

/// The next records of a chain; its end, where there are no more.
fn records(
    connection: &Connection,
    key: Option<&ChainKey>,
    chain: &Arc<str>,
    after: u64,
    limit: usize,
) -> Result<Vec<Item>, Fault> {
    let records = own_chain::page(connection, chain, after, limit)?;
    if records.is_empty() {
        let head = own_chain::head_of(connection, chain)?;
        let head = head
            .ok_or_else(|| Fault::Row(format!("audit chain {chain}: the sealed end is missing")))?;
        // The own chain's end is the store's.
        let open =
            head.claim != Claim::Closed && own_chain::name(connection)?.as_deref() != Some(chain);
        return Ok(vec![end(chain, &head, open, key).map_err(Fault::Row)?]);
    }
    let item = |record: Record| {
        let Record { chain, sequence, node, event, hash } = record;
        Item::Record { chain, sequence, node, event, hash: hex(&hash) }
    };
    Ok(records.into_iter().map(item).collect())
}
