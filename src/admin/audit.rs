//! Reading and verification of the audit trail for administrators.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::{AdminAuthenticator, Administrator, tail::Tail};
pub use super::{
    verification::{Step, Verdict, Verification, VerifyRequest, verify},
    witness::Known,
};
use crate::{
    crypto::chain::ChainKey,
    error::{Error, Result},
    model::{Place, Record, Timestamp, event::Filter},
    store::{EventPage, Store},
};

/// Records per read of a list that is merged of several.
const MERGED: usize = 500;
/// Streams that verify at the same time: each reads and hashes every record.
pub(crate) const VERIFICATIONS_MAX: usize = 3;
/// Time after which a caller may try to verify again.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Reads the audit trail for administrators.
pub struct AuditReader {
    pub(crate) gate: Arc<AdminAuthenticator>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) chain: Arc<ChainKey>,
    /// Permits of streams that verify.
    pub(crate) verifications: Arc<Semaphore>,
    /// Time after which a page is returned as far as it is.
    pub(crate) patience: Duration,
}

impl AuditReader {
    /// A page of records, newest first, confined to what the administrator can_access_tenant.
    pub async fn events(
        &self,
        admin: &Administrator,
        filter: Filter,
        before: Option<&Place>,
        limit: usize,
    ) -> Result<EventPage> {
        let tenant = admin.tenant_filter(filter.tenant.clone())?;
        let filter = Filter { tenant, ..filter };
        let alternatives = filter.alternatives();
        if alternatives == [filter.clone()] {
            return Ok(self.store.page(&filter, before, limit, self.patience).await?);
        }
        self.merged(&filter, &alternatives, before, limit).await
    }

    /// Merges the records of filters that together admit what `filter` admits. What is older than
    /// the place that one of them has reached waits for a later page.
    async fn merged(
        &self,
        filter: &Filter,
        alternatives: &[Filter],
        before: Option<&Place>,
        limit: usize,
    ) -> Result<EventPage> {
        let began = Instant::now();
        let mut page = EventPage { records: Vec::new(), next: before.cloned() };
        loop {
            let (mut found, mut reached) = (BTreeMap::new(), None::<Place>);
            for alternative in alternatives {
                let before = page.next.as_ref();
                let part = self.store.page(alternative, before, MERGED, self.patience / 4).await?;
                let admitted =
                    part.records.into_iter().filter(|record| filter.admits(&record.event));
                found.extend(admitted.map(|record| (record.place(), record)));
                reached = reached.max(part.next);
            }
            if let Some(reached) = &reached {
                found.retain(|place, _| place >= reached);
            }
            page.records.extend(found.into_values().rev());
            page.next = reached;
            if page.records.len() > limit {
                page.records.truncate(limit);
                page.next = page.records.last().map(Record::place);
            }
            let is_done = page.next.is_none() || page.records.len() >= limit;
            if is_done || began.elapsed() >= self.patience / 2 {
                return Ok(page);
            }
        }
    }

    /// Returns the time up to which records were cut, of any chain; `None` if all chains are whole,
    /// or if the filter admits only later records.
    pub async fn cut_until(&self, filter: &Filter) -> Result<Option<Timestamp>> {
        let marks = self.store.cut_marks().await?;
        let valid = marks.iter().filter(|(chain, mark)| self.chain.check_cut(chain, mark));
        let newest = valid.map(|(_, mark)| mark.place.at).max();
        Ok(newest.filter(|newest| filter.from.is_none_or(|from| from <= *newest)))
    }

    /// Records as they are committed, of those that the administrator may see: from now on, or after
    /// the positions `after`.
    pub async fn tail(
        &self,
        admin: &Administrator,
        filter: Filter,
        after: BTreeMap<Arc<str>, u64>,
    ) -> Result<Tail> {
        let tenant = admin.tenant_filter(filter.tenant.clone())?;
        Tail::begin(Arc::clone(&self.store), Filter { tenant, ..filter }, after).await
    }

    /// Verifies every chain, or only one, in one go: see [`verify`].
    pub async fn verify(
        &self,
        admin: &Administrator,
        only: Option<&str>,
        known: &[Known],
    ) -> Result<Vec<Verdict>> {
        admin.must_be_operator()?;
        let verdicts = verify(self.store.as_ref(), &self.chain, only, known).await?;
        // Walking takes long.
        self.gate.still_administers(admin).await?;
        Ok(verdicts)
    }

    /// Returns the permit of one stream that verifies.
    ///
    /// # Errors
    ///
    /// The administrator is not the operator's, or as many streams as may run do.
    pub fn permit_verification(&self, admin: &Administrator) -> Result<OwnedSemaphorePermit> {
        admin.must_be_operator()?;
        let permit = Arc::clone(&self.verifications).try_acquire_owned();
        permit.map_err(|_| Error::Throttled { retry_after: RETRY_AFTER })
    }

    /// Begins a verification, some records at a time: see [`Verification`].
    pub async fn verification(
        &self,
        request: VerifyRequest,
    ) -> Result<Verification<'_, dyn Store>> {
        Verification::begin(self.store.as_ref(), &self.chain, request).await
    }
}
