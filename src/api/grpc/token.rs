//! `jeton.token.v1.TokenService`.

use tonic::{Request, Response, Status};

use super::{GrpcServices, into_response};
use crate::{
    api::credentials::presented,
    error::Error,
    model::{Call, Family},
    oauth::{Issued, introspection, refresh, token_endpoint},
    proto::token::{
        BatchIntrospectRequest, BatchIntrospectResponse, IntrospectRequest, IntrospectResponse,
        RefreshRequest, RefreshResponse, RevokeRequest, RevokeResponse, TokenRequest,
        TokenResponse, token_service_server::TokenService,
    },
};
use secrecy::{ExposeSecret, SecretString};

/// Tokens of a batch that are verified before other calls get their turn: a token that is not
/// cached takes a core for 50 us.
const BETWEEN_YIELDS: usize = 32;
/// Maximum entries of a list in a request: a longer list is refused before it is read.
const MAX_LIST: usize = 100;

#[tonic::async_trait]
impl TokenService for GrpcServices {
    async fn token(
        &self,
        request: Request<TokenRequest>,
    ) -> Result<Response<TokenResponse>, Status> {
        let call = Self::call_context(&request)?;
        let (metadata, _, message) = request.into_parts();
        let TokenRequest {
            grant_type,
            client_id,
            client_secret,
            scopes,
            resources,
            without_refresh_token,
        } = message;
        into_response(
            async {
                let credentials = presented(metadata.as_ref(), client_id, client_secret)?;
                bounded("scopes", &scopes)?;
                bounded("resources", &resources)?;
                let asked = token_endpoint::Request {
                    grant_type,
                    scopes,
                    resources,
                    without_refresh_token,
                };
                self.services.tokens.token(&call, credentials, asked).await.map(TokenResponse::from)
            }
            .await,
        )
    }

    async fn refresh(
        &self,
        request: Request<RefreshRequest>,
    ) -> Result<Response<RefreshResponse>, Status> {
        let call = Self::call_context(&request)?;
        let (metadata, _, message) = request.into_parts();
        let RefreshRequest { client_id, client_secret, refresh_token, scopes } = message;
        into_response(
            async {
                let credentials = presented(metadata.as_ref(), client_id, client_secret)?;
                bounded("scopes", &scopes)?;
                let asked = refresh::Request {
                    refresh_token: present("refresh_token", refresh_token)?,
                    scopes,
                };
                self.services
                    .tokens
                    .refresh(&call, credentials, asked)
                    .await
                    .map(RefreshResponse::from)
            }
            .await,
        )
    }

    async fn revoke(
        &self,
        request: Request<RevokeRequest>,
    ) -> Result<Response<RevokeResponse>, Status> {
        let call = Self::call_context(&request)?;
        let (metadata, _, message) = request.into_parts();
        // The hint is not needed: the two kinds of token cannot be confused (RFC 7009 section 2.1
        // lets it be ignored).
        let RevokeRequest { client_id, client_secret, token, token_type_hint: _ } = message;
        into_response(
            async {
                let credentials = presented(metadata.as_ref(), client_id, client_secret)?;
                let token = present("token", token)?;
                self.services
                    .revoker
                    .revoke(&call, credentials, &token)
                    .await
                    .map(|()| RevokeResponse {})
            }
            .await,
        )
    }

    async fn introspect(
        &self,
        request: Request<IntrospectRequest>,
    ) -> Result<Response<IntrospectResponse>, Status> {
        let call = Self::call_context(&request)?;
        let (metadata, _, message) = request.into_parts();
        let IntrospectRequest { client_id, client_secret, token, token_type_hint } = message;
        into_response(
            async {
                let credentials = presented(metadata.as_ref(), client_id, client_secret)?;
                let token = present("token", token)?;
                let viewer = self.services.introspector.admit(&call, credentials).await?;
                if token_type_hint == "refresh_token" {
                    let family = self
                        .services
                        .introspector
                        .introspect_refresh(&call, &viewer, &token)
                        .await?;
                    return Ok(family.map_or_else(inactive, |family| {
                        of_family(&family, &self.services.terms.issuer)
                    }));
                }
                self.judge(&call, &viewer, token.expose_secret())
            }
            .await,
        )
    }

