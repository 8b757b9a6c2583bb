//! Refresh families. Columns hold the values that a rotation changes; the rest is a body that is
//! written once.

use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, Row};
use serde::{Deserialize, Serialize};

use crate::{
    model::{
        Audience, ClientId, Epochs, Event, Family, FamilyId, Scopes, Stamp, Subject, TenantId,
        Timestamp, family::Answers,
    },
    store::{
        Creation, Decision, FamilyStore, LastRotation, Result, Rotate, Rotation,
        embedded::{
            Embedded,
            engine::{
                batch::{Batch, EventText, Priority},
                error::{SqliteError, check_ascending, malformed},
            },
            integrity::checksum,
        },
        ended,
    },
};

#[async_trait]
impl FamilyStore for Embedded {
    async fn open_family(&self, family: &Family, event: Event) -> Result<Creation> {
        let (columns, entry) = (Columns::of(family)?, EventText::new(event)?);
        self.write(Priority::Normal, move |batch| {
            if !batch.insert_family(&columns)? {
                return Ok(Creation::Taken);
            }
            batch.append(&entry)?;
            Ok(Creation::Created)
        })
        .await
    }

    async fn family(&self, id: FamilyId, now: Timestamp) -> Result<Option<Family>> {
        self.shared.observe_time(now);
        let row = self.read(move |connection| find(connection, id)).await?;
        Ok(row.map(|row| row.family).filter(|family| now < latest_expiry(family)))
    }

    async fn rotate(&self, rotate: &Rotate, stamp: &Stamp, jti: &str) -> Result<Rotation> {
        let (rotate, stamp, jti) = (rotate.clone(), stamp.clone(), jti.to_owned());
        self.shared.observe_time(rotate.now);
        // The reserve is used only if it ends the family, which shows when the row is read: see
        // `Batch::rotate`.
        self.write(Priority::Revocation, move |batch| batch.rotate(&rotate, &stamp, &jti)).await
    }

    async fn end_family(
        &self,
        id: FamilyId,
        now: Timestamp,
        until: Timestamp,
        event: Event,
    ) -> Result<()> {
        self.shared.observe_time(now);
        let entry = EventText::new(event)?;
        self.write(Priority::Revocation, move |batch| batch.end_family(id, now, until, &entry))
            .await
    }
}

