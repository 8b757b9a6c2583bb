//! Rotation of a refresh token (RFC 9700 section 4.14.2): one compare-and-set write, and the
//! verdict if it finds nothing. The rule is in `store::rotation`.
//!
//! A call that gives out a token sets a mark: the id of its outbox entry in `last.unanswered`. A
//! mark that stays belongs to a call whose caller got no answer; such a call may be repeated once,
//! however long the database was unavailable.
//!
//! | mark | event | next | who |
//! |--|--|--|--|
//! | unmarked | a token is given out, for the first time or again | marked, in the same write as the outbox entry | `rotate_current` and `repeat` here |
//! | marked | the caller's future got its answer, before or after the record | answered: known to this process only, no longer counted by `last` | `families` calls `OutboxCleaner::answered` |
//! | answered | the cleaner's next batch | unmarked, in the same write as the removal of the entry if that is recorded | `outbox_cleaner`, `clear_unanswered` |
//! | marked | recovery finds the entry recorded in time by its own node, of another process | answered: that process in all likelihood did | `recovery` |
//! | marked | recovery finds the entry unrecorded, of a process that has ended | marked: whether the caller was answered is not known | `recovery` |
//! | marked | the caller is gone before its answer; the record is marked `late` | marked; the entry alone is removed | `chain_writer`, `outbox_cleaner` |
//! | marked | the token is presented after the grace, and every call is marked | marked by the new call alone; grace and count begin anew | `repeat` here |
//! | any | the next generation is given out | marked by that call alone | `rotate_current` here |
//!
//! An entry whose caller was answered stays in its outbox until its mark is removed
//! (`CleanupBatch::skip_still_marked`), since recovery finds the mark only by the entry.

use std::{sync::Arc, time::Duration};

use mongodb::bson::{Bson, Document, doc};
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    coalesce::{Join, LastSeen, Lead},
    families::{Families, RefreshCall},
};
use crate::{
    model::{
        Family, Stamp,
        family::{Answers, RUNNING},
    },
    store::{
        Decision, LastRotation, Rotate, Rotation, ended,
        mongo::{
            audit::outbox::AuditedChange,
            documents::family::{decoded, end_update, owner},
            driver::{
                codec::{Fields, date, uuid},
                connection::pause,
                error::MongoError,
                group_commands::Updated,
            },
        },
    },
};

/// Attempts of a rotation that others overtake.
const ATTEMPTS_MAX: usize = 16;
/// Delay between two reads of a family whose last calls may or may not have been answered.
const ANSWER_POLL: Duration = Duration::from_millis(100);

/// Outcome of one attempt at a family.
enum Attempt {
    /// Token rotated or repeated, and the change to be recorded.
    Granted(Box<(Rotation, AuditedChange)>),
    /// Neither: the family as it was found after this call began.
    NotGranted(Option<Arc<Document>>),
}

/// Decision, and the state that it rests on.
struct Judged {
    verdict: Decision,
    family: Option<Family>,
    last: LastRotation,
    /// True if the document's marks belong to the current generation.
    has_marks: bool,
}

impl Families {
    /// Rotates or repeats; with the outbox entry of a call that gave out a token, which stays
    /// marked as unanswered until its caller has the answer.
    pub(super) async fn refresh(
        &self,
        call: &RefreshCall<'_>,
    ) -> Result<(Rotation, Option<Uuid>), MongoError> {
        let mut tries = 0;
        while tries < ATTEMPTS_MAX {
            let found = match self.attempt(call).await? {
                Attempt::Granted(granted) => {
                    let (rotation, audited) = *granted;
                    let entry = audited.first_entry()?;
                    self.audit.record(audited, owner(call.rotate.family)).await?;
                    return Ok((rotation, Some(entry)));
                }
                Attempt::NotGranted(found) => found,
            };
            let Judged { verdict, family, last, .. } = self.judge(call.rotate, found.as_deref())?;
            match (verdict, family) {
                // Others changed the family in between.
                (Decision::Rotate | Decision::Repeat, _) => tries += 1,
                // Their callers may yet be answered, or the store failed in between: the marks will
                // go, or stay.
                (Decision::Refuse, Some(family)) if last.answered(&family.answers) == 0 => {
                    if call.is_abandoned() {
                        return Err(MongoError::Timeout(self.connection.deadline()));
                    }
                    pause(ANSWER_POLL).await;
                }
                (verdict, Some(family)) if verdict.ends() => {
                    if let Some(rotation) = self.end_presented(call, verdict, family).await? {
                        return Ok((rotation, None));
                    }
                    tries += 1;
                }
                (Decision::Refuse, _) => return Ok((Rotation::Refused, None)),
                _ => return Ok((Rotation::Unknown, None)),
            }
        }
        Err(MongoError::TooManyPending)
    }

