//! Audit chains of other nodes. They came with an import and do not grow; each end is sealed under
//! this store's key in a row of its own, and all those rows are in the tally, so that none can go
//! unnoticed.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row};

use super::rows::{Raw, show_rows};

use crate::{
    crypto::chain::{Claim, Head},
    model::Timestamp,
    store::embedded::{
        engine::{
            batch::{Batch, Entry, from_sql, to_sql},
            error::Fault,
        },
        integrity::checksum::Tally,
    },
};

/// Names of all that have records or an end, in the order of their bytes. One chain may have very
/// many records: each name is looked up behind the one before.
pub(crate) fn names(connection: &Connection) -> Result<Vec<Arc<str>>, Fault> {
    let sql = "WITH RECURSIVE names(chain) AS (
                   SELECT min(chain) FROM other_records
                   UNION ALL SELECT (SELECT min(chain) FROM other_records WHERE chain > names.chain) FROM names
                   WHERE chain IS NOT NULL
               )
               SELECT chain FROM names WHERE chain IS NOT NULL UNION SELECT chain FROM other_heads ORDER BY 1";
    let mut statement = connection.prepare_cached(sql)?;
    Ok(statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
}

/// Shows records of a chain in order.
pub(crate) fn walk<E: From<Fault>>(
    connection: &Connection,
    chain: &str,
    after: u64,
    limit: usize,
    show: impl FnMut(Raw) -> Result<(), E>,
) -> Result<(), E> {
    let sql =
        "SELECT sequence, node, hash, event FROM other_records WHERE chain = ?1 AND sequence > ?2
               ORDER BY sequence LIMIT ?3";
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    show_rows(connection, sql, (chain, to_sql(after), limit), after, show)
}

/// The next record of a chain whose event holds a text.
pub(super) fn next_with(
    connection: &Connection,
    chain: &str,
    after: u64,
    text: &str,
) -> Result<Option<Raw>, Fault> {
    let sql =
        "SELECT sequence, node, hash, event FROM other_records WHERE chain = ?1 AND sequence > ?2
               AND instr(event, ?3) > 0 ORDER BY sequence LIMIT 1";
    Ok(connection
        .prepare_cached(sql)?
        .query_row((chain, to_sql(after), text), Raw::read)
        .optional()?)
}

/// Of a chain whose node had stopped without closing it when it was exported.
const OPEN: Claim = Claim::Open { at: Timestamp::EPOCH };

fn read_head(row: &Row<'_>) -> rusqlite::Result<(Arc<str>, Head)> {
    let (node, sequence) = (row.get(1)?, from_sql(row.get(2)?));
    let claim = if row.get(5)? { OPEN } else { Claim::Closed };
    let head = Head { node, sequence, hash: row.get(3)?, claim, seal: row.get(4)? };
    Ok((row.get(0)?, head))
}

/// The sealed end of a chain.
pub(crate) fn head(connection: &Connection, chain: &str) -> Result<Option<Head>, Fault> {
    let sql = "SELECT chain, node, sequence, hash, seal, open FROM other_heads WHERE chain = ?1";
    let row = connection.prepare_cached(sql)?.query_row([chain], read_head).optional()?;
    Ok(row.map(|(_, head)| head))
}

/// Every sealed end, with its chain.
pub(crate) fn heads(connection: &Connection) -> Result<Vec<(Arc<str>, Head)>, Fault> {
    let mut statement = connection.prepare_cached(
        "SELECT chain, node, sequence, hash, seal, open FROM other_heads ORDER BY chain",
    )?;
    Ok(statement.query_map([], read_head)?.collect::<rusqlite::Result<_>>()?)
}

/// Adds every sealed end to a tally.
pub(crate) fn add_to(tally: &mut Tally, connection: &Connection) -> Result<(), Fault> {
    heads(connection)?.iter().for_each(|(chain, head)| add(tally, chain, head));
    Ok(())
}

fn add(tally: &mut Tally, chain: &str, head: &Head) {
    let sequence = head.sequence.to_be_bytes();
    tally.add(
        "other_heads",
        &[chain.as_bytes(), head.node.as_bytes(), &sequence, &head.hash, &head.seal],
    );
}

impl Batch<'_> {
    /// Puts a record behind the last one of another node's chain.
    pub(crate) fn keep_other(
        &mut self,
        chain: &str,
        sequence: u64,
        node: &str,
        hash: [u8; 32],
        entry: &Entry,
    ) -> Result<(), Fault> {
        self.execute(
            "INSERT INTO other_records (chain, sequence, node, hash, event) VALUES (?1, ?2, ?3, \
             ?4, ?5)",
            (chain, to_sql(sequence), node, hash, &entry.body),
        )?;
        let newest = &mut self.effects.state.newest;
        *newest = (*newest).max(entry.event.at);
        Ok(())
    }

    /// Seals the end of another node's chain; one that was left open stays so.
    pub(crate) fn seal_other(
        &mut self,
        chain: &str,
        sequence: u64,
        hash: [u8; 32],
        open: bool,
    ) -> Result<(), Fault> {
        let head =
            self.key.seal(self.node, sequence, hash, if open { OPEN } else { Claim::Closed });
        self.execute(
            "INSERT INTO other_heads (chain, node, sequence, hash, seal, open) VALUES (?1, ?2, ?3, \
             ?4, ?5, ?6)",
            (chain, head.node.as_ref(), to_sql(sequence), head.hash, head.seal, open),
        )?;
        add(&mut self.effects.state.tally, chain, &head);
        Ok(())
    }
}
