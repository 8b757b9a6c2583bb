//! Revocation of a token by its client (RFC 7009).

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};

use super::{ADMIN, AuthenticatedClient, ClientAuthenticator, Credentials, Terms, proven::spend};
use crate::{
    audit::Trail,
    crypto::refresh_token::{Presented, RefreshKey},
    error::{Error, Result},
    limit::Limits,
    model::{
        Action, AuthMethod, Call, Client, ClientId, EpochOf, Revocation, Revoked, Scopes, TenantId,
        Timestamp,
    },
    standing::{SLACK, TokenState},
    store::{Proof, ProvenWrite, Store},
};

/// Ends tokens for their clients (RFC 7009).
pub struct Revoker {
    pub(crate) clients: Arc<ClientAuthenticator>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) tokens: Arc<TokenState>,
    pub(crate) trail: Arc<Trail>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) refresh_key: Arc<RefreshKey>,
    pub(crate) terms: Arc<Terms>,
}

impl Revoker {
    /// Revokes a token of the caller, or for an administrator one that it governs. A refresh token
    /// takes its family along, an access token goes alone. For a token that is unknown or expired the
    /// answer is the same, and so it is for another client's (RFC 7009 section 2.2).
    pub async fn revoke(
        &self,
        call: &Call,
        credentials: Credentials,
        token: &SecretString,
    ) -> Result<()> {
        let authenticated = self.clients.authenticate(call, credentials).await?;
        match Presented::parse(token.expose_secret()) {
            Some(presented) => self.revoke_refresh_token(call, &authenticated, &presented).await,
            None => self.revoke_access_token(call, &authenticated, token.expose_secret()).await,
        }
    }

    async fn revoke_refresh_token(
        &self,
        call: &Call,
        who: &AuthenticatedClient,
        presented: &Presented,
    ) -> Result<()> {
        // What has expired here may still be valid on a node whose clock is behind: ending too much
        // is not possible.
        let Some(family) = self.store.family(presented.family, call.now - SLACK).await? else {
            return Ok(());
        };
        if !self.refresh_key.verify(presented, &family.salt) {
            return Ok(());
        }
        let stamp = who.stamp_in(call, &family.tenant);
        if !may_end(who.client(), &family.tenant, &family.client) {
            return self
                .trail
                .counted(
                    None,
                    stamp.refused(Action::RevokeRefused, "", "other_client").in_family(family.id),
                )
                .await;
        }
        // A revoked family is not enough: its record may be missing, and this node may not have
        // received the change (V04).
        let is_past = |ended: Timestamp| {
            self.tokens.is_family_revoked(family.id)
                || ended + self.terms.revocation_memory() <= call.now
        };
        if family.ended_at.is_some_and(is_past) {
            return Ok(());
        }
        if self.tokens.is_outdated(&family.epochs, &family.tenant, &family.client, &family.subject)
        {
            return Ok(());
        }
        // One that was ended before is remembered already.
        let is_new = family.ended_at.is_none();
        if is_new
            && !self.limits.remembers_revocation(
                &family.client,
                call.now,
                self.terms.revocation_memory(),
            )
        {
            return self.end_client_instead(call, who, &family.tenant, family.client).await;
        }
        let event = stamp.done(Action::TokenRevoked, family.client.as_str()).in_family(family.id);
        let until = call.now + self.terms.revocation_memory();
        let ended = if who.client().id == family.client {
            self.store.end_family(family.id, call.now, until, event).await.map_err(Error::from)
        } else {
            let write = ProvenWrite::EndFamily { id: family.id, now: call.now, until, event };
            spend(self.store.as_ref(), as_administrator(who, call.now)?, write).await.map(drop)
        };
        // Not where the caller hangs up: then it may yet be written.
        ended.inspect_err(|_| {
            if is_new {
                self.limits.forgets_revocation(&family.client);
            }
        })
    }

