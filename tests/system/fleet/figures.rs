//! Costs of a fault, in figures for README's table.

use std::fmt;

use crate::fleet::history::{Call, Fault, History, Outcome, Verb};

/// All faults of one name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Figures {
    pub(crate) name: String,
    /// Calls that were under way while it was broken or recovered.
    pub(crate) calls: usize,
    /// Those that failed: neither done nor refused for a reason.
    pub(crate) failed: usize,
    /// Of each round, how long some kind of change did not succeed, in microseconds; the worst
    /// round is the last.
    pub(crate) gaps: Vec<u64>,
    /// Duration of every call.
    pub(crate) median: u64,
    pub(crate) worst: u64,
}

/// The kinds of change that must go on.
pub(crate) const CHANGES: [Verb; 3] = [Verb::Token, Verb::Refresh, Verb::Revoke];

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
        let mut took = Vec::new();
        for fault in history.faults.iter().filter(|fault| fault.name == name) {
            for call in history.calls.iter().filter(|call| is_during(fault, call)) {
                figures.calls += 1;
                figures.failed += usize::from(call.outcome.is_unknown() || is_full(&call.outcome));
                took.push(call.end - call.start);
            }
            let gaps = CHANGES.map(|verb| longest_gap(history, fault, verb));
            figures.gaps.push(gaps.into_iter().max().unwrap_or(0));
        }
        figures.gaps.sort_unstable();
        took.sort_unstable();
        figures.median = median(&took);
        figures.worst = took.last().copied().unwrap_or(0);
        figures
    }

    /// The longest time without a successful change of any one kind, in any round.
    pub(crate) fn gap(&self) -> u64 {
        self.gaps.last().copied().unwrap_or(0)
    }
}

/// One row of the table.
impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, calls, failed, gaps, .. } = self;
        write!(f, "| {name} | {} | {calls}, {failed} | ", gaps.len())?;
        write!(f, "{} / {} | ", seconds(median(gaps)), seconds(self.gap()))?;
        write!(f, "{} / {} |", seconds(self.median), seconds(self.worst))
    }
}

/// Names of the columns.
pub(crate) const HEAD: &str = "| fault | rounds | calls, failed | without a success: median / \
                               worst | a call: median / worst |";

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
    let mut done: Vec<u64> = history
        .calls
        .iter()
        .filter(|call| call.verb == verb && call.outcome.is_ok())
        .map(|call| call.end)
        .collect();
    done.sort_unstable();
    let overlaps = |pair: &&[u64]| pair[0] <= fault.end + fault.recovery && pair[1] >= fault.begin;
    done.windows(2).filter(overlaps).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
}

/// Of what is in order.
fn median(values: &[u64]) -> u64 {
    values.get(values.len() / 2).copied().unwrap_or(0)
}
