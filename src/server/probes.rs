//! Listener for probes and public documents alone, without TLS.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener as StdListener},
    time::Duration,
};

use axum::Router;
use tokio::{net::TcpListener, task::JoinHandle};

use super::StartError;
use crate::{api::listen, config::Config};

/// Connections at once.
const CONNECTIONS_MAX: usize = 256;
/// Connections of one peer: a node's probes all come from one.
const CONNECTIONS_PER_PEER_MAX: usize = 64;
/// Calls of one connection at once.
const STREAMS_MAX: u32 = 16;
/// Time for probes in flight to finish.
const DRAIN: Duration = Duration::from_secs(1);

/// The listener while it serves.
pub(super) struct Probes {
    /// Its address, with the real port; `None` without a listener.
    pub(super) address: Option<SocketAddr>,
    serving: Option<JoinHandle<()>>,
}

impl Probes {
    /// Waits for its end, after the stop of the server.
    pub(super) async fn finish(self) {
        if let Some(serving) = self.serving {
            let _ = serving.await;
        }
    }
}

/// Binds the listener. Where the port requires client certificates and no address is set, it is a
/// free port of this machine, for `jeton doctor`.
pub(super) fn bind(config: &Config) -> Result<Option<StdListener>, StartError> {
    let address = if config.probe_listen.is_empty() {
        if config.tls.client_ca_file.as_os_str().is_empty() {
            return Ok(None);
        }
        SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
    } else {
        config.probe_listen.parse().map_err(|_| {
            StartError::Configuration(
                "probe_listen: must be empty or an address and port".to_owned(),
            )
        })?
    };
    listen::bind(address)
        .and_then(TcpListener::into_std)
        .map(Some)
        .map_err(|error| StartError::Failed(format!("cannot listen on {address}: {error}")))
}

/// Returns the options of the listener.
pub(super) fn options(config: &Config) -> listen::Options {
    let options = listen::Options::new(&config.limits, None);
    listen::Options { connections: CONNECTIONS_MAX, workers: 1, drain: DRAIN, ..narrow(options) }
}

/// Narrows a listener that answers probes and nothing else: there is no budget of a peer's memory.
pub(super) fn narrow(options: listen::Options) -> listen::Options {
    listen::Options {
        connections_per_peer: options.connections_per_peer.min(CONNECTIONS_PER_PEER_MAX),
        streams_per_connection: options.streams_per_connection.min(STREAMS_MAX),
        ..options
    }
}

/// Serves `app` on the listener until `stopped`.
pub(super) fn serve(
    config: &Config,
    listener: Option<StdListener>,
    app: Router,
    stopped: impl Future<Output = ()> + Send + 'static,
) -> Result<Probes, StartError> {
    let Some(listener) = listener else {
        return Ok(Probes { address: None, serving: None });
    };
    let failed =
        |error: std::io::Error| StartError::Failed(format!("cannot listen for probes: {error}"));
    let address = listener.local_addr().map_err(failed)?;
    let listener = TcpListener::from_std(listener).map_err(failed)?;
    let options = options(config);
    let serving = tokio::spawn(async move {
        if let Err(error) = listen::serve(listener, app, options, stopped).await {
            tracing::error!(%error, "listener for probes failed");
        }
    });
    Ok(Probes { address: Some(address), serving: Some(serving) })
}
