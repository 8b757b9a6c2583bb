//! Wiring: open the store, load the keys, build the services, stack the layers, serve, drain.

mod bootstrap;
mod housekeeping;
mod open;

use std::{
    future::Future,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::Arc,
};

use axum::Router;
use secrecy::SecretString;
use tokio::sync::watch;

use crate::{
    api::{
        grpc::Door,
        guard::{Guard, Methods},
        http::{self, Published},
        listen::{self, TlsReloader},
        metrics,
    },
    clock::Clock,
    config::Config,
    model::ClientId,
    oauth::Authority,
    proto,
};

/// What to serve.
pub struct Options {
    /// Checked configuration.
    pub config: Config,
    /// Whether this is a developer's machine: a missing master key is made beside the data, a first client is created, and
    /// reflection is on.
    pub dev: bool,
    /// Whether a first client is created where there is none.
    pub bootstrap: bool,
    /// Where the time comes from; `None` means the system.
    pub clock: Option<Arc<dyn Clock>>,
}

/// The first client, which may administer.
pub struct Bootstrap {
    /// Its id.
    pub client_id: ClientId,
    /// Its secret, when it was made in this start; it is not known afterwards.
    pub client_secret: Option<SecretString>,
}

/// What is being served.
pub struct Started {
    /// The address listened on, with the real port.
    pub address: SocketAddr,
    /// The `iss` of every token.
    pub issuer: String,
    /// Where the data is.
    pub data_dir: PathBuf,
    /// The first client, in development or when asked for.
    pub bootstrap: Option<Bootstrap>,
    /// Whether the port speaks TLS.
    pub tls: bool,
}

/// Why the server could not start, in one line.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// What is configured cannot be served: nothing is wrong with the machine.
    #[error("{0}")]
    Configuration(String),
    /// The machine would not.
    #[error("{0}")]
    Failed(String),
}

impl StartError {
    /// For the shell: 64 where the configuration must be mended, otherwise 1.
    pub const fn exit_code(&self) -> i32 {
        match self {
            Self::Configuration(_) => 64,
            Self::Failed(_) => 1,
        }
    }

    fn failed(what: &'static str) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> Self {
        move |error| Self::Failed(format!("{what}: {error}"))
    }
}

/// Serves until `shutdown` resolves and the calls in flight have ended. `started` is called once the port answers.
pub async fn run(
    options: Options,
    started: impl FnOnce(&Started) + Send,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), StartError> {
    let config = &options.config;
    let tls = tls(config)?;
    let listener = TcpListener::bind(config.listen)
        .map_err(|error| StartError::Failed(format!("cannot listen on {}: {error}", config.listen)))?;
    let address = listener.local_addr().map_err(|error| StartError::Failed(format!("cannot listen: {error}")))?;
    let issuer = issuer(config, address, tls.is_some());

    let opened = open::open(&options, &issuer).await?;
    let bootstrap = match options.dev || options.bootstrap {
        true => bootstrap::first_client(&opened).await?,
        false => None,
    };
    let (stop, stopping) = watch::channel(false);
    let (health, app) = app(&options, &opened, &stopping).await?;
    let metrics_listener = metrics::listen(&config.metrics_listen, options.dev).await.map_err(StartError::failed("metrics"))?;
    let background = housekeeping::start(&opened, tls.clone(), stopping.clone());

    let mut drained = stopping.clone();
    let options = listen::Options::new(&config.limits, tls.clone());
    let serving = listen::serve(listener, app, options, async move {
        let _ = drained.wait_for(|stopping| *stopping).await;
    });
    let serving = tokio::spawn(serving);
    tracing::info!(%address, issuer, tls = tls.is_some(), "serving");
    started(&Started { address, issuer, data_dir: opened.data_dir.clone(), bootstrap, tls: tls.is_some() });

    shutdown.await;
    tracing::info!("draining");
    health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
    let _ = stop.send(true);
    let summary = serving.await.map_err(|error| StartError::Failed(format!("listener: {error}")))?;
    background.finish().await;
    metrics_listener.abort();
    opened.close().await;
    tracing::info!(accepted = summary.accepted, aborted = summary.aborted, "stopped");
    Ok(())
}

fn tls(config: &Config) -> Result<Option<Arc<TlsReloader>>, StartError> {
    if config.tls == crate::config::Tls::default() {
        return Ok(None);
    }
    TlsReloader::new(&config.tls).map(Arc::new).map(Some).map_err(|error| StartError::Configuration(error.to_string()))
}

fn issuer(config: &Config, address: SocketAddr, tls: bool) -> String {
    match (config.issuer.is_empty(), tls) {
        (false, _) => config.issuer.clone(),
        (true, true) => format!("https://{address}"),
        (true, false) => format!("http://{address}"),
    }
}
