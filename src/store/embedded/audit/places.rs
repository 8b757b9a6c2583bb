//! Places of audit records: the id of the chain, and below it the sequence.

/// Bits of a place below the id of the chain.
pub(crate) const SEQUENCE_BITS: u32 = 40;

/// Greatest sequence that a place can hold.
pub(crate) const SEQUENCE_MAX: i64 = (1 << SEQUENCE_BITS) - 1;

/// Returns the place of the first record of a chain.
pub(crate) const fn first_place(chain: i64) -> i64 {
    (chain << SEQUENCE_BITS) | 1
}

/// Returns the greatest place that a chain can have.
pub(crate) const fn last_place(chain: i64) -> i64 {
    (chain << SEQUENCE_BITS) | SEQUENCE_MAX
}

/// Returns the place of a record.
pub(crate) fn place_of(chain: i64, sequence: u64) -> i64 {
    (chain << SEQUENCE_BITS) | i64::try_from(sequence).unwrap_or(i64::MAX).min(SEQUENCE_MAX)
}

/// Returns the id of the chain of a place.
pub(crate) const fn chain_of(place: i64) -> i64 {
    place >> SEQUENCE_BITS
}

/// Returns the sequence in a place.
pub(crate) fn sequence_of(place: i64) -> u64 {
    u64::try_from(place & SEQUENCE_MAX).unwrap_or(0)
}
