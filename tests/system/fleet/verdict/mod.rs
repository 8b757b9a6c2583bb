//! Checks that a history keeps the promises, under any fault: FAULTS section 4, I1 to I10
//! (I8 is in `leaks`, since it looks for what a history never holds). Reads nothing but the
//! history.

mod bounds;
mod endings;
mod families;
mod tokens;
mod trail;

use std::{collections::HashMap, fmt};

use serde::Serialize;

use self::endings::Endings;
use crate::fleet::history::{Call, History, Issued, Named, Outcome, Verb};

/// A promise that was broken, with the lines that show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    /// I1 to I10.
    pub(crate) invariant: &'static str,
    pub(crate) what: String,
    pub(crate) lines: Vec<String>,
}

impl Violation {
    pub(crate) fn new(invariant: &'static str, what: impl Into<String>) -> Self {
        Self { invariant, what: what.into(), lines: Vec::new() }
    }

    /// With another line that shows it.
    fn by(mut self, line: &impl Serialize) -> Self {
        self.lines.push(serde_json::to_string(line).unwrap());
        self
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)?;
        self.lines.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// Everything in the history that must not be.
pub(crate) fn judge(history: &History) -> Vec<Violation> {
    let known = Known::new(history);
    let mut found = Vec::new();
    tokens::judge(&known, &mut found);
    families::judge(&known, &mut found);
    trail::judge(&known, &mut found);
    bounds::judge(&known, &mut found);
    found
}

/// An access token that was given out.
struct Minted<'a> {
    call: &'a Call,
    issued: &'a Issued,
    family: Option<&'a str>,
    /// The call that opened its family, else its own: wide endings are judged by what that was
    /// before.
    opened: &'a Call,
}

/// A history with what can be looked up in it.
struct Known<'a> {
    history: &'a History,
    /// By jti.
    minted: HashMap<&'a str, Minted<'a>>,
    /// By family, what was presented to be refreshed.
    presented: HashMap<&'a str, Vec<Presented<'a>>>,
    endings: Endings<'a>,
}

/// A refresh token in a call of Refresh.
#[derive(Clone, Copy)]
struct Presented<'a> {
    call: &'a Call,
    family: &'a str,
    generation: u32,
    print: &'a str,
}

impl<'a> Known<'a> {
    fn new(history: &'a History) -> Self {
        let mut openings: HashMap<&str, &Call> = HashMap::new();
        for call in
            history.calls.iter().filter(|call| call.verb == Verb::Token && call.outcome.is_ok())
        {
            if let Some((family, ..)) = call.issued.as_ref().and_then(refresh_token) {
                openings.insert(family, call);
            }
        }
        let mut minted = HashMap::new();
        for call in history.calls.iter().filter(|call| call.outcome.is_ok()) {
            let Some(issued) = &call.issued else { continue };
            let family = refresh_token(issued).map(|(family, ..)| family);
            let opened = family.and_then(|family| openings.get(family).copied()).unwrap_or(call);
            minted.insert(issued.jti.as_str(), Minted { call, issued, family, opened });
        }
        let mut presented: HashMap<&str, Vec<Presented<'_>>> = HashMap::new();
        for call in history.calls.iter().filter(|call| call.verb == Verb::Refresh) {
            let Some(Named::Refresh { family, generation, print }) = &call.token else { continue };
            presented.entry(family).or_default().push(Presented {
                call,
                family,
                generation: *generation,
                print,
            });
        }
        let endings = Endings::new(history, &presented);
        Self { history, minted, presented, endings }
    }

    /// Judgements of access tokens that were given out here, in the order of their beginning.
    fn judgements(&self) -> impl Iterator<Item = (&'a Call, &Minted<'a>, bool)> {
        self.history.calls.iter().filter_map(|call| {
            let Some(Named::Access { jti }) = &call.token else { return None };
            let active =
                call.active.filter(|_| call.verb == Verb::Introspect && call.outcome.is_ok())?;
            Some((call, self.minted.get(jti.as_str())?, active))
        })
    }
}

/// Family, generation and print of the refresh token that came along.
fn refresh_token(issued: &Issued) -> Option<(&str, u32, &str)> {
    match issued.refresh.as_ref()? {
        Named::Refresh { family, generation, print } => Some((family, *generation, print)),
        Named::Access { .. } | Named::Family { .. } => None,
    }
}

/// True if a call may have changed something.
fn may_have_happened(outcome: &Outcome) -> bool {
    !matches!(outcome, Outcome::Refused { .. })
}
