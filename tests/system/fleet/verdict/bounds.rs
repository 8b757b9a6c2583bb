//! Bounds on the use of resources: I5 budgets, I9 memory and descriptors, I10 time and errors.

use std::collections::HashMap;

use super::{Known, Violation};
use crate::fleet::history::{Call, Fault, Outcome, SECOND, Sample, Verb};

pub(super) fn judge(known: &Known<'_>, found: &mut Vec<Violation>) {
    budgets(known, found);
    resources(known, found);
    for call in &known.history.calls {
        in_time(known, call, found);
        expected(known, call, found);
    }
}

/// I5: no window of the wall clock lets more through than the budget and its documented overshoot.
/// Calls across the edge of a window may have been counted in either.
fn budgets(known: &Known<'_>, found: &mut Vec<Violation>) {
    let run = &known.history.run;
    for limit in &run.limits {
        let mut windows: HashMap<u64, u64> = HashMap::new();
        for call in known
            .history
            .calls
            .iter()
            .filter(|call| call.client == limit.client && call.outcome.is_ok())
        {
            let (first, last) =
                ((run.wall + call.start) / limit.window, (run.wall + call.end) / limit.window);
            if first == last {
                *windows.entry(first).or_default() += 1;
            }
        }
        for (window, calls) in windows.into_iter().filter(|(_, calls)| *calls > limit.calls) {
            let what = format!(
                "{} got {calls} calls through in the window {window}, not {}",
                limit.client, limit.calls
            );
            found.push(Violation::new("I5", what).by(limit));
        }
    }
}

/// I9: memory stays under its bound and does not creep, and descriptors come back to where they
/// were.
fn resources(known: &Known<'_>, found: &mut Vec<Violation>) {
    let mut nodes: HashMap<&str, Vec<&Sample>> = HashMap::new();
    for sample in &known.history.samples {
        nodes.entry(&sample.node).or_default().push(sample);
    }
    for (node, samples) in nodes {
        let run = &known.history.run;
        if let Some(sample) = samples.iter().find(|sample| sample.resident > run.resident) {
            let what = format!("{node} takes {} KiB, more than {}", sample.resident, run.resident);
            found.push(Violation::new("I9", what).by(*sample));
        }
        if let (Some(first), Some(last)) = (samples.first(), samples.last())
            && last.descriptors > first.descriptors + run.descriptors
        {
            let what = format!(
                "{node} began with {} descriptors and ends with {}",
                first.descriptors, last.descriptors
            );
            found.push(Violation::new("I9", what).by(*first).by(*last));
        }
        let growth = run.growth.zip(slope(&samples[samples.len() / 2..]));
        if let Some((most, growth)) = growth.filter(|(most, growth)| *growth > *most as f64) {
            found.push(Violation::new(
                "I9",
                format!("{node} grows by {growth:.0} KiB a minute, more than {most}"),
            ));
        }
    }
}

/// KiB a minute, by least squares; none where there is too little to say.
fn slope(samples: &[&Sample]) -> Option<f64> {
    let (first, last) = (samples.first()?, samples.last()?);
    if last.at - first.at < 60 * SECOND {
        return None;
    }
    let count = samples.len() as f64;
    let minutes = |sample: &Sample| (sample.at - first.at) as f64 / (60 * SECOND) as f64;
    let x = samples.iter().map(|sample| minutes(sample)).sum::<f64>() / count;
    let y = samples.iter().map(|sample| sample.resident as f64).sum::<f64>() / count;
    let rise = samples
        .iter()
        .map(|sample| (minutes(sample) - x) * (sample.resident as f64 - y))
        .sum::<f64>();
    let run = samples.iter().map(|sample| (minutes(sample) - x).powi(2)).sum::<f64>();
    Some(rise / run)
}

/// I10: no call takes longer than its deadline, whatever froze; but where others took the
/// processors, nobody knows what it waited for, and where the clock does not count, nobody asks.
fn in_time(known: &Known<'_>, call: &Call, found: &mut Vec<Violation>) {
    let took = call.end - call.start;
    let weather = known
        .history
        .faults
        .iter()
        .any(|fault| fault.is_weather() && fault.covers(call.start, call.end));
    if known.history.run.timed && took > known.history.run.longest && !weather {
        found.push(Violation::new("I10", format!("a call took {} ms", took / 1_000)).by(call));
    }
}

/// I10: calls fail only while something is broken and in the ways that are promised, and are
/// refused only for a reason. Where the clock does not count, a deadline may pass at any time.
fn expected(known: &Known<'_>, call: &Call, found: &mut Vec<Violation>) {
    let history = known.history;
    let complaint = match &call.outcome {
        Outcome::Ok => None,
        Outcome::Unknown { code, retry, .. } => match code.as_str() {
            "UNAVAILABLE" | "DEADLINE_EXCEEDED" | "RESOURCE_EXHAUSTED" => {
                if history.run.timed && !history.disturbed(&call.node, call.start, call.end) {
                    Some("it failed, and nothing was broken".to_owned())
                } else {
                    (!retry).then(|| {
                        "it failed, and the caller was not told when to ask again".to_owned()
                    })
                }
            }
            "TRANSPORT" => {
                let down = |fault: &Fault| {
                    fault.node.as_ref() == Some(&call.node)
                        && fault.begin <= call.end
                        && call.start <= fault.end + fault.recovery
                };
                (!history.faults.iter().any(down))
                    .then(|| "the node did not answer, and was not stopped".to_owned())
            }
            code => Some(format!("nothing may fail with {code}")),
        },
        Outcome::Refused { code, reason } => match (call.verb, reason.as_str()) {
            // Judged with the families.
            (Verb::Refresh, "INVALID_GRANT") => None,
            (_, "SLOW_DOWN") => {
                let limited = history.run.limits.iter().any(|limit| limit.client == call.client);
                (!limited)
                    .then(|| "it was refused by a budget that is not meant to run out".to_owned())
            }
            (_, "INVALID_CLIENT") => (!may_be_refused(known, call))
                .then(|| "the client was refused for no reason".to_owned()),
            (Verb::CreateClient, "ALREADY_EXISTS") => {
                (!has_another(known, call)).then(|| "nobody else made it".to_owned())
            }
            _ => Some(format!("nothing here is to be refused with {code} {reason}")),
        },
    };
    if let Some(what) = complaint {
        found.push(Violation::new("I10", what).by(call));
    }
}

/// True if the client may have been disabled, or another node not have heard yet that it was made.
fn may_be_refused(known: &Known<'_>, call: &Call) -> bool {
    let disabled = known.endings.client(&call.client).iter();
    let mut disabled = disabled.filter(|ending| ending.call.verb == Verb::DisableClient);
    let made = known
        .history
        .calls
        .iter()
        .filter(|made| made.verb == Verb::CreateClient && made.client == call.client);
    let mut made = made.peekable();
    let is_new = made.peek().is_some()
        && !made
            .any(|made| made.outcome.is_ok() && made.end + known.history.run.delta < call.start);
    disabled.any(|ending| ending.from < call.end) || is_new
}

/// True if another worker may have made a client of this name before.
fn has_another(known: &Known<'_>, call: &Call) -> bool {
    known.history.calls.iter().any(|other| {
        other.verb == Verb::CreateClient
            && other.client == call.client
            && other.request != call.request
            && super::may_have_happened(&other.outcome)
            && other.start < call.end
    })
}
