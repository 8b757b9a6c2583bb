//! Ends of tokens: the times from which on they perhaps, and certainly, hold.

use std::collections::HashMap;

use super::{Minted, Presented, may_have_happened};
use crate::fleet::history::{Call, History, Named, Outcome, Verb};

/// Reason for which a token may be inactive.
#[derive(Clone, Copy)]
pub(super) struct Ending<'a> {
    pub(super) call: &'a Call,
    /// From when on it may hold.
    pub(super) from: u64,
    /// From when on it does, where that is known.
    pub(super) sure: Option<u64>,
    /// The node that knows of it at once, where one does.
    pub(super) at_once: Option<&'a str>,
    /// True if it ends by itself: not, where a refusal only tells that something else has.
    pub(super) cause: bool,
}

impl<'a> Ending<'a> {
    fn of(call: &'a Call) -> Self {
        let sure = call.outcome.is_ok().then_some(call.end);
        Self { call, from: call.start, sure, at_once: Some(&call.node), cause: true }
    }

    /// True if a judgement that began at `at` on `node` must know of it.
    pub(super) fn binds(&self, history: &History, node: &str, at: u64) -> bool {
        self.sure.is_some_and(|sure| at > sure + self.patience(history, node, sure, at))
    }

    fn patience(&self, history: &History, node: &str, sure: u64, at: u64) -> u64 {
        if self.at_once == Some(node) {
            0
        } else if history.disturbed(node, sure, at) {
            history.run.stale
        } else {
            history.run.delta
        }
    }
}

#[derive(Default)]
pub(super) struct Endings<'a> {
    tokens: HashMap<&'a str, Vec<Ending<'a>>>,
    families: HashMap<&'a str, Vec<Ending<'a>>>,
    clients: HashMap<&'a str, Vec<Ending<'a>>>,
}

impl<'a> Endings<'a> {
    pub(super) fn new(
        history: &'a History,
        presented: &HashMap<&'a str, Vec<Presented<'a>>>,
    ) -> Self {
        let mut endings = Self::default();
        for call in history.calls.iter().filter(|call| may_have_happened(&call.outcome)) {
            let ending = Ending::of(call);
            match (call.verb, &call.token) {
                (Verb::Revoke | Verb::RevokeAll, Some(Named::Access { jti })) => {
                    endings.tokens.entry(jti).or_default().push(ending);
                }
                (
                    Verb::Revoke | Verb::RevokeAll,
                    Some(Named::Refresh { family, .. } | Named::Family { family }),
                ) => {
                    endings.families.entry(family).or_default().push(ending);
                }
                (Verb::RevokeAll | Verb::DisableClient, None) => {
                    endings.clients.entry(&call.client).or_default().push(ending);
                }
                _ => {}
            }
        }
        for (&family, calls) in presented {
            let found = endings.families.entry(family).or_default();
            for (at, one) in calls.iter().enumerate() {
                if is_reuse(history.run.grace, calls, at) || is_shared(calls, at) {
                    found.push(Ending { sure: None, ..Ending::of(one.call) });
                }
                // Every token in a history is genuine and its client's own: it is refused because
                // it does not stand any more. The node was told so by the store, and need not have
                // heard of it by the way that judgements do.
                if one.call.outcome.reason() == Some("INVALID_GRANT") && !is_one_too_many(calls, at)
                {
                    found.push(Ending {
                        sure: Some(one.call.end),
                        at_once: None,
                        cause: false,
                        ..Ending::of(one.call)
                    });
                }
            }
        }
        endings
    }

    /// Ends that a token may have had before `before`.
    pub(super) fn may_end(&self, token: &Minted<'a>, before: u64, stale: u64) -> bool {
        let jti = token.issued.jti.as_str();
        let narrow = of(&self.tokens, jti)
            .iter()
            .chain(token.family.map_or(&[][..], |family| of(&self.families, family)));
        narrow.copied().any(|ending| ending.from < before)
            || self.may_end_client(&token.call.client, token.opened, before, stale)
    }

    /// True if the family a refresh token is of may have ended before `before`, for a reason of its
    /// own.
    pub(super) fn may_end_family(
        &self,
        family: &str,
        opened: Option<&Call>,
        client: &str,
        before: u64,
        stale: u64,
    ) -> bool {
        of(&self.families, family).iter().any(|ending| ending.cause && ending.from < before)
            || opened.is_none_or(|opened| self.may_end_client(client, opened, before, stale))
    }

