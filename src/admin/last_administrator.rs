//! The last administrator of the operator's tenant: a change that would leave none that can
//! administer the service is refused, unless it says that this is meant.

use tokio::sync::Mutex;

use super::{AdminAuthenticator, Administrator};
use crate::{
    error::{Error, Result},
    model::{Action, Audience, Client, Stamp, TenantId, Timestamp},
    oauth::ADMIN,
    store::{ClientStore, Listed, ProvenWrite, Spent, Store},
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

/// Guard of the last administrator. One node makes such changes one after the other. Two nodes that
/// each strip the administrator that the other one counts on, in the same milliseconds:
///
/// | step of a change of A | outcome where the other node changes B meanwhile |
/// |--|--|
/// | 1. read A, find an administrator B that remains | B is still one |
/// | 2. write B again as it was found ([`Self::claim`]), if nodes share the store | B was changed: stale, begins anew at 1 |
/// | 3. write A as it was read in 1 | step 2 of the other node wrote A: stale, begins anew at 1 |
///
/// Each change writes both records on condition of what it read, so of two such changes one at most
/// goes through.
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
    /// deleted (`None`), and returns it; `None` if `before` goes on to.
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
    ) -> Result<Option<Client>> {
        if !self.is_lost(before, after, now) {
            return Ok(None);
        }
        let (operator, mut last) = (TenantId::operator(), None);
        loop {
            let page = store.clients(Some(&operator), last.as_ref(), PAGE).await?;
            let (read, end) = (page.len(), page.last().map(|listed| listed.id().clone()));
            let another = page.into_iter().find_map(|listed| match listed {
                Listed::Client(client) => {
                    (client.id != before.id && self.can_administer(&client, now)).then_some(*client)
                }
                Listed::NotAuthentic(_) => None,
            });
            if another.is_some() {
                return Ok(another);
            }
            last = end;
            if read < PAGE {
                break;
            }
        }
        Err(Error::precondition(
            "this is the last client that can administer the service: no other enabled client of \
             the tenant \"default\" has jeton:admin, the grant client_credentials and a secret \
             that does not expire; set allow_no_administrator if this is meant",
        ))
    }

    /// Writes a remaining administrator again as it was found, if nodes share the store; false if it
    /// was changed meanwhile.
    pub(super) async fn claim(
        &self,
        store: &dyn Store,
        gate: &AdminAuthenticator,
        admin: &Administrator,
        remaining: Client,
        stamp: &Stamp,
    ) -> Result<bool> {
        if store.time().await?.is_none() {
            return Ok(true);
        }
        let event = stamp
            .done(Action::ClientUpdated, remaining.id.as_str())
            .because("remaining administrator".to_owned());
        let client = Client { revision: remaining.revision + 1, ..remaining };
        let write = ProvenWrite::ReplaceClient { client: Box::new(client), events: vec![event] };
        Ok(gate.write(admin, write).await? == Spent::Done)
    }

    /// Returns true if the change takes away an administrator.
    pub(super) fn is_lost(&self, before: &Client, after: Option<&Client>, now: Timestamp) -> bool {
        self.can_administer(before, now)
            && !after.is_some_and(|after| self.can_administer(after, now))
    }
}
