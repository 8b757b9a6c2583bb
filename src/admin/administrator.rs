//! Callers that present an access token of their own (RFC 6750), and what administrators may touch.

use std::sync::Arc;

use crate::{
    audit::Trail,
    clock::Clock,
    crypto::verifying_keys::VerifiedClaims,
    error::{Error, Result},
    model::{Action, AuthMethod, Call, Client, ClientId, Scope, Scopes, Stamp, TenantId},
    oauth::{ADMIN, ClientAuthenticator, Credentials, client_auth::carries, proven::spend},
    standing::{ClientCache, TokenState},
    store::{Proof, ProvenWrite, Spent, Store},
};

/// A part of administration that can be given by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminScope {
    /// `jeton:admin:clients`
    Clients,
    /// `jeton:admin:keys`
    Keys,
    /// `jeton:admin:revocations`
    Revocations,
    /// `jeton:admin:audit`
    Audit,
}

impl AdminScope {
    /// The scope that gives it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Clients => "jeton:admin:clients",
            Self::Keys => "jeton:admin:keys",
            Self::Revocations => "jeton:admin:revocations",
            Self::Audit => "jeton:admin:audit",
        }
    }
}

/// A caller that may administer. Made here and nowhere else. It reads and lists by this; what it
/// changes needs a [`Proof`] each time (`AdminAuthenticator::prove`), taken when everything slow is done.
#[derive(Clone, Debug)]
pub struct Administrator {
    client: Arc<Client>,
    verified: Arc<VerifiedClaims>,
    scope: AdminScope,
}

impl Administrator {
    /// Returns true if this administrator may see and change records of `tenant`.
    pub fn can_access_tenant(&self, tenant: &TenantId) -> bool {
        self.client.tenant.is_operator() || self.client.tenant == *tenant
    }

    /// The tenant a listing is confined to; the error hides what is not the caller's to see.
    pub fn tenant_filter(&self, asked: Option<TenantId>) -> Result<Option<TenantId>> {
        match asked {
            Some(tenant) => self.must_access_tenant(&tenant).map(|()| Some(tenant)),
            None if self.client.tenant.is_operator() => Ok(None),
            None => Ok(Some(self.client.tenant.clone())),
        }
    }

    /// Demands access to a tenant. To an administrator of one tenant the others do not exist.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub fn must_access_tenant(&self, tenant: &TenantId) -> Result<()> {
        if self.can_access_tenant(tenant) { Ok(()) } else { Err(Error::NotFound("tenant")) }
    }

    /// Demands an administrator of the operator's tenant, for changes that concern every tenant.
    ///
    /// # Errors
    ///
    /// [`Error::InsufficientScope`].
    pub fn must_be_operator(&self) -> Result<()> {
        if self.client.tenant.is_operator() {
            Ok(())
        } else {
            Err(Error::InsufficientScope("jeton:admin of the tenant \"default\""))
        }
    }

    /// Demands that the administrator may grant these scopes, or change a client that has them. A
    /// reserved scope is granted only by a holder of it, so that no scope leads to another.
    ///
    /// # Errors
    ///
    /// [`Error::InsufficientScope`].
    pub fn may_grant(&self, scopes: &Scopes) -> Result<()> {
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

    /// A stamp for what concerns `tenant`. Another tenant learns the administrator's id and nothing
    /// else of it.
    pub fn stamp_in(&self, call: &Call, tenant: &TenantId) -> Stamp {
        let own = self.client.tenant == *tenant;
        let method = AuthMethod::AccessToken(self.verified.claims().jti);
        call.stamp_of(tenant, &self.client.id, own.then_some(method))
    }
}

/// Admits administrators by their access tokens, and lets them change what they may.
pub struct AdminAuthenticator {
    pub(crate) clients: Arc<ClientAuthenticator>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) tokens: Arc<TokenState>,
    pub(crate) cache: Arc<ClientCache>,
    pub(crate) trail: Arc<Trail>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl AdminAuthenticator {
    /// Admits an administrator to an scope: by the scope of its token, and only while its client
    /// still has that scope.
    pub async fn admit(
        &self,
        call: &Call,
        credentials: Credentials,
        scope: AdminScope,
    ) -> Result<Administrator> {
        let Credentials::Bearer(token) = credentials else { return Err(Error::InvalidToken) };
        let (client, verified) = self.clients.bearer(call, &token).await?;
        let admin = Administrator { client, verified, scope };
        self.must_hold(call, &admin, scope).await.map(|()| admin)
    }

    /// Demands that an administrator holds a scope, be it a second one.
    pub(super) async fn must_hold(
        &self,
        call: &Call,
        admin: &Administrator,
        scope: AdminScope,
    ) -> Result<()> {
        let Administrator { client, verified, .. } = admin;
        if carries(client, verified, ADMIN) || carries(client, verified, scope.name()) {
            return Ok(());
        }
        let refused =
            admin.stamp(call).refused(Action::AccessRefused, scope.name(), "insufficient_scope");
        Err(self.trail.refusal(refused, Error::InsufficientScope(scope.name())).await)
    }

    /// Demands that an administrator still is one now: for calls that go on for longer than a
    /// moment.
    pub async fn still_administers(&self, admin: &Administrator) -> Result<()> {
        let Administrator { client, verified, scope } = admin;
        if !self.tokens.is_active(verified, self.clock.now())? {
            return Err(Error::InvalidToken);
        }
        let client = self
            .cache
            .client(self.store.as_ref(), &client.id)
            .await?
            .filter(|client| !client.disabled);
        let still = |client: &Client| {
            carries(client, verified, ADMIN) || carries(client, verified, scope.name())
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

    /// Takes a proof and makes the change by it at once, so that nothing slow lies in between.
    pub(super) async fn write(&self, admin: &Administrator, write: ProvenWrite) -> Result<Spent> {
        self.spend(self.prove(admin).await?, write).await
    }

    /// Makes a change by its proof. A proof that fell in the meantime is answered as the credential
    /// that it rested on would be.
    pub(super) async fn spend(&self, proof: Proof, write: ProvenWrite) -> Result<Spent> {
        spend(self.store.as_ref(), proof, write).await
    }
}
