//! Tenants of deleted clients: their ids stay reserved for them.

use rusqlite::{Connection, OptionalExtension};

use crate::{
    model::{ClientId, TenantId},
    store::{
        embedded::{
            engine::{
                batch::Batch,
                error::{SqliteError, check_ascending},
            },
            integrity::checksum,
        },
        transfer::ExportRecord,
    },
};

fn sum(id: &str, tenant: &str) -> [u8; 16] {
    checksum::row("deleted_clients", &[id.as_bytes(), tenant.as_bytes()])
}

impl Batch<'_> {
    /// Returns the tenant of the last client of this id, if it was deleted.
    pub(super) fn deleted_of(&self, id: &ClientId) -> Result<Option<TenantId>, SqliteError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT id, tenant, sum FROM deleted_clients WHERE id = ?1")?;
        let row = statement.query_row((id.as_str(),), |row| row.try_into()).optional()?;
        Ok(row.map(decode).transpose()?.map(|(_, tenant)| tenant))
    }

    /// Returns true if the id was not recorded before.
    pub(crate) fn keep_deleted(
        &self,
        id: &ClientId,
        tenant: &TenantId,
    ) -> Result<bool, SqliteError> {
        let (id, tenant) = (id.as_str(), tenant.as_str());
        let sql = "INSERT OR IGNORE INTO deleted_clients (id, tenant, sum) VALUES (?1, ?2, ?3)";
        Ok(self.execute(sql, (id, tenant, sum(id, tenant)))? == 1)
    }

    pub(super) fn forget_deleted(&self, id: &ClientId) -> Result<(), SqliteError> {
        self.execute("DELETE FROM deleted_clients WHERE id = ?1", (id.as_str(),)).map(drop)
    }
}

fn decode(
    (id, tenant, kept): (String, String, Vec<u8>),
) -> Result<(ClientId, TenantId), SqliteError> {
    if sum(&id, &tenant) != kept.as_slice() {
        return Err(SqliteError::Malformed(
            "deleted client: the row does not match its checksum".into(),
        ));
    }
    let invalid = |invalid| SqliteError::Malformed(format!("deleted client: {invalid}"));
    Ok((id.parse().map_err(invalid)?, tenant.parse().map_err(invalid)?))
}

/// Returns the next records of an export.
pub(crate) fn page(
    connection: &Connection,
    after: Option<&ClientId>,
    limit: i64,
) -> Result<Vec<ExportRecord>, SqliteError> {
    let sql = "SELECT id, tenant, sum FROM deleted_clients WHERE id > ?1 ORDER BY id LIMIT ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let rows =
        statement.query_map((after.map_or("", ClientId::as_str), limit), |row| row.try_into())?;
    let kept = rows.map(|row| decode(row?)).collect::<Result<Vec<_>, SqliteError>>()?;
    check_ascending(after, kept.iter().map(|(id, _)| id))?;
    Ok(kept
        .into_iter()
        .map(|(client, tenant)| ExportRecord::DeletedClient { client, tenant })
        .collect())
}
