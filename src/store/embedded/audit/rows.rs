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

    /// Decodes the record. An event that is written in another way than a node writes it is
    /// unreadable: filters read the stored text, and would pass over it.
    pub(crate) fn record(self, chain: &Arc<str>) -> Result<Record, SqliteError> {
        let event = serde_json::from_str::<Event>(&self.body).ok();
        let event = event
            .filter(|event| serde_json::to_string(event).is_ok_and(|written| written == self.body));
        let event = event.ok_or_else(|| {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Action, Stamp};

    /// AZ6: an event in other words is no record, also where they mean the same.
    #[test]
    fn an_event_is_read_as_it_is_written_only() {
        let event = Stamp::internal(Timestamp::EPOCH).done(Action::ServerStarted, "");
        let body = serde_json::to_string(&event).unwrap();
        let record = |body: String| {
            let stored = StoredRecord { sequence: 1, node: "a".into(), hash: [0; 32], body };
            stored.record(&"a".into())
        };
        assert_eq!(record(body.clone()).unwrap().event, event);
        let spaced = body.replacen('{', "{ ", 1);
        let payload = body.replace("\"actor\":\"node\"", "\"actor\":{\"node\":null}");
        let longer = body.replacen('}', ",\"more\":1}", 1);
        for other in [spaced, payload, longer] {
            assert!(other != body && record(other.clone()).is_err(), "{other}");
        }
    }
}
