//! What a fault cost, in figures for README's table.

use std::{collections::BTreeMap, fmt};

use crate::history::{Call, Fault, History, Outcome, Verb};

/// All faults of one name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Figures {
    pub(crate) name: String,
    /// How often it happened.
    pub(crate) rounds: usize,
    /// Calls that were under way while it was broken or recovered.
    pub(crate) calls: usize,
    /// Those that failed: neither done nor refused for a reason.
    pub(crate) failed: usize,
    /// The longest time without one successful call, by kind of change, in microseconds.
    pub(crate) gaps: BTreeMap<&'static str, u64>,
    /// From the beginning of the fault to the end of the last call that failed: the worst round.
    pub(crate) failing: u64,
    /// From its end to the end of the last call that failed: the worst round.
    pub(crate) after: u64,
    /// How long failed calls took.
    pub(crate) median_failed: u64,
    /// How long any call took.
    pub(crate) median: u64,
    pub(crate) worst: u64,
}

/// The kinds of change that must go on.
const CHANGES: [(Verb, &str); 3] = [(Verb::Token, "Token"), (Verb::Refresh, "Refresh"), (Verb::Revoke, "Revoke")];

impl Figures {
    /// Of each kind of fault in a history, in the order of their first.
    pub(crate) fn of(history: &History) -> Vec<Self> {
        let mut names: Vec<&str> = Vec::new();
        for fault in history.faults.iter().filter(|fault| !fault.is_weather()) {
            if !names.contains(&fault.name.as_str()) {
                names.push(&fault.name);
            }
        }
        names.into_iter().map(|name| Self::of_one(history, name)).collect()
    }

    fn of_one(history: &History, name: &str) -> Self {
        let mut figures = Self { name: name.to_owned(), ..Self::default() };
        let (mut took, mut took_failed) = (Vec::new(), Vec::new());
        for fault in history.faults.iter().filter(|fault| fault.name == name) {
            figures.rounds += 1;
            let during: Vec<&Call> = history.calls.iter().filter(|call| is_during(fault, call)).collect();
            for call in &during {
                took.push(call.end - call.start);
                if call.outcome.is_unknown() || is_full(&call.outcome) {
                    figures.failed += 1;
                    took_failed.push(call.end - call.start);
                    figures.failing = figures.failing.max(call.end.saturating_sub(fault.begin));
                    figures.after = figures.after.max(call.end.saturating_sub(fault.end));
                }
            }
            figures.calls += during.len();
            for (verb, kind) in CHANGES {
                let gap = figures.gaps.entry(kind).or_default();
                *gap = (*gap).max(longest_gap(history, fault, verb));
            }
        }
        figures.median = median(&mut took);
        figures.worst = took.last().copied().unwrap_or(0);
        figures.median_failed = median(&mut took_failed);
        figures
    }

    /// The longest time without a successful change of any one kind.
    pub(crate) fn gap(&self) -> u64 {
        self.gaps.values().copied().max().unwrap_or(0)
    }
}

/// One row of a table: fault, rounds, calls, failed, longest gap, median and worst of a call, last failure after begin and end.
impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, rounds, calls, failed, .. } = self;
        let gaps: Vec<String> = self.gaps.iter().map(|(kind, gap)| format!("{kind} {}", seconds(*gap))).collect();
        write!(f, "| {name} | {rounds} | {calls} | {failed} | {} | ", gaps.join(", "))?;
        write!(f, "{} / {} | {} | ", seconds(self.median), seconds(self.worst), seconds(self.median_failed))?;
        write!(f, "{} / {} |", seconds(self.failing), seconds(self.after))
    }
}

/// What the columns are.
pub(crate) const HEAD: &str = "| fault | rounds | calls | failed | longest gap without a success | a call: median / worst | \
                               a failed call: median | last failure after begin / end |";

fn seconds(micros: u64) -> String {
    format!("{:.3} s", micros as f64 / 1e6)
}

fn is_during(fault: &Fault, call: &Call) -> bool {
    let concerns = fault.node.as_ref().is_none_or(|node| *node == call.node);
    concerns && call.start <= fault.end + fault.recovery && call.end >= fault.begin
}

fn is_full(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused { code, .. } if code == "RESOURCE_EXHAUSTED")
}

/// Between the answers of two successful calls, anywhere in the time of the fault and its recovery.
fn longest_gap(history: &History, fault: &Fault, verb: Verb) -> u64 {
    let mut done: Vec<u64> =
        history.calls.iter().filter(|call| call.verb == verb && call.outcome.is_ok()).map(|call| call.end).collect();
    done.sort_unstable();
    let overlaps = |pair: &&[u64]| pair[0] <= fault.end + fault.recovery && pair[1] >= fault.begin;
    done.windows(2).filter(overlaps).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
}

fn median(values: &mut [u64]) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}
