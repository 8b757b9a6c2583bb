//! What can go wrong with a database that is elsewhere.

use std::{sync::Arc, time::Duration};

use mongodb::error::{Error, ErrorKind, WriteFailure};

use crate::store::StoreError;

/// MongoDB's codes for a key that is taken, and for what a change stream cannot be resumed after.
const DUPLICATE_KEY: i32 = 11_000;
const HISTORY_LOST: [i32; 5] = [286, 280, 260, 222, 136];
/// MongoDB's codes for credentials that are wrong, and for a user that may not.
const AUTHENTICATION_FAILED: i32 = 18;
const UNAUTHORIZED: i32 = 13;

/// Why a database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The address cannot be understood. Says what is wrong with it, never the address: it may hold
    /// a password.
    #[error("store.uri: {0}")]
    Uri(String),
    /// The address names other servers than those that are there.
    #[error("store.uri: {0}")]
    WrongReplicaSet(String),
    /// Nobody answers there, or nobody who takes writes.
    #[error("cannot reach MongoDB: {0}")]
    Unreachable(String),
    /// The database refuses the name and password.
    #[error("MongoDB refuses the credentials: {0}")]
    Credentials(String),
    /// The database knows the user, and does not let it do what must be done.
    #[error(
        "the user of store.uri may not do what is needed: it needs the role readWrite on the \
         database"
    )]
    Forbidden,
    /// The database is too old.
    #[error("MongoDB is too old: wire version {found}, this version needs {needed} (MongoDB 4.4)")]
    TooOld {
        /// What it speaks.
        found: i32,
        /// What is needed.
        needed: i32,
    },
    /// It was written by a newer version of this program, which alone may write to it.
    #[error("the database has schema {found}, this version knows schemas up to {known}")]
    Newer {
        /// Schema of the database.
        found: i64,
        /// The newest schema this version knows.
        known: i64,
    },
    /// What is there was made under another master key.
    #[error("{0} was not sealed under this master key")]
    MasterKey(String),
    /// What is there is not what was acknowledged, or cannot be understood.
    #[error("the database is damaged: {0}")]
    Corrupt(String),
    /// It cannot be reached, or does not do what it is asked.
    #[error("cannot open the database")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl OpenError {
    /// Whether trying again later may help without anybody mending the configuration.
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
            | MongoError::Refused(_) => Self::Failed(Box::new(fault)),
        }
    }
}

impl From<Error> for OpenError {
    fn from(error: Error) -> Self {
        MongoError::from(error).into()
    }
}

/// Why a verb could not be carried out.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum MongoError {
    /// The driver says so. A write may have been carried out all the same.
    #[error("{}", describe(.0))]
    Driver(Arc<Error>),
    /// No answer in time; what was asked may still be carried out.
    #[error("no answer from MongoDB within {0:?}")]
    Timeout(Duration),
    /// So many calls are waiting for MongoDB that no further one is begun.
    #[error("too many calls are waiting for MongoDB")]
    TooManyPending,
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// Another process took this node's name, and writes its audit chain.
    #[error("another process runs under this node's name")]
    NodeNameTaken,
    /// The server refused a command of which the driver does not judge the answer.
    #[error("MongoDB refused: {0}")]
    Refused(String),
    /// A stored document cannot be understood.
    #[error("{what}: {problem}")]
    Malformed {
        /// Of which kind.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl MongoError {
    /// A document that cannot be understood.
    pub(crate) fn malformed(what: &'static str, problem: impl std::fmt::Display) -> Self {
        Self::Malformed { what, problem: problem.to_string() }
    }

    /// A write error or write concern error in an answer: its code and name, not its text, which
    /// repeats what was written.
    pub(crate) fn refused(answer: &mongodb::bson::Document) -> Self {
        let name = answer.get_str("codeName").unwrap_or_default();
        Self::Refused(format!("code {} {name}", answer.get_i32("code").unwrap_or_default()))
    }

    /// Whether a key was taken.
    pub(crate) fn is_duplicate(&self) -> bool {
        matches!(self, Self::Driver(error) if has_code(error, &[DUPLICATE_KEY]))
    }

    /// Whether the server said so, or its answer makes no sense: not that there was none.
    pub(crate) fn is_server_reply(&self) -> bool {
        match self {
            Self::Driver(error) => matches!(*error.kind, ErrorKind::Command(_)),
            Self::Refused(_) | Self::Malformed { .. } => true,
            Self::Timeout(_) | Self::TooManyPending | Self::Closed | Self::NodeNameTaken => false,
        }
    }

    /// Whether a change stream cannot go on from where it was.
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
            // A member whose disk is full too: another one may have room.
            MongoError::Driver(_)
            | MongoError::Timeout(_)
            | MongoError::TooManyPending
            | MongoError::Closed
            | MongoError::NodeNameTaken
            | MongoError::Refused(_) => Self::Unavailable(Box::new(fault)),
        }
    }
}

/// Whether the server refused who we say we are.
fn is_authentication_error(error: &Error) -> bool {
    matches!(*error.kind, ErrorKind::Authentication { .. })
        || has_code(error, &[AUTHENTICATION_FAILED])
}

/// What the driver says, without what it repeats of the server's answer: that may repeat what was
/// asked.
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

/// Whether the server answered with one of these codes.
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
