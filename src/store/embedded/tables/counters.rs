//! Rate-limit counters: counted in memory, written with a commit at most a second later.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::{
    model::Timestamp,
    store::{
        CounterStore, Result,
        embedded::{
            Embedded,
            engine::{
                batch::{Batch, ClosureJob, Priority, from_sql, to_sql},
                error::SqliteError,
            },
        },
    },
};

/// Counters by the end of their window.
#[derive(Default)]
pub(crate) struct Counters(Mutex<Windows>);

#[derive(Default)]
struct Windows {
    values: BTreeMap<Timestamp, HashMap<String, u64>>,
    /// Counters that differ from the table; one may be listed twice.
    unwritten: Vec<(Timestamp, String)>,
}

impl Counters {
    pub(crate) fn load(connection: &Connection) -> Result<Self, SqliteError> {
        let mut windows = Windows::default();
        let mut statement = connection.prepare("SELECT until, id, value FROM counters")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        for row in rows {
            let (until, id, value) = row?;
            windows
                .values
                .entry(Timestamp::from_millis(until))
                .or_default()
                .insert(id, from_sql(value));
        }
        Ok(Self(Mutex::new(windows)))
    }

    /// Adds to counters; also returns true if everything had been written before.
    fn hit(&self, hits: &[(String, u64)], until: Timestamp) -> (Vec<u64>, bool) {
        let mut windows = self.lock();
        let Windows { values, unwritten } = &mut *windows;
        let window = values.entry(until).or_default();
        let first = unwritten.is_empty();
        let stand = |(id, by): &(String, u64)| {
            let value = window.entry(id.clone()).or_default();
            *value = value.saturating_add(*by);
            unwritten.push((until, id.clone()));
            *value
        };
        (hits.iter().map(stand).collect(), first)
    }

    pub(crate) fn has_unwritten(&self) -> bool {
        !self.lock().unwritten.is_empty()
    }

    /// Writes the unwritten counters; returns them for [`Self::mark_unwritten`] in case the batch
    /// is not committed.
    pub(crate) fn write(
        &self,
        connection: &Connection,
    ) -> Result<Vec<(Timestamp, String)>, SqliteError> {
        let mut windows = self.lock();
        let mut changed = mem::take(&mut windows.unwritten);
        changed.sort_unstable();
        changed.dedup();
        let values: Vec<Option<u64>> = changed
            .iter()
            .map(|(until, id)| windows.values.get(until).and_then(|window| window.get(id)).copied())
            .collect();
        // Counting goes on while the rows are written.
        drop(windows);
        let write = || {
            let mut statement = connection.prepare_cached(
                "INSERT OR REPLACE INTO counters (until, id, value) VALUES (?1, ?2, ?3)",
            )?;
            for ((until, id), value) in changed.iter().zip(&values) {
                if let Some(value) = value {
                    statement.execute((until.millis(), id, to_sql(*value)))?;
                }
            }
            Ok::<_, SqliteError>(())
        };
        match write() {
            Ok(()) => Ok(changed),
            Err(fault) => {
                self.mark_unwritten(changed);
                Err(fault)
            }
        }
    }

    pub(crate) fn mark_unwritten(&self, mut unwritten: Vec<(Timestamp, String)>) {
        self.lock().unwritten.append(&mut unwritten);
    }

    fn drop_expired(&self, now: Timestamp) -> usize {
        let mut windows = self.lock();
        let still =
            windows.values.split_off(&Timestamp::from_millis(now.millis().saturating_add(1)));
        let gone = mem::replace(&mut windows.values, still);
        gone.values().map(HashMap::len).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Windows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl CounterStore for Embedded {
    async fn count(&self, hits: &[(String, u64)], until: Timestamp) -> Result<Vec<u64>> {
        if self.shared.has_failed() {
            return Err(SqliteError::Failed.into());
        }
        self.writer.check_open()?;
        let (values, first) = self.shared.counters.hit(hits, until);
        if first {
            // Wakes the writer, which otherwise would sleep until the next verb.
            let (reply, _) = oneshot::channel();
            self.writer.nudge(Box::new(ClosureJob::new(
                Priority::Background,
                |_: &mut Batch<'_>| Ok(()),
                reply,
            )))?;
        }
        Ok(values)
    }
}

impl Embedded {
    /// Deletes counters whose window has ended.
    pub(super) async fn sweep_counters(&self, now: Timestamp) -> Result<usize> {
        let gone = self.shared.counters.drop_expired(now);
        let until = now.millis();
        self.write(Priority::Normal, move |batch| {
            batch.execute("DELETE FROM counters WHERE until <= ?1", (until,))
        })
        .await?;
        Ok(gone)
    }
}
