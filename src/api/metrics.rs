//! Metrics for Prometheus, on a listener of their own that is not public.

use std::{
    future::Future,
    io,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use axum::{Router, extract::State, routing::get};
use http::{StatusCode, header};
use metrics::SetRecorderError;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use prometheus_client::encoding::prometheus_text;
use tokio::net::TcpListener;

use super::{
    guard::Methods,
    listen::{self, Heartbeats, Options, Summary},
};

/// Interval at which the samples of histograms are aggregated, so that they do not wait for a
/// scrape.
const UPKEEP: Duration = Duration::from_secs(5);

/// Content of `/metrics`.
#[derive(Clone)]
pub struct Exposition {
    recorded: PrometheusHandle,
    methods: &'static Methods,
}

impl Exposition {
    /// Installs the recorder of the `metrics` macros, for the whole process; a second call returns
    /// the same.
    ///
    /// # Errors
    /// If another recorder is installed already.
    pub fn install(
        methods: &'static Methods,
    ) -> Result<Self, SetRecorderError<PrometheusRecorder>> {
        static INSTALLED: Mutex<Option<PrometheusHandle>> = Mutex::new(None);
        let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(recorded) = &*installed {
            return Ok(Self { recorded: recorded.clone(), methods });
        }
        let recorder = PrometheusBuilder::new().build_recorder();
        let recorded = recorder.handle();
        metrics::set_global_recorder(recorder)?;
        *installed = Some(recorded.clone());
        Ok(Self { recorded, methods })
    }

    /// Renders the metrics in the text format of Prometheus.
    pub fn render(&self) -> String {
        self.recorded.render() + &self.methods.render()
    }
}

/// Serves `/metrics` and `/healthz` until `shutdown`; `serving` are the heartbeats of the port.
/// [`listen::permitted`] decides whether the address may be opened.
///
/// # Errors
/// Those of [`listen::serve`].
pub async fn serve(
    listener: TcpListener,
    shown: Exposition,
    serving: Heartbeats,
    shutdown: impl Future<Output = ()>,
) -> io::Result<Summary> {
    let options = Options {
        connections: 64,
        connections_per_peer: 64,
        streams_per_connection: 16,
        handshake: Duration::from_secs(10),
        unread: Duration::from_secs(30),
        idle: Duration::from_secs(300),
        age: Duration::from_secs(3_600),
        drain: Duration::from_secs(1),
        workers: 1,
        tls: None,
        heartbeats: Heartbeats::default(),
    };
    let recorded = shown.recorded.clone();
    let tidy = async move {
        let mut upkeep = tokio::time::interval(UPKEEP);
        loop {
            upkeep.tick().await;
            recorded.run_upkeep();
        }
    };
    tokio::select! {
        summary = listen::serve(listener, router(shown, serving), options, shutdown) => summary,
        () = tidy => Ok(Summary::default()),
    }
}

fn router(shown: Exposition, serving: Heartbeats) -> Router {
    let page = |State(shown): State<Exposition>| async move {
        ([(header::CONTENT_TYPE, prometheus_text::CONTENT_TYPE)], shown.render())
    };
    let healthz = async move || {
        if serving.are_recent() {
            (StatusCode::OK, "alive\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "stuck\n")
        }
    };
    Router::new().route("/metrics", get(page)).route("/healthz", get(healthz)).with_state(shown)
}
