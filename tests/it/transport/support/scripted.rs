//! A token service that does as the client id says.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use jeton::{
    api::{guard::Deadline, listen::PeerCertificates},
    error::Error,
    model::Call,
    proto::token::{token_service_server::TokenService, *},
};
use tokio::sync::Notify;
use tonic::{Request, Response, Status};

/// Bytes of a large answer.
pub(crate) const LARGE: usize = 1 << 20;

#[derive(Clone, Default)]
pub(crate) struct ScriptedPeer(Arc<State>);

#[derive(Default)]
struct State {
    waiting: AtomicUsize,
    release: Notify,
    unready: AtomicBool,
    stuck: AtomicBool,
    wait_ms: AtomicU64,
    published: AtomicUsize,
}

/// A call that waits, counted for as long as it lives.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl ScriptedPeer {
    /// Calls that wait to be released.
    pub(crate) fn waiting(&self) -> usize {
        self.0.waiting.load(SeqCst)
    }

    pub(crate) fn release(&self) {
        self.0.release.notify_waiters();
    }

    pub(crate) fn is_ready(&self) -> bool {
        !self.0.unready.load(SeqCst)
    }

    /// From now on all are told to wait that long, unless it is 0.
    pub(crate) fn throttle(&self, milliseconds: u64) {
        self.0.wait_ms.store(milliseconds, SeqCst);
    }

    pub(crate) fn admit(&self) -> Result<(), Error> {
        match self.0.wait_ms.load(SeqCst) {
            0 => Ok(()),
            milliseconds => {
                Err(Error::Throttled { retry_after: Duration::from_millis(milliseconds) })
            }
        }
    }

    /// From now on a key is so many bytes long.
    pub(crate) fn publish(&self, bytes: usize) {
        self.0.published.store(bytes, SeqCst);
    }

    /// The name of the key.
    pub(crate) fn key(&self) -> String {
        match self.0.published.load(SeqCst) {
            0 => "one".to_owned(),
            bytes => "x".repeat(bytes),
        }
    }

    pub(crate) fn is_stuck(&self) -> bool {
        self.0.stuck.load(SeqCst)
    }

    /// A thread of the port is stuck from now on, by its heartbeats.
    pub(crate) fn make_stuck(&self) {
        self.0.stuck.store(true, SeqCst);
    }

    pub(crate) fn make_unready(&self) {
        self.0.unready.store(true, SeqCst);
    }
}

#[tonic::async_trait]
impl TokenService for ScriptedPeer {
    /// `access_token` is the request id, `token_type` the peer, `expires_in` the milliseconds left,
    /// `scopes` the rest.
    async fn token(
        &self,
        request: Request<TokenRequest>,
    ) -> Result<Response<TokenResponse>, Status> {
        let call = request.extensions().get::<Call>().unwrap().clone();
        let deadline = *request.extensions().get::<Deadline>().unwrap();
        let certificates = request
            .extensions()
            .get::<PeerCertificates>()
            .map_or(0, |certificates| certificates.0.len());
        match request.get_ref().client_id.as_str() {
            "panic" => panic!("canary-5f2a: a secret in a panic"),
            "wait" => {
                self.0.waiting.fetch_add(1, SeqCst);
                let _waiting = Waiting(&self.0.waiting);
                self.0.release.notified().await;
            }
            "large" => {
                return Ok(Response::new(TokenResponse {
                    access_token: "x".repeat(LARGE),
                    ..TokenResponse::default()
                }));
            }
            "out-of-range" => return Err(Status::out_of_range("of its own")),
            "denied" => return Err(Status::permission_denied("no")),
            _ => {}
        }
        Ok(Response::new(TokenResponse {
            access_token: call.request_id.to_string(),
            token_type: call.peer.to_string(),
            expires_in: i64::try_from(deadline.remaining().as_millis()).unwrap(),
            scopes: vec![call.now.to_string(), certificates.to_string()],
            ..TokenResponse::default()
        }))
    }

    async fn refresh(
        &self,
        _: Request<RefreshRequest>,
    ) -> Result<Response<RefreshResponse>, Status> {
        Err(Status::unimplemented("not in the play"))
    }

    async fn revoke(&self, _: Request<RevokeRequest>) -> Result<Response<RevokeResponse>, Status> {
        Err(Status::unimplemented("not in the play"))
    }

    async fn introspect(
        &self,
        _: Request<IntrospectRequest>,
    ) -> Result<Response<IntrospectResponse>, Status> {
        Err(Status::unimplemented("not in the play"))
    }

    async fn batch_introspect(
        &self,
        _: Request<BatchIntrospectRequest>,
    ) -> Result<Response<BatchIntrospectResponse>, Status> {
        Err(Status::unimplemented("not in the play"))
    }
}
