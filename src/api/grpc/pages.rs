//! Pages of a listing (AIP-158): their size in entries and in bytes, and the tokens that continue
//! them.

use prost::Message;

use crate::{
    crypto::page_tokens::PageTokens,
    error::{Error, Result},
};

const DEFAULT_SIZE: usize = 100;
const MAX_SIZE: usize = 1_000;

/// Bytes of the entries of a page. Every gRPC client takes 4 MiB; the rest is for the token.
const BYTES_MAX: usize = (4 << 20) - (64 << 10);

/// Bytes of an entry in its list: tag and length.
const ENTRY_BYTES: usize = 8;

/// Returns the size of a page: 0 means 100, more than 1,000 means 1,000.
pub(super) fn size(asked: i32) -> Result<usize> {
    match usize::try_from(asked) {
        Ok(0) => Ok(DEFAULT_SIZE),
        Ok(size) => Ok(size.min(MAX_SIZE)),
        Err(_) => Err(Error::field("page_size", "must not be negative")),
    }
}

/// Returns the size of an entry of a page.
pub(super) fn bytes(entry: &impl Message) -> usize {
    entry.encoded_len().saturating_add(ENTRY_BYTES)
}

/// Returns the number of the first entries of these sizes that fit into a page, at least 1 of any.
pub(super) fn fitting(sizes: impl IntoIterator<Item = usize>) -> usize {
    let mut all = 0_usize;
    let fits = |(n, size): &(usize, usize)| {
        all = all.saturating_add(*size);
        *n == 0 || all <= BYTES_MAX
    };
    sizes.into_iter().enumerate().take_while(fits).count()
}

/// Returns the cursor in a token; `None` for the first page. A token of another query, or a forged
/// one, is refused.
pub(super) fn open(pages: &PageTokens, question: &str, token: &str) -> Result<Option<String>> {
    if token.is_empty() {
        return Ok(None);
    }
    let refused =
        |_| Error::field("page_token", "must be a page token returned for the same request");
    pages.open(question, token).map(Some).map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_ends_before_it_gets_too_large() {
        assert_eq!(fitting([]), 0);
        assert_eq!(fitting([BYTES_MAX + 1, 1]), 1);
        assert_eq!(fitting([1, BYTES_MAX - 1, 1]), 2);
        assert_eq!(fitting([BYTES_MAX / 10; 11]), 10);
    }

    #[test]
    fn sizes_have_a_default_and_a_silent_cap() {
        assert_eq!((size(0).unwrap(), size(7).unwrap(), size(i32::MAX).unwrap()), (100, 7, 1_000));
        assert!(size(-1).is_err());
    }
}