    async fn batch_introspect(
        &self,
        request: Request<BatchIntrospectRequest>,
    ) -> Result<Response<BatchIntrospectResponse>, Status> {
        let call = Self::call_context(&request)?;
        let (metadata, _, message) = request.into_parts();
        let BatchIntrospectRequest { client_id, client_secret, tokens } = message;
        into_response(
            async {
                let credentials = presented(metadata.as_ref(), client_id, client_secret)?;
                if tokens.is_empty() || tokens.len() > introspection::MAX_BATCH {
                    return Err(Error::field("tokens", "must have 1 to 1000 entries"));
                }
                let viewer = self.services.introspector.admit(&call, credentials).await?;
                self.services.introspector.charge_batch(&call, &viewer, tokens.len())?;
                let mut results = Vec::with_capacity(tokens.len());
                for some in tokens.chunks(BETWEEN_YIELDS) {
                    for token in some {
                        results.push(self.judge(&call, &viewer, token)?);
                    }
                    // Other calls of this worker need not wait for the whole batch.
                    tokio::task::yield_now().await;
                }
                Ok(BatchIntrospectResponse { results })
            }
            .await,
        )
    }
}

impl GrpcServices {
    fn judge(
        &self,
        call: &Call,
        viewer: &introspection::IntrospectionCaller,
        token: &str,
    ) -> Result<IntrospectResponse, Error> {
        Ok(self
            .services
            .introspector
            .introspect(call, viewer, token, of_claims)?
            .unwrap_or_else(inactive))
    }
}

/// The one answer for everything that does not stand.
fn inactive() -> IntrospectResponse {
    IntrospectResponse { active: Some(false), ..IntrospectResponse::default() }
}

fn of_claims(standing: &introspection::VisibleToken<'_>) -> IntrospectResponse {
    let claims = standing.claims();
    IntrospectResponse {
        active: Some(true),
        scopes: claims
            .scope
            .split(' ')
            .filter(|scope| !scope.is_empty())
            .map(str::to_owned)
            .collect(),
        client_id: claims.client_id.as_str().to_owned(),
        sub: claims.sub.as_str().to_owned(),
        aud: standing.audience().map(|audience| audience.as_str().to_owned()).collect(),
        iss: claims.iss.clone(),
        jti: claims.jti.to_string(),
        iat: claims.iat,
        nbf: claims.nbf,
        exp: claims.exp,
        token_type: "Bearer".to_owned(),
        tenant: claims.tenant.as_str().to_owned(),
        roles: claims.roles.iter().map(|role| role.as_str().to_owned()).collect(),
    }
}

fn of_family(family: &Family, issuer: &str) -> IntrospectResponse {
    IntrospectResponse {
        active: Some(true),
        scopes: family.scopes.to_strings(),
        client_id: family.client.as_str().to_owned(),
        sub: family.subject.as_str().to_owned(),
        aud: family.audience.iter().map(|audience| audience.as_str().to_owned()).collect(),
        iss: issuer.to_owned(),
        jti: family.id.to_string(),
        iat: family.rotated_at.seconds(),
        nbf: family.rotated_at.seconds(),
        exp: family.ends_at().seconds(),
        token_type: "refresh_token".to_owned(),
        tenant: family.tenant.as_str().to_owned(),
        roles: Vec::new(),
    }
}

impl From<Issued> for TokenResponse {
    fn from(issued: Issued) -> Self {
        Self {
            access_token: issued.access_token.expose_secret().to_owned(),
            token_type: "Bearer".to_owned(),
            expires_in: i64::try_from(issued.expires_in.as_secs()).unwrap_or(i64::MAX),
            refresh_token: issued
                .refresh_token
                .map(|token| token.expose_secret().to_owned())
                .unwrap_or_default(),
            scopes: issued.scopes.to_strings(),
        }
    }
}

impl From<Issued> for RefreshResponse {
    fn from(issued: Issued) -> Self {
        let TokenResponse { access_token, token_type, expires_in, refresh_token, scopes } =
            issued.into();
        Self { access_token, token_type, expires_in, refresh_token, scopes }
    }
}

fn present(field: &'static str, value: String) -> Result<SecretString, Error> {
    if value.is_empty() { Err(Error::field(field, "is required")) } else { Ok(value.into()) }
}

fn bounded(field: &'static str, list: &[String]) -> Result<(), Error> {
    if list.len() > MAX_LIST {
        Err(Error::field(field, "must have at most 100 entries"))
    } else {
        Ok(())
    }
}
