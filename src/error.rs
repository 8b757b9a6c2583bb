//! Errors of calls, with the codes of the OAuth registries where they define one. The public text
//! helps the honest caller and reveals nothing to a thief; sources go to the log. Only
//! `api::status` converts an error to a status.

use std::{borrow::Cow, time::Duration};

use crate::{crypto::passwords::Busy, model::id::Invalid, standing::Stale, store::StoreError};

/// Error of a call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is malformed (RFC 6749 section 5.2): a field and its problem.
    #[error("{field}: {problem}")]
    InvalidRequest {
        /// Field of the message, as in the proto.
        field: &'static str,
        /// Problem for the caller; never the value itself.
        problem: Cow<'static, str>,
    },
    /// Client authentication failed, whatever the reason (RFC 6749 section 5.2).
    #[error("client authentication failed")]
    InvalidClient,
    /// The refresh token is invalid, expired, used, revoked or another client's (RFC 6749 section
    /// 5.2).
    #[error("the refresh token is not valid")]
    InvalidGrant,
    /// A scope is malformed, unknown or more than the client or family has (RFC 6749 section 5.2).
    #[error("{0}")]
    InvalidScope(Cow<'static, str>),
    /// A resource is malformed or not allowed for the client (RFC 8707 section 2).
    #[error("{0}")]
    InvalidTarget(Cow<'static, str>),
    /// The client is not registered for this grant (RFC 6749 section 5.2).
    #[error("the client is not registered for this grant type")]
    UnauthorizedClient,
    /// The grant is not served here (RFC 6749 section 5.2).
    #[error("the grant type is not supported")]
    UnsupportedGrantType,
    /// The bearer token of the caller is invalid, expired or revoked (RFC 6750 section 3.1).
    #[error("the access token is not valid")]
    InvalidToken,
    /// The bearer token lacks a scope (RFC 6750 section 3.1).
    #[error("requires scope {0}")]
    InsufficientScope(&'static str),
    /// The entity does not exist, or the caller may not see it.
    #[error("{0} not found")]
    NotFound(&'static str),
    /// The name is taken.
    #[error("the {0} already exists")]
    AlreadyExists(&'static str),
    /// The etag given is not that of the stored version.
    #[error("the {0} changed since it was read; read it again and retry")]
    Stale(&'static str),
    /// The request does not fit the present state.
    #[error("{0}")]
    Precondition(Cow<'static, str>),
    /// The message is longer than its method accepts.
    #[error("the message is too large")]
    TooLarge,
    /// A budget is used up.
    #[error("too many requests")]
    Throttled {
        /// Time after which a retry may succeed.
        retry_after: Duration,
    },
    /// The store failed; the outcome of a write is unknown and a retry is safe.
    #[error("the store is unavailable; retry")]
    Unavailable(#[source] StoreError),
    /// The revocation data of this node is stale: it verifies no token until it is current.
    #[error("this node's revocation data is stale; retry on another node")]
    Behind(#[from] Stale),
    /// This server is stopping, and ends its streams.
    #[error("the server is stopping; reconnect")]
    Stopping,
    /// The store has no room left.
    #[error("the store is full")]
    Exhausted(#[source] StoreError),
    /// The method does not exist, or the message uses a feature of gRPC that is not supported.
    #[error("{0}")]
    Unimplemented(&'static str),
    /// The call's deadline passed.
    #[error("deadline exceeded")]
    DeadlineExceeded,
    /// A defect of this service.
    #[error("internal error")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Creates the error of an invalid field.
    pub fn field(field: &'static str, problem: impl Into<Cow<'static, str>>) -> Self {
        Self::InvalidRequest { field, problem: problem.into() }
    }

    /// Creates the error of a request that does not fit the present state.
    pub fn precondition(problem: impl Into<Cow<'static, str>>) -> Self {
        Self::Precondition(problem.into())
    }

    /// Creates the error of a call to a node whose store is not open yet.
    pub fn starting(reason: &'static str) -> Self {
        Self::Unavailable(StoreError::Unavailable(reason.into()))
    }

    /// Converts the error of a parser, for `map_err`.
    pub fn invalid(field: &'static str) -> impl FnOnce(Invalid) -> Self {
        move |invalid| Self::field(field, invalid.0)
    }

    /// The registered error code, or ours, in lower case: the `reason` of audit records and, in
    /// upper case, of `ErrorInfo`.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::InvalidRequest { .. } => "invalid_request",
            Self::InvalidClient => "invalid_client",
            Self::InvalidGrant => "invalid_grant",
            Self::InvalidScope(_) => "invalid_scope",
            Self::InvalidTarget(_) => "invalid_target",
            Self::UnauthorizedClient => "unauthorized_client",
            Self::UnsupportedGrantType => "unsupported_grant_type",
            Self::InvalidToken => "invalid_token",
            Self::InsufficientScope(_) => "insufficient_scope",
            Self::NotFound(_) => "not_found",
            Self::AlreadyExists(_) => "already_exists",
            Self::Stale(_) => "stale",
            Self::Precondition(_) => "failed_precondition",
            Self::TooLarge => "message_too_large",
            Self::Throttled { .. } => "slow_down",
            Self::Unavailable(_) => "temporarily_unavailable",
            Self::Behind(_) => "node_behind",
            Self::Stopping => "server_stopping",
            Self::Exhausted(_) => "store_full",
            Self::Unimplemented(_) => "unimplemented",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Internal(_) => "server_error",
        }
    }
}

/// The argon2id pool is full.
impl From<Busy> for Error {
    fn from(Busy: Busy) -> Self {
        Self::Throttled { retry_after: Duration::from_secs(1) }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => Self::Unavailable(error),
            StoreError::Full(_) => Self::Exhausted(error),
            StoreError::Corrupt(_) => Self::Internal(Box::new(error)),
        }
    }
}

/// Result of a rule.
pub type Result<T, E = Error> = std::result::Result<T, E>;
