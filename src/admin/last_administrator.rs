//! The last administrator of the operator's tenant: a change that would leave none that can
//! administer the service is refused, unless it says that this is meant.

use tokio::sync::Mutex;

use crate::{
    error::{Error, Result},
    model::{Audience, Client, TenantId, Timestamp},
    oauth::ADMIN,
    store::{ClientStore, Listed},
};

/// Clients that are read at a time when another administrator is looked for.
const PAGE: usize = 200;

/// Conditions of a change of a client.
#[derive(Clone, Copy, Debug, Default)]
pub struct Conditions {
    /// The version that was read; `None` is any version.
    pub etag: Option<u64>,
    /// True if the change may leave the service without an administrator.
    pub allow_no_administrator: bool,
}

impl Conditions {
    /// Conditions of a change that no administrator is lost by.
    pub const fn of(etag: Option<u64>) -> Self {
        Self { etag, allow_no_administrator: false }
    }
}

/// Guard of the last administrator. One node makes such changes one after the other; two nodes that
/// each strip another administrator in the same milliseconds are not kept from it.
pub(crate) struct LastAdministrator {
    /// Audience of this service: a client whose tokens are for others only cannot administer.
    pub(crate) own_audience: Audience,
    /// Held from the check to the end of the write.
    pub(crate) changes: Mutex<()>,
}

impl LastAdministrator {
    /// Returns true if the client can administer the whole service, and goes on to: it belongs to
    /// the operator's tenant, may request `jeton:admin` for this service by client credentials, and
    /// has a secret without an end.
    pub(super) fn can_administer(&self, client: &Client, now: Timestamp) -> bool {
        client.tenant.is_operator()
            && !client.disabled
            && client.scopes.contains(ADMIN)
            && client.grants.client_credentials
            && (client.audiences.is_empty() || client.audiences.contains(&self.own_audience))
            && client.live_secrets(now).any(|secret| secret.expires_at.is_none())
    }

    /// Demands that a client can administer the service after `before` was changed to `after`, or
    /// deleted (`None`).
    ///
    /// # Errors
    ///
    /// [`Error::Precondition`] if none could, or that of the store.
    pub(super) async fn must_remain<S: ClientStore + ?Sized>(
        &self,
        store: &S,
        before: &Client,
        after: Option<&Client>,
        now: Timestamp,
    ) -> Result<()> {
        if !self.is_lost(before, after, now) {
            return Ok(());
        }
        let (operator, mut last) = (TenantId::operator(), None);
        loop {
            let page = store.clients(Some(&operator), last.as_ref(), PAGE).await?;
            let another = page.iter().any(|listed| match listed {
                Listed::Client(client) => {
                    client.id != before.id && self.can_administer(client, now)
                }
                Listed::NotAuthentic(_) => false,
            });
            if another {
                return Ok(());
            }
            last = page.last().map(|listed| listed.id().clone());
            if page.len() < PAGE {
                break;
            }
        }
        Err(Error::precondition(
            "this is the last client that can administer the service: no other enabled client of \
             the tenant \"default\" has jeton:admin, the grant client_credentials and a secret \
             that does not expire; set allow_no_administrator if this is meant",
        ))
    }

    /// Returns true if the change takes away an administrator.
    pub(super) fn is_lost(&self, before: &Client, after: Option<&Client>, now: Timestamp) -> bool {
        self.can_administer(before, now)
            && !after.is_some_and(|after| self.can_administer(after, now))
    }
}
