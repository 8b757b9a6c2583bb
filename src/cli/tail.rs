//! `audit tail`: follows the audit trail over renewals of its token and restarts of the server,
//! without gap or repetition.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::FutureExt;
use serde_json::json;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep_until},
};
use tonic::Streaming;

use super::{
    admin::Admin,
    connect::Remote,
    error::Failure,
    output::{Output, warn},
    render,
};
use crate::{
    crypto::random,
    proto::admin::{
        ChainPosition, Event, EventFilter, TailEventsRequest, TailEventsResponse,
        audit_service_client::AuditServiceClient,
    },
};

/// Pause before the first attempt to connect again.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// Maximum events that are printed before their positions are written to the file.
const UNSAVED_MAX: usize = 200;
/// Maximum refusals of a token that was just issued; then it is not its age.
const REFUSALS_MAX: u32 = 3;

/// A run of `audit tail`.
pub(super) struct Tail {
    output: Output,
    remote: Remote,
    /// Scope of a caller that may not request `jeton:admin`.
    scope: &'static str,
    filter: EventFilter,
    place: Place,
    /// True if the server has sent something: what it refuses at first is the answer.
    has_begun: bool,
    /// True if the last stream did not end for a new token.
    is_broken: bool,
}

/// End of one stream that is no failure.
struct Renewal;

impl Tail {
    pub(super) fn new(
        output: Output,
        remote: Remote,
        scope: &'static str,
        filter: EventFilter,
        file: Option<PathBuf>,
    ) -> Result<Self, Failure> {
        Ok(Self {
            output,
            remote,
            scope,
            filter,
            place: Place::load(file)?,
            has_begun: false,
            is_broken: false,
        })
    }

    /// Follows until a signal; any other end is a failure.
    pub(super) async fn run(mut self) -> Result<(), Failure> {
        let listen = |kind| signal(kind).map_err(Failure::io("cannot listen for signals"));
        let mut terminate = listen(SignalKind::terminate())?;
        let mut interrupt = listen(SignalKind::interrupt())?;
        let ended = tokio::select! {
            failure = self.follow() => Err(failure),
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        };
        // The position of the last printed event is kept after any end.
        let saved = self.place.save();
        match ended {
            // The reader of the output is gone; the exit code must still say that this ended.
            Err(failure) if failure.is_silent() => Err(Failure::Code(1)),
            ended => ended.and(saved),
        }
    }

