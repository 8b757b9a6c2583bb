//! Start of a node whose store cannot be opened yet: it listens, is not ready, and tries again for
//! `store.start_patience_seconds`.

use std::{net, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::watch,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tonic_health::ServingStatus;

use super::{Options, StartError, open, open::Opened, probes, stopped, with_sources};
use crate::{
    api::{
        grpc::MAX_MESSAGE,
        http,
        listen::{self, TlsReloader},
    },
    clock::SystemClock,
    model::Timestamp,
};

/// Interval between two attempts.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Interval of the log while the reason stays the same.
const LOG_INTERVAL: Duration = Duration::from_secs(30);
/// Time that an attempt may take before probes get an answer.
const SILENT_MAX: Duration = Duration::from_millis(500);
/// Time for probes in flight to finish once the store is open.
const DRAIN: Duration = Duration::from_secs(1);

/// Listeners of a node.
#[derive(Clone, Copy)]
pub(super) struct Doors<'a> {
    /// The port.
    pub(super) port: &'a net::TcpListener,
    /// The listener for probes.
    pub(super) probes: Option<&'a net::TcpListener>,
    /// Limit on open files.
    pub(super) open_files: Option<u64>,
}

/// Opens the store. While that fails for a reason that may pass, probes and calls are
/// answered. Returns `None` if `shutdown` resolves before.
pub(super) async fn open(
    options: &Options,
    issuer: &str,
    doors: Doors<'_>,
    shutdown: impl Future<Output = ()>,
) -> Result<Option<Opened>, StartError> {
    let (reasons, reason) = watch::channel("the store is being opened");
    let mut opening = Box::pin(retry(options, issuer, &reasons));
    // A developer at a terminal wants the error, not the patience; a store that is given is open.
    if options.dev || options.store.is_some() {
        return opening.await.map(Some);
    }
    if let Ok(opened) = timeout(SILENT_MAX, &mut opening).await {
        return opened.map(Some);
    }
    let (stop, stopping) = watch::channel(false);
    let serving = serve(options, doors, reason, stopping).await?;
    let opened = tokio::select! {
        opened = &mut opening => opened.map(Some),
        () = shutdown => Ok(None),
    };
    let _ = stop.send(true);
    for task in serving {
        let _ = task.await;
    }
    opened
}

/// Opens the store, again and again while the reason of a failure may pass.
async fn retry(
    options: &Options,
    issuer: &str,
    reasons: &watch::Sender<&'static str>,
) -> Result<Opened, StartError> {
    let patience = if options.dev {
        Duration::ZERO
    } else {
        Duration::from_secs(options.config.store.start_patience_seconds)
    };
    let began = Instant::now();
    let mut logged = None::<(Instant, String)>;
    let mut attempts = interval(RETRY_INTERVAL);
    attempts.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        attempts.tick().await;
        match open::open(options, issuer, open::Purpose::Serve).await {
            Err(StartError::Transient { reason, detail }) if began.elapsed() < patience => {
                reasons.send_replace(reason);
                let is_news = logged
                    .as_ref()
                    .is_none_or(|(at, last)| *last != detail || at.elapsed() >= LOG_INTERVAL);
                if is_news {
                    tracing::warn!(
                        error = detail,
                        patience_seconds = patience.saturating_sub(began.elapsed()).as_secs(),
                        "cannot open the store, not ready, trying again"
                    );
                    logged = Some((Instant::now(), detail));
                }
            }
            opened => return opened,
        }
    }
}

/// Answers probes and refuses calls until the store is open.
async fn serve(
    options: &Options,
    doors: Doors<'_>,
    reason: watch::Receiver<&'static str>,
    stopping: watch::Receiver<bool>,
) -> Result<Vec<JoinHandle<()>>, StartError> {
    let config = &options.config;
    let clock = Arc::new(SystemClock::starting_at(Timestamp::EPOCH));
    let tls = TlsReloader::open(&config.tls, clock)
        .map_err(|error| StartError::Configuration(format!("tls: {}", with_sources(&error))))?;
    let (health, service) = tonic_health::server::health_reporter();
    health.set_service_status("", ServingStatus::NotServing).await;
    let mut grpc = tonic::service::Routes::builder();
    grpc.add_service(service.max_decoding_message_size(MAX_MESSAGE));
    let grpc = grpc.routes().into_axum_router();
    let app = http::starting(grpc, Arc::new(move || *reason.borrow()));
    let port = listen::Options::new(&config.limits, tls).within(doors.open_files);
    let port = port.behind(&config.proxy);
    let port = probes::narrow(port);
    let mut tasks = Vec::new();
    for (listener, mut options) in [(doors.port, port)]
        .into_iter()
        .chain(doors.probes.map(|probes| (probes, probes::options(config))))
    {
        options.drain = DRAIN;
        let listener = listener
            .try_clone()
            .and_then(TcpListener::from_std)
            .map_err(|error| StartError::Failed(format!("cannot listen: {error}")))?;
        let (app, stopping, health) = (app.clone(), stopping.clone(), health.clone());
        tasks.push(tokio::spawn(async move {
            // The reporter lives as long as its service.
            let _health = health;
            if let Err(error) = listen::serve(listener, app, options, stopped(stopping)).await {
                tracing::error!(%error, "cannot answer probes");
            }
        }));
    }
    Ok(tasks)
}
