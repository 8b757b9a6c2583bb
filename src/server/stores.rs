//! Which store is opened, and what is said when it cannot be.

use std::{fs, sync::Arc, time::Duration};

use super::StartError;
use crate::{
    config::Config,
    crypto::chain::ChainKey,
    store::{
        Store,
        embedded::{self, Embedded},
        metered::Metered,
        mongo::{self, Mongo},
    },
};

/// The store of a configuration, measured.
pub(super) async fn open(config: &Config, chain: ChainKey) -> Result<Arc<dyn Store>, StartError> {
    if !config.store.is_shared() {
        let embedded = Embedded::open(&config.data_dir, &config.node, chain).map_err(|error| refused_embedded(&error))?;
        return Ok(Arc::new(Metered::new(embedded)));
    }
    let deadline = Duration::from_millis(config.store.call_timeout_ms);
    let mongo = Mongo::open(&address(config)?, &config.node, chain, deadline).await.map_err(|error| refused(&error))?;
    Ok(Arc::new(Metered::new(mongo)))
}

/// The address of the store, from where it is kept.
fn address(config: &Config) -> Result<String, StartError> {
    let file = &config.store.uri_file;
    if file.as_os_str().is_empty() {
        return Ok(config.store.uri.expose().to_owned());
    }
    let text = fs::read_to_string(file)
        .map_err(|error| StartError::Configuration(format!("store.uri_file: cannot read {}: {error}", file.display())))?;
    Ok(text.trim().to_owned())
}

fn refused_embedded(error: &embedded::OpenError) -> StartError {
    StartError::Configuration(super::with_sources(error))
}

/// A database that is down now may be there later: a supervisor should try again.
fn refused(error: &mongo::OpenError) -> StartError {
    let said = super::with_sources(error);
    if error.may_pass() { StartError::Failed(format!("store: {said}")) } else { StartError::Configuration(said) }
}
