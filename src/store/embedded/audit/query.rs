//! Query over the audit records of all chains, newest first.

use rusqlite::{Connection, Row};

use super::rows::StoredRecord;
use crate::{
    model::{Place, Record, Timestamp, event::Filter},
    store::{
        Result,
        embedded::{
            Embedded,
            engine::{
                batch::{from_sql, to_sql},
                error::SqliteError,
            },
        },
    },
};

/// Number of rows read at a time, some milliseconds: other scans run in between, and a dropped
/// caller is noticed.
const ROWS_PER_SCAN: usize = 10_000;

const NEWEST_ROWS: &str = "SELECT sequence, node, hash, event, at, chain FROM audit
    WHERE at BETWEEN ?1 AND ?2 AND (at, chain, sequence) < (?3, ?4, ?5) AND sequence > 0
    ORDER BY at DESC, chain DESC, sequence DESC LIMIT ?6";

impl Embedded {
    pub(in crate::store::embedded) async fn query_newest(
        &self,
        filter: &Filter,
        before: Option<&Place>,
        limit: usize,
    ) -> Result<Vec<Record>> {
        let newest = Place { at: Timestamp::from_millis(i64::MAX), chain: "".into(), sequence: 0 };
        let (mut found, mut next) = (Vec::new(), Some(before.cloned().unwrap_or(newest)));
        while let Some(before) = next
            && found.len() < limit
        {
            let (filter, wanted) = (filter.clone(), limit.saturating_sub(found.len()));
            let turn = self
                .scan(move |connection| page(connection, &filter, &before, wanted, ROWS_PER_SCAN))
                .await?;
            found.extend(turn.0);
            next = turn.1;
        }
        Ok(found)
    }
}

/// Returns up to `limit` records out of up to `turn` rows, and the place from which to continue if
/// there may be more.
fn page(
    connection: &Connection,
    filter: &Filter,
    before: &Place,
    limit: usize,
    turn: usize,
) -> Result<(Vec<Record>, Option<Place>), SqliteError> {
    let at = before.at.millis();
    // The bounds are separate from the order, so that the index is entered where the page begins.
    let from = filter.from.map_or(i64::MIN, Timestamp::millis);
    let to = filter.to.map_or(at, |to| at.min(to.millis().saturating_sub(1)));
    let limit_rows = i64::try_from(turn).unwrap_or(i64::MAX);
    let mut statement = connection.prepare_cached(NEWEST_ROWS)?;
    let (chain, sequence) = (before.chain.as_ref(), to_sql(before.sequence));
    let mut rows = statement.query((from, to, at, chain, sequence, limit_rows))?;

    let hints = hints(filter);
    let (mut found, mut last) = (Vec::new(), None);
    for _ in 0..turn {
        if found.len() >= limit {
            return Ok((found, None));
        }
        let Some(row) = rows.next()? else { return Ok((found, None)) };
        let next = place(row)?;
        let text = row.get_ref(3)?.as_str().unwrap_or_default();
        if hints.iter().all(|hint| text.contains(hint)) {
            let record = StoredRecord::read(row)?
                .record(&next.chain)
                .unwrap_or_else(|_| Record::unreadable(next.clone()));
            found.extend(filter.admits(&record.event).then_some(record));
        }
        last = Some(next);
    }
    Ok((found, last))
}

/// Place of a row by its index, which has the time also of an event that cannot be decoded.
fn place(row: &Row<'_>) -> rusqlite::Result<Place> {
    Ok(Place {
        at: Timestamp::from_millis(row.get(4)?),
        chain: row.get(5)?,
        sequence: from_sql(row.get(0)?),
    })
}

/// Texts that occur in every event the filter admits: most others are skipped without being parsed.
fn hints(filter: &Filter) -> Vec<String> {
    let quoted = |text: &str| format!("\"{text}\"");
    let tenant = filter.tenant.as_ref().map(|tenant| quoted(tenant.as_str()));
    let actor = filter.actor.as_ref().and_then(|actor| serde_json::to_string(actor).ok());
    tenant.into_iter().chain(actor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        crypto::chain::ChainKey,
        model::{Action, Event, Stamp},
        store::{AuditStore, Store},
    };

    fn event(n: u64) -> Event {
        // One in seven matches.
        let action = if n.is_multiple_of(7) { Action::TokenRevoked } else { Action::TokenIssued };
        Stamp::internal(Timestamp::EPOCH).done(action, n.to_string())
    }

    /// Scans of any length together return the same records as one long scan.
    #[tokio::test]
    async fn turns_neither_skip_nor_repeat() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(dir.path(), "node", ChainKey::new([1; 32])).unwrap();
        for n in 1..=50 {
            store.append_soon(event(n)).await.unwrap();
        }
        store.ready().await.unwrap();
        let filter = Filter { action: Some("token.revoked".into()), ..Filter::default() };
        for (turn, limit) in [(1, 9), (2, 9), (7, 9), (10, 3), (49, 9), (50, 9), (51, 9), (3, 1)] {
            let newest = Place { at: Timestamp::from_millis(1), chain: "".into(), sequence: 0 };
            let (mut found, mut next, mut turns) = (Vec::new(), Some(newest), 0);
            while let Some(before) = next
                && found.len() < limit
            {
                let (filter, wanted) = (filter.clone(), limit - found.len());
                let part = store
                    .scan(move |connection| page(connection, &filter, &before, wanted, turn))
                    .await
                    .unwrap();
                found.extend(part.0.iter().map(|record| record.sequence));
                (next, turns) = (part.1, turns + 1);
            }
            let expected: Vec<_> = [49, 42, 35, 28, 21, 14, 7].into_iter().take(limit).collect();
            assert_eq!(found, expected, "{turn}");
            assert!(turns <= 50 / turn + 1, "{turn}: {turns}");
        }
    }

    /// More rows than one scan reads.
    #[tokio::test]
    async fn a_rare_record_is_found_beyond_one_turn() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(dir.path(), "node", ChainKey::new([1; 32])).unwrap();
        store.append(event(7)).await.unwrap();
        for _ in 0..2 * ROWS_PER_SCAN {
            store.append_soon(event(1)).await.unwrap();
        }
        store.ready().await.unwrap();
        let filter = Filter { action: Some("token.revoked".into()), ..Filter::default() };
        let found = store.events(&filter, None, 2).await.unwrap();
        assert_eq!(found.iter().map(|record| record.sequence).collect::<Vec<_>>(), [1]);
    }

    /// A page is entered at its beginning and never sorted: the index has the order.
    #[tokio::test]
    async fn pages_are_read_from_the_index_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(dir.path(), "node", ChainKey::new([1; 32])).unwrap();
        let plan = store.read(|connection| {
            let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {NEWEST_ROWS}"))?;
            let rows = statement.query_map(rusqlite::params_from_iter([1; 6]), |row| row.get(3))?;
            Ok(rows.collect::<rusqlite::Result<Vec<String>>>()?)
        });
        assert_eq!(plan.await.unwrap(), ["SEARCH audit USING INDEX audit_by_time (at>? AND at<?)"]);
    }
}
