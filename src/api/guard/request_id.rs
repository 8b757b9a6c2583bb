//! Request ids, for the log, the audit trail and the response.

use std::{cell::RefCell, sync::Arc};

use aws_lc_rs::rand;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use uuid::{Builder, Uuid};

use crate::model::text::holds_secret;

/// Number of UUIDs made from one draw of randomness: each draw is a system call or close to it.
const UUIDS_PER_DRAW: usize = 64;

/// Returns the caller's id, if it is safe to repeat, otherwise a new one.
pub(super) fn of(headers: &HeaderMap) -> Arc<str> {
    let given = headers.get("x-request-id").filter(|value| is_fit(value.as_bytes()));
    // It is recorded: a secret that was put there by mistake is not.
    let given = given.and_then(|value| value.to_str().ok()).filter(|text| !holds_secret(text));
    given.map_or_else(fresh, Into::into)
}

/// Builds the response header.
pub(super) fn header(text: Bytes) -> HeaderValue {
    let mut header =
        HeaderValue::from_maybe_shared(text).unwrap_or_else(|_| HeaderValue::from_static("none"));
    // Kept out of the table of header compression, where it would displace recurring headers, and
    // which would keep the permit that it may own.
    header.set_sensitive(true);
    header
}

fn is_fit(value: &[u8]) -> bool {
    (1..=64).contains(&value.len())
        && value.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
}

fn fresh() -> Arc<str> {
    let mut buffer = Uuid::encode_buffer();
    let text: &str = draw().hyphenated().encode_lower(&mut buffer);
    text.into()
}

fn draw() -> Uuid {
    thread_local! {
        static RANDOM: RefCell<Vec<[u8; 16]>> = const { RefCell::new(Vec::new()) };
    }
    RANDOM.with_borrow_mut(|random| {
        if let Some(bytes) = random.pop() {
            return Builder::from_random_bytes(bytes).into_uuid();
        }
        let mut drawn = [0; UUIDS_PER_DRAW * 16];
        if rand::fill(&mut drawn).is_err() {
            return Uuid::new_v4();
        }
        random.extend(drawn.as_chunks().0);
        random
            .pop()
            .map_or_else(Uuid::new_v4, |bytes| Builder::from_random_bytes(bytes).into_uuid())
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn answered(given: &[u8]) -> Arc<str> {
        let value = HeaderValue::from_bytes(given).unwrap();
        of(&HeaderMap::from_iter([("x-request-id".parse().unwrap(), value)]))
    }

    /// O02: an id that could break a log line is not repeated.
    #[test]
    fn only_plain_ids_are_taken_over() {
        assert_eq!(&*answered(b"a.B-9_c"), "a.B-9_c");
        for bad in [&b""[..], b"a b", b"a/b", b"\xff", b"a\tb", "x".repeat(65).as_bytes()] {
            assert!(answered(bad).parse::<Uuid>().is_ok(), "{bad:?}");
        }
    }

    #[test]
    fn new_ids_are_all_different() {
        let ids: HashSet<_> = (0..1_000).map(|_| fresh()).collect();
        assert_eq!(ids.len(), 1_000);
        assert!(ids.iter().all(|id| id.parse::<Uuid>().unwrap().get_version_num() == 4));
    }
}
