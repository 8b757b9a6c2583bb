//! Calls of clients: tokens, introspection, revocation; and a client of each service.

use jeton::proto::{
    admin::{
        audience_service_client::AudienceServiceClient, audit_service_client::AuditServiceClient,
        client_service_client::ClientServiceClient, key_service_client::KeyServiceClient,
        revocation_service_client::RevocationServiceClient,
    },
    token::{
        BatchIntrospectRequest, BatchIntrospectResponse, IntrospectRequest, IntrospectResponse,
        RefreshRequest, RefreshResponse, RevokeRequest, TokenRequest, TokenResponse,
        token_service_client::TokenServiceClient,
    },
};
use prost::Message;
use tonic::{Code, Request, Response, Status, transport::Channel};

use super::{Caller, INACTIVE, TestServer, assert_invalid_grant, basic, bytes, reason, texts};
use crate::support::database::answered;

/// Seconds of a window in which nodes count calls together.
pub const RATE_WINDOW: i64 = 10;

impl TestServer {
    pub fn tokens(&self) -> TokenServiceClient<Channel> {
        TokenServiceClient::new(self.channel.clone())
    }

    pub fn clients(&self) -> ClientServiceClient<Channel> {
        ClientServiceClient::new(self.channel.clone())
    }

    pub fn audiences(&self) -> AudienceServiceClient<Channel> {
        AudienceServiceClient::new(self.channel.clone())
    }

    pub fn keys(&self) -> KeyServiceClient<Channel> {
        KeyServiceClient::new(self.channel.clone())
    }

    pub fn revocations(&self) -> RevocationServiceClient<Channel> {
        RevocationServiceClient::new(self.channel.clone())
    }

    pub fn audit(&self) -> AuditServiceClient<Channel> {
        AuditServiceClient::new(self.channel.clone())
    }

    pub async fn token(&self, caller: &Caller, scopes: &[&str]) -> Result<TokenResponse, Status> {
        let scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        let Caller { id, secret } = caller.clone();
        let request = TokenRequest {
            client_id: id,
            client_secret: secret,
            scopes,
            ..TokenRequest::default()
        };
        self.tokens().token(request).await.map(tonic::Response::into_inner)
    }

    pub async fn token_for(&self, caller: &Caller, audience: &str) -> Result<String, Status> {
        let Caller { id, secret } = caller.clone();
        let message = TokenRequest {
            client_id: id,
            client_secret: secret,
            resources: texts(&[audience]),
            ..TokenRequest::default()
        };
        Ok(self.tokens().token(message).await?.into_inner().access_token)
    }

    pub async fn is_admitted(&self, caller: &Caller) -> bool {
        match self.token(caller, &[]).await {
            Ok(_) => true,
            Err(status) => {
                assert_eq!(
                    (status.code(), reason(&status).as_str()),
                    (Code::Unauthenticated, "INVALID_CLIENT")
                );
                false
            }
        }
    }

    pub async fn refresh(
        &self,
        caller: &Caller,
        refresh_token: &str,
    ) -> Result<RefreshResponse, Status> {
        let Caller { id, secret } = caller.clone();
        let refresh_token = refresh_token.to_owned();
        let request = RefreshRequest {
            client_id: id,
            client_secret: secret,
            refresh_token,
            scopes: Vec::new(),
        };
        self.tokens().refresh(request).await.map(tonic::Response::into_inner)
    }

    pub async fn refresh_to(
        &self,
        caller: &Caller,
        token: &str,
        scopes: &[&str],
    ) -> Result<RefreshResponse, Status> {
        let Caller { id, secret } = caller.clone();
        let scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        let request = RefreshRequest {
            client_id: id,
            client_secret: secret,
            refresh_token: token.to_owned(),
            scopes,
        };
        self.tokens().refresh(request).await.map(Response::into_inner)
    }

    pub async fn is_refused(&self, caller: &Caller, token: &str) {
        assert_invalid_grant(&self.refresh(caller, token).await.unwrap_err());
    }

    /// Refreshes `times` times and gives every refresh token, the first one first.
    pub async fn rotated(&self, caller: &Caller, times: usize) -> Vec<String> {
        let mut tokens = vec![self.token(caller, &[]).await.unwrap().refresh_token];
        for _ in 0..times {
            let next = self.refresh(caller, tokens.last().unwrap()).await.unwrap().refresh_token;
            tokens.push(next);
        }
        tokens
    }

    pub async fn revoke(&self, caller: &Caller, token: &str) -> Result<(), Status> {
        let Caller { id, secret } = caller.clone();
        let request = RevokeRequest {
            client_id: id,
            client_secret: secret,
            token: token.to_owned(),
            ..RevokeRequest::default()
        };
        self.tokens().revoke(request).await.map(drop)
    }

    pub async fn revoke_with_hint(
        &self,
        caller: &Caller,
        token: &str,
        hint: &str,
    ) -> Result<(), Status> {
        let Caller { id, secret } = caller.clone();
        let (token, token_type_hint) = (token.to_owned(), hint.to_owned());
        self.tokens()
            .revoke(RevokeRequest { client_id: id, client_secret: secret, token, token_type_hint })
            .await
            .map(drop)
    }