    /// Opens stream after stream; returns what no new attempt helps against.
    async fn follow(&mut self) -> Failure {
        let (mut pause, mut refusals) = (PAUSE_MIN, 0);
        loop {
            let (before, since) = (self.place.moves, Instant::now());
            let failure = match self.stream().await {
                Ok(Renewal) => continue,
                Err(failure) => failure,
            };
            // A stream that is answered with a failure again and again is no progress.
            if self.place.moves > before || since.elapsed() > PAUSE_MAX {
                (pause, refusals) = (PAUSE_MIN, 0);
            }
            let is_refused_token = failure.has_reason("invalid_token");
            refusals += u32::from(is_refused_token);
            let goes_on = failure.is_transient() || is_refused_token && refusals < REFUSALS_MAX;
            if !self.has_begun || !goes_on {
                return self.explained(failure);
            }
            self.report(&format!("{failure}; connecting again"));
            self.is_broken = true;
            sleep_until(Instant::now() + jittered(pause)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Prints the events of one stream, until shortly before its token expires.
    async fn stream(&mut self) -> Result<Renewal, Failure> {
        let admin = Admin::renewed(self.remote.clone(), self.scope).await?;
        let renewal = sleep_until(Instant::now() + renewal(admin.lifetime()));
        tokio::pin!(renewal);
        let request = admin.stream(TailEventsRequest {
            filter: Some(self.filter.clone()),
            after: self.place.positions(),
            report_positions: true,
        });
        let mut service = AuditServiceClient::new(admin.channel());
        let opening = tokio::time::timeout(self.remote.timeout(), service.tail_events(request));
        let late = |_| tonic::Status::deadline_exceeded("the stream was not opened in time");
        let mut messages = opening.await.map_err(late)??.into_inner();
        loop {
            let message = match next_ready(&mut messages) {
                Some(message) if self.place.unsaved < UNSAVED_MAX => message,
                other => {
                    self.place.save()?;
                    match other {
                        Some(message) => message,
                        None => tokio::select! {
                            message = messages.message() => message,
                            // Without positions, a new stream would begin later than this one.
                            () = &mut renewal, if !self.place.chains.is_empty() => {
                                return Ok(Renewal);
                            }
                        },
                    }
                }
            };
            let ended = || tonic::Status::unavailable("the server ended the stream");
            self.take(message?.ok_or_else(ended)?)?;
            if std::mem::take(&mut self.is_broken) {
                self.report("connected again");
            }
            self.has_begun = true;
            if renewal.is_elapsed() {
                return Ok(Renewal);
            }
        }
    }

    /// Prints an event and moves the position, or takes over positions.
    fn take(&mut self, message: TailEventsResponse) -> Result<(), Failure> {
        for ChainPosition { chain, sequence } in message.positions {
            self.place.reach(chain, sequence);
        }
        let Some(event) = message.event else { return Ok(()) };
        self.print(&event)?;
        self.place.reach(event.chain, event.sequence);
        Ok(())
    }

    fn print(&self, event: &Event) -> Result<(), Failure> {
        if self.output.json {
            return self.output.document(&render::event(event));
        }
        let Event { action, outcome, target, .. } = event;
        let (actor, reason) = (render::actor(event), render::reason(event));
        let time = render::time(event.time.as_ref());
        let line = format!("{time}  {outcome:7}  {action}  {actor}  {target}  {reason}");
        self.output.line(&crate::telemetry::escape(line.trim_end()))
    }

    /// Adds what to do if the positions are not of this store.
    fn explained(&self, failure: Failure) -> Failure {
        let is_of_another_store = self.place.file.is_some() && failure.blames("after");
        failure.advised(&is_of_another_store.then(|| {
            "the store is another one, or was restored from a backup; to follow it from now on, \
             remove the file of --from-last"
                .to_owned()
        }))
    }

    /// Prints a message on stderr.
    fn report(&self, text: &str) {
        if self.output.json {
            warn(&json!({ "warning": { "message": text } }).to_string());
        } else {
            warn(&crate::telemetry::escape(&format!("warning: {text}")));
        }
    }
}

/// Returns a message that is there already, or the end.
fn next_ready(
    messages: &mut Streaming<TailEventsResponse>,
) -> Option<Result<Option<TailEventsResponse>, tonic::Status>> {
    messages.message().now_or_never()
}

/// Returns the time after which a token of this lifetime is replaced.
fn renewal(lifetime: Duration) -> Duration {
    lifetime * 4 / 5
}

/// Returns half of the pause to all of it, so that many readers do not return at once.
fn jittered(pause: Duration) -> Duration {
    let [byte] = random::bytes::<1>();
    pause / 2 + pause * u32::from(byte) / 510
}

/// Positions reached in each chain, in memory and in a file.
#[derive(Default)]
struct Place {
    chains: BTreeMap<String, i64>,
    file: Option<PathBuf>,
    /// Changes since the file was written.
    unsaved: usize,
    /// Changes in all.
    moves: u64,
}

impl Place {
    /// Reads the positions from the file, if there is one.
    fn load(file: Option<PathBuf>) -> Result<Self, Failure> {
        let Some(path) = file else { return Ok(Self::default()) };
        let chains = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                Failure::Other(format!("{} has no positions: {error}", path.display()))
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(Failure::reading(&path)(error)),
        };
        Ok(Self { chains, file: Some(path), ..Self::default() })
    }

    fn positions(&self) -> Vec<ChainPosition> {
        let position = |(chain, sequence): (&String, &i64)| ChainPosition {
            chain: chain.clone(),
            sequence: *sequence,
        };
        self.chains.iter().map(position).collect()
    }

    fn reach(&mut self, chain: String, sequence: i64) {
        let reached = self.chains.entry(chain).or_insert(-1);
        if sequence > *reached {
            *reached = sequence;
            self.unsaved += 1;
            self.moves += 1;
        }
    }

    /// Writes the file if a position moved: under another name first, so that it is always whole.
    fn save(&mut self) -> Result<(), Failure> {
        if let (Some(path), true) = (&self.file, self.unsaved > 0) {
            let text = json!(self.chains).to_string();
            replace(path, text.as_bytes()).map_err(Failure::writing(path))?;
        }
        self.unsaved = 0;
        Ok(())
    }
}

/// Replaces the content of a file durably.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let draft = path.with_added_extension("part");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    File::open(directory.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_replaced_before_it_expires() {
        for lifetime in [1, 8, 900, 86_400].map(Duration::from_secs) {
            assert!(renewal(lifetime) < lifetime && renewal(lifetime) > lifetime / 2);
        }
    }

    #[test]
    fn a_pause_is_never_longer_than_its_bound() {
        for pause in [PAUSE_MIN, PAUSE_MAX] {
            let jittered = jittered(pause);
            assert!(jittered >= pause / 2 && jittered <= pause);
        }
    }

    #[test]
    fn positions_are_read_as_they_were_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("place");
        let mut place = Place::load(Some(path.clone())).unwrap();
        place.save().unwrap();
        assert!(!path.exists(), "nothing was reached");
        for (chain, sequence) in [("node-1", 7), ("a:b", 0), ("node-1", 9), ("node-1", 8)] {
            place.reach(chain.to_owned(), sequence);
        }
        place.save().unwrap();
        let read = Place::load(Some(path.clone())).unwrap();
        let expected = [("a:b".to_owned(), 0), ("node-1".to_owned(), 9)];
        assert_eq!(read.chains, BTreeMap::from(expected));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no draft is left");
        fs::write(&path, "{").unwrap();
        assert!(Place::load(Some(path)).is_err());
    }
}
