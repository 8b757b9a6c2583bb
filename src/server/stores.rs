//! Opening of the configured store, and the errors for an operator.

use std::sync::Arc;

use super::StartError;
use crate::{
    config::Config,
    crypto::chain::ChainKey,
    store::{
        Store,
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

fn refused_embedded(error: &embedded::OpenError) -> StartError {
    StartError::Configuration(super::with_sources(error))
}

/// Converts an open error. A database that is down may come back: a supervisor should retry.
fn refused(error: &shared::OpenError) -> StartError {
    let said = super::with_sources(error);
    if error.is_transient() {
        StartError::Failed(format!("store: {said}"))
    } else {
        StartError::Configuration(said)
    }
}
