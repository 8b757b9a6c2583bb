//! Audit trail of this store: rows by sequence, chained by hash, the head sealed in the row `head`.
//! Everything this store writes is one chain, named after the node that wrote its first record;
//! chains of other nodes are in `imported_chains`.

use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension};
use tokio::sync::{broadcast, oneshot};

use super::{
    imported_chains,
    rows::{StoredRecord, visit_rows},
};
use crate::{
    crypto::chain::Head,
    model::{Action, Event, Place, Record, event::Filter},
    store::{
        AuditStore, Result, Writer,
        embedded::{
            Embedded,
            engine::{
                batch::{Batch, ClosureJob, Entry, OWN_CLAIM, Priority, from_sql, to_sql},
                error::SqliteError,
            },
        },
    },
};

/// Number of records by which a tail may lag behind.
pub(crate) const TAIL_LAG_MAX: usize = 1_024;

#[async_trait]
impl AuditStore for Embedded {
    async fn append(&self, event: Event) -> Result<()> {
        let entry = Entry::new(event)?;
        self.write(Priority::Normal, move |batch| batch.append(&entry)).await
    }

    async fn append_soon(&self, event: Event) -> Result<()> {
        if self.shared.has_failed() {
            return Err(SqliteError::Failed.into());
        }
        if self.shared.is_disk_full() {
            // The caller relies on the record, so it must learn whether there is room for it.
            return self.append(event).await;
        }
        let entry = Entry::new(event)?;
        let (reply, _) = oneshot::channel();
        self.writer
            .send(Box::new(ClosureJob::new(
                Priority::Background,
                move |batch: &mut Batch<'_>| batch.append(&entry),
                reply,
            )))
            .await
    }

    async fn events(
        &self,
        filter: &Filter,
        before: Option<&Place>,
        limit: usize,
    ) -> Result<Vec<Record>> {
        self.query_newest(filter, before, limit).await
    }

    async fn chains(&self) -> Result<Vec<Arc<str>>> {
        self.read(names).await
    }

    async fn chain(&self, name: &str, after: u64, limit: usize) -> Result<Vec<Record>> {
        let name: Arc<str> = name.into();
        self.scan(move |connection| {
            let mut records = Vec::new();
            visit_chain(connection, &name, after, limit, |raw| {
                records.push(raw.record_or_unreadable(&name));
                Ok::<_, SqliteError>(())
            })?;
            Ok(records)
        })
        .await
    }

    async fn head(&self, chain: &str) -> Result<Option<Head>> {
        let chain: Arc<str> = chain.into();
        self.read(move |connection| head_of(connection, &chain)).await
    }

    async fn writer(&self, chain: &str) -> Result<Writer> {
        let own = self.read(name).await?;
        Ok(if own.as_deref() == Some(chain) { Writer::This } else { Writer::NotRunning })
    }

    async fn witnesses(&self, after: Option<&Place>, limit: usize) -> Result<Vec<Record>> {
        let after = after.cloned();
        self.scan(move |connection| witnesses(connection, after.as_ref(), limit)).await
    }

    fn tail(&self) -> broadcast::Receiver<Option<Arc<Record>>> {
        self.tail.upgrade().map_or_else(|| broadcast::channel(1).1, |tail| tail.subscribe())
    }
}

/// Returns the name of the store's own chain, the node of its first record; `None` before that.
pub(crate) fn name(connection: &Connection) -> Result<Option<Arc<str>>, SqliteError> {
    // If records are missing the chain still has a head, and is reported under the name of the node
    // that sealed it.
    let sql = "SELECT coalesce((SELECT node FROM audit ORDER BY sequence LIMIT 1), node) FROM head \
               WHERE id = 1 AND sequence > 0";
    Ok(connection.prepare_cached(sql)?.query_row([], |row| row.get(0)).optional()?)
}

/// Returns the names of all chains, in byte order.
pub(crate) fn names(connection: &Connection) -> Result<Vec<Arc<str>>, SqliteError> {
    let mut names = imported_chains::names(connection)?;
    names.extend(name(connection)?);
    names.sort_unstable();
    Ok(names)
}