    /// Ends the family; `None` if others changed it in between.
    async fn end_presented(
        &self,
        call: &RefreshCall<'_>,
        verdict: Decision,
        family: Family,
    ) -> Result<Option<Rotation>, MongoError> {
        let rotate = call.rotate;
        // The caller is gone and may already have retried on another node. Treating this as reuse
        // would end its family, so fail with a timeout.
        if rotate.was_acceptable_on_arrival && call.is_abandoned() {
            return Err(MongoError::Timeout(self.connection.deadline()));
        }
        let Some(remember) = rotate.retain_for else { return Ok(Some(Rotation::Unended(verdict))) };
        let audited =
            self.audit.change([rotate.event(verdict, call.stamp, call.jti, Some(&family))])?;
        let until = rotate.now + remember;
        let update = end_update(rotate.family, &audited, Some(rotate.now), until);
        let filter = doc! {
            "_id": uuid(rotate.family.0),
            "generation": i64::from(family.generation),
            "rotated_at": date(family.rotated_at),
            "ended_at": null,
        };
        if self.update(rotate.family, filter, update, &audited).await? != Updated::Applied {
            let found = self.read_durable(rotate.family).await?;
            if !found.is_some_and(|found| audited.is_in(&found)) {
                return Ok(None);
            }
        }
        self.ended(rotate.family, ended(rotate.family, until), audited).await?;
        Ok(Some(if verdict == Decision::Shared {
            Rotation::Shared(family)
        } else {
            Rotation::Reused
        }))
    }

    /// Rotates the current token, or repeats its successor; of concurrent callers on this node one
    /// tries at a time. A result that grants nothing is shared by all of them.
    async fn attempt(&self, call: &RefreshCall<'_>) -> Result<Attempt, MongoError> {
        let (rotate, deadline) = (call.rotate, self.connection.deadline());
        let grants =
            |judged: &Judged| matches!(judged.verdict, Decision::Rotate | Decision::Repeat);
        // A caller that may be granted a token has to try itself.
        let is_usable = |found: Option<&Document>| {
            !self.judge(rotate, found).is_ok_and(|judged| grants(&judged))
        };
        let turn = timeout(deadline, self.rotations.join(rotate.family, is_usable)).await;
        let lead = match turn.map_err(|_| MongoError::Timeout(deadline))? {
            Join::Shared(found) => return Ok(Attempt::NotGranted(found)),
            Join::Lead(lead) => lead,
        };
        if rotate.was_acceptable_on_arrival && call.is_abandoned() {
            return Err(MongoError::Timeout(deadline));
        }
        // The write itself decides: by the last result, else as if the token were the current one,
        // which is the usual case.
        let judged = match lead.last_seen() {
            LastSeen::Family(seen) => Some(self.judge(rotate, Some(&seen))?),
            LastSeen::Nothing | LastSeen::Outdated => None,
        };
        let is_new = matches!(lead.last_seen(), LastSeen::Nothing) && rotate.presented < u32::MAX;
        let found = if is_new || judged.as_ref().is_some_and(grants) {
            match self.grant(call, &lead, judged.as_ref()).await? {
                Attempt::NotGranted(found) => found,
                granted @ Attempt::Granted(..) => return Ok(granted),
            }
        } else {
            lead.run(self.read_durable(rotate.family)).await?
        };
        let judged = self.judge(rotate, found.as_deref())?;
        if judged.verdict == Decision::Repeat {
            return self.grant(call, &lead, Some(&judged)).await;
        }
        Ok(Attempt::NotGranted(found))
    }

