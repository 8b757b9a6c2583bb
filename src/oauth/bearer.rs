//! Callers that present an access token of their own (RFC 6750), and what administrators may touch.

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};

use super::{Authority, Credentials};
use crate::{
    crypto::keyring::VerifiedClaims,
    error::{Error, Result},
    model::{Action, Call, Client, ClientId, Scope, Scopes, Stamp, TenantId},
    store::{Proof, ProvenWrite, Spent},
};

/// Lets a caller administer everything it governs.
pub const ADMIN: &str = "jeton:admin";

/// A part of administration that can be given by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Office {
    /// `jeton:admin:clients`
    Clients,
    /// `jeton:admin:keys`
    Keys,
    /// `jeton:admin:revocations`
    Revocations,
    /// `jeton:admin:audit`
    Audit,
}

impl Office {
    /// The scope that gives it.
    pub const fn scope(self) -> &'static str {
        match self {
            Self::Clients => "jeton:admin:clients",
            Self::Keys => "jeton:admin:keys",
            Self::Revocations => "jeton:admin:revocations",
            Self::Audit => "jeton:admin:audit",
        }
    }
}

/// A caller that may administer. Made here and nowhere else. It reads and lists by this; what it
/// changes needs a [`Proof`] each time (`Authority::prove`), taken when everything slow is done.
#[derive(Clone, Debug)]
pub struct Administrator {
    client: Arc<Client>,
    verified: Arc<VerifiedClaims>,
    office: Office,
}

impl Administrator {
    /// Whether what belongs to `tenant` is this administrator's to see and change.
    pub fn governs(&self, tenant: &TenantId) -> bool {
        self.client.tenant.is_operator() || self.client.tenant == *tenant
    }

    /// The tenant a listing is confined to; the error hides what is not the caller's to see.
    pub fn confined_to(&self, asked: Option<TenantId>) -> Result<Option<TenantId>> {
        match asked {
            Some(tenant) => self.must_govern(&tenant).map(|()| Some(tenant)),
            None if self.client.tenant.is_operator() => Ok(None),
            None => Ok(Some(self.client.tenant.clone())),
        }
    }

    /// What belongs to other tenants does not exist for an administrator of one.
    pub fn must_govern(&self, tenant: &TenantId) -> Result<()> {
        if self.governs(tenant) { Ok(()) } else { Err(Error::NotFound("tenant")) }
    }

    /// What concerns every tenant is the operator's.
    pub fn must_govern_all(&self) -> Result<()> {
        if self.client.tenant.is_operator() {
            Ok(())
        } else {
            Err(Error::InsufficientScope("jeton:admin of the tenant \"default\""))
        }
    }

    /// Whether the administrator may hand out, or touch a client that has, these scopes: what
    /// grants something in this service is given only by who holds it, so that no office leads to
    /// another.
    pub fn may_give(&self, scopes: &Scopes) -> Result<()> {
        let holds = |scope: &str| carries(&self.client, &self.verified, scope);
        if holds(ADMIN)
            || scopes.iter().filter(|scope| scope.is_reserved()).all(|scope| holds(scope.as_str()))
        {
            return Ok(());
        }
        Err(Error::InsufficientScope(ADMIN))
    }

    /// The administrator's own id.
    pub(super) fn id(&self) -> &ClientId {
        &self.client.id
    }

    /// The administrator's own tenant.
    pub fn tenant(&self) -> &TenantId {
        &self.client.tenant
    }

    /// A stamp for the audit trail.
    pub fn stamp(&self, call: &Call) -> Stamp {
        self.stamp_in(call, &self.client.tenant)
    }

    /// A stamp for what concerns another tenant.
    pub fn stamp_in(&self, call: &Call, tenant: &TenantId) -> Stamp {
        call.stamp_of(tenant, &self.client.id, None)
    }
}

