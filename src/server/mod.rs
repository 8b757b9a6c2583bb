//! Wiring: open the store, load the keys, build the services, stack the layers, serve, drain.

mod administer;
mod app;
mod bootstrap;
mod maintenance;
mod measurements;
mod open;
mod probes;
mod ready;
pub mod retention;
mod service_record;
mod stores;
mod waiting;

use std::{future::Future, net::SocketAddr, path::PathBuf, pin::pin, sync::Arc, time::Duration};

use secrecy::SecretString;
use tokio::{
    net::TcpListener,
    sync::watch,
    time::{Instant, sleep_until},
};

use self::{app::App, open::Opened};
use crate::{
    api::listen::{self, TlsReloader},
    clock::Clock,
    config::{self, Config},
    model::ClientId,
    store::Store,
};

pub use self::administer::{ClockReading, reset_administrator, reset_clock};
pub use self::service_record::{ServiceRecord, connectable};
pub use crate::api::listen::{connections_within, highest_limit as open_files};

/// Options of a server.
pub struct Options {
    /// Checked configuration.
    pub config: Config,
    /// Development mode: a missing master key is created beside the data, a first client is
    /// created, and reflection is on.
    pub dev: bool,
    /// Creates a first client if there is none.
    pub bootstrap: bool,
    /// Serves a data directory that may be an older copy.
    pub accept_rollback: bool,
    /// A store that is already open; `None` opens the configured one.
    pub store: Option<Arc<dyn Store>>,
    /// Source of the time; `None` means the system's clock.
    pub clock: Option<Arc<dyn Clock>>,
}

/// The first client, an administrator.
pub struct Bootstrap {
    /// Its id.
    pub client_id: ClientId,
    /// Its secret, if this start generated it; it is not known later.
    pub client_secret: Option<SecretString>,
}

/// A running server.
pub struct Started {
    /// Address of the listener, with the real port.
    pub address: SocketAddr,
    /// The `iss` of every token.
    pub issuer: String,
    /// Directory of the data.
    pub data_dir: PathBuf,
    /// The first client, in development mode or on request.
    pub bootstrap: Option<Bootstrap>,
    /// True if the port uses TLS.
    pub tls: bool,
    /// True if the port serves reflection.
    pub reflection: bool,
}

/// Reason that the server could not start, in one line.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is invalid: a restart does not help.
    #[error("{0}")]
    Configuration(String),
    /// The store cannot be opened at this time: a later attempt may succeed.
    #[error("{detail}")]
    Transient {
        /// Reason for everyone to read; names no address.
        reason: &'static str,
        /// The same for the operator.
        detail: String,
    },
    /// The system, the network or the store failed.
    #[error("{0}")]
    Failed(String),
}

impl StartError {
    /// Exit code of the process: 64 if the configuration is invalid, otherwise 1.
    pub const fn exit_code(&self) -> i32 {
        match self {
            Self::Configuration(_) => 64,
            Self::Transient { .. } | Self::Failed(_) => 1,
        }
    }

    /// Adds the consequence of the failure.
    fn and(self, consequence: &str) -> Self {
        let with = |text: String| format!("{text}; {consequence}");
        match self {
            Self::Configuration(text) => Self::Configuration(with(text)),
            Self::Transient { reason, detail } => Self::Transient { reason, detail: with(detail) },
            Self::Failed(text) => Self::Failed(with(text)),
        }
    }

    fn failed(what: &'static str) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> Self {
        move |error| Self::Failed(format!("{what}: {}", with_sources(error.as_ref())))
    }
}

