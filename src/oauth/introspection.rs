//! Introspection (RFC 7662): permitted callers, and the claims that they get.

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};

use super::{ClientAuthenticator, Credentials, client_auth::carries};
use crate::{
    audit::Trail,
    crypto::{
        refresh_token::{Presented, RefreshKey},
        verifying_keys::VerifiedClaims,
    },
    error::{Error, Result},
    limit::Limits,
    metrics::METRICS,
    model::{Action, Audience, AuthMethod, Call, Claims, Client, Family, TenantId, Timestamp},
    standing::{Inactive, TokenState},
    store::Store,
};

/// Lets a caller judge tokens for the audiences it serves.
pub const INTROSPECT: &str = "jeton:introspect";
/// Lets a caller judge every token of its tenant; in the operator's tenant, every token.
pub const INTROSPECT_ANY: &str = "jeton:introspect:any";
/// The most tokens in one batch.
pub const MAX_BATCH: usize = 1_000;

/// A caller that may introspect, and what it may see.
pub struct IntrospectionCaller {
    client: Arc<Client>,
    any: bool,
}

/// An active token, as one caller may see it. Only this type builds positive answers (I03).
pub struct VisibleToken<'a> {
    verified: &'a VerifiedClaims,
    caller: &'a IntrospectionCaller,
}

impl VisibleToken<'_> {
    /// The claims.
    pub const fn claims(&self) -> &crate::model::Claims {
        self.verified.claims()
    }

    /// The audiences the caller answers for; all of them for one who may see any token.
    pub fn audience(&self) -> impl Iterator<Item = &Audience> {
        self.claims()
            .aud
            .iter()
            .filter(|audience| self.caller.any || self.caller.client.serves.contains(audience))
    }
}

impl IntrospectionCaller {
    /// Returns true if the caller may see a token: it is for an audience that the caller serves, in
    /// its tenant.
    fn sees(&self, tenant: &TenantId, audience: &[Audience]) -> bool {
        if self.any {
            return self.client.tenant == *tenant || self.client.tenant.is_operator();
        }
        self.client.tenant == *tenant
            && audience.iter().any(|audience| self.client.serves.contains(audience))
    }
}

/// Counts a token that is not active for its caller, and logs the reason for the operator. The
/// caller does not get it (I04).
fn record_inactive(
    call: &Call,
    caller: &IntrospectionCaller,
    reason: &'static str,
    claims: Option<&Claims>,
) {
    METRICS.introspections_inactive.count(reason);
    tracing::debug!(
        reason,
        request_id = %call.request_id,
        caller = %caller.client.id,
        caller_tenant = %caller.client.tenant,
        serves = ?caller.client.serves,
        jti = claims.map(|claims| tracing::field::display(claims.jti)),
        client = claims.map(|claims| tracing::field::display(&claims.client_id)),
        tenant = claims.map(|claims| tracing::field::display(&claims.tenant)),
        aud = claims.map(|claims| tracing::field::debug(&claims.aud)),
        exp = claims.map(|claims| tracing::field::display(Timestamp::from_seconds(claims.exp))),
        "token is not active for this caller"
    );
}

/// Judges tokens for those who may ask (RFC 7662).
pub struct Introspector {
    pub(crate) clients: Arc<ClientAuthenticator>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) tokens: Arc<TokenState>,
    pub(crate) trail: Arc<Trail>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) refresh_key: Arc<RefreshKey>,
}

impl Introspector {
    /// Authenticates the caller: a client by its secret, or by an access token for this service.
    pub async fn admit(
        &self,
        call: &Call,
        credentials: Credentials,
    ) -> Result<IntrospectionCaller> {
        let (client, method, may, any) = match credentials {
            Credentials::Bearer(token) => {
                let (client, claims) = self.clients.bearer(call, &token).await?;
                let (may, any) = (
                    carries(&client, &claims, INTROSPECT),
                    carries(&client, &claims, INTROSPECT_ANY),
                );
                (client, AuthMethod::AccessToken(claims.claims().jti), may, any)
            }
            Credentials::None | Credentials::Secret { .. } => {
                let authenticated = self.clients.authenticate(call, credentials).await?;
                let method = authenticated.method().clone();
                let client = authenticated.into_client();
                let (may, any) =
                    (client.scopes.contains(INTROSPECT), client.scopes.contains(INTROSPECT_ANY));
                (client, method, may, any)
            }
        };
        if !may && !any {
            let refused = call.stamp_of(&client.tenant, &client.id, Some(method)).refused(
                Action::AccessRefused,
                "introspect",
                "insufficient_scope",
            );
            return Err(self.trail.refusal(refused, Error::InsufficientScope(INTROSPECT)).await);
        }
        Ok(IntrospectionCaller { client, any })
    }

    /// Draws on the caller's budget for a batch: each token is the work of a call, the first was
    /// paid for by authenticating.
    pub fn charge_batch(
        &self,
        call: &Call,
        caller: &IntrospectionCaller,
        tokens: usize,
    ) -> Result<()> {
        let further = u32::try_from(tokens.saturating_sub(1)).unwrap_or(u32::MAX);
        if further == 0 {
            return Ok(());
        }
        self.limits.client_many(&caller.client.id, &caller.client.rate_plan, further, call.now)
    }

    /// Verifies an access token from memory and passes it to `show`; `None` if it is inactive or
    /// the caller may not see it, without distinction (I04).
    ///
    /// # Errors
    /// [`Error::Behind`], whatever the token.
    pub fn introspect<T>(
        &self,
        call: &Call,
        caller: &IntrospectionCaller,
        token: &str,
        show: impl FnOnce(&VisibleToken<'_>) -> T,
    ) -> Result<Option<T>> {
        let verified = match self.tokens.verify_or_explain(token, call.now)? {
            Ok(verified) => verified,
            Err(inactive) => {
                let (reason, claims) = match &inactive {
                    Inactive::Invalid => ("invalid", None),
                    Inactive::Expired(claims) => ("expired", Some(&**claims)),
                    Inactive::Revoked(claims) => ("revoked", Some(&**claims)),
                };
                record_inactive(call, caller, reason, claims);
                return Ok(None);
            }
        };
        let claims = verified.claims();
        if !caller.sees(&claims.tenant, &claims.aud) {
            record_inactive(call, caller, "not_served", Some(claims));
            return Ok(None);
        }
        Ok(Some(show(&VisibleToken { verified: &verified, caller })))
    }

    /// Verifies a refresh token for a caller that may see any token. Its own client gets no answer:
    /// a thief could learn whether a token was used without using it. Reads the store; only with
    /// the hint, so that a resource server can never accept a refresh token as an access token
    /// (J20).
    pub async fn introspect_refresh(
        &self,
        call: &Call,
        caller: &IntrospectionCaller,
        token: &SecretString,
    ) -> Result<Option<Family>> {
        // Before anything about the token: while there is no judgement, every text gets the same
        // answer (I04).
        self.tokens.ensure_fresh()?;
        if !caller.any {
            return Ok(None);
        }
        let Some(presented) = Presented::parse(token.expose_secret()) else { return Ok(None) };
        let Some(family) = self.store.family(presented.family, call.now).await? else {
            return Ok(None);
        };
        let current = self.tokens.epochs(&family.tenant, &family.client, &family.subject)?;
        let stands = self.refresh_key.verify(&presented, &family.salt)
            && family.is_valid(call.now)
            && !self.tokens.is_family_revoked(family.id)
            && family.epochs.covers(current)
            && family.generation == presented.generation;
        Ok((stands && caller.sees(&family.tenant, &[])).then_some(family))
    }
}
