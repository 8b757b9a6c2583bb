//! The rotation of a refresh token (RFC 9700 section 4.14.2): one conditional write, and what to say where it finds nothing.

use std::sync::{Arc, Weak};

use mongodb::bson::{Bson, Document, doc};
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    Shared,
    codec::{Fields, date, uuid},
    families::{decoded, end, owner},
    fault::Fault,
    pending::Deed,
    revocations::ended_until,
    turns::Turn,
};
use crate::{
    model::{Family, Revoked, Stamp, revocation::Revocation},
    store::{Change, Last, Rotate, Rotation, Verdict},
};

/// How often a rotation that others overtook is judged anew.
const ATTEMPTS: usize = 16;

/// What became of a token.
enum Spent {
    /// It was spent by this call: the family as it is now, and the record that is due.
    Now(Arc<Document>, Deed),
    /// It was not: the family as it was found after this call began.
    Not(Option<Arc<Document>>),
}

/// What is to be done about a token.
struct Judged {
    verdict: Verdict,
    family: Option<Family>,
    last: Option<Last>,
    /// The entry that the last rotation is marked with, if nobody was answered.
    mark: Option<Uuid>,
}

impl Shared {
    /// With the outbox entry of a rotation, which is marked as not answered until it is.
    pub(super) async fn rotate(
        &self,
        rotate: &Rotate,
        stamp: &Stamp,
        jti: &str,
        caller: &Weak<()>,
    ) -> Result<(Rotation, Option<Uuid>), Fault> {
        for _ in 0..ATTEMPTS {
            if let Some(rotation) = self.attempt(rotate, stamp, jti, caller).await? {
                return Ok(rotation);
            }
        }
        Err(Fault::Crowded)
    }

    /// One round of judging and acting; `None` if somebody else changed the family in between.
    async fn attempt(
        &self,
        rotate: &Rotate,
        stamp: &Stamp,
        jti: &str,
        caller: &Weak<()>,
    ) -> Result<Option<(Rotation, Option<Uuid>)>, Fault> {
        let found = match self.spend(rotate, stamp, jti, caller).await? {
            Spent::Now(found, deed) => {
                let entry = deed.entries.first().map(|entry| entry.id);
                let family = decoded(&found)?;
                self.record(deed, owner(rotate.family)).await?;
                return Ok(Some((Rotation::Rotated(family), entry)));
            }
            Spent::Not(found) => found,
        };
        let Judged { verdict, family, last, mark } = self.judge(rotate, found.as_deref())?;
        let event = rotate.event(verdict, stamp, jti);
        let rotation = match (verdict, family) {
            (Verdict::Rotate, _) => return Ok(None),
            (Verdict::Repeat, Some(family)) if last.is_some_and(|last| rotate.is_in_grace(last)) => {
                self.append(event).await?;
                // Whoever is answered now has what the first call may not have been given.
                return Ok(Some((Rotation::Repeated(family), mark)));
            }
            (Verdict::Repeat, Some(family)) => {
                let deed = self.deed([event])?;
                let entry = deed.entries.first().map(|entry| entry.id);
                // Nobody was answered so far: the mark is this call's now, and the grace begins here.
                let filter = doc! {
                    "_id": uuid(rotate.family.0),
                    "generation": i64::from(family.generation),
                    "ended_at": null,
                    "last.unanswered": mark.map(uuid),
                };
                let Some(found) = self.change_family(filter, repeated(rotate, &deed)).await? else { return Ok(None) };
                self.record(deed, owner(rotate.family)).await?;
                return Ok(Some((Rotation::Repeated(decoded(&found)?), entry)));
            }
            // The late echo of a call that was given up, and made again elsewhere since: nobody's reuse.
            (Verdict::End, _) if rotate.lawful && caller.strong_count() == 0 => {
                return Err(Fault::Late(self.link.deadline()));
            }
            (Verdict::End, Some(family)) => {
                let deed = self.deed([event])?;
                let until = rotate.now + rotate.remember;
                let update = end(&deed, Some(rotate.now), until);
                let filter = doc! {
                    "_id": uuid(rotate.family.0),
                    "generation": i64::from(family.generation),
                    "rotated_at": date(family.rotated_at),
                    "ended_at": null,
                };
                let found = self.change_family(filter, update).await?;
                let Some(found) = found else { return Ok(None) };
                let revocation =
                    Revocation { revoked: Revoked::Family(rotate.family), until: ended_until(&found)?.unwrap_or(until) };
                self.record_heard(deed, owner(rotate.family), vec![Change::Revoked(revocation)]).await?;
                Rotation::Reused
            }
            (Verdict::Unknown, _) | (_, None) => {
                self.append(event).await?;
                Rotation::Unknown
            }
        };
        Ok(Some((rotation, None)))
    }

