//! What happens by itself: counts are noted, what has expired is forgotten, keys age, certificates
//! are read again.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use super::{
    open::{Opened, measure},
    stopped,
};
use crate::{
    admin::witness::Witness,
    api::listen::TlsReloader,
    clock::{Clock, ClockOffset},
    crypto::chain::ChainKey,
    model::{Action, Stamp, Timestamp},
    services::Services,
    store::Store,
};

/// The most records removed in one write, so that callers do not wait behind maintenance.
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
pub(super) fn start(
    opened: &Opened,
    tls: Option<Arc<TlsReloader>>,
    stopping: &watch::Receiver<bool>,
) -> Background {
    let (seconds, minutes) = (Duration::from_secs(1), Duration::from_secs(60));
    let house = House {
        services: opened.services.clone(),
        store: opened.store.clone(),
        clock: opened.clock.clone(),
        clock_offset: opened.clock_offset.clone(),
        chain: opened.chain.clone(),
        witness: Arc::default(),
    };
    let every = |period, what, task| every(period, stopping.clone(), house.clone(), what, task);
    let mut tasks = vec![
        every(seconds * 10, "record secret uses", |house| {
            Box::pin(async move {
                house.services.limits.sweep(house.clock.now());
                metrics::counter!("jeton_argon2_blocks_total")
                    .absolute(house.services.passwords.work());
                house.services.clients.note_uses().await.map_err(Into::into)
            })
        }),
        every(minutes, "sweep", |house| {
            Box::pin(async move {
                house.services.standing.sweep(house.clock.now());
                let earliest = house
                    .services
                    .standing
                    .tokens
                    .verifying_keys()
                    .earliest_node_time(house.clock.now());
                Ok(sweep(house.store.as_ref(), earliest).await?)
            })
        }),
        every(minutes, "witness audit chain heads", |house| {
            Box::pin(async move {
                let noted =
                    house.witness.look(house.store.as_ref(), &house.chain, house.clock.now());
                noted.await.map(drop).map_err(Into::into)
            })
        }),
        every(seconds * 5, "advance keys", |house| {
            Box::pin(async move { house.services.admin.keys.advance().await.map_err(Into::into) })
        }),
        every(seconds, "share rate limit counters", |house| {
            Box::pin(async move {
                let now = house.clock.now();
                Ok(house
                    .services
                    .limits
                    .share(house.store.as_ref(), now, house.clock_offset.cluster_time(now))
                    .await?)
            })
        }),
        every(seconds, "report forged records", |house| {
            Box::pin(async move {
                house.services.admin.forged_records.report().await.map_err(Into::into)
            })
        }),
        every(seconds, "record refusal counts", |house| {
            Box::pin(async move {
                house
                    .services
                    .clients
                    .record_refusals(house.clock.now(), false)
                    .await
                    .map_err(Into::into)
            })
        }),
        every(seconds, "check for clock steps", |house| {
            Box::pin(
                async move { Ok(watch_clock(house.store.as_ref(), house.clock.as_ref()).await?) },
            )
        }),
    ];
    if opened.measured {
        tasks.push(every(seconds * 5, "measure clock offset", |house| {
            Box::pin(async move {
                Ok(measure(house.store.as_ref(), house.clock.as_ref(), &house.clock_offset).await?)
            })
        }));
    }
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

/// What the tasks work on.
#[derive(Clone)]
struct House {
    services: Arc<Services>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    clock_offset: Arc<ClockOffset>,
    chain: Arc<ChainKey>,
    witness: Arc<Witness>,
}

type Task = fn(House) -> BoxFuture<'static, Result<(), Box<dyn std::error::Error + Send + Sync>>>;

/// One that fails is said to when it begins to, and when it goes again: a store may be away for
/// long.
fn every(
    period: Duration,
    stopping: watch::Receiver<bool>,
    house: House,
    what: &'static str,
    task: Task,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut fails = false;
        loop {
            let outcome = tokio::select! {
                _ = ticks.tick() => task(house.clone()).await,
                () = stopped(stopping.clone()) => return,
            };
            match &outcome {
                Err(error) if !fails => {
                    tracing::error!(
                        error = error.as_ref(),
                        what,
                        "background task failed, retrying"
                    )
                }
                Ok(()) if fails => tracing::info!(what, "background task recovered"),
                Ok(()) | Err(_) => {}
            }
            fails = outcome.is_err();
        }
    })
}

/// `earliest` is the time by the slowest clock: what a node can still judge, it can still find.
async fn sweep(store: &dyn Store, earliest: Timestamp) -> Result<(), crate::store::StoreError> {
    while store.sweep(earliest, SWEEP).await? >= SWEEP {}
    Ok(())
}

/// C1: a step of the machine's clock is said and recorded.
async fn watch_clock(store: &dyn Store, clock: &dyn Clock) -> Result<(), crate::store::StoreError> {
    let now = clock.now();
    let Some(step) = clock.jump() else { return Ok(()) };
    tracing::warn!(step_ms = step, "system clock was stepped");
    store.append(Stamp::internal(now).done(Action::ClockJumped, format!("{step} ms"))).await
}