impl Batch<'_> {
    /// Decides from the row inside the transaction that changes it: of two calls with the same
    /// token, the second sees the change of the first.
    fn rotate(
        &mut self,
        rotate: &Rotate,
        stamp: &Stamp,
        jti: &str,
    ) -> Result<Rotation, SqliteError> {
        let found = find(self.connection, rotate.family)?;
        let decision = found.as_ref().map_or(Decision::Unknown, |row| {
            rotate.decide(&row.family, LastRotation { at: row.family.rotated_at, unanswered: 0 })
        });
        if self.reserve_only && !decision.ends() {
            return Err(SqliteError::Full);
        }
        let event = rotate.event(decision, stamp, jti, found.as_ref().map(|row| &row.family));
        let rotation = match (decision, found) {
            (Decision::Rotate, Some(mut row)) => {
                row.family.generation = row.family.generation.saturating_add(1);
                row.family.answers =
                    row.family.answers.rotated(row.family.answers.given, &stamp.peer);
                let stepped_back = rotate.now < row.family.rotated_at;
                row.family.rotated_at = rotate.now;
                self.update_family(&row)?;
                if stepped_back {
                    // It expires earlier than the index says. Usually it is later, and the sweep
                    // updates the index.
                    let sql = "UPDATE families SET sweep_at = min(sweep_at, ?2) WHERE id = ?1";
                    self.execute(
                        sql,
                        (row.family.id.0.as_bytes(), latest_expiry(&row.family).millis()),
                    )?;
                }
                Rotation::Rotated
            }
            (Decision::Repeat, Some(mut row)) => {
                row.family.answers = row.family.answers.repeated(&stamp.peer);
                self.update_family(&row)?;
                Rotation::Repeated(row.family)
            }
            (Decision::Refuse, Some(_)) => return Ok(Rotation::Refused),
            (Decision::Reuse | Decision::Shared, Some(mut row)) => {
                let Some(remember) = rotate.retain_for else {
                    return Ok(Rotation::Unended(decision));
                };
                let found = row.family.clone();
                row.family.ended_at = Some(rotate.now);
                self.update_family(&row)?;
                self.record_revocation(&ended(rotate.family, rotate.now + remember))?;
                if decision == Decision::Shared {
                    Rotation::Shared(found)
                } else {
                    Rotation::Reused
                }
            }
            (Decision::Unknown, _) | (_, None) => return Ok(Rotation::Unknown),
        };
        self.append(&EventText::new(event)?)?;
        Ok(rotation)
    }

    pub(super) fn end_family(
        &mut self,
        id: FamilyId,
        now: Timestamp,
        until: Timestamp,
        entry: &EventText,
    ) -> Result<(), SqliteError> {
        if let Some(mut row) = find(self.connection, id)?
            && row.family.ended_at.is_none()
        {
            row.family.ended_at = Some(now);
            self.update_family(&row)?;
        }
        self.record_revocation(&ended(id, until))?;
        self.append(entry)
    }

    /// Returns true if the id was free.
    pub(crate) fn insert_family(&self, columns: &Columns) -> Result<bool, SqliteError> {
        let Columns {
            id,
            client,
            salt,
            generation,
            rotated_at,
            answers,
            ended_at,
            expires_at,
            sweep_at,
            body,
            sum,
        } = columns;
        let written = self.execute(
            "INSERT OR IGNORE INTO families
             (id, client, salt, generation, rotated_at, answers, ended_at, expires_at, sweep_at,
              body, sum)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            (
                id,
                client.as_str(),
                salt,
                generation,
                rotated_at,
                answers,
                ended_at,
                expires_at,
                sweep_at,
                body,
                sum,
            ),
        )?;
        Ok(written == 1)
    }

    fn update_family(
        &self,
        StoredFamily { family, body }: &StoredFamily,
    ) -> Result<(), SqliteError> {
        let (answers, ended_at) =
            (encode_answers(&family.answers)?, family.ended_at.map(Timestamp::millis));
        let sum = sum(family, &answers, body);
        self.execute(
            "UPDATE families SET generation = ?2, rotated_at = ?3, answers = ?4, ended_at = ?5, \
             sum = ?6 WHERE id = ?1",
            (
                family.id.0.as_bytes(),
                family.generation,
                family.rotated_at.millis(),
                answers,
                ended_at,
                sum,
            ),
        )?;
        Ok(())
    }

    /// Deletes up to `limit` families that can never be valid again. For families that were
    /// refreshed since they were indexed, the index is updated.
    pub(super) fn sweep_families(&self, now: Timestamp, limit: i64) -> Result<usize, SqliteError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT id FROM families WHERE sweep_at <= ?1 ORDER BY sweep_at LIMIT ?2",
        )?;
        let due: Vec<[u8; 16]> = statement
            .query_map((now.millis(), limit), |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        let mut gone = 0_usize;
        for id in due {
            match find(self.connection, FamilyId(uuid::Uuid::from_bytes(id))) {
                Ok(Some(row)) if now < latest_expiry(&row.family) => {
                    let later = latest_expiry(&row.family).millis();
                    self.execute("UPDATE families SET sweep_at = ?2 WHERE id = ?1", (id, later))?;
                }
                // A row that cannot be decoded is kept: it is evidence, and its tokens are refused.
                Err(SqliteError::Malformed(problem)) => {
                    tracing::error!(problem, "skipped a damaged refresh family");
                    self.execute(
                        "UPDATE families SET sweep_at = ?2 WHERE id = ?1",
                        (id, i64::MAX),
                    )?;
                }
                Err(fault) => return Err(fault),
                Ok(_) => {
                    self.execute("DELETE FROM families WHERE id = ?1", (id,))?;
                    gone = gone.saturating_add(1);
                }
            }
        }
        Ok(gone)
    }
}

/// Returns the time from which the family is expired unless it is rotated again.
fn latest_expiry(family: &Family) -> Timestamp {
    family.expires_at.min(family.rotated_at + family.idle)
}

/// Values that never change.
#[derive(Serialize, Deserialize)]
struct Body {
    tenant: TenantId,
    subject: Subject,
    scopes: Scopes,
    audience: Vec<Audience>,
    epochs: Epochs,
    opened_at: Timestamp,
    idle: Duration,
}

/// Columns of a row.
pub(crate) struct Columns {
    id: [u8; 16],
    client: ClientId,
    salt: [u8; 32],
    generation: u32,
    rotated_at: i64,
    answers: String,
    ended_at: Option<i64>,
    expires_at: i64,
    sweep_at: i64,
    body: String,
    sum: [u8; 16],
}

