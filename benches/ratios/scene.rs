//! Preconditions of a load: clients, a token seen before, the bodies of requests and the
//! answers for the echo.

use std::{
    fs,
    path::{Path, PathBuf},
};

use jeton::proto::{
    admin::{Client, CreateClientRequest, GrantType, client_service_client::ClientServiceClient},
    token::{
        IntrospectRequest, RefreshRequest, RevokeRequest, TokenRequest, TokenResponse,
        token_service_client::TokenServiceClient,
    },
};
use prost::Message;
use tonic::{Request, transport::Channel};

use crate::servers::Server;

const AUDIENCE: &str = "https://orders.test";

/// A client with its secret.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) id: String,
    pub(crate) secret: String,
}

/// Everything a load needs to know.
pub(crate) struct Scene {
    /// Gets access tokens alone.
    pub(crate) plain: Caller,
    /// Gets refresh tokens too.
    pub(crate) refreshing: Caller,
    /// Files with the bodies of Token and Introspect.
    pub(crate) token_body: PathBuf,
    pub(crate) introspect_body: PathBuf,
    /// How long the answers to them are, with their prefix.
    pub(crate) token_answer: usize,
    pub(crate) introspect_answer: usize,
}

impl Scene {
    /// Registers the clients, makes each kind of call once and sees that it succeeds, and leaves
    /// the files in `dir`.
    pub(crate) fn set(jeton: &Server, dir: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(Self::prepare(jeton, dir))
    }

    async fn prepare(jeton: &Server, dir: &Path) -> Self {
        let channel = Channel::from_shared(format!("http://{}", jeton.address))
            .unwrap()
            .connect()
            .await
            .unwrap();
        let mut tokens = TokenServiceClient::new(channel.clone());
        let admin = bootstrap(jeton);
        let asked =
            TokenRequest { scopes: vec!["jeton:admin".to_owned()], ..token_request(&admin) };
        let administrator = tokens.token(asked).await.unwrap().into_inner().access_token;

        let (machine, refresh) =
            (GrantType::ClientCredentials.into(), GrantType::RefreshToken.into());
        let client = Client {
            scopes: vec!["orders:read".to_owned(), "orders:write".to_owned()],
            audiences: vec![AUDIENCE.to_owned()],
            grant_types: vec![machine],
            ..Client::default()
        };
        let plain = register(&channel, &administrator, client.clone()).await;
        let client = Client { grant_types: vec![machine, refresh], ..client };
        let refreshing = register(&channel, &administrator, client).await;
        let resource = Client {
            scopes: vec!["jeton:introspect".to_owned()],
            serves: vec![AUDIENCE.to_owned()],
            grant_types: vec![machine],
            ..Client::default()
        };
        let resource = register(&channel, &administrator, resource).await;

        let issued = tokens.token(token_request(&plain)).await.unwrap().into_inner();
        let asked = IntrospectRequest {
            client_id: resource.id,
            client_secret: resource.secret,
            token: issued.access_token.clone(),
            ..IntrospectRequest::default()
        };
        let judged = tokens.introspect(asked.clone()).await.unwrap().into_inner();
        assert!(judged.active.unwrap() && !judged.scopes.is_empty(), "{judged:?}");
        let family = tokens.token(token_request(&refreshing)).await.unwrap().into_inner();
        let refreshed =
            tokens.refresh(refresh_request(&refreshing, &family)).await.unwrap().into_inner();
        assert_ne!(refreshed.refresh_token, family.refresh_token);
        let Caller { id, secret } = refreshing.clone();
        let token = refreshed.access_token.clone();
        let revoke = RevokeRequest {
            client_id: id,
            client_secret: secret,
            token,
            ..RevokeRequest::default()
        };
        tokens.revoke(revoke).await.unwrap();

        fs::write(dir.join("Token"), issued.encode_to_vec()).unwrap();
        fs::write(dir.join("Introspect"), judged.encode_to_vec()).unwrap();
        fs::write(dir.join("Refresh"), refreshed.encode_to_vec()).unwrap();
        println!(
            "sizes in bytes        Introspect {} -> {}, Token {} -> {}",
            asked.encoded_len(),
            judged.encoded_len(),
            token_request(&plain).encoded_len(),
            issued.encoded_len()
        );
        Self {
            token_body: body(dir, "token.body", &token_request(&plain)),
            introspect_body: body(dir, "introspect.body", &asked),
            token_answer: issued.encoded_len() + 5,
            introspect_answer: judged.encoded_len() + 5,
            plain,
            refreshing,
        }
    }
}

/// The client that the first start made.
pub(crate) fn bootstrap(jeton: &Server) -> Caller {
    let line: serde_json::Value = serde_json::from_str(&jeton.said).unwrap();
    let text = |key: &str| line[key].as_str().unwrap().to_owned();
    Caller { id: text("client_id"), secret: text("client_secret") }
}

async fn register(channel: &Channel, administrator: &str, client: Client) -> Caller {
    let mut request = Request::new(CreateClientRequest { client: Some(client), secret: None });
    request
        .metadata_mut()
        .insert("authorization", format!("Bearer {administrator}").parse().unwrap());
    let created = ClientServiceClient::new(channel.clone())
        .create_client(request)
        .await
        .unwrap()
        .into_inner();
    Caller { id: created.client.unwrap().client_id, secret: created.client_secret }
}

fn token_request(caller: &Caller) -> TokenRequest {
    let Caller { id, secret } = caller.clone();
    TokenRequest { client_id: id, client_secret: secret, ..TokenRequest::default() }
}

fn refresh_request(caller: &Caller, family: &TokenResponse) -> RefreshRequest {
    let Caller { id, secret } = caller.clone();
    let refresh_token = family.refresh_token.clone();
    RefreshRequest { client_id: id, client_secret: secret, refresh_token, scopes: Vec::new() }
}

/// A file with a message as gRPC frames it: not compressed, its length, itself.
fn body(dir: &Path, name: &str, message: &impl Message) -> PathBuf {
    let length = u32::try_from(message.encoded_len()).unwrap().to_be_bytes();
    let path = dir.join(name);
    fs::write(&path, [&[0], length.as_slice(), &message.encode_to_vec()].concat()).unwrap();
    path
}
