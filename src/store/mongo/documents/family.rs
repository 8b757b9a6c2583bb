//! Documents of `tokens`: one for each refresh family.

use std::time::Duration;

use mongodb::bson::{Document, doc};
use serde::{Deserialize, Serialize};

use crate::{
    model::{
        Audience, Epochs, Family, FamilyId, Revoked, Scopes, Subject, TenantId, Timestamp,
        revocation::Revocation,
    },
    store::mongo::{
        audit::outbox::{AuditedChange, OutboxOwner},
        driver::{
            codec::{Fields, bytes, date, encode, uuid},
            error::MongoError,
            schema::TOKENS,
        },
    },
};

/// Longer than any family lives; keeps sums of dates within MongoDB's range.
const IDLE_MAX: Duration = Duration::from_secs(100 * 366 * 86_400);

pub(crate) fn owner(id: FamilyId) -> OutboxOwner {
    OutboxOwner { collection: TOKENS, id: uuid(id.0) }
}

/// Update that ends a family, or extends the time for which its end is remembered.
pub(crate) fn end_update(
    id: FamilyId,
    audited: &AuditedChange,
    ended_at: Option<Timestamp>,
    until: Timestamp,
) -> Vec<Document> {
    let mut set = doc! {
        "ended": true,
        "ended_until": { "$max": ["$ended_until", date(until)] },
        "outbox": audited.concatenated(&owner(id)),
    };
    if let Some(at) = ended_at {
        set.insert("ended_at", doc! { "$ifNull": ["$ended_at", date(at)] });
    }
    vec![doc! { "$set": set }]
}

/// Time until which the end of a family must be remembered; `None` if it was not ended.
pub(crate) fn ended_until(document: &Document) -> Result<Option<Timestamp>, MongoError> {
    Fields::of("refresh family", document).find_time("ended_until")
}

/// Revocation of a family that was ended and is still stored.
pub(crate) fn revocation_of_family(document: &Document) -> Result<Revocation, MongoError> {
    let fields = Fields::of("refresh family", document);
    Ok(Revocation {
        revoked: Revoked::Family(FamilyId(fields.uuid("_id")?)),
        until: fields.time("ended_until")?,
    })
}

/// Fields that never change.
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

/// Encodes a family without operation id and outbox.
pub(crate) fn encoded(family: &Family) -> Result<Document, MongoError> {
    let Family { tenant, subject, scopes, audience, epochs, opened_at, idle, .. } = family.clone();
    let body = encode(
        "refresh family",
        &Body { tenant, subject, scopes, audience, epochs, opened_at, idle },
    )?;
    let idle = i64::try_from(family.idle.min(IDLE_MAX).as_millis()).unwrap_or(i64::MAX);
    Ok(doc! {
        "_id": uuid(family.id.0),
        "client": family.client.as_str(),
        "salt": bytes(&family.salt),
        "generation": i64::from(family.generation),
        "rotated_at": date(family.rotated_at),
        "answers": encode("refresh family", &family.answers)?,
        "ended_at": family.ended_at.map(date),
        "expires_at": date(family.expires_at),
        "idle_ms": idle,
        "ends_at": date(family.ends_at()),
        "ended": false,
        "family": body,
    })
}

pub(crate) fn decoded(document: &Document) -> Result<Family, MongoError> {
    let fields = Fields::of("refresh family", document);
    let Body { tenant, subject, scopes, audience, epochs, opened_at, idle } =
        fields.part("family")?;
    let generation = u32::try_from(fields.count("generation")?)
        .map_err(|error| MongoError::malformed("refresh family", error))?;
    Ok(Family {
        id: FamilyId(fields.uuid("_id")?),
        tenant,
        client: fields.parse("client")?,
        subject,
        scopes,
        audience,
        salt: fields.hash("salt")?,
        epochs,
        opened_at,
        expires_at: fields.time("expires_at")?,
        idle,
        generation,
        rotated_at: fields.time("rotated_at")?,
        answers: fields.part("answers")?,
        ended_at: fields.find_time("ended_at")?,
    })
}
