//! Rows of audit records.

use std::sync::Arc;

use rusqlite::{Connection, Row};

use super::{index, names, places};

use crate::{
    model::{Event, Place, Record, Timestamp},
    store::embedded::engine::error::SqliteError,
};

/// Stored record, not decoded.
pub(crate) struct StoredRecord {
    pub(crate) sequence: u64,
    /// Kind of the event, as its index has it.
    pub(crate) kind: i64,
    pub(crate) node: Arc<str>,
    pub(crate) hash: [u8; 32],
    pub(crate) body: String,
}

impl StoredRecord {
    /// Reads a row of `SELECT place, kind, node, hash, event`. A column of another type reads as
    /// empty: then neither hash nor event is right.
    pub(crate) fn read(
        connection: &Connection,
        chain: &Arc<str>,
        row: &Row<'_>,
    ) -> Result<Self, SqliteError> {
        Ok(Self {
            sequence: places::sequence_of(row.get(0)?),
            kind: row.get(1)?,
            node: match row.get::<_, Option<i64>>(2)? {
                None => chain.clone(),
                Some(node) => names::node_name(connection, node)?,
            },
            hash: row.get(3).unwrap_or_default(),
            body: row.get_ref(4)?.as_str().unwrap_or_default().to_owned(),
        })
    }

    /// Returns true if the kind that is stored beside the event is that of the event.
    pub(crate) fn has_its_kind(&self) -> bool {
        index::kind_in(&self.body) == Some(self.kind)
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
    /// unreadable, and so is one whose kind is stored as another: filters read the stored text and
    /// the index of kinds, and would pass over it.
    pub(crate) fn record(self, chain: &Arc<str>) -> Result<Record, SqliteError> {
        let event = serde_json::from_str::<Event>(&self.body).ok();
        let event = event
            .filter(|event| serde_json::to_string(event).is_ok_and(|written| written == self.body))
            .filter(|event| index::kind(event) == self.kind);
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
            let (kind, node) = (index::kind(&event), "a".into());
            let stored = StoredRecord { sequence: 1, kind, node, hash: [0; 32], body };
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
