//! Names of chains and nodes, and the ids that records have instead.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension};

use crate::store::embedded::engine::error::SqliteError;

/// Returns the id of a chain that has, or had, records.
pub(crate) fn id_of(connection: &Connection, name: &str) -> Result<Option<i64>, SqliteError> {
    let sql = "SELECT id FROM audit_chains WHERE name = ?1";
    Ok(connection.prepare_cached(sql)?.query_row([name], |row| row.get(0)).optional()?)
}

/// Returns the greatest id of the chains whose names are before `name`; 0: there is none.
pub(crate) fn id_before(connection: &Connection, name: &str) -> Result<i64, SqliteError> {
    let sql = "SELECT id FROM audit_chains WHERE name < ?1 ORDER BY name DESC LIMIT 1";
    let found = connection.prepare_cached(sql)?.query_row([name], |row| row.get(0)).optional()?;
    Ok(found.unwrap_or(0))
}

/// Returns the name of a chain; `None` for an id of none.
pub(crate) fn name_of(connection: &Connection, id: i64) -> Result<Option<Arc<str>>, SqliteError> {
    let sql = "SELECT name FROM audit_chains WHERE id = ?1";
    Ok(connection.prepare_cached(sql)?.query_row([id], |row| row.get(0)).optional()?)
}

/// Returns the name of a node that is no chain's; empty for an id of none.
pub(crate) fn node_name(connection: &Connection, id: i64) -> Result<Arc<str>, SqliteError> {
    let sql = "SELECT name FROM audit_nodes WHERE id = ?1";
    let found = connection.prepare_cached(sql)?.query_row([id], |row| row.get(0)).optional()?;
    Ok(found.unwrap_or_else(|| "".into()))
}
