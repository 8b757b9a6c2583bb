//! Pieces of an answer's body, counted until they have been written.

use std::{io::IoSlice, sync::Arc};

use bytes::{Buf, Bytes};

use super::account::{Account, Share};

/// A piece of an answer's body. HTTP keeps it until its last byte is written to the connection, and
/// with it the shares: neither the end of the body nor that of the handler says that a client has
/// made room for what it asked for.
pub struct Chunk {
    bytes: Bytes,
    _answer: Option<Answer>,
    _part: Option<Arc<Share>>,
}

impl Chunk {
    pub(super) const fn new(
        bytes: Bytes,
        answer: Option<Answer>,
        part: Option<Arc<Share>>,
    ) -> Self {
        Self { bytes, _answer: answer, _part: part }
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.bytes.chunks_vectored(slices)
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }

    fn copy_to_bytes(&mut self, length: usize) -> Bytes {
        self.bytes.copy_to_bytes(length)
    }
}

/// The share of one answer, kept by its headers and by every piece of its body: the value of its
/// x-request-id owns it. So it lives until headers and body have gone out, and costs no allocation
/// beside the header's own.
#[derive(Clone)]
pub(super) struct Answer(Bytes);

struct Owned {
    request_id: Arc<str>,
    _share: Share,
}

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        self.request_id.as_bytes()
    }
}

impl Answer {
    pub(super) fn new(request_id: Arc<str>, share: Share) -> Self {
        Self(Bytes::from_owner(Owned { request_id, _share: share }))
    }

    /// The request id.
    pub(super) fn request_id(&self) -> Bytes {
        self.0.clone()
    }
}

/// Counts the pieces of one answer.
pub(super) struct Pieces {
    answer: Answer,
    account: Arc<Account>,
    /// Bytes that may still be cut without a further share.
    included: usize,
    part: Option<Arc<Share>>,
    /// Bytes that are yet to be cut.
    rest: Bytes,
}

/// The longest piece: HTTP takes a whole one out of the body as soon as there is a byte of window
/// for it.
const LONGEST: usize = 16 * 1024;

impl Pieces {
    pub(super) const fn new(answer: Answer, account: Arc<Account>, included: usize) -> Self {
        Self { answer, account, included, part: None, rest: Bytes::new() }
    }

    /// Makes room for `length` bytes at once; returns false if there is none.
    pub(super) fn reserve(&mut self, length: usize) -> bool {
        if length > self.included {
            let Some(part) = self.account.hold(length) else { return false };
            self.part = Some(Arc::new(part));
            self.included = length;
        }
        true
    }

    /// Takes bytes that are to be cut; returns false if there is no room for them.
    pub(super) fn take(&mut self, bytes: Bytes) -> bool {
        if let Some(left) = self.included.checked_sub(bytes.len()) {
            self.included = left;
        } else {
            let Some(part) = self.account.hold(bytes.len()) else { return false };
            self.part = Some(Arc::new(part));
        }
        self.rest = bytes;
        true
    }

    /// Cuts the next piece off what was taken.
    pub(super) fn cut(&mut self) -> Option<Chunk> {
        if self.rest.is_empty() {
            return None;
        }
        let piece = self.rest.split_to(self.rest.len().min(LONGEST));
        // The last piece alone keeps the share then: what has been sent must not count while a
        // stream waits for its next message.
        let part = if self.rest.is_empty() { self.part.take() } else { self.part.clone() };
        Some(Chunk::new(piece, Some(self.answer.clone()), part))
    }

    /// Bytes that are yet to be cut.
    pub(super) const fn left(&self) -> usize {
        self.rest.len()
    }
}
