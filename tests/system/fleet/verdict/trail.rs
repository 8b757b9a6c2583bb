//! The audit trail: I6 what was acknowledged is recorded, I7 what nobody knows the outcome of was
//! done with its record or not at all.

use std::collections::{HashMap, HashSet};

use super::{Known, Violation};
use crate::fleet::history::{Call, Named, Record, SECOND, Verb};

pub(super) fn judge(known: &Known<'_>, found: &mut Vec<Violation>) {
    let trail = Trail::new(&known.history.records);
    chains_are_whole(known, found);
    for call in &known.history.calls {
        if call.outcome.is_ok() {
            acknowledged_is_recorded(&trail, call, found);
        } else if call.outcome.reason().is_some() {
            refused_is_not_done(known, &trail, call, found);
        }
    }
    once_is_once(known, &trail, found);
    unknown_is_all_or_nothing(known, &trail, found);
}

/// Records that say that something was done.
struct Trail<'a> {
    by_request: HashMap<&'a str, Vec<&'a Record>>,
    by_target: HashSet<(&'a str, &'a str)>,
    by_family: HashMap<&'a str, Vec<&'a Record>>,
}

impl<'a> Trail<'a> {
    fn new(records: &'a [Record]) -> Self {
        let mut trail = Self {
            by_request: HashMap::new(),
            by_target: HashSet::new(),
            by_family: HashMap::new(),
        };
        for record in records {
            if !record.family.is_empty() {
                trail.by_family.entry(&record.family).or_default().push(record);
            }
            if record.outcome == "ok" {
                trail.by_request.entry(&record.request).or_default().push(record);
                trail.by_target.insert((&record.action, &record.target));
            }
        }
        trail
    }

    fn has(&self, actions: &[&str], target: &str) -> bool {
        actions.iter().any(|action| self.by_target.contains(&(*action, target)))
    }

    fn of_family(&self, family: &str) -> &[&'a Record] {
        self.by_family.get(family).map_or(&[], Vec::as_slice)
    }

    fn of_request(&self, request: &str) -> &[&'a Record] {
        self.by_request.get(request).map_or(&[], Vec::as_slice)
    }
}

/// The actions that end a family.
const FAMILY_ENDS: &[&str] = &["token.revoked", "revocation.family", "refresh_token.reused"];

/// I6: each chain's records are numbered without a gap, and the walk over the hashes finds nothing.
fn chains_are_whole(known: &Known<'_>, found: &mut Vec<Violation>) {
    for chain in known.history.chains.iter().filter(|chain| !chain.intact) {
        found.push(
            Violation::new("I6", format!("the chain does not verify: {}", chain.problem)).by(chain),
        );
    }
    let mut sequences: HashMap<&str, Vec<(i64, &Record)>> = HashMap::new();
    for record in &known.history.records {
        sequences.entry(&record.chain).or_default().push((record.sequence, record));
    }
    for (chain, mut records) in sequences {
        records.sort_by_key(|(sequence, _)| *sequence);
        let gap = records.iter().zip(1..).find(|((sequence, _), expected)| sequence != expected);
        if let Some(((sequence, record), expected)) = gap {
            let what = format!("the chain {chain} has {sequence} where {expected} is due");
            found.push(Violation::new("I6", what).by(*record));
        }
    }
}

fn acknowledged_is_recorded(trail: &Trail<'_>, call: &Call, found: &mut Vec<Violation>) {
    let recorded = match (call.verb, &call.token) {
        (Verb::Introspect, _) => true,
        (Verb::Token, _) => {
            call.issued.as_ref().is_some_and(|issued| trail.has(&["token.issued"], &issued.jti))
        }
        (Verb::Refresh, _) => {
            let actions = ["token.refreshed", "refresh_token.repeated"];
            call.issued.as_ref().is_some_and(|issued| trail.has(&actions, &issued.jti))
        }
        // A second revocation of the same is fine as it is: the first one's record is enough.
        (Verb::Revoke | Verb::RevokeAll, Some(Named::Access { jti })) => {
            trail.has(&["token.revoked", "revocation.token"], jti)
        }
        (
            Verb::Revoke | Verb::RevokeAll,
            Some(Named::Refresh { family, .. } | Named::Family { family }),
        ) => trail
            .of_family(family)
            .iter()
            .any(|record| FAMILY_ENDS.contains(&record.action.as_str())),
        (Verb::RevokeAll, None) => is_done(trail, call, "revocation.client"),
        (Verb::CreateClient, None) => trail.has(&["client.created"], &call.client),
        (Verb::DisableClient, None) => trail.has(&["client.disabled"], &call.client),
        (Verb::Revoke, None) | (Verb::CreateClient | Verb::DisableClient, Some(_)) => false,
    };
    if !recorded {
        found.push(
            Violation::new("I6", "it was acknowledged, and there is no record of it").by(call),
        );
    }
}

fn is_done(trail: &Trail<'_>, call: &Call, action: &str) -> bool {
    trail
        .of_request(&call.request)
        .iter()
        .any(|record| record.action == action && record.target == call.client)
}

/// `store.max_staleness_seconds`, in microseconds.
const STALENESS: u64 = 5 * SECOND;

/// Record of a call whose client was disabled while it was on its way: it is refused
/// behind its write, and ends a family that it opened.
const TAKEN_BACK: &[&str] =
    &["token.issued", "token.refreshed", "refresh_token.repeated", "token.revoked"];

