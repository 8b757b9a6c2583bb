//! Failures of commands, and the exit code of each, which never changes.

use std::{fmt, io, path::Path, time::Duration};

use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::cause::{deepest, explain};
use crate::config::ConfigError;

/// Shown under `jeton --help`.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0   success
  1   failed, or a check found a problem
  2   invalid usage
  3   rejected by the server: not authenticated, not permitted, invalid, too many requests
  4   server unreachable, or no reply in time
  5   not found
  6   not completed (audit verify): nothing is known of the rest
  64  invalid configuration";

/// Failure of a command.
#[derive(Debug)]
pub(super) enum Failure {
    /// Arguments that contradict each other; clap reports all other usage errors.
    Usage(String),
    /// The server refused the call, or cannot be reached.
    Remote(Box<RemoteError>),
    /// A setting, of the server or of the client.
    Config(ConfigError),
    /// Reading or writing.
    Io {
        /// Failed action and its object, such as `cannot read FILE`.
        action: String,
        /// Error of the operating system.
        source: io::Error,
    },
    /// An object that does not exist, in a store that is read without a server.
    NotFound(&'static str),
    /// Failure of a check that has no result.
    NotCompleted(Box<Self>),
    /// Anything else, in one line.
    Other(String),
    /// A failure that is already printed, with its exit code.
    Code(u8),
}

/// Decoded gRPC status of a failed call.
#[derive(Debug)]
pub(super) struct RemoteError {
    code: Code,
    /// `ErrorInfo.reason` in lower case: the OAuth error code where there is one. Empty when the
    /// status did not come from jeton.
    reason: String,
    message: String,
    fields: Vec<(String, String)>,
    retry_after: Option<Duration>,
    /// Next step that is known from the connection.
    advice: Option<String>,
}

impl Failure {
    pub(super) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action: action.into(), source }
    }

    pub(super) fn reading(path: &Path) -> impl FnOnce(io::Error) -> Self {
        Self::io(format!("cannot read {}", path.display()))
    }

    pub(super) fn writing(path: &Path) -> impl FnOnce(io::Error) -> Self {
        Self::io(format!("cannot write {}", path.display()))
    }

    /// A setting of the client that cannot be used.
    pub(super) fn setting(key: &str, problem: impl Into<String>) -> Self {
        Self::Config(ConfigError::new(key, problem))
    }

    /// A connection that failed, for `error`.
    pub(super) fn connection(what: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        let (problem, advice) = match explain(error) {
            Some((problem, advice)) => (problem, Some(advice.to_owned())),
            None => (deepest(error), None),
        };
        Self::Remote(Box::new(RemoteError {
            code: Code::Unavailable,
            reason: String::new(),
            message: format!("{what}: {problem}"),
            fields: Vec::new(),
            retry_after: None,
            advice,
        }))
    }

    /// A server that could not be reached in time.
    pub(super) fn late(url: &str, timeout: Duration) -> Self {
        Self::Remote(Box::new(RemoteError {
            code: Code::Unavailable,
            reason: String::new(),
            message: format!("cannot reach {url} within {} s (--timeout)", timeout.as_secs()),
            fields: Vec::new(),
            retry_after: None,
            advice: None,
        }))
    }

    /// Replaces the next step for the user, if another one is known.
    pub(super) fn advised(mut self, advice: &Option<String>) -> Self {
        if let (Self::Remote(refusal), Some(advice)) = (&mut self, advice) {
            refusal.advice = Some(advice.clone());
        }
        self
    }

    /// Returns true if the server refused the call for this reason.
    pub(super) fn has_reason(&self, reason: &str) -> bool {
        matches!(self, Self::Remote(refusal) if refusal.reason == reason)
    }

    /// Reason that the server gave; `None` if it gave none.
    pub(super) fn reason(&self) -> Option<String> {
        let Self::Remote(refusal) = self else { return None };
        Some(refusal.reason.clone()).filter(|reason| !reason.is_empty())
    }

    /// Returns true if the server refused this field of the request.
    pub(super) fn blames(&self, field: &str) -> bool {
        matches!(self, Self::Remote(refusal) if refusal.fields.iter().any(|(name, _)| name == field))
    }

    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Remote(refusal) => refusal.exit_code(),
            Self::Config(_) => ConfigError::EXIT_CODE,
            // The reader of our output closed the pipe: that is no failure.
            Self::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe => 0,
            Self::Io { .. } | Self::Other(_) => 1,
            Self::NotFound(_) => 5,
            Self::NotCompleted(cause) => match cause.exit_code() {
                // Neither is the result of a check.
                0 | 1 => 6,
                code => code,
            },
            Self::Code(code) => *code,
        }
    }

    /// Returns true if nothing is left to print.
    pub(super) fn is_silent(&self) -> bool {
        match self {
            Self::Code(_) => true,
            Self::NotCompleted(cause) => cause.is_silent(),
            Self::Usage(_)
            | Self::Remote(_)
            | Self::Config(_)
            | Self::Io { .. }
            | Self::NotFound(_)
            | Self::Other(_) => self.exit_code() == 0,
        }
    }

    /// Returns true if the same call may succeed later.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self, Self::Remote(refusal) if refusal.is_transient())
    }

    /// Next step for the user, if one is known.
    fn hint(&self) -> Option<String> {
        self.refusal()?.hint()
    }

    /// The status of the failed call.
    fn refusal(&self) -> Option<&RemoteError> {
        match self {
            Self::Remote(refusal) => Some(refusal),
            Self::NotCompleted(cause) => cause.refusal(),
            Self::Usage(_)
            | Self::Config(_)
            | Self::Io { .. }
            | Self::NotFound(_)
            | Self::Other(_)
            | Self::Code(_) => None,
        }
    }

    /// For people, on stderr.
    pub(super) fn text(&self) -> String {
        let mut text = format!("error: {self}");
        if let Some(refusal) = self.refusal() {
            let fields =
                refusal.fields.iter().map(|(field, problem)| format!("{field}: {problem}"));
            // The server's message is the only field error, or one above several.
            for field in fields.filter(|field| *field != refusal.message) {
                text.push_str(&format!("\n  {field}"));
            }
        }
        if let Some(hint) = self.hint() {
            text.push_str(&format!("\nhint: {hint}"));
        }
        text
    }

    /// For programs, on stderr.
    pub(super) fn json(&self) -> Value {
        let (mut code, mut reason, mut fields) = (Value::Null, Value::Null, json!({}));
        if let Some(refusal) = self.refusal() {
            code = format!("{:?}", refusal.code).into();
            reason = refusal.reason.clone().into();
            fields = refusal
                .fields
                .iter()
                .cloned()
                .map(|(field, problem)| (field, Value::from(problem)))
                .collect();
        }
        json!({ "error": {
            "exit_code": self.exit_code(),
            "code": code,
            "reason": reason,
            "message": self.to_string(),
            "fields": fields,
            "hint": self.hint(),
        }})
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(problem) | Self::Other(problem) => f.write_str(problem),
            Self::Remote(refusal) if refusal.reason.is_empty() => f.write_str(&refusal.message),
            Self::Remote(refusal) => write!(f, "{}: {}", refusal.reason, refusal.message),
            Self::Config(error) => error.fmt(f),
            Self::Io { action, source } => write!(f, "{action}: {source}"),
            Self::NotFound(what) => write!(f, "{what} not found"),
            Self::NotCompleted(cause) => cause.fmt(f),
            Self::Code(code) => write!(f, "exit code {code}"),
        }
    }
}

