//! Calls for administration: with a token that an earlier command left, or a new one.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use tonic::{
    Code, Request, Status,
    body::Body,
    metadata::{Ascii, MetadataValue},
    transport,
};
use tonic_types::StatusExt;
use tower::{Service, ServiceExt};

use super::{
    args,
    connect::{Credentials, Remote},
    error::Failure,
    timed::TimedChannel,
    token_cache::Key,
};
use crate::proto::token::{TokenRequest, token_service_client::TokenServiceClient};

/// Scope of a client that may administer everything.
const EVERYTHING: &str = "jeton:admin";

/// A connection with a token for administration.
pub(super) struct Admin {
    channel: AdminChannel,
}

impl Admin {
    /// Takes a kept token or requests one: with the scope `jeton:admin`, or if the client may not
    /// request that, with `scope` (several are separated by spaces).
    pub(super) async fn open(remote: Remote, scope: &str) -> Result<Self, Failure> {
        let issuer = Issuer::new(remote, scope)?;
        match issuer.kept() {
            Some(held) => Ok(Self::with(issuer, held)),
            None => Self::issued(issuer).await,
        }
    }

    /// Requests a new token, as [`Self::open`] does.
    pub(super) async fn renewed(remote: Remote, scope: &str) -> Result<Self, Failure> {
        Self::issued(Issuer::new(remote, scope)?).await
    }

    async fn issued(issuer: Issuer) -> Result<Self, Failure> {
        let held = issuer.issue().await.map_err(|status| issuer.remote.refused(status))?;
        Ok(Self::with(issuer, held))
    }

    fn with(issuer: Issuer, held: Held) -> Self {
        let channel = AdminChannel {
            channel: issuer.remote.channel.clone(),
            issuer: Arc::new(issuer),
            held: Arc::new(Mutex::new(held)),
        };
        Self { channel }
    }

    /// Returns the lifetime of a new token; zero if an earlier command left it.
    pub(super) fn lifetime(&self) -> Duration {
        self.channel.held().lifetime
    }

    pub(super) fn channel(&self) -> AdminChannel {
        self.channel.clone()
    }

    /// Creates a request with the token and the timeout.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.stream(message);
        request.set_timeout(self.channel.issuer.remote.timeout());
        request
    }

    /// Creates a request with the token and without a timeout, for a stream.
    pub(super) fn stream<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.channel.held().bearer);
        request
    }
}

/// A token in use.
#[derive(Clone)]
struct Held {
    bearer: MetadataValue<Ascii>,
    /// Key and token if an earlier command left it, so that it may have been revoked since.
    kept: Option<(Key, String)>,
    /// Lifetime when it was issued.
    lifetime: Duration,
}

impl Held {
    fn new(token: &str) -> Option<Self> {
        let mut bearer: MetadataValue<Ascii> = format!("Bearer {token}").parse().ok()?;
        bearer.set_sensitive(true);
        Some(Self { bearer, kept: None, lifetime: Duration::ZERO })
    }
}

/// Source of tokens.
struct Issuer {
    remote: Remote,
    credentials: Credentials,
    scope: String,
}

impl Issuer {
    fn new(remote: Remote, scope: &str) -> Result<Self, Failure> {
        let credentials = remote.credentials()?.clone();
        Ok(Self { credentials, scope: scope.to_owned(), remote })
    }

    fn key(&self, scope: &str) -> Key {
        let Credentials { client_id, .. } = &self.credentials;
        Key::of(self.remote.url(), client_id, &self.credentials.secret(), scope)
    }

    /// Returns a token that an earlier command left.
    fn kept(&self) -> Option<Held> {
        let cache = self.remote.token_cache()?;
        [EVERYTHING, &self.scope].into_iter().find_map(|scope| {
            let key = self.key(scope);
            let (token, _) = cache.find(&key, args::now())?;
            Some(Held { kept: Some((key, token.clone())), ..Held::new(&token)? })
        })
    }

    async fn issue(&self) -> Result<Held, Status> {
        match self.issue_with(EVERYTHING).await {
            Err(status) if is_invalid_scope(&status) => self.issue_with(&self.scope).await,
            answer => answer,
        }
    }

    async fn issue_with(&self, scope: &str) -> Result<Held, Status> {
        let request = self.remote.request(TokenRequest {
            client_id: self.credentials.client_id.clone(),
            client_secret: self.credentials.secret(),
            scopes: scope.split(' ').map(str::to_owned).collect(),
            // Another token costs one call.
            without_refresh_token: true,
            ..TokenRequest::default()
        });
        let mut service = TokenServiceClient::new(self.remote.channel.clone());
        let answer = service.token(request).await?.into_inner();
        let mut held = Held::new(&answer.access_token)
            .ok_or_else(|| Status::internal("the server returned a malformed token"))?;
        held.lifetime = Duration::from_secs(answer.expires_in.try_into().unwrap_or(0));
        if let Some(cache) = self.remote.token_cache() {
            cache.save(&self.key(scope), &answer.access_token, held.lifetime, args::now());
        }
        Ok(held)
    }
}

fn is_invalid_scope(status: &Status) -> bool {
    let details = status.get_error_details();
    details.error_info().is_some_and(|info| info.reason == "INVALID_SCOPE")
}

/// Channel that replaces a kept token which the server no longer accepts, once.
#[derive(Clone)]
pub(super) struct AdminChannel {
    channel: TimedChannel,
    issuer: Arc<Issuer>,
    held: Arc<Mutex<Held>>,
}

impl AdminChannel {
    fn held(&self) -> Held {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends a request; if its token is refused, with a new token again. A refused call has done
    /// nothing.
    async fn call_again(
        &self,
        mut channel: TimedChannel,
        request: http::Request<Body>,
        (key, token): (Key, String),
    ) -> Result<http::Response<Body>, transport::Error> {
        let (mut parts, body) = request.into_parts();
        let message = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(status) => return Ok(status.into_http()),
        };
        let body = || Body::new(Full::new(message.clone()));
        let response = channel.call(http::Request::from_parts(parts.clone(), body())).await?;
        let refusal = Status::from_header_map(response.headers());
        if refusal.is_none_or(|status| status.code() != Code::Unauthenticated) {
            return Ok(response);
        }
        if let Some(cache) = self.issuer.remote.token_cache() {
            cache.remove(&key, &token);
        }
        let held = match self.issuer.issue().await {
            Ok(held) => held,
            Err(status) => return Ok(status.into_http()),
        };
        let bearer = http::HeaderValue::from_bytes(held.bearer.as_encoded_bytes());
        let Ok(bearer) = bearer else { return Ok(response) };
        parts.headers.insert(http::header::AUTHORIZATION, bearer);
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
        channel.ready().await?.call(http::Request::from_parts(parts, body())).await
    }
}

impl Service<http::Request<Body>> for AdminChannel {
    type Response = http::Response<Body>;
    type Error = transport::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Some(kept) = self.held().kept else { return Box::pin(self.channel.call(request)) };
        // The one that is ready is called; its clone may not be.
        let other = self.channel.clone();
        let channel = mem::replace(&mut self.channel, other);
        let this = self.clone();
        Box::pin(async move { this.call_again(channel, request, kept).await })
    }
}
