//! Marks of cuts and sealed places: see `store::retention`.

use std::{collections::BTreeMap, sync::Arc};

use rusqlite::{Connection, OptionalExtension, Params, Row};

use super::{
    index::{self, KeyRow},
    names::{self, id_of},
    places::{first_place, place_of, sequence_of},
};
use crate::{
    crypto::chain::{ChainKey, ChainPlace, CutMark},
    model::Timestamp,
    store::{
        Surplus,
        embedded::engine::{
            batch::{from_sql, to_sql},
            error::SqliteError,
        },
    },
};

/// Interval of sealed places in a chain. The writer seals them as it appends: it knows the hash
/// without reading the chain again.
pub(crate) const SEALED_EVERY: u64 = 1_000;

/// Returns the mark of a chain, valid or not.
pub(crate) fn mark(connection: &Connection, chain: &str) -> Result<Option<CutMark>, SqliteError> {
    let sql = "SELECT chain, sequence, hash, at, seal FROM audit_cuts WHERE chain = ?1";
    Ok(read(connection, sql, [chain])?.into_iter().next().map(|(_, mark)| mark))
}

/// Returns the marks of all chains, valid or not.
pub(crate) fn marks(connection: &Connection) -> Result<Vec<(Arc<str>, CutMark)>, SqliteError> {
    read(connection, "SELECT chain, sequence, hash, at, seal FROM audit_cuts ORDER BY chain", [])
}

fn read(
    connection: &Connection,
    sql: &str,
    parameters: impl Params,
) -> Result<Vec<(Arc<str>, CutMark)>, SqliteError> {
    let mut statement = connection.prepare_cached(sql)?;
    let read = |row: &Row<'_>| {
        let at = Timestamp::from_millis(row.get(3)?);
        let place = ChainPlace { sequence: from_sql(row.get(1)?), hash: row.get(2)?, at };
        Ok((row.get(0)?, CutMark { place, seal: row.get(4)? }))
    };
    Ok(statement.query_map(parameters, read)?.collect::<rusqlite::Result<_>>()?)
}

/// Returns the sequence of the mark of a chain; 0 for a whole chain.
pub(crate) fn cut_at(connection: &Connection, chain: &str) -> Result<u64, SqliteError> {
    Ok(mark(connection, chain)?.map_or(0, |mark| mark.place.sequence))
}

/// Returns the place of the mark of each chain, by the ids of the chains.
pub(crate) fn places(connection: &Connection) -> Result<BTreeMap<i64, i64>, SqliteError> {
    let sql = "SELECT id, sequence FROM audit_cuts JOIN audit_chains ON name = chain";
    let mut statement = connection.prepare_cached(sql)?;
    let place = |row: &Row<'_>| {
        let id = row.get(0)?;
        Ok((id, place_of(id, from_sql(row.get(1)?))))
    };
    Ok(statement.query_map([], place)?.collect::<rusqlite::Result<_>>()?)
}

/// Returns the newest sealed place of a chain between two sequences that is not newer than a time.
pub(crate) fn sealed(
    connection: &Connection,
    chain: &str,
    (after, last): (u64, u64),
    until: Timestamp,
    key: &ChainKey,
) -> Result<Option<ChainPlace>, SqliteError> {
    let Some(id) = id_of(connection, chain)? else { return Ok(None) };
    let sql = "SELECT place, at, hash, seal FROM audit_seals
               WHERE place > ?1 AND place <= ?2 AND at <= ?3 ORDER BY place DESC LIMIT 1";
    let bounds = (place_of(id, after), place_of(id, last), until.millis());
    let found = connection.prepare_cached(sql)?.query_row(bounds, |row| {
        let at = Timestamp::from_millis(row.get(1)?);
        let place = ChainPlace { sequence: sequence_of(row.get(0)?), hash: row.get(2)?, at };
        Ok((place, row.get::<_, Vec<u8>>(3)?))
    });
    let Some((place, seal)) = found.optional()? else { return Ok(None) };
    if key.check_place(chain, &place, &seal) {
        return Ok(Some(place));
    }
    let sequence = place.sequence;
    Err(SqliteError::Malformed(format!(
        "audit record {sequence}: the seal of its place is invalid"
    )))
}

/// Returns the oldest `records` records, rounded up to sealed places, in all chains.
pub(crate) fn oldest(
    connection: &Connection,
    records: u64,
) -> Result<Option<Surplus>, SqliteError> {
    let places = records.div_ceil(SEALED_EVERY);
    let sql = "SELECT max(at) FROM (SELECT at FROM audit_seals ORDER BY at LIMIT ?1)";
    let at: Option<i64> =
        connection.prepare_cached(sql)?.query_row([to_sql(places)], |row| row.get(0))?;
    let records = places.saturating_mul(SEALED_EVERY);
    Ok(at.map(|at| Surplus { until: Timestamp::from_millis(at), records }))
}

/// Visits up to `limit` rows that a cut left below the mark of a chain, with their keys.
pub(crate) fn leftovers(
    connection: &Connection,
    chain: &str,
    mark: u64,
    limit: i64,
    mut visit: impl FnMut(i64, Vec<KeyRow>) -> Result<(), SqliteError>,
) -> Result<usize, SqliteError> {
    let Some(id) = names::id_of(connection, chain)? else { return Ok(0) };
    let sql = "SELECT place, event FROM audit WHERE place >= ?1 AND place <= ?2
               ORDER BY place LIMIT ?3";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query((first_place(id), place_of(id, mark), limit))?;
    let mut count = 0_usize;
    while let Some(row) = rows.next()? {
        let place = row.get(0)?;
        let event = serde_json::from_str(row.get_ref(1)?.as_str().unwrap_or_default());
        visit(place, event.map(|event| index::rows_of(&event, place)).unwrap_or_default())?;
        count = count.saturating_add(1);
    }
    Ok(count)
}
