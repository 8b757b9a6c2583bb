//! Writes of audit records.

use std::sync::Arc;

use super::{
    cuts,
    index::{self, KeyRow},
    names, places,
};
use crate::{
    crypto::chain::{self, ChainPlace},
    model::Record,
    store::embedded::engine::{
        batch::{Batch, EventText, HeadRow},
        error::SqliteError,
    },
};

/// Number of ids of chains that the writer remembers.
const CHAIN_IDS_MAX: usize = 16;

/// Number of keys that are gathered before they are written.
const GATHERED_MAX: usize = 4_096;

impl Batch<'_> {
    /// Appends a record to the own chain.
    pub(crate) fn append(&mut self, entry: &EventText) -> Result<(), SqliteError> {
        let HeadRow { chain, sequence, hash, .. } = &self.post_commit.state;
        let (chain, sequence) = (chain.clone(), sequence.saturating_add(1));
        let hash = chain::link(hash, sequence, self.node, entry.body.as_bytes());
        self.insert_record(&chain, sequence, &self.node.clone(), hash, entry)
    }

    pub(crate) fn append_all(&mut self, entries: &[EventText]) -> Result<(), SqliteError> {
        entries.iter().try_for_each(|entry| self.append(entry))
    }

    /// Inserts a record after the last one of a chain, the own or an imported one.
    pub(crate) fn insert_record(
        &mut self,
        chain: &Arc<str>,
        sequence: u64,
        node: &Arc<str>,
        hash: [u8; 32],
        entry: &EventText,
    ) -> Result<(), SqliteError> {
        let place = places::place_of(self.chain_id(chain)?, sequence);
        self.execute(
            "INSERT INTO audit (place, kind, node, hash, event) VALUES (?1, ?2, ?3, ?4, ?5)",
            (place, index::kind(&entry.event), self.node_id(chain, node)?, hash, &entry.body),
        )?;
        if sequence.is_multiple_of(cuts::SEALED_EVERY) {
            let sealed = ChainPlace { sequence, hash, at: entry.event.at };
            let seal = self.key.seal_place(chain, &sealed);
            self.execute(
                "INSERT OR REPLACE INTO audit_seals (place, at, hash, seal) VALUES (?1, ?2, ?3, ?4)",
                (place, sealed.at.millis(), hash, seal),
            )?;
        }
        self.post_commit.keys.extend(index::rows_of(&entry.event, place));
        let state = &mut self.post_commit.state;
        state.newest_time = state.newest_time.max(entry.event.at);
        if state.chain != *chain {
            return Ok(());
        }
        if state.node != *node {
            state.node = node.clone();
        }
        state.sequence = sequence;
        state.hash = hash;
        if self.has_tail_readers {
            let (chain, node) = (chain.clone(), node.clone());
            self.post_commit.records.push(Arc::new(Record {
                chain,
                sequence,
                node,
                event: entry.event.clone(),
                hash,
            }));
        }
        Ok(())
    }

    /// Returns the id of a chain, a new one for a new chain. Ids have the order of the names, and
    /// so have places: an import has its chains in that order, and the own one fits in between.
    pub(crate) fn chain_id(&mut self, name: &Arc<str>) -> Result<i64, SqliteError> {
        if let Some((_, id)) = self.post_commit.chain_ids.iter().find(|(of, _)| of == name) {
            return Ok(*id);
        }
        let id = match names::id_of(self.connection, name)? {
            Some(id) => id,
            None => {
                let before = names::id_before(self.connection, name)?;
                let sql = "SELECT id FROM audit_chains WHERE name > ?1 ORDER BY name LIMIT 1";
                let after: Option<i64> = self.row(sql, [name.as_ref()], |row| row.get(0))?;
                let id = after.map_or(before + 2, |after| i64::midpoint(before, after));
                self.execute(
                    "INSERT INTO audit_chains (id, name) VALUES (?1, ?2)",
                    (id, name.as_ref()),
                )?;
                id
            }
        };
        let ids = &mut self.post_commit.chain_ids;
        if ids.len() >= CHAIN_IDS_MAX {
            ids.clear();
        }
        ids.push((name.clone(), id));
        Ok(id)
    }

    /// Returns the id of a node in records of the chain: `None` if the chain has its name.
    pub(crate) fn node_id(&self, chain: &str, node: &str) -> Result<Option<i64>, SqliteError> {
        if chain == node {
            return Ok(None);
        }
        let sql = "SELECT id FROM audit_nodes WHERE name = ?1";
        if let Some(id) = self.row(sql, [node], |row| row.get(0))? {
            return Ok(Some(id));
        }
        self.execute("INSERT INTO audit_nodes (name) VALUES (?1)", [node])?;
        Ok(Some(self.connection.last_insert_rowid()))
    }

    /// Writes the gathered keys if they are many, or if records of other chains are among them. Not on
    /// the reserve of a full disk, which many pages of an index would use up: lists find records
    /// without keys too.
    pub(crate) fn write_keys(
        &mut self,
        gathered: &[KeyRow],
        own: Option<i64>,
    ) -> Result<(), SqliteError> {
        if self.reserve_only {
            return Ok(());
        }
        let new = &self.post_commit.keys;
        let is_own = |row: &KeyRow| own.is_some_and(|own| places::chain_of(row.place) == own);
        if gathered.len().saturating_add(new.len()) < GATHERED_MAX && new.iter().all(is_own) {
            return Ok(());
        }
        let mut rows = [gathered, new].concat();
        rows.sort_unstable();
        for KeyRow { key, kind, at, place } in rows {
            self.execute(
                "INSERT OR REPLACE INTO audit_keys (key, kind, at, place) VALUES (?1, ?2, ?3, ?4)",
                (key, kind, at, place),
            )?;
        }
        if let Some(own) = own {
            let last = places::place_of(own, self.post_commit.state.sequence);
            self.execute("INSERT OR REPLACE INTO audit_keyed (id, place) VALUES (1, ?1)", [last])?;
        }
        self.post_commit.are_keys_written = true;
        Ok(())
    }
}
