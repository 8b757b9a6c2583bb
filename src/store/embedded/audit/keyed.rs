//! The written keys of records, and the records whose keys are not written: see `index`.

use rusqlite::Connection;

use super::{
    index::{KeyRow, rows_of},
    names,
    places::{first_place, last_place},
};
use crate::store::embedded::engine::error::SqliteError;

/// Returns the place of the last record of the own chain whose keys are written; 0: none.
pub(crate) fn keyed(connection: &Connection) -> Result<i64, SqliteError> {
    let sql = "SELECT coalesce(max(place), 0) FROM audit_keyed";
    Ok(connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
}

/// Visits the records of the own chain whose keys are not written.
pub(super) fn unkeyed(
    connection: &Connection,
    own: i64,
    mut visit: impl FnMut(i64, &rusqlite::Row<'_>) -> Result<(), SqliteError>,
) -> Result<(), SqliteError> {
    let after = keyed(connection)?.max(first_place(own) - 1);
    let sql = "SELECT place, kind, node, hash, event, at FROM audit
               WHERE place > ?1 AND place <= ?2 ORDER BY place";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query((after, last_place(own)))?;
    while let Some(row) = rows.next()? {
        visit(row.get(0)?, row)?;
    }
    Ok(())
}

/// Reads the keys of the own chain that are not written yet.
pub(crate) fn gathered(connection: &Connection, chain: &str) -> Result<Vec<KeyRow>, SqliteError> {
    let mut rows = Vec::new();
    if let Some(own) = names::id_of(connection, chain)? {
        unkeyed(connection, own, |place, row| {
            // One that cannot be decoded has no keys.
            if let Ok(event) = serde_json::from_str(row.get_ref(4)?.as_str().unwrap_or_default()) {
                rows.extend(rows_of(&event, place));
            }
            Ok(())
        })?;
    }
    Ok(rows)
}

/// Compares `audit_keys` with the records: returns the sum of the marks of its rows.
pub(crate) fn marks(connection: &Connection) -> Result<u64, SqliteError> {
    let mut statement = connection.prepare("SELECT key, kind, at, place FROM audit_keys")?;
    let (mut rows, mut sum) = (statement.query([])?, 0_u64);
    while let Some(row) = rows.next()? {
        sum = sum.wrapping_add(KeyRow::read(row)?.mark());
    }
    Ok(sum)
}
