//! Callers that present an access token of their own (RFC 6750).

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};

use super::ClientAuthenticator;
use crate::{
    crypto::verifying_keys::VerifiedClaims,
    error::{Error, Result},
    model::{Call, Client},
};

impl ClientAuthenticator {
    /// Returns the client of an access token for this service, and its claims. Counts against the
    /// client's budget. An invalid token always gets its error, because its owner must request a
    /// new one; it is too cheap to count as a failure.
    pub async fn bearer(
        &self,
        call: &Call,
        token: &SecretString,
    ) -> Result<(Arc<Client>, Arc<VerifiedClaims>)> {
        let Some(verified) = self.tokens.verify_active(token.expose_secret(), call.now)? else {
            return Err(Error::InvalidToken);
        };
        let claims = verified.claims();
        if !claims.aud.contains(&self.own_audience) {
            return Err(Error::InvalidToken);
        }
        let client = self
            .cache
            .client(self.store.as_ref(), &claims.client_id)
            .await?
            .filter(|client| !client.disabled);
        let Some(client) = client else { return Err(Error::InvalidToken) };
        self.limits.client(&client.id, &client.rate_plan, call.now)?;
        Ok((client, verified))
    }
}

/// Returns true if a token carries a scope that its client still has.
pub fn carries(client: &Client, verified: &VerifiedClaims, scope: &str) -> bool {
    verified.claims().scope.split(' ').any(|own| own == scope) && client.scopes.contains(scope)
}
