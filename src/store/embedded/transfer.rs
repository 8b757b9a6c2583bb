//! Export and import of the embedded store.

use std::{path::Path, sync::Arc, sync::Mutex, sync::PoisonError};

use async_trait::async_trait;
use rusqlite::Connection;

use super::{
    Embedded,
    anchor::{hex, unhex},
    audit,
    batch::{Batch, Entry, Urgency},
    check, clients, families,
    fault::{Fault, OpenError, ascending},
    keys, revocations, schema,
};
use crate::{
    crypto::chain::{START, Walk},
    model::{ClientId, EpochOf, FamilyId, Keyset, Revoked, SecretId, revocation::Revocation},
    store::{
        Result, SecretUse,
        transfer::{Dump, Item, Load, VERSION},
    },
};

/// A data directory as it was at one moment, to be read while a server goes on writing to it, or while none runs.
pub struct ReadOnly(Arc<Mutex<Connection>>);

impl Embedded {
    /// Opens a data directory for reading; what is committed later is not seen. As long as it is open the server's WAL grows.
    pub fn read_only(dir: &Path) -> Result<ReadOnly, OpenError> {
        let connection = schema::reader(dir)?;
        connection.execute_batch("BEGIN")?;
        // The view is taken with the first read.
        check::state(&connection, "")?;
        Ok(ReadOnly(Arc::new(Mutex::new(connection))))
    }
}

impl ReadOnly {
    /// The keyset, from which a server's keys are derived.
    pub fn keyset(&self) -> Result<Option<Keyset>> {
        Ok(keys::find(&self.0.lock().unwrap_or_else(PoisonError::into_inner))?)
    }
}

#[async_trait]
impl Dump for ReadOnly {
    async fn dump(&self, after: Option<&Item>, limit: usize) -> Result<Vec<Item>> {
        let (connection, after) = (self.0.clone(), after.cloned());
        let read = move || page(&connection.lock().unwrap_or_else(PoisonError::into_inner), after.as_ref(), limit);
        let items = tokio::task::spawn_blocking(read).await;
        Ok(items.map_err(|_| super::closed())??)
    }
}

#[async_trait]
impl Dump for Embedded {
    /// Page by page from the newest state: whole only while nothing is written.
    async fn dump(&self, after: Option<&Item>, limit: usize) -> Result<Vec<Item>> {
        let after = after.cloned();
        self.scan(move |connection| page(connection, after.as_ref(), limit)).await
    }
}

#[async_trait]
impl Load for Embedded {
    async fn load(&self, items: Vec<Item>) -> Result<()> {
        self.write(Urgency::Normal, move |batch| batch.load(&items)).await
    }
}

/// The next page: of one type of record each time, and of the next type when there are no more.
fn page(connection: &Connection, after: Option<&Item>, limit: usize) -> Result<Vec<Item>, Fault> {
    let limit = limit.max(1);
    let mut items = Vec::new();
    let mut position = Position::of(after);
    while let Some(at) = position
        && items.is_empty()
    {
        items = at.page(connection, limit)?;
        position = at.next_type();
    }
    Ok(items)
}

/// Where an export stands: in a type of record, behind a key of it.
enum Position {
    Export,
    Clients(Option<ClientId>),
    SecretUses(Option<(ClientId, SecretId)>),
    Families(Option<FamilyId>),
    Revocations(Option<Revoked>),
    Epochs(Option<EpochOf>),
    Keyset,
    Records(u64),
    End,
}

impl Position {
    /// Behind an item; `None` behind the last.
    fn of(after: Option<&Item>) -> Option<Self> {
        Some(match after {
            None => Self::Export,
            Some(Item::Export { .. }) => Self::Clients(None),
            Some(Item::Client(client)) => Self::Clients(Some(client.id.clone())),
            Some(Item::SecretUse { client, secret, .. }) => Self::SecretUses(Some((client.clone(), secret.clone()))),
            Some(Item::Family(family)) => Self::Families(Some(family.id)),
            Some(Item::Revocation(revocation)) => Self::Revocations(Some(revocation.revoked)),
            Some(Item::Epoch { of, .. }) => Self::Epochs(Some(of.clone())),
            Some(Item::Keyset(_)) => Self::Records(0),
            Some(Item::Record { sequence, .. }) => Self::Records(*sequence),
            Some(Item::End { .. }) => return None,
        })
    }

