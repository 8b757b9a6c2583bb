//! `jeton bench`: load against a running server, as a client of it, and the times of its calls.
//!
//! Each call in flight is a task of its own that sends its next call once it has the answer of the
//! last; the tasks share the connections in turn. What an operation needs before its call, such as
//! a token to revoke, is not measured.

mod operation;
mod tally;

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _, Write as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use clap::Args;
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{Instant, interval},
};

use self::{
    operation::{Caller, Operation},
    tally::Tally,
};
use super::{
    args,
    connect::{Options, Remote},
    error::Failure,
    output::Output,
};

/// Most connections, and most calls in flight.
const CONNECTIONS_MAX: i64 = 1_000;
const IN_FLIGHT_MAX: i64 = 10_000;
/// Interval at which progress is shown, and the width of its bar.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
const BAR_WIDTH: usize = 30;

/// `jeton bench`
#[derive(Args, Debug)]
pub(super) struct Command {
    /// Operation to measure
    #[arg(value_enum)]
    operation: Operation,
    /// Connections to the server
    #[arg(long, default_value = "4", value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=CONNECTIONS_MAX))]
    connections: u16,
    /// Calls in flight at a time, over all connections
    #[arg(long, default_value = "64", value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=IN_FLIGHT_MAX))]
    in_flight: u16,
    /// Time that is measured, such as 10s or 5m
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = args::timeout)]
    duration: Duration,
    /// Time before that, whose calls are not counted
    #[arg(long, default_value = "1s", value_name = "DURATION", value_parser = args::duration)]
    warm_up: Duration,
    /// Scope of the tokens, repeatable [default: the client's default scopes]
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    #[command(flatten)]
    remote: Options,
}

/// Time that is measured, and the calls so far; all tasks share it.
struct MeasuredTime {
    /// Start and end of the time that is measured.
    from: Instant,
    until: Instant,
    /// Calls that have ended in it.
    calls: AtomicU64,
}

impl Command {
    pub(super) async fn run(
        &self,
        output: Output,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        let mut remotes = Vec::new();
        for _ in 0..self.connections {
            remotes.push(Remote::open(&self.remote, environment).await?);
        }
        // Wrong credentials or scopes are an error here, not a million of them.
        let first = remotes.first().ok_or_else(|| Failure::Other("no connection".to_owned()))?;
        let token = operation::access_token(first, &self.scopes).await?;
        let mut callers = Vec::new();
        for remote in remotes.iter().cycle().take(self.in_flight.into()) {
            let (scopes, token) = (self.scopes.clone(), token.clone());
            callers.push(Caller::prepare(remote.clone(), self.operation, scopes, token).await?);
        }
        let from = Instant::now() + self.warm_up;
        let shared =
            Arc::new(MeasuredTime { from, until: from + self.duration, calls: AtomicU64::new(0) });
        let tally = measure(callers, &shared, output).await?;
        // A run that was interrupted counts for as long as it was.
        let measured = shared.until.min(Instant::now()).saturating_duration_since(from);
        self.print(output, &tally, measured)?;
        if tally.calls() == 0 || tally.failed() > 0 { Err(Failure::Code(1)) } else { Ok(()) }
    }

    fn print(&self, output: Output, tally: &Tally, measured: Duration) -> Result<(), Failure> {
        let seconds = measured.as_secs_f64();
        let rate = if seconds > 0.0 { tally.succeeded() as f64 / seconds } else { 0.0 };
        let percentiles = tally.percentiles();
        if output.json {
            let latency: serde_json::Map<_, _> = percentiles
                .iter()
                .map(|(name, millis)| ((*name).to_owned(), json!(millis)))
                .collect();
            return output.document(&json!({
                "operation": self.operation.name(),
                "connections": self.connections,
                "in_flight": self.in_flight,
                "seconds": seconds,
                "calls": tally.calls(),
                "failed": tally.failed(),
                "calls_per_second": rate,
                "latency_ms": latency,
                "errors": tally.errors(),
            }));
        }
        let mut properties = vec![
            ("operation", self.operation.name().to_owned()),
            ("load", format!("{} in flight over {} connections", self.in_flight, self.connections)),
            ("calls", format!("{} in {seconds:.1} s", tally.calls())),
            ("rate", format!("{rate:.0} calls/s")),
        ];
        let shown = |millis: &f64| format!("{millis:.3} ms");
        properties.extend(percentiles.iter().map(|(name, millis)| (*name, shown(millis))));
        properties.push(("failed", tally.failed().to_string()));
        let errors: Vec<String> =
            tally.errors().iter().map(|(reason, number)| format!("{number} {reason}")).collect();
        properties.push(("errors", errors.join(", ")));
        output.record(&properties)
    }
}

