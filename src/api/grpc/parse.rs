//! From the wire's types to ours and back.

use std::{str::FromStr, time::Duration};

use crate::{
    error::{Error, Result},
    model::{Invalid, Timestamp},
};

/// An empty text is absent; any other must parse.
pub(super) fn optional<T: FromStr<Err = Invalid>>(
    field: &'static str,
    text: &str,
) -> Result<Option<T>> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(Error::invalid(field)) }
}

/// A text that must parse; empty ones do not.
pub(super) fn required<T: FromStr<Err = Invalid>>(field: &'static str, text: &str) -> Result<T> {
    text.parse().map_err(Error::invalid(field))
}

/// Every text must parse.
pub(super) fn each<T: FromStr<Err = Invalid>>(
    field: &'static str,
    texts: &[String],
) -> Result<Vec<T>> {
    texts.iter().map(|text| text.parse().map_err(Error::invalid(field))).collect()
}

/// A duration in whole seconds, not negative.
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

/// A point in time from 1970 to 9999.
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

/// An etag is the revision in decimal; empty means whatever stands.
pub(super) fn etag(text: &str) -> Result<Option<u64>> {
    if text.is_empty() {
        return Ok(None);
    }
    // One spelling alone, as it was given out: no sign, no leading zeros.
    let revision = text.parse().ok().filter(|revision: &u64| revision.to_string() == text);
    revision
        .map(Some)
        .ok_or_else(|| Error::field("etag", "must be an etag returned by this service"))
}

/// To the wire.
pub(super) fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    let nanos = i32::try_from(at.millis().rem_euclid(1_000) * 1_000_000).unwrap_or(0);
    prost_types::Timestamp { seconds: at.seconds(), nanos }
}

/// To the wire.
pub(super) fn seconds(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: 0,
    }
}
