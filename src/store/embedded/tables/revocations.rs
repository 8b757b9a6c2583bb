//! What was ended: single tokens and families, and epochs. Read back whole when a follower joins,
//! from memory after that.

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
                batch::{Batch, Entry, Urgency, from_sql, to_sql},
                error::{Fault, ascending},
            },
            integrity::checksum::Tally,
        },
    },
};

#[async_trait]
impl RevocationStore for Embedded {
    async fn revoke(&self, revocation: &Revocation, event: Event) -> Result<()> {
        let (revocation, entry) = (*revocation, Entry::new(event)?);
        self.write(Urgency::Vital, move |batch| batch.revoke(&revocation, &entry)).await
    }

    async fn raise_epoch(&self, of: &EpochOf, event: Event) -> Result<u64> {
        let (of, entry) = (of.clone(), Entry::new(event)?);
        self.write(Urgency::Vital, move |batch| batch.raise_epoch(&of, &entry)).await
    }

    async fn follow(&self, now: Timestamp, follower: Arc<dyn Follower>) -> Result<Snapshot> {
        self.shared.brings(now);
        // Read by the writer itself: no commit can fall between the snapshot and the first change.
        self.write(Urgency::Normal, move |batch| {
            let (mut revocations, epochs) =
                (read_revocations(batch.connection)?, read_epochs(batch.connection)?);
            revocations.retain(|revocation| now < revocation.until);
            batch.effects.followers.push(follower.clone());
            Ok(Snapshot { revocations, epochs })
        })
        .await
    }

    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize> {
        self.shared.brings(now);
        let bound = i64::try_from(limit).unwrap_or(i64::MAX);
        let swept = self.write(Urgency::Normal, move |batch| {
            // Kept in the same commit: a clock that starts earlier would take for good what was
            // forgotten because it had expired.
            let newest = &mut batch.effects.state.newest;
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
    pub(super) fn revoke(&mut self, revocation: &Revocation, entry: &Entry) -> Result<(), Fault> {
        self.end(revocation)?;
        self.append(entry)
    }

    /// Returns true if a token or family was ended and that is still remembered.
    pub(super) fn is_ended(&self, revoked: Revoked) -> Result<bool, Fault> {
        let found = self.row(
            "SELECT 1 FROM revocations WHERE kind = ?1 AND id = ?2",
            key_of(revoked),
            |_| Ok(()),
        )?;
        Ok(found.is_some())
    }

    /// Ends a token or family, or remembers it longer if it was ended before.
    pub(crate) fn end(&mut self, revocation: &Revocation) -> Result<(), Fault> {
        let Revocation { revoked, until } = *revocation;
        let (kind, id) = key_of(revoked);
        let sql = "SELECT until FROM revocations WHERE kind = ?1 AND id = ?2";
        let known = self.row(sql, (kind, id), |row| row.get(0))?.map(Timestamp::from_millis);
        if known.is_none_or(|known| known < until) {
            self.execute(
                "INSERT INTO revocations (kind, id, until) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET until = excluded.until",
                (kind, id, until.millis()),
            )?;
            if let Some(until) = known {
                forget(&mut self.effects.state.tally, &Revocation { revoked, until });
            }
            remember(&mut self.effects.state.tally, revocation);
        }
        let until = known.map_or(until, |known| known.max(until));
        self.change(Change::Revoked(Revocation { revoked, until }));
        Ok(())
    }

    pub(crate) fn epoch(&self, of: &EpochOf) -> Result<u64, Fault> {
        let (kind, id) = epoch_key(of);
        let value =
            self.row("SELECT value FROM epochs WHERE kind = ?1 AND id = ?2", (kind, id), |row| {
                row.get(0)
            })?;
        Ok(value.map_or(0, from_sql))
    }

    /// Where the epoch stands then.
    pub(super) fn raise_epoch(&mut self, of: &EpochOf, entry: &Entry) -> Result<u64, Fault> {
        let value = self.epoch(of)?.saturating_add(1);
        self.set_epoch(of, value)?;
        self.append(entry)?;
        Ok(value)
    }

    pub(crate) fn set_epoch(&mut self, of: &EpochOf, value: u64) -> Result<(), Fault> {
        let (kind, id) = epoch_key(of);
        let before = self.epoch(of)?;
        self.execute(
            "INSERT OR REPLACE INTO epochs (kind, id, value) VALUES (?1, ?2, ?3)",
            (kind, id, to_sql(value)),
        )?;
        let tally = &mut self.effects.state.tally;
        if before > 0 {
            tally.remove("epochs", &[&[kind], id.as_bytes(), &before.to_be_bytes()]);
        }
        tally.add("epochs", &[&[kind], id.as_bytes(), &value.to_be_bytes()]);
        self.change(Change::Epoch(of.clone(), value));
        Ok(())
    }

    fn sweep_revocations(&mut self, now: Timestamp, limit: i64) -> Result<usize, Fault> {
        let sql =
            "SELECT kind, id, until FROM revocations WHERE until <= ?1 ORDER BY until LIMIT ?2";
        let mut statement = self.connection.prepare_cached(sql)?;
        let due: Vec<Raw> = statement
            .query_map((now.millis(), limit), |row| row.try_into())?
            .collect::<rusqlite::Result<_>>()?;
        for raw in &due {
            let revocation = revocation(*raw)?;
            let (kind, id) = key_of(revocation.revoked);
            self.execute("DELETE FROM revocations WHERE kind = ?1 AND id = ?2", (kind, id))?;
            forget(&mut self.effects.state.tally, &revocation);
        }
        Ok(due.len())
    }
}

/// Every revocation that is kept, in the order of their keys.
pub(super) fn read_revocations(connection: &Connection) -> Result<Vec<Revocation>, Fault> {
    let mut statement =
        connection.prepare_cached("SELECT kind, id, until FROM revocations ORDER BY kind, id")?;
    let rows = statement.query_map([], |row| row.try_into())?;
    rows.map(|raw| revocation(raw?)).collect()
}

/// Up to `limit` revocations in the order of their keys.
pub(crate) fn page(
    connection: &Connection,
    after: Option<Revoked>,
    limit: i64,
) -> Result<Vec<Revocation>, Fault> {
    let (kind, id) = after.map_or((0, [0; 16]), key_of);
    let sql = "SELECT kind, id, until FROM revocations WHERE (kind, id) > (?1, ?2) ORDER BY kind, \
               id LIMIT ?3";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map((kind, id, limit), |row| row.try_into())?;
    let revocations = rows.map(|raw| revocation(raw?)).collect::<Result<Vec<_>, Fault>>()?;
    ascending(after, revocations.iter().map(|revocation| revocation.revoked))?;
    Ok(revocations)
}

/// Every epoch above 0, in the order of their keys.
pub(crate) fn read_epochs(connection: &Connection) -> Result<Vec<(EpochOf, u64)>, Fault> {
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
            _ => return Err(Fault::Row("epoch: unknown kind".into())),
        };
        Ok((of.map_err(|invalid| Fault::Row(format!("epoch: {invalid}")))?, from_sql(value)))
    })
    .collect()
}