impl RemoteError {
    fn is_transient(&self) -> bool {
        match self.code {
            Code::ResourceExhausted => self.reason != "message_too_large",
            Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::Cancelled
            | Code::Unknown
            | Code::Internal => true,
            Code::Ok
            | Code::FailedPrecondition
            | Code::NotFound
            | Code::InvalidArgument
            | Code::Unauthenticated
            | Code::PermissionDenied
            | Code::AlreadyExists
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::DataLoss => false,
        }
    }

    fn exit_code(&self) -> u8 {
        match self.code {
            Code::Unavailable | Code::DeadlineExceeded => 4,
            Code::NotFound => 5,
            Code::InvalidArgument
            | Code::Unauthenticated
            | Code::PermissionDenied
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::ResourceExhausted
            | Code::Unimplemented => 3,
            Code::Ok | Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss => 1,
        }
    }

    fn hint(&self) -> Option<String> {
        if let Some(advice) = &self.advice {
            return Some(advice.clone());
        }
        // Asking again would take as long again.
        if self.reason == "deadline_exceeded" {
            let advice = "the server ends every call after limits.deadline_seconds, whatever \
                          --timeout is";
            return Some(advice.to_owned());
        }
        if let Some(wait) = self.retry_after {
            return Some(format!("retry in {:.1} s", wait.as_secs_f64()));
        }
        let hint = match self.reason.as_str() {
            "invalid_client" => {
                "check --client-id and --client-secret-file, or `jeton context list`; a secret may \
                 have been retired"
            }
            "insufficient_scope" => "give the client the scope named above, or jeton:admin",
            "failed_precondition" if self.message.contains("allow_no_administrator") => {
                "--allow-no-administrator does it all the same"
            }
            "stale" => "read the record again and use its new etag",
            "" if self.code == Code::Unavailable => {
                "check that the server is running: `jeton doctor` checks it, `jeton serve --dev` \
                 starts one"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        // A status with a cause was created on this side, for a connection that failed.
        if let Some(cause) = std::error::Error::source(&status) {
            return Self::connection("connection lost", cause);
        }
        let details = status.get_error_details();
        let reason =
            details.error_info().map(|info| info.reason.to_ascii_lowercase()).unwrap_or_default();
        let fields = details.bad_request().map(|bad| {
            bad.field_violations
                .iter()
                .map(|violation| (violation.field.clone(), violation.description.clone()))
                .collect()
        });
        Self::Remote(Box::new(RemoteError {
            code: status.code(),
            reason,
            message: if status.message().is_empty() {
                status.code().to_string()
            } else {
                status.message().to_owned()
            },
            fields: fields.unwrap_or_default(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
            advice: None,
        }))
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    fn status(code: Code, reason: &str, message: &str) -> Status {
        Status::with_error_details(
            code,
            message,
            ErrorDetails::with_error_info(reason, "jeton", HashMap::new()),
        )
    }

    #[test]
    fn a_refusal_prints_its_reason_and_sentence() {
        let failure = Failure::from(status(
            Code::Unauthenticated,
            "INVALID_CLIENT",
            "client authentication failed",
        ));
        assert_eq!(failure.to_string(), "invalid_client: client authentication failed");
        assert!(
            failure
                .text()
                .starts_with("error: invalid_client: client authentication failed\nhint: ")
        );
        assert_eq!(failure.json()["error"]["reason"], "invalid_client");
        assert_eq!(failure.json()["error"]["exit_code"], 3);
    }

    #[test]
    fn fields_that_are_wrong_are_listed() {
        let mut details = ErrorDetails::with_error_info("INVALID_REQUEST", "jeton", HashMap::new());
        details.add_bad_request_violation("tenant", "must be 1 to 64 of [a-z0-9-]");
        let failure = Failure::from(Status::with_error_details(
            Code::InvalidArgument,
            "tenant is wrong",
            details,
        ));
        assert!(
            failure.text().ends_with("\n  tenant: must be 1 to 64 of [a-z0-9-]"),
            "{}",
            failure.text()
        );
        assert_eq!(failure.json()["error"]["fields"]["tenant"], "must be 1 to 64 of [a-z0-9-]");
    }

    /// OPERATORS 4.12: the server names the field of its contract, the hint the flag.
    #[test]
    fn the_last_administrator_has_a_hint_with_the_flag() {
        let message = "this is the last client: set allow_no_administrator if this is meant";
        let hint = |text| {
            Failure::from(status(Code::FailedPrecondition, "FAILED_PRECONDITION", text)).hint()
        };
        assert!(hint(message).is_some_and(|hint| hint.contains("--allow-no-administrator")));
        assert_eq!(hint("another"), None);
    }

    #[test]
    fn a_field_that_is_the_message_is_printed_once() {
        let mut details = ErrorDetails::with_error_info("INVALID_REQUEST", "jeton", HashMap::new());
        details.add_bad_request_violation("reason", "must be printable");
        let message = "reason: must be printable";
        let failure =
            Failure::from(Status::with_error_details(Code::InvalidArgument, message, details));
        assert_eq!(failure.text(), "error: invalid_request: reason: must be printable");
        assert_eq!(failure.json()["error"]["fields"]["reason"], "must be printable");
    }

    #[test]
    fn exit_codes_are_what_the_help_says() {
        for (code, exit) in [
            (Code::Unauthenticated, 3),
            (Code::PermissionDenied, 3),
            (Code::InvalidArgument, 3),
            (Code::ResourceExhausted, 3),
            (Code::Aborted, 3),
            (Code::Unavailable, 4),
            (Code::DeadlineExceeded, 4),
            (Code::NotFound, 5),
            (Code::Internal, 1),
            (Code::Unknown, 1),
        ] {
            assert_eq!(Failure::from(Status::new(code, "")).exit_code(), exit, "{code:?}");
        }
        assert_eq!(Failure::setting("listen", "is wrong").exit_code(), 64);
        assert_eq!(Failure::Usage(String::new()).exit_code(), 2);
        let pipe = Failure::io("write")(io::ErrorKind::BrokenPipe.into());
        assert!(pipe.is_silent() && pipe.exit_code() == 0);
        // A check without a result is neither fine nor has it found a problem.
        let ended = Failure::NotCompleted(Box::new(pipe));
        assert!(ended.is_silent() && ended.exit_code() == 6);
        let other = Failure::NotCompleted(Box::new(Failure::Other("stopped".to_owned())));
        assert!(!other.is_silent() && other.exit_code() == 6);
        let away = Failure::from(Status::new(Code::Unavailable, ""));
        assert_eq!(Failure::NotCompleted(Box::new(away)).exit_code(), 4);
    }
}
