//! Import into the embedded store.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{
    crypto::chain::ChainPlace,
    model::{ClientId, EpochOf, Keyset, TenantId, revocation::Revocation},
    store::{
        Result, SecretUse,
        embedded::{
            Embedded,
            engine::{
                batch::{Batch, EventText, Priority},
                error::SqliteError,
            },
            tables::{audiences, clients, families},
        },
        transfer::{Beginning, Chains, Ending, ExportRecord, ImportTarget, VERSION},
    },
};

#[async_trait]
impl ImportTarget for Embedded {
    async fn load(&self, items: Vec<ExportRecord>) -> Result<()> {
        self.write(Priority::Normal, move |batch| batch.load(&items)).await
    }
}

impl Batch<'_> {
    /// Imports all records or none: they are checked before the first is written, so a refused
    /// batch leaves no half of itself.
    fn load(&mut self, items: &[ExportRecord]) -> Result<(), SqliteError> {
        let (prepared, import) = self.prepare(items)?;
        for item in prepared {
            match item {
                Prepared::Nothing => {}
                Prepared::Client(client) => taken(self.insert_client(&client)?)?,
                Prepared::Use(used) => self.record_secret_use(&used)?,
                Prepared::Deleted(client, tenant) => taken(self.keep_deleted(&client, &tenant)?)?,
                Prepared::Audience(record) => taken(self.insert_audience(&record)?)?,
                Prepared::Family(family) => taken(self.insert_family(&family)?)?,
                Prepared::Revocation(revocation) => self.record_revocation(&revocation)?,
                Prepared::Epoch(of, value) => self.set_epoch(&of, value)?,
                Prepared::Keyset(keyset) => taken(self.put_keyset(&keyset, Some(0))?)?,
                Prepared::ChainStart { chain, place } => {
                    self.put_cut(&chain, &self.key.mark_cut(&chain, place))?;
                }
                Prepared::Record { chain, sequence, node, hash, entry } => {
                    self.insert_record(&chain, sequence, &node, hash, &entry)?;
                }
                // The own chain is sealed with every commit.
                Prepared::ChainEnd { chain, .. } if chain == self.post_commit.state.chain => {}
                Prepared::ChainEnd { chain, sequence, hash, open } => {
                    self.seal_imported(&chain, sequence, hash, open)?;
                }
            }
        }
        self.post_commit.state.import = import;
        Ok(())
    }

    /// Returns the writes to make, and the progress of the import after them.
    fn prepare(
        &self,
        items: &[ExportRecord],
    ) -> Result<(Vec<Prepared>, Option<Chains>), SqliteError> {
        let mut import = self.post_commit.state.import.clone();
        let mut prepared = Vec::with_capacity(items.len());
        for item in items {
            let next = match (item, &mut import) {
                (ExportRecord::Export { version }, _) if *version != VERSION => {
                    return Err(SqliteError::Malformed(format!(
                        "export: version {version} is not supported, expected {VERSION}"
                    )));
                }
                (ExportRecord::Export { .. }, Some(_)) => return Err(not_empty()),
                (ExportRecord::Export { .. }, None) if !self.is_empty()? => return Err(not_empty()),
                (ExportRecord::Export { .. }, none) => {
                    *none = Some(Chains::default());
                    Prepared::Nothing
                }
                (_, None) => {
                    return Err(SqliteError::Malformed(
                        "import: the first record must be of type export".into(),
                    ));
                }
                (ExportRecord::ChainStart { chain, sequence, hash, at, seal }, Some(import)) => {
                    let beginning = Beginning {
                        chain,
                        sequence: *sequence,
                        hash,
                        at: *at,
                        seal: seal.as_deref(),
                    };
                    let place =
                        import.begin(&beginning, Some(self.key)).map_err(SqliteError::Malformed)?;
                    Prepared::ChainStart { chain: chain.clone(), place }
                }
                (ExportRecord::Record { chain, sequence, node, event, hash }, Some(import)) => {
                    let entry = EventText::new(event.clone())?;
                    let hash = import
                        .step(chain, *sequence, node, entry.body.as_bytes(), hash)
                        .map_err(SqliteError::Malformed)?;
                    Prepared::Record {
                        chain: chain.clone(),
                        sequence: *sequence,
                        node: node.clone(),
                        hash,
                        entry: Box::new(entry),
                    }
                }
                (ExportRecord::ChainEnd { chain, sequence, hash, open, seal }, Some(import)) => {
                    let ending = Ending {
                        chain,
                        sequence: *sequence,
                        hash,
                        open: *open,
                        seal: seal.as_deref(),
                    };
                    let hash =
                        import.close(&ending, Some(self.key)).map_err(SqliteError::Malformed)?;
                    // Its mark is written already.
                    import.take_cut();
                    Prepared::ChainEnd {
                        chain: chain.clone(),
                        sequence: *sequence,
                        hash,
                        open: *open,
                    }
                }
                (ExportRecord::End { chains }, Some(done)) => {
                    done.finish(*chains)
                        .map_err(|problem| SqliteError::Malformed(format!("import: {problem}")))?;
                    import = None;
                    Prepared::Nothing
                }
                (ExportRecord::Client(client), Some(_)) => {
                    Prepared::Client(Box::new(clients::StoredClient::new(client)?))
                }
                (ExportRecord::SecretUse { client, secret, last_used_at, use_count }, Some(_)) => {
                    Prepared::Use(SecretUse {
                        client: client.clone(),
                        secret: secret.clone(),
                        at: *last_used_at,
                        count: *use_count,
                    })
                }
                (ExportRecord::DeletedClient { client, tenant }, Some(_)) => {
                    Prepared::Deleted(client.clone(), tenant.clone())
                }
                (ExportRecord::Audience(record), Some(_)) => {
                    Prepared::Audience(Box::new(audiences::StoredAudience::new(record)?))
                }
                (ExportRecord::Family(family), Some(_)) => {
                    Prepared::Family(Box::new(families::Columns::of(family)?))
                }
                (ExportRecord::Revocation(revocation), Some(_)) => {
                    Prepared::Revocation(*revocation)
                }
                (ExportRecord::Epoch { of, value }, Some(_)) => Prepared::Epoch(of.clone(), *value),
                (ExportRecord::Keyset(keyset), Some(_)) => {
                    Prepared::Keyset(Arc::new(keyset.clone()))
                }
            };
            prepared.push(next);
        }
        Ok((prepared, import))
    }

    fn is_empty(&self) -> Result<bool, SqliteError> {
        let sql = "SELECT 1 WHERE EXISTS (SELECT 1 FROM clients)
                   OR EXISTS (SELECT 1 FROM families) OR EXISTS (SELECT 1 FROM revocations)
                   OR EXISTS (SELECT 1 FROM epochs) OR EXISTS (SELECT 1 FROM keyset)
                   OR EXISTS (SELECT 1 FROM imported_heads)
                   OR EXISTS (SELECT 1 FROM deleted_clients)
                   OR EXISTS (SELECT 1 FROM audiences)";
        Ok(self.post_commit.state.sequence == 0 && self.row(sql, [], |_| Ok(()))?.is_none())
    }
}

