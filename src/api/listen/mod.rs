//! Our own accept loop. A loop that only accepts hands each connection to one of a few worker
//! threads, each with a runtime of its own, so that a call never crosses threads. Everything a
//! stranger can hold without authenticating is bounded here: connections in all and per peer, the
//! time to say something, streams, headers, resets.

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

use crate::config::Limits;

mod accept;
mod accepted;
mod caps;
mod connection;
mod descriptors;
mod frame;
mod frames;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod life;
mod preface;
mod room;
mod sites;
mod streams;
mod tls;
mod workers;

pub use descriptors::{connections_within, highest_limit, raise_limit};
pub use tls::{TlsError, TlsReloader};

use caps::Caps;

/// The certificates that the peer proved to hold in a TLS handshake, leaf first; an extension of
/// every request under mTLS.
#[derive(Clone, Debug)]
pub struct PeerCertificates(pub Arc<[CertificateDer<'static>]>);

/// How the port is served.
#[derive(Clone)]
pub struct Options {
    /// Connections at once; further ones are closed unanswered.
    pub connections: usize,
    /// Connections at once from one peer (IPv6: /64).
    pub connections_per_peer: usize,
    /// Streams at once on one connection; further ones are refused.
    pub streams_per_connection: u32,
    /// Time for the TLS handshake, and again for the HTTP/2 preface or the head of an HTTP/1.1
    /// request.
    pub handshake: Duration,
    /// Time from the start of a call until its answer has been read, and for every message of a
    /// stream; one and the same again may pass before a connection is cut for it.
    pub unread: Duration,
    /// Time without a call after which an HTTP/2 connection is told to go away.
    pub idle: Duration,
    /// Age at which an HTTP/2 connection is told to go away.
    pub age: Duration,
    /// Time for calls in flight to finish once the server is told to stop.
    pub drain: Duration,
    /// Worker threads, at least one.
    pub workers: usize,
    /// Certificates; plain TCP without.
    pub tls: Option<Arc<TlsReloader>>,
}

impl Options {
    /// As configured.
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
        }
    }
}

/// What became of the connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Handed to a worker.
    pub accepted: u64,
    /// Closed unanswered because a cap was reached.
    pub refused: u64,
    /// Cut because their calls did not finish within the drain time.
    pub aborted: u64,
}

/// What answers requests: an `axum::Router`, or the [`Guard`](super::guard::Guard) around one. It
/// is cloned once for each connection, and is always ready.
pub trait App:
    Service<
        Request<Incoming>,
        Response = Response<Self::Answer>,
        Error = Infallible,
        Future = Self::Answering,
    > + Clone
    + Send
    + 'static
{
    /// The body of its responses.
    type Answer: Body<Data: Buf + Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + Send
        + 'static;
    /// Its future.
    type Answering: Future<Output = Result<Response<Self::Answer>, Infallible>>
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
    type Answer = B;
    type Answering = S::Future;
}

/// Whether a port may be opened: beyond loopback only under TLS, or where the operator insists.
pub fn permitted(address: SocketAddr, tls: bool, insecure: bool) -> bool {
    tls || insecure || address.ip().to_canonical().is_loopback()
}

/// Connections that may wait to be accepted: a fleet that reconnects at once.
const BACKLOG: u32 = 4_096;

/// Listens on `address`. Whether it may be opened is for [`permitted`] to say.
///
/// # Errors
/// The system's.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves `app` on `listener` until `shutdown` is ready, then stops accepting, tells every
/// connection to go away, lets calls in flight finish for at most `options.drain`, and cuts the
/// rest; streams that only go on are ended after a few seconds. No error of a connection or of
/// accepting ends it.
///
/// # Errors
/// Only when a worker cannot be started.
pub async fn serve<A: App>(
    listener: TcpListener,
    app: A,
    options: Options,
    shutdown: impl Future<Output = ()>,
) -> io::Result<Summary> {
    let caps = Caps::new(options.connections, options.connections_per_peer);
    let mut crew = workers::Crew::start(&app, &options)?;
    let mut summary = accept::run(listener, &caps, &mut crew, shutdown).await;
    summary.aborted = crew.finish().await;
    Ok(summary)
}
