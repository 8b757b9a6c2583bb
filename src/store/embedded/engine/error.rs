//! What can go wrong inside: opening, and in the middle of a batch.

use std::{io, path::PathBuf, sync::Arc};

use rusqlite::ErrorCode;

use crate::{crypto::chain::Flaw, store::StoreError};

/// Why a directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the data directory is in use by {}: stop it first", process(*pid))]
    Held {
        /// Which; 0 if it is not known.
        pid: u32,
    },
    /// A file or directory that others can change, or that stands in for another one.
    #[error("{} {problem}", path.display())]
    Exposed {
        /// Which.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// The database is a copy, or older than what was acknowledged.
    #[error(
        "the data directory is a copy or was rolled back: {0}. Tokens revoked since then would be \
         valid again. To accept that, run `jeton serve` once with --accept-rollback; to revoke all \
         tokens instead, `jeton export` it and `jeton import` the export into an empty directory"
    )]
    Rollback(String),
    /// It was written by a newer version of this program, which alone may write to it.
    #[error(
        "the data directory has format {found}, this version supports formats up to {known}: run a \
         newer jeton"
    )]
    Newer {
        /// Format of the directory.
        found: i64,
        /// The newest format this version knows.
        known: i64,
    },
    /// What is there is not what was acknowledged, or cannot be understood.
    #[error("the data directory is damaged: {0}")]
    Corrupt(String),
    /// A file cannot be opened, read or written.
    #[error("cannot open {}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The database refuses for another reason.
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
        Fault::from(error).into()
    }
}

impl From<Fault> for OpenError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Row(problem) => Self::Corrupt(problem),
            Fault::Sqlite(error) if fault_kind(&error) == Kind::Corrupt => {
                Self::Corrupt(error.to_string())
            }
            Fault::Sqlite(error) => Self::Database(Box::new(error)),
            Fault::Full | Fault::Failed => Self::Database(fault.to_string().into()),
        }
    }
}

impl From<Flaw> for OpenError {
    fn from(flaw: Flaw) -> Self {
        Self::Corrupt(flaw.to_string())
    }
}

/// Why a verb could not be carried out. Cheap to clone: a batch that fails tells all who are in it.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The database failed: nothing of the batch stands.
    Sqlite(Arc<rusqlite::Error>),
    /// A stored record cannot be understood; found before anything was written, so the rest of the
    /// batch goes on.
    Row(String),
    /// There is no room for this one; found before anything was written.
    Full,
    /// An earlier write failed in a way after which the disk cannot be trusted.
    Failed,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sqlite(error) => error.fmt(f),
            Self::Row(problem) => f.write_str(problem),
            Self::Full => f.write_str("the remaining disk space is reserved for revocations"),
            Self::Failed => f.write_str("an earlier write failed; restart the process to recover"),
        }
    }
}

/// What a fault of the database means for the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// No room: the batch is undone, the store goes on.
    Full,
    /// The disk failed under a write: what it holds is unknown, and asking it again would not tell.
    Broken,
    /// The file is damaged where this batch looked.
    Corrupt,
    /// Anything else, such as a lock held by a foreign tool: the batch is undone, the store goes
    /// on.
    Other,
}

impl Fault {
    /// What it means for the store; `None` if only for the one verb.
    pub(crate) fn kind(&self) -> Option<Kind> {
        match self {
            Self::Sqlite(error) => Some(fault_kind(error)),
            Self::Failed => Some(Kind::Broken),
            Self::Row(_) | Self::Full => None,
        }
    }
}

fn fault_kind(error: &rusqlite::Error) -> Kind {
    // Growing the shared index of the WAL reports a full disk as an I/O error; nothing has been
    // written then.
    let shared_index = error
        .sqlite_error()
        .is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE);
    // Our statements fit our tables: a value of another type, or a table that is not there, is
    // damage.
    if matches!(
        error,
        rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::Utf8Error(..)
            | rusqlite::Error::SqlInputError { .. }
    ) {
        return Kind::Corrupt;
    }
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Kind::Full,
        Some(ErrorCode::SystemIoFailure) if shared_index => Kind::Full,
        Some(ErrorCode::SystemIoFailure) => Kind::Broken,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Kind::Corrupt,
        _ => Kind::Other,
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(Arc::new(error))
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Row(_) => Self::Corrupt(fault.to_string().into()),
            Fault::Full => Self::Full(fault.to_string().into()),
            Fault::Failed => Self::Unavailable(fault.to_string().into()),
            Fault::Sqlite(error) => match fault_kind(&error) {
                Kind::Full => Self::Full(Box::new(error)),
                Kind::Corrupt => Self::Corrupt(Box::new(error)),
                Kind::Broken | Kind::Other => Self::Unavailable(Box::new(error)),
            },
        }
    }
}

/// Holds a page of rows against the key it was asked to come after. In a damaged tree a page may
/// not be what was asked for, and whoever goes on from its last key would go round for ever.
pub(crate) fn ascending<K: PartialOrd>(
    after: Option<K>,
    keys: impl IntoIterator<Item = K>,
) -> Result<(), Fault> {
    let mut last = after;
    for key in keys {
        if last.is_some_and(|last| last >= key) {
            return Err(Fault::Row("rows out of order".into()));
        }
        last = Some(key);
    }
    Ok(())
}

/// For a record that cannot be understood.
pub(crate) fn row(what: &'static str) -> impl FnOnce(serde_json::Error) -> Fault {
    // The parser's message may quote the record; its kind and place do not.
    move |error| {
        Fault::Row(format!("{what}: {:?} error at column {}", error.classify(), error.column()))
    }
}