/// The tally of what is stored; another one than the kept shows that something has gone.
pub(crate) fn tally(connection: &Connection) -> Result<Tally, Fault> {
    let mut tally = Tally::default();
    read_revocations(connection)?.iter().for_each(|revocation| remember(&mut tally, revocation));
    for (of, value) in &read_epochs(connection)? {
        let (kind, id) = epoch_key(of);
        tally.add("epochs", &[&[kind], id.as_bytes(), &value.to_be_bytes()]);
    }
    Ok(tally)
}

fn remember(tally: &mut Tally, revocation: &Revocation) {
    let (kind, id) = key_of(revocation.revoked);
    tally.add("revocations", &[&[kind], &id, &revocation.until.millis().to_be_bytes()]);
}

fn forget(tally: &mut Tally, revocation: &Revocation) {
    let (kind, id) = key_of(revocation.revoked);
    tally.remove("revocations", &[&[kind], &id, &revocation.until.millis().to_be_bytes()]);
}

type Raw = (u8, [u8; 16], i64);

fn revocation((kind, id, until): Raw) -> Result<Revocation, Fault> {
    let id = uuid::Uuid::from_bytes(id);
    let revoked = match kind {
        1 => Revoked::Token(Jti(id)),
        2 => Revoked::Family(FamilyId(id)),
        _ => return Err(Fault::Row("revocation: unknown kind".into())),
    };
    Ok(Revocation { revoked, until: Timestamp::from_millis(until) })
}

fn key_of(revoked: Revoked) -> (u8, [u8; 16]) {
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
