//! Metrics for Prometheus, on a listener of their own that is not public.

use std::{future::Future, io, time::Duration};

use axum::{Router, extract::State, routing::get};
use http::{StatusCode, header};
use prometheus_client::encoding::prometheus_text;
use tokio::net::TcpListener;

use super::{
    guard::Methods,
    listen::{self, Heartbeats, Options, Proxies, Summary},
};
use crate::metrics::{METRICS, Metrics};

/// Content of `/metrics`.
#[derive(Clone, Copy)]
pub struct Exposition {
    metrics: &'static Metrics,
    methods: &'static Methods,
}

impl Exposition {
    /// Shows the metrics of this process, and the calls of a server.
    pub fn new(methods: &'static Methods) -> Self {
        Self { metrics: &METRICS, methods }
    }

    /// Renders the metrics in the text format of Prometheus.
    pub fn render(self) -> String {
        let mut registry = self.metrics.registry();
        registry.register_collector(self.methods.collector());
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = prometheus_text::encode(&mut text, &registry);
        text
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
        proxies: Proxies::default(),
    };
    listen::serve(listener, router(shown, serving), options, shutdown).await
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

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn exposition() -> Exposition {
        let metrics: &'static Metrics = Box::leak(Box::default());
        metrics.touch();
        let methods = Methods::leaked(&[crate::proto::DESCRIPTORS]).unwrap();
        Exposition { metrics, methods }
    }

    #[test]
    fn a_histogram_adds_up() {
        let shown = exposition();
        let method = shown.methods.find("/jeton.token.v1.TokenService/Token").unwrap();
        for micros in [50, 100, 101, 9_999_999] {
            method.handled(Code::Ok, Duration::from_micros(micros));
        }
        method.handled(Code::Unavailable, Duration::ZERO);
        let text = shown.render();
        let labels = "grpc_service=\"jeton.token.v1.TokenService\",grpc_method=\"Token\"";
        for expected in [
            format!("jeton_grpc_server_handled_total{{{labels},grpc_code=\"OK\"}} 4"),
            format!("jeton_grpc_server_handled_total{{{labels},grpc_code=\"Unavailable\"}} 1"),
            format!("jeton_grpc_server_handling_seconds_bucket{{{labels},le=\"0.0001\"}} 3"),
            format!("jeton_grpc_server_handling_seconds_bucket{{{labels},le=\"0.00025\"}} 4"),
            format!("jeton_grpc_server_handling_seconds_bucket{{{labels},le=\"+Inf\"}} 5"),
            format!("jeton_grpc_server_handling_seconds_count{{{labels}}} 5"),
        ] {
            assert!(text.lines().any(|line| line == expected), "{expected}\nin\n{text}");
        }
        assert!(!text.contains("BatchIntrospect"), "methods never called are not written");
    }

    /// Labels of the first series of a metric, without that of a bucket, as a cell of the table.
    fn labels(text: &str, name: &str) -> String {
        let series = text.lines().find(|line| {
            line.strip_prefix(name).is_some_and(|rest| {
                let rest = rest.strip_prefix("_bucket").unwrap_or(rest);
                rest.starts_with(['{', ' '])
            })
        });
        let Some((_, labels)) = series.and_then(|series| series.split_once('{')) else {
            return String::new();
        };
        let names = labels.split("\",").map(|label| label.split('=').next().unwrap());
        let names = names.filter(|name| *name != "le").map(|name| format!("`{name}`"));
        names.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn the_documents_list_every_metric() {
        let shown = exposition();
        let method = shown.methods.find("/jeton.token.v1.TokenService/Token").unwrap();
        method.handled(Code::Ok, Duration::ZERO);
        let text = shown.render();
        let help = |name: &str| {
            let prefix = format!("# HELP {name} ");
            text.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap().to_owned()
        };
        let mut rows: Vec<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .map(|line| {
                let (name, kind) = line.split_once(' ').unwrap();
                assert!(name.starts_with("jeton_"), "{name} has another prefix");
                format!("| `{name}` | {kind} | {} | {} |", labels(&text, name), help(name))
            })
            .collect();
        rows.sort();
        let table = rows.join("\n");
        let document = include_str!("../../docs/metrics.md");
        let listed: Vec<_> =
            document.lines().filter(|line| line.starts_with("| `jeton_")).collect();
        assert_eq!(listed.join("\n"), table, "docs/metrics.md must hold:\n{table}");
    }
}
