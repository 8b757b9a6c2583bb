//! The stores of a transfer: a data directory or a shared store, as configured.

use crate::{
    admin::audit::Known,
    cli::error::Failure,
    config::Config,
    crypto::chain::ChainKey,
    store::{
        ChainReader, Store,
        embedded::{self, Embedded},
        shared,
        transfer::{ExportSource, ImportTarget},
    },
};

/// Opens the configured store for an export.
pub(in crate::cli) async fn source(
    config: &Config,
    key: Option<ChainKey>,
) -> Result<Box<dyn ExportSource>, Failure> {
    if !config.store.is_shared() {
        return Ok(Box::new(
            Embedded::read_only(&config.data_dir, key).map_err(|error| refused_embedded(&error))?,
        ));
    }
    let export = shared::export(&config.store.address()?, key, config.store.call_timeout()).await;
    export.map_err(|error| refused(&error))
}

/// Audit chains of a store that is only read.
pub(in crate::cli) struct StoredTrail {
    pub(in crate::cli) chains: Box<dyn ChainReader>,
    /// Newest record that an embedded store is known to have had.
    pub(in crate::cli) last_acknowledged: Option<Known>,
}

/// Opens the audit chains of the configured store.
pub(in crate::cli) async fn trail(config: &Config, key: ChainKey) -> Result<StoredTrail, Failure> {
    if !config.store.is_shared() {
        if !Embedded::is_in(&config.data_dir) {
            let problem = format!("{} holds no store", config.data_dir.display());
            return Err(Failure::setting("data_dir", problem));
        }
        let chains = Embedded::stored_chains(&config.data_dir, key);
        let chains = chains.map_err(|error| refused_embedded(&error))?;
        let last_acknowledged = chains.last_acknowledged().map(|(chain, sequence, hash)| Known {
            chain,
            sequence,
            hash,
        });
        return Ok(StoredTrail { chains: Box::new(chains), last_acknowledged });
    }
    let chains = shared::chains(&config.store.address()?, key, config.store.call_timeout()).await;
    let chains = chains.map_err(|error| refused(&error))?;
    Ok(StoredTrail { chains, last_acknowledged: None })
}

/// Store that is imported into.
pub(super) enum ImportStore {
    Embedded(Box<Embedded>),
    Shared(Box<dyn ImportTarget>),
}

impl ImportStore {
    pub(super) async fn open(config: &Config, chain: ChainKey) -> Result<Self, Failure> {
        if !config.store.is_shared() {
            let embedded = Embedded::open(&config.data_dir, &config.node, chain)
                .map_err(|error| refused_embedded(&error))?;
            return Ok(Self::Embedded(Box::new(embedded)));
        }
        let import =
            shared::import(&config.store.address()?, chain, config.store.call_timeout()).await;
        Ok(Self::Shared(import.map_err(|error| refused(&error))?))
    }

    pub(super) fn load(&self) -> &dyn ImportTarget {
        match self {
            Self::Embedded(embedded) => embedded.as_ref(),
            Self::Shared(import) => import.as_ref(),
        }
    }

    pub(super) async fn close(&self) -> Result<(), Failure> {
        match self {
            Self::Embedded(embedded) => embedded
                .close()
                .await
                .map_err(|error| super::failed("cannot close the store", &error)),
            // Every batch was durable when it was loaded.
            Self::Shared(_) => Ok(()),
        }
    }

    /// Returns the advice after a failed import.
    pub(super) fn remains(&self, config: &Config) -> String {
        match self {
            Self::Embedded(_) => {
                let dir = config.data_dir.display();
                format!(
                    "the partial import in {dir} cannot be used: empty the directory and import \
                     again"
                )
            }
            Self::Shared(_) => {
                "the partial import in the database cannot be used: drop the database and import \
                 again"
                    .to_owned()
            }
        }
    }
}

fn refused_embedded(error: &embedded::OpenError) -> Failure {
    Failure::setting("data_dir", with_source(error))
}

fn refused(error: &shared::OpenError) -> Failure {
    if error.is_transient() {
        Failure::Other(with_source(error))
    } else {
        Failure::setting("", with_source(error))
    }
}

pub(in crate::cli) fn with_source(error: &dyn std::error::Error) -> String {
    let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
    format!("{error}{source}")
}