    /// Spends the token, if it is the current one; of those who come at the same time on this node, one tries.
    async fn spend(&self, rotate: &Rotate, stamp: &Stamp, jti: &str, caller: &Weak<()>) -> Result<Spent, Fault> {
        let deadline = self.link.deadline();
        // Whose token is the current one has to try.
        let serves = |found: Option<&Document>| {
            let judged = self.judge(rotate, found);
            !judged.is_ok_and(|judged| judged.verdict == Verdict::Rotate)
        };
        let turn = timeout(deadline, self.rotators.turn(rotate.family, serves)).await;
        let look = match turn.map_err(|_| Fault::Late(deadline))? {
            Turn::Found(found) => return Ok(Spent::Not(found)),
            Turn::Look(look) => look,
        };
        if rotate.lawful && caller.strong_count() == 0 {
            return Err(Fault::Late(deadline));
        }
        let is_gone = look.generation().is_some_and(|seen| seen > i64::from(rotate.presented));
        if rotate.presented < u32::MAX && !is_gone {
            // The usual case, judged by the write itself: the filter is `Rotate::judge` saying `Rotate`.
            let deed = self.deed([rotate.event(Verdict::Rotate, stamp, jti)])?;
            let before = look.before();
            if let Some(found) = self.change_family(standing_at(rotate), rotated(rotate, &deed)).await?.map(Arc::new) {
                look.found(before, Some(found.clone()));
                return Ok(Spent::Now(found, deed));
            }
        }
        Ok(Spent::Not(look.find(self.as_kept(rotate.family)).await?))
    }

    /// What is to be done, by what was found.
    fn judge(&self, rotate: &Rotate, found: Option<&Document>) -> Result<Judged, Fault> {
        let Some(found) = found else {
            return Ok(Judged { verdict: Verdict::Unknown, family: None, last: None, mark: None });
        };
        let family = decoded(found)?;
        let (last, mark) = self.last(found, &family)?;
        Ok(Judged { verdict: rotate.judge(&family, last), family: Some(family), last: Some(last), mark })
    }

    /// The rotation that the current generation came of, and the entry it is marked with while nobody was answered. There is none
    /// of a family that came with an import, or that an older version rotated: then its own time has to do.
    fn last(&self, document: &Document, family: &Family) -> Result<(Last, Option<Uuid>), Fault> {
        let own = Last { at: family.rotated_at, unanswered: false };
        let Some(last) = document.get("last").and_then(Bson::as_document) else { return Ok((own, None)) };
        let fields = Fields::of("refresh family", last);
        if fields.count("generation")? != u64::from(family.generation) {
            return Ok((own, None));
        }
        let mark = fields.find("unanswered").map(|_| fields.uuid("unanswered")).transpose()?;
        let mark = mark.filter(|entry| !self.settle.was_answered(*entry));
        Ok((Last { at: fields.time("at")?, unanswered: mark.is_some() }, mark))
    }
}

/// A family whose current token is the one presented.
fn standing_at(rotate: &Rotate) -> Document {
    doc! {
        "_id": uuid(rotate.family.0),
        "client": rotate.client.as_str(),
        "generation": i64::from(rotate.presented),
        "ended_at": null,
        "ends_at": { "$gt": date(rotate.now) },
    }
}

fn rotated(rotate: &Rotate, deed: &Deed) -> Vec<Document> {
    let now = date(rotate.now);
    vec![doc! { "$set": {
        "generation": i64::from(rotate.presented.saturating_add(1)),
        "rotated_at": now.clone(),
        "last": {
            "generation": i64::from(rotate.presented.saturating_add(1)),
            "at": date(rotate.agreed),
            // The entry goes out of the outbox, whoever records it; this stays until the caller was answered.
            "unanswered": deed.entries.first().map(|entry| uuid(entry.id)),
        },
        "ends_at": { "$min": ["$expires_at", { "$add": [now, "$idle_ms"] }] },
        "op": deed.operation(),
        "outbox": deed.concatenated(),
    } }]
}

fn repeated(rotate: &Rotate, deed: &Deed) -> Vec<Document> {
    vec![doc! { "$set": {
        "last.at": date(rotate.agreed),
        "last.unanswered": deed.entries.first().map(|entry| uuid(entry.id)),
        "op": deed.operation(),
        "outbox": deed.concatenated(),
    } }]
}
