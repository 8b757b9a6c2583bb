//! Size and growth of the audit trail.

use std::time::Duration;

/// Span over which growth is measured.
pub const GROWTH_SPAN: Duration = Duration::from_secs(24 * 60 * 60);

/// Shortest span from which a rate is derived: a store that began a moment ago has none.
const SPAN_MIN_MS: u64 = 60 * 60 * 1_000;

/// Milliseconds of a day.
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// Size of the audit trail, and what was added lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrailSize {
    /// Number of records in the store, of all chains.
    pub records: u64,
    /// Bytes of a record with its part of the indexes.
    pub record_bytes: u64,
    /// Number of records in the last `recent_ms`.
    pub recent: u64,
    /// Milliseconds over which `recent` was counted, at most [`GROWTH_SPAN`].
    pub recent_ms: u64,
}

impl TrailSize {
    /// Returns the bytes of all records with their indexes.
    pub const fn bytes(&self) -> u64 {
        self.records.saturating_mul(self.record_bytes)
    }

    /// Returns the records of a day at the present rate; `None` if the trail is younger than an
    /// hour.
    pub const fn records_a_day(&self) -> Option<u64> {
        if self.recent_ms < SPAN_MIN_MS {
            return None;
        }
        self.recent.saturating_mul(DAY_MS).checked_div(self.recent_ms)
    }

    /// Returns the bytes of a year at the present rate.
    pub fn bytes_a_year(&self) -> Option<u64> {
        Some(self.records_a_day()?.saturating_mul(365).saturating_mul(self.record_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_an_hour() {
        let hour = 60 * 60 * 1_000;
        let size =
            |recent_ms| TrailSize { records: 500, record_bytes: 300, recent: 240, recent_ms };
        assert_eq!(size(hour - 1).records_a_day(), None);
        assert_eq!(size(hour - 1).bytes_a_year(), None);
        assert_eq!(size(hour).records_a_day(), Some(5_760));
        assert_eq!(size(24 * hour).bytes_a_year(), Some(240 * 365 * 300));
        assert_eq!(size(hour).bytes(), 150_000);
    }
}