    const fn next_type(&self) -> Option<Self> {
        Some(match self {
            Self::Export => Self::Clients(None),
            Self::Clients(_) => Self::SecretUses(None),
            Self::SecretUses(_) => Self::Families(None),
            Self::Families(_) => Self::Revocations(None),
            Self::Revocations(_) => Self::Epochs(None),
            Self::Epochs(_) => Self::Keyset,
            Self::Keyset => Self::Records(0),
            Self::Records(_) => Self::End,
            Self::End => return None,
        })
    }

    fn page(&self, connection: &Connection, limit: usize) -> Result<Vec<Item>, Fault> {
        let rows = i64::try_from(limit).unwrap_or(i64::MAX);
        Ok(match self {
            Self::Export => vec![Item::Export { version: VERSION }],
            Self::Clients(after) => {
                let clients = clients::bare(connection, after.as_ref(), limit)?;
                clients.into_iter().map(Item::Client).collect()
            }
            Self::SecretUses(after) => secret_uses(connection, after.as_ref(), rows)?,
            Self::Families(after) => families::page(connection, *after, rows)?.into_iter().map(Item::Family).collect(),
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
            Self::Records(after) => records(connection, *after, limit)?,
            Self::End => {
                let head = audit::head(connection)?;
                let (sequence, hash) = head.map_or((0, START), |head| (head.sequence, head.hash));
                vec![Item::End { sequence, hash: hex(&hash) }]
            }
        })
    }
}

fn secret_uses(connection: &Connection, after: Option<&(ClientId, SecretId)>, limit: i64) -> Result<Vec<Item>, Fault> {
    let (client, secret) = after.map_or(("", ""), |(client, secret)| (client.as_str(), secret.as_str()));
    let mut last = after.cloned();
    let mut statement = connection.prepare_cached(
        "SELECT client, secret, last_used_at, uses, sum FROM secret_uses WHERE (client, secret) > (?1, ?2)
         ORDER BY client, secret LIMIT ?3",
    )?;
    let rows = statement.query_map((client, secret, limit), |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, (row.get(2)?, row.get(3)?, row.get(4)?)))
    })?;
    let invalid = |invalid| Fault::Row(format!("secret use: {invalid}"));
    rows.map(|row| {
        let (client, secret, uses) = row?;
        let (last_used_at, use_count) = clients::decode_use(&client, &secret, uses)?;
        let (client, secret): (ClientId, SecretId) = (client.parse().map_err(invalid)?, secret.parse().map_err(invalid)?);
        let key = (client.clone(), secret.clone());
        ascending(last.replace(key.clone()), [key])?;
        Ok(Item::SecretUse { client, secret, last_used_at, use_count })
    })
    .collect()
}

fn records(connection: &Connection, after: u64, limit: usize) -> Result<Vec<Item>, Fault> {
    let Some(own) = audit::name(connection)? else { return Ok(Vec::new()) };
    let mut items = Vec::new();
    audit::walk(connection, after, limit, |raw| {
        let record = raw.record(&own)?;
        let hash = hex(&record.hash);
        items.push(Item::Record { sequence: record.sequence, node: record.node, event: record.event, hash });
        Ok::<_, Fault>(())
    })?;
    Ok(items)
}