/// Runs the callers until the time is over, or the user interrupts it.
async fn measure(
    callers: Vec<Caller>,
    shared: &Arc<MeasuredTime>,
    output: Output,
) -> Result<Tally, Failure> {
    let mut tasks: JoinSet<Tally> = JoinSet::new();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    for caller in callers {
        tasks.spawn(call_on(caller, shared.clone(), stopped.clone()));
    }
    drop(stopped);
    let shows_progress = !output.json && io::stderr().is_terminal();
    let mut ticks = interval(PROGRESS_INTERVAL);
    let mut tally = Tally::new()?;
    loop {
        tokio::select! {
            ended = tasks.join_next() => match ended {
                Some(Ok(part)) => tally.add(&part),
                Some(Err(_)) => return Err(Failure::Other("a caller has failed".to_owned())),
                None => break,
            },
            _ = tokio::signal::ctrl_c() => {
                // The callers have ended.
                let _ = stop.send(true);
            }
            _ = ticks.tick(), if shows_progress => show_progress(shared),
        }
    }
    if shows_progress {
        // Nothing depends on the progress line.
        let _ = write!(io::stderr().lock(), "\r\x1b[K");
    }
    Ok(tally)
}

/// Calls again and again until the time is over. A call that ends after it is not counted.
async fn call_on(
    mut caller: Caller,
    shared: Arc<MeasuredTime>,
    mut stopped: tokio::sync::watch::Receiver<bool>,
) -> Tally {
    let Ok(mut tally) = Tally::new() else { return Tally::default() };
    loop {
        let call = async {
            caller.get_ready().await?;
            let since = Instant::now();
            let outcome = caller.call().await;
            Ok::<_, String>((since, outcome))
        };
        let ended = tokio::select! {
            ended = tokio::time::timeout_at(shared.until, call) => ended,
            _ = stopped.wait_for(|stopped| *stopped) => break,
        };
        let Ok(ended) = ended else { break };
        let (since, outcome) = match ended {
            Ok(ended) => ended,
            // What the call needs could not be had.
            Err(reason) => (Instant::now(), Err(reason)),
        };
        if Instant::now() >= shared.from {
            shared.calls.fetch_add(1, Relaxed);
            tally.record(since.elapsed(), outcome.as_ref().err());
        }
        if outcome.is_err() {
            // A server that refuses at once is not asked a million times a second.
            tokio::task::yield_now().await;
        }
    }
    caller.finish().await;
    tally
}

fn show_progress(shared: &MeasuredTime) {
    let now = Instant::now();
    let (done, all) =
        (now.saturating_duration_since(shared.from), shared.until.duration_since(shared.from));
    let part = (done.as_secs_f64() / all.as_secs_f64()).min(1.0);
    let full = (part * BAR_WIDTH as f64) as usize;
    let calls = shared.calls.load(Relaxed);
    let rate = calls as f64 / done.as_secs_f64().max(0.001);
    let bar = format!("{}{}", "#".repeat(full), " ".repeat(BAR_WIDTH.saturating_sub(full)));
    let state = if done.is_zero() {
        "warming up".to_owned()
    } else {
        format!("{} s of {} s, {rate:.0} calls/s", done.as_secs(), all.as_secs())
    };
    // Nothing depends on the progress line.
    let _ = write!(io::stderr().lock(), "\r\x1b[K[{bar}] {state}");
}
