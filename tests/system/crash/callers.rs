//! Those who call: a client with its secret, and the administrator.

use jeton::proto::{
    admin::{
        ChainVerdict, Client, CreateClientRequest, Event, GrantType, KnownHead, ListEventsRequest,
        ListKeysRequest, RotateKeysRequest, SigningKey, VerifyChainRequest,
        audit_service_client::AuditServiceClient, client_service_client::ClientServiceClient,
        key_service_client::KeyServiceClient,
    },
    token::{
        BatchIntrospectRequest, IntrospectRequest, RefreshRequest, RefreshResponse, RevokeRequest,
        TokenRequest, TokenResponse, token_service_client::TokenServiceClient,
    },
};
use serde_json::Value;
use tonic::{Request, Response, Status, metadata::AsciiMetadataValue, transport::Channel};

type Answer<T> = Result<T, Status>;

/// A client on a connection.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) id: String,
    pub(crate) secret: String,
    service: TokenServiceClient<Channel>,
}

impl Caller {
    pub(crate) fn new(id: &str, secret: &str, channel: Channel) -> Self {
        Self {
            id: id.to_owned(),
            secret: secret.to_owned(),
            service: TokenServiceClient::new(channel),
        }
    }

    /// The same client on another connection.
    pub(crate) fn over(&self, channel: Channel) -> Self {
        Self::new(&self.id, &self.secret, channel)
    }

    pub(crate) async fn token(&mut self, scopes: &[&str]) -> Answer<TokenResponse> {
        let scopes = scopes.iter().map(|&scope| scope.to_owned()).collect();
        let (client_id, client_secret) = (self.id.clone(), self.secret.clone());
        let request = TokenRequest { client_id, client_secret, scopes, ..TokenRequest::default() };
        self.service.token(request).await.map(Response::into_inner)
    }

    pub(crate) async fn refresh(&mut self, refresh_token: &str) -> Answer<RefreshResponse> {
        let (client_id, client_secret) = (self.id.clone(), self.secret.clone());
        let request = RefreshRequest {
            client_id,
            client_secret,
            refresh_token: refresh_token.to_owned(),
            scopes: Vec::new(),
        };
        self.service.refresh(request).await.map(Response::into_inner)
    }

    pub(crate) async fn revoke(&mut self, token: &str) -> Answer<()> {
        let (client_id, client_secret) = (self.id.clone(), self.secret.clone());
        let request = RevokeRequest {
            client_id,
            client_secret,
            token: token.to_owned(),
            token_type_hint: String::new(),
        };
        self.service.revoke(request).await.map(drop)
    }

    pub(crate) async fn introspect(&mut self, token: &str) -> Answer<bool> {
        let (client_id, client_secret) = (self.id.clone(), self.secret.clone());
        let request = IntrospectRequest {
            client_id,
            client_secret,
            token: token.to_owned(),
            token_type_hint: String::new(),
        };
        self.service
            .introspect(request)
            .await
            .map(|answer| answer.into_inner().active.expect("active is always there"))
    }

    /// True if each token is active, in their order.
    pub(crate) async fn active(&mut self, tokens: &[String]) -> Vec<bool> {
        let mut verdicts = Vec::new();
        for tokens in tokens.chunks(500) {
            let (client_id, client_secret) = (self.id.clone(), self.secret.clone());
            let request =
                BatchIntrospectRequest { client_id, client_secret, tokens: tokens.to_vec() };
            let results =
                self.service.batch_introspect(request).await.unwrap().into_inner().results;
            verdicts.extend(
                results.iter().map(|result| result.active.expect("active is always there")),
            );
        }
        verdicts
    }
}

/// The first client, which may administer.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) caller: Caller,
    bearer: AsciiMetadataValue,
    channel: Channel,
}

impl Admin {
    /// Gets itself an access token.
    pub(crate) async fn new(secret: &str, channel: Channel) -> Self {
        let mut caller = Caller::new("bootstrap", secret, channel.clone());
        let token = caller.token(&["jeton:admin"]).await.unwrap().access_token;
        Self { caller, bearer: format!("Bearer {token}").parse().unwrap(), channel }
    }

    /// The same administrator with the same access token on another connection.
    pub(crate) fn over(&self, channel: Channel) -> Self {
        Self { caller: self.caller.over(channel.clone()), bearer: self.bearer.clone(), channel }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.bearer.clone());
        request
    }

    /// Registers a client that may refresh: its id and secret.
    pub(crate) async fn register(&self) -> Answer<(String, String)> {
        let grants = vec![GrantType::ClientCredentials.into(), GrantType::RefreshToken.into()];
        let client = Client {
            scopes: vec!["orders:read".to_owned()],
            grant_types: grants,
            ..Client::default()
        };
        let request = self.request(CreateClientRequest { client: Some(client), secret: None });
        let created = ClientServiceClient::new(self.channel.clone())
            .create_client(request)
            .await?
            .into_inner();
        Ok((created.client.unwrap().client_id, created.client_secret))
    }

    pub(crate) async fn registered(&self) -> Caller {
        let (id, secret) = self.register().await.unwrap();
        Caller::new(&id, &secret, self.channel.clone())
    }

    /// Records after this sequence, newest first.
    pub(crate) async fn events_after(&self, sequence: i64) -> Vec<Event> {
        let mut service = AuditServiceClient::new(self.channel.clone());
        let mut events = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = ListEventsRequest { page_size: 1_000, page_token, filter: None };
            let page = service.list_events(self.request(request)).await.unwrap().into_inner();
            // Pages go by time, so records that were made at once may stand in another order than
            // their sequence.
            let last = page.events.iter().all(|event| event.sequence <= sequence)
                || page.next_page_token.is_empty();
            events.extend(page.events.into_iter().filter(|event| event.sequence > sequence));
            if last {
                return events;
            }
            page_token = page.next_page_token;
        }
    }

    /// Walks the server's chain, which is the only one, and holds it to a head that was noted
    /// before.
    pub(crate) async fn verify(&self, known: Option<&ChainVerdict>) -> ChainVerdict {
        let head = |known: &ChainVerdict| KnownHead {
            chain: known.chain.clone(),
            sequence: known.head_sequence,
            hash: known.head_hash.clone(),
        };
        let request = VerifyChainRequest {
            chain: String::new(),
            known: known.map(head).into_iter().collect(),
        };
        let mut service = AuditServiceClient::new(self.channel.clone());
        let verdict = service.verify_chain(self.request(request)).await.unwrap().into_inner();
        assert_eq!((verdict.intact, verdict.chains.len()), (Some(true), 1), "{verdict:?}");
        verdict.chains.into_iter().next().unwrap()
    }

    pub(crate) async fn keys(&self) -> Vec<SigningKey> {
        let request = self.request(ListKeysRequest {});
        KeyServiceClient::new(self.channel.clone())
            .list_keys(request)
            .await
            .unwrap()
            .into_inner()
            .keys
    }

    pub(crate) async fn rotate(&self) -> Answer<Vec<SigningKey>> {
        let request = self.request(RotateKeysRequest {});
        KeyServiceClient::new(self.channel.clone())
            .rotate_keys(request)
            .await
            .map(|answer| answer.into_inner().keys)
    }
}

/// A claim of an access token, read without judging it.
pub(crate) fn claim(token: &str, name: &str) -> String {
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
    let payload = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&payload).unwrap();
    claims.get(name).and_then(Value::as_str).unwrap().to_owned()
}
