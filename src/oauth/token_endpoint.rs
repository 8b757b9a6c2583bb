//! The token endpoint (RFC 6749 section 3.2): who asks, and for which grant. Each grant has a file
//! of its own.

use std::sync::Arc;

use super::{
    AuthenticatedClient, ClientAuthenticator, Credentials, Issued, Minter, Revoker, Terms,
};
use crate::{
    audit::Trail,
    clock::ClockOffset,
    crypto::refresh_token::RefreshKey,
    error::{Error, Result},
    limit::Limits,
    model::{Action, Call},
    standing::TokenState,
    store::Store,
};

/// Issues tokens by the grants that are served here.
pub struct TokenIssuer {
    pub(crate) clients: Arc<ClientAuthenticator>,
    pub(crate) minter: Minter,
    pub(crate) revoker: Arc<Revoker>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) tokens: Arc<TokenState>,
    pub(crate) trail: Arc<Trail>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) refresh_key: Arc<RefreshKey>,
    pub(crate) clock_offset: Arc<ClockOffset>,
    pub(crate) terms: Arc<Terms>,
}

/// Token request of a client.
#[derive(Debug, Default)]
pub struct Request {
    /// Empty or `client_credentials`.
    pub grant_type: String,
    /// Empty: the client's default scopes.
    pub scopes: Vec<String>,
    /// Resource indicators (RFC 8707). Empty: the client's first audience.
    pub resources: Vec<String>,
    /// True: no refresh family is opened, whatever the client is registered for.
    pub without_refresh_token: bool,
}

/// Grants of a token request. The refresh token grant has an RPC of its own.
enum GrantType {
    /// RFC 6749 section 4.4.
    ClientCredentials,
}

impl GrantType {
    fn parse(text: &str) -> Result<Self> {
        match text {
            "" | "client_credentials" => Ok(Self::ClientCredentials),
            _ => Err(Error::UnsupportedGrantType),
        }
    }
}

impl TokenIssuer {
    /// Authenticates the client and issues tokens by the grant that it asks for.
    pub async fn token(
        &self,
        call: &Call,
        credentials: Credentials,
        request: Request,
    ) -> Result<Issued> {
        let client = self.clients.authenticate(call, credentials).await?;
        match GrantType::parse(&request.grant_type) {
            Ok(GrantType::ClientCredentials) => {
                self.client_credentials(call, &client, &request).await
            }
            Err(error) => Err(self.refuse_grant(call, &client, error).await),
        }
    }

    /// Records the refusal of a token request, and returns what is answered.
    pub(super) async fn refuse_grant(
        &self,
        call: &Call,
        client: &AuthenticatedClient,
        error: Error,
    ) -> Error {
        let refused = client.stamp(call).refused(Action::AccessRefused, "token", error.code());
        self.trail.refusal(refused, error).await
    }
}
