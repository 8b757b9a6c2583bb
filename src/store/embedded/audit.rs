//! The audit trail: rows by sequence, chained by hash, the end sealed in the row `head`.

use std::sync::Arc;

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
    model::{Event, Record, event::Filter},
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

    async fn events(&self, filter: &Filter, before: Option<u64>, limit: usize) -> Result<Vec<Record>> {
        let (mut found, mut next) = (Vec::new(), Some(before.map_or(i64::MAX, to_sql)));
        while let Some(before) = next
            && found.len() < limit
        {
            let (filter, wanted) = (filter.clone(), limit.saturating_sub(found.len()));
            let turn = self.scan(move |connection| newest_first(connection, &filter, before, wanted, TURN)).await?;
            found.extend(turn.0);
            next = turn.1;
        }
        Ok(found)
    }

    async fn chain(&self, after: u64, limit: usize) -> Result<Vec<Record>> {
        self.scan(move |connection| page(connection, after, limit)).await
    }

    async fn head(&self) -> Result<Option<Head>> {
        self.read(head).await
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

    pub(super) fn record(self) -> Result<Record, Fault> {
        let event: Event = serde_json::from_str(&self.body)
            .map_err(|_| Fault::Row(format!("audit record {}: the event cannot be read", self.sequence)))?;
        Ok(Record { sequence: self.sequence, node: self.node, event, hash: self.hash })
    }
}

/// Up to `limit` records out of up to `turn` rows; where the rows before those begin, if there may be some.
fn newest_first(
    connection: &Connection,
    filter: &Filter,
    before: i64,
    limit: usize,
    turn: usize,
) -> Result<(Vec<Record>, Option<i64>), Fault> {
    let sql = "SELECT sequence, node, hash, event FROM audit WHERE sequence < ?1 ORDER BY sequence DESC LIMIT ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query((before, i64::try_from(turn).unwrap_or(i64::MAX)))?;
    let hints = hints(filter);
    let (mut found, mut seen, mut last) = (Vec::new(), 0_usize, before);
    while found.len() < limit
        && let Some(row) = rows.next()?
    {
        (seen, last) = (seen.saturating_add(1), row.get(0)?);
        let text = row.get_ref(3)?.as_str().map_err(rusqlite::Error::from)?;
        if hints.iter().all(|hint| text.contains(hint)) {
            let record = Raw::read(row)?.record()?;
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
pub(super) fn page(connection: &Connection, after: u64, limit: usize) -> Result<Vec<Record>, Fault> {
    let mut records = Vec::new();
    walk(connection, after, limit, |raw| {
        records.push(raw.record()?);
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
        model::{Action, Stamp, Timestamp},
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
            let (mut found, mut next, mut turns) = (Vec::new(), Some(i64::MAX), 0);
            while let Some(before) = next
                && found.len() < limit
            {
                let (filter, wanted) = (filter.clone(), limit - found.len());
                let part = store.scan(move |connection| newest_first(connection, &filter, before, wanted, turn)).await.unwrap();
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
