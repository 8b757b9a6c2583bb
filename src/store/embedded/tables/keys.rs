//! The keyset, in one row.

use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension};

use crate::{
    model::{Event, Keyset},
    store::{
        Change, KeyStore, Result, Write,
        embedded::{
            Embedded,
            engine::{
                batch::{Batch, EventText, Priority, to_sql},
                error::{SqliteError, malformed},
            },
            integrity::checksum,
        },
    },
};

#[async_trait]
impl KeyStore for Embedded {
    async fn keyset(&self) -> Result<Option<Keyset>> {
        self.read(find).await
    }

    async fn replace_keyset(&self, keyset: &Keyset, event: Event) -> Result<Write> {
        let (keyset, entry) = (Arc::new(keyset.clone()), EventText::new(event)?);
        self.write(Priority::of(entry.event.action), move |batch| {
            batch.replace_keyset(&keyset, &entry)
        })
        .await
    }
}

impl Batch<'_> {
    pub(super) fn replace_keyset(
        &mut self,
        keyset: &Arc<Keyset>,
        entry: &EventText,
    ) -> Result<Write, SqliteError> {
        if !self.put_keyset(keyset, keyset.revision.checked_sub(1))? {
            return Ok(Write::Stale);
        }
        self.append(entry)?;
        Ok(Write::Done)
    }

    /// Returns true if the stored revision, 0 for none, was the expected one.
    pub(crate) fn put_keyset(
        &mut self,
        keyset: &Arc<Keyset>,
        expected: Option<u64>,
    ) -> Result<bool, SqliteError> {
        let stored = self.row("SELECT revision FROM keyset WHERE id = 1", [], |row| row.get(0))?;
        if expected.map(to_sql) != Some(stored.unwrap_or(0)) {
            return Ok(false);
        }
        let body = serde_json::to_string(&**keyset).map_err(malformed("keyset"))?;
        self.execute(
            "INSERT OR REPLACE INTO keyset (id, revision, body, sum) VALUES (1, ?1, ?2, ?3)",
            (to_sql(keyset.revision), &body, sum(to_sql(keyset.revision), &body)),
        )?;
        self.change(Change::Keyset(keyset.clone()));
        Ok(true)
    }
}

fn sum(revision: i64, body: &str) -> [u8; 16] {
    checksum::row("keyset", &[&revision.to_be_bytes(), body.as_bytes()])
}

/// Returns the keyset, once there is one.
pub(crate) fn find(connection: &Connection) -> Result<Option<Keyset>, SqliteError> {
    let mut statement =
        connection.prepare_cached("SELECT revision, body, sum FROM keyset WHERE id = 1")?;
    let found = statement.query_row([], |row| row.try_into()).optional()?;
    let Some((revision, body, kept)): Option<(i64, String, Vec<u8>)> = found else {
        return Ok(None);
    };
    if sum(revision, &body) != kept.as_slice() {
        return Err(SqliteError::Malformed("keyset: the row does not match its checksum".into()));
    }
    serde_json::from_str(&body).map(Some).map_err(malformed("keyset"))
}