impl Batch<'_> {
    /// All or nothing: the items are looked at before the first is written, so a refused batch leaves no half of itself.
    fn load(&mut self, items: &[Item]) -> Result<(), Fault> {
        let prepared = self.prepare(items)?;
        for item in prepared {
            match item {
                Prepared::Begin => self.effects.state.importing = true,
                Prepared::Finish => self.effects.state.importing = false,
                Prepared::Client(client) => taken(self.insert_client(&client)?)?,
                Prepared::Use(used) => self.note_use(&used)?,
                Prepared::Family(family) => taken(self.insert_family(&family)?)?,
                Prepared::Revocation(revocation) => self.end(&revocation)?,
                Prepared::Epoch(of, value) => self.set_epoch(&of, value)?,
                Prepared::Keyset(keyset) => taken(self.put_keyset(&keyset, Some(0))?)?,
                Prepared::Record { sequence, node, hash, entry } => self.keep(sequence, &node, hash, &entry)?,
            }
        }
        Ok(())
    }

    fn prepare(&self, items: &[Item]) -> Result<Vec<Prepared>, Fault> {
        let state = &self.effects.state;
        let mut walk = Walk::after(state.sequence, state.hash);
        let mut hash = state.hash;
        let mut importing = state.importing;
        let mut prepared = Vec::with_capacity(items.len());
        for item in items {
            let next = match item {
                Item::Export { version } if *version != VERSION => {
                    return Err(Fault::Row(format!("export: version {version} is not known, {VERSION} is")));
                }
                Item::Export { .. } if importing || !self.is_empty()? => {
                    return Err(Fault::Row("import: the store is not empty".into()));
                }
                Item::Export { .. } => {
                    importing = true;
                    Prepared::Begin
                }
                _ if !importing => return Err(Fault::Row("import: the first record must be of type export".into())),
                Item::Record { sequence, node, event, hash: text } => {
                    hash = unhex(text).ok_or_else(|| Fault::Row(format!("audit record {sequence}: bad hash")))?;
                    let entry = Entry::new(event.clone())?;
                    walk.step(*sequence, node, entry.body.as_bytes(), &hash).map_err(|flaw| Fault::Row(flaw.to_string()))?;
                    Prepared::Record { sequence: *sequence, node: node.clone(), hash, entry }
                }
                Item::End { sequence, hash: text } => {
                    if (*sequence, unhex(text)) != (walk.sequence(), Some(hash)) {
                        return Err(Fault::Row("import: the end does not follow from the last audit record".into()));
                    }
                    importing = false;
                    Prepared::Finish
                }
                Item::Client(client) => Prepared::Client(Box::new(clients::Stored::new(client)?)),
                Item::SecretUse { client, secret, last_used_at, use_count } => Prepared::Use(SecretUse {
                    client: client.clone(),
                    secret: secret.clone(),
                    at: *last_used_at,
                    count: *use_count,
                }),
                Item::Family(family) => Prepared::Family(Box::new(families::Columns::of(family)?)),
                Item::Revocation(revocation) => Prepared::Revocation(*revocation),
                Item::Epoch { of, value } => Prepared::Epoch(of.clone(), *value),
                Item::Keyset(keyset) => Prepared::Keyset(Arc::new(keyset.clone())),
            };
            prepared.push(next);
        }
        Ok(prepared)
    }

    fn is_empty(&self) -> Result<bool, Fault> {
        let sql = "SELECT 1 WHERE EXISTS (SELECT 1 FROM clients) OR EXISTS (SELECT 1 FROM families)
                   OR EXISTS (SELECT 1 FROM revocations) OR EXISTS (SELECT 1 FROM epochs) OR EXISTS (SELECT 1 FROM keyset)";
        Ok(self.effects.state.sequence == 0 && self.row(sql, [], |_| Ok(()))?.is_none())
    }
}

/// An item that has been looked at and can only fail with the disk, or for standing twice in the export.
enum Prepared {
    Begin,
    Client(Box<clients::Stored>),
    Use(SecretUse),
    Family(Box<families::Columns>),
    Revocation(Revocation),
    Epoch(EpochOf, u64),
    Keyset(Arc<Keyset>),
    Record { sequence: u64, node: Arc<str>, hash: [u8; 32], entry: Entry },
    Finish,
}

/// A record that stands twice. Others of the batch may be written by then, so it is an error that undoes all of it.
fn taken(free: bool) -> Result<(), Fault> {
    let twice = || {
        let corrupt = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        rusqlite::Error::SqliteFailure(corrupt, Some("import: a record stands twice".into()))
    };
    if free { Ok(()) } else { Err(twice().into()) }
}
