//! Records of the tenants that audiences belong to.

use async_trait::async_trait;

use super::{Creation, Result, Write};
use crate::model::{Audience, AudienceRecord, Event, TenantId};

/// The record of an audience as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundAudience {
    /// One that this service wrote.
    Owned(AudienceRecord),
    /// A record under this audience that cannot be read or that this service did not write: no
    /// client may list the audience.
    NotAuthentic(Audience),
}

impl FoundAudience {
    /// The audience that it lies under.
    pub fn audience(&self) -> &Audience {
        match self {
            Self::Owned(record) => &record.audience,
            Self::NotAuthentic(audience) => audience,
        }
    }

    /// The same in a listing of one tenant: a record of another tenant that is found there was not
    /// written so.
    pub(super) fn listed_for(self, tenant: Option<&TenantId>) -> Self {
        match self {
            Self::Owned(record) if tenant.is_some_and(|tenant| record.tenant != *tenant) => {
                Self::NotAuthentic(record.audience)
            }
            found @ (Self::Owned(_) | Self::NotAuthentic(_)) => found,
        }
    }
}

/// Audiences and their tenants.
#[async_trait]
pub trait AudienceStore: Send + Sync {
    /// The record of an audience, as no later read can show it older; `None`: the audience belongs
    /// to no tenant.
    async fn audience(&self, audience: &Audience) -> Result<Option<FoundAudience>>;
    /// Up to `limit` records in the order of the audiences' bytes, those after `after`, of one
    /// tenant or of all.
    async fn audiences(
        &self,
        tenant: Option<&TenantId>,
        after: Option<&Audience>,
        limit: usize,
    ) -> Result<Vec<FoundAudience>>;
    /// Keeps a first record, of revision 1, unless the audience has one. Of any number of callers
    /// at once one succeeds.
    async fn claim_audience(&self, record: &AudienceRecord, event: Event) -> Result<Creation>;
    /// Writes `record` if the stored one has the same tenant and time of creation, and the revision
    /// before.
    async fn replace_audience(&self, record: &AudienceRecord, event: Event) -> Result<Write>;
    /// Removes the stored record if it has the tenant, the time of creation and the revision of
    /// `record`.
    async fn release_audience(&self, record: &AudienceRecord, event: Event) -> Result<Write>;
}
