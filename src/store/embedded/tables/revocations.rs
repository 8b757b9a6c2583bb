//! Revocations of tokens and families, and epochs. Read as a whole when a follower subscribes;
//! after that it answers from memory.

use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::Connection;

use crate::{
    model::{EpochOf, Event, FamilyId, Jti, Revoked, Timestamp, revocation::Revocation},
    store::{
        Change, Follower, Result, RevocationStore, Snapshot,
        embedded::{
            Embedded,
            engine::{
                batch::{Batch, EventText, Priority, from_sql, to_sql},
                error::{SqliteError, check_ascending},
            },
            integrity::checksum::SetChecksum,
        },
    },
};

#[async_trait]
impl RevocationStore for Embedded {
    async fn revoke(&self, revocation: &Revocation, event: Event) -> Result<()> {
        let (revocation, entry) = (*revocation, EventText::new(event)?);
        self.write(Priority::Revocation, move |batch| batch.revoke(&revocation, &entry)).await
    }

    async fn raise_epoch(&self, of: &EpochOf, event: Event) -> Result<u64> {
        let (of, entry) = (of.clone(), EventText::new(event)?);
        self.write(Priority::Revocation, move |batch| batch.raise_epoch(&of, &entry)).await
    }

    async fn follow(&self, now: Timestamp, follower: Arc<dyn Follower>) -> Result<Snapshot> {
        self.shared.observe_time(now);
        // Read by the writer itself: no commit can fall between the snapshot and the first change.
        self.write(Priority::Normal, move |batch| {
            let (mut revocations, epochs) =
                (read_revocations(batch.connection)?, read_epochs(batch.connection)?);
            revocations.retain(|revocation| now < revocation.until);
            batch.post_commit.followers.push(follower.clone());
            Ok(Snapshot { revocations, epochs })
        })
        .await
    }

    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize> {
        self.shared.observe_time(now);
        let bound = i64::try_from(limit).unwrap_or(i64::MAX);
        let swept = self.write(Priority::Normal, move |batch| {
            // Persisted in the same commit: a clock that starts earlier would take expired tokens
            // for valid after their revocations were deleted.
            let newest = &mut batch.post_commit.state.newest_time;
            *newest = now.max(*newest);
            let revocations = batch.sweep_revocations(now, bound)?;
            let families =
                batch.sweep_families(now, bound.saturating_sub(to_sql(revocations as u64)))?;
            Ok(revocations.saturating_add(families))
        });
        Ok(swept.await?.saturating_add(self.sweep_counters(now).await?))
    }
}

impl Batch<'_> {
    pub(super) fn revoke(
        &mut self,
        revocation: &Revocation,
        entry: &EventText,
    ) -> Result<(), SqliteError> {
        self.record_revocation(revocation)?;
        self.append(entry)
    }

    /// Returns true if a token or family was revoked and the revocation is still stored.
    pub(super) fn is_ended(&self, revoked: Revoked) -> Result<bool, SqliteError> {
        let found = self.row(
            "SELECT 1 FROM revocations WHERE kind = ?1 AND id = ?2",
            revocation_key(revoked),
            |_| Ok(()),
        )?;
        Ok(found.is_some())
    }

    /// Revokes a token or family, or extends an earlier revocation.
    pub(crate) fn record_revocation(&mut self, revocation: &Revocation) -> Result<(), SqliteError> {
        let Revocation { revoked, until } = *revocation;
        let (kind, id) = revocation_key(revoked);
        let sql = "SELECT until FROM revocations WHERE kind = ?1 AND id = ?2";
        let known = self.row(sql, (kind, id), |row| row.get(0))?.map(Timestamp::from_millis);
        if known.is_none_or(|known| known < until) {
            self.execute(
                "INSERT INTO revocations (kind, id, until) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET until = excluded.until",
                (kind, id, until.millis()),
            )?;
            if let Some(until) = known {
                remove_from_checksum(
                    &mut self.post_commit.state.set_checksum,
                    &Revocation { revoked, until },
                );
            }
            add_to_checksum(&mut self.post_commit.state.set_checksum, revocation);
        }
        let until = known.map_or(until, |known| known.max(until));
        self.change(Change::Revoked(Revocation { revoked, until }));
        Ok(())
    }

    pub(crate) fn epoch(&self, of: &EpochOf) -> Result<u64, SqliteError> {
        let (kind, id) = epoch_key(of);
        let value =
            self.row("SELECT value FROM epochs WHERE kind = ?1 AND id = ?2", (kind, id), |row| {
                row.get(0)
            })?;
        Ok(value.map_or(0, from_sql))
    }

    /// Raises an epoch and returns its new value.
    pub(super) fn raise_epoch(
        &mut self,
        of: &EpochOf,
        entry: &EventText,
    ) -> Result<u64, SqliteError> {
        let value = self.epoch(of)?.saturating_add(1);
        self.set_epoch(of, value)?;
        self.append(entry)?;
        Ok(value)
    }

    pub(crate) fn set_epoch(&mut self, of: &EpochOf, value: u64) -> Result<(), SqliteError> {
        let (kind, id) = epoch_key(of);
        let before = self.epoch(of)?;
        self.execute(
            "INSERT OR REPLACE INTO epochs (kind, id, value) VALUES (?1, ?2, ?3)",
            (kind, id, to_sql(value)),
        )?;
        let set_checksum = &mut self.post_commit.state.set_checksum;
        if before > 0 {
            set_checksum.remove("epochs", &[&[kind], id.as_bytes(), &before.to_be_bytes()]);
        }
        set_checksum.add("epochs", &[&[kind], id.as_bytes(), &value.to_be_bytes()]);
        self.change(Change::Epoch(of.clone(), value));
        Ok(())
    }

    fn sweep_revocations(&mut self, now: Timestamp, limit: i64) -> Result<usize, SqliteError> {
        let sql =
            "SELECT kind, id, until FROM revocations WHERE until <= ?1 ORDER BY until LIMIT ?2";
        let mut statement = self.connection.prepare_cached(sql)?;
        let due: Vec<RevocationRow> = statement
            .query_map((now.millis(), limit), |row| row.try_into())?
            .collect::<rusqlite::Result<_>>()?;
        for raw in &due {
            let revocation = revocation(*raw)?;
            let (kind, id) = revocation_key(revocation.revoked);
            self.execute("DELETE FROM revocations WHERE kind = ?1 AND id = ?2", (kind, id))?;
            remove_from_checksum(&mut self.post_commit.state.set_checksum, &revocation);
        }
        Ok(due.len())
    }
}