/// Checked record. Writing it can only fail with the disk, or as a duplicate.
enum Prepared {
    /// Only counted.
    Nothing,
    Client(Box<clients::StoredClient>),
    Use(SecretUse),
    Deleted(ClientId, TenantId),
    Audience(Box<audiences::StoredAudience>),
    Family(Box<families::Columns>),
    Revocation(Revocation),
    Epoch(EpochOf, u64),
    Keyset(Arc<Keyset>),
    ChainStart {
        chain: Arc<str>,
        place: ChainPlace,
    },
    Record {
        chain: Arc<str>,
        sequence: u64,
        node: Arc<str>,
        hash: [u8; 32],
        entry: Box<EventText>,
    },
    ChainEnd {
        chain: Arc<str>,
        sequence: u64,
        hash: [u8; 32],
        open: bool,
    },
}

fn not_empty() -> SqliteError {
    SqliteError::Malformed("import: the store is not empty".into())
}

/// Refuses a duplicate record. Others of the batch may be written by then, so it is an error that
/// rolls all of it back.
fn taken(free: bool) -> Result<(), SqliteError> {
    let twice = || {
        let corrupt = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        rusqlite::Error::SqliteFailure(corrupt, Some("import: a record is repeated".into()))
    };
    if free { Ok(()) } else { Err(twice().into()) }
}
