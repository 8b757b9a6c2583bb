//! Heads of HTTP/2 frames (RFC 9113 section 4.1), as far as budgets need them.

pub(super) const DATA: u8 = 0;

pub(super) const HEADERS: u8 = 1;

pub(super) const RST_STREAM: u8 = 3;

/// Head of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    /// Length of the payload.
    pub(super) length: usize,
}
