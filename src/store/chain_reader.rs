//! Reads that the verification of audit chains needs, of a store that is served or only read.

use std::sync::Arc;

use async_trait::async_trait;

use super::{AuditStore, Result, Writer};
use crate::{
    crypto::chain::{CutMark, Head},
    model::{Place, Record},
};

/// Reads of audit chains, with the meaning that they have in [`AuditStore`]: every such store has
/// them, and so has the view of one that no process serves.
#[async_trait]
pub trait ChainReader: Send + Sync {
    /// Returns the names of all chains: [`AuditStore::chains`].
    async fn chains(&self) -> Result<Vec<Arc<str>>>;
    /// Returns records of a chain: [`AuditStore::chain`].
    async fn chain(&self, name: &str, after: u64, limit: usize) -> Result<Vec<Record>>;
    /// Returns the sealed head of a chain: [`AuditStore::head`].
    async fn head(&self, chain: &str) -> Result<Option<Head>>;
    /// Returns the node that writes a chain now: [`AuditStore::writer`].
    async fn writer(&self, chain: &str) -> Result<Writer>;
    /// Returns records of witnessed heads: [`AuditStore::witnesses`].
    async fn witnesses(&self, after: Option<&Place>, limit: usize) -> Result<Vec<Record>>;
    /// Returns the mark of the cut of a chain: [`AuditStore::cut_mark`].
    async fn cut_mark(&self, chain: &str) -> Result<Option<CutMark>>;
    /// Returns the marks of all chains: [`AuditStore::cut_marks`].
    async fn cut_marks(&self) -> Result<Vec<(Arc<str>, CutMark)>>;
}

#[async_trait]
impl<S: AuditStore + ?Sized> ChainReader for S {
    async fn chains(&self) -> Result<Vec<Arc<str>>> {
        AuditStore::chains(self).await
    }

    async fn chain(&self, name: &str, after: u64, limit: usize) -> Result<Vec<Record>> {
        AuditStore::chain(self, name, after, limit).await
    }

    async fn head(&self, chain: &str) -> Result<Option<Head>> {
        AuditStore::head(self, chain).await
    }

    async fn writer(&self, chain: &str) -> Result<Writer> {
        AuditStore::writer(self, chain).await
    }

    async fn witnesses(&self, after: Option<&Place>, limit: usize) -> Result<Vec<Record>> {
        AuditStore::witnesses(self, after, limit).await
    }

    async fn cut_mark(&self, chain: &str) -> Result<Option<CutMark>> {
        AuditStore::cut_mark(self, chain).await
    }

    async fn cut_marks(&self) -> Result<Vec<(Arc<str>, CutMark)>> {
        AuditStore::cut_marks(self).await
    }
}
