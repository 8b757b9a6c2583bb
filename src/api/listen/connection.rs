//! One connection, from its first byte to its last.

use std::{
    cell::RefCell,
    convert::Infallible,
    future::Future,
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::FutureExt;
use http::{Request, Response};
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
    frames::Counted,
    life::{End, Life},
    preface::{PREFACE, Replay, Speech, listen_to},
    sites::Member,
    tls::TlsReloader,
};
use crate::{
    api::guard::{Account, Origin},
    model::Peer,
};

/// How long an HTTP/2 connection may be silent before it is asked whether it is still there, and
/// how long it has to say so.
const PING_AFTER: Duration = Duration::from_secs(20);
const PING_ANSWER: Duration = Duration::from_secs(10);
/// How long an HTTP/1.1 connection is kept.
const HTTP1_AGE: Duration = Duration::from_secs(120);
/// How long an answer that has begun may go on once the server stops.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Header list of a request, as HPACK counts it.
const HEADER_LIST: u32 = 16 * 1024;
/// Flow control: a call is a few hundred bytes, a large batch takes some round trips more. The
/// second is what a connection can make us hold that no handler has asked for.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 512 * 1024;
/// Bytes of replies held for a stream whose client does not read.
const SEND_BUFFER: usize = 64 * 1024;
/// Resets: those of streams not yet looked at (rapid reset), and our own for malformed ones. tonic
/// and hyper differ on both; a test holds them.
const PENDING_RESETS: usize = 20;
const LOCAL_RESETS: usize = 256;

/// Serves it. Whatever goes wrong is the peer's own business and worth a debug line.
pub(super) async fn run<A: App>(
    accepted: Accepted,
    app: A,
    options: Arc<Options>,
    stopping: watch::Receiver<bool>,
) {
    let Accepted { stream, address, place, load: _load, number } = accepted;
    let member = Member::enter(address);
    let origin =
        Origin { peer: Peer::Ip(address), account: Account::of_this_worker(member.account()) };
    let life = Arc::new(Life::new(
        Arc::clone(&origin.account),
        place.seat(),
        member.room(),
        &options,
        number,
    ));
    let served = match TcpStream::from_std(stream) {
        Ok(stream) => open(stream, Answerer::new(app, origin, life), &options, stopping).await,
        Err(error) => Err(error.into()),
    };
    if let Err(error) = served {
        tracing::debug!(peer = %address, error, "connection failed");
    }
}

type Served = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// With TLS or without. Each stage of a connection is a future in a box of its own: inside each
/// other they would have an idle connection take the room of all stages it could have come through.
async fn open<A: App>(
    stream: TcpStream,
    answerer: Answerer<A>,
    options: &Options,
    stopping: watch::Receiver<bool>,
) -> Served {
    match &options.tls {
        Some(tls) => Box::pin(secure(stream, tls, answerer, options, stopping)).await,
        None => Box::pin(speak(stream, None, answerer, options, stopping)).await,
    }
}

/// The TLS handshake.
async fn secure<A: App>(
    stream: TcpStream,
    tls: &TlsReloader,
    mut answerer: Answerer<A>,
    options: &Options,
    stopping: watch::Receiver<bool>,
) -> Served {
    let stream =
        opening(options.handshake, &stopping, TlsAcceptor::from(tls.current()).accept(stream))
            .await?;
    let (_, session) = stream.get_ref();
    let agreed = match session.alpn_protocol() {
        Some(TlsReloader::HTTP2) => Some(Speech::Http2),
        Some(_) => Some(Speech::Http1),
        None => None,
    };
    let certificates = session
        .peer_certificates()
        .map(|chain| chain.iter().map(|one| one.clone().into_owned()).collect());
    answerer.certificates = certificates.map(PeerCertificates);
    Box::pin(speak(stream, agreed, answerer, options, stopping)).await
}

/// Finds out which HTTP it is and speaks it.
async fn speak<S, A>(
    stream: S,
    agreed: Option<Speech>,
    answerer: Answerer<A>,
    options: &Options,
    stopping: watch::Receiver<bool>,
) -> Served
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    A: App,
{
    let (speech, stream) = opening(options.handshake, &stopping, listen_to(stream)).await?;
    if agreed.is_some_and(|agreed| agreed != speech) {
        return Err("protocol differs from the one negotiated by ALPN".into());
    }
    match speech {
        Speech::Http1 => Box::pin(speak_http1(stream, answerer, options, stopping)).await,
        Speech::Http2 => Box::pin(speak_http2(stream, answerer, options, stopping)).await,
    }
}

