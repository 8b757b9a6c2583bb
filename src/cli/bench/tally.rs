//! Times and errors of the calls of a run.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;

use crate::cli::error::Failure;

/// Longest time that is distinguished; longer ones count as this.
const LONGEST_MICROS: u64 = 600_000_000;
/// Significant digits of a time.
const DIGITS: u8 = 3;
/// Kinds of errors that are counted; further ones count as `other`.
const ERRORS_MAX: usize = 32;

/// Counts of calls: times in microseconds, and errors by reason.
#[derive(Default)]
pub(super) struct Tally {
    times: Option<Histogram<u64>>,
    errors: BTreeMap<String, u64>,
}

impl Tally {
    /// Creates an empty tally.
    pub(super) fn new() -> Result<Self, Failure> {
        let times = Histogram::new_with_max(LONGEST_MICROS, DIGITS)
            .map_err(|error| Failure::Other(format!("cannot count times: {error}")))?;
        Ok(Self { times: Some(times), errors: BTreeMap::new() })
    }

    /// Counts a call: its time if it succeeded, else its error.
    pub(super) fn record(&mut self, time: Duration, error: Option<&String>) {
        let Some(reason) = error else {
            let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            if let Some(times) = &mut self.times {
                times.saturating_record(micros);
            }
            return;
        };
        let is_known = self.errors.contains_key(reason) || self.errors.len() < ERRORS_MAX;
        let reason = if is_known { reason.as_str() } else { "other" };
        let number = self.errors.entry(reason.to_owned()).or_default();
        *number = number.saturating_add(1);
    }

    /// Adds the calls of another tally.
    pub(super) fn add(&mut self, other: &Self) {
        if let (Some(times), Some(others)) = (&mut self.times, &other.times) {
            // Both have the same bounds.
            let _ = times.add(others);
        }
        for (reason, number) in &other.errors {
            let sum = self.errors.entry(reason.clone()).or_default();
            *sum = sum.saturating_add(*number);
        }
    }

    /// Number of calls that succeeded.
    pub(super) fn succeeded(&self) -> u64 {
        self.times.as_ref().map_or(0, Histogram::len)
    }

    /// Number of calls that failed.
    pub(super) fn failed(&self) -> u64 {
        self.errors.values().fold(0, |sum, number| sum.saturating_add(*number))
    }

    /// Number of all calls.
    pub(super) fn calls(&self) -> u64 {
        self.succeeded().saturating_add(self.failed())
    }

    /// Errors by reason.
    pub(super) const fn errors(&self) -> &BTreeMap<String, u64> {
        &self.errors
    }

    /// Times of the calls that succeeded, in milliseconds; empty if none did.
    pub(super) fn percentiles(&self) -> Vec<(&'static str, f64)> {
        let Some(times) = self.times.as_ref().filter(|times| !times.is_empty()) else {
            return Vec::new();
        };
        let millis = |micros: u64| micros as f64 / 1_000.0;
        let at = |quantile: f64| millis(times.value_at_quantile(quantile));
        vec![
            ("p50", at(0.5)),
            ("p90", at(0.9)),
            ("p99", at(0.99)),
            ("p999", at(0.999)),
            ("max", millis(times.max())),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times are those of successes alone; errors are counted by reason, and their kinds are bounded.
    #[test]
    fn calls_are_counted_by_outcome() {
        let (mut one, mut other) = (Tally::new().unwrap(), Tally::new().unwrap());
        for millis in 1..=100 {
            one.record(Duration::from_millis(millis), None);
        }
        other.record(Duration::from_secs(3_600), None);
        other.record(Duration::ZERO, Some(&"slow_down".to_owned()));
        one.add(&other);
        one.add(&other);
        assert_eq!((one.calls(), one.succeeded(), one.failed()), (104, 102, 2));
        assert_eq!(one.errors().get("slow_down"), Some(&2));
        let percentiles: BTreeMap<_, _> = one.percentiles().into_iter().collect();
        assert!((percentiles["p50"] - 51.0).abs() < 0.1, "{percentiles:?}");
        assert!(percentiles["max"] >= 599_000.0, "longer than what is distinguished");
        for n in 0..100 {
            one.record(Duration::ZERO, Some(&format!("reason {n}")));
        }
        assert_eq!((one.errors().len(), one.failed()), (ERRORS_MAX + 1, 102));
        assert!(Tally::new().unwrap().percentiles().is_empty());
    }
}
