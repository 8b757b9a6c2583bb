//! Bytes of memory that a value takes, about: for tables whose entries are as large as a caller
//! makes them.

/// Bytes of an allocation besides its content: the counters of a shared one, and rounding.
const ALLOCATION: usize = 32;

/// A shared value of this size.
pub const fn shared(size: usize) -> usize {
    size + ALLOCATION
}

/// A text of its own allocation.
pub const fn text(text: &str) -> usize {
    text.len() + ALLOCATION
}

/// A list with its entries' texts.
pub fn texts<'a, T>(capacity: usize, texts: impl Iterator<Item = &'a str>) -> usize {
    shared(capacity * size_of::<T>()) + texts.map(text).sum::<usize>()
}
