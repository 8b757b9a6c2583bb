//! Table of errors, the only one: each with its gRPC code, its HTTP status and its OAuth code, and
//! the two conversions that read it. In gRPC there is an `ErrorInfo` with the OAuth code as its
//! reason, `RetryInfo` if a retry helps, `BadRequest` if a field is wrong.

use std::{
    collections::HashMap,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use serde_json::json;
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::json::never_cached;
use crate::error::Error;

/// Domain of every `ErrorInfo`.
pub const DOMAIN: &str = "jeton";
/// Time after which a caller should retry while the store is unavailable, or this node stale.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// Row of the table of errors: its answer through each of the two doors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorRow {
    /// Code in gRPC.
    pub grpc: Code,
    /// Status in HTTP (RFC 6749 section 5.2, RFC 6750 section 3.1, RFC 9110 section 15).
    pub http: StatusCode,
    /// Member `error` of the response in HTTP. OAuth clients give up their session on a code that
    /// is not registered, so whatever a retry helps against is `temporarily_unavailable`.
    pub http_error: &'static str,
    /// Time after which a retry may succeed; `None` if none is expected to.
    pub retry_after: Option<Duration>,
}

/// Returns the row of an error.
pub const fn row(error: &Error) -> ErrorRow {
    const WAIT: &str = "temporarily_unavailable";
    let code = error.code();
    let (grpc, http, http_error, retry_after) = match error {
        Error::InvalidRequest { .. }
        | Error::InvalidGrant
        | Error::InvalidScope(_)
        | Error::InvalidTarget(_)
        | Error::UnsupportedGrantType => {
            (Code::InvalidArgument, StatusCode::BAD_REQUEST, code, None)
        }
        Error::UnauthorizedClient => (Code::PermissionDenied, StatusCode::BAD_REQUEST, code, None),
        Error::InvalidClient | Error::InvalidToken => {
            (Code::Unauthenticated, StatusCode::UNAUTHORIZED, code, None)
        }
        Error::InsufficientScope(_) => (Code::PermissionDenied, StatusCode::FORBIDDEN, code, None),
        Error::NotFound(_) => (Code::NotFound, StatusCode::NOT_FOUND, code, None),
        Error::AlreadyExists(_) => (Code::AlreadyExists, StatusCode::CONFLICT, code, None),
        Error::Stale(_) => (Code::Aborted, StatusCode::PRECONDITION_FAILED, code, None),
        Error::Precondition(_) => (Code::FailedPrecondition, StatusCode::CONFLICT, code, None),
        Error::TooLarge => {
            (Code::ResourceExhausted, StatusCode::PAYLOAD_TOO_LARGE, "invalid_request", None)
        }
        Error::Throttled { retry_after } => {
            (Code::ResourceExhausted, StatusCode::TOO_MANY_REQUESTS, WAIT, Some(*retry_after))
        }
        Error::Exhausted(_) => {
            (Code::ResourceExhausted, StatusCode::SERVICE_UNAVAILABLE, WAIT, Some(STORE_RETRY))
        }
        Error::Unavailable(_) | Error::Behind(_) | Error::Stopping => {
            (Code::Unavailable, StatusCode::SERVICE_UNAVAILABLE, WAIT, Some(STORE_RETRY))
        }
        Error::Unimplemented(_) => {
            (Code::Unimplemented, StatusCode::NOT_IMPLEMENTED, "invalid_request", None)
        }
        // The store may have finished the work by now, and a retry is safe.
        Error::DeadlineExceeded => {
            (Code::DeadlineExceeded, StatusCode::GATEWAY_TIMEOUT, WAIT, Some(STORE_RETRY))
        }
        Error::Internal(_) => (Code::Internal, StatusCode::INTERNAL_SERVER_ERROR, code, None),
    };
    ErrorRow { grpc, http, http_error, retry_after }
}

/// Rate limit on the log of a failure that all calls share while it lasts: one a second is logged,
/// with the number of the others.
struct LogLimit {
    /// Second of the last log line, plus one; 0 for never.
    last_second: AtomicU64,
    /// Number of failures since then that were not logged.
    skipped: AtomicU64,
}

impl LogLimit {
    const fn new() -> Self {
        Self { last_second: AtomicU64::new(0), skipped: AtomicU64::new(0) }
    }

    /// Returns the number of failures behind this log line; `None` if it is not to be logged.
    fn admit(&self) -> Option<u64> {
        static SINCE: LazyLock<Instant> = LazyLock::new(Instant::now);
        let second = SINCE.elapsed().as_secs() + 1;
        if self.last_second.swap(second, Relaxed) == second {
            self.skipped.fetch_add(1, Relaxed);
            return None;
        }
        Some(self.skipped.swap(0, Relaxed))
    }
}

