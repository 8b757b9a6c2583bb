//! Accept loop. It does nothing else, so that no connection can delay the next.

use std::{future::Future, io, pin::pin, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    time::MissedTickBehavior,
};

use super::{
    Proxies, Summary, connection_limits::ConnectionLimits, heartbeats::Heartbeat,
    workers::WorkerPool,
};

/// Shortest pause after an error that a retry at once would only meet again.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// Longest pause: a connection waits at most this much longer once there is room.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Interval at which the clock of the limits is updated, and of the heartbeat.
const CLOCK_TICK: Duration = Duration::from_millis(100);

/// Rules by which a connection may enter.
pub(super) struct Door<'a> {
    pub(super) limits: &'a ConnectionLimits,
    pub(super) proxies: &'a Proxies,
}

/// Accepts until `shutdown`; the listener is closed when this returns.
pub(super) async fn run(
    listener: TcpListener,
    door: &Door<'_>,
    pool: &mut WorkerPool,
    heartbeat: &Heartbeat,
    shutdown: impl Future<Output = ()>,
) -> Summary {
    let mut shutdown = pin!(shutdown);
    let mut summary = Summary::default();
    let mut pause = FIRST_PAUSE;
    let mut tick = tokio::time::interval(CLOCK_TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => return summary,
            _ = tick.tick() => {
                door.limits.tick();
                heartbeat.beat();
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                pause = FIRST_PAUSE;
                match admit(stream, address.ip().to_canonical(), door, pool) {
                    Ok(()) => summary.accepted += 1,
                    Err(reason) => {
                        summary.refused += 1;
                        crate::metrics::METRICS.connections_refused.count(reason);
                        tracing::debug!(peer = %address.ip(), reason, "connection refused");
                    }
                }
            }
            Err(error) if is_of_one_connection(&error) => {
                tracing::debug!(%error, "connection lost before accept")
            }
            Err(error) => {
                // No descriptors left, or no memory: the backlog stays readable, so without a pause
                // this loop would spin.
                tracing::warn!(
                    %error, pause_ms = pause.as_millis() as u64,
                    "cannot accept connections"
                );
                crate::metrics::METRICS.accept_errors.inc();
                if tokio::time::timeout(pause, &mut shutdown).await.is_ok() {
                    return summary;
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

fn admit(
    stream: TcpStream,
    address: std::net::IpAddr,
    door: &Door<'_>,
    pool: &mut WorkerPool,
) -> Result<(), &'static str> {
    // A proxy is many clients: what one of them may hold does not bound it.
    let is_proxy = door.proxies.announces(address) || door.proxies.forwards(address);
    let permit =
        if is_proxy { door.limits.enter_as_proxy(address) } else { door.limits.enter(address) };
    let permit = permit.map_err(super::connection_limits::LimitReached::as_str)?;
    // The worker registers the socket with its own runtime. Without TCP_NODELAY a reply waits for a
    // delayed ACK.
    let stream = stream.set_nodelay(true).and_then(|()| stream.into_std()).map_err(|_| "socket")?;
    pool.hand(stream, address, permit)
}

/// Returns true for an error of the one waiting connection, which says nothing about the next.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    [
        Kind::ConnectionAborted,
        Kind::ConnectionReset,
        Kind::ConnectionRefused,
        Kind::HostUnreachable,
        Kind::NetworkUnreachable,
        Kind::NetworkDown,
        Kind::Interrupted,
        Kind::TimedOut,
    ]
    .contains(&error.kind())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L10: an aborted connection costs nothing; exhausted descriptors cost a pause.
    #[test]
    fn only_errors_that_would_come_again_are_waited_out() {
        let of = |code| is_of_one_connection(&io::Error::from_raw_os_error(code));
        let (econnaborted, econnreset, eintr, enfile, emfile, enomem) = (103, 104, 4, 23, 24, 12);
        assert!([econnaborted, econnreset, eintr].into_iter().all(of));
        assert!(![enfile, emfile, enomem].into_iter().any(of));
    }
}
