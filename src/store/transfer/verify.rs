//! Verification of an export, record by record, before any of it is written: an import seals
//! everything under this store's key, so it is verified first.

use super::{Beginning, Chains, Ending, ExportRecord, VERSION};
use crate::{
    crypto::{chain::ChainKey, records::RecordKey, root::Root, seal::Sealer},
    store::authentic::Forged,
};

/// Master key of a store, and the key of its audit chains.
struct Keys<'a> {
    sealer: &'a Sealer,
    chain: &'a ChainKey,
    records: RecordKey,
}

/// Verification of an export in progress.
pub struct Verification<'a> {
    keys: Option<Keys<'a>>,
    chains: Chains,
    begun: bool,
    has_keyset: bool,
    whole: bool,
    counts: Counts,
    forged: Vec<Forged>,
}

/// Numbers of records in an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Number of clients.
    pub clients: u64,
    /// Number of refresh families.
    pub families: u64,
    /// Number of audit records.
    pub records: u64,
}

impl<'a> Verification<'a> {
    /// Verifies with the master key and the key of the audit chains: also the keyset's MAC and the
    /// seal of each chain.
    pub fn new(sealer: &'a Sealer, chain: &'a ChainKey) -> Self {
        let records = RecordKey::new(sealer.derive("client record"));
        Self { keys: Some(Keys { sealer, chain, records }), ..Self::without_key() }
    }

    /// Verifies what can be verified without a key: the records are complete, in order, and each
    /// chain's hashes fit.
    pub fn without_key() -> Self {
        Self {
            keys: None,
            chains: Chains::default(),
            begun: false,
            has_keyset: false,
            whole: false,
            counts: Counts::default(),
            forged: Vec::new(),
        }
    }

    /// Checks the next record.
    ///
    /// # Errors
    ///
    /// Returns the problem of the record.
    pub fn take(&mut self, item: &ExportRecord) -> Result<(), String> {
        if self.whole {
            return Err("data follows the last record".to_owned());
        }
        if !(self.begun || matches!(item, ExportRecord::Export { .. })) {
            return Err("the first record must be of type export".to_owned());
        }
        match item {
            ExportRecord::Export { version } if *version != VERSION => {
                return Err(format!("version {version} is not supported, expected {VERSION}"));
            }
            ExportRecord::Export { .. } if self.begun => {
                return Err("a second export header".to_owned());
            }
            ExportRecord::Export { .. } => self.begun = true,
            ExportRecord::Client(client) => {
                self.counts.clients += 1;
                if self.keys.as_ref().is_some_and(|keys| !keys.records.is_authentic(client)) {
                    self.forged.push(Forged::Client(client.id.clone()));
                }
            }
            ExportRecord::Audience(record) => {
                if self
                    .keys
                    .as_ref()
                    .is_some_and(|keys| !keys.records.is_authentic_audience(record))
                {
                    self.forged.push(Forged::Audience(record.audience.clone()));
                }
            }
            ExportRecord::Family(_) => self.counts.families += 1,
            ExportRecord::SecretUse { .. }
            | ExportRecord::DeletedClient { .. }
            | ExportRecord::Revocation(_)
            | ExportRecord::Epoch { .. } => {}
            ExportRecord::Keyset(_) if self.has_keyset => {
                return Err("a second keyset".to_owned());
            }
            ExportRecord::Keyset(keyset) => {
                self.has_keyset = true;
                if let Some(Keys { sealer, .. }) = &self.keys {
                    if Root::open(keyset, sealer).is_err() {
                        return Err("the keys were sealed under another master key".to_owned());
                    }
                    keyset.check(sealer).map_err(|error| error.to_string())?;
                }
            }
            ExportRecord::ChainStart { chain, sequence, hash, at, seal } => {
                let beginning =
                    Beginning { chain, sequence: *sequence, hash, at: *at, seal: seal.as_deref() };
                self.chains.begin(&beginning, self.keys.as_ref().map(|keys| keys.chain))?;
            }
            ExportRecord::Record { chain, sequence, node, event, hash } => {
                let body = serde_json::to_vec(event).map_err(|error| error.to_string())?;
                self.chains.step(chain, *sequence, node, &body, hash)?;
                self.counts.records += 1;
            }
            ExportRecord::ChainEnd { chain, sequence, hash, open, seal } => {
                let ending =
                    Ending { chain, sequence: *sequence, hash, open: *open, seal: seal.as_deref() };
                self.chains.close(&ending, self.keys.as_ref().map(|keys| keys.chain))?;
            }
            ExportRecord::End { chains } => {
                self.chains.finish(*chains)?;
                self.whole = true;
            }
        }
        Ok(())
    }

    /// Returns the numbers of records, and the records that no holder of the master key wrote;
    /// `None` if the last record is missing.
    pub fn finish(self) -> Option<(Counts, Vec<Forged>)> {
        self.whole.then_some((self.counts, self.forged))
    }
}
