//! Opening of the configured store, and the errors for an operator.

use std::sync::Arc;

use super::StartError;
use crate::{
    config::Config,
    crypto::chain::ChainKey,
    store::{
        Store, StoreError,
        embedded::{self, Accept, Embedded},
        metered::Metered,
        shared,
    },
};

/// Opened store, and the rollback that was accepted to open it.
pub(super) struct OpenedStore {
    pub(super) store: Arc<dyn Store>,
    pub(super) rollback: Option<String>,
}

impl From<Arc<dyn Store>> for OpenedStore {
    fn from(store: Arc<dyn Store>) -> Self {
        Self { store, rollback: None }
    }
}

/// Opens the configured store, with metrics.
pub(super) async fn open(
    config: &Config,
    chain: ChainKey,
    accept: Accept,
) -> Result<OpenedStore, StartError> {
    if !config.store.is_shared() {
        let embedded = Embedded::open_accepting(&config.data_dir, &config.node, chain, accept);
        let embedded = embedded.map_err(|error| refused_embedded(&error))?;
        let rollback = embedded.accepted_rollback().map(str::to_owned);
        return Ok(OpenedStore { store: Arc::new(Metered::new(embedded)), rollback });
    }
    let address =
        config.store.address().map_err(|error| StartError::Configuration(error.to_string()))?;
    let store = shared::open(&address, &config.node, chain, config.store.call_timeout()).await;
    Ok(store.map_err(|error| refused(&error))?.into())
}

/// Converts an open error. A predecessor that holds the directory may be ending.
fn refused_embedded(error: &embedded::OpenError) -> StartError {
    let detail = super::with_sources(error);
    match error {
        embedded::OpenError::Held { .. } => {
            StartError::Transient { reason: "the data directory is in use", detail }
        }
        embedded::OpenError::Io { source, .. }
            if source.kind() == std::io::ErrorKind::ReadOnlyFilesystem =>
        {
            let detail = format!("{detail}; nothing was changed");
            StartError::Transient { reason: "the data directory is read-only", detail }
        }
        embedded::OpenError::Io { .. } => {
            StartError::Transient { reason: "the data directory cannot be opened", detail }
        }
        embedded::OpenError::Exposed { .. }
        | embedded::OpenError::Rollback(_)
        | embedded::OpenError::Newer { .. }
        | embedded::OpenError::MasterKey(_)
        | embedded::OpenError::NodeName(_)
        | embedded::OpenError::Corrupt(_)
        | embedded::OpenError::Database(_) => StartError::Configuration(detail),
    }
}

/// Converts the error of a store that is open.
pub(super) fn failed(error: StoreError) -> StartError {
    if let StoreError::Unavailable(_) = error {
        StartError::Transient { reason: UNREACHABLE, detail: super::with_sources(&error) }
    } else {
        StartError::failed("store")(error.into())
    }
}

/// Reason of a start on a store that holds nothing.
pub(super) const EMPTY: &str = "the store is empty";

/// Refuses a data directory without a store, before anything is created in it: what is created before
/// a mount arrives is hidden by it.
pub(super) fn must_exist(config: &Config) -> Result<(), StartError> {
    if config.store.is_shared() || Embedded::is_in(&config.data_dir) {
        return Ok(());
    }
    let detail = format!(
        "{} holds no store: if it is a mount that comes late this passes, else check data_dir, or \
         create a store with `jeton serve --bootstrap`",
        config.data_dir.display()
    );
    Err(StartError::Transient { reason: EMPTY, detail })
}

const UNREACHABLE: &str = "the store cannot be reached";

/// Converts an open error. A database that is down may come back.
fn refused(error: &shared::OpenError) -> StartError {
    let said = super::with_sources(error);
    if error.is_transient() {
        StartError::Transient { reason: UNREACHABLE, detail: format!("store: {said}") }
    } else {
        StartError::Configuration(said)
    }
}
