//! Revocation of everything that a client, a tenant, a subject, a family or a key was issued, by an
//! administrator.

use std::{sync::Arc, time::Duration};

use super::{AdminAuthenticator, AdminScope, Administrator, Keys, clients::find};
use crate::{
    error::{Error, Result},
    model::{
        Action, Call, ClientId, EpochOf, FamilyId, Jti, Kid, Principal, Revocation, Revoked,
        Subject, TenantId, event::Filter,
    },
    oauth::Terms,
    standing::SLACK,
    store::{ProvenWrite, Store},
};

/// Clients read at a time when those of a tenant are counted.
const PAGE: usize = 500;
/// Most clients of a tenant that are counted.
const MAX_COUNTED: usize = 10_000;
/// Time for which the audit trail is searched for the issue of a token, by each action.
const SEARCH: Duration = Duration::from_millis(500);

/// Target of a revocation by an administrator.
#[derive(Clone, Debug)]
pub enum Target {
    /// Everything issued to a client so far.
    Client(ClientId),
    /// Everything issued in a tenant so far.
    Tenant(TenantId),
    /// Everything issued for a subject so far.
    Subject(Subject),
    /// A family and its access tokens.
    Family(FamilyId),
    /// Everything a key signed.
    Key(Kid),
    /// One access token.
    Token(Jti),
}

/// Reach of a revocation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Number of clients whose tokens it revokes, if that is known.
    pub clients: Option<i64>,
    /// The client, if it is one.
    pub client: Option<ClientId>,
    /// Of one token: true if the audit trail contains its issue; `None` if that is not known.
    pub is_token_known: Option<bool>,
}

impl Reach {
    const fn of_client(client: ClientId) -> Self {
        Self { clients: Some(1), client: Some(client), is_token_known: None }
    }
}

/// Revocation by administrators.
pub struct Revocations {
    pub(crate) gate: Arc<AdminAuthenticator>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) terms: Arc<Terms>,
}

impl Revocations {
    /// Revokes everything that a target was issued, with one write, and returns what that reaches.
    /// Only a jti may be unknown: the success of a revocation that reaches nothing would be taken
    /// for the end of what was meant (B07).
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if there is no such client, tenant, subject, family or key.
    pub async fn revoke(
        &self,
        call: &Call,
        admin: &Administrator,
        target: Target,
        reason: String,
    ) -> Result<Reach> {
        match target {
            Target::Client(id) => {
                let client = find(self.store.as_ref(), admin, &id).await?;
                let event = admin
                    .stamp_in(call, &client.tenant)
                    .done(Action::ClientRevoked, id.as_str())
                    .because(reason);
                let of = EpochOf::Client(id.clone());
                self.gate.write(admin, ProvenWrite::RaiseEpoch { of, event }).await?;
                Ok(Reach::of_client(id))
            }
            Target::Tenant(tenant) => {
                admin.must_access_tenant(&tenant)?;
                self.must_exist(&tenant).await?;
                let event = admin
                    .stamp_in(call, &tenant)
                    .done(Action::TenantRevoked, tenant.as_str())
                    .because(reason);
                let of = EpochOf::Tenant(tenant.clone());
                self.gate.write(admin, ProvenWrite::RaiseEpoch { of, event }).await?;
                let clients = self.count_clients(&tenant).await;
                Ok(Reach { clients, ..Reach::default() })
            }
            Target::Subject(subject) => {
                admin.must_be_operator()?;
                // Every subject is a client's own, which is its tenant's to see.
                let id = subject.client().ok_or(Error::NotFound("subject"))?;
                let client = self.store.client(&id).await?.ok_or(Error::NotFound("subject"))?;
                let event = admin
                    .stamp_in(call, &client.tenant)
                    .done(Action::SubjectRevoked, subject.as_str())
                    .because(reason);
                let of = EpochOf::Subject(subject);
                self.gate.write(admin, ProvenWrite::RaiseEpoch { of, event }).await?;
                Ok(Reach::of_client(id))
            }
            Target::Family(id) => {
                let family = self
                    .store
                    .family(id, call.now - SLACK)
                    .await?
                    .filter(|family| admin.can_access_tenant(&family.tenant));
                let family = family.ok_or(Error::NotFound("family"))?;
                let stamp = admin.stamp_in(call, &family.tenant);
                let event = stamp.done(Action::FamilyRevoked, family.client.as_str());
                let event = event.in_family(id).because(reason);
                let until = call.now + self.terms.revocation_memory();
                let write = ProvenWrite::EndFamily { id, now: call.now, until, event };
                self.gate.write(admin, write).await?;
                Ok(Reach::of_client(family.client))
            }
            Target::Token(jti) => {
                admin.must_be_operator()?;
                let event =
                    admin.stamp(call).done(Action::JtiRevoked, jti.to_string()).because(reason);
                let revocation = Revocation {
                    revoked: Revoked::Token(jti),
                    until: call.now + self.terms.revocation_memory(),
                };
                self.gate.write(admin, ProvenWrite::Revoke { revocation, event }).await?;
                Ok(self.reach_of(jti).await)
            }
            Target::Key(kid) => {
                // No scope leads to another: keys have one of their own.
                self.gate.must_hold(call, admin, AdminScope::Keys).await?;
                self.keys.revoke(call, admin, &kid, reason).await?;
                Ok(Reach::default())
            }
        }
    }

    /// Demands that a tenant exists: that there is a client or an audience of it.
    async fn must_exist(&self, tenant: &TenantId) -> Result<()> {
        let of_tenant = Some(tenant);
        if self.store.clients(of_tenant, None, 1).await?.is_empty()
            && self.store.audiences(of_tenant, None, 1).await?.is_empty()
        {
            return Err(Error::NotFound("tenant"));
        }
        Ok(())
    }

    /// Counts the clients of a tenant; `None` if there are too many, or if they cannot be read: the
    /// revocation is done all the same.
    async fn count_clients(&self, tenant: &TenantId) -> Option<i64> {
        let (mut count, mut last) = (0_usize, None);
        while count <= MAX_COUNTED {
            let page = self.store.clients(Some(tenant), last.as_ref(), PAGE).await.ok()?;
            count = count.saturating_add(page.len());
            last = page.last().map(|listed| listed.id().clone());
            if page.len() < PAGE {
                return i64::try_from(count).ok();
            }
        }
        None
    }

    /// Returns the client that a token was issued to, by the audit trail. What the trail cannot
    /// answer now is not known: the revocation is done all the same.
    async fn reach_of(&self, jti: Jti) -> Reach {
        let mut is_searched = true;
        for action in [Action::TokenIssued, Action::TokenRefreshed] {
            let filter = Filter {
                action: Some(action.as_str().to_owned()),
                target: Some(jti.to_string()),
                ..Filter::default()
            };
            let Ok(mut page) = self.store.page(&filter, None, 1, SEARCH).await else {
                is_searched = false;
                continue;
            };
            let record = page.records.pop();
            if let Some(Principal::Client(id)) = record.and_then(|record| record.event.actor) {
                return Reach { is_token_known: Some(true), ..Reach::of_client(id) };
            }
            is_searched &= page.next.is_none();
        }
        Reach { is_token_known: is_searched.then_some(false), ..Reach::default() }
    }
}
