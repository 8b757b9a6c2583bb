//! The rule of refresh token rotation (RFC 9700 section 4.14.2), which every backend keeps.

use std::time::Duration;

use crate::model::{ClientId, Event, Family, FamilyId, Stamp, Timestamp, event::Action};

/// What became of a presented refresh token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// It was the current one; the family as it stands now, one generation on.
    Rotated(Family),
    /// It was spent within the grace window and its successor is unused; the family as it stands.
    Repeated(Family),
    /// It was spent before: the family has been ended, and everything that came of it.
    Reused,
    /// There is no such family, not of this client, or it no longer stands.
    Unknown,
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
    /// The same moment by the clock that all nodes of the store have in common: what the grace is measured in (C2).
    pub agreed: Timestamp,
    /// Whether, as far as was known when it arrived, it could be rotated or repeated. Then it is not reuse that it comes through
    /// late, when the caller is gone and has gone on elsewhere.
    pub lawful: bool,
    /// How long after a rotation the spent token still yields the same successor.
    pub grace: Duration,
    /// How long an ended family must be remembered: until its last access token has expired.
    pub remember: Duration,
}

/// What a store knows of the rotation that a family's current generation came of, besides the family.
#[derive(Clone, Copy, Debug)]
pub struct Last {
    /// When it was, as [`Rotate::agreed`].
    pub at: Timestamp,
    /// It was made, and nobody is known to have been answered: the store failed in between.
    pub unanswered: bool,
}

impl Rotate {
    /// The rule every backend keeps. Order is the generation; the time only bounds the grace, in both directions: of two calls
    /// that arrive together the later one may be judged first, and a clock that stepped back far closes the window. No grace is
    /// none, also within the millisecond of the rotation. A rotation that nobody was answered may be asked for again however
    /// long the store was away, once: its successor is nobody's yet, and the grace begins with the answer. A generation that was
    /// never given out comes from a newer copy of this store: the older one must not go on.
    pub fn judge(&self, family: &Family, last: Last) -> Verdict {
        if family.client != self.client || !family.stands(self.now) {
            return Verdict::Unknown;
        }
        let in_grace = self.is_in_grace(last) || (last.unanswered && !self.grace.is_zero());
        match family.generation.checked_sub(self.presented) {
            Some(0) if self.presented < u32::MAX => Verdict::Rotate,
            Some(1) if in_grace => Verdict::Repeat,
            Some(_) | None => Verdict::End,
        }
    }

    /// Whether the token was spent so short a time ago that its caller may not have got the answer.
    pub fn is_in_grace(&self, last: Last) -> bool {
        let apart = self.agreed.since(last.at).max(last.at.since(self.agreed));
        !self.grace.is_zero() && apart <= self.grace
    }

    /// What the trail says of a verdict; `jti` is the access token minted along.
    pub fn event(&self, verdict: Verdict, stamp: &Stamp, jti: &str) -> Event {
        match verdict {
            Verdict::Rotate => stamp.done(Action::TokenRefreshed, jti),
            Verdict::Repeat => stamp.done(Action::RefreshRepeated, jti),
            Verdict::End => stamp.refused(Action::RefreshReused, "", "invalid_grant"),
            Verdict::Unknown => stamp.refused(Action::RefreshRefused, "", "invalid_grant"),
        }
        .in_family(self.family)
    }
}

/// What is to be done about a presented refresh token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go one generation on.
    Rotate,
    /// Give the same successor again.
    Repeat,
    /// End the family.
    End,
    /// Do nothing.
    Unknown,
}
