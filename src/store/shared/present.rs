//! Shared store of a program with the driver.

use std::{sync::Arc, time::Duration};

pub use super::super::mongo::OpenError;
use super::super::{
    ChainReader, Store,
    metered::Metered,
    mongo::Mongo,
    transfer::{ExportSource, ImportTarget},
};
use crate::crypto::chain::ChainKey;

/// Opens the store at `address` for a node, with metrics.
///
/// # Errors
/// A database that cannot be reached or that the node must not use.
pub async fn open(
    address: &str,
    node: &str,
    key: ChainKey,
    timeout: Duration,
) -> Result<Arc<dyn Store>, OpenError> {
    Ok(Arc::new(Metered::new(Mongo::open(address, node, key, timeout).await?)))
}

/// Opens the store at `address` to read everything.
///
/// # Errors
/// A database that cannot be reached or read.
pub async fn export(
    address: &str,
    key: Option<ChainKey>,
    timeout: Duration,
) -> Result<Box<dyn ExportSource>, OpenError> {
    Ok(Box::new(Mongo::export(address, key, timeout).await?))
}

/// Opens the audit chains of the store at `address` to read them.
///
/// # Errors
/// A database that cannot be reached or read, or whose chains were sealed with another key.
pub async fn chains(
    address: &str,
    key: ChainKey,
    timeout: Duration,
) -> Result<Box<dyn ChainReader>, OpenError> {
    Ok(Box::new(Mongo::stored_chains(address, key, timeout).await?))
}

/// Opens the store at `address` to fill it.
///
/// # Errors
/// A database that cannot be reached or written, or that is not empty.
pub async fn import(
    address: &str,
    key: ChainKey,
    timeout: Duration,
) -> Result<Box<dyn ImportTarget>, OpenError> {
    Ok(Box::new(Mongo::import(address, key, timeout).await?))
}
