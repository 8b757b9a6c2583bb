//! The only minter of tokens.

use std::{sync::Arc, time::Duration};

use secrecy::SecretString;

use super::Terms;
use crate::{
    crypto::signing_keys::SignError,
    error::{Error, Result},
    model::{
        Audience, Claims, Client, Epochs, FamilyId, Granted, Jti, Scopes, Subject, Timestamp,
        VERIFIER_BEHIND,
    },
    standing::{NodeKeys, TokenState},
};

/// Issued tokens (RFC 6749 section 5.1).
pub struct Issued {
    /// A JWT by RFC 9068.
    pub access_token: SecretString,
    /// Lifetime of the access token.
    pub expires_in: Duration,
    /// Present if the client is registered for the grant.
    pub refresh_token: Option<SecretString>,
    /// Granted scopes.
    pub scopes: Scopes,
}

/// Input of a new access token.
pub(super) struct Mint<'a> {
    pub(super) now: Timestamp,
    pub(super) client: &'a Client,
    pub(super) subject: Subject,
    pub(super) granted: &'a Granted,
    pub(super) audience: Vec<Audience>,
    pub(super) epochs: Epochs,
    pub(super) jti: Jti,
    /// The family it belongs to and the end of that.
    pub(super) family: Option<(FamilyId, Timestamp)>,
}

/// Mints access tokens (RFC 9068).
pub struct Minter {
    pub(crate) tokens: Arc<TokenState>,
    pub(crate) node_keys: Arc<NodeKeys>,
    pub(crate) terms: Arc<Terms>,
}

impl Minter {
    /// Returns the lifetime of an access token of this client, at most until the end of its family.
    pub(super) fn access_lifetime(
        &self,
        client: &Client,
        now: Timestamp,
        family_ends: Option<Timestamp>,
    ) -> Duration {
        let terms = &self.terms.token;
        let own = client
            .access_ttl
            .unwrap_or_else(|| terms.access_lifetime())
            .min(terms.access_lifetime_max());
        family_ends.map_or(own, |end| own.min(end.since(now)))
    }

    /// Signs an access token and returns it with its lifetime in whole seconds. A stale node signs
    /// nothing: its key may be revoked, or its epochs raised, and then the token would be invalid
    /// from the start.
    pub(super) fn mint(&self, mint: Mint<'_>) -> Result<(SecretString, Duration)> {
        self.tokens.ensure_fresh()?;
        let lifetime = self.access_lifetime(mint.client, mint.now, mint.family.map(|(_, end)| end));
        let early = i64::try_from(VERIFIER_BEHIND.as_secs()).unwrap_or(0);
        let (now, iat) = (mint.now.seconds(), mint.now.seconds().saturating_sub(early));
        let seconds = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX).max(1);
        let claims = Claims {
            iss: self.terms.issuer.as_ref().to_owned(),
            sub: mint.subject,
            aud: mint.audience,
            client_id: mint.client.id.clone(),
            scope: mint.granted.scopes().to_string(),
            iat,
            nbf: iat,
            exp: now.saturating_add(seconds),
            jti: mint.jti,
            tenant: mint.client.tenant.clone(),
            roles: mint.client.roles.clone(),
            fam: mint.family.map(|(id, _)| id),
            ep: mint.epochs,
        };
        let token = self.node_keys.signing_keys().sign(&claims).map_err(|error| match error {
            SignError::TooLong => Error::InvalidScope(
                "the scopes and roles do not fit into a token; request fewer".into(),
            ),
            SignError::Claims(_) | SignError::Signature => Error::Internal(Box::new(error)),
        })?;
        Ok((token.into(), Duration::from_secs(seconds.unsigned_abs())))
    }
}