/// I6: what was refused was not done, but for what its client's end took back.
fn refused_is_not_done(
    known: &Known<'_>,
    trail: &Trail<'_>,
    call: &Call,
    found: &mut Vec<Violation>,
) {
    let records = trail.of_request(&call.request);
    let issues = matches!(call.verb, Verb::Token | Verb::Refresh)
        && call.outcome.reason() == Some("INVALID_CLIENT");
    let meanwhile = |other: &Call| {
        // Another node may hear of it as late as this; beyond, it judges nothing.
        let heard = if other.node == call.node { other.end } else { other.end + STALENESS };
        let late = other.outcome.is_unknown() || heard > call.start;
        other.verb == Verb::DisableClient
            && other.client == call.client
            && other.start < call.end
            && late
    };
    let is_taken_back = || {
        records.iter().all(|record| TAKEN_BACK.contains(&record.action.as_str()))
            && known.history.calls.iter().any(meanwhile)
    };
    if issues && is_taken_back() {
        return;
    }
    if let Some(record) = records.first() {
        found.push(
            Violation::new("I6", "it was refused, and is recorded as done").by(call).by(*record),
        );
    }
}

/// I3, I6: what happens once is recorded once, and a family has as many records as generations: the
/// last may be one that nobody was told of.
fn once_is_once(known: &Known<'_>, trail: &Trail<'_>, found: &mut Vec<Violation>) {
    let mut seen: HashMap<(&str, &str), &Record> = HashMap::new();
    for record in known.history.records.iter().filter(|record| record.outcome == "ok") {
        if !matches!(record.action.as_str(), "token.issued" | "token.refreshed" | "client.created")
        {
            continue;
        }
        if let Some(first) = seen.insert((&record.action, &record.target), record) {
            found.push(
                Violation::new("I6", "it happened once and is recorded twice").by(first).by(record),
            );
        }
    }
    for (family, presented) in &known.presented {
        let newest = presented
            .iter()
            .filter(|one| one.call.outcome.is_ok())
            .map(|one| one.generation + 1)
            .max()
            .unwrap_or(0);
        let untold =
            presented.iter().any(|one| one.generation == newest && one.call.outcome.is_unknown());
        let records = trail
            .of_family(family)
            .iter()
            .filter(|record| record.action == "token.refreshed")
            .count();
        let records = u32::try_from(records).unwrap();
        if records != newest && !(untold && records == newest + 1) {
            let what = format!(
                "the family {family} came to generation {newest}, with {records} records of a \
                 refresh"
            );
            found.push(Violation::new("I3", what));
        }
    }
}

/// I7: an ending that nobody knows the outcome of has its record and holds on every node in the
/// end, or neither.
fn unknown_is_all_or_nothing(known: &Known<'_>, trail: &Trail<'_>, found: &mut Vec<Violation>) {
    let mut last: HashMap<(&str, &str), (&Call, bool)> = HashMap::new();
    for (call, token, active) in known.judgements() {
        last.insert((&token.issued.jti, &call.node), (call, active));
    }
    let broken = known.history.faults.iter().filter(|fault| !fault.is_weather());
    let settled = broken.map(|fault| fault.end + fault.recovery).max().unwrap_or(0);
    let unknown = |call: &&Call| {
        call.outcome.is_unknown() && matches!(call.verb, Verb::Revoke | Verb::RevokeAll)
    };
    let mut attempts: HashMap<&str, Vec<&Call>> = HashMap::new();
    for call in known.history.calls.iter().filter(unknown) {
        attempts.entry(call.ends()).or_default().push(call);
    }
    for ((jti, _), (judgement, active)) in last {
        let token = &known.minted[jti];
        if judgement.start < settled.max(token.call.end) + known.history.run.stale {
            continue;
        }
        let names = [Some(jti), token.family, Some(token.call.client.as_str())];
        let attempts = names.into_iter().flatten().filter_map(|name| attempts.get(name)).flatten();
        // A client's end says nothing of what was given out at the same time.
        let before = |call: &&&Call| call.token.is_some() || token.opened.end < call.start;
        let (mut done, mut tried) = (None, None);
        for call in attempts
            .filter(before)
            .filter(|call| call.start + known.history.run.stale < judgement.start)
        {
            tried = Some(*call);
            let record = trail.of_request(&call.request).first();
            done = done.or_else(|| record.map(|record| (*call, *record)));
        }
        match (done, tried) {
            (Some((call, record)), _) if active => {
                let what = format!("the end of the token {jti} is recorded, and it stands");
                found.push(Violation::new("I7", what).by(call).by(record).by(judgement));
            }
            (None, Some(call))
                if !active
                    && judgement.end < token.issued.until
                    && !is_recorded(known, trail, jti) =>
            {
                let what = format!(
                    "the token {jti} does not stand, and nothing that could have ended it is \
                     recorded"
                );
                found.push(Violation::new("I7", what).by(call).by(judgement));
            }
            _ => {}
        }
    }
}

/// True if any record explains that a token does not stand.
fn is_recorded(known: &Known<'_>, trail: &Trail<'_>, jti: &str) -> bool {
    let token = &known.minted[jti];
    trail.has(&["token.revoked", "revocation.token"], jti)
        || trail.has(&["revocation.client", "client.disabled"], &token.call.client)
        || token.family.is_some_and(|family| {
            trail
                .of_family(family)
                .iter()
                .any(|record| FAMILY_ENDS.contains(&record.action.as_str()))
        })
}
