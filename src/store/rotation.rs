//! Rule of refresh token rotation (RFC 9700 section 4.14.2), for every backend.
//!
//! | presented | state of the family | decision |
//! |--|--|--|
//! | current token | the last [`RUNNING`] generations, this one included, were each answered more than once | [`Decision::Shared`] |
//! | current token | otherwise | [`Decision::Rotate`] |
//! | its predecessor, in the grace | an answer would make this generation the last of [`RUNNING`] such | [`Decision::Shared`] |
//! | its predecessor, in the grace | given to more than [`REPETITIONS`] calls | [`Decision::Refuse`] |
//! | its predecessor, in the grace | otherwise | [`Decision::Repeat`] |
//! | its predecessor, later | no call is known to have been answered | [`Decision::Repeat`]; grace and counts begin anew |
//! | any other | | [`Decision::Reuse`] |
//!
//! Two parties that use one family both need each generation, so each is answered twice: the count
//! of consecutive generations reveals them, however often either asks. A generation that was
//! answered once is held by one party, whichever asked.

use std::time::Duration;

use crate::model::{
    ClientId, Event, Family, FamilyId, Stamp, Timestamp,
    event::Action,
    family::{Answers, REPETITIONS, RUNNING},
};

/// Outcome of presenting a refresh token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// The token was current: the family is one generation on.
    Rotated,
    /// The token was spent within the grace and its successor is unused; the family after the
    /// repetition.
    Repeated(Family),
    /// A repetition, but the successor was given often enough; the family goes on.
    Refused,
    /// The token was spent before: the family is ended, and everything issued from it is revoked.
    Reused,
    /// Two parties use the family: it is ended, and everything issued from it is revoked. The
    /// family as it was.
    Shared(Family),
    /// The decision would have ended the family, but [`Rotate::retain_for`] is `None`: nothing was
    /// changed.
    Unended(Decision),
    /// There is no such family of this client, or it has ended.
    Unknown,
}

impl Rotation {
    /// Returns the decision of an outcome that changed nothing, of which the store keeps no record.
    pub const fn unrecorded(&self) -> Option<Decision> {
        match self {
            Self::Refused => Some(Decision::Refuse),
            Self::Unended(verdict) => Some(*verdict),
            Self::Unknown => Some(Decision::Unknown),
            Self::Rotated | Self::Repeated(_) | Self::Reused | Self::Shared(_) => None,
        }
    }
}

/// Presented refresh token, already authenticated.
#[derive(Clone, Debug)]
pub struct Rotate {
    /// Family of the token.
    pub family: FamilyId,
    /// Generation of the token.
    pub presented: u32,
    /// Client that presents it.
    pub client: ClientId,
    /// Time of the call.
    pub now: Timestamp,
    /// Time of the call by the clock that all nodes of the store have in common; the grace is
    /// measured in it (C2).
    pub cluster_now: Timestamp,
    /// True if the token was current, or within the grace, when the request arrived. If so, and the
    /// caller has disconnected, a late decision to end the family is dropped: the caller may have
    /// retried on another node, which is no reuse.
    pub was_acceptable_on_arrival: bool,
    /// Time after a rotation in which the spent token still yields the same successor.
    pub grace: Duration,
    /// Time for which the revocation of an ended family must be kept: until its last access token
    /// has expired. `None` means that there is no room for it: then no family is ended.
    pub retain_for: Option<Duration>,
}

/// Rotation that made the family's current generation.
#[derive(Clone, Copy, Debug)]
pub struct LastRotation {
    /// Time of the rotation, as [`Rotate::cluster_now`].
    pub at: Timestamp,
    /// Number of the calls in [`Answers::given`] that are not known to have been answered: the
    /// store failed in between.
    pub unanswered: u32,
}

impl LastRotation {
    /// Returns the number of calls that were answered with the current token.
    pub const fn answered(&self, answers: &Answers) -> u32 {
        answers.given.saturating_sub(self.unanswered)
    }
}

impl Rotate {
    /// Decides what happens to a presented token. Tokens are ordered by generation; time only
    /// bounds the grace, in both directions: of two calls that arrive together the later one may be
    /// decided first, and a clock that stepped far back closes the window. A grace of zero admits
    /// nothing, not even within the millisecond of the rotation. A rotation whose caller was never
    /// answered may be repeated however long the store was away: no caller holds its successor. A
    /// generation that was never issued is from a newer copy of this store: the older one must not
    /// be used.
    pub fn decide(&self, family: &Family, last: LastRotation) -> Decision {
        if family.client != self.client || !family.is_valid(self.now) {
            return Decision::Unknown;
        }
        let (answers, answered) = (&family.answers, last.answered(&family.answers));
        match family.generation.checked_sub(self.presented) {
            Some(0) if self.presented < u32::MAX && answers.is_shared(answered) => Decision::Shared,
            Some(0) if self.presented < u32::MAX => Decision::Rotate,
            Some(1) if self.is_in_grace(last) => {
                if answers.is_shared(answered.saturating_add(1)) {
                    Decision::Shared
                } else if answers.given > REPETITIONS {
                    Decision::Refuse
                } else {
                    Decision::Repeat
                }
            }
            Some(1) if answered == 0 && !self.grace.is_zero() => Decision::Repeat,
            Some(_) | None => Decision::Reuse,
        }
    }

