//! The audit trail of the store: appends to the own chain, reads of all chains.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use rusqlite::Connection;
use tokio::sync::{broadcast, oneshot};

use super::{chains, cuts, index, names, places, size};
use crate::{
    crypto::chain::{CutMark, Head},
    model::{
        Action, Event, Place, Record, Timestamp,
        event::{Filter, Outcome},
    },
    store::{
        AuditStore, EventPage, Result, TrailSize, Writer,
        embedded::{
            Embedded,
            engine::{
                batch::{Batch, ClosureJob, EventText, Priority},
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
        let entry = EventText::new(event)?;
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
        let entry = EventText::new(event)?;
        let (reply, _) = oneshot::channel();
        self.writer
            .send(Box::new(ClosureJob::new(
                Priority::Background,
                move |batch: &mut Batch<'_>| batch.append(&entry),
                reply,
            )))
            .await
    }

    async fn page(
        &self,
        filter: &Filter,
        before: Option<&Place>,
        limit: usize,
        patience: Duration,
    ) -> Result<EventPage> {
        self.query_newest(filter, before, limit, patience).await
    }

    async fn chains(&self) -> Result<Vec<Arc<str>>> {
        self.read(chains::names).await
    }

    async fn chain(&self, name: &str, after: u64, limit: usize) -> Result<Vec<Record>> {
        let name: Arc<str> = name.into();
        self.scan(move |connection| records(connection, &name, after, limit)).await
    }

    async fn head(&self, chain: &str) -> Result<Option<Head>> {
        let chain: Arc<str> = chain.into();
        self.read(move |connection| chains::head(connection, &chain)).await
    }

    async fn writer(&self, chain: &str) -> Result<Writer> {
        let own = self.read(chains::own).await?;
        Ok(if own.as_deref() == Some(chain) { Writer::This } else { Writer::NotRunning })
    }

    async fn witnesses(&self, after: Option<&Place>, limit: usize) -> Result<Vec<Record>> {
        let after = after.cloned();
        self.scan(move |connection| witnesses(connection, after.as_ref(), limit)).await
    }

    async fn cut_mark(&self, chain: &str) -> Result<Option<CutMark>> {
        let chain: Arc<str> = chain.into();
        self.read(move |connection| cuts::mark(connection, &chain)).await
    }

    async fn cut_marks(&self) -> Result<Vec<(Arc<str>, CutMark)>> {
        self.read(cuts::marks).await
    }

    async fn trail_size(&self, now: Timestamp) -> Result<TrailSize> {
        self.read(move |connection| size::of_trail(connection, now)).await
    }

    fn tail(&self) -> broadcast::Receiver<Option<Arc<Record>>> {
        self.tail.upgrade().map_or_else(|| broadcast::channel(1).1, |tail| tail.subscribe())
    }
}

/// Returns records of a chain in order, readable or not.
pub(crate) fn records(
    connection: &Connection,
    name: &Arc<str>,
    after: u64,
    limit: usize,
) -> Result<Vec<Record>, SqliteError> {
    let mut records = Vec::new();
    chains::walk(connection, name, after, limit, |stored| {
        records.push(stored.record_or_unreadable(name));
        Ok::<_, SqliteError>(())
    })?;
    Ok(records)
}

/// Returns records of witnessed heads, in the order of chains and sequences, which is that of the
/// places.
pub(crate) fn witnesses(
    connection: &Connection,
    after: Option<&Place>,
    limit: usize,
) -> Result<Vec<Record>, SqliteError> {
    let after = match after {
        None => 0,
        Some(after) => match names::id_of(connection, &after.chain)? {
            Some(id) => places::place_of(id, after.sequence),
            None => places::last_place(names::id_before(connection, &after.chain)?),
        },
    };
    let kind = index::kind_of(Action::HeadsWitnessed.as_str(), Outcome::Ok.as_str());
    let sql = "SELECT place FROM audit WHERE kind = ?1 AND +place > ?2 AND place & ?3 > 0";
    let mut statement = connection.prepare_cached(sql)?;
    let mut places = statement
        .query_map((kind, after, places::SEQUENCE_MAX), |row| row.get::<_, i64>(0))?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let cuts = cuts::places(connection)?;
    places.retain(|place| cuts.get(&places::chain_of(*place)).is_none_or(|cut| place > cut));
    places.sort_unstable();
    let mut found = Vec::new();
    for place in places.into_iter().take(limit) {
        let Some(chain) = names::name_of(connection, places::chain_of(place))? else {
            continue;
        };
        let sequence = places::sequence_of(place).saturating_sub(1);
        chains::walk(connection, &chain, sequence, 1, |stored| {
            let record = stored.record_or_unreadable(&chain);
            found.extend((record.event.action == Action::HeadsWitnessed).then_some(record));
            Ok::<_, SqliteError>(())
        })?;
    }
    Ok(found)
}
