//! Revocation of everything that a client, a tenant, a subject, a family or a key was issued, by an
//! administrator.

use std::sync::Arc;

use super::{AdminAuthenticator, AdminScope, Administrator, Keys, clients::find};
use crate::{
    error::{Error, Result},
    model::{
        Action, Call, ClientId, EpochOf, FamilyId, Jti, Kid, Revocation, Revoked, Subject, TenantId,
    },
    oauth::Terms,
    standing::SLACK,
    store::{ProvenWrite, Store},
};

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

/// Revocation by administrators.
pub struct Revocations {
    pub(crate) gate: Arc<AdminAuthenticator>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) terms: Arc<Terms>,
}

impl Revocations {
    /// Ends everything that a target was issued, with one write. It is not checked that there is
    /// anything to end: what is unknown here may have been issued elsewhere.
    pub async fn revoke(
        &self,
        call: &Call,
        admin: &Administrator,
        target: Target,
        reason: String,
    ) -> Result<()> {
        let write = match target {
            Target::Client(id) => {
                let client = find(self.store.as_ref(), admin, &id).await?;
                let event = admin
                    .stamp_in(call, &client.tenant)
                    .done(Action::ClientRevoked, id.as_str())
                    .because(reason);
                ProvenWrite::RaiseEpoch { of: EpochOf::Client(id), event }
            }
            Target::Tenant(tenant) => {
                admin.must_access_tenant(&tenant)?;
                let event = admin
                    .stamp_in(call, &tenant)
                    .done(Action::TenantRevoked, tenant.as_str())
                    .because(reason);
                ProvenWrite::RaiseEpoch { of: EpochOf::Tenant(tenant), event }
            }
            Target::Subject(subject) => {
                admin.must_be_operator()?;
                // A client's own subject is its tenant's to see.
                let client = match subject.client() {
                    Some(id) => self.store.client(&id).await?,
                    None => None,
                };
                let tenant = client.map_or_else(|| admin.tenant().clone(), |client| client.tenant);
                let event = admin
                    .stamp_in(call, &tenant)
                    .done(Action::SubjectRevoked, subject.as_str())
                    .because(reason);
                ProvenWrite::RaiseEpoch { of: EpochOf::Subject(subject), event }
            }
            Target::Family(id) => {
                let family = self
                    .store
                    .family(id, call.now - SLACK)
                    .await?
                    .filter(|family| admin.can_access_tenant(&family.tenant));
                let family = family.ok_or(Error::NotFound("family"))?;
                let stamp = admin.stamp_in(call, &family.tenant);
                let event = stamp.done(Action::FamilyRevoked, "").in_family(id).because(reason);
                ProvenWrite::EndFamily {
                    id,
                    now: call.now,
                    until: call.now + self.terms.revocation_memory(),
                    event,
                }
            }
            Target::Token(jti) => {
                admin.must_be_operator()?;
                let event =
                    admin.stamp(call).done(Action::JtiRevoked, jti.to_string()).because(reason);
                let revocation = Revocation {
                    revoked: Revoked::Token(jti),
                    until: call.now + self.terms.revocation_memory(),
                };
                ProvenWrite::Revoke { revocation, event }
            }
            Target::Key(kid) => {
                // No scope leads to another: keys have one of their own.
                self.gate.must_hold(call, admin, AdminScope::Keys).await?;
                return self.keys.revoke(call, admin, &kid, reason).await.map(drop);
            }
        };
        self.gate.write(admin, write).await.map(drop)
    }
}
