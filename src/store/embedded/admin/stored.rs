//! Audit chains of a data directory that is only read: without its lock, and nothing is written. A
//! server may run on it meanwhile: each read is a transaction of its own, so that the WAL does not
//! grow for a long verification.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use rusqlite::Connection;

use crate::{
    crypto::chain::{ChainKey, CutMark, Head},
    model::{Place, Record},
    store::{
        ChainReader, Result, Writer,
        embedded::{
            Embedded,
            audit::{chains, cuts, trail},
            closed,
            engine::{
                error::{OpenError, SqliteError},
                schema,
            },
            files::head_file::{HeadFile, LastAckedHead},
            integrity::check,
        },
    },
};

/// Reads of the audit chains of a data directory.
pub struct StoredChains {
    connection: Arc<Mutex<Connection>>,
    /// Own chain of the store, and what the note beside the database says of it.
    own: Arc<str>,
    acked: Option<LastAckedHead>,
}

impl Embedded {
    /// Opens the audit chains of a data directory for reading.
    ///
    /// # Errors
    ///
    /// There is no database, an import was interrupted, or the chains were sealed with another key.
    pub fn stored_chains(dir: &Path, key: ChainKey) -> Result<StoredChains, OpenError> {
        let dir = dir.canonicalize().map_err(OpenError::io(dir))?;
        // Before the database: a commit is acknowledged after it is in the database.
        let acked = HeadFile::find(&dir, key.clone())?;
        let connection = schema::reader(&dir)?;
        let state = check::state(&connection, "")?;
        check::check_import(&state)?;
        let head = chains::head(&connection, &state.chain)?;
        check::check_key(head.as_ref(), acked.as_ref(), &key)?;
        Ok(StoredChains { connection: Arc::new(Mutex::new(connection)), own: state.chain, acked })
    }
}

impl StoredChains {
    /// Returns the chain, sequence and hash of the record that was acknowledged last, by the note
    /// beside the database.
    pub fn last_acknowledged(&self) -> Option<(Arc<str>, u64, [u8; 32])> {
        let LastAckedHead { sequence, hash, .. } = self.acked.as_ref()?;
        (*sequence > 0).then(|| (Arc::clone(&self.own), *sequence, *hash))
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, SqliteError> + Send + 'static,
    ) -> Result<T> {
        let connection = Arc::clone(&self.connection);
        let read = move || work(&connection.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(tokio::task::spawn_blocking(read).await.map_err(|_| closed())??)
    }
}

#[async_trait]
impl ChainReader for StoredChains {
    async fn chains(&self) -> Result<Vec<Arc<str>>> {
        self.read(chains::names).await
    }

    async fn chain(&self, name: &str, after: u64, limit: usize) -> Result<Vec<Record>> {
        let name: Arc<str> = name.into();
        self.read(move |connection| trail::records(connection, &name, after, limit)).await
    }

    async fn head(&self, chain: &str) -> Result<Option<Head>> {
        let chain: Arc<str> = chain.into();
        self.read(move |connection| chains::head(connection, &chain)).await
    }

    /// Returns [`Writer::This`] for the own chain if the note beside the database is about this
    /// database: then its end is what was acknowledged last. Of a copy that is not known.
    async fn writer(&self, chain: &str) -> Result<Writer> {
        let is_original =
            self.acked.as_ref().is_some_and(|acked| acked.is_of_database && acked.is_in_place);
        Ok(if is_original && *self.own == *chain { Writer::This } else { Writer::NotRunning })
    }

    async fn witnesses(&self, after: Option<&Place>, limit: usize) -> Result<Vec<Record>> {
        let after = after.cloned();
        self.read(move |connection| trail::witnesses(connection, after.as_ref(), limit)).await
    }

    async fn cut_mark(&self, chain: &str) -> Result<Option<CutMark>> {
        let chain: Arc<str> = chain.into();
        self.read(move |connection| cuts::mark(connection, &chain)).await
    }

    async fn cut_marks(&self) -> Result<Vec<(Arc<str>, CutMark)>> {
        self.read(cuts::marks).await
    }
}
