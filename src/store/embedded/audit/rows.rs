//! Rows of audit records.

use std::sync::Arc;

use rusqlite::{Connection, Params, Row};

use crate::{
    model::{Event, Place, Record, Timestamp},
    store::embedded::engine::{
        batch::from_sql,
        error::{Fault, ascending},
    },
};

/// A stored record as it lies there.
pub(crate) struct Raw {
    pub(crate) sequence: u64,
    pub(crate) node: Arc<str>,
    pub(crate) hash: [u8; 32],
    pub(crate) body: String,
}

impl Raw {
    /// A row. What is not of the form that it was written in is empty here: neither hash nor event
    /// are then right.
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

    /// The record as readers are shown it.
    pub(super) fn shown(self, chain: &Arc<str>) -> Record {
        // As the tables read the time: see `schema`.
        let at = self.body.get(6..).map_or("", |rest| {
            rest.split(|c: char| !c.is_ascii_digit() && c != '-').next().unwrap_or("")
        });
        let at = Timestamp::from_millis(at.parse().unwrap_or_default());
        let place = Place { at, chain: chain.clone(), sequence: self.sequence };
        self.record(chain).unwrap_or_else(|_| Record::unreadable(place))
    }

    pub(crate) fn record(self, chain: &Arc<str>) -> Result<Record, Fault> {
        let event: Event = serde_json::from_str(&self.body).map_err(|_| {
            Fault::Row(format!("audit record {}: the event is unreadable", self.sequence))
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

/// Shows what a query finds behind `after`; rows that are not in their order are damage.
pub(super) fn show_rows<E: From<Fault>>(
    connection: &Connection,
    sql: &str,
    parameters: impl Params,
    after: u64,
    mut show: impl FnMut(Raw) -> Result<(), E>,
) -> Result<(), E> {
    let fault = |error: rusqlite::Error| E::from(Fault::from(error));
    let mut statement = connection.prepare_cached(sql).map_err(fault)?;
    let mut rows = statement.query(parameters).map_err(fault)?;
    let mut last = after;
    while let Some(row) = rows.next().map_err(fault)? {
        let raw = Raw::read(row).map_err(fault)?;
        ascending(Some(last), [raw.sequence])?;
        last = raw.sequence;
        show(raw)?;
    }
    Ok(())
}