/// What comes before the first request: it has a deadline, and is not worth waiting for once the
/// server stops.
async fn opening<T>(
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

async fn speak_http2<S, A>(
    stream: Replay<S>,
    answerer: Answerer<A>,
    options: &Options,
    mut stopping: watch::Receiver<bool>,
) -> Served
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    A: App,
{
    let unanswered = Arc::clone(&answerer.unanswered);
    let life = Arc::clone(&answerer.life);
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_ANSWER)
        .max_concurrent_streams(options.streams_per_connection)
        .max_header_list_size(HEADER_LIST)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(LOCAL_RESETS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .adaptive_window(false)
        .max_send_buf_size(SEND_BUFFER)
        .serve_connection(
            TokioIo::new(Counted::new(stream, PREFACE.len(), Arc::clone(&life))),
            answerer,
        );
    let mut connection = pin!(connection);
    let end = tokio::select! {
        biased;
        ended = connection.as_mut() => return Ok(ended?),
        () = stop(&mut stopping) => None,
        end = life.end(options.age) => Some(end),
    };
    if end == Some(End::Unread) {
        // Its next read says GOAWAY and fails. If it is not ready to read, the client does not even
        // take what it was sent.
        let _ = connection.as_mut().now_or_never();
        return Err("response not read in time".into());
    }
    connection.as_mut().graceful_shutdown();
    if let Some(End::Leave(reason)) = end {
        tracing::debug!(reason, "sent GOAWAY");
        let over = async {
            while timeout(LAST_WORDS, connection.as_mut()).await.is_err() && life.is_busy() {}
        };
        tokio::select! {
            // Answers may be read to their end, for as long as any answer may.
            _ = timeout(life.unread(), over) => return Ok(()),
            () = stop(&mut stopping) => {}
        }
    }
    // It ends by itself once the client has confirmed the GOAWAY and all calls are over. Neither a
    // client that is gone nor a stream that never ends is waited for: only calls without an answer
    // are.
    while let Err(_still_open) = timeout(LAST_WORDS, connection.as_mut()).await {
        if unanswered.load(Relaxed) == 0 {
            break;
        }
    }
    Ok(())
}

async fn speak_http1<S, A>(
    stream: Replay<S>,
    answerer: Answerer<A>,
    options: &Options,
    mut stopping: watch::Receiver<bool>,
) -> Served
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    A: App,
{
    let life = Arc::clone(&answerer.life);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // Runs between requests too, so it is also how long an idle connection is kept.
        .header_read_timeout(options.handshake)
        .max_buf_size(HEADER_LIST as usize)
        .serve_connection(TokioIo::new(stream), answerer);
    let mut connection = pin!(connection);
    let end = tokio::select! {
        biased;
        ended = connection.as_mut() => return Ok(ended?),
        () = stop(&mut stopping) => None,
        end = life.end(HTTP1_AGE) => Some(end),
    };
    if end == Some(End::Unread) {
        return Err("response not read in time".into());
    }
    connection.as_mut().graceful_shutdown();
    if end.is_some() {
        tokio::select! {
            // Its answer may be read to its end, for as long as any answer may.
            over = timeout(life.unread(), connection.as_mut()) => return Ok(over??),
            () = stop(&mut stopping) => {}
        }
    }
    timeout(options.drain, connection).await??;
    Ok(())
}

/// Answers the requests of one connection: adds who the peer is.
struct Answerer<A> {
    // The app is called by `&mut` and the connection calls by `&`; a clone a request would have all
    // workers meet on its counts.
    app: RefCell<A>,
    origin: Origin,
    certificates: Option<PeerCertificates>,
    life: Arc<Life>,
    unanswered: Arc<AtomicUsize>,
}

impl<A> Answerer<A> {
    fn new(app: A, origin: Origin, life: Arc<Life>) -> Self {
        Self {
            app: RefCell::new(app),
            origin,
            certificates: None,
            life,
            unanswered: Arc::default(),
        }
    }
}

impl<A: App> Service<Request<Incoming>> for Answerer<A> {
    type Response = Response<A::Answer>;
    type Error = Infallible;
    type Future = Unanswered<A::Answering>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.origin.clone());
        if let Some(certificates) = &self.certificates {
            request.extensions_mut().insert(certificates.clone());
        }
        self.life.touch();
        self.unanswered.fetch_add(1, Relaxed);
        Unanswered {
            answering: self.app.borrow_mut().call(request),
            count: Arc::clone(&self.unanswered),
        }
    }
}

/// A call whose answer has not begun.
struct Unanswered<F> {
    answering: F,
    count: Arc<AtomicUsize>,
}

impl<F: Future + Unpin> Future for Unanswered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        Pin::new(&mut self.answering).poll(cx)
    }
}

impl<F> Drop for Unanswered<F> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Relaxed);
    }
}
