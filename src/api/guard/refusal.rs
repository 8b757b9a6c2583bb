//! Refusals of the guard, in place of the handler's response.

use std::time::Duration;

use axum::response::Response;
use tonic::Status;

use super::super::status::{bare_response, status};
use crate::error::Error;

/// Error text for a body that cannot be decoded.
pub const MALFORMED: &str = "must be one whole, uncompressed message of the method's type";

/// Error of a path that names no method.
pub const NO_METHOD: Error = Error::Unimplemented("no such method");

/// Time after which a retry may succeed when too many calls are in flight.
const OVERLOAD_RETRY: Duration = Duration::from_secs(1);

/// Reason that the guard responds in place of the handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The handler did not finish in time, or the request's message did not arrive in time.
    DeadlineExceeded,
    /// The handler panicked.
    Panicked,
    /// The message is longer than its method allows.
    TooLarge,
    /// The body is not one message of the method's type.
    Malformed,
    /// The path names no method.
    NoMethod,
    /// The message is compressed.
    Compressed,
    /// The peer has too many incomplete requests, or unread responses.
    Overloaded,
    /// The peer's budget is used up.
    Throttled {
        /// Time after which a retry may succeed.
        retry_after: Duration,
    },
}

impl Refusal {
    /// Converts the error of a call that was not admitted.
    pub(super) const fn of(error: &Error) -> Self {
        let retry_after = if let Error::Throttled { retry_after } = error {
            *retry_after
        } else {
            OVERLOAD_RETRY
        };
        Self::Throttled { retry_after }
    }

    fn error(self) -> Error {
        match self {
            Self::DeadlineExceeded => Error::DeadlineExceeded,
            Self::Panicked => Error::Internal("handler panicked".into()),
            Self::TooLarge => Error::TooLarge,
            Self::Malformed => Error::field("message", MALFORMED),
            Self::NoMethod => NO_METHOD,
            Self::Compressed => {
                Error::Unimplemented("compressed messages are not supported; send identity")
            }
            Self::Overloaded => Error::Throttled { retry_after: OVERLOAD_RETRY },
            Self::Throttled { retry_after } => Error::Throttled { retry_after },
        }
    }

    /// Returns the response in gRPC.
    pub fn status(self) -> Status {
        status(&self.error())
    }

    /// Returns the response in HTTP, which has no body.
    pub fn response(self) -> Response {
        bare_response(&self.error())
    }
}