impl Authority {
    /// The client behind an access token for this service, and its claims. Draws on the client's
    /// budget. A token that is not valid is always told so, for its owner must ask for a new one:
    /// it costs too little to draw on a budget of failures.
    pub(super) async fn bearer(
        &self,
        call: &Call,
        token: &SecretString,
    ) -> Result<(Arc<Client>, Arc<VerifiedClaims>)> {
        let Some(verified) = self.standing.judge(token.expose_secret(), call.now)? else {
            return Err(Error::InvalidToken);
        };
        let claims = verified.claims();
        if !claims.aud.contains(&self.terms.own_audience) {
            return Err(Error::InvalidToken);
        }
        let client = self
            .standing
            .client(self.store(), &claims.client_id)
            .await?
            .filter(|client| !client.disabled);
        let Some(client) = client else { return Err(Error::InvalidToken) };
        self.limits.client(&client.id, &client.rate_plan, call.now)?;
        Ok((client, verified))
    }

    /// Admits an administrator to an office: by the scope of its token, and only while its client
    /// still has that scope.
    pub async fn administrator(
        &self,
        call: &Call,
        credentials: Credentials,
        office: Office,
    ) -> Result<Administrator> {
        let Credentials::Bearer(token) = credentials else { return Err(Error::InvalidToken) };
        let (client, verified) = self.bearer(call, &token).await?;
        let admin = Administrator { client, verified, office };
        self.must_hold(call, &admin, office).await.map(|()| admin)
    }

    /// Demands that an administrator holds an office, be it a second one.
    pub(super) async fn must_hold(
        &self,
        call: &Call,
        admin: &Administrator,
        office: Office,
    ) -> Result<()> {
        let Administrator { client, verified, .. } = admin;
        if carries(client, verified, ADMIN) || carries(client, verified, office.scope()) {
            return Ok(());
        }
        let refused =
            admin.stamp(call).refused(Action::AccessRefused, office.scope(), "insufficient_scope");
        Err(self.trail.refusal(refused, Error::InsufficientScope(office.scope())).await)
    }

    /// Demands that an administrator still is one now: for calls that go on for longer than a
    /// moment.
    pub async fn still_administers(&self, admin: &Administrator) -> Result<()> {
        let Administrator { client, verified, office } = admin;
        if !self.standing.stands(verified, self.clock.now())? {
            return Err(Error::InvalidToken);
        }
        let client =
            self.standing.client(self.store(), &client.id).await?.filter(|client| !client.disabled);
        let still = |client: &Client| {
            carries(client, verified, ADMIN) || carries(client, verified, office.scope())
        };
        client.filter(|client| still(client)).map(drop).ok_or(Error::InvalidToken)
    }

    /// Proof for one change by an administrator: that it still is one now, and what the store
    /// compares once more in the write. It rests on every scope of this service that the call was
    /// judged by.
    pub(super) async fn prove(&self, admin: &Administrator) -> Result<Proof> {
        self.still_administers(admin).await?;
        let Administrator { client, verified, .. } = admin;
        let held = client
            .scopes
            .iter()
            .filter(|scope| scope.is_reserved() && carries(client, verified, scope.as_str()));
        let held = Scopes::try_from(held.cloned().collect::<Vec<Scope>>())
            .map_err(Error::invalid("scopes"))?;
        Ok(Proof::by_token(verified.claims(), verified.kid(), held))
    }

    /// Makes a change by its proof. A proof that fell in the meantime is answered as the credential
    /// that it rested on would be.
    pub(super) async fn spend(&self, proof: Proof, write: ProvenWrite) -> Result<Spent> {
        let refusal = if proof.is_by_token() { Error::InvalidToken } else { Error::InvalidClient };
        match self.store.spend(proof, write).await? {
            Spent::Unproven => Err(refusal),
            spent @ (Spent::Done | Spent::Taken | Spent::Stale) => Ok(spent),
        }
    }
}

/// Whether a token carries a scope that its client still has.
pub(super) fn carries(client: &Client, verified: &VerifiedClaims, scope: &str) -> bool {
    verified.claims().scope.split(' ').any(|own| own == scope) && client.scopes.contains(scope)
}
