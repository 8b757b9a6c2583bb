//! Whether calls can be answered now. Finding out costs the store a durable write, and anybody may
//! ask: however many do, the store is asked once a second. A node that is behind the others is not
//! ready, whatever its store says.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{
    sync::Mutex,
    task::JoinHandle,
    time::{Instant, interval, timeout},
};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::standing::TokenState;

/// How long an answer is given again.
const RESULT_LIFETIME: Duration = Duration::from_secs(1);
/// How long the store may take; one that takes longer is not ready.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often it is looked whether this node is behind.
const STALENESS_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// An answer that anybody may ask for.
pub(super) type Ready = Arc<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>;

/// `probe`, asked by one at a time and at most once in [`RESULT_LIFETIME`]; everybody else gets what it
/// said.
pub(super) fn shared(probe: Ready) -> Ready {
    let last = Arc::new(Mutex::new(None::<(Instant, bool)>));
    Arc::new(move || {
        let (probe, last) = (probe.clone(), last.clone());
        Box::pin(async move {
            let mut last = last.lock_owned().await;
            if let Some((at, ready)) = *last
                && at.elapsed() < RESULT_LIFETIME
            {
                return ready;
            }
            // On its own, so that who asks and leaves at once leaves an answer behind, and does not
            // have the next one ask again.
            let asking = tokio::spawn(async move {
                let ready = timeout(PROBE_TIMEOUT, probe()).await.unwrap_or(false);
                *last = Some((Instant::now(), ready));
                ready
            });
            asking.await.unwrap_or(false)
        })
    })
}

/// No while this node is stale; else what `store` says. That is asked of memory, and so each time.
pub(super) fn unless_stale(tokens: Arc<TokenState>, store: Ready) -> Ready {
    Arc::new(move || {
        if tokens.ensure_fresh().is_ok() { store() } else { Box::pin(std::future::ready(false)) }
    })
}

/// Tells those who balance by gRPC health, the metrics and the log when this node falls behind and
/// when it has caught up. Goes on until it is aborted.
pub(super) fn report_readiness(tokens: Arc<TokenState>, health: HealthReporter) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut looks = interval(STALENESS_CHECK_INTERVAL);
        let mut serving = true;
        loop {
            looks.tick().await;
            if let Some(age) = tokens.age() {
                metrics::gauge!("jeton_standing_age_seconds").set(age.as_secs_f64());
            }
            let fresh = tokens.ensure_fresh().is_ok();
            if fresh == serving {
                continue;
            }
            serving = fresh;
            if fresh {
                tracing::info!("revocation data is current again");
                health.set_service_status("", ServingStatus::Serving).await;
            } else {
                tracing::error!(age = ?tokens.age(), "behind the other nodes: nothing is judged \
                                                        or issued");
                health.set_service_status("", ServingStatus::NotServing).await;
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

    use futures_util::future::join_all;
    use tokio::time::advance;

    use super::*;

    /// However many ask for readiness, the store is written to once a second.
    #[tokio::test(start_paused = true)]
    async fn many_who_ask_are_one_probe_a_second() {
        let (probes, ready) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(true)));
        let (counted, answer) = (probes.clone(), ready.clone());
        let shared = shared(Arc::new(move || {
            let (probes, ready) = (counted.clone(), answer.clone());
            Box::pin(async move {
                probes.fetch_add(1, SeqCst);
                tokio::task::yield_now().await;
                ready.load(SeqCst)
            })
        }));
        // Who leaves before the answer does not have it asked for again.
        let left = timeout(Duration::ZERO, shared()).await;
        assert!(left.is_err());
        assert_eq!(join_all((0..100).map(|_| shared())).await, [true; 100]);
        assert_eq!(probes.load(SeqCst), 1);
        ready.store(false, SeqCst);
        assert!(shared().await, "still good");
        advance(RESULT_LIFETIME).await;
        assert_eq!(join_all((0..100).map(|_| shared())).await, [false; 100]);
        assert_eq!(probes.load(SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_does_not_answer_is_not_ready_and_is_asked_again() {
        let hangs = Arc::new(AtomicBool::new(true));
        let hanging = hangs.clone();
        let shared = shared(Arc::new(move || {
            let hangs = hanging.load(SeqCst);
            Box::pin(async move { if hangs { std::future::pending().await } else { true } })
        }));
        assert!(!shared().await);
        hangs.store(false, SeqCst);
        advance(RESULT_LIFETIME).await;
        assert!(shared().await);
    }
}