    /// Gives out a token by one write, again if the judgement says so; else finds the family as it
    /// is.
    async fn grant(
        &self,
        call: &RefreshCall<'_>,
        lead: &Lead<'_>,
        judged: Option<&Judged>,
    ) -> Result<Attempt, MongoError> {
        let repeats = judged.filter(|judged| judged.verdict == Decision::Repeat);
        let (updated, rotation, audited) = match repeats {
            Some(judged @ Judged { family: Some(family), .. }) => {
                self.repeat(call, judged, family).await?
            }
            Some(_) | None => self.rotate_current(call).await?,
        };
        if updated == Updated::Applied {
            lead.outdate();
            return Ok(Attempt::Granted(Box::new((rotation, audited))));
        }
        let found = lead.run(self.read_durable(call.rotate.family)).await?;
        let is_applied = found.as_deref().is_some_and(|found| audited.is_in(found));
        Ok(if is_applied {
            Attempt::Granted(Box::new((rotation, audited)))
        } else {
            Attempt::NotGranted(found)
        })
    }

    /// Advances the family by one generation, if the filter finds the state for which
    /// [`Rotate::decide`] says [`Decision::Rotate`].
    async fn rotate_current(
        &self,
        call: &RefreshCall<'_>,
    ) -> Result<(Updated, Rotation, AuditedChange), MongoError> {
        let RefreshCall { rotate, stamp, jti, caller } = call;
        let audited = self
            .audit
            .change([rotate.event(Decision::Rotate, stamp, jti, None)])?
            .awaited_by(caller);
        let update = rotated(rotate, stamp, &audited);
        let updated = self.update(rotate.family, current(rotate), update, &audited).await?;
        Ok((updated, Rotation::Rotated, audited))
    }

    /// Gives out the successor again, if no other call got it since the judgement.
    async fn repeat(
        &self,
        call: &RefreshCall<'_>,
        judged: &Judged,
        family: &Family,
    ) -> Result<(Updated, Rotation, AuditedChange), MongoError> {
        let RefreshCall { rotate, stamp, jti, caller } = call;
        let audited = self
            .audit
            .change([rotate.event(Decision::Repeat, stamp, jti, Some(family))])?
            .awaited_by(caller);
        let is_late = !rotate.is_in_grace(judged.last);
        let mut filter = doc! {
            "_id": uuid(rotate.family.0),
            "generation": i64::from(family.generation),
            "answers.given": i64::from(family.answers.given),
            "ended_at": null,
        };
        if is_late {
            // Nor was any of them answered meanwhile, or asked for again: the update leaves count
            // and number of marks, and changes the time.
            filter.insert("last.unanswered", doc! { "$size": i64::from(family.answers.given) });
            filter.insert("last.at", date(judged.last.at));
        }
        let kept = if judged.has_marks && !is_late {
            "$last.unanswered".into()
        } else {
            Bson::Array(Vec::new())
        };
        let given = if is_late { 1 } else { family.answers.given.saturating_add(1) };
        let update = vec![doc! { "$set": {
            "answers.given": i64::from(given),
            "answers.repeated_by": { "$literal": stamp.peer.as_ref() },
            "last": {
                "generation": i64::from(family.generation),
                // The grace begins with the rotation; anew if no caller was answered in it.
                "at": date(if is_late { rotate.cluster_now } else { judged.last.at }),
                "unanswered": { "$concatArrays": [kept, answer_mark(&audited)] },
            },
            "outbox": audited.concatenated(&owner(rotate.family)),
        } }];
        let updated = self.update(rotate.family, filter, update, &audited).await?;
        let answers = Answers { given, repeated_by: stamp.peer.clone(), ..family.answers.clone() };
        Ok((updated, Rotation::Repeated(Family { answers, ..family.clone() }), audited))
    }

