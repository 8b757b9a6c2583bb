//! Reading the audit trail: what an administrator may see of it, and whether it is whole.

use std::sync::Arc;

use tokio::sync::broadcast;

use super::{Administrator, Authority};
use crate::{
    crypto::chain::{ChainKey, Walk},
    error::Result,
    model::{Record, event::Filter},
    store::{AuditStore, StoreError},
};

/// How many records are read at once.
const STRIDE: usize = 2_000;

/// What verification came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// How many records were read.
    pub checked: u64,
    /// The first record that is wrong or missing, and how.
    pub flaw: Option<(u64, String)>,
    /// The newest sealed record and its hash.
    pub head: (u64, [u8; 32]),
}

impl Authority {
    /// A page of records, newest first, confined to what the administrator governs.
    pub async fn events(
        &self,
        admin: &Administrator,
        filter: Filter,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Record>> {
        let tenant = admin.confined_to(filter.tenant.clone())?;
        Ok(self.store.events(&Filter { tenant, ..filter }, before, limit).await?)
    }

    /// Records as they are committed, and the filter that says which of them the administrator may see.
    pub fn tail(&self, admin: &Administrator, filter: Filter) -> Result<(broadcast::Receiver<Arc<Record>>, Filter)> {
        let tenant = admin.confined_to(filter.tenant.clone())?;
        Ok((self.store.tail(), Filter { tenant, ..filter }))
    }

    /// Walks the whole chain; `known` is a sequence and hash that were noted elsewhere.
    pub async fn verify_trail(&self, admin: &Administrator, key: &ChainKey, known: Option<(u64, [u8; 32])>) -> Result<Verdict> {
        admin.must_govern_all()?;
        verify(self.store(), key, known).await
    }
}

/// Walks the whole chain of a store, up to the head that was sealed when the walk began.
pub async fn verify<S: AuditStore + ?Sized>(store: &S, key: &ChainKey, known: Option<(u64, [u8; 32])>) -> Result<Verdict> {
    let head = store.head().await?;
    let end = head.as_ref().map_or(u64::MAX, |head| head.sequence);
    let mut verdict =
        Verdict { head: head.as_ref().map_or((0, [0; 32]), |head| (head.sequence, head.hash)), ..Verdict::default() };
    let mut walk = Walk::from_start();
    let mut stride = STRIDE;
    loop {
        let records = match store.chain(walk.sequence(), stride).await {
            Ok(records) => records,
            // One of them cannot be read: go on one by one to say which.
            Err(StoreError::Corrupt(_)) if stride > 1 => {
                stride = 1;
                continue;
            }
            Err(StoreError::Corrupt(_)) => {
                verdict.flaw = Some((walk.sequence() + 1, "cannot be read".to_owned()));
                return Ok(verdict);
            }
            Err(error @ (StoreError::Unavailable(_) | StoreError::Full(_))) => return Err(error.into()),
        };
        for record in records.iter().take_while(|record| record.sequence <= end) {
            if let Err(flaw) = walk.record(record) {
                verdict.flaw = Some((flaw.sequence, flaw.problem.to_string()));
                return Ok(verdict);
            }
            verdict.checked += 1;
            if known.is_some_and(|(sequence, hash)| sequence == record.sequence && hash != record.hash) {
                verdict.flaw = Some((record.sequence, "differs from the hash noted elsewhere".to_owned()));
                return Ok(verdict);
            }
        }
        if records.len() < stride || walk.sequence() >= end {
            break;
        }
    }
    verdict.flaw = match (walk.finish(key, head.as_ref()), known) {
        (Err(flaw), _) => Some((flaw.sequence, flaw.problem.to_string())),
        (Ok(()), Some((sequence, _))) if sequence > walk.sequence() => {
            Some((walk.sequence() + 1, "cut off before the sequence noted elsewhere".to_owned()))
        }
        (Ok(()), _) => None,
    };
    Ok(verdict)
}
