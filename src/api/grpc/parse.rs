//! Conversion between the wire's types and ours.

use std::{str::FromStr, time::Duration};

use crate::{
    error::{Error, Result},
    model::{Invalid, Timestamp},
};

/// Parses a text; an empty one is absent.
pub(super) fn optional<T: FromStr<Err = Invalid>>(
    field: &'static str,
    text: &str,
) -> Result<Option<T>> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(Error::invalid(field)) }
}

/// Parses a text; an empty one is refused.
pub(super) fn required<T: FromStr<Err = Invalid>>(field: &'static str, text: &str) -> Result<T> {
    text.parse().map_err(Error::invalid(field))
}

/// Parses every text of a list.
pub(super) fn each<T: FromStr<Err = Invalid>>(
    field: &'static str,
    texts: &[String],
) -> Result<Vec<T>> {
    texts.iter().map(|text| text.parse().map_err(Error::invalid(field))).collect()
}

/// Parses a duration in whole seconds, not negative.
pub(super) fn duration(
    field: &'static str,
    value: Option<prost_types::Duration>,
) -> Result<Option<Duration>> {
    value
        .map(|value| match u64::try_from(value.seconds) {
            Ok(seconds) if value.nanos == 0 => Ok(Duration::from_secs(seconds)),
            Ok(_) | Err(_) => Err(Error::field(field, "must be whole seconds, not negative")),
        })
        .transpose()
}

/// Parses a time from 1970 to 9999.
pub(super) fn time(
    field: &'static str,
    value: Option<prost_types::Timestamp>,
) -> Result<Option<Timestamp>> {
    const YEAR_10000: i64 = 253_402_300_800;
    value
        .map(|value| {
            if !(0..YEAR_10000).contains(&value.seconds)
                || !(0..1_000_000_000).contains(&value.nanos)
            {
                return Err(Error::field(field, "must be between the years 1970 and 9999"));
            }
            Ok(Timestamp::from_millis(value.seconds * 1_000 + i64::from(value.nanos) / 1_000_000))
        })
        .transpose()
}

/// Parses an etag, the revision in decimal; empty means any revision.
pub(super) fn etag(text: &str) -> Result<Option<u64>> {
    if text.is_empty() {
        return Ok(None);
    }
    // Only the spelling that was issued: no sign, no leading zeros.
    let revision = text.parse().ok().filter(|revision: &u64| revision.to_string() == text);
    revision
        .map(Some)
        .ok_or_else(|| Error::field("etag", "must be an etag returned by this service"))
}

/// Converts a time for the wire.
pub(super) fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    let nanos = i32::try_from(at.millis().rem_euclid(1_000) * 1_000_000).unwrap_or(0);
    prost_types::Timestamp { seconds: at.seconds(), nanos }
}

/// Converts a duration for the wire.
pub(super) fn seconds(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: 0,
    }
}
