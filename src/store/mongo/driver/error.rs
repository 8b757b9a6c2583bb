//! Errors of the MongoDB store.

use std::{sync::Arc, time::Duration};

use mongodb::error::{Error, ErrorKind, WriteFailure};

use crate::store::StoreError;

/// MongoDB's codes for a duplicate key, and for a change stream that cannot be resumed.
const DUPLICATE_KEY: i32 = 11_000;
/// MongoDB's codes for a server that is no primary any more, or is being stopped, or cannot reach
/// others: the next attempt may find another primary (retryable writes specification).
const RETRYABLE: [i32; 13] =
    [6, 7, 89, 91, 189, 262, 9_001, 10_058, 10_107, 11_600, 11_602, 13_435, 13_436];
const HISTORY_LOST: [i32; 5] = [286, 280, 260, 222, 136];
/// MongoDB's codes for wrong credentials, and for a user without the right.
const AUTHENTICATION_FAILED: i32 = 18;
const UNAUTHORIZED: i32 = 13;

/// Error of opening a database.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Invalid address. Describes the problem and never contains the address, which may hold a
    /// password.
    #[error("store.uri: {0}")]
    Uri(String),
    /// The address names a replica set that its servers do not belong to.
    #[error("store.uri: {0}")]
    WrongReplicaSet(String),
    /// No server reachable, or no primary.
    #[error("cannot reach MongoDB: {0}")]
    Unreachable(String),
    /// The database rejects the name and password.
    #[error("MongoDB refuses the credentials: {0}")]
    Credentials(String),
    /// The user is known and lacks a right that is needed.
    #[error("the user of store.uri lacks permissions: it needs the role readWrite on the database")]
    Forbidden,
    /// The server is too old.
    #[error("MongoDB is too old: wire version {found}, required {needed} (MongoDB 4.4)")]
    TooOld {
        /// Wire version of the server.
        found: i32,
        /// Wire version that is needed.
        needed: i32,
    },
    /// The schema was written by a newer version of this program, which alone may write to it.
    #[error(
        "the database has schema {found}, this version supports schemas up to {known}: run a newer \
         jeton"
    )]
    Newer {
        /// Schema of the database.
        found: i64,
        /// Newest schema that this version supports.
        known: i64,
    },
    /// The data was sealed under another master key.
    #[error("{0} was not sealed under this master key")]
    MasterKey(String),
    /// The data is not what was acknowledged, or cannot be read.
    #[error("the database is damaged: {0}")]
    Corrupt(String),
    /// A call failed or timed out during the open.
    #[error("cannot open the database")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl OpenError {
    /// Error of a database that an interrupted import left behind.
    pub(crate) fn unfinished_import() -> Self {
        Self::Corrupt("an import was interrupted: drop the database and import again".to_owned())
    }

    /// Returns true if a later attempt may succeed without a change of the configuration.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Unreachable(_))
    }
}

impl From<MongoError> for OpenError {
    fn from(fault: MongoError) -> Self {
        match fault {
            MongoError::Malformed { .. } => Self::Corrupt(fault.to_string()),
            MongoError::Driver(error) if is_authentication_error(&error) => {
                Self::Credentials(describe(&error))
            }
            MongoError::Driver(error) if has_code(&error, &[UNAUTHORIZED]) => Self::Forbidden,
            MongoError::Driver(error) if matches!(*error.kind, ErrorKind::DnsResolve { .. }) => {
                Self::Unreachable("the host of store.uri cannot be resolved".to_owned())
            }
            MongoError::Driver(_)
            | MongoError::Timeout(_)
            | MongoError::TooManyPending
            | MongoError::Closed
            | MongoError::NodeNameTaken
            | MongoError::Refused { .. } => Self::Failed(Box::new(fault)),
        }
    }
}

impl From<Error> for OpenError {
    fn from(error: Error) -> Self {
        MongoError::from(error).into()
    }
}

/// Error of a store operation.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum MongoError {
    /// Error of the driver. A write may have been applied all the same.
    #[error("{}", describe(.0))]
    Driver(Arc<Error>),
    /// No answer in time; the operation may still be applied.
    #[error("no answer from MongoDB within {0:?}")]
    Timeout(Duration),
    /// Too many operations are in flight.
    #[error("too many calls are waiting for MongoDB")]
    TooManyPending,
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
    /// Another process took this node's name, and writes its audit chain.
    #[error("another process uses this node's name")]
    NodeNameTaken,
    /// The server refused a command whose reply the driver does not check.
    #[error("MongoDB refused: code {code} {name}")]
    Refused {
        /// MongoDB's code of the error.
        code: i32,
        /// Name of the code, if the server gave one.
        name: String,
    },
    /// A stored document cannot be read.
    #[error("{what}: {problem}")]
    Malformed {
        /// Kind of the document.
        what: &'static str,
        /// Description of the problem.
        problem: String,
    },
}

