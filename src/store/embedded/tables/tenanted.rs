//! Tables of records that belong to a tenant: each row has the record as JSON and a checksum over
//! all columns.

use rusqlite::{Connection, OptionalExtension, Row};
use serde::de::DeserializeOwned;

use crate::{
    model::TenantId,
    store::embedded::{
        engine::error::{SqliteError, malformed},
        integrity::checksum,
    },
};

/// Table of records of one type.
pub(super) struct Table {
    pub(crate) name: &'static str,
    /// Name of one record, in errors.
    pub(crate) record: &'static str,
}

/// Columns: id, tenant, revision, body, sum.
pub(crate) type Columns = (String, String, i64, String, Vec<u8>);

const COLUMNS: &str = "id, tenant, revision, body, sum";

impl Table {
    /// Returns the checksum of a row.
    pub(crate) fn sum(&self, id: &str, tenant: &str, revision: i64, body: &str) -> [u8; 16] {
        checksum::row(
            self.name,
            &[id.as_bytes(), tenant.as_bytes(), &revision.to_be_bytes(), body.as_bytes()],
        )
    }

    /// Returns the row of this id.
    pub(crate) fn find(
        &self,
        connection: &Connection,
        id: &str,
    ) -> Result<Option<Columns>, SqliteError> {
        let sql = format!("SELECT {COLUMNS} FROM {} WHERE id = ?1", self.name);
        Ok(connection.prepare_cached(&sql)?.query_row((id,), columns).optional()?)
    }

    /// Returns up to `limit` rows in the order of their ids, those after `after`, of one tenant or
    /// of all. Two statements, so that each has the index it needs.
    pub(crate) fn rows(
        &self,
        connection: &Connection,
        tenant: Option<&TenantId>,
        after: &str,
        limit: usize,
    ) -> Result<Vec<Columns>, SqliteError> {
        let (name, limit) = (self.name, i64::try_from(limit).unwrap_or(i64::MAX));
        let rows = if let Some(tenant) = tenant {
            let sql = format!(
                "SELECT {COLUMNS} FROM {name} WHERE tenant = ?1 AND id > ?2 ORDER BY id LIMIT ?3"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            statement
                .query_map((tenant.as_str(), after, limit), columns)?
                .collect::<rusqlite::Result<_>>()?
        } else {
            let sql = format!("SELECT {COLUMNS} FROM {name} WHERE id > ?1 ORDER BY id LIMIT ?2");
            let mut statement = connection.prepare_cached(&sql)?;
            statement.query_map((after, limit), columns)?.collect::<rusqlite::Result<_>>()?
        };
        Ok(rows)
    }

    /// Decodes the record of a row, if the row matches its checksum.
    pub(super) fn decode<T: DeserializeOwned>(
        &self,
        (id, tenant, revision, body, kept): Columns,
    ) -> Result<T, SqliteError> {
        if self.sum(&id, &tenant, revision, &body) != kept.as_slice() {
            return Err(SqliteError::Malformed(format!(
                "{} {id}: the row does not match its checksum",
                self.record
            )));
        }
        serde_json::from_str(&body).map_err(malformed(self.record))
    }
}

fn columns(row: &Row<'_>) -> rusqlite::Result<Columns> {
    row.try_into()
}
