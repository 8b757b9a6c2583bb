//! Audiences and the tenants that own them.

use async_trait::async_trait;
use rusqlite::Connection;

use super::tenanted::{Columns, Table};
use crate::{
    model::{Audience, AudienceRecord, Event, TenantId},
    store::{
        AudienceStore, Creation, FoundAudience, Result, Write,
        embedded::{
            Embedded,
            engine::{
                batch::{Batch, EventText, Priority, to_sql},
                error::{SqliteError, check_ascending, malformed},
            },
        },
    },
};

const AUDIENCES: Table = Table { name: "audiences", record: "audience" };

#[async_trait]
impl AudienceStore for Embedded {
    async fn audience(&self, audience: &Audience) -> Result<Option<FoundAudience>> {
        let audience = audience.clone();
        self.read(move |connection| find(connection, &audience)).await
    }

    async fn audiences(
        &self,
        tenant: Option<&TenantId>,
        after: Option<&Audience>,
        limit: usize,
    ) -> Result<Vec<FoundAudience>> {
        let (tenant, after) = (tenant.cloned(), after.cloned());
        self.scan(move |connection| listing(connection, tenant.as_ref(), after.as_ref(), limit))
            .await
    }

    async fn claim_audience(&self, record: &AudienceRecord, event: Event) -> Result<Creation> {
        let (stored, entry) = (StoredAudience::new(record)?, EventText::new(event)?);
        self.write(Priority::Normal, move |batch| batch.claim_audience(&stored, &entry)).await
    }

    async fn replace_audience(&self, record: &AudienceRecord, event: Event) -> Result<Write> {
        let (stored, entry) = (StoredAudience::new(record)?, EventText::new(event)?);
        self.write(Priority::Normal, move |batch| batch.replace_audience(&stored, &entry)).await
    }

    async fn release_audience(&self, record: &AudienceRecord, event: Event) -> Result<Write> {
        let (record, entry) = (record.clone(), EventText::new(event)?);
        self.write(Priority::Normal, move |batch| batch.release_audience(&record, &entry)).await
    }
}

/// Record with its serialized text.
pub(crate) struct StoredAudience {
    record: AudienceRecord,
    body: String,
}

impl StoredAudience {
    pub(crate) fn new(record: &AudienceRecord) -> Result<Self, SqliteError> {
        Ok(Self {
            record: record.clone(),
            body: serde_json::to_string(record).map_err(malformed("audience"))?,
        })
    }
}

