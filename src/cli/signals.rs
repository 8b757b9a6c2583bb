//! Signals that stop the service, received on a thread of their own: it works whatever the threads
//! that serve, the log and the supervisor do.

use std::{io, process, task::Context, thread, time::Duration};

use futures_util::{
    Stream, StreamExt,
    stream::{poll_fn, select},
};
use sd_notify::NotifyState;
use tokio::{
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    time::Instant,
};

use crate::telemetry::LogQueue;

/// Time after the first signal from which on another one ends the process. A wrapper that passes a
/// signal on to its whole process group sends one stop as two signals.
const SECOND_SIGNAL_AFTER: Duration = Duration::from_millis(250);
/// Time to write the last log lines before the process is ended.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_millis(100);

/// Completes at the first SIGTERM or SIGINT; the next one from [`SECOND_SIGNAL_AFTER`] on exits the
/// process at once. SIGHUP is ignored: TLS files are reloaded when they change.
pub(super) fn shutdown(log: LogQueue) -> io::Result<impl Future<Output = ()> + Send> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let entered = runtime.enter();
    let mut signals = signals()?;
    let hangup = signal(SignalKind::hangup())?;
    drop(entered);
    let (stop, stopped) = oneshot::channel();
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let _ignored: Signal = hangup;
        runtime.block_on(async {
            let Some(first) = signals.next().await else { return };
            tracing::info!(signal = first, "stopping");
            notify_supervisor(NotifyState::Stopping);
            // There is no receiver if the server has failed and is ending.
            let _ = stop.send(());
            let second = second(&mut signals, Instant::now()).await;
            tracing::warn!(signal = second, "second signal, exiting without draining");
            log.flush_within(LOG_FLUSH_TIMEOUT);
            process::exit(128 + second);
        });
    })?;
    Ok(async move {
        // The sender lives as long as the process.
        let _ = stopped.await;
    })
}

/// Returns the numbers of the signals that stop the service, as they arrive.
fn signals() -> io::Result<impl Stream<Item = i32> + Send + Unpin> {
    let of = |kind: SignalKind| {
        let number = kind.as_raw_value();
        let mut received = signal(kind)?;
        let next =
            move |cx: &mut Context<'_>| received.poll_recv(cx).map(|some| some.map(|()| number));
        Ok::<_, io::Error>(poll_fn(next))
    };
    Ok(select(of(SignalKind::terminate())?, of(SignalKind::interrupt())?))
}

/// Waits for the first signal that is not part of the one received at `first`.
async fn second(signals: &mut (impl Stream<Item = i32> + Unpin), first: Instant) -> i32 {
    loop {
        match signals.next().await {
            Some(signal) if first.elapsed() >= SECOND_SIGNAL_AFTER => return signal,
            Some(signal) => tracing::debug!(signal, "same stop, signalled twice"),
            None => std::future::pending().await,
        }
    }
}

/// Notifies the supervisor, if there is one, on a thread of its own: one that does not read its
/// socket blocks the sender.
pub(super) fn notify_supervisor(state: NotifyState<'static>) {
    let thread = thread::Builder::new().name("notify".to_owned());
    // An error only means that no supervisor runs.
    let _ = thread.spawn(move || sd_notify::notify(&[state]));
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep_until;

    use super::*;

    /// B32: signals in the first 250 ms are one stop; the next one ends the process.
    #[tokio::test(start_paused = true)]
    async fn a_second_signal_counts_after_a_while() {
        let first = Instant::now();
        for (at, expected) in [
            (vec![0, 1, 249, 250], 3),
            (vec![250], 0),
            (vec![5, 10_000], 1),
            (vec![249, 251, 252], 1),
        ] {
            let first = first.max(Instant::now());
            let mut signals = Box::pin(futures_util::stream::iter(at.into_iter().zip(0..)).then(
                |(millis, number)| async move {
                    sleep_until(first + Duration::from_millis(millis)).await;
                    number
                },
            ));
            assert_eq!(second(&mut signals, first).await, expected);
        }
    }
}
