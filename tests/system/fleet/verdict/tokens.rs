//! Access tokens: I1 what was given out stands, I2 and I4 what was ended stays ended.

use std::collections::HashMap;

use super::{Known, Violation};
use crate::fleet::history::{Call, Verb};

pub(super) fn judge(known: &Known<'_>, found: &mut Vec<Violation>) {
    issued_stand(known, found);
    ended_do_not(known, found);
    nothing_comes_back(known, found);
    refused_clients_get_nothing(known, found);
}

/// I1: a token that was acknowledged stands until its end, unless it may have been ended.
fn issued_stand(known: &Known<'_>, found: &mut Vec<Violation>) {
    let run = &known.history.run;
    for (call, token, active) in known.judgements() {
        let in_its_life = call.start > token.call.end && call.end + run.leeway < token.issued.until;
        if !active && in_its_life && !known.endings.may_end(token, call.end, run.stale) {
            let what = format!(
                "the token {} was given out, nobody ended it, and it does not stand",
                token.issued.jti
            );
            found.push(Violation::new("I1", what).by(token.call).by(call));
        }
    }
}

/// I2, I4: once an ending is acknowledged and had time to be heard of, nothing that it covers
/// stands, on any node, ever. After a refresh token was refused for good, nothing of its family
/// does.
fn ended_do_not(known: &Known<'_>, found: &mut Vec<Violation>) {
    for (call, token, active) in known.judgements() {
        let ending = known.endings.must_end(known.history, token, &call.node, call.start);
        if let Some(ending) = ending.filter(|_| active) {
            let late = call.start - ending.sure.unwrap_or(call.start);
            let what = format!(
                "the token {} stands {} ms after it was ended",
                token.issued.jti,
                late / 1_000
            );
            let invariant = if ending.cause { "I2" } else { "I4" };
            found.push(Violation::new(invariant, what).by(token.call).by(ending.call).by(call));
        }
    }
}

/// I2: whoever has said that a token does not stand has said it for all.
fn nothing_comes_back(known: &Known<'_>, found: &mut Vec<Violation>) {
    let mut gone: HashMap<&str, &Call> = HashMap::new();
    for (call, token, active) in
        known.judgements().filter(|(call, token, _)| call.start > token.call.end)
    {
        let jti = token.issued.jti.as_str();
        if !active {
            let first = gone.entry(jti).or_insert(call);
            if call.end < first.end {
                *first = call;
            }
            continue;
        }
        let patience = if known.history.disturbed(&call.node, token.call.start, call.start) {
            known.history.run.stale
        } else {
            known.history.run.delta
        };
        if let Some(gone) = gone.get(jti)
            && call.start > gone.end + if gone.node == call.node { 0 } else { patience }
        {
            let what = format!("the token {jti} did not stand any more and stands again");
            found.push(Violation::new("I2", what).by(token.call).by(gone).by(call));
        }
    }
}

/// I2: a client that is refused gets no token anywhere.
fn refused_clients_get_nothing(known: &Known<'_>, found: &mut Vec<Violation>) {
    for call in &known.history.calls {
        if !matches!(call.verb, Verb::Token | Verb::Refresh) || !call.outcome.is_ok() {
            continue;
        }
        let disabled = known.endings.client(&call.client).iter().find(|ending| {
            ending.call.verb == Verb::DisableClient
                && ending.binds(known.history, &call.node, call.start)
        });
        if let Some(disabled) = disabled {
            let what = format!("the client {} was disabled and gets tokens", call.client);
            found.push(Violation::new("I2", what).by(disabled.call).by(call));
        }
    }
}
