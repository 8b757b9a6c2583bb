//! Audiences and the tenants that own them.

use async_trait::async_trait;

use super::{Creation, Result, Write};
use crate::model::{Audience, AudienceRecord, Event, TenantId};

/// Record of an audience as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundAudience {
    /// Record that this service wrote.
    Owned(AudienceRecord),
    /// Record under this audience that cannot be decoded or that this service did not write: no
    /// client may list the audience.
    NotAuthentic(Audience),
}

impl FoundAudience {
    /// Returns the audience under which it is stored.
    pub fn audience(&self) -> &Audience {
        match self {
            Self::Owned(record) => &record.audience,
            Self::NotAuthentic(audience) => audience,
        }
    }

    /// Returns the record as it appears in a listing of one tenant: this service did not write a
    /// record of another tenant there.
    pub(super) fn listed_for(self, tenant: Option<&TenantId>) -> Self {
        match self {
            Self::Owned(record) if tenant.is_some_and(|tenant| record.tenant != *tenant) => {
                Self::NotAuthentic(record.audience)
            }
            found @ (Self::Owned(_) | Self::NotAuthentic(_)) => found,
        }
    }
}

/// Verbs on audiences and their tenants.
#[async_trait]
pub trait AudienceStore: Send + Sync {
    /// Returns the record of an audience; no later read returns an older one. `None`: the audience
    /// belongs to no tenant.
    async fn audience(&self, audience: &Audience) -> Result<Option<FoundAudience>>;
    /// Returns up to `limit` records in byte order of their audiences, those after `after`, of one
    /// tenant or of all.
    async fn audiences(
        &self,
        tenant: Option<&TenantId>,
        after: Option<&Audience>,
        limit: usize,
    ) -> Result<Vec<FoundAudience>>;
    /// Stores a first record, of revision 1, unless the audience has one. Of concurrent callers
    /// exactly one succeeds.
    async fn claim_audience(&self, record: &AudienceRecord, event: Event) -> Result<Creation>;
    /// Writes `record` if the stored one has the same tenant and time of creation, and the previous
    /// revision.
    async fn replace_audience(&self, record: &AudienceRecord, event: Event) -> Result<Write>;
    /// Removes the stored record if it has the tenant, the time of creation and the revision of
    /// `record`.
    async fn release_audience(&self, record: &AudienceRecord, event: Event) -> Result<Write>;
}
