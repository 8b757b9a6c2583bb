//! Background tasks: they store counts, remove expired records, advance keys and reload
//! certificates.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::{
    measurements,
    open::{Opened, measure},
    retention::Retention,
    stopped,
};
use crate::{
    admin::witness::Witness,
    api::listen::TlsReloader,
    clock::{Clock, ClockOffset, JUMP, Step},
    crypto::chain::ChainKey,
    metrics::METRICS,
    model::{Action, Stamp, Timestamp},
    services::Services,
    store::Store,
};

/// Maximum records removed in one write, so that callers do not wait behind maintenance.
const SWEEP_BATCH_MAX: usize = 2_000;

/// The background tasks.
pub(super) struct Background(Vec<JoinHandle<()>>);

impl Background {
    /// Waits until every task has stopped.
    pub(super) async fn finish(self) {
        for task in self.0 {
            let _ = task.await;
        }
    }
}

/// Starts the background tasks; they stop when `stopping` turns true.
pub(super) fn start(
    opened: &Opened,
    tls: Option<Arc<TlsReloader>>,
    stopping: &watch::Receiver<bool>,
) -> Background {
    let (seconds, minutes) = (Duration::from_secs(1), Duration::from_secs(60));
    let context = Context {
        services: opened.services.clone(),
        store: opened.store.clone(),
        clock: opened.clock.clone(),
        clock_offset: opened.clock_offset.clone(),
        chain: opened.chain.clone(),
        witness: Arc::default(),
        directory: opened.directory.clone(),
        retention: opened.retention.clone(),
        is_clock_off: Arc::default(),
    };
    let after = |delay, period, what, task| {
        spawn_periodic([delay, period], stopping.clone(), context.clone(), what, task)
    };
    let every = |period, what, task| after(Duration::ZERO, period, what, task);
    let mut tasks = vec![
        every(seconds * 10, "record secret uses", |context| {
            Box::pin(async move {
                context.services.limits.sweep(context.clock.now());
                METRICS.set_argon2_blocks(context.services.passwords.work());
                context.services.clients.note_uses().await.map_err(Into::into)
            })
        }),
        every(seconds * 10, "measure", |context| {
            Box::pin(async move {
                measurements::take(&context.services, context.clock.now());
                let directory = context.directory.clone();
                // A file system may hang.
                let files = move || measurements::take_of_files(directory.as_deref());
                Ok(tokio::task::spawn_blocking(files).await?)
            })
        }),
        every(minutes, "measure the audit trail", |context| {
            Box::pin(async move {
                let size = context.store.trail_size(context.clock.now()).await?;
                measurements::take_of_trail(&size);
                Ok(())
            })
        }),
        every(minutes, "measure the servers of the store", |context| {
            Box::pin(async move {
                let shape = context.store.shape().await?;
                shape.iter().for_each(measurements::take_of_servers);
                Ok(())
            })
        }),
        // Later than the recovery of records that were left in outboxes, which may be old by now.
        after(minutes * 5, minutes * 10, "cut the audit trail", |context| {
            Box::pin(async move {
                let now = context.clock.now();
                let cut = context.retention.pass(context.store.as_ref(), &context.chain, now);
                cut.await.map(drop).map_err(Into::into)
            })
        }),
        every(minutes, "sweep", |context| {
            Box::pin(async move {
                context.services.standing.sweep(context.clock.now());
                let earliest = context
                    .services
                    .standing
                    .tokens
                    .verifying_keys()
                    .earliest_node_time(context.clock.now());
                Ok(sweep(context.store.as_ref(), earliest).await?)
            })
        }),
        every(minutes, "witness audit chain heads", |context| {
            Box::pin(async move {
                let noted = context.witness.record_moved(
                    context.store.as_ref(),
                    &context.chain,
                    context.clock.now(),
                );
                noted.await.map(drop).map_err(Into::into)
            })
        }),
        every(seconds * 5, "advance keys", |context| {
            Box::pin(async move { context.services.admin.keys.advance().await.map_err(Into::into) })
        }),
        every(seconds, "share rate limit counters", |context| {
            Box::pin(async move {
                let now = context.clock.now();
                Ok(context
                    .services
                    .limits
                    .share(context.store.as_ref(), now, context.clock_offset.cluster_time(now))
                    .await?)
            })
        }),
        every(seconds, "report forged records", |context| {
            Box::pin(async move {
                context.services.admin.forged_records.report().await.map_err(Into::into)
            })
        }),
        every(seconds, "record refusal counts", |context| {
            Box::pin(async move {
                context
                    .services
                    .clients
                    .record_refusals(context.clock.now(), false)
                    .await
                    .map_err(Into::into)
            })
        }),
        every(seconds, "check for clock steps", |context| {
            Box::pin(async move {
                watch_ahead(&context);
                Ok(watch_clock(context.store.as_ref(), context.clock.as_ref()).await?)
            })
        }),
    ];
    if opened.measured {
        tasks.push(every(seconds * 5, "measure clock offset", |context| {
            Box::pin(async move {
                Ok(measure(context.store.as_ref(), context.clock.as_ref(), &context.clock_offset)
                    .await?)
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

/// Objects that the tasks work on.
#[derive(Clone)]
struct Context {
    services: Arc<Services>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    clock_offset: Arc<ClockOffset>,
    chain: Arc<ChainKey>,
    witness: Arc<Witness>,
    directory: Option<Arc<Path>>,
    retention: Arc<Retention>,
    /// True if the last look at the clock found it to differ from the machine's.
    is_clock_off: Arc<AtomicBool>,
}

type Task = fn(Context) -> BoxFuture<'static, Result<(), Box<dyn std::error::Error + Send + Sync>>>;

/// Spawns a task that repeats `task` with this period. A failure is logged when it begins and when
/// it ends, not each time: a store may be unreachable for long.
/// Starts a task that runs after a delay and then once in a period.
fn spawn_periodic(
    [delay, period]: [Duration; 2],
    stopping: watch::Receiver<bool>,
    context: Context,
    what: &'static str,
    task: Task,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut ticks = interval_at(Instant::now() + delay, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut fails = false;
        loop {
            let outcome = tokio::select! {
                _ = ticks.tick() => task(context.clone()).await,
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

/// Removes expired records of the store. `earliest` is the time of the slowest clock: a record is
/// kept as long as any node may need it.
async fn sweep(store: &dyn Store, earliest: Timestamp) -> Result<(), crate::store::StoreError> {
    while store.sweep(earliest, SWEEP_BATCH_MAX).await? >= SWEEP_BATCH_MAX {}
    Ok(())
}

/// C1: logs and records a step of the machine's clock.
async fn watch_clock(store: &dyn Store, clock: &dyn Clock) -> Result<(), crate::store::StoreError> {
    let now = clock.now();
    let Some(step) = clock.jump() else { return Ok(()) };
    let Step { millis, is_followed } = step;
    tracing::warn!(step_ms = millis, is_followed, "system clock was stepped");
    let event = Stamp::internal(now).done(Action::ClockJumped, format!("{millis} ms"));
    let event = if is_followed { event } else { event.because("not followed".to_owned()) };
    store.append(event).await
}

/// Reports when the clock of the service begins to differ from the machine's, and when no longer.
fn watch_ahead(context: &Context) {
    let ahead_ms = context.clock.ahead();
    METRICS.readings.clock_ahead.set(ahead_ms as f64 / 1e3);
    let is_off = ahead_ms.unsigned_abs() > JUMP.as_millis() as u64;
    if context.is_clock_off.swap(is_off, Relaxed) == is_off {
        return;
    }
    let ahead_seconds = ahead_ms / 1_000;
    if !is_off {
        tracing::info!("the clock of the service agrees with the machine's again");
    } else if ahead_ms > 0 {
        tracing::error!(
            ahead_seconds,
            "the machine's clock was ahead once, so the service's still is and goes slower; if it \
             is far ahead, stop the service and run `jeton admin reset-clock`"
        );
    } else {
        tracing::error!(
            ahead_seconds,
            "the machine's clock was stepped far ahead, which is not followed: correct it, or \
             restart the service if it is right"
        );
    }
}