/// Logs a failure of the server.
fn log(error: &Error) {
    static UNAVAILABLE: LogLimit = LogLimit::new();
    static FULL: LogLimit = LogLimit::new();
    let others = if let Error::Unavailable(_) = error {
        UNAVAILABLE.admit()
    } else if let Error::Exhausted(_) = error {
        FULL.admit()
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
    log(error);
    let (row, oauth) = (row(error), error.code());
    let metadata = HashMap::from([("oauth_error".to_owned(), oauth.to_owned())]);
    let mut details = ErrorDetails::with_error_info(oauth.to_ascii_uppercase(), DOMAIN, metadata);
    if let Error::InvalidRequest { field, problem } = error {
        details.add_bad_request_violation(*field, problem.as_ref());
    }
    if row.retry_after.is_some() {
        details.set_retry_info(row.retry_after);
    }
    Status::with_error_details(row.grpc, error.to_string(), details)
}

/// Converts an error into a response in HTTP: an object with `error` and `error_description` (RFC
/// 6749 section 5.2), and the headers that its status requires. Logged as by [`status`].
pub fn response(error: &Error) -> Response {
    let description = description(&error.to_string());
    let object = json!({ "error": row(error).http_error, "error_description": description });
    with_headers(error, never_cached(&object))
}

/// Converts an error into a response in HTTP without a body: for refusals that no account counts,
/// since a client that never reads them would pile up their bodies (L05).
pub fn bare_response(error: &Error) -> Response {
    with_headers(error, Response::default())
}

fn with_headers(error: &Error, mut response: Response) -> Response {
    log(error);
    let row = row(error);
    *response.status_mut() = row.http;
    let headers = response.headers_mut();
    if let Some(retry_after) = row.retry_after {
        // In whole seconds (RFC 9110 section 10.2.3), rounded up: a retry that is too early is
        // refused again.
        let seconds = retry_after.as_millis().div_ceil(1_000) as u64;
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    if let Some(challenge) = challenge(error).and_then(|text| HeaderValue::from_str(&text).ok()) {
        headers.insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

/// Returns the challenge of an error that authentication would avert (RFC 9110 section 11.6.1, RFC
/// 6750 section 3).
fn challenge(error: &Error) -> Option<String> {
    let code = error.code();
    if let Error::InvalidClient = error {
        Some(format!("Basic realm=\"{DOMAIN}\""))
    } else if let Error::InvalidToken = error {
        Some(format!("Bearer realm=\"{DOMAIN}\", error=\"{code}\""))
    } else if let Error::InsufficientScope(scope) = error {
        Some(format!("Bearer realm=\"{DOMAIN}\", error=\"{code}\", scope=\"{scope}\""))
    } else {
        None
    }
}

/// Replaces the characters that an `error_description` must not have.
fn description(text: &str) -> String {
    let replace = |c| match c {
        '"' => '\'',
        '\\' => '/',
        ' '..='~' => c,
        _ => '?',
    };
    text.chars().map(replace).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn header(error: &Error, name: header::HeaderName) -> Option<String> {
        response(error).headers().get(name).map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn a_refused_credential_is_answered_with_a_challenge() {
        let challenge = |error| header(&error, header::WWW_AUTHENTICATE);
        assert_eq!(challenge(Error::InvalidClient).as_deref(), Some("Basic realm=\"jeton\""));
        assert_eq!(
            challenge(Error::InvalidToken).as_deref(),
            Some("Bearer realm=\"jeton\", error=\"invalid_token\"")
        );
        assert_eq!(
            challenge(Error::InsufficientScope("jeton:introspect")).as_deref(),
            Some(
                "Bearer realm=\"jeton\", error=\"insufficient_scope\", scope=\"jeton:introspect\""
            )
        );
        assert_eq!(challenge(Error::InvalidGrant), None);
    }

    #[test]
    fn a_retry_is_asked_for_in_whole_seconds() {
        let after = |millis| {
            let error = Error::Throttled { retry_after: Duration::from_millis(millis) };
            header(&error, header::RETRY_AFTER)
        };
        assert_eq!(after(1_500).as_deref(), Some("2"));
        assert_eq!(after(1).as_deref(), Some("1"));
        assert_eq!(header(&Error::InvalidGrant, header::RETRY_AFTER), None);
    }

    /// RFC 6749 section 5.2: neither quotes nor backslashes nor anything outside of ASCII.
    #[test]
    fn a_description_has_the_characters_of_the_rfc() {
        assert_eq!(description("a \"b\" \\ \u{e9}\n~"), "a 'b' / ??~");
    }
}