    /// A wide ending takes what was given out before it, and what was given out by a node that had
    /// not yet heard of it.
    fn may_end_client(&self, client: &str, opened: &Call, before: u64, stale: u64) -> bool {
        of(&self.clients, client).iter().any(|ending| {
            ending.from < before && ending.sure.is_none_or(|sure| opened.start < sure + stale)
        })
    }

    /// Ends that a token must have had for a judgement that began at `at` on `node`.
    pub(super) fn must_end(
        &self,
        history: &History,
        token: &Minted<'a>,
        node: &str,
        at: u64,
    ) -> Option<Ending<'a>> {
        let narrow = of(&self.tokens, &token.issued.jti).iter();
        let narrow =
            narrow.chain(token.family.map_or(&[][..], |family| of(&self.families, family)));
        let wide = of(&self.clients, &token.call.client)
            .iter()
            .filter(|ending| token.opened.end < ending.from);
        narrow.chain(wide).find(|ending| ending.binds(history, node, at)).copied()
    }

    /// Acknowledged ends of a family by itself.
    pub(super) fn family(&self, family: &str) -> &[Ending<'a>] {
        of(&self.families, family)
    }

    pub(super) fn client(&self, client: &str) -> &[Ending<'a>] {
        of(&self.clients, client)
    }
}

fn of<'e, 'a>(map: &'e HashMap<&str, Vec<Ending<'a>>>, key: &str) -> &'e [Ending<'a>] {
    map.get(key).map_or(&[], Vec::as_slice)
}

/// True if a presented token may rightly have been taken for stolen: its successor was used before
/// its answer, or it came again when the grace was over. No grace runs out while all that anybody
/// was answered is that the outcome is not known: then the successor is nobody's yet.
fn is_reuse(grace: u64, calls: &[Presented<'_>], at: usize) -> bool {
    let one = calls[at];
    let successor_was_used = |other: &Presented<'_>| {
        other.generation > one.generation && other.call.start < one.call.end
    };
    let is_late = |other: &Presented<'_>| {
        other.generation == one.generation
            && other.call.request != one.call.request
            && may_have_been_given(&other.call.outcome)
            && other.call.start + grace < one.call.end
    };
    calls.iter().any(|other| successor_was_used(other) || is_late(other))
}

/// Bounds on repetitions of a token in one generation, and on generations in a row with one.
const REPETITIONS: usize = 3;
const RUNNING: u32 = 3;

/// True if a presented token may have been refused because its successor was given often enough:
/// that ends nothing.
pub(super) fn is_one_too_many(calls: &[Presented<'_>], at: usize) -> bool {
    let one = calls[at];
    let before = calls.iter().filter(|other| {
        other.generation == one.generation
            && other.call.request != one.call.request
            && other.call.start < one.call.end
    });
    let given = before.filter(|other| may_have_happened(&other.call.outcome));
    let (mut count, mut answered) = (0, false);
    for other in given {
        count += 1;
        answered |= may_have_been_given(&other.call.outcome);
    }
    count > REPETITIONS && answered
}

/// True if a presented token may have shown that two go on with its family: this generation and
/// those before it may each have been given more than once.
fn is_shared(calls: &[Presented<'_>], at: usize) -> bool {
    let one = calls[at];
    let is_repeated = |generation: u32| {
        let given = |other: &&Presented<'_>| {
            other.generation == generation
                && other.call.start < one.call.end
                && (other.call.request == one.call.request
                    || may_have_been_given(&other.call.outcome))
        };
        calls.iter().filter(given).count() > 1
    };
    // It shows in a repetition, or when the next token is presented.
    let last = |last: u32| {
        last.checked_sub(RUNNING - 1).is_some_and(|first| (first..=last).all(is_repeated))
    };
    last(one.generation) || one.generation.checked_sub(1).is_some_and(last)
}

/// True if the server may have answered with a token: it did, or its answer was lost on the way.
fn may_have_been_given(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Ok => true,
        Outcome::Unknown { code, .. } => code == "TRANSPORT",
        Outcome::Refused { .. } => false,
    }
}
