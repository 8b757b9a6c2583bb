//! The audit trail: rows by sequence, chained by hash, the end sealed in the row `head`. It is one chain, with the name of the node
//! that wrote its first record.

use std::{cmp::Ordering, sync::Arc};

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, Row};
use tokio::sync::{broadcast, oneshot};

use super::{
    Embedded,
    batch::{Batch, Entry, Urgency, Work, from_sql, to_sql},
    fault::{Fault, ascending},
};
use crate::{
    crypto::chain::Head,
    model::{Event, Place, Record, Timestamp, event::Filter},
    store::{AuditStore, Result},
};

/// How many rows are looked at in one turn: some milliseconds, after which others have theirs and a caller that has gone away is
/// noticed.
const TURN: usize = 10_000;

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
        let Some(own) = self.read(name).await? else { return Ok(Vec::new()) };
        let (mut found, mut next) = (Vec::new(), Some(before.map_or(NEWEST, |place| row_before(&own, place))));
        while let Some(before) = next
            && found.len() < limit
        {
            let (filter, own, wanted) = (filter.clone(), own.clone(), limit.saturating_sub(found.len()));
            let turn = self.scan(move |connection| newest_first(connection, &own, &filter, before, wanted, TURN)).await?;
            found.extend(turn.0);
            next = turn.1;
        }
        Ok(found)
    }

    async fn chains(&self) -> Result<Vec<Arc<str>>> {
        self.read(|connection| Ok(name(connection)?.into_iter().collect())).await
    }

    async fn chain(&self, chain: &str, after: u64, limit: usize) -> Result<Vec<Record>> {
        let chain: Arc<str> = chain.into();
        let read = move |connection: &Connection| match name(connection)? {
            Some(own) if own == chain => page(connection, &own, after, limit),
            Some(_) | None => Ok(Vec::new()),
        };
        self.scan(read).await
    }

    async fn head(&self, chain: &str) -> Result<Option<Head>> {
        let chain: Arc<str> = chain.into();
        self.read(move |connection| if name(connection)? == Some(chain) { head(connection) } else { Ok(None) }).await
    }

    fn tail(&self) -> broadcast::Receiver<Arc<Record>> {
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

/// The chain's name: who wrote its first record. None before that.
pub(super) fn name(connection: &Connection) -> Result<Option<Arc<str>>, Fault> {
    let mut statement = connection.prepare_cached("SELECT node FROM audit ORDER BY sequence LIMIT 1")?;
    Ok(statement.query_row([], |row| row.get(0)).optional()?)
}

/// A row's time and sequence: the order of what is listed.
type Bound = (i64, i64);

/// Behind every row.
const NEWEST: Bound = (i64::MAX, i64::MAX);

/// Where the rows before a place end, which may be one of another chain.
fn row_before(own: &str, place: &Place) -> Bound {
    let sequence = match own.cmp(&place.chain) {
        Ordering::Less => i64::MAX,
        Ordering::Equal => to_sql(place.sequence),
        Ordering::Greater => 0,
    };
    (place.at.millis(), sequence)
}

/// Up to `limit` records out of up to `turn` rows; where the rows before those begin, if there may be some.
fn newest_first(
    connection: &Connection,
    own: &Arc<str>,
    filter: &Filter,
    before: Bound,
    limit: usize,
    turn: usize,
) -> Result<(Vec<Record>, Option<Bound>), Fault> {
    let sql = "SELECT sequence, node, hash, event, at FROM audit
               WHERE (at, sequence) < (?1, ?2) AND at < ?3 AND at >= ?4 ORDER BY at DESC, sequence DESC LIMIT ?5";
    let mut statement = connection.prepare_cached(sql)?;
    let to = filter.to.map_or(i64::MAX, Timestamp::millis);
    let from = filter.from.map_or(i64::MIN, Timestamp::millis);
    let mut rows = statement.query((before.0, before.1, to, from, i64::try_from(turn).unwrap_or(i64::MAX)))?;
    let hints = hints(filter);
    let (mut found, mut seen, mut last) = (Vec::new(), 0_usize, before);
    while found.len() < limit
        && let Some(row) = rows.next()?
    {
        (seen, last) = (seen.saturating_add(1), (row.get(4)?, row.get(0)?));
        let text = row.get_ref(3)?.as_str().map_err(rusqlite::Error::from)?;
        if hints.iter().all(|hint| text.contains(hint)) {
            let record = Raw::read(row)?.record(own)?;
            if filter.admits(&record.event) {
                found.push(record);
            }
        }
    }
    Ok((found, (seen == turn).then_some(last)))
}

/// Texts that stand in every event the filter admits: most others are passed over without being parsed.
fn hints(filter: &Filter) -> Vec<String> {
    let quoted = |text: &str| format!("\"{text}\"");
    let tenant = filter.tenant.as_ref().map(|tenant| quoted(tenant.as_str()));
    let client = filter.client.as_ref().map(|client| quoted(client.as_str()));
    tenant.into_iter().chain(client).collect()
}

/// Records in order.
pub(super) fn page(connection: &Connection, own: &Arc<str>, after: u64, limit: usize) -> Result<Vec<Record>, Fault> {
    let mut records = Vec::new();
    walk(connection, after, limit, |raw| {
        records.push(raw.record(own)?);
        Ok::<_, Fault>(())
    })?;
    Ok(records)
}

/// Shows stored records in order.
pub(super) fn walk<E: From<Fault>>(
    connection: &Connection,
    after: u64,
    limit: usize,
    mut show: impl FnMut(Raw) -> Result<(), E>,
) -> Result<(), E> {
    let fault = |error: rusqlite::Error| E::from(Fault::from(error));
    let sql = "SELECT sequence, node, hash, event FROM audit WHERE sequence > ?1 ORDER BY sequence LIMIT ?2";
    let mut statement = connection.prepare_cached(sql).map_err(fault)?;
    let mut rows = statement.query((to_sql(after), i64::try_from(limit).unwrap_or(i64::MAX))).map_err(fault)?;
    let mut last = after;
    while let Some(row) = rows.next().map_err(fault)? {
        let raw = Raw::read(row).map_err(fault)?;
        ascending(Some(last), [raw.sequence])?;
        last = raw.sequence;
        show(raw)?;
    }
    Ok(())
}

/// The sealed end; none before the first record.
pub(super) fn head(connection: &Connection) -> Result<Option<Head>, Fault> {
    let mut statement =
        connection.prepare_cached("SELECT node, sequence, hash, seal FROM head WHERE id = 1 AND sequence > 0")?;
    let head = statement
        .query_row([], |row| {
            let sequence = from_sql(row.get(1)?);
            Ok(Head { node: row.get(0)?, sequence, hash: row.get(2)?, seal: row.get(3)? })
        })
        .optional()?;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        crypto::chain::ChainKey,
        model::{Action, Stamp},
        store::Store,
    };

    fn told(n: u64) -> Event {
        // One in seven is looked for.
        let action = if n.is_multiple_of(7) { Action::TokenRevoked } else { Action::TokenIssued };
        Stamp::internal(Timestamp::EPOCH).done(action, n.to_string())
    }

    /// Whatever the length of a turn, all turns together find what one long one finds.
    #[tokio::test]
    async fn turns_neither_skip_nor_repeat() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(dir.path(), "node", ChainKey::new([1; 32])).unwrap();
        for n in 1..=50 {
            store.append_soon(told(n)).await.unwrap();
        }
        store.ready().await.unwrap();
        let filter = Filter { action: Some("token.revoked".into()), ..Filter::default() };
        for (turn, limit) in [(1, 9), (2, 9), (7, 9), (10, 3), (49, 9), (50, 9), (51, 9), (3, 1)] {
            let (mut found, mut next, mut turns) = (Vec::new(), Some(NEWEST), 0);
            while let Some(before) = next
                && found.len() < limit
            {
                let (filter, wanted) = (filter.clone(), limit - found.len());
                let own = "node".into();
                let part =
                    store.scan(move |connection| newest_first(connection, &own, &filter, before, wanted, turn)).await.unwrap();
                found.extend(part.0.iter().map(|record| record.sequence));
                (next, turns) = (part.1, turns + 1);
            }
            let expected: Vec<_> = [49, 42, 35, 28, 21, 14, 7].into_iter().take(limit).collect();
            assert_eq!(found, expected, "{turn}");
            assert!(turns <= 50 / turn + 1, "{turn}: {turns}");
        }
    }

    /// More rows than one turn looks at.
    #[tokio::test]
    async fn a_rare_record_is_found_beyond_one_turn() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(dir.path(), "node", ChainKey::new([1; 32])).unwrap();
        store.append(told(7)).await.unwrap();
        for _ in 0..2 * TURN {
            store.append_soon(told(1)).await.unwrap();
        }
        store.ready().await.unwrap();
        let filter = Filter { action: Some("token.revoked".into()), ..Filter::default() };
        let found = store.events(&filter, None, 2).await.unwrap();
        assert_eq!(found.iter().map(|record| record.sequence).collect::<Vec<_>>(), [1]);
    }
}
