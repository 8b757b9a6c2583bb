//! The audit trail: rows by sequence, chained by hash, the end sealed in the row `head`. What this store writes is one chain, with
//! the name of the node that wrote its first record; chains of others are in `others`.

use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, Params, Row};
use tokio::sync::{broadcast, oneshot};

use super::{
    Embedded,
    batch::{Batch, Entry, OWN, Urgency, Work, from_sql, to_sql},
    fault::{Fault, ascending},
    others,
};
use crate::{
    crypto::chain::Head,
    model::{Event, Place, Record, event::Filter},
    store::{AuditStore, Result},
};

/// How far a listener may lag behind.
pub(super) const LAG: usize = 1_024;

#[async_trait]
impl AuditStore for Embedded {
    async fn append(&self, event: Event) -> Result<()> {
        let entry = Entry::new(event)?;
        self.write(Urgency::Normal, move |batch| batch.append(&entry)).await
    }

    async fn append_soon(&self, event: Event) -> Result<()> {
        if self.shared.failed() {
            return Err(Fault::Failed.into());
        }
        if self.shared.full() {
            // Nothing is promised ahead: whoever relies on the record hears whether there is room for it.
            return self.append(event).await;
        }
        let entry = Entry::new(event)?;
        let (reply, _) = oneshot::channel();
        self.writer.send(Box::new(Work::new(Urgency::Lazy, move |batch: &mut Batch<'_>| batch.append(&entry), reply))).await
    }

    async fn events(&self, filter: &Filter, before: Option<&Place>, limit: usize) -> Result<Vec<Record>> {
        self.newest(filter, before, limit).await
    }

    async fn chains(&self) -> Result<Vec<Arc<str>>> {
        self.read(names).await
    }

    async fn chain(&self, name: &str, after: u64, limit: usize) -> Result<Vec<Record>> {
        let name: Arc<str> = name.into();
        self.scan(move |connection| page(connection, &name, after, limit)).await
    }

    async fn head(&self, chain: &str) -> Result<Option<Head>> {
        let chain: Arc<str> = chain.into();
        self.read(move |connection| head_of(connection, &chain)).await
    }

    fn tail(&self) -> broadcast::Receiver<Option<Arc<Record>>> {
        self.tail.upgrade().map_or_else(|| broadcast::channel(1).1, |tail| tail.subscribe())
    }
}

/// A stored record as it lies there.
pub(super) struct Raw {
    pub(super) sequence: u64,
    pub(super) node: Arc<str>,
    pub(super) hash: [u8; 32],
    pub(super) body: String,
}

impl Raw {
    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let sequence = from_sql(row.get(0)?);
        Ok(Self { sequence, node: row.get(1)?, hash: row.get(2)?, body: row.get(3)? })
    }

    pub(super) fn record(self, chain: &Arc<str>) -> Result<Record, Fault> {
        let event: Event = serde_json::from_str(&self.body)
            .map_err(|_| Fault::Row(format!("audit record {}: the event cannot be read", self.sequence)))?;
        Ok(Record { chain: chain.clone(), sequence: self.sequence, node: self.node, event, hash: self.hash })
    }
}

/// The name of the store's own chain: who wrote its first record. None before that.
pub(super) fn name(connection: &Connection) -> Result<Option<Arc<str>>, Fault> {
    // Where records are missing the chain still has an end, and is missed under the name of who sealed that.
    let sql =
        "SELECT coalesce((SELECT node FROM audit ORDER BY sequence LIMIT 1), node) FROM head WHERE id = 1 AND sequence > 0";
    Ok(connection.prepare_cached(sql)?.query_row([], |row| row.get(0)).optional()?)
}

/// Names of all chains, in the order of their bytes.
pub(super) fn names(connection: &Connection) -> Result<Vec<Arc<str>>, Fault> {
    let mut names = others::names(connection)?;
    names.extend(name(connection)?);
    names.sort_unstable();
    Ok(names)
}

/// The sealed end of a chain.
pub(super) fn head_of(connection: &Connection, chain: &str) -> Result<Option<Head>, Fault> {
    if name(connection)?.as_deref() == Some(chain) { head(connection) } else { others::head(connection, chain) }
}

/// Records of a chain in order.
pub(super) fn page(connection: &Connection, chain: &Arc<str>, after: u64, limit: usize) -> Result<Vec<Record>, Fault> {
    let mut records = Vec::new();
    let keep = |raw: Raw| {
        records.push(raw.record(chain)?);
        Ok::<_, Fault>(())
    };
    if name(connection)?.as_ref() == Some(chain) {
        walk(connection, after, limit, keep)?;
    } else {
        others::walk(connection, chain, after, limit, keep)?;
    }
    Ok(records)
}

/// Shows records of the store's own chain in order.
pub(super) fn walk<E: From<Fault>>(
    connection: &Connection,
    after: u64,
    limit: usize,
    show: impl FnMut(Raw) -> Result<(), E>,
) -> Result<(), E> {
    let sql = "SELECT sequence, node, hash, event FROM audit WHERE sequence > ?1 ORDER BY sequence LIMIT ?2";
    show_rows(connection, sql, (to_sql(after), i64::try_from(limit).unwrap_or(i64::MAX)), after, show)
}

/// Shows what a query finds behind `after`; rows that are not in their order are damage.
pub(super) fn show_rows<E: From<Fault>>(
    connection: &Connection,
    sql: &str,
    parameters: impl Params,
    after: u64,
    mut show: impl FnMut(Raw) -> Result<(), E>,
) -> Result<(), E> {
    let fault = |error: rusqlite::Error| E::from(Fault::from(error));
    let mut statement = connection.prepare_cached(sql).map_err(fault)?;
    let mut rows = statement.query(parameters).map_err(fault)?;
    let mut last = after;
    while let Some(row) = rows.next().map_err(fault)? {
        let raw = Raw::read(row).map_err(fault)?;
        ascending(Some(last), [raw.sequence])?;
        last = raw.sequence;
        show(raw)?;
    }
    Ok(())
}

/// The sealed end of the own chain; none before the first record.
pub(super) fn head(connection: &Connection) -> Result<Option<Head>, Fault> {
    let mut statement =
        connection.prepare_cached("SELECT node, sequence, hash, seal FROM head WHERE id = 1 AND sequence > 0")?;
    let head = statement
        .query_row([], |row| {
            let sequence = from_sql(row.get(1)?);
            Ok(Head { node: row.get(0)?, sequence, hash: row.get(2)?, claim: OWN, seal: row.get(3)? })
        })
        .optional()?;
    Ok(head)
}