    /// Introspection of a token by the administrator, who may see any.
    pub async fn introspect(&self, token: &str) -> IntrospectResponse {
        self.introspect_as(&self.admin, token).await.unwrap()
    }

    pub async fn introspect_as(
        &self,
        caller: &Caller,
        token: &str,
    ) -> Result<IntrospectResponse, Status> {
        let Caller { id, secret } = caller.clone();
        let request = IntrospectRequest {
            client_id: id,
            client_secret: secret,
            token: token.to_owned(),
            ..IntrospectRequest::default()
        };
        self.tokens().introspect(request).await.map(tonic::Response::into_inner)
    }

    pub async fn introspected(
        &self,
        caller: &Caller,
        token: &str,
        hint: &str,
    ) -> Response<IntrospectResponse> {
        let Caller { id, secret } = caller.clone();
        let (token, token_type_hint) = (token.to_owned(), hint.to_owned());
        let request =
            IntrospectRequest { client_id: id, client_secret: secret, token, token_type_hint };
        self.tokens().introspect(request).await.unwrap()
    }

    pub async fn batch(
        &self,
        caller: &Caller,
        tokens: &[&str],
    ) -> Result<BatchIntrospectResponse, Status> {
        let tokens = tokens.iter().map(|token| (*token).to_owned()).collect();
        let message = BatchIntrospectRequest { tokens, ..BatchIntrospectRequest::default() };
        self.tokens()
            .batch_introspect(basic(message, caller))
            .await
            .map(tonic::Response::into_inner)
    }

    pub async fn sees(&self, caller: &Caller, token: &str) -> bool {
        let alone = bytes(&self.introspected(caller, token, "").await);
        let batch = self.batch(caller, &[token]).await.unwrap();
        assert_eq!(
            batch.results.first().unwrap().encode_to_vec(),
            alone.0,
            "a batch says what is said one by one"
        );
        alone.0 != INACTIVE
    }

    pub async fn is_active(&self, token: &str) -> bool {
        self.introspect(token).await.active.expect("active is always there")
    }

    /// Answers of every RPC that takes a client's secret, given in the message and in the metadata.
    pub async fn refusals(&self, caller: &Caller) -> Vec<Status> {
        let mut refusals = Vec::new();
        for in_metadata in [false, true] {
            let (id, secret) = if in_metadata {
                Default::default()
            } else {
                (caller.id.clone(), caller.secret.clone())
            };
            fn dressed<T>(message: T, caller: &Caller, in_metadata: bool) -> Request<T> {
                if in_metadata { basic(message, caller) } else { Request::new(message) }
            }
            let mut tokens = self.tokens();
            let message = TokenRequest {
                client_id: id.clone(),
                client_secret: secret.clone(),
                ..TokenRequest::default()
            };
            refusals.extend(tokens.token(dressed(message, caller, in_metadata)).await.err());
            let message = RefreshRequest {
                client_id: id.clone(),
                client_secret: secret.clone(),
                refresh_token: "x".to_owned(),
                scopes: Vec::new(),
            };
            refusals.extend(tokens.refresh(dressed(message, caller, in_metadata)).await.err());
            let message = RevokeRequest {
                client_id: id.clone(),
                client_secret: secret.clone(),
                token: "x".to_owned(),
                ..RevokeRequest::default()
            };
            refusals.extend(tokens.revoke(dressed(message, caller, in_metadata)).await.err());
            let message = IntrospectRequest {
                client_id: id.clone(),
                client_secret: secret.clone(),
                token: "x".to_owned(),
                ..IntrospectRequest::default()
            };
            refusals.extend(tokens.introspect(dressed(message, caller, in_metadata)).await.err());
            let message = BatchIntrospectRequest {
                client_id: id,
                client_secret: secret,
                tokens: vec!["x".to_owned()],
            };
            refusals
                .extend(tokens.batch_introspect(dressed(message, caller, in_metadata)).await.err());
        }
        assert_eq!(refusals.len(), 10, "all are refused");
        refusals
    }

    /// Waits until it is known of every refresh so far that its caller was answered.
    pub async fn wait_until_answered(&self) {
        if let Some(uri) = self.home.uri() {
            answered(uri).await;
        }
    }

    /// Number of a client's calls in the open window that the nodes have reported.
    pub async fn counted(&self, caller: &Caller) -> i64 {
        use mongodb::bson::{Document, doc};
        let client = mongodb::Client::with_uri_str(self.home.uri().unwrap()).await.unwrap();
        let counters = client.default_database().unwrap().collection::<Document>("rate_limits");
        let until = (self.now() / RATE_WINDOW + 1) * RATE_WINDOW * 1_000;
        let counter = counters
            .find_one(doc! { "_id": format!("{until}/client/{}", caller.id) })
            .await
            .unwrap();
        counter.map_or(0, |counter| {
            counter.get_document("by").unwrap().values().map(|count| count.as_i64().unwrap()).sum()
        })
    }
}
