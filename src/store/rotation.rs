//! The rule of refresh token rotation (RFC 9700 section 4.14.2), which every backend keeps.
//!
//! | presented | state of the family | verdict |
//! |--|--|--|
//! | current token | the last [`RUNNING`] generations, this one included, were each answered more than once | [`Verdict::Shared`] |
//! | current token | otherwise | [`Verdict::Rotate`] |
//! | its predecessor, in the grace | an answer would make this generation the last of [`RUNNING`] such | [`Verdict::Shared`] |
//! | its predecessor, in the grace | given to more than [`REPETITIONS`] calls | [`Verdict::Refuse`] |
//! | its predecessor, in the grace | otherwise | [`Verdict::Repeat`] |
//! | its predecessor, later | no call is known to have been answered | [`Verdict::Repeat`]; grace and counts begin anew |
//! | any other | | [`Verdict::Reuse`] |
//!
//! Two parties that go on with one family both need each generation, so each is answered twice: the
//! count of generations running finds them, however often either asks. A generation that was
//! answered once is held by one party, whoever asked.

use std::time::Duration;

use crate::model::{
    ClientId, Event, Family, FamilyId, Stamp, Timestamp,
    event::Action,
    family::{Answers, REPETITIONS, RUNNING},
};

/// Outcome of presenting a refresh token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// It was the current one; the family as it is now, one generation on.
    Rotated(Family),
    /// It was spent within the grace window and its successor is unused; the family as it is now.
    Repeated(Family),
    /// It would have been repeated, but its successor was given often enough; the family goes on.
    Refused,
    /// It was spent before: the family has been ended, and everything that came of it.
    Reused,
    /// Two callers go on with the family: it has been ended, and everything that came of it. The
    /// family as it was.
    Shared(Family),
    /// It would have ended the family, by this verdict, and [`Rotate::remember`] is `None`: nothing
    /// was changed.
    Unended(Verdict),
    /// There is no such family, not of this client, or it has ended.
    Unknown,
}

impl Rotation {
    /// The verdict behind an outcome that changed nothing, of which the store leaves no record.
    pub const fn unrecorded(&self) -> Option<Verdict> {
        match self {
            Self::Refused => Some(Verdict::Refuse),
            Self::Unended(verdict) => Some(*verdict),
            Self::Unknown => Some(Verdict::Unknown),
            Self::Rotated(_) | Self::Repeated(_) | Self::Reused | Self::Shared(_) => None,
        }
    }
}

/// A presented refresh token, already authenticated.
#[derive(Clone, Debug)]
pub struct Rotate {
    /// The family.
    pub family: FamilyId,
    /// The generation presented.
    pub presented: u32,
    /// Who presents it.
    pub client: ClientId,
    /// When.
    pub now: Timestamp,
    /// The same moment by the clock that all nodes of the store have in common: what the grace is
    /// measured in (C2).
    pub agreed: Timestamp,
    /// Whether, as far as was known when it arrived, it could be rotated or repeated. Then it is
    /// not reuse that it comes through late, when the caller is gone and has gone on elsewhere.
    pub lawful: bool,
    /// How long after a rotation the spent token still yields the same successor.
    pub grace: Duration,
    /// Time for which an ended family must be remembered: until its last access token has expired.
    /// `None` means that there is no room to remember it: then no family is ended.
    pub remember: Option<Duration>,
}

/// State of the rotation that a family's current generation came of, besides the family.
#[derive(Clone, Copy, Debug)]
pub struct Last {
    /// When it was, as [`Rotate::agreed`].
    pub at: Timestamp,
    /// How many of the calls that [`Answers::given`] counts are not known to have been answered:
    /// the store failed in between.
    pub unanswered: u32,
}

impl Last {
    /// Number of calls that were answered with the current token.
    pub const fn answered(&self, answers: &Answers) -> u32 {
        answers.given.saturating_sub(self.unanswered)
    }
}

