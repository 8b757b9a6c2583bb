//! Audit chains: records by chain and sequence, chained by hash, and the sealed head of each chain.
//!
//! | chain | grows | head |
//! |--|--|--|
//! | own | with every change of this store | row `head`, sealed with every commit |
//! | imported | never | table `imported_heads`, sealed once under this store's key |
//!
//! The own chain has the name of the node that wrote its first record, an imported one that of
//! another node.
//! The set checksum covers the rows of `imported_heads`, so that a missing one is noticed.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Params, Row};

use super::{
    cuts,
    names::id_of,
    places::{last_place, place_of},
    rows::StoredRecord,
};
use crate::{
    crypto::chain::{Claim, Head},
    model::Record,
    store::embedded::{
        engine::{
            batch::{Batch, OPEN, from_sql, to_sql},
            error::{SqliteError, check_ascending},
        },
        integrity::checksum::SetChecksum,
    },
};

/// Returns the name of the store's own chain; `None` before its first record.
pub(crate) fn own(connection: &Connection) -> Result<Option<Arc<str>>, SqliteError> {
    let sql = "SELECT chain FROM head WHERE id = 1 AND sequence > 0";
    Ok(connection.prepare_cached(sql)?.query_row([], |row| row.get(0)).optional()?)
}

/// Returns the names of all chains, in byte order.
pub(crate) fn names(connection: &Connection) -> Result<Vec<Arc<str>>, SqliteError> {
    let sql = "SELECT name FROM audit_chains WHERE EXISTS (
                   SELECT 1 FROM audit WHERE place > id << 40 AND place < (id + 1) << 40)
               UNION SELECT chain FROM heads ORDER BY 1";
    let mut statement = connection.prepare_cached(sql)?;
    Ok(statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
}

/// Returns the sealed head of a chain; `None` if there is no such chain.
pub(crate) fn head(connection: &Connection, chain: &str) -> Result<Option<Head>, SqliteError> {
    let found =
        heads(connection, "SELECT * FROM heads WHERE chain = ?1", [chain])?.into_iter().next();
    Ok(found.map(|(_, head)| head))
}

/// Returns every sealed head of an imported chain, with its chain.
pub(crate) fn imported_heads(
    connection: &Connection,
) -> Result<Vec<(Arc<str>, Head)>, SqliteError> {
    heads(connection, "SELECT * FROM imported_heads ORDER BY chain", [])
}

fn heads(
    connection: &Connection,
    sql: &str,
    parameters: impl Params,
) -> Result<Vec<(Arc<str>, Head)>, SqliteError> {
    let mut statement = connection.prepare_cached(sql)?;
    Ok(statement.query_map(parameters, read_head)?.collect::<rusqlite::Result<_>>()?)
}

fn read_head(row: &Row<'_>) -> rusqlite::Result<(Arc<str>, Head)> {
    let claim = if row.get("open")? { OPEN } else { Claim::Closed };
    let (node, sequence) = (row.get("node")?, from_sql(row.get("sequence")?));
    let head = Head { node, sequence, hash: row.get("hash")?, claim, seal: row.get("seal")? };
    Ok((row.get("chain")?, head))
}

/// Visits records of a chain in order, those behind its cut.
pub(crate) fn walk<E: From<SqliteError>>(
    connection: &Connection,
    chain: &str,
    after: u64,
    limit: usize,
    mut visit: impl FnMut(StoredRecord) -> Result<(), E>,
) -> Result<(), E> {
    let fault = |error: rusqlite::Error| E::from(SqliteError::from(error));
    let Some(id) = id_of(connection, chain)? else { return Ok(()) };
    let after = after.max(cuts::cut_at(connection, chain)?);
    let sql = "SELECT place, kind, node, hash, event FROM audit WHERE place > ?1 AND place <= ?2
               ORDER BY place LIMIT ?3";
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut statement = connection.prepare_cached(sql).map_err(fault)?;
    let bounds = (place_of(id, after), last_place(id), limit);
    let mut rows = statement.query(bounds).map_err(fault)?;
    let (mut last, chain) = (after, chain.into());
    while let Some(row) = rows.next().map_err(fault)? {
        let stored = StoredRecord::read(connection, &chain, row)?;
        // Rows out of order are damage.
        check_ascending(Some(last), [stored.sequence])?;
        last = stored.sequence;
        visit(stored)?;
    }
    Ok(())
}

/// Returns records of a chain in order; fails if one cannot be decoded.
pub(crate) fn page(
    connection: &Connection,
    chain: &Arc<str>,
    after: u64,
    limit: usize,
) -> Result<Vec<Record>, SqliteError> {
    let mut records = Vec::new();
    walk(connection, chain, after, limit, |stored| {
        records.push(stored.record(chain)?);
        Ok::<_, SqliteError>(())
    })?;
    Ok(records)
}

/// Adds every head of an imported chain to the set checksum.
pub(crate) fn add_to(
    set_checksum: &mut SetChecksum,
    connection: &Connection,
) -> Result<(), SqliteError> {
    imported_heads(connection)?.iter().for_each(|(chain, head)| add(set_checksum, chain, head));
    Ok(())
}

fn add(set_checksum: &mut SetChecksum, chain: &str, head: &Head) {
    let sequence = head.sequence.to_be_bytes();
    set_checksum.add(
        "imported_heads",
        &[chain.as_bytes(), head.node.as_bytes(), &sequence, &head.hash, &head.seal],
    );
}

impl Batch<'_> {
    /// Seals the head of an imported chain. One that its node had not closed when it was exported
    /// stays open.
    pub(crate) fn seal_imported(
        &mut self,
        chain: &str,
        sequence: u64,
        hash: [u8; 32],
        open: bool,
    ) -> Result<(), SqliteError> {
        let claim = if open { OPEN } else { Claim::Closed };
        let head = self.key.seal(self.node, sequence, hash, claim);
        self.execute(
            "INSERT INTO imported_heads (chain, node, sequence, hash, seal, open) VALUES (?1, ?2, \
             ?3, ?4, ?5, ?6)",
            (chain, head.node.as_ref(), to_sql(sequence), head.hash, head.seal, open),
        )?;
        add(&mut self.post_commit.state.set_checksum, chain, &head);
        Ok(())
    }
}