/// Returns the sealed head of a chain.
pub(crate) fn head_of(connection: &Connection, chain: &str) -> Result<Option<Head>, SqliteError> {
    if name(connection)?.as_deref() == Some(chain) {
        head(connection)
    } else {
        imported_chains::head(connection, chain)
    }
}

/// Returns records of a chain in order; fails if one cannot be decoded.
pub(crate) fn page(
    connection: &Connection,
    chain: &Arc<str>,
    after: u64,
    limit: usize,
) -> Result<Vec<Record>, SqliteError> {
    let mut records = Vec::new();
    visit_chain(connection, chain, after, limit, |raw| {
        records.push(raw.record(chain)?);
        Ok::<_, SqliteError>(())
    })?;
    Ok(records)
}

/// Visits records of a chain in order.
fn visit_chain<E: From<SqliteError>>(
    connection: &Connection,
    chain: &str,
    after: u64,
    limit: usize,
    visit: impl FnMut(StoredRecord) -> Result<(), E>,
) -> Result<(), E> {
    if name(connection)?.as_deref() == Some(chain) {
        walk(connection, after, limit, visit)
    } else {
        imported_chains::walk(connection, chain, after, limit, visit)
    }
}

/// Returns records of witnessed heads, in the order of chains and sequences.
fn witnesses(
    connection: &Connection,
    after: Option<&Place>,
    limit: usize,
) -> Result<Vec<Record>, SqliteError> {
    let mut found = Vec::new();
    for chain in
        names(connection)?.iter().filter(|chain| after.is_none_or(|after| **chain >= after.chain))
    {
        let mut from =
            after.filter(|after| after.chain == *chain).map_or(0, |after| after.sequence);
        let (own, text) = (name(connection)?.as_ref() == Some(chain), witness_marker());
        while found.len() < limit {
            let next = if own {
                next_own(connection, from, &text)?
            } else {
                imported_chains::next_with(connection, chain, from, &text)?
            };
            let Some(raw) = next else { break };
            from = raw.sequence;
            let record = raw.record_or_unreadable(chain);
            found.extend((record.event.action == Action::HeadsWitnessed).then_some(record));
        }
    }
    Ok(found)
}

/// Text in every event of a witness, and in others only by chance.
fn witness_marker() -> String {
    format!("\"{}\"", Action::HeadsWitnessed.as_str())
}

/// Returns the next record of the own chain whose event contains `text`.
fn next_own(
    connection: &Connection,
    after: u64,
    text: &str,
) -> Result<Option<StoredRecord>, SqliteError> {
    let sql =
        "SELECT sequence, node, hash, event FROM audit WHERE sequence > ?1 AND instr(event, ?2) > 0
               ORDER BY sequence LIMIT 1";
    Ok(connection
        .prepare_cached(sql)?
        .query_row((to_sql(after), text), StoredRecord::read)
        .optional()?)
}

/// Visits records of the store's own chain in order.
pub(crate) fn walk<E: From<SqliteError>>(
    connection: &Connection,
    after: u64,
    limit: usize,
    visit: impl FnMut(StoredRecord) -> Result<(), E>,
) -> Result<(), E> {
    let sql = "SELECT sequence, node, hash, event FROM audit WHERE sequence > ?1 ORDER BY sequence \
               LIMIT ?2";
    visit_rows(
        connection,
        sql,
        (to_sql(after), i64::try_from(limit).unwrap_or(i64::MAX)),
        after,
        visit,
    )
}

/// Returns the sealed head of the own chain; `None` before the first record.
pub(crate) fn head(connection: &Connection) -> Result<Option<Head>, SqliteError> {
    let mut statement = connection.prepare_cached(
        "SELECT node, sequence, hash, seal FROM head WHERE id = 1 AND sequence > 0",
    )?;
    let head = statement
        .query_row([], |row| {
            let sequence = from_sql(row.get(1)?);
            Ok(Head {
                node: row.get(0)?,
                sequence,
                hash: row.get(2)?,
                claim: OWN_CLAIM,
                seal: row.get(3)?,
            })
        })
        .optional()?;
    Ok(head)
}
