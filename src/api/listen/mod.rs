//! Listener of the port. A loop that only accepts passes each connection to one of a few worker
//! threads, each with a runtime of its own, so that a call never crosses threads. Everything that a
//! client can hold without authenticating is bounded here: connections in total and per peer, time
//! of the handshake, streams, headers, resets.

use std::{
    convert::Infallible, future::Future, io, net::SocketAddr, num::NonZero, sync::Arc, thread,
    time::Duration,
};

use bytes::Buf;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpSocket};
use tower::Service;

use crate::config::{Limits, Proxy};

mod accept;
mod accepted;
mod connection;
mod connection_limits;
mod control_frame_limit;
mod descriptors;
mod forwarded;
mod frame;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod heartbeats;
mod life;
mod peer_memory;
mod preface;
mod proxy;
mod stream_memory;
mod streams;
mod tls;
mod workers;

pub use descriptors::{connections_within, highest_limit, raise_limit};
pub use heartbeats::Heartbeats;
pub use proxy::Proxies;
pub use tls::{TlsError, TlsReloader};

use connection_limits::ConnectionLimits;

/// Certificates whose key the peer proved to hold in a TLS handshake, leaf first; an extension of
/// every request under mTLS.
#[derive(Clone, Debug)]
pub struct PeerCertificates(pub Arc<[CertificateDer<'static>]>);

/// Options of the port.
#[derive(Clone)]
pub struct Options {
    /// Connections at once; further ones are closed without a response.
    pub connections: usize,
    /// Connections at once from one peer (IPv6: /64).
    pub connections_per_peer: usize,
    /// Streams at once on one connection; further ones are refused.
    pub streams_per_connection: u32,
    /// Time for the TLS handshake, and again for the HTTP/2 preface or the head of an HTTP/1.1
    /// request.
    pub handshake: Duration,
    /// Time from the start of a call until its response has been read, and for every message of a
    /// stream; up to twice that may pass before a connection is cut for it.
    pub unread: Duration,
    /// Time without a call after which an HTTP/2 connection is asked to leave.
    pub idle: Duration,
    /// Age at which an HTTP/2 connection is asked to leave.
    pub age: Duration,
    /// Time for calls in flight to finish once the server stops.
    pub drain: Duration,
    /// Worker threads, at least one.
    pub workers: usize,
    /// Certificates; `None` means plain TCP.
    pub tls: Option<Arc<TlsReloader>>,
    /// Heartbeats of the threads, for the liveness probe.
    pub heartbeats: Heartbeats,
    /// Proxies, which are no clients themselves.
    pub proxies: Proxies,
}

impl Options {
    /// Creates the options of a configuration.
    pub fn new(limits: &Limits, tls: Option<Arc<TlsReloader>>) -> Self {
        let cores = || thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            connections: limits.connections,
            connections_per_peer: limits.connections_per_peer,
            streams_per_connection: limits.streams_per_connection,
            handshake: Duration::from_secs(limits.handshake_seconds),
            unread: Duration::from_secs(limits.deadline_seconds + limits.unread_seconds),
            idle: Duration::from_secs(limits.connection_idle_seconds),
            age: Duration::from_secs(limits.connection_age_seconds),
            drain: Duration::from_secs(limits.drain_seconds),
            workers: if limits.workers == 0 { cores() } else { limits.workers },
            tls,
            heartbeats: Heartbeats::default(),
            proxies: Proxies::default(),
        }
    }

    /// Sets the proxies of a configuration.
    pub fn behind(self, proxy: &Proxy) -> Self {
        Self { proxies: Proxies::new(proxy), ..self }
    }
}

/// Numbers of connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Passed to a worker.
    pub accepted: u64,
    /// Closed without a response because a limit was reached.
    pub refused: u64,
    /// Cut because their calls did not finish within the drain time.
    pub aborted: u64,
}

/// Service that responds to requests: an `axum::Router`, or the [`Guard`](super::guard::Guard)
/// around one. It is cloned once for each connection, and is always ready.
pub trait App:
    Service<
        Request<Incoming>,
        Response = Response<Self::ResponseBody>,
        Error = Infallible,
        Future = Self::ResponseFuture,
    > + Clone
    + Send
    + 'static
{
    /// Body of its responses.
    type ResponseBody: Body<Data: Buf + Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + Send
        + 'static;
    /// Future of its responses.
    type ResponseFuture: Future<Output = Result<Response<Self::ResponseBody>, Infallible>>
        + Send
        + Unpin
        + 'static;
}

impl<S, B> App for S
where
    S: Service<
            Request<Incoming>,
            Response = Response<B>,
            Error = Infallible,
            Future: Send + Unpin + 'static,
        > + Clone
        + Send
        + 'static,
    B: Body<Data: Buf + Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + Send
        + 'static,
{
    type ResponseBody = B;
    type ResponseFuture = S::Future;
}

/// Returns true if a port may be opened: beyond loopback only under TLS, or if the operator
/// insists.
pub fn permitted(address: SocketAddr, tls: bool, insecure: bool) -> bool {
    tls || insecure || address.ip().to_canonical().is_loopback()
}

/// Connections that may wait to be accepted: a fleet that reconnects at once.
const BACKLOG: u32 = 4_096;

/// Listens on `address`; [`permitted`] decides whether it may.
///
/// # Errors
/// Any error of the system.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves `app` on `listener` until `shutdown` is ready, then stops accepting, asks every
/// connection to leave, lets calls in flight finish for at most `options.drain`, and cuts the rest;
/// endless streams are ended after a few seconds. No error of a connection or of accepting ends it.
///
/// # Errors
/// Only if a worker cannot be started.
pub async fn serve<A: App>(
    listener: TcpListener,
    app: A,
    options: Options,
    shutdown: impl Future<Output = ()>,
) -> io::Result<Summary> {
    let limits = ConnectionLimits::new(options.connections, options.connections_per_peer);
    let mut pool = workers::WorkerPool::start(&app, &options)?;
    let heartbeat = options.heartbeats.register();
    let door = accept::Door { limits: &limits, proxies: &options.proxies };
    let mut summary = accept::run(listener, &door, &mut pool, &heartbeat, shutdown).await;
    drop(heartbeat);
    summary.aborted = pool.finish().await;
    Ok(summary)
}
