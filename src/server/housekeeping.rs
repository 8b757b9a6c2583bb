//! What happens by itself: counts are noted, what has expired is forgotten, keys age, certificates are read again.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use super::{open::Opened, stopped};
use crate::{
    api::listen::TlsReloader,
    clock::Clock,
    model::{Action, Stamp},
    store::Store,
};

/// The most records removed in one write, so that callers do not wait behind housekeeping.
const SWEEP: usize = 2_000;

/// The background tasks.
pub(super) struct Background(Vec<JoinHandle<()>>);

impl Background {
    /// Waits until every task has seen the stop.
    pub(super) async fn finish(self) {
        for task in self.0 {
            let _ = task.await;
        }
    }
}

/// Starts the background tasks; they end when `stopping` turns true.
pub(super) fn start(opened: &Opened, tls: Option<Arc<TlsReloader>>, stopping: &watch::Receiver<bool>) -> Background {
    let Opened { authority, store, clock, .. } = opened;
    let (seconds, minutes) = (Duration::from_secs(1), Duration::from_secs(60));
    let mut tasks = Vec::new();

    let state = (authority.clone(), store.clone(), clock.clone());
    tasks.push(every(seconds * 10, stopping.clone(), state.clone(), |(authority, _, clock)| async move {
        authority.limits().sweep(clock.now());
        report("note uses of secrets", authority.note_uses().await);
    }));
    tasks.push(every(minutes, stopping.clone(), state.clone(), |(authority, store, clock)| async move {
        authority.standing().sweep(clock.now());
        report("sweep", sweep(store.as_ref(), clock.as_ref()).await);
    }));
    tasks.push(every(seconds * 5, stopping.clone(), state.clone(), |(authority, _, _)| async move {
        report("advance keys", authority.advance_keys().await);
    }));
    tasks.push(every(seconds, stopping.clone(), state, |(authority, store, clock)| async move {
        report("share rate limit counters", authority.limits().share(store.as_ref(), clock.now()).await);
        report("record a clock jump", watch_clock(store.as_ref(), clock.as_ref()).await);
    }));
    if let Some(tls) = tls {
        let stopping = stopping.clone();
        tasks.push(tokio::spawn(async move {
            tokio::select! {
                () = tls.watch() => {}
                () = stopped(stopping) => {}
            }
        }));
    }
    Background(tasks)
}

fn every<S, F>(
    period: Duration,
    stopping: watch::Receiver<bool>,
    state: S,
    task: impl Fn(S) -> F + Send + 'static,
) -> JoinHandle<()>
where
    S: Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(async move {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => task(state.clone()).await,
                () = stopped(stopping.clone()) => return,
            }
        }
    })
}

async fn sweep(store: &dyn Store, clock: &dyn Clock) -> Result<(), crate::store::StoreError> {
    while store.sweep(clock.now(), SWEEP).await? >= SWEEP {}
    Ok(())
}

/// C1: a step of the machine's clock is said and recorded.
async fn watch_clock(store: &dyn Store, clock: &dyn Clock) -> Result<(), crate::store::StoreError> {
    let now = clock.now();
    let Some(step) = clock.jump() else { return Ok(()) };
    tracing::warn!(step_ms = step, "the machine's clock was stepped");
    store.append(Stamp::internal(now).done(Action::ClockJumped, format!("{step} ms"))).await
}

fn report<E: std::fmt::Display>(what: &'static str, result: Result<(), E>) {
    if let Err(error) = result {
        tracing::error!(%error, what, "background task failed");
    }
}
