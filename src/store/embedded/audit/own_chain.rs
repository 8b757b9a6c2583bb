//! The audit trail: rows by sequence, chained by hash, the end sealed in the row `head`. What this
//! store writes is one chain, with the name of the node that wrote its first record; chains of
//! others are in `imported_chains`.

use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension};
use tokio::sync::{broadcast, oneshot};

use super::{
    imported_chains,
    rows::{Raw, show_rows},
};
use crate::{
    crypto::chain::Head,
    model::{Action, Event, Place, Record, event::Filter},
    store::{
        AuditStore, Result, Writer,
        embedded::{
            Embedded,
            engine::{
                batch::{Batch, Entry, OWN, Urgency, Work, from_sql, to_sql},
                error::Fault,
            },
        },
    },
};

/// How far a listener may lag behind.
pub(crate) const LAG: usize = 1_024;

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
            // Nothing is promised ahead: whoever relies on the record hears whether there is room
            // for it.
            return self.append(event).await;
        }
        let entry = Entry::new(event)?;
        let (reply, _) = oneshot::channel();
        self.writer
            .send(Box::new(Work::new(
                Urgency::Lazy,
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
        self.newest(filter, before, limit).await
    }

    async fn chains(&self) -> Result<Vec<Arc<str>>> {
        self.read(names).await
    }

    async fn chain(&self, name: &str, after: u64, limit: usize) -> Result<Vec<Record>> {
        let name: Arc<str> = name.into();
        self.scan(move |connection| {
            let mut records = Vec::new();
            show_chain(connection, &name, after, limit, |raw| {
                records.push(raw.shown(&name));
                Ok::<_, Fault>(())
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
        Ok(if own.as_deref() == Some(chain) { Writer::This } else { Writer::Nobody })
    }

    async fn witnesses(&self, after: Option<&Place>, limit: usize) -> Result<Vec<Record>> {
        let after = after.cloned();
        self.scan(move |connection| witnesses(connection, after.as_ref(), limit)).await
    }

    fn tail(&self) -> broadcast::Receiver<Option<Arc<Record>>> {
        self.tail.upgrade().map_or_else(|| broadcast::channel(1).1, |tail| tail.subscribe())
    }
}

/// The name of the store's own chain: who wrote its first record. None before that.
pub(crate) fn name(connection: &Connection) -> Result<Option<Arc<str>>, Fault> {
    // Where records are missing the chain still has an end, and is missed under the name of who
    // sealed that.
    let sql = "SELECT coalesce((SELECT node FROM audit ORDER BY sequence LIMIT 1), node) FROM head \
               WHERE id = 1 AND sequence > 0";
    Ok(connection.prepare_cached(sql)?.query_row([], |row| row.get(0)).optional()?)
}

/// Names of all chains, in the order of their bytes.
pub(crate) fn names(connection: &Connection) -> Result<Vec<Arc<str>>, Fault> {
    let mut names = imported_chains::names(connection)?;
    names.extend(name(connection)?);
    names.sort_unstable();
    Ok(names)
}

/// The sealed end of a chain.
pub(crate) fn head_of(connection: &Connection, chain: &str) -> Result<Option<Head>, Fault> {
    if name(connection)?.as_deref() == Some(chain) {
        head(connection)
    } else {
        imported_chains::head(connection, chain)
    }
}

/// Records of a chain in order, each of which can be read.
pub(crate) fn page(
    connection: &Connection,
    chain: &Arc<str>,
    after: u64,
    limit: usize,
) -> Result<Vec<Record>, Fault> {
    let mut records = Vec::new();
    show_chain(connection, chain, after, limit, |raw| {
        records.push(raw.record(chain)?);
        Ok::<_, Fault>(())
    })?;
    Ok(records)
}

/// Shows records of a chain in order.
fn show_chain<E: From<Fault>>(
    connection: &Connection,
    chain: &str,
    after: u64,
    limit: usize,
    show: impl FnMut(Raw) -> Result<(), E>,
) -> Result<(), E> {
    if name(connection)?.as_deref() == Some(chain) {
        walk(connection, after, limit, show)
    } else {
        imported_chains::walk(connection, chain, after, limit, show)
    }
}

/// Records of heads that were witnessed, in the order of chains and sequences.
fn witnesses(
    connection: &Connection,
    after: Option<&Place>,
    limit: usize,
) -> Result<Vec<Record>, Fault> {
    let mut found = Vec::new();
    for chain in
        names(connection)?.iter().filter(|chain| after.is_none_or(|after| **chain >= after.chain))
    {
        let mut from =
            after.filter(|after| after.chain == *chain).map_or(0, |after| after.sequence);
        let (own, text) = (name(connection)?.as_ref() == Some(chain), witness_text());
        while found.len() < limit {
            let next = if own {
                next_own(connection, from, &text)?
            } else {
                imported_chains::next_with(connection, chain, from, &text)?
            };
            let Some(raw) = next else { break };
            from = raw.sequence;
            let record = raw.shown(chain);
            found.extend((record.event.action == Action::HeadsWitnessed).then_some(record));
        }
    }
    Ok(found)
}

/// The text that stands in every event of a witness, and in no other but by chance.
fn witness_text() -> String {
    format!("\"{}\"", Action::HeadsWitnessed.as_str())
}

/// The next record of the own chain whose event holds a text.
fn next_own(connection: &Connection, after: u64, text: &str) -> Result<Option<Raw>, Fault> {
    let sql =
        "SELECT sequence, node, hash, event FROM audit WHERE sequence > ?1 AND instr(event, ?2) > 0
               ORDER BY sequence LIMIT 1";
    Ok(connection.prepare_cached(sql)?.query_row((to_sql(after), text), Raw::read).optional()?)
}

/// Shows records of the store's own chain in order.
pub(crate) fn walk<E: From<Fault>>(
    connection: &Connection,
    after: u64,
    limit: usize,
    show: impl FnMut(Raw) -> Result<(), E>,
) -> Result<(), E> {
    let sql = "SELECT sequence, node, hash, event FROM audit WHERE sequence > ?1 ORDER BY sequence \
               LIMIT ?2";
    show_rows(
        connection,
        sql,
        (to_sql(after), i64::try_from(limit).unwrap_or(i64::MAX)),
        after,
        show,
    )
}

/// The sealed end of the own chain; none before the first record.
pub(crate) fn head(connection: &Connection) -> Result<Option<Head>, Fault> {
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
                claim: OWN,
                seal: row.get(3)?,
            })
        })
        .optional()?;
    Ok(head)
}
