//! One connection, from its first byte to its last.

use std::{
    cell::RefCell,
    convert::Infallible,
    future::Future,
    io,
    net::IpAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::FutureExt;
use http::{HeaderMap, Request, Response};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::Service,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    App, Options, PeerCertificates,
    accepted::Accepted,
    connection_limits::ConnectionPermit,
    control_frame_limit::FrameLimited,
    forwarded::{self, Forwarded},
    life::{End, Life},
    peer_memory::PeerShare,
    preface::{HttpVersion, PREFACE, Replay, detect_version},
    proxy::{self, ProxyError},
    tls::TlsReloader,
};
use crate::{
    api::guard::{Account, Origin},
    metrics::METRICS,
    model::Peer,
};

/// Silence of an HTTP/2 connection after which it is pinged, and the timeout of the ping.
const PING_AFTER: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum age of an HTTP/1.1 connection.
const HTTP1_MAX_AGE: Duration = Duration::from_secs(120);
/// Time for which a response that has begun may go on once the server stops.
const STREAM_DRAIN: Duration = Duration::from_secs(2);
/// Largest header list of a request, as HPACK counts it.
const HEADER_LIST: u32 = 16 * 1024;
/// Flow control: a call is a few hundred bytes, a large batch takes some round trips more. The
/// second bounds the bytes that a connection can make us hold and no handler has asked for.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 512 * 1024;
/// Bytes of responses held for a stream whose client does not read.
const SEND_BUFFER: usize = 64 * 1024;
/// Limits on resets: of streams not yet processed (rapid reset), and our own for malformed ones.
/// tonic and hyper differ on both; a test checks them.
const PENDING_RESETS: usize = 20;
const LOCAL_RESETS: usize = 256;