    /// Judges a family as it was found.
    fn judge(&self, rotate: &Rotate, found: Option<&Document>) -> Result<Judged, MongoError> {
        let Some(found) = found else {
            let last = LastRotation { at: rotate.cluster_now, unanswered: 0 };
            return Ok(Judged { verdict: Decision::Unknown, family: None, last, has_marks: false });
        };
        let family = decoded(found)?;
        let (last, has_marks) = self.last(found, &family)?;
        Ok(Judged { verdict: rotate.decide(&family, last), family: Some(family), last, has_marks })
    }

    /// State of the rotation that led to the current generation. An imported family has none: its
    /// own time is used instead.
    fn last(
        &self,
        document: &Document,
        family: &Family,
    ) -> Result<(LastRotation, bool), MongoError> {
        let own = LastRotation { at: family.rotated_at, unanswered: 0 };
        let Some(last) = document.get("last").and_then(Bson::as_document) else {
            return Ok((own, false));
        };
        let fields = Fields::of("refresh family", last);
        if fields.count("generation")? != u64::from(family.generation) {
            return Ok((own, false));
        }
        let marks = fields.uuids("unanswered")?;
        let unanswered = marks.into_iter().filter(|entry| !self.audit.was_answered(*entry)).count();
        Ok((
            LastRotation {
                at: fields.time("at")?,
                unanswered: u32::try_from(unanswered).unwrap_or(u32::MAX),
            },
            true,
        ))
    }
}

/// Mark of a call in progress.
fn answer_mark(audited: &AuditedChange) -> Bson {
    audited.entries.first().map(|entry| uuid(entry.id)).into_iter().collect::<Vec<_>>().into()
}

/// Expression: true if the current generation was answered more than once. An answered call whose
/// mark this node has not yet removed is not counted.
fn is_repeated() -> Document {
    let marks = doc! { "$cond": [
        { "$eq": ["$last.generation", "$generation"] },
        { "$size": { "$ifNull": ["$last.unanswered", []] } },
        0,
    ] };
    doc! { "$gt": [{ "$subtract": ["$answers.given", marks] }, 1] }
}

/// Filter for a family whose current token is the one presented, and which is not shared.
fn current(rotate: &Rotate) -> Document {
    let ran = doc! { "$gte": ["$answers.running", i64::from(RUNNING) - 1] };
    doc! {
        "_id": uuid(rotate.family.0),
        "client": rotate.client.as_str(),
        "generation": i64::from(rotate.presented),
        "ended_at": null,
        "ends_at": { "$gt": date(rotate.now) },
        "$expr": { "$not": [{ "$and": [ran, is_repeated()] }] },
    }
}

fn rotated(rotate: &Rotate, stamp: &Stamp, audited: &AuditedChange) -> Vec<Document> {
    let (now, next) = (date(rotate.now), i64::from(rotate.presented.saturating_add(1)));
    vec![doc! { "$set": {
        "generation": next,
        "rotated_at": now.clone(),
        "answers": {
            "given": 1_i64,
            "running": { "$cond": [is_repeated(), { "$add": ["$answers.running", 1_i64] }, 0_i64] },
            "rotated_by": { "$literal": stamp.peer.as_ref() },
            "repeated_by": "",
        },
        "last": {
            "generation": next,
            "at": date(rotate.cluster_now),
            // The entry leaves the outbox once any node has recorded it; this mark stays until the
            // caller was answered.
            "unanswered": answer_mark(audited),
        },
        "ends_at": { "$min": ["$expires_at", { "$add": [now, "$idle_ms"] }] },
        "outbox": audited.concatenated(&owner(rotate.family)),
    } }]
}