/// Formats an error and its sources in one line.
fn with_sources(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |error| error.source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

/// Serves until `shutdown` resolves and the calls in flight are finished. `started` is called when
/// the port accepts calls; if it fails, the first client's new secret is lost: the client is deleted
/// again and the server stops.
pub async fn run(
    options: Options,
    started: impl FnOnce(&Started) -> Result<(), String> + Send,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), StartError> {
    let config = &options.config;
    let open_files = listen::raise_limit();
    let tls_on = config.tls != config::Tls::default();
    if !listen::permitted(config.listen, tls_on, config.insecure) {
        return Err(StartError::Configuration(format!(
            "listen: {} is not a loopback address and TLS is off: set tls.cert_file and \
             tls.key_file, or insecure = true",
            config.listen
        )));
    }
    let listener = listen::bind(config.listen).map_err(|error| {
        StartError::Failed(format!("cannot listen on {}: {error}", config.listen))
    })?;
    let cannot_listen =
        |error: std::io::Error| StartError::Failed(format!("cannot listen: {error}"));
    let address = listener.local_addr().map_err(cannot_listen)?;
    let issuer = issuer(config, address, tls_on);
    let listener = listener.into_std().map_err(cannot_listen)?;
    let mut shutdown = pin!(shutdown);
    let probes = probes::bind(config)?;
    let doors = waiting::Doors { port: &listener, probes: probes.as_ref(), open_files };
    let opening = Box::pin(waiting::open(&options, &issuer, doors, &mut shutdown));
    let Some(opened) = opening.await? else {
        tracing::info!("stopped before the store was open");
        return Ok(());
    };
    let listener = TcpListener::from_std(listener).map_err(cannot_listen)?;
    let bootstrap = if options.dev || options.bootstrap {
        bootstrap::first_client(&opened).await?
    } else {
        None
    };
    if options.bootstrap && bootstrap.as_ref().is_none_or(|first| first.client_secret.is_none()) {
        tracing::info!(
            "--bootstrap created no client, because the store has clients; if no administrator is \
             left, run `jeton admin reset`"
        );
    }
    let mut unseen = bootstrap
        .as_ref()
        .filter(|bootstrap| bootstrap.client_secret.is_some())
        .map(|bootstrap| bootstrap.client_id.clone());
    let started = |address, tls| {
        started(&Started {
            address,
            issuer,
            data_dir: opened.data_dir.clone(),
            bootstrap,
            tls,
            reflection: options.config.reflection,
        })
    };
    let listeners = Listeners { port: listener, address, probes, open_files };
    let served = serve(&options, &opened, listeners, started, &mut unseen, shutdown).await;
    let served = match (served, unseen) {
        (Err(error), Some(first)) => Err(bootstrap::take_back(&opened, &first, error).await),
        (served, _) => served,
    };
    opened.close().await;
    let summary = served?;
    tracing::info!(
        accepted = summary.accepted,
        refused = summary.refused,
        aborted = summary.aborted,
        "stopped"
    );
    Ok(())
}

/// Bound listeners of a server.
struct Listeners {
    port: TcpListener,
    address: SocketAddr,
    probes: Option<std::net::TcpListener>,
    open_files: Option<u64>,
}

/// Serves an open store. `unseen` is a first client whose secret is not shown yet; `started` shows
/// it.
async fn serve(
    options: &Options,
    opened: &Opened,
    listeners: Listeners,
    started: impl FnOnce(SocketAddr, bool) -> Result<(), String> + Send,
    unseen: &mut Option<ClientId>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<listen::Summary, StartError> {
    let config = &options.config;
    let Listeners { port, address, probes, open_files } = listeners;
    let tls = TlsReloader::open(&config.tls, opened.clock.clone())
        .map_err(|error| StartError::Configuration(format!("tls: {}", with_sources(&error))))?;
    let tls_on = tls.is_some();
    let (stop, stopping) = watch::channel(false);
    let listening = listen::Options::new(&config.limits, tls.clone());
    let listening = listening.within(open_files).behind(&config.proxy);
    let app = App::build(options, opened, listening.heartbeats.clone(), &stopping).await?;
    let metrics = app.serve_metrics(options, stopped(stopping.clone())).await?;
    let probes = probes::serve(config, probes, app.probes.clone(), stopped(stopping.clone()))?;
    let tokens = opened.services.standing.tokens.clone();
    let readiness = ready::report_readiness(tokens, opened.clock.clone(), app.health.clone());
    opened
        .services
        .admin
        .keys
        .adopt_algorithm()
        .await
        .map_err(|error| StartError::failed("keys.algorithm")(error.into()))?;
    let background = maintenance::start(opened, tls, &stopping);
    measurements::take_once(opened.clock.now(), &listening);
    let serving = tokio::spawn(listen::serve(port, app.guarded, listening, stopped(stopping)));
    if config.audit.issue == config::Issue::Batched {
        tracing::warn!(
            "audit.issue is batched: a crash may lose audit records of tokens issued in the last \
             50 ms"
        );
    }
    tracing::info!(%address, issuer = %opened.services.terms.issuer, tls = tls_on, "serving");
    opened.record_start(address).await?;
    let record =
        ServiceRecord { address, probe_address: probes.address, ..ServiceRecord::of(config) };
    if let Err(error) = record.write(config) {
        tracing::warn!(%error, "cannot leave the address for probes in the data directory");
    }
    let lost = match (started(address, tls_on), unseen.take()) {
        (Ok(()), _) => {
            shutdown.await;
            None
        }
        (Err(problem), Some(first)) => {
            Some(bootstrap::take_back(opened, &first, StartError::Failed(problem)).await)
        }
        (Err(problem), None) => Some(StartError::Failed(problem)),
    };
    // No task reports "serving" after this.
    readiness.abort();
    let _ = readiness.await;
    // Balancers see the status before the port closes and connections get a GOAWAY.
    app.health.leave().await;
    let delay_seconds = config.limits.shutdown_delay_seconds;
    if delay_seconds > 0 && lost.is_none() {
        tracing::info!(delay_seconds, "not ready, still serving");
        sleep_until(Instant::now() + Duration::from_secs(delay_seconds)).await;
    }
    tracing::info!("draining");
    let _ = stop.send(true);
    let summary =
        serving.await.map_err(|error| StartError::Failed(format!("listener: {error}")))?;
    let summary = summary.map_err(|error| StartError::Failed(format!("listener: {error}")))?;
    ServiceRecord::remove(config);
    probes.finish().await;
    background.finish().await;
    if let Some(metrics) = metrics {
        let _ = metrics.await;
    }
    lost.map_or(Ok(summary), Err)
}

/// Returns the configured issuer, else the URL of the port: one that can be connected to.
fn issuer(config: &Config, address: SocketAddr, tls: bool) -> String {
    let address = connectable(address);
    match (config.issuer.is_empty(), tls) {
        (false, _) => config.issuer.clone(),
        (true, true) => format!("https://{address}"),
        (true, false) => format!("http://{address}"),
    }
}

/// Resolves when the server must stop.
async fn stopped(mut stopping: watch::Receiver<bool>) {
    // An error means that the sender, and with it the server, is gone.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}
