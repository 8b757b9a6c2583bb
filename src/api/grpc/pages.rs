//! Pages of a listing (AIP-158): their size, and the tokens that continue them.

use crate::{
    crypto::page_tokens::PageTokens,
    error::{Error, Result},
};

const DEFAULT_SIZE: usize = 100;
const MAX_SIZE: usize = 1_000;

/// Returns the size of a page: 0 means 100, more than 1,000 means 1,000.
pub(super) fn size(asked: i32) -> Result<usize> {
    match usize::try_from(asked) {
        Ok(0) => Ok(DEFAULT_SIZE),
        Ok(size) => Ok(size.min(MAX_SIZE)),
        Err(_) => Err(Error::field("page_size", "must not be negative")),
    }
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
    fn sizes_have_a_default_and_a_silent_cap() {
        assert_eq!((size(0).unwrap(), size(7).unwrap(), size(i32::MAX).unwrap()), (100, 7, 1_000));
        assert!(size(-1).is_err());
    }
}
