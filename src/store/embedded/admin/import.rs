//! Import into the embedded store.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{
    model::{ClientId, EpochOf, Keyset, TenantId, revocation::Revocation},
    store::{
        Result, SecretUse,
        embedded::{
            Embedded,
            engine::{
                batch::{Batch, Entry, Urgency},
                error::Fault,
            },
            tables::{audiences, clients, families},
        },
        transfer::{Chains, Ending, Item, Load, VERSION},
    },
};

#[async_trait]
impl Load for Embedded {
    async fn load(&self, items: Vec<Item>) -> Result<()> {
        self.write(Urgency::Normal, move |batch| batch.load(&items)).await
    }
}

impl Batch<'_> {
    /// All or nothing: the items are looked at before the first is written, so a refused batch
    /// leaves no half of itself.
    fn load(&mut self, items: &[Item]) -> Result<(), Fault> {
        let (prepared, import) = self.prepare(items)?;
        for item in prepared {
            match item {
                Prepared::Nothing => {}
                Prepared::Client(client) => taken(self.insert_client(&client)?)?,
                Prepared::Use(used) => self.note_use(&used)?,
                Prepared::Deleted(client, tenant) => taken(self.keep_deleted(&client, &tenant)?)?,
                Prepared::Audience(record) => taken(self.insert_audience(&record)?)?,
                Prepared::Family(family) => taken(self.insert_family(&family)?)?,
                Prepared::Revocation(revocation) => self.end(&revocation)?,
                Prepared::Epoch(of, value) => self.set_epoch(&of, value)?,
                Prepared::Keyset(keyset) => taken(self.put_keyset(&keyset, Some(0))?)?,
                Prepared::Record { chain, sequence, node, hash, entry } if chain == *self.chain => {
                    self.keep(sequence, &node, hash, &entry)?;
                }
                Prepared::Record { chain, sequence, node, hash, entry } => {
                    self.keep_other(&chain, sequence, &node, hash, &entry)?;
                }
                Prepared::ChainEnd { chain, sequence, hash, open } if chain != *self.chain => {
                    self.seal_other(&chain, sequence, hash, open)?;
                }
                // The own chain is sealed with every batch.
                Prepared::ChainEnd { .. } => {}
            }
        }
        self.effects.state.import = import;
        Ok(())
    }

    /// What to write, and how far the import has come then.
    fn prepare(&self, items: &[Item]) -> Result<(Vec<Prepared>, Option<Chains>), Fault> {
        let mut import = self.effects.state.import.clone();
        let mut prepared = Vec::with_capacity(items.len());
        for item in items {
            let next = match (item, &mut import) {
                (Item::Export { version }, _) if *version != VERSION => {
                    return Err(Fault::Row(format!(
                        "export: version {version} is not supported, expected {VERSION}"
                    )));
                }
                (Item::Export { .. }, Some(_)) => return Err(not_empty()),
                (Item::Export { .. }, None) if !self.is_empty()? => return Err(not_empty()),
                (Item::Export { .. }, none) => {
                    *none = Some(Chains::default());
                    Prepared::Nothing
                }
                (_, None) => {
                    return Err(Fault::Row(
                        "import: the first record must be of type export".into(),
                    ));
                }
                (Item::Record { chain, sequence, node, event, hash }, Some(import)) => {
                    let entry = Entry::new(event.clone())?;
                    let hash = import
                        .step(chain, *sequence, node, entry.body.as_bytes(), hash)
                        .map_err(Fault::Row)?;
                    Prepared::Record {
                        chain: chain.clone(),
                        sequence: *sequence,
                        node: node.clone(),
                        hash,
                        entry: Box::new(entry),
                    }
                }
                (Item::ChainEnd { chain, sequence, hash, open, seal }, Some(import)) => {
                    let ending = Ending {
                        chain,
                        sequence: *sequence,
                        hash,
                        open: *open,
                        seal: seal.as_deref(),
                    };
                    let hash = import.close(&ending, Some(self.key)).map_err(Fault::Row)?;
                    Prepared::ChainEnd {
                        chain: chain.clone(),
                        sequence: *sequence,
                        hash,
                        open: *open,
                    }
                }
                (Item::End { chains }, Some(done)) => {
                    done.finish(*chains)
                        .map_err(|problem| Fault::Row(format!("import: {problem}")))?;
                    import = None;
                    Prepared::Nothing
                }
                (Item::Client(client), Some(_)) => {
                    Prepared::Client(Box::new(clients::Stored::new(client)?))
                }
                (Item::SecretUse { client, secret, last_used_at, use_count }, Some(_)) => {
                    Prepared::Use(SecretUse {
                        client: client.clone(),
                        secret: secret.clone(),
                        at: *last_used_at,
                        count: *use_count,
                    })
                }
                (Item::DeletedClient { client, tenant }, Some(_)) => {
                    Prepared::Deleted(client.clone(), tenant.clone())
                }
                (Item::Audience(record), Some(_)) => {
                    Prepared::Audience(Box::new(audiences::Stored::new(record)?))
                }
                (Item::Family(family), Some(_)) => {
                    Prepared::Family(Box::new(families::Columns::of(family)?))
                }
                (Item::Revocation(revocation), Some(_)) => Prepared::Revocation(*revocation),
                (Item::Epoch { of, value }, Some(_)) => Prepared::Epoch(of.clone(), *value),
                (Item::Keyset(keyset), Some(_)) => Prepared::Keyset(Arc::new(keyset.clone())),
            };
            prepared.push(next);
        }
        Ok((prepared, import))
    }

    fn is_empty(&self) -> Result<bool, Fault> {
        let sql = "SELECT 1 WHERE EXISTS (SELECT 1 FROM clients) OR EXISTS (SELECT 1 FROM families)
                   OR EXISTS (SELECT 1 FROM revocations) OR EXISTS (SELECT 1 FROM epochs) OR EXISTS (SELECT 1 FROM keyset)
                   OR EXISTS (SELECT 1 FROM other_heads) OR EXISTS (SELECT 1 FROM deleted_clients)
                   OR EXISTS (SELECT 1 FROM audiences)";
        Ok(self.effects.state.sequence == 0 && self.row(sql, [], |_| Ok(()))?.is_none())
    }
}

/// An item that has been looked at and can only fail with the disk, or for standing twice in the
/// export.
enum Prepared {
    /// It is only counted.
    Nothing,
    Client(Box<clients::Stored>),
    Use(SecretUse),
    Deleted(ClientId, TenantId),
    Audience(Box<audiences::Stored>),
    Family(Box<families::Columns>),
    Revocation(Revocation),
    Epoch(EpochOf, u64),
    Keyset(Arc<Keyset>),
    Record {
        chain: Arc<str>,
        sequence: u64,
        node: Arc<str>,
        hash: [u8; 32],
        entry: Box<Entry>,
    },
    ChainEnd {
        chain: Arc<str>,
        sequence: u64,
        hash: [u8; 32],
        open: bool,
    },
}

fn not_empty() -> Fault {
    Fault::Row("import: the store is not empty".into())
}

/// A record that stands twice. Others of the batch may be written by then, so it is an error that
/// undoes all of it.
fn taken(free: bool) -> Result<(), Fault> {
    let twice = || {
        let corrupt = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        rusqlite::Error::SqliteFailure(corrupt, Some("import: a record is repeated".into()))
    };
    if free { Ok(()) } else { Err(twice().into()) }
}
