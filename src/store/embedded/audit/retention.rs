//! Cuts of the audit trail, in bounded steps: other writes go on in between.

use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension as _};

use super::{chains, cuts, index, keyed, names, places, size};
use crate::{
    crypto::chain::{ChainPlace, CutMark},
    model::{Event, Timestamp},
    store::{
        Result, RetentionStore, Surplus, Write,
        embedded::{
            Embedded,
            engine::{
                batch::{Batch, EventText, Priority, to_sql},
                error::SqliteError,
            },
        },
    },
};

/// Free pages that stay in the file for the next records: 16 MiB.
const SPARE_PAGES: i64 = 4_096;

/// Pages that are returned at once: 1 MiB.
const PAGES_AT_ONCE: i64 = 256;

#[async_trait]
impl RetentionStore for Embedded {
    async fn sealed_place(
        &self,
        chain: &str,
        after: u64,
        until: Timestamp,
        limit: u64,
    ) -> Result<Option<ChainPlace>> {
        let (chain, key): (Arc<str>, _) = (chain.into(), self.key.clone());
        let find = move |connection: &Connection| {
            let Some(last) = last_to_cut(connection, &chain)? else { return Ok(None) };
            let bounds = (after, last.min(after.saturating_add(limit)));
            cuts::sealed(connection, &chain, bounds, until, &key)
        };
        self.read(find).await
    }

    async fn cut(&self, chain: &str, after: u64, mark: &CutMark, event: Event) -> Result<Write> {
        let (chain, mark, entry): (Arc<str>, _, _) = (chain.into(), *mark, EventText::new(event)?);
        let cut = move |batch: &mut Batch<'_>| batch.cut(&chain, after, &mark, &entry);
        self.write(Priority::Normal, cut).await
    }

    async fn remove_cut(&self, _now: Timestamp, limit: usize) -> Result<usize> {
        let left = self.read(has_leftovers).await?;
        if !left {
            return Ok(0);
        }
        self.write(Priority::Normal, move |batch| batch.remove_cut(limit)).await
    }

    async fn surplus(&self, bytes: u64) -> Result<Option<Surplus>> {
        self.read(move |connection| {
            let size = size::of_trail(connection, Timestamp::EPOCH)?;
            match size.bytes().saturating_sub(bytes) {
                0 => Ok(None),
                surplus => cuts::oldest(connection, surplus.div_ceil(size.record_bytes.max(1))),
            }
        })
        .await
    }

    async fn recorded_before(
        &self,
        until: Timestamp,
        from: Timestamp,
    ) -> Result<Option<Timestamp>> {
        self.read(move |connection| {
            let (until, from) = (until.millis(), from.millis());
            let from_on = "SELECT at FROM audit WHERE kind = ?1 AND at >= ?2 AND at < ?3
                           ORDER BY at LIMIT 1";
            let oldest = at_of_kinds(connection, from_on, from, until)?.into_iter().min();
            let before = "SELECT at FROM audit WHERE kind = ?1 AND at >= ?2 AND at < ?3
                          ORDER BY at DESC LIMIT 1";
            let at = match oldest {
                Some(oldest) => Some(oldest),
                None => at_of_kinds(connection, before, i64::MIN, from)?.into_iter().max(),
            };
            Ok(at.map(Timestamp::from_millis))
        })
        .await
    }

    async fn shrink(&self) -> Result<bool> {
        self.shrink_to(SPARE_PAGES).await
    }

    async fn hold_retention(&self) -> Result<bool> {
        Ok(true)
    }
}

impl Embedded {
    /// Returns free pages to the file system until `spare` are left.
    async fn shrink_to(&self, spare: i64) -> Result<bool> {
        let free = |connection: &Connection| {
            connection.query_row("PRAGMA freelist_count", [], |row| row.get::<_, i64>(0))
        };
        if self.read(move |connection| Ok(free(connection)?)).await? <= spare {
            return Ok(false);
        }
        self.write(Priority::Normal, move |batch| {
            let pages = free(batch.connection)?.saturating_sub(spare).clamp(0, PAGES_AT_ONCE);
            if pages == 0 {
                return Ok(false);
            }
            // One page a row: until the last one.
            let sql = format!("PRAGMA incremental_vacuum({pages})");
            let mut statement = batch.connection.prepare(&sql)?;
            let mut rows = statement.query([])?;
            while rows.next()?.is_some() {}
            Ok(free(batch.connection)? > spare)
        })
        .await
    }
}

/// Returns the time that a query finds, of each kind of records.
fn at_of_kinds(
    connection: &Connection,
    sql: &str,
    from: i64,
    until: i64,
) -> Result<Vec<i64>, SqliteError> {
    let (mut statement, mut found) = (connection.prepare_cached(sql)?, Vec::new());
    for kind in index::kinds() {
        let at = statement.query_row((kind, from, until), |row| row.get::<_, i64>(0)).optional()?;
        found.extend(at);
    }
    Ok(found)
}