impl Columns {
    pub(crate) fn of(family: &Family) -> Result<Self, SqliteError> {
        let Family { tenant, subject, scopes, audience, epochs, opened_at, idle, .. } =
            family.clone();
        let body = Body { tenant, subject, scopes, audience, epochs, opened_at, idle };
        let body = serde_json::to_string(&body).map_err(malformed("refresh family"))?;
        let answers = encode_answers(&family.answers)?;
        Ok(Self {
            id: family.id.0.into_bytes(),
            client: family.client.clone(),
            salt: family.salt,
            generation: family.generation,
            rotated_at: family.rotated_at.millis(),
            ended_at: family.ended_at.map(Timestamp::millis),
            expires_at: family.expires_at.millis(),
            sweep_at: latest_expiry(family).millis(),
            sum: sum(family, &answers, &body),
            answers,
            body,
        })
    }
}

fn encode_answers(answers: &Answers) -> Result<String, SqliteError> {
    serde_json::to_string(answers).map_err(malformed("refresh family"))
}

fn sum(family: &Family, answers: &str, body: &str) -> [u8; 16] {
    let ended_at = family.ended_at.map(|at| at.millis().to_be_bytes());
    checksum::row(
        "families",
        &[
            family.id.0.as_bytes(),
            family.client.as_str().as_bytes(),
            &family.salt,
            &family.generation.to_be_bytes(),
            &family.rotated_at.millis().to_be_bytes(),
            answers.as_bytes(),
            ended_at.as_ref().map_or(&[][..], |at| at),
            &family.expires_at.millis().to_be_bytes(),
            body.as_bytes(),
        ],
    )
}

/// Family with its stored body.
struct StoredFamily {
    family: Family,
    body: String,
}

fn find(connection: &Connection, id: FamilyId) -> Result<Option<StoredFamily>, SqliteError> {
    let mut statement = connection.prepare_cached(
        "SELECT id, client, salt, generation, rotated_at, answers, ended_at, expires_at, body, sum \
         FROM families WHERE id = ?1",
    )?;
    statement.query_row((id.0.as_bytes(),), read).optional()?.map(decode).transpose()
}

/// Returns up to `limit` families in the order of their ids.
pub(crate) fn page(
    connection: &Connection,
    after: Option<FamilyId>,
    limit: i64,
) -> Result<Vec<Family>, SqliteError> {
    let key = after.map_or_else(Vec::new, |id| id.0.as_bytes().to_vec());
    let mut statement = connection.prepare_cached(
        "SELECT id, client, salt, generation, rotated_at, answers, ended_at, expires_at, body, sum
         FROM families WHERE id > ?1 ORDER BY id LIMIT ?2",
    )?;
    let rows: Vec<_> = statement.query_map((key, limit), read)?.collect::<rusqlite::Result<_>>()?;
    let families = rows
        .into_iter()
        .map(|row| decode(row).map(|stored| stored.family))
        .collect::<Result<Vec<_>, SqliteError>>()?;
    check_ascending(after, families.iter().map(|family| family.id))?;
    Ok(families)
}

type FamilyRow = ([u8; 16], String, [u8; 32], u32, i64, String, Option<i64>, i64, String, Vec<u8>);

fn read(row: &Row<'_>) -> rusqlite::Result<FamilyRow> {
    row.try_into()
}

fn decode(
    (id, client, salt, generation, rotated_at, answers, ended_at, expires_at, body, kept): FamilyRow,
) -> Result<StoredFamily, SqliteError> {
    let Body { tenant, subject, scopes, audience, epochs, opened_at, idle } =
        serde_json::from_str(&body).map_err(malformed("refresh family"))?;
    let client = client
        .parse()
        .map_err(|invalid| SqliteError::Malformed(format!("refresh family: {invalid}")))?;
    let family = Family {
        id: FamilyId(uuid::Uuid::from_bytes(id)),
        tenant,
        client,
        subject,
        scopes,
        audience,
        salt,
        epochs,
        opened_at,
        expires_at: Timestamp::from_millis(expires_at),
        idle,
        generation,
        rotated_at: Timestamp::from_millis(rotated_at),
        answers: serde_json::from_str(&answers).map_err(malformed("refresh family"))?,
        ended_at: ended_at.map(Timestamp::from_millis),
    };
    if sum(&family, &answers, &body) != kept.as_slice() {
        return Err(SqliteError::Malformed(
            "refresh family: the row does not match its checksum".into(),
        ));
    }
    Ok(StoredFamily { family, body })
}
