//! An API that checks access tokens: by Introspect, or with CHECK=jwks by itself.
//!
//! ```console
//! $ CLIENT_ID=orders CLIENT_SECRET=jcs_... cargo run --example server https://orders.example
//! serving on 127.0.0.1:8000
//! ```

use std::{env, error::Error, sync::Arc, time::Duration};

use axum::{Router, extract::State};
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use jeton::proto::token::{IntrospectRequest, token_service_client::TokenServiceClient};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};
use serde::Deserialize;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Mutex,
    time::{Instant, timeout},
};
use tonic::transport::Channel;

type Failure = Box<dyn Error + Send + Sync>;

struct Caller {
    client_id: String,
    scopes: Vec<String>,
}

enum Check {
    /// Sees every revocation. The service returns only active tokens for this API.
    Introspect { service: TokenServiceClient<Channel>, request: IntrospectRequest },
    /// Without a call. It does not see revocations: a token is accepted until it expires.
    Locally(Locally),
}

impl Check {
    /// Returns the caller; `None` for a token that is refused, an error if that is unknown.
    async fn check(&self, token: &str) -> Result<Option<Caller>, Failure> {
        match self {
            Self::Introspect { service, request } => {
                let request = IntrospectRequest { token: token.to_owned(), ..request.clone() };
                let answer = service.clone().introspect(request).await?.into_inner();
                let caller = Caller { client_id: answer.client_id, scopes: answer.scopes };
                Ok((answer.active == Some(true)).then_some(caller))
            }
            Self::Locally(locally) => locally.check(token).await,
        }
    }
}

struct Locally {
    jeton: String,
    validation: Validation,
    keys: Mutex<Option<(JwkSet, Instant)>>,
}

#[derive(Deserialize)]
struct Claims {
    client_id: String,
    scope: String,
}

impl Locally {
    async fn check(&self, token: &str) -> Result<Option<Caller>, Failure> {
        let Ok(head) = jsonwebtoken::decode_header(token) else { return Ok(None) };
        let (Some("at+jwt"), Some(kid)) = (head.typ.as_deref(), &head.kid) else { return Ok(None) };
        let Some(key) = self.key(kid).await? else { return Ok(None) };
        // The algorithms are those of `validation`, never that of the token.
        Ok(jsonwebtoken::decode::<Claims>(token, &key, &self.validation).ok().map(|token| Caller {
            client_id: token.claims.client_id,
            scopes: token.claims.scope.split(' ').map(str::to_owned).collect(),
        }))
    }

    /// Returns the key of this id. The keys are read again after ten minutes, and for an unknown
    /// id, but then once in ten seconds at most.
    async fn key(&self, kid: &str) -> Result<Option<DecodingKey>, Failure> {
        let mut cached = self.keys.lock().await;
        let is_due = cached.as_ref().is_none_or(|(keys, read_at)| {
            let known = keys.find(kid).is_some();
            read_at.elapsed() >= Duration::from_secs(if known { 600 } else { 10 })
        });
        if is_due {
            match timeout(Duration::from_secs(2), self.read_keys()).await? {
                Ok(keys) => *cached = Some((keys, Instant::now())),
                // The last keys stay in use while the service is away.
                Err(error) if cached.is_none() => return Err(error),
                Err(_) => {}
            }
        }
        let jwk = cached.as_ref().and_then(|(keys, _)| keys.find(kid));
        Ok(jwk.map(DecodingKey::from_jwk).transpose()?)
    }

    async fn read_keys(&self) -> Result<JwkSet, Failure> {
        let stream = TokioIo::new(TcpStream::connect(&self.jeton).await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        tokio::spawn(connection);
        let request = Request::get("/.well-known/jwks.json")
            .header(header::HOST, &self.jeton)
            .body(Empty::<bytes::Bytes>::new())?;
        let body = sender.send_request(request).await?.collect().await?.to_bytes();
        Ok(serde_json::from_slice(&body)?)
    }
}

async fn orders(State(check): State<Arc<Check>>, headers: HeaderMap) -> (StatusCode, String) {
    let credentials = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some(token) = credentials.and_then(|value| value.strip_prefix("Bearer ")) else {
        return (StatusCode::UNAUTHORIZED, "no token".to_owned());
    };
    match check.check(token).await {
        // Not 401: the caller would throw a good token away. Never 200.
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "try again".to_owned()),
        Ok(None) => (StatusCode::UNAUTHORIZED, "no valid token".to_owned()),
        Ok(Some(caller)) if !caller.scopes.iter().any(|scope| scope == "orders:read") => {
            (StatusCode::FORBIDDEN, "orders:read is missing".to_owned())
        }
        Ok(Some(caller)) => (StatusCode::OK, format!("hello {}", caller.client_id)),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let jeton = env::var("JETON_ADDRESS").unwrap_or_else(|_| "127.0.0.1:50051".to_owned());
    let audience = env::args().nth(1).ok_or("usage: server AUDIENCE")?;
    let check = if env::var("CHECK").is_ok_and(|check| check == "jwks") {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.leeway = 5;
        validation.validate_nbf = true;
        validation.set_audience(&[audience]);
        validation.set_issuer(&[format!("http://{jeton}")]);
        validation.set_required_spec_claims(&["iss", "aud", "exp", "nbf"]);
        Check::Locally(Locally { jeton, validation, keys: Mutex::default() })
    } else {
        // Beyond this machine: https, and `tls_config`.
        let endpoint = Channel::from_shared(format!("http://{jeton}"))?;
        let endpoint = endpoint.timeout(Duration::from_secs(2));
        let request = IntrospectRequest {
            client_id: env::var("CLIENT_ID")?,
            client_secret: env::var("CLIENT_SECRET")?,
            ..IntrospectRequest::default()
        };
        Check::Introspect { service: TokenServiceClient::new(endpoint.connect_lazy()), request }
    };
    let port = env::var("PORT").unwrap_or_else(|_| "8000".to_owned());
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("serving on {}", listener.local_addr()?);
    let api = Router::new().fallback(orders).with_state(Arc::new(check));
    axum::serve(listener, api).await?;
    Ok(())
}