impl Rotate {
    /// The verdict. Order is the generation; the time only bounds the grace, in both directions: of
    /// two calls that arrive together the later one may be judged first, and a clock that stepped
    /// back far closes the window. No grace is none, also within the millisecond of the rotation. A
    /// rotation that no caller was answered may be asked for again however long the store was away:
    /// its successor is in no hands yet. A generation that was never given out comes from a newer
    /// copy of this store: the older one must not go on.
    pub fn judge(&self, family: &Family, last: Last) -> Verdict {
        if family.client != self.client || !family.is_valid(self.now) {
            return Verdict::Unknown;
        }
        let (answers, answered) = (&family.answers, last.answered(&family.answers));
        match family.generation.checked_sub(self.presented) {
            Some(0) if self.presented < u32::MAX && answers.is_shared(answered) => Verdict::Shared,
            Some(0) if self.presented < u32::MAX => Verdict::Rotate,
            Some(1) if self.is_in_grace(last) => {
                if answers.is_shared(answered.saturating_add(1)) {
                    Verdict::Shared
                } else if answers.given > REPETITIONS {
                    Verdict::Refuse
                } else {
                    Verdict::Repeat
                }
            }
            Some(1) if answered == 0 && !self.grace.is_zero() => Verdict::Repeat,
            Some(_) | None => Verdict::Reuse,
        }
    }

    /// Whether the token was spent so short a time ago that its caller may not have got the answer.
    pub fn is_in_grace(&self, last: Last) -> bool {
        let apart = self.agreed.since(last.at).max(last.at.since(self.agreed));
        !self.grace.is_zero() && apart <= self.grace
    }

    /// The audit event of a verdict on this family, as it was found; `jti` is the access token
    /// minted along.
    pub fn event(
        &self,
        verdict: Verdict,
        stamp: &Stamp,
        jti: &str,
        family: Option<&Family>,
    ) -> Event {
        let answers = family.map(|family| &family.answers);
        match verdict {
            Verdict::Rotate => stamp.done(Action::TokenRefreshed, jti),
            Verdict::Repeat => {
                let event = stamp.done(Action::RefreshRepeated, jti);
                match answers.filter(|answers| answers.is_from_elsewhere(&stamp.peer)) {
                    Some(answers) => {
                        event.because(format!("another site: rotated from {}", answers.rotated_by))
                    }
                    None => event,
                }
            }
            Verdict::Refuse => stamp.refused(Action::RefreshRefused, "", "repeated_too_often"),
            Verdict::Reuse => stamp.refused(Action::RefreshReused, "", "invalid_grant"),
            Verdict::Shared => {
                let event = stamp.refused(Action::RefreshReused, "", "shared");
                match family {
                    Some(family) => event.because(self.shared_by(family, stamp)),
                    None => event,
                }
            }
            Verdict::Unknown => stamp.refused(Action::RefreshRefused, "", "invalid_grant"),
        }
        .in_family(self.family)
    }

    /// The two peers that go on with one family, in words for the trail.
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

/// The act that is due on a presented refresh token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go one generation on.
    Rotate,
    /// Give the same successor again.
    Repeat,
    /// Give nothing; the family goes on.
    Refuse,
    /// End the family: a spent token came again.
    Reuse,
    /// End the family: two callers go on with it.
    Shared,
    /// Do nothing.
    Unknown,
}

impl Verdict {
    /// Whether the family is to be ended.
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

    /// Presented so many generations behind, so many seconds after the rotation, with 10 s of
    /// grace.
    fn verdict(family: &Family, behind: u32, after: i64, unanswered: u32) -> Verdict {
        let rotate = Rotate {
            family: family.id,
            presented: family.generation - behind,
            client: family.client.clone(),
            now: Timestamp::from_seconds(after),
            agreed: Timestamp::from_seconds(after),
            lawful: true,
            grace: Duration::from_secs(10),
            remember: Some(Duration::ZERO),
        };
        rotate.judge(family, Last { at: Timestamp::EPOCH, unanswered })
    }

    /// AUDIT TL7: the table of the module, each row and its bound.
    #[test]
    fn each_state_has_its_verdict() {
        use Verdict::{Refuse, Repeat, Reuse, Rotate, Shared};
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
