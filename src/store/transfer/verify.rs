//! Verification of an export, record by record, before any of it is written: what an import makes
//! its own is checked first, since afterwards it is sealed under this store's key.

use super::{Chains, Ending, Item, VERSION};
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

/// An export that goes by.
pub struct Verification<'a> {
    keys: Option<Keys<'a>>,
    chains: Chains,
    begun: bool,
    has_keyset: bool,
    whole: bool,
    counts: Counts,
    forged: Vec<Forged>,
}

/// Numbers of what was in an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Clients.
    pub clients: u64,
    /// Refresh families.
    pub families: u64,
    /// Audit records.
    pub records: u64,
}

impl<'a> Verification<'a> {
    /// Under the master key and the key of the audit chains: the keyset's MAC and the seal of each
    /// chain are checked.
    pub fn new(sealer: &'a Sealer, chain: &'a ChainKey) -> Self {
        let records = RecordKey::new(sealer.derive("client record"));
        Self { keys: Some(Keys { sealer, chain, records }), ..Self::without_key() }
    }

    /// Of what shows without a key: the records are whole, in order, and each chain's hashes fit.
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
    /// Says what is wrong with it.
    pub fn take(&mut self, item: &Item) -> Result<(), String> {
        if self.whole {
            return Err("data follows the last record".to_owned());
        }
        if !(self.begun || matches!(item, Item::Export { .. })) {
            return Err("the first record must be of type export".to_owned());
        }
        match item {
            Item::Export { version } if *version != VERSION => {
                return Err(format!("version {version} is not supported, expected {VERSION}"));
            }
            Item::Export { .. } if self.begun => return Err("a second export header".to_owned()),
            Item::Export { .. } => self.begun = true,
            Item::Client(client) => {
                self.counts.clients += 1;
                if self.keys.as_ref().is_some_and(|keys| !keys.records.is_authentic(client)) {
                    self.forged.push(Forged::Client(client.id.clone()));
                }
            }
            Item::Audience(record) => {
                if self
                    .keys
                    .as_ref()
                    .is_some_and(|keys| !keys.records.is_authentic_audience(record))
                {
                    self.forged.push(Forged::Audience(record.audience.clone()));
                }
            }
            Item::Family(_) => self.counts.families += 1,
            Item::SecretUse { .. }
            | Item::DeletedClient { .. }
            | Item::Revocation(_)
            | Item::Epoch { .. } => {}
            Item::Keyset(_) if self.has_keyset => return Err("a second keyset".to_owned()),
            Item::Keyset(keyset) => {
                self.has_keyset = true;
                if let Some(Keys { sealer, .. }) = &self.keys {
                    if Root::open(keyset, sealer).is_err() {
                        return Err("the keys were sealed under another master key".to_owned());
                    }
                    keyset.check(sealer).map_err(|error| error.to_string())?;
                }
            }
            Item::Record { chain, sequence, node, event, hash } => {
                let body = serde_json::to_vec(event).map_err(|error| error.to_string())?;
                self.chains.step(chain, *sequence, node, &body, hash)?;
                self.counts.records += 1;
            }
            Item::ChainEnd { chain, sequence, hash, open, seal } => {
                let ending =
                    Ending { chain, sequence: *sequence, hash, open: *open, seal: seal.as_deref() };
                self.chains.close(&ending, self.keys.as_ref().map(|keys| keys.chain))?;
            }
            Item::End { chains } => {
                self.chains.finish(*chains)?;
                self.whole = true;
            }
        }
        Ok(())
    }

    /// The numbers of everything, and the records that no holder of the master key wrote; `None`
    /// where the last record was not among it.
    pub fn finish(self) -> Option<(Counts, Vec<Forged>)> {
        self.whole.then_some((self.counts, self.forged))
    }
}
