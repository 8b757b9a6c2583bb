//! The services of the port, stacked: guard around everything, then gRPC by method and HTTP by
//! page.

use std::{sync::Arc, time::Duration};

use axum::Router;
use tokio::{sync::watch, task::JoinHandle};
use tonic_reflection::server::Builder as Reflection;

use super::{
    Options, StartError,
    open::Opened,
    ready::{self, Health},
};
use crate::{
    api::{
        grpc::{Dispatch, GrpcServices, MAX_MESSAGE},
        guard::{Admit, Guard, Methods, quiet_panics},
        http::{self, Published},
        listen::{self, Heartbeats},
        metrics::{self, Exposition},
    },
    config::Config,
    proto,
};

/// All services of the port.
pub(super) struct App {
    pub(super) guarded: Guard<Dispatch>,
    /// Probes and public documents alone.
    pub(super) probes: Router,
    pub(super) health: Health,
    heartbeats: Heartbeats,
    methods: &'static Methods,
}

impl App {
    pub(super) async fn build(
        options: &Options,
        opened: &Opened,
        heartbeats: Heartbeats,
        stopping: &watch::Receiver<bool>,
    ) -> Result<Self, StartError> {
        quiet_panics();
        let failed = |what| {
            move |error: Box<dyn std::error::Error + Send + Sync>| StartError::failed(what)(error)
        };
        let health_descriptors = tonic_health::pb::FILE_DESCRIPTOR_SET;
        let methods = Methods::leaked(&[
            proto::DESCRIPTORS,
            health_descriptors,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ])
        .map_err(|error| failed("descriptors")(error.into()))?;
        let (reporter, health_service) = tonic_health::server::health_reporter();

        let grpc = GrpcServices::new(opened.services.clone(), stopping.clone());
        let mut services = grpc_services();
        let mut standard = tonic::service::Routes::builder();
        let health_service = health_service.max_decoding_message_size(MAX_MESSAGE);
        let mut probes = tonic::service::Routes::builder();
        probes.add_service(health_service.clone());
        standard.add_service(health_service);
        if options.config.reflection || options.dev {
            let build = || {
                Reflection::configure()
                    .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
                    .register_encoded_file_descriptor_set(health_descriptors)
                    // With it grpcurl prints the details of errors instead of their bytes.
                    .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            };
            let v1 = build().build_v1().map_err(|error| failed("reflection")(error.into()))?;
            let v1alpha =
                build().build_v1alpha().map_err(|error| failed("reflection")(error.into()))?;
            standard
                .add_service(v1.max_decoding_message_size(MAX_MESSAGE))
                .add_service(v1alpha.max_decoding_message_size(MAX_MESSAGE));
            services.push("grpc.reflection.v1.ServerReflection".to_owned());
        }
        let token_service = grpc.token_service();
        let grpc = grpc.routes().merge(standard.routes().into_axum_router().reset_fallback());
        let services: Arc<[String]> = services.into();
        let health = Health::serving(reporter, services.clone()).await;
        let published = published(&options.config, opened, heartbeats.clone(), services);
        let ready = health.unless_leaving(published.ready);
        let published = Published { ready, ..published };
        let probes = http::app(probes.routes().into_axum_router(), published.clone());
        let app = Dispatch::new(token_service, http::app(grpc, published));
        let longest = Duration::from_secs(options.config.limits.deadline_seconds);
        let guarded = Guard::new(app, opened.clock.clone(), longest, methods, admit(opened));
        Ok(Self { guarded, probes, health, heartbeats, methods })
    }

    /// Serves the metrics on a listener of their own, if one is configured. In development mode a
    /// port that is in use does not prevent the start.
    pub(super) async fn serve_metrics(
        &self,
        options: &Options,
        stopped: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Option<JoinHandle<()>>, StartError> {
        let configured = &options.config.metrics_listen;
        if configured.is_empty() {
            return Ok(None);
        }
        let address = configured.parse().map_err(|_| {
            StartError::Configuration(
                "metrics_listen: must be empty or an address and port".to_owned(),
            )
        })?;
        let config = &options.config;
        if !listen::permitted(address, false, config.insecure || config.metrics_insecure) {
            return Err(StartError::Configuration(format!(
                "metrics_listen: {address} is not a loopback address: use a loopback address, or \
                 set metrics_insecure = true"
            )));
        }
        let listener = match listen::bind(address) {
            Ok(listener) => listener,
            Err(error) if options.dev => {
                tracing::warn!(
                    %address, %error,
                    "cannot listen on metrics_listen, metrics are off"
                );
                return Ok(None);
            }
            Err(error) => {
                return Err(StartError::Failed(format!("cannot listen on {address}: {error}")));
            }
        };
        let exposition = Exposition::new(self.methods);
        let heartbeats = self.heartbeats.clone();
        Ok(Some(tokio::spawn(async move {
            if let Err(error) = metrics::serve(listener, exposition, heartbeats, stopped).await {
                tracing::error!(%error, "metrics listener failed");
            }
        })))
    }
}

/// Returns the admission check: every request counts against the budget of its peer.
fn admit(opened: &Opened) -> Admit {
    let services = opened.services.clone();
    Arc::new(move |call| services.limits.peer(call.peer, call.now))
}

fn published(
    config: &Config,
    opened: &Opened,
    heartbeats: Heartbeats,
    grpc_services: Arc<[String]>,
) -> Published {
    let tokens = opened.services.standing.tokens.clone();
    let store = opened.store.clone();
    let writes = ready::shared(Arc::new(move || {
        let store = store.clone();
        Box::pin(async move { store.ready().await.is_ok() })
    }));
    Published {
        issuer: opened.services.terms.issuer.clone(),
        alive: Arc::new(move || heartbeats.are_recent()),
        ready: ready::unless_clock_wrong(
            opened.clock.clone(),
            ready::unless_stale(tokens.clone(), writes),
        ),
        // Served while this node is stale too: see `standing`.
        jwks: Arc::new(move || tokens.verifying_keys().jwks().clone()),
        jwks_max_age: Duration::from_secs(config.keys.publish_ahead_seconds),
        grpc_services,
    }
}

fn grpc_services() -> Vec<String> {
    [
        "jeton.token.v1.TokenService",
        "jeton.admin.v1.ClientService",
        "jeton.admin.v1.AudienceService",
        "jeton.admin.v1.KeyService",
        "jeton.admin.v1.RevocationService",
    ]
    .into_iter()
    .chain(["jeton.admin.v1.AuditService", "grpc.health.v1.Health"])
    .map(str::to_owned)
    .collect()
}
