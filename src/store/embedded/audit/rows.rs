//! Rows of audit records.

use std::sync::Arc;

use rusqlite::{Connection, Params, Row};

use crate::{
    model::{Event, Place, Record, Timestamp},
    store::embedded::engine::{
        batch::from_sql,
        error::{SqliteError, check_ascending},
    },
};

/// Stored record, not decoded.
pub(crate) struct StoredRecord {
    pub(crate) sequence: u64,
    pub(crate) node: Arc<str>,
    pub(crate) hash: [u8; 32],
    pub(crate) body: String,
}

impl StoredRecord {
    /// Reads a row. A column of another type reads as empty: then neither hash nor event is right.
    pub(crate) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let sequence = from_sql(row.get(0)?);
        let text = |column| {
            Ok::<_, rusqlite::Error>(row.get_ref(column)?.as_str().unwrap_or_default().to_owned())
        };
        Ok(Self {
            sequence,
            node: text(1)?.into(),
            hash: row.get(2).unwrap_or_default(),
            body: text(3)?,
        })
    }

    /// Returns the record, or a placeholder if its event cannot be decoded.
    pub(super) fn record_or_unreadable(self, chain: &Arc<str>) -> Record {
        // As the generated column reads the time: see `schema`.
        let at = self.body.get(6..).map_or("", |rest| {
            rest.split(|c: char| !c.is_ascii_digit() && c != '-').next().unwrap_or("")
        });
        let at = Timestamp::from_millis(at.parse().unwrap_or_default());
        let place = Place { at, chain: chain.clone(), sequence: self.sequence };
        self.record(chain).unwrap_or_else(|_| Record::unreadable(place))
    }

    pub(crate) fn record(self, chain: &Arc<str>) -> Result<Record, SqliteError> {
        let event: Event = serde_json::from_str(&self.body).map_err(|_| {
            SqliteError::Malformed(format!(
                "audit record {}: the event is unreadable",
                self.sequence
            ))
        })?;
        Ok(Record {
            chain: chain.clone(),
            sequence: self.sequence,
            node: self.node,
            event,
            hash: self.hash,
        })
    }
}

/// Visits the rows of a query after `after`; rows out of order are damage.
pub(super) fn visit_rows<E: From<SqliteError>>(
    connection: &Connection,
    sql: &str,
    parameters: impl Params,
    after: u64,
    mut visit: impl FnMut(StoredRecord) -> Result<(), E>,
) -> Result<(), E> {
    let fault = |error: rusqlite::Error| E::from(SqliteError::from(error));
    let mut statement = connection.prepare_cached(sql).map_err(fault)?;
    let mut rows = statement.query(parameters).map_err(fault)?;
    let mut last = after;
    while let Some(row) = rows.next().map_err(fault)? {
        let stored = StoredRecord::read(row).map_err(fault)?;
        check_ascending(Some(last), [stored.sequence])?;
        last = stored.sequence;
        visit(stored)?;
    }
    Ok(())
}