    async fn revoke_access_token(
        &self,
        call: &Call,
        who: &AuthenticatedClient,
        token: &str,
    ) -> Result<()> {
        // A node that is behind may not know the key: then it must not say that there is nothing to
        // end (V05). What it does know it ends: the write is the store's, and ending too much is
        // not possible.
        let fresh = self.tokens.ensure_fresh();
        let Some(claims) = self.tokens.verifying_keys().verify_at_any_time(token) else {
            return Ok(fresh?);
        };
        // Which clock is right is not known here: only what has expired by all of them is left
        // alone.
        let until = Timestamp::from_seconds(claims.exp) + SLACK;
        if until <= call.now {
            return Ok(());
        }
        let stamp = who.stamp_in(call, &claims.tenant);
        if !may_end(who.client(), &claims.tenant, &claims.client_id) {
            return self
                .trail
                .counted(
                    None,
                    stamp.refused(Action::RevokeRefused, claims.jti.to_string(), "other_client"),
                )
                .await;
        }
        // Both are final, however old what is known here may be.
        let is_outdated =
            self.tokens.is_outdated(&claims.ep, &claims.tenant, &claims.client_id, &claims.sub);
        if is_outdated || self.tokens.is_token_revoked(claims.jti) {
            return Ok(());
        }
        if !self.limits.remembers_revocation(
            &claims.client_id,
            call.now,
            self.terms.revocation_memory(),
        ) {
            return self.end_client_instead(call, who, &claims.tenant, claims.client_id).await;
        }
        let mut event = stamp.done(Action::TokenRevoked, claims.jti.to_string());
        if who.client().id != claims.client_id {
            event = event.because(format!("of client:{}", claims.client_id));
        }
        let revocation = Revocation { revoked: Revoked::Token(claims.jti), until };
        let revoked = if who.client().id == claims.client_id {
            self.store.revoke(&revocation, event).await.map_err(Error::from)
        } else {
            spend(
                self.store.as_ref(),
                as_administrator(who, call.now)?,
                ProvenWrite::Revoke { revocation, event },
            )
            .await
            .map(drop)
        };
        revoked.inspect_err(|_| self.limits.forgets_revocation(&claims.client_id))
    }

    /// Ends everything of a client of which too much was ended one by one: that is remembered
    /// without taking room.
    pub(super) async fn end_client_instead(
        &self,
        call: &Call,
        who: &AuthenticatedClient,
        tenant: &TenantId,
        client: ClientId,
    ) -> Result<()> {
        tracing::warn!(
            %client,
            "limits.revocations_per_client exceeded, revoked all tokens of the client"
        );
        let event = who.stamp_in(call, tenant).done(Action::ClientRevoked, client.as_str());
        let event = event.because("limits.revocations_per_client".to_owned());
        let is_own = who.client().id == client;
        let of = EpochOf::Client(client);
        if is_own {
            return Ok(self.store.raise_epoch(&of, event).await.map(drop)?);
        }
        spend(
            self.store.as_ref(),
            as_administrator(who, call.now)?,
            ProvenWrite::RaiseEpoch { of, event },
        )
        .await
        .map(drop)
    }
}

/// Proof of a client that ends what is another's: it must still hold what lets it.
fn as_administrator(who: &AuthenticatedClient, now: Timestamp) -> Result<Proof> {
    let scopes = Scopes::parse(&[ADMIN]).map_err(Error::invalid("scopes"))?;
    match who.method() {
        AuthMethod::Secret(id) => Ok(Proof::by_secret(who.client(), id.clone(), now, scopes)),
        // Proven by its claims alone, which are not at hand.
        AuthMethod::AccessToken(_) => Err(Error::InvalidClient),
    }
}

/// A client may end its own tokens, an administrator every token it governs.
fn may_end(caller: &Client, tenant: &TenantId, owner: &ClientId) -> bool {
    caller.id == *owner
        || (caller.scopes.contains(ADMIN)
            && (caller.tenant == *tenant || caller.tenant.is_operator()))
}