/// Serves a connection. Its errors are the peer's and are logged at debug level.
pub(super) async fn run<A: App>(
    accepted: Accepted,
    app: A,
    options: Arc<Options>,
    stopping: watch::Receiver<bool>,
) {
    let Accepted { stream, address: peer, mut permit, load: _load, number } = accepted;
    let opened = match TcpStream::from_std(stream) {
        Ok(mut stream) => client_of(&mut stream, peer, &mut permit, &options, &stopping)
            .await
            .map(|client| (stream, client)),
        Err(error) => Err(error.into()),
    };
    let (stream, client) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            tracing::debug!(%peer, error, "connection failed");
            return;
        }
    };
    let peer_share = PeerShare::enter(client);
    let origin =
        Origin { peer: Peer::Ip(client), account: Account::of_this_worker(peer_share.account()) };
    let life = Arc::new(Life::new(
        Arc::clone(&origin.account),
        permit.activity(),
        peer_share.stream_memory(),
        &options,
        number,
    ));
    let mut service = ConnectionService::new(app, origin, life);
    service.proxies = options.proxies.forwards(client).then(|| Arc::clone(&options));
    if let Err(error) = open(stream, service, &options, stopping).await {
        tracing::debug!(%peer, error, "connection failed");
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Returns the address of the client: the peer's, unless that is a proxy that announces another.
async fn client_of(
    stream: &mut TcpStream,
    peer: IpAddr,
    permit: &mut ConnectionPermit,
    options: &Options,
    stopping: &watch::Receiver<bool>,
) -> Result<IpAddr, BoxError> {
    if !options.proxies.announces(peer) {
        return Ok(peer);
    }
    let reading = async { Ok(proxy::read_header(stream).await) };
    let read = Box::pin(with_handshake_timeout(options.handshake, stopping, reading)).await;
    match read.map_err(ProxyError::from).and_then(|read| read) {
        Ok(None) => Ok(peer),
        Ok(Some(client)) => {
            permit.move_to(client, options.proxies.forwards(client)).map_err(|limit| {
                METRICS.connections_refused.count(limit.as_str());
                format!("limit of the client {client}: {}", limit.as_str())
            })?;
            Ok(client)
        }
        Err(ProxyError::Closed) => Err(ProxyError::Closed.into()),
        Err(error) => {
            METRICS.connections_refused.count("proxy");
            proxy::report(peer, &error);
            Err(error.into())
        }
    }
}

type Served = Result<(), BoxError>;

/// Opens the connection, with TLS or without. Each stage is a boxed future of its own: nested, they
/// would make an idle connection take the memory of all stages it could have passed.
async fn open<A: App>(
    stream: TcpStream,
    service: ConnectionService<A>,
    options: &Options,
    stopping: watch::Receiver<bool>,
) -> Served {
    match &options.tls {
        Some(tls) => Box::pin(secure(stream, tls, service, options, stopping)).await,
        None => Box::pin(serve(stream, None, service, options, stopping)).await,
    }
}

/// Performs the TLS handshake.
async fn secure<A: App>(
    stream: TcpStream,
    tls: &TlsReloader,
    mut service: ConnectionService<A>,
    options: &Options,
    stopping: watch::Receiver<bool>,
) -> Served {
    let stream = with_handshake_timeout(
        options.handshake,
        &stopping,
        TlsAcceptor::from(tls.current()).accept(stream),
    )
    .await?;
    let (_, session) = stream.get_ref();
    let agreed = match session.alpn_protocol() {
        Some(TlsReloader::HTTP2) => Some(HttpVersion::Http2),
        Some(_) => Some(HttpVersion::Http1),
        None => None,
    };
    let certificates = session
        .peer_certificates()
        .map(|chain| chain.iter().map(|one| one.clone().into_owned()).collect());
    service.certificates = certificates.map(PeerCertificates);
    Box::pin(serve(stream, agreed, service, options, stopping)).await
}

/// Detects the HTTP version and serves it.
async fn serve<S, A>(
    stream: S,
    agreed: Option<HttpVersion>,
    service: ConnectionService<A>,
    options: &Options,
    stopping: watch::Receiver<bool>,
) -> Served
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    A: App,
{
    let (version, stream) =
        with_handshake_timeout(options.handshake, &stopping, detect_version(stream)).await?;
    if agreed.is_some_and(|agreed| agreed != version) {
        return Err("protocol differs from the one negotiated by ALPN".into());
    }
    match version {
        HttpVersion::Http1 => Box::pin(serve_http1(stream, service, options, stopping)).await,
        HttpVersion::Http2 => Box::pin(serve_http2(stream, service, options, stopping)).await,
    }
}

/// Runs a step before the first request: it has a timeout, and is not waited for once the server
/// stops.
async fn with_handshake_timeout<T>(
    within: Duration,
    stopping: &watch::Receiver<bool>,
    step: impl Future<Output = io::Result<T>>,
) -> Result<T, io::Error> {
    let mut stopping = stopping.clone();
    tokio::select! {
        biased;
        done = timeout(within, step) => done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
        () = stop(&mut stopping) => Err(io::ErrorKind::ConnectionAborted.into()),
    }
}

/// Waits until the server is to stop.
async fn stop(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

async fn serve_http2<S, A>(
    stream: Replay<S>,
    service: ConnectionService<A>,
    options: &Options,
    mut stopping: watch::Receiver<bool>,
) -> Served
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    A: App,
{
    let pending = Arc::clone(&service.pending);
    let life = Arc::clone(&service.life);
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(options.streams_per_connection)
        .max_header_list_size(HEADER_LIST)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(LOCAL_RESETS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .adaptive_window(false)
        .max_send_buf_size(SEND_BUFFER)
        .serve_connection(
            TokioIo::new(FrameLimited::new(stream, PREFACE.len(), Arc::clone(&life))),
            service,
        );
    let mut connection = pin!(connection);
    let end = tokio::select! {
        biased;
        ended = connection.as_mut() => return Ok(ended?),
        () = stop(&mut stopping) => None,
        end = life.end(options.age) => Some(end),
    };
    if end == Some(End::Unread) {
        // Its next read sends GOAWAY and fails. If it is not ready to read, the client does not
        // even accept data sent before.
        let _ = connection.as_mut().now_or_never();
        return Err("response not read in time".into());
    }
    connection.as_mut().graceful_shutdown();
    if let Some(End::Leave(reason)) = end {
        tracing::debug!(reason, "sent GOAWAY");
        let over = async {
            while timeout(STREAM_DRAIN, connection.as_mut()).await.is_err() && life.is_busy() {}
        };
        tokio::select! {
            // Responses may be read to their end, for as long as any response may.
            _ = timeout(life.unread(), over) => return Ok(()),
            () = stop(&mut stopping) => {}
        }
    }
    // It ends by itself once the client has confirmed the GOAWAY and all calls are done. Neither a
    // disconnected client nor an endless stream is waited for: only calls without a response are.
    while let Err(_still_open) = timeout(STREAM_DRAIN, connection.as_mut()).await {
        if pending.load(Relaxed) == 0 {
            break;
        }
    }
    Ok(())
}

async fn serve_http1<S, A>(
    stream: Replay<S>,
    service: ConnectionService<A>,
    options: &Options,
    mut stopping: watch::Receiver<bool>,
) -> Served
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    A: App,
{
    let life = Arc::clone(&service.life);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // Runs between requests too, so it is also the idle timeout.
        .header_read_timeout(options.handshake)
        .max_buf_size(HEADER_LIST as usize)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let end = tokio::select! {
        biased;
        ended = connection.as_mut() => return Ok(ended?),
        () = stop(&mut stopping) => None,
        end = life.end(HTTP1_MAX_AGE) => Some(end),
    };
    if end == Some(End::Unread) {
        return Err("response not read in time".into());
    }
    connection.as_mut().graceful_shutdown();
    if end.is_some() {
        tokio::select! {
            // Its response may be read to its end, for as long as any response may.
            over = timeout(life.unread(), connection.as_mut()) => return Ok(over??),
            () = stop(&mut stopping) => {}
        }
    }
    timeout(options.drain, connection).await??;
    Ok(())
}

/// Service for the requests of one connection: adds the peer.
struct ConnectionService<A> {
    // The app is called by `&mut` and the connection calls by `&`; a clone for each request would
    // make all workers share its reference counts.
    app: RefCell<A>,
    origin: Origin,
    certificates: Option<PeerCertificates>,
    /// Options with the proxies, if the peer is one whose requests name their clients.
    proxies: Option<Arc<Options>>,
    life: Arc<Life>,
    pending: Arc<AtomicUsize>,
}

impl<A> ConnectionService<A> {
    fn new(app: A, origin: Origin, life: Arc<Life>) -> Self {
        let (certificates, proxies, pending) = Default::default();
        Self { app: RefCell::new(app), origin, certificates, proxies, life, pending }
    }

    /// Returns the origin of a request: of its client's address, if a proxy forwards it.
    fn origin(&self, headers: &HeaderMap) -> Origin {
        let mut origin = self.origin.clone();
        if let Some(options) = &self.proxies {
            match forwarded::client(&options.proxies, headers) {
                Forwarded::By(client) => origin.peer = Peer::Ip(client),
                Forwarded::Nothing => {}
                Forwarded::Malformed => {
                    METRICS.forwarded_malformed.inc();
                }
            }
        }
        origin
    }
}

impl<A: App> Service<Request<Incoming>> for ConnectionService<A> {
    type Response = Response<A::ResponseBody>;
    type Error = Infallible;
    type Future = PendingResponse<A::ResponseFuture>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let origin = self.origin(request.headers());
        request.extensions_mut().insert(origin);
        if let Some(certificates) = &self.certificates {
            request.extensions_mut().insert(certificates.clone());
        }
        self.life.touch();
        self.pending.fetch_add(1, Relaxed);
        PendingResponse {
            response: self.app.borrow_mut().call(request),
            count: Arc::clone(&self.pending),
        }
    }
}

/// Call whose response has not begun.
struct PendingResponse<F> {
    response: F,
    count: Arc<AtomicUsize>,
}

impl<F: Future + Unpin> Future for PendingResponse<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        Pin::new(&mut self.response).poll(cx)
    }
}

impl<F> Drop for PendingResponse<F> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Relaxed);
    }
}
