//! What can go wrong, in the words of the OAuth registries where they have one. The public sentence
//! helps the honest caller and tells a thief nothing; sources go to the log. `api::status` is the
//! only place that turns this into a status.

use std::{borrow::Cow, time::Duration};

use crate::{crypto::passwords::Busy, model::id::Invalid, standing::Stale, store::StoreError};

/// Why a call was not answered as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is malformed (RFC 6749 section 5.2): a field and what is wrong with it.
    #[error("{field}: {problem}")]
    InvalidRequest {
        /// The message field, as in the proto.
        field: &'static str,
        /// What is wrong, for the caller; never the value itself.
        problem: Cow<'static, str>,
    },
    /// Client authentication failed, whatever the reason (RFC 6749 section 5.2).
    #[error("client authentication failed")]
    InvalidClient,
    /// The refresh token is invalid, expired, spent, revoked or another client's (RFC 6749 section
    /// 5.2).
    #[error("the refresh token is not valid")]
    InvalidGrant,
    /// A scope is malformed, unknown or more than the client or family has (RFC 6749 section 5.2).
    #[error("{0}")]
    InvalidScope(Cow<'static, str>),
    /// A resource is malformed or not the client's to ask for (RFC 8707 section 2).
    #[error("{0}")]
    InvalidTarget(Cow<'static, str>),
    /// The client is not registered for this grant (RFC 6749 section 5.2).
    #[error("the client is not registered for this grant type")]
    UnauthorizedClient,
    /// The grant is not served here (RFC 6749 section 5.2).
    #[error("the grant type is not supported")]
    UnsupportedGrantType,
    /// The bearer token the caller authenticates with does not stand (RFC 6750 section 3.1).
    #[error("the access token is not valid")]
    InvalidToken,
    /// The caller may not do this (RFC 6750 section 3.1).
    #[error("requires scope {0}")]
    InsufficientScope(&'static str),
    /// There is nothing of this name that the caller may see.
    #[error("{0} not found")]
    NotFound(&'static str),
    /// The name is taken.
    #[error("the {0} already exists")]
    AlreadyExists(&'static str),
    /// The etag given is not that of the stored version.
    #[error("the {0} changed since it was read; read it again and retry")]
    Stale(&'static str),
    /// What is asked for does not fit the state things are in.
    #[error("{0}")]
    Precondition(Cow<'static, str>),
    /// The message is longer than its method takes.
    #[error("the message is too large")]
    TooLarge,
    /// A budget is used up.
    #[error("too many requests")]
    Throttled {
        /// When it is worth asking again.
        retry_after: Duration,
    },
    /// The store failed; the outcome of a write is unknown and asking again is safe.
    #[error("the store is unavailable; retry")]
    Unavailable(#[source] StoreError),
    /// This node has not heard for too long what the others did, and judges nothing until it has.
    #[error("this node's revocation data is stale; retry on another node")]
    Behind(#[from] Stale),
    /// The store has no room left.
    #[error("the store is full")]
    Exhausted(#[source] StoreError),
    /// The call's deadline passed.
    #[error("deadline exceeded")]
    DeadlineExceeded,
    /// A defect of this service.
    #[error("internal error")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// A field that does not hold what it must.
    pub fn field(field: &'static str, problem: impl Into<Cow<'static, str>>) -> Self {
        Self::InvalidRequest { field, problem: problem.into() }
    }

    /// Something that does not fit the state things are in.
    pub fn precondition(problem: impl Into<Cow<'static, str>>) -> Self {
        Self::Precondition(problem.into())
    }

    /// For `map_err` on a parser.
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
            Self::Exhausted(_) => "store_full",
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

/// What a rule comes to.
pub type Result<T, E = Error> = std::result::Result<T, E>;