/// Returns every stored revocation, in the order of their keys.
pub(super) fn read_revocations(connection: &Connection) -> Result<Vec<Revocation>, SqliteError> {
    let mut statement =
        connection.prepare_cached("SELECT kind, id, until FROM revocations ORDER BY kind, id")?;
    let rows = statement.query_map([], |row| row.try_into())?;
    rows.map(|raw| revocation(raw?)).collect()
}

/// Returns up to `limit` revocations in the order of their keys.
pub(crate) fn page(
    connection: &Connection,
    after: Option<Revoked>,
    limit: i64,
) -> Result<Vec<Revocation>, SqliteError> {
    let (kind, id) = after.map_or((0, [0; 16]), revocation_key);
    let sql = "SELECT kind, id, until FROM revocations WHERE (kind, id) > (?1, ?2) ORDER BY kind, \
               id LIMIT ?3";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map((kind, id, limit), |row| row.try_into())?;
    let revocations = rows.map(|raw| revocation(raw?)).collect::<Result<Vec<_>, SqliteError>>()?;
    check_ascending(after, revocations.iter().map(|revocation| revocation.revoked))?;
    Ok(revocations)
}

/// Returns every epoch above 0, in the order of their keys.
pub(crate) fn read_epochs(connection: &Connection) -> Result<Vec<(EpochOf, u64)>, SqliteError> {
    let mut statement =
        connection.prepare_cached("SELECT kind, id, value FROM epochs ORDER BY kind, id")?;
    let rows =
        statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?, row.get(2)?)))?;
    rows.map(|row| {
        let (kind, id, value): (u8, _, _) = row?;
        let of = match kind {
            1 => id.parse().map(EpochOf::Tenant),
            2 => id.parse().map(EpochOf::Client),
            3 => id.parse().map(EpochOf::Subject),
            _ => return Err(SqliteError::Malformed("epoch: unknown kind".into())),
        };
        Ok((
            of.map_err(|invalid| SqliteError::Malformed(format!("epoch: {invalid}")))?,
            from_sql(value),
        ))
    })
    .collect()
}

/// Computes the checksum of the stored rows; another one than the recorded shows that a row is
/// missing.
pub(crate) fn set_checksum(connection: &Connection) -> Result<SetChecksum, SqliteError> {
    let mut set_checksum = SetChecksum::default();
    read_revocations(connection)?
        .iter()
        .for_each(|revocation| add_to_checksum(&mut set_checksum, revocation));
    for (of, value) in &read_epochs(connection)? {
        let (kind, id) = epoch_key(of);
        set_checksum.add("epochs", &[&[kind], id.as_bytes(), &value.to_be_bytes()]);
    }
    Ok(set_checksum)
}

fn add_to_checksum(set_checksum: &mut SetChecksum, revocation: &Revocation) {
    let (kind, id) = revocation_key(revocation.revoked);
    set_checksum.add("revocations", &[&[kind], &id, &revocation.until.millis().to_be_bytes()]);
}

fn remove_from_checksum(set_checksum: &mut SetChecksum, revocation: &Revocation) {
    let (kind, id) = revocation_key(revocation.revoked);
    set_checksum.remove("revocations", &[&[kind], &id, &revocation.until.millis().to_be_bytes()]);
}

type RevocationRow = (u8, [u8; 16], i64);

fn revocation((kind, id, until): RevocationRow) -> Result<Revocation, SqliteError> {
    let id = uuid::Uuid::from_bytes(id);
    let revoked = match kind {
        1 => Revoked::Token(Jti(id)),
        2 => Revoked::Family(FamilyId(id)),
        _ => return Err(SqliteError::Malformed("revocation: unknown kind".into())),
    };
    Ok(Revocation { revoked, until: Timestamp::from_millis(until) })
}

fn revocation_key(revoked: Revoked) -> (u8, [u8; 16]) {
    match revoked {
        Revoked::Token(id) => (1, id.0.into_bytes()),
        Revoked::Family(id) => (2, id.0.into_bytes()),
    }
}

fn epoch_key(of: &EpochOf) -> (u8, &str) {
    match of {
        EpochOf::Tenant(id) => (1, id.as_str()),
        EpochOf::Client(id) => (2, id.as_str()),
        EpochOf::Subject(id) => (3, id.as_str()),
    }
}
