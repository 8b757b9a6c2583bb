//! Audit chains of other nodes. They were imported and do not grow; each head is sealed under this
//! store's key in a row of its own, and the set checksum covers all those rows, so that a missing
//! one is noticed.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row};

use super::rows::{StoredRecord, visit_rows};

use crate::{
    crypto::chain::{Claim, Head},
    model::Timestamp,
    store::embedded::{
        engine::{
            batch::{Batch, Entry, from_sql, to_sql},
            error::SqliteError,
        },
        integrity::checksum::SetChecksum,
    },
};

/// Returns the names of all imported chains, in byte order. A chain may have very many records:
/// each name is looked up after the one before.
pub(crate) fn names(connection: &Connection) -> Result<Vec<Arc<str>>, SqliteError> {
    let sql = "WITH RECURSIVE names(chain) AS (
                   SELECT min(chain) FROM other_records
                   UNION ALL SELECT (SELECT min(chain) FROM other_records WHERE chain > names.chain) FROM names
                   WHERE chain IS NOT NULL
               )
               SELECT chain FROM names WHERE chain IS NOT NULL UNION SELECT chain FROM other_heads ORDER BY 1";
    let mut statement = connection.prepare_cached(sql)?;
    Ok(statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
}

/// Visits records of a chain in order.
pub(crate) fn walk<E: From<SqliteError>>(
    connection: &Connection,
    chain: &str,
    after: u64,
    limit: usize,
    visit: impl FnMut(StoredRecord) -> Result<(), E>,
) -> Result<(), E> {
    let sql =
        "SELECT sequence, node, hash, event FROM other_records WHERE chain = ?1 AND sequence > ?2
               ORDER BY sequence LIMIT ?3";
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    visit_rows(connection, sql, (chain, to_sql(after), limit), after, visit)
}

/// Returns the next record of a chain whose event contains `text`.
pub(super) fn next_with(
    connection: &Connection,
    chain: &str,
    after: u64,
    text: &str,
) -> Result<Option<StoredRecord>, SqliteError> {
    let sql =
        "SELECT sequence, node, hash, event FROM other_records WHERE chain = ?1 AND sequence > ?2
               AND instr(event, ?3) > 0 ORDER BY sequence LIMIT 1";
    Ok(connection
        .prepare_cached(sql)?
        .query_row((chain, to_sql(after), text), StoredRecord::read)
        .optional()?)
}

/// Claim of a chain whose node had stopped without closing it when it was exported.
const OPEN: Claim = Claim::Open { at: Timestamp::EPOCH };

fn read_head(row: &Row<'_>) -> rusqlite::Result<(Arc<str>, Head)> {
    let (node, sequence) = (row.get(1)?, from_sql(row.get(2)?));
    let claim = if row.get(5)? { OPEN } else { Claim::Closed };
    let head = Head { node, sequence, hash: row.get(3)?, claim, seal: row.get(4)? };
    Ok((row.get(0)?, head))
}

/// Returns the sealed head of a chain.
pub(crate) fn head(connection: &Connection, chain: &str) -> Result<Option<Head>, SqliteError> {
    let sql = "SELECT chain, node, sequence, hash, seal, open FROM other_heads WHERE chain = ?1";
    let row = connection.prepare_cached(sql)?.query_row([chain], read_head).optional()?;
    Ok(row.map(|(_, head)| head))
}

/// Returns every sealed head with its chain.
pub(crate) fn heads(connection: &Connection) -> Result<Vec<(Arc<str>, Head)>, SqliteError> {
    let mut statement = connection.prepare_cached(
        "SELECT chain, node, sequence, hash, seal, open FROM other_heads ORDER BY chain",
    )?;
    Ok(statement.query_map([], read_head)?.collect::<rusqlite::Result<_>>()?)
}

/// Adds every sealed head to the set checksum.
pub(crate) fn add_to(
    set_checksum: &mut SetChecksum,
    connection: &Connection,
) -> Result<(), SqliteError> {
    heads(connection)?.iter().for_each(|(chain, head)| add(set_checksum, chain, head));
    Ok(())
}

fn add(set_checksum: &mut SetChecksum, chain: &str, head: &Head) {
    let sequence = head.sequence.to_be_bytes();
    set_checksum.add(
        "other_heads",
        &[chain.as_bytes(), head.node.as_bytes(), &sequence, &head.hash, &head.seal],
    );
}

impl Batch<'_> {
    /// Inserts a record after the last one of another node's chain.
    pub(crate) fn insert_imported(
        &mut self,
        chain: &str,
        sequence: u64,
        node: &str,
        hash: [u8; 32],
        entry: &Entry,
    ) -> Result<(), SqliteError> {
        self.execute(
            "INSERT INTO other_records (chain, sequence, node, hash, event) VALUES (?1, ?2, ?3, \
             ?4, ?5)",
            (chain, to_sql(sequence), node, hash, &entry.body),
        )?;
        let newest = &mut self.post_commit.state.newest_time;
        *newest = (*newest).max(entry.event.at);
        Ok(())
    }

    /// Seals the head of another node's chain; one that was left open stays so.
    pub(crate) fn seal_imported(
        &mut self,
        chain: &str,
        sequence: u64,
        hash: [u8; 32],
        open: bool,
    ) -> Result<(), SqliteError> {
        let head =
            self.key.seal(self.node, sequence, hash, if open { OPEN } else { Claim::Closed });
        self.execute(
            "INSERT INTO other_heads (chain, node, sequence, hash, seal, open) VALUES (?1, ?2, ?3, \
             ?4, ?5, ?6)",
            (chain, head.node.as_ref(), to_sql(sequence), head.hash, head.seal, open),
        )?;
        add(&mut self.post_commit.state.set_checksum, chain, &head);
        Ok(())
    }
}
