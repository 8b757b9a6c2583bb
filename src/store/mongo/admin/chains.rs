//! Audit chains of a database, for a reader that is no node of it.

use std::{sync::Arc, time::Duration};

use super::topology;
use crate::{
    crypto::chain::ChainKey,
    store::mongo::{
        Mongo,
        audit::{StoredChains, node_lease::is_cluster_key},
        driver::{
            connection::{BACKGROUND_TIMEOUT, Connection},
            error::OpenError,
            handshake::handshake,
            schema,
        },
    },
};

impl Mongo {
    /// Opens the audit chains of a database for reading, with or without running nodes. Writes
    /// nothing to it.
    ///
    /// # Errors
    ///
    /// Those of [`Mongo::open`].
    pub async fn stored_chains(
        uri: &str,
        key: ChainKey,
        deadline: Duration,
    ) -> Result<StoredChains, OpenError> {
        match Self::open_chains(uri, key, deadline).await {
            Err(error) => Err(topology::diagnose_connect_error(uri, error).await),
            opened => opened,
        }
    }

    async fn open_chains(
        uri: &str,
        key: ChainKey,
        deadline: Duration,
    ) -> Result<StoredChains, OpenError> {
        // A page takes longer than a call that a caller waits for.
        let connection = Arc::new(Connection::new(uri, deadline.max(BACKGROUND_TIMEOUT)).await?);
        handshake(&connection).await?;
        schema::check_version(&connection).await?;
        if schema::is_importing(&connection).await? {
            return Err(OpenError::unfinished_import());
        }
        if !is_cluster_key(&connection, &key).await? {
            return Err(OpenError::MasterKey("every audit chain of this database".to_owned()));
        }
        Ok(StoredChains::of_reader(connection, key))
    }
}
