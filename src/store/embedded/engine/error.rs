//! Errors of opening a data directory and of a batch.

use std::{io, path::PathBuf, sync::Arc};

use rusqlite::ErrorCode;

use crate::{crypto::chain::Flaw, store::StoreError};

/// Reason that a data directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the data directory is in use by {}: stop it first", process(*pid))]
    Held {
        /// Id of that process; 0 if unknown.
        pid: u32,
    },
    /// A file or directory that other users can change, or that is not the file it should be.
    #[error("{} {problem}", path.display())]
    Exposed {
        /// Path of the file.
        path: PathBuf,
        /// Problem, and the way to solve it.
        problem: String,
    },
    /// The database is a copy, or older than the last acknowledged write.
    #[error(
        "the data directory is a copy or was rolled back: {0}. Tokens revoked since then would be \
         valid again. To accept that, run `jeton serve` once with --accept-rollback; to revoke all \
         tokens instead, `jeton export` it and `jeton import` the export into an empty directory"
    )]
    Rollback(String),
    /// A newer version of this program wrote the database; only such a version may write to it.
    #[error(
        "the data directory has format {found}, this version supports formats up to {known}: run a \
         newer jeton"
    )]
    Newer {
        /// Format of the directory.
        found: i64,
        /// Newest format that this version supports.
        known: i64,
    },
    /// The data was sealed under another master key.
    #[error("this is not the master key of the data directory: {0}; check master_key_file")]
    MasterKey(&'static str),
    /// The node's name is that of another node's chain in the data directory.
    #[error(
        "the node name {0} is taken by the audit chain of another node: set another name in `node`"
    )]
    NodeName(String),
    /// The content differs from the last acknowledged one, or cannot be decoded.
    #[error("the data directory is damaged: {0}")]
    Corrupt(String),
    /// A file cannot be opened, read or written.
    #[error("cannot open {}", path.display())]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// SQLite refused for another reason.
    #[error("cannot open the database")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn process(pid: u32) -> String {
    if pid == 0 { "another process".to_owned() } else { format!("process {pid}") }
}

impl OpenError {
    pub(in crate::store::embedded) fn io(
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        SqliteError::from(error).into()
    }
}

impl From<SqliteError> for OpenError {
    fn from(fault: SqliteError) -> Self {
        match fault {
            SqliteError::Malformed(problem) => Self::Corrupt(problem),
            SqliteError::Sqlite(error) if kind_of(&error) == ErrorKind::Corrupt => {
                Self::Corrupt(error.to_string())
            }
            SqliteError::Sqlite(error) => Self::Database(Box::new(error)),
            SqliteError::Full | SqliteError::Failed => Self::Database(fault.to_string().into()),
        }
    }
}

impl From<Flaw> for OpenError {
    fn from(flaw: Flaw) -> Self {
        Self::Corrupt(flaw.to_string())
    }
}

/// Reason that a verb failed. Cheap to clone: a failed batch reports it to every caller in it.
#[derive(Clone, Debug)]
pub(crate) enum SqliteError {
    /// SQLite failed: the whole batch is rolled back.
    Sqlite(Arc<rusqlite::Error>),
    /// A stored record cannot be decoded; found before anything was written, so the rest of the
    /// batch goes on.
    Malformed(String),
    /// There is no room for this write; found before anything was written.
    Full,
    /// An earlier write failed in a way after which the disk cannot be trusted.
    Failed,
}

impl std::fmt::Display for SqliteError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sqlite(error) => error.fmt(f),
            Self::Malformed(problem) => f.write_str(problem),
            Self::Full => f.write_str("the remaining disk space is reserved for revocations"),
            Self::Failed => f.write_str("an earlier write failed; restart the process to recover"),
        }
    }
}

/// Consequence of an SQLite error for the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// No room: the batch is rolled back, the store goes on.
    Full,
    /// The disk failed during a write: its content is unknown, and a retry would not show it.
    Broken,
    /// The file is damaged in a page that this batch read.
    Corrupt,
    /// Any other error, such as a lock held by a foreign tool: the batch is rolled back, the store
    /// goes on.
    Other,
}

impl SqliteError {
    /// Returns the consequence for the store; `None` if only this one verb failed.
    pub(crate) fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Sqlite(error) => Some(kind_of(error)),
            Self::Failed => Some(ErrorKind::Broken),
            Self::Malformed(_) | Self::Full => None,
        }
    }
}

fn kind_of(error: &rusqlite::Error) -> ErrorKind {
    // Growing the shared index of the WAL reports a full disk as an I/O error; nothing has been
    // written then.
    let shared_index = error
        .sqlite_error()
        .is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE);
    // Our statements fit our tables: a value of another type, or a missing table, is damage.
    if matches!(
        error,
        rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::Utf8Error(..)
            | rusqlite::Error::SqlInputError { .. }
    ) {
        return ErrorKind::Corrupt;
    }
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => ErrorKind::Full,
        Some(ErrorCode::SystemIoFailure) if shared_index => ErrorKind::Full,
        Some(ErrorCode::SystemIoFailure) => ErrorKind::Broken,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => ErrorKind::Corrupt,
        _ => ErrorKind::Other,
    }
}

impl From<rusqlite::Error> for SqliteError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(Arc::new(error))
    }
}

impl From<SqliteError> for StoreError {
    fn from(fault: SqliteError) -> Self {
        match fault {
            SqliteError::Malformed(_) => Self::Corrupt(fault.to_string().into()),
            SqliteError::Full => Self::Full(fault.to_string().into()),
            SqliteError::Failed => Self::Unavailable(fault.to_string().into()),
            SqliteError::Sqlite(error) => match kind_of(&error) {
                ErrorKind::Full => Self::Full(Box::new(error)),
                ErrorKind::Corrupt => Self::Corrupt(Box::new(error)),
                ErrorKind::Broken | ErrorKind::Other => Self::Unavailable(Box::new(error)),
            },
        }
    }
}

/// Checks that a page of rows is in ascending order and after the requested key. In a damaged tree
/// it may not be, and a reader that continues from its last key would loop forever.
pub(crate) fn check_ascending<K: PartialOrd>(
    after: Option<K>,
    keys: impl IntoIterator<Item = K>,
) -> Result<(), SqliteError> {
    let mut last = after;
    for key in keys {
        if last.is_some_and(|last| last >= key) {
            return Err(SqliteError::Malformed("rows out of order".into()));
        }
        last = Some(key);
    }
    Ok(())
}

/// Converts a decoding error of a stored record.
pub(crate) fn malformed(what: &'static str) -> impl FnOnce(serde_json::Error) -> SqliteError {
    // The parser's message may quote the record; its kind and position do not.
    move |error| {
        SqliteError::Malformed(format!(
            "{what}: {:?} error at column {}",
            error.classify(),
            error.column()
        ))
    }
}
