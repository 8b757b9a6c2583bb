//! Refresh tokens: I3 none has two successors, I1 and I7 the newest one is good until its family is
//! ended, I2 and I4 an ended family gives nothing out.

use std::collections::HashMap;

use super::{Known, Violation, endings::is_one_too_many, refresh_token};
use crate::fleet::history::{Call, Verb};

pub(super) fn judge(known: &Known<'_>, found: &mut Vec<Violation>) {
    one_successor(known, found);
    refused_for_a_reason(known, found);
    ended_families_give_nothing(known, found);
}

/// I3: of each generation there is one token, and whoever presents a token gets the one after it.
fn one_successor(known: &Known<'_>, found: &mut Vec<Violation>) {
    let mut tokens: HashMap<(&str, u32), (&str, &Call)> = HashMap::new();
    let mut seen = |found: &mut Vec<Violation>, family, generation, print, call| {
        let (first, by) = *tokens.entry((family, generation)).or_insert((print, call));
        if first != print {
            let what = format!("generation {generation} of the family {family} is two tokens");
            found.push(Violation::new("I3", what).by(by).by(call));
        }
    };
    for call in known.history.calls.iter().filter(|call| call.outcome.is_ok()) {
        if let Some((family, generation, print)) = call.issued.as_ref().and_then(refresh_token) {
            seen(found, family, generation, print, call);
        }
    }
    for presented in known.presented.values().flatten() {
        seen(found, presented.family, presented.generation, presented.print, presented.call);
        let Some((family, generation, _)) = presented.call.issued.as_ref().and_then(refresh_token)
        else {
            continue;
        };
        if family != presented.family || generation != presented.generation + 1 {
            let what = format!(
                "generation {} is answered with generation {generation} of {family}",
                presented.generation
            );
            found.push(Violation::new("I3", what).by(presented.call));
        }
    }
}

/// I1, I7: a genuine refresh token is refused only where its family may have been ended, it was
/// used again after its successor, or its successor was given often enough. So a retry after an
/// unknown outcome comes out right, and no late echo of the first attempt ends the family.
fn refused_for_a_reason(known: &Known<'_>, found: &mut Vec<Violation>) {
    let all = known
        .presented
        .values()
        .flat_map(|calls| calls.iter().enumerate().map(move |(at, one)| (calls, at, one)));
    for (calls, at, presented) in all {
        let call = presented.call;
        if call.outcome.reason() != Some("INVALID_GRANT") || is_one_too_many(calls, at) {
            continue;
        }
        let opened = known
            .minted
            .values()
            .find(|token| token.family == Some(presented.family))
            .map(|token| token.opened);
        let stale = known.history.run.stale;
        if known.endings.may_end_family(presented.family, opened, &call.client, call.end, stale) {
            continue;
        }
        let of_it = &known.presented[presented.family];
        let unknown = of_it
            .iter()
            .filter(|other| other.call.outcome.is_unknown() && other.call.start < call.end);
        let unknown: Vec<_> = unknown.collect();
        let (invariant, why) = if unknown.is_empty() {
            ("I1", "nobody ended its family")
        } else {
            ("I7", "its family was only ever retried")
        };
        let what = format!(
            "generation {} of the family {} is refused, and {why}",
            presented.generation, presented.family
        );
        let mut violation = Violation::new(invariant, what);
        for other in unknown {
            violation = violation.by(other.call);
        }
        found.push(violation.by(call));
    }
}

/// I2, I4: once the end of a family is acknowledged, a refresh that begins after that gets nothing,
/// on any node: the store decides, and there is nothing to be heard of first. A client's end is
/// heard of.
fn ended_families_give_nothing(known: &Known<'_>, found: &mut Vec<Violation>) {
    for presented in
        known.presented.values().flatten().filter(|presented| presented.call.outcome.is_ok())
    {
        let call = presented.call;
        let ended = known
            .endings
            .family(presented.family)
            .iter()
            .find(|ending| ending.sure.is_some_and(|sure| call.start > sure));
        if let Some(ending) = ended {
            let what = format!("the family {} was ended and is refreshed", presented.family);
            let invariant = if ending.cause { "I2" } else { "I4" };
            found.push(Violation::new(invariant, what).by(ending.call).by(call));
        }
        let opened = call
            .issued
            .as_ref()
            .and_then(|issued| known.minted.get(issued.jti.as_str()))
            .map(|token| token.opened);
        let wide = known.endings.client(&call.client).iter().find(|ending| {
            ending.call.verb == Verb::RevokeAll
                && opened
                    .is_some_and(|opened| opened.verb == Verb::Token && opened.end < ending.from)
                && ending.binds(known.history, &call.node, call.start)
        });
        if let Some(ending) = wide {
            let what = format!(
                "everything of {} was ended and the family {} is refreshed",
                call.client, presented.family
            );
            found.push(Violation::new("I2", what).by(ending.call).by(call));
        }
    }
}
