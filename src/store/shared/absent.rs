//! Shared store of a program without the driver: none. The configuration refuses such a store
//! before it is opened.

use std::{sync::Arc, time::Duration};

use super::super::{
    ChainReader, Store,
    transfer::{ExportSource, ImportTarget},
};
use crate::crypto::chain::ChainKey;

/// Refusal of a shared store.
#[derive(Debug, thiserror::Error)]
#[error("this jeton was built without MongoDB")]
pub struct OpenError;

impl OpenError {
    /// Returns false: a retry meets the same program.
    pub const fn is_transient(&self) -> bool {
        false
    }
}

/// Refuses to open a store.
///
/// # Errors
/// Always.
pub async fn open(
    _address: &str,
    _node: &str,
    _key: ChainKey,
    _timeout: Duration,
) -> Result<Arc<dyn Store>, OpenError> {
    Err(OpenError)
}

/// Refuses to open a store.
///
/// # Errors
/// Always.
pub async fn export(
    _address: &str,
    _key: Option<ChainKey>,
    _timeout: Duration,
) -> Result<Box<dyn ExportSource>, OpenError> {
    Err(OpenError)
}

/// Refuses to open a store.
///
/// # Errors
/// Always.
pub async fn chains(
    _address: &str,
    _key: ChainKey,
    _timeout: Duration,
) -> Result<Box<dyn ChainReader>, OpenError> {
    Err(OpenError)
}

/// Refuses to open a store.
///
/// # Errors
/// Always.
pub async fn import(
    _address: &str,
    _key: ChainKey,
    _timeout: Duration,
) -> Result<Box<dyn ImportTarget>, OpenError> {
    Err(OpenError)
}