/// Returns the greatest sequence at which a chain may be cut: its last record stays, and so do
/// those whose keys are not written yet.
fn last_to_cut(connection: &Connection, chain: &str) -> Result<Option<u64>, SqliteError> {
    let Some(head) = chains::head(connection, chain)? else { return Ok(None) };
    let mut last = head.sequence.saturating_sub(1);
    if chains::own(connection)?.as_deref() == Some(chain) {
        let id = names::id_of(connection, chain)?.unwrap_or_default();
        let keyed = keyed::keyed(connection)?;
        let keyed = if places::chain_of(keyed) == id { places::sequence_of(keyed) } else { 0 };
        last = last.min(keyed);
    }
    Ok(Some(last))
}

fn has_leftovers(connection: &Connection) -> Result<bool, SqliteError> {
    for (chain, mark) in cuts::marks(connection)? {
        if cuts::leftovers(connection, &chain, mark.place.sequence, 1, |_, _| Ok(()))? > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Batch<'_> {
    fn cut(
        &mut self,
        chain: &Arc<str>,
        after: u64,
        mark: &CutMark,
        entry: &EventText,
    ) -> Result<Write, SqliteError> {
        if cuts::cut_at(self.connection, chain)? != after || mark.place.sequence <= after {
            return Ok(Write::Stale);
        }
        self.put_cut(chain, mark)?;
        self.append(entry)?;
        Ok(Write::Done)
    }

    /// Writes the mark of a chain.
    pub(crate) fn put_cut(&self, chain: &str, mark: &CutMark) -> Result<(), SqliteError> {
        let CutMark { place, seal } = mark;
        self.execute(
            "INSERT OR REPLACE INTO audit_cuts (chain, sequence, hash, at, seal)
             VALUES (?1, ?2, ?3, ?4, ?5)",
            (chain, to_sql(place.sequence), place.hash, place.at.millis(), seal),
        )
        .map(drop)
    }

    fn remove_cut(&self, limit: usize) -> Result<usize, SqliteError> {
        let mut removed = 0_usize;
        for (chain, mark) in cuts::marks(self.connection)? {
            let room = i64::try_from(limit.saturating_sub(removed)).unwrap_or(i64::MAX);
            if room == 0 {
                break;
            }
            // A forged mark removes nothing.
            if !self.key.check_cut(&chain, &mark) {
                continue;
            }
            let mut rows = Vec::new();
            let gather = |place, keys| {
                rows.push((place, keys));
                Ok(())
            };
            cuts::leftovers(self.connection, &chain, mark.place.sequence, room, gather)?;
            for (place, keys) in rows {
                for key in keys {
                    self.execute(
                        "DELETE FROM audit_keys WHERE key = ?1 AND kind = ?2 AND at = ?3 AND place = ?4",
                        (key.key, key.kind, key.at, key.place),
                    )?;
                }
                self.execute("DELETE FROM audit WHERE place = ?1", [place])?;
                self.execute("DELETE FROM audit_seals WHERE place = ?1", [place])?;
                removed = removed.saturating_add(1);
            }
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        crypto::chain::ChainKey,
        model::{Action, Stamp},
        store::{AuditStore, Store},
    };

    /// B04: the file gets smaller by what was removed, a bounded part at a time.
    #[tokio::test]
    async fn the_file_shrinks_after_a_cut() {
        let dir = tempfile::tempdir().unwrap();
        let key = ChainKey::new([1; 32]);
        let store = Embedded::open(dir.path(), "node", key.clone()).unwrap();
        let event = |at| Stamp::internal(Timestamp::from_millis(at)).done(Action::TokenIssued, "x");
        for at in 1..=6_000 {
            store.append_soon(event(at)).await.unwrap();
        }
        store.append(event(6_001)).await.unwrap();
        let pages = |connection: &Connection| {
            Ok(connection.query_row("PRAGMA page_count", [], |row| row.get::<_, i64>(0))?)
        };
        let place = store.sealed_place("node", 0, Timestamp::from_millis(4_000), 9_000).await;
        let mark = key.mark_cut("node", place.unwrap().unwrap());
        store.cut("node", 0, &mark, event(6_002)).await.unwrap();
        while store.remove_cut(Timestamp::EPOCH, 500).await.unwrap() > 0 {}
        let before = store.read(pages).await.unwrap();
        assert!(!store.shrink().await.unwrap(), "little is free: it is used again");
        let mut steps = 1;
        while store.shrink_to(0).await.unwrap() {
            steps += 1;
        }
        let after = store.read(pages).await.unwrap();
        assert!(after * 3 < before * 2, "{before} {after}");
        assert!(i64::from(steps) >= (before - after) / PAGES_AT_ONCE);
        assert!(store.check().await.unwrap().is_intact());
        store.close().await.unwrap();
        let length = std::fs::metadata(dir.path().join("jeton.db")).unwrap().len();
        assert_eq!(length, after.unsigned_abs() * 4_096);
    }
}
