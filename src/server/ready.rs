//! Readiness of the service. A probe costs a durable write of the store, and every caller may
//! request it, so the store is probed once a second at most. A stale node is not ready, whatever
//! the state of its store.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{
    sync::Mutex,
    task::JoinHandle,
    time::{Instant, interval, timeout},
};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{clock::Clock, metrics::METRICS, standing::TokenState};

/// Time for which the result of a probe is reused.
const RESULT_LIFETIME: Duration = Duration::from_secs(1);
/// Timeout of a probe; a slower store is not ready.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Interval of the check for staleness of this node.
const STALENESS_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Difference from the machine's clock from which a node is not ready: verifiers refuse its tokens,
/// and a balancer prefers other nodes. Calls are still answered.
const CLOCK_WRONG: Duration = Duration::from_secs(3_600);

/// Readiness that any caller may request.
pub(super) type Ready = Arc<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>;

/// Shares `probe`: it runs once at a time and at most once in [`RESULT_LIFETIME`]; all other
/// callers get its last result.
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
            // A task of its own: if the caller disconnects, the result is still stored for the next
            // one.
            let probing = tokio::spawn(async move {
                let ready = timeout(PROBE_TIMEOUT, probe()).await.unwrap_or(false);
                *last = Some((Instant::now(), ready));
                ready
            });
            probing.await.unwrap_or(false)
        })
    })
}

/// Returns false while this node is stale, which is read from memory each time; else the readiness
/// of `store`.
pub(super) fn unless_stale(tokens: Arc<TokenState>, store: Ready) -> Ready {
    Arc::new(move || {
        if tokens.ensure_fresh().is_ok() { store() } else { Box::pin(std::future::ready(false)) }
    })
}

/// Returns false while the clock of this node is wrong; else the readiness of `store`.
pub(super) fn unless_clock_wrong(clock: Arc<dyn Clock>, store: Ready) -> Ready {
    Arc::new(
        move || {
            if is_plausible(&*clock) { store() } else { Box::pin(std::future::ready(false)) }
        },
    )
}

/// Returns true unless the clock of the service differs from the machine's by more than
/// [`CLOCK_WRONG`].
fn is_plausible(clock: &dyn Clock) -> bool {
    clock.ahead().unsigned_abs() <= CLOCK_WRONG.as_millis() as u64
}

/// Health of the whole server and, under its name, of each service: the same for all.
#[derive(Clone)]
pub(super) struct Health {
    reporter: HealthReporter,
    services: Arc<[String]>,
    is_leaving: Arc<AtomicBool>,
}

impl Health {
    /// Creates the health of a server that serves.
    pub(super) async fn serving(reporter: HealthReporter, services: Arc<[String]>) -> Self {
        let health = Self { reporter, services, is_leaving: Arc::default() };
        health.set(ServingStatus::Serving).await;
        health
    }

    /// Reports that the server is leaving, for balancers: it is not ready and not serving.
    pub(super) async fn leave(&self) {
        self.is_leaving.store(true, Relaxed);
        self.set(ServingStatus::NotServing).await;
    }

    /// Returns false once the server is leaving; else the readiness of `store`.
    pub(super) fn unless_leaving(&self, store: Ready) -> Ready {
        let is_leaving = self.is_leaving.clone();
        Arc::new(move || {
            let is_serving = !is_leaving.load(Relaxed);
            if is_serving { store() } else { Box::pin(std::future::ready(false)) }
        })
    }

    /// Reports a status.
    pub(super) async fn set(&self, status: ServingStatus) {
        self.reporter.set_service_status("", status).await;
        for service in &*self.services {
            self.reporter.set_service_status(service, status).await;
        }
    }
}

/// Reports through gRPC health, metrics and the log when this node becomes stale, or its clock wrong,
/// and when it is ready again. Runs until it is aborted.
pub(super) fn report_readiness(
    tokens: Arc<TokenState>,
    clock: Arc<dyn Clock>,
    health: Health,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut looks = interval(STALENESS_CHECK_INTERVAL);
        let (mut serving, mut was_fresh) = (true, true);
        loop {
            looks.tick().await;
            if let Some(age) = tokens.age() {
                METRICS.readings.standing_age.set(age.as_secs_f64());
            }
            let fresh = tokens.ensure_fresh().is_ok();
            let ready = fresh && is_plausible(&*clock);
            METRICS.readings.ready.set(f64::from(u8::from(ready)));
            if fresh != was_fresh {
                was_fresh = fresh;
                if fresh {
                    tracing::info!("revocation data is current again");
                } else {
                    tracing::error!(
                        age = ?tokens.age(),
                        "revocation data is stale, token calls are refused"
                    );
                }
            }
            if ready != serving {
                serving = ready;
                if ready {
                    health.set(ServingStatus::Serving).await;
                } else {
                    health.set(ServingStatus::NotServing).await;
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

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