    /// Returns true if the token was spent so recently that its caller may not have received the
    /// answer.
    pub fn is_in_grace(&self, last: LastRotation) -> bool {
        let apart = self.cluster_now.since(last.at).max(last.at.since(self.cluster_now));
        !self.grace.is_zero() && apart <= self.grace
    }

    /// Builds the audit event of a decision on this family, as it was found; `jti` is the access
    /// token minted with it.
    pub fn event(
        &self,
        verdict: Decision,
        stamp: &Stamp,
        jti: &str,
        family: Option<&Family>,
    ) -> Event {
        let answers = family.map(|family| &family.answers);
        match verdict {
            Decision::Rotate => stamp.done(Action::TokenRefreshed, jti),
            Decision::Repeat => {
                let event = stamp.done(Action::RefreshRepeated, jti);
                match answers.filter(|answers| answers.is_from_elsewhere(&stamp.peer)) {
                    Some(answers) => {
                        event.because(format!("another site: rotated from {}", answers.rotated_by))
                    }
                    None => event,
                }
            }
            Decision::Refuse => stamp.refused(Action::RefreshRefused, "", "repeated_too_often"),
            Decision::Reuse => stamp.refused(Action::RefreshReused, "", "invalid_grant"),
            Decision::Shared => {
                let event = stamp.refused(Action::RefreshReused, "", "shared");
                match family {
                    Some(family) => event.because(self.shared_by(family, stamp)),
                    None => event,
                }
            }
            Decision::Unknown => stamp.refused(Action::RefreshRefused, "", "invalid_grant"),
        }
        .in_family(self.family)
    }

    /// Returns a text that names the two peers of a shared family, for the trail.
    fn shared_by(&self, family: &Family, stamp: &Stamp) -> String {
        let Answers { rotated_by, repeated_by, .. } = &family.answers;
        let repeated_by =
            if self.presented == family.generation { repeated_by } else { &stamp.peer };
        format!(
            "shared: repeated in {RUNNING} successive generations; rotated from {rotated_by}, \
             repeated from {repeated_by}"
        )
    }
}

/// Action on a presented refresh token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Advance the family by one generation.
    Rotate,
    /// Return the same successor again.
    Repeat,
    /// Return nothing; the family goes on.
    Refuse,
    /// End the family: a spent token was presented.
    Reuse,
    /// End the family: two parties use it.
    Shared,
    /// Do nothing.
    Unknown,
}

impl Decision {
    /// Returns true if the family is to be ended.
    pub const fn ends(self) -> bool {
        matches!(self, Self::Reuse | Self::Shared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Epochs, Scopes, Subject};

    fn family(given: u32, running: u32) -> Family {
        let client: ClientId = "a".parse().unwrap();
        Family {
            id: FamilyId::new(),
            tenant: "default".parse().unwrap(),
            subject: Subject::of_client(&client),
            client,
            scopes: Scopes::default(),
            audience: Vec::new(),
            salt: [0; 32],
            epochs: Epochs { tenant: 0, client: 0, subject: 0 },
            opened_at: Timestamp::EPOCH,
            expires_at: Timestamp::from_seconds(1_000_000),
            idle: Duration::from_secs(1_000_000),
            generation: 7,
            rotated_at: Timestamp::EPOCH,
            answers: Answers { given, running, ..Answers::first(&"192.0.2.1".into()) },
            ended_at: None,
        }
    }

    /// Decision on a token so many generations old, so many seconds after the rotation, with 10 s
    /// of grace.
    fn verdict(family: &Family, behind: u32, after: i64, unanswered: u32) -> Decision {
        let rotate = Rotate {
            family: family.id,
            presented: family.generation - behind,
            client: family.client.clone(),
            now: Timestamp::from_seconds(after),
            cluster_now: Timestamp::from_seconds(after),
            was_acceptable_on_arrival: true,
            grace: Duration::from_secs(10),
            retain_for: Some(Duration::ZERO),
        };
        rotate.decide(family, LastRotation { at: Timestamp::EPOCH, unanswered })
    }

    /// AUDIT TL7: the table of the module, each row and its bound.
    #[test]
    fn each_state_has_its_verdict() {
        use Decision::{Refuse, Repeat, Reuse, Rotate, Shared};
        for (given, running, behind, after, unanswered, expected) in [
            (1, 0, 0, 1, 0, Rotate),
            (4, 1, 0, 1, 0, Rotate),
            (1, 2, 0, 1, 0, Rotate),
            (2, 2, 0, 1, 0, Shared),
            (2, 2, 0, 1, 1, Rotate),
            (1, 0, 1, 10, 0, Repeat),
            (3, 1, 1, 10, 0, Repeat),
            (4, 1, 1, 10, 0, Refuse),
            (4, 1, 1, 10, 4, Refuse),
            (1, 2, 1, 10, 0, Shared),
            (1, 2, 1, 10, 1, Repeat),
            (2, 2, 1, 10, 1, Shared),
            (4, 2, 1, 10, 0, Shared),
            (1, 0, 1, 11, 0, Reuse),
            (1, 2, 1, 11, 0, Reuse),
            (1, 0, 1, 11, 1, Repeat),
            (4, 2, 1, 9_999, 4, Repeat),
            (4, 2, 1, 9_999, 3, Reuse),
            (1, 0, 2, 1, 1, Reuse),
        ] {
            let found = verdict(&family(given, running), behind, after, unanswered);
            assert_eq!(found, expected, "{given} {running} {behind} {after} {unanswered}");
        }
    }
}