impl MongoError {
    /// Error for a document that cannot be read.
    pub(crate) fn malformed(what: &'static str, problem: impl std::fmt::Display) -> Self {
        Self::Malformed { what, problem: problem.to_string() }
    }

    /// Error for a write error or write concern error in a reply: its code and name, not its text,
    /// which repeats the data.
    pub(crate) fn refused(answer: &mongodb::bson::Document) -> Self {
        let name = answer.get_str("codeName").unwrap_or_default().to_owned();
        Self::Refused { code: answer.get_i32("code").unwrap_or_default(), name }
    }

    /// Error for a code of a write error.
    pub(crate) const fn refused_code(code: i32) -> Self {
        Self::Refused { code, name: String::new() }
    }

    /// Returns true for the code of a duplicate key.
    pub(crate) const fn is_duplicate_code(code: i32) -> bool {
        code == DUPLICATE_KEY
    }

    /// Returns true if the connection or the primary was lost, so that a second attempt may
    /// succeed. The first one may have been applied.
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::Driver(error) => {
                matches!(*error.kind, ErrorKind::Io(_) | ErrorKind::ConnectionPoolCleared { .. })
                    || has_code(error, &RETRYABLE)
            }
            Self::Refused { code, .. } => RETRYABLE.contains(code),
            Self::Timeout(_)
            | Self::TooManyPending
            | Self::Closed
            | Self::NodeNameTaken
            | Self::Malformed { .. } => false,
        }
    }

    /// Returns true if the key exists already.
    pub(crate) fn is_duplicate(&self) -> bool {
        matches!(self, Self::Driver(error) if has_code(error, &[DUPLICATE_KEY]))
    }

    /// Returns true if the server rejected the request or sent a malformed reply; false for
    /// timeouts and connection errors.
    pub(crate) fn is_server_reply(&self) -> bool {
        match self {
            Self::Driver(error) => matches!(*error.kind, ErrorKind::Command(_)),
            Self::Refused { .. } | Self::Malformed { .. } => true,
            Self::Timeout(_) | Self::TooManyPending | Self::Closed | Self::NodeNameTaken => false,
        }
    }

    /// Returns true if a change stream cannot be resumed at its token.
    pub(crate) fn is_history_lost(&self) -> bool {
        matches!(self, Self::Driver(error) if has_code(error, &HISTORY_LOST) || error.contains_label("NonResumableChangeStreamError"))
    }
}

impl From<Error> for MongoError {
    fn from(error: Error) -> Self {
        Self::Driver(Arc::new(error))
    }
}

impl From<MongoError> for StoreError {
    fn from(fault: MongoError) -> Self {
        match &fault {
            MongoError::Malformed { .. } => Self::Corrupt(Box::new(fault)),
            // Includes a member with a full disk: another one may have room.
            MongoError::Driver(_)
            | MongoError::Timeout(_)
            | MongoError::TooManyPending
            | MongoError::Closed
            | MongoError::NodeNameTaken
            | MongoError::Refused { .. } => Self::Unavailable(Box::new(fault)),
        }
    }
}

/// Returns true if the server rejected the credentials.
fn is_authentication_error(error: &Error) -> bool {
    matches!(*error.kind, ErrorKind::Authentication { .. })
        || has_code(error, &[AUTHENTICATION_FAILED])
}

/// Describes a driver error without the server's text, which may repeat the request.
pub(crate) fn describe(error: &Error) -> String {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the driver's list is open, and other kinds carry no code"
    )]
    match &*error.kind {
        ErrorKind::Command(command) => format!("code {} {}", command.code, command.code_name),
        ErrorKind::Write(WriteFailure::WriteError(write)) => {
            format!("code {} {}", write.code, write.code_name.as_deref().unwrap_or_default())
        }
        ErrorKind::Write(WriteFailure::WriteConcernError(concern)) => {
            format!("code {} {}", concern.code, concern.code_name)
        }
        kind => kind.to_string(),
    }
}

/// Returns true if the server replied with one of these codes.
pub(super) fn has_code(error: &Error, codes: &[i32]) -> bool {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the driver's list is open, and other kinds carry no code"
    )]
    match &*error.kind {
        ErrorKind::Command(command) => codes.contains(&command.code),
        ErrorKind::Write(WriteFailure::WriteError(write)) => codes.contains(&write.code),
        ErrorKind::Write(WriteFailure::WriteConcernError(concern)) => codes.contains(&concern.code),
        ErrorKind::InsertMany(many) => {
            many.write_errors.iter().flatten().any(|write| codes.contains(&write.code))
        }
        _ => false,
    }
}
