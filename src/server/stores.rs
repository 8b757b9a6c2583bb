//! Which store is opened, and what is said when it cannot be.

use std::sync::Arc;

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
    let address = config.store.address().map_err(|error| StartError::Configuration(error.to_string()))?;
    let mongo = Mongo::open(&address, &config.node, chain, config.store.call_timeout()).await;
    let mongo = mongo.map_err(|error| refused(&error))?;
    Ok(Arc::new(Metered::new(mongo)))
}

fn refused_embedded(error: &embedded::OpenError) -> StartError {
    StartError::Configuration(super::with_sources(error))
}

/// A database that is down now may be there later: a supervisor should try again.
fn refused(error: &mongo::OpenError) -> StartError {
    let said = super::with_sources(error);
    if error.may_pass() { StartError::Failed(format!("store: {said}")) } else { StartError::Configuration(said) }
}