impl Batch<'_> {
    pub(super) fn claim_audience(
        &mut self,
        stored: &StoredAudience,
        entry: &EventText,
    ) -> Result<Creation, SqliteError> {
        if !self.insert_audience(stored)? {
            return Ok(Creation::Taken);
        }
        self.append(entry)?;
        Ok(Creation::Created)
    }

    /// Returns true if the audience had no record.
    pub(crate) fn insert_audience(
        &self,
        StoredAudience { record, body }: &StoredAudience,
    ) -> Result<bool, SqliteError> {
        let (id, tenant, revision) =
            (record.audience.as_str(), record.tenant.as_str(), to_sql(record.revision));
        let written = self.execute(
            "INSERT OR IGNORE INTO audiences (id, tenant, revision, body, sum)
             VALUES (?1, ?2, ?3, ?4, ?5)",
            (id, tenant, revision, body, AUDIENCES.sum(id, tenant, revision, body)),
        )?;
        Ok(written == 1)
    }

    pub(super) fn replace_audience(
        &mut self,
        stored: &StoredAudience,
        entry: &EventText,
    ) -> Result<Write, SqliteError> {
        let Some(before) = stored.record.revision.checked_sub(1) else { return Ok(Write::Stale) };
        if !self.stores_audience(&stored.record, before)? {
            return Ok(Write::Stale);
        }
        self.put_audience(stored)?;
        self.append(entry)?;
        Ok(Write::Done)
    }

    /// Replaces the record `from` by another one; without `from`, any record.
    pub(super) fn move_audience(
        &mut self,
        from: Option<&AudienceRecord>,
        stored: &StoredAudience,
        entries: &[EventText],
    ) -> Result<Write, SqliteError> {
        if let Some(from) = from
            && !self.stores_audience(from, from.revision)?
        {
            return Ok(Write::Stale);
        }
        self.put_audience(stored)?;
        self.append_all(entries)?;
        Ok(Write::Done)
    }

    fn put_audience(
        &self,
        StoredAudience { record, body }: &StoredAudience,
    ) -> Result<(), SqliteError> {
        let (id, tenant, revision) =
            (record.audience.as_str(), record.tenant.as_str(), to_sql(record.revision));
        self.execute(
            "INSERT OR REPLACE INTO audiences (id, tenant, revision, body, sum)
             VALUES (?1, ?2, ?3, ?4, ?5)",
            (id, tenant, revision, body, AUDIENCES.sum(id, tenant, revision, body)),
        )?;
        Ok(())
    }

    pub(super) fn release_audience(
        &mut self,
        record: &AudienceRecord,
        entry: &EventText,
    ) -> Result<Write, SqliteError> {
        if !self.stores_audience(record, record.revision)? {
            return Ok(Write::Stale);
        }
        self.execute("DELETE FROM audiences WHERE id = ?1", (record.audience.as_str(),))?;
        self.append(entry)?;
        Ok(Write::Done)
    }

    /// Returns true if the stored record is this one, at this revision. Revisions restart at 1
    /// after an audience was released.
    fn stores_audience(&self, record: &AudienceRecord, revision: u64) -> Result<bool, SqliteError> {
        let is_kept = |kept: &AudienceRecord| {
            kept.revision == revision
                && kept.tenant == record.tenant
                && kept.created_at == record.created_at
        };
        let found = find(self.connection, &record.audience)?;
        Ok(matches!(found, Some(FoundAudience::Owned(kept)) if is_kept(&kept)))
    }
}

fn find(
    connection: &Connection,
    audience: &Audience,
) -> Result<Option<FoundAudience>, SqliteError> {
    AUDIENCES
        .find(connection, audience.as_str())?
        .map(|row| found(audience.clone(), row))
        .transpose()
}

fn listing(
    connection: &Connection,
    tenant: Option<&TenantId>,
    after: Option<&Audience>,
    limit: usize,
) -> Result<Vec<FoundAudience>, SqliteError> {
    let (mut listed, mut last) = (Vec::new(), after.map_or_else(String::new, ToString::to_string));
    while listed.len() < limit {
        let rows = AUDIENCES.rows(connection, tenant, &last, limit.saturating_sub(listed.len()))?;
        let Some((id, ..)) = rows.last() else { break };
        last.clone_from(id);
        for row in rows {
            // A row whose key is not a valid audience is not even named.
            let Ok(audience) = row.0.parse::<Audience>() else { continue };
            listed.push(found(audience, row)?.listed_for(tenant));
        }
    }
    check_ascending(after, listed.iter().map(FoundAudience::audience))?;
    Ok(listed)
}

/// Returns records in the order of their audiences, for an export.
pub(crate) fn page(
    connection: &Connection,
    after: Option<&Audience>,
    limit: usize,
) -> Result<Vec<AudienceRecord>, SqliteError> {
    let rows = AUDIENCES.rows(connection, None, after.map_or("", Audience::as_str), limit)?;
    let records = rows
        .into_iter()
        .map(|row| AUDIENCES.decode(row))
        .collect::<Result<Vec<AudienceRecord>, SqliteError>>()?;
    check_ascending(after, records.iter().map(|record| &record.audience))?;
    Ok(records)
}

/// Decodes the row of `audience`.
fn found(audience: Audience, row: Columns) -> Result<FoundAudience, SqliteError> {
    match AUDIENCES.decode::<AudienceRecord>(row) {
        Ok(record) if record.audience == audience => Ok(FoundAudience::Owned(record)),
        Ok(_) | Err(SqliteError::Malformed(_)) => Ok(FoundAudience::NotAuthentic(audience)),
        Err(fault) => Err(fault),
    }
}
