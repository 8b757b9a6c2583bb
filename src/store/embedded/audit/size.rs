//! Size and growth of the trail, without a scan: sequences have no gaps, and times ascend along a
//! chain but for steps of the clock.

use rusqlite::{Connection, OptionalExtension};

use super::{
    cuts, names,
    places::{place_of, sequence_of},
};
use crate::{
    model::Timestamp,
    store::{
        GROWTH_SPAN, TrailSize,
        embedded::engine::{batch::from_sql, error::SqliteError},
    },
};

/// Bytes of a record beside its event: hash, place and the rows of the indexes, as measured.
const OVERHEAD_BYTES: u64 = 190;

/// Number of records from which the length of an event is taken.
const SAMPLE: u64 = 100;

/// Returns the size of the trail, and what the own chain added until `now`.
pub(crate) fn of_trail(connection: &Connection, now: Timestamp) -> Result<TrailSize, SqliteError> {
    let mut size = TrailSize::default();
    let mut statement = connection.prepare_cached("SELECT chain, sequence FROM heads")?;
    let heads = statement.query_map([], |row| Ok((row.get(0)?, from_sql(row.get(1)?))))?;
    for (chain, last) in heads.collect::<rusqlite::Result<Vec<(String, u64)>>>()? {
        let first = match names::id_of(connection, &chain)? {
            Some(id) => first_of(connection, &chain, id, last)?,
            None => None,
        };
        let first = first.unwrap_or(last);
        size.records = size.records.saturating_add(last.saturating_sub(first).saturating_add(1));
    }
    let sql = "SELECT chain, sequence FROM head WHERE id = 1 AND sequence > 0";
    let own: Option<(String, i64)> = connection
        .prepare_cached(sql)?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((chain, last)) = own else { return Ok(size) };
    let (Some(id), last) = (names::id_of(connection, &chain)?, from_sql(last)) else {
        return Ok(size);
    };
    let sample = (place_of(id, last.saturating_sub(SAMPLE)), place_of(id, last));
    let sql = "SELECT coalesce(avg(length(event)), 0) FROM audit WHERE place > ?1 AND place <= ?2";
    let event: f64 = connection.prepare_cached(sql)?.query_row(sample, |row| row.get(0))?;
    size.record_bytes = (event as u64).saturating_add(OVERHEAD_BYTES);
    let Some(first) = first_of(connection, &chain, id, last)? else { return Ok(size) };
    let since = now - GROWTH_SPAN;
    let at = |sequence| at(connection, place_of(id, sequence));
    // The first record that is not older than the span, by halves.
    let (mut low, mut high) = (first, last.saturating_add(1));
    while low < high {
        let middle = low.midpoint(high);
        if at(middle)?.is_some_and(|at| at >= since) {
            high = middle;
        } else {
            low = middle.saturating_add(1);
        }
    }
    size.recent = last.saturating_add(1).saturating_sub(low);
    let oldest = if low > first { Some(since) } else { at(first)? };
    size.recent_ms = oldest.map_or(0, |oldest| millis(now.since(oldest)));
    Ok(size)
}

/// Returns the sequence of the first record of a chain behind its cut.
fn first_of(
    connection: &Connection,
    chain: &str,
    id: i64,
    last: u64,
) -> Result<Option<u64>, SqliteError> {
    let cut = cuts::cut_at(connection, chain)?;
    let sql = "SELECT place FROM audit WHERE place > ?1 AND place <= ?2 ORDER BY place LIMIT 1";
    let mut statement = connection.prepare_cached(sql)?;
    let found = statement.query_row((place_of(id, cut), place_of(id, last)), |row| row.get(0));
    Ok(found.optional()?.map(sequence_of))
}

fn at(connection: &Connection, place: i64) -> Result<Option<Timestamp>, SqliteError> {
    let mut statement = connection.prepare_cached("SELECT at FROM audit WHERE place = ?1")?;
    let found = statement.query_row([place], |row| row.get(0)).optional()?;
    Ok(found.map(Timestamp::from_millis))
}

fn millis(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
