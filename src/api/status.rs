//! Conversion of errors into statuses, in this place only: gRPC code, `ErrorInfo` with the OAuth
//! code as its reason, `RetryInfo` if waiting helps, `BadRequest` if a field is wrong.

use std::{
    collections::HashMap,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::guard::{MALFORMED, Refusal};
use crate::error::Error;

/// Domain of every `ErrorInfo`.
pub const DOMAIN: &str = "jeton";
/// Time after which a caller should retry while the store is unavailable, or this node stale.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// Returns the gRPC code of an error.
pub const fn code(error: &Error) -> Code {
    match error {
        Error::InvalidRequest { .. }
        | Error::InvalidGrant
        | Error::InvalidScope(_)
        | Error::InvalidTarget(_)
        | Error::UnsupportedGrantType => Code::InvalidArgument,
        Error::InvalidClient | Error::InvalidToken => Code::Unauthenticated,
        Error::UnauthorizedClient | Error::InsufficientScope(_) => Code::PermissionDenied,
        Error::NotFound(_) => Code::NotFound,
        Error::AlreadyExists(_) => Code::AlreadyExists,
        Error::Stale(_) => Code::Aborted,
        Error::Precondition(_) => Code::FailedPrecondition,
        Error::Throttled { .. } | Error::TooLarge | Error::Exhausted(_) => Code::ResourceExhausted,
        Error::Unavailable(_) | Error::Behind(_) => Code::Unavailable,
        Error::DeadlineExceeded => Code::DeadlineExceeded,
        Error::Internal(_) => Code::Internal,
    }
}

/// Rate limit on the log of a failure that all calls share while it lasts: one a second is logged,
/// with the number of the others.
struct Common {
    /// Second of the last log line, plus one; 0 for never.
    said: AtomicU64,
    /// Number of failures since then that were not logged.
    unsaid: AtomicU64,
}

impl Common {
    const fn new() -> Self {
        Self { said: AtomicU64::new(0), unsaid: AtomicU64::new(0) }
    }

    /// Returns the number of failures behind this log line; `None` if it is not to be logged.
    fn others(&self) -> Option<u64> {
        static SINCE: LazyLock<Instant> = LazyLock::new(Instant::now);
        let second = SINCE.elapsed().as_secs() + 1;
        if self.said.swap(second, Relaxed) == second {
            self.unsaid.fetch_add(1, Relaxed);
            return None;
        }
        Some(self.unsaid.swap(0, Relaxed))
    }
}

/// Logs a failure of the server.
fn log(error: &Error) {
    static AWAY: Common = Common::new();
    static FULL: Common = Common::new();
    let others = if let Error::Unavailable(_) = error {
        AWAY.others()
    } else if let Error::Exhausted(_) = error {
        FULL.others()
    } else {
        matches!(error, Error::Internal(_)).then_some(0)
    };
    if let Some(others) = others {
        tracing::error!(
            error = error as &dyn std::error::Error,
            source = source(error),
            others,
            "call failed"
        );
    }
}

/// Converts an error into a caller's status. Sources go to the log, never to the wire (O06).
/// Staleness of a node is logged when it begins and ends, not by every call.
pub fn status(error: &Error) -> Status {
    let code = code(error);
    log(error);
    let oauth = error.code();
    let metadata = HashMap::from([("oauth_error".to_owned(), oauth.to_owned())]);
    let mut details = ErrorDetails::with_error_info(oauth.to_ascii_uppercase(), DOMAIN, metadata);
    match error {
        Error::InvalidRequest { field, problem } => {
            details.add_bad_request_violation(*field, problem.as_ref());
        }
        Error::Throttled { retry_after } => {
            details.set_retry_info(Some(*retry_after));
        }
        // Past the deadline too: the store may have finished the work by now, and a retry is safe.
        Error::Unavailable(_)
        | Error::Behind(_)
        | Error::Exhausted(_)
        | Error::DeadlineExceeded => {
            details.set_retry_info(Some(STORE_RETRY));
        }
        Error::InvalidClient
        | Error::InvalidGrant
        | Error::InvalidScope(_)
        | Error::InvalidTarget(_)
        | Error::UnauthorizedClient
        | Error::UnsupportedGrantType
        | Error::InvalidToken
        | Error::InsufficientScope(_)
        | Error::NotFound(_)
        | Error::AlreadyExists(_)
        | Error::Stale(_)
        | Error::Precondition(_)
        | Error::TooLarge
        | Error::Internal(_) => {}
    }
    Status::with_error_details(code, error.to_string(), details)
}

/// Converts a refusal of the guard into a status.
pub fn refusal(refusal: Refusal) -> Status {
    let error = match refusal {
        Refusal::DeadlineExceeded => Error::DeadlineExceeded,
        Refusal::Panicked => Error::Internal("handler panicked".into()),
        Refusal::TooLarge => Error::TooLarge,
        Refusal::Malformed => Error::field("message", MALFORMED),
        Refusal::Query => return refusal.status(),
        Refusal::Overloaded => Error::Throttled { retry_after: Duration::from_secs(1) },
        Refusal::Throttled { retry_after } => Error::Throttled { retry_after },
    };
    status(&error)
}

fn source(error: &Error) -> String {
    let mut source = std::error::Error::source(error);
    let mut text = String::new();
    while let Some(cause) = source {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
