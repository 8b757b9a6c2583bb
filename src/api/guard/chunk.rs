//! Pieces of a response body, counted until they have been written.

use std::{io::IoSlice, sync::Arc};

use bytes::{Buf, Bytes};

use super::account::{Account, MemoryPermit};

/// Piece of a response body. HTTP keeps it until its last byte is written to the connection, and
/// with it the permits: neither the end of the body nor that of the handler shows that the client
/// has read the response.
pub struct Chunk {
    bytes: Bytes,
    _answer: Option<AnswerPermit>,
    _part: Option<Arc<MemoryPermit>>,
}

impl Chunk {
    pub(super) const fn new(
        bytes: Bytes,
        answer: Option<AnswerPermit>,
        part: Option<Arc<MemoryPermit>>,
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

/// Permit of one response, kept by its headers and by every piece of its body: the value of its
/// x-request-id owns it. So it lives until headers and body have been sent, and costs no allocation
/// besides the header's own.
#[derive(Clone)]
pub(super) struct AnswerPermit(Bytes);

struct Owned {
    request_id: Arc<str>,
    _share: MemoryPermit,
}

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        self.request_id.as_bytes()
    }
}

impl AnswerPermit {
    pub(super) fn new(request_id: Arc<str>, permit: MemoryPermit) -> Self {
        Self(Bytes::from_owner(Owned { request_id, _share: permit }))
    }

    /// Returns the request id.
    pub(super) fn request_id(&self) -> Bytes {
        self.0.clone()
    }
}

/// Counter of the pieces of one response.
pub(super) struct Pieces {
    answer: AnswerPermit,
    account: Arc<Account>,
    /// Bytes that may still be cut without a further permit.
    included: usize,
    part: Option<Arc<MemoryPermit>>,
    /// Bytes that are yet to be cut.
    rest: Bytes,
}

/// Length of the longest piece: HTTP takes a whole one out of the body as soon as there is a byte
/// of window for it.
const MAX_PIECE_BYTES: usize = 16 * 1024;

impl Pieces {
    pub(super) const fn new(answer: AnswerPermit, account: Arc<Account>, included: usize) -> Self {
        Self { answer, account, included, part: None, rest: Bytes::new() }
    }

    /// Acquires room for `length` bytes at once; returns false if there is none.
    pub(super) fn reserve(&mut self, length: usize) -> bool {
        if length > self.included {
            let Some(part) = self.account.acquire(length) else { return false };
            self.part = Some(Arc::new(part));
            self.included = length;
        }
        true
    }

    /// Takes bytes to be cut; returns false if there is no room for them.
    pub(super) fn take(&mut self, bytes: Bytes) -> bool {
        if let Some(left) = self.included.checked_sub(bytes.len()) {
            self.included = left;
        } else {
            let Some(part) = self.account.acquire(bytes.len()) else { return false };
            self.part = Some(Arc::new(part));
        }
        self.rest = bytes;
        true
    }

    /// Cuts off the next piece.
    pub(super) fn cut(&mut self) -> Option<Chunk> {
        if self.rest.is_empty() {
            return None;
        }
        let piece = self.rest.split_to(self.rest.len().min(MAX_PIECE_BYTES));
        // Only the last piece keeps the permit then: sent bytes must not count while a stream waits
        // for its next message.
        let part = if self.rest.is_empty() { self.part.take() } else { self.part.clone() };
        Some(Chunk::new(piece, Some(self.answer.clone()), part))
    }

    /// Returns the number of bytes that are yet to be cut.
    pub(super) const fn left(&self) -> usize {
        self.rest.len()
    }
}
