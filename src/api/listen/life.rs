//! Lifetime of a connection that its client does not close.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::{Options, connection_limits::Activity, stream_memory::StreamMemory};
use crate::api::guard::Account;

/// Shortest time between two checks of a connection.
const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// Time between two checks of a connection that holds memory others may want.
const MEMORY_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Fraction of the maximum age over which ages are spread, so that connections opened together do
/// not reconnect together.
const SPREAD: u32 = 10;

/// Reason to end a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// A response was not read in time: there is nothing to wait for.
    Unread,
    /// The connection is asked to leave, and its calls may finish: it is old, or idle, or makes
    /// room for another.
    Leave(&'static str),
}

/// State of a connection that decides its end.
pub(super) struct Life {
    account: Arc<Account>,
    activity: Arc<Activity>,
    stream_memory: Arc<StreamMemory>,
    unread: Duration,
    idle: Duration,
    /// Sixteenths of the spread by which it ends early.
    early: u32,
    is_unread: AtomicBool,
}

impl Life {
    /// Creates the state of a new connection; `number` differs from those of its neighbours.
    pub(super) fn new(
        account: Arc<Account>,
        activity: Arc<Activity>,
        stream_memory: StreamMemory,
        options: &Options,
        number: u32,
    ) -> Self {
        let (unread, idle) = (options.unread, options.idle);
        Self {
            account,
            activity,
            stream_memory: stream_memory.into(),
            unread,
            idle,
            early: number % 16,
            is_unread: AtomicBool::new(false),
        }
    }

    /// Records that a call begins.
    pub(super) fn touch(&self) {
        self.activity.touch();
    }

    /// Waits for the reason to end the connection, at the latest its maximum age.
    pub(super) async fn end(&self, age: Duration) -> End {
        let began = Instant::now();
        let old = began + age - age / SPREAD * self.early / 16;
        let mut turn = began + self.unread;
        loop {
            let idle = if self.is_open() { Duration::ZERO } else { self.activity.idle() };
            let mut pause = self.idle.saturating_sub(idle).max(MIN_CHECK_INTERVAL);
            if self.stream_memory.is_kept() {
                pause = pause.min(MEMORY_CHECK_INTERVAL);
            }
            tokio::select! {
                () = self.activity.asked_to_leave() => return End::Leave("room"),
                () = self.stream_memory.grown() => {}
                () = sleep_until((Instant::now() + pause).min(turn).min(old)) => {}
            }
            let now = Instant::now();
            if now >= turn {
                if self.account.has_overdue() {
                    crate::metrics::METRICS.connections_cut.count("unread");
                    self.is_unread.store(true, Relaxed);
                    return End::Unread;
                }
                turn = now + self.unread;
            }
            if now >= old {
                return Self::leave("age");
            }
            if !self.is_open() && self.activity.idle() >= self.idle {
                return Self::leave("idle");
            }
            // Calls in progress finish, and the next open a connection that keeps less. Beyond the
            // limit it would be cut.
            if self.stream_memory.should_leave() {
                self.stream_memory.leave();
                return Self::leave("memory");
            }
        }
    }

    fn is_open(&self) -> bool {
        self.account.is_busy() || self.account.has_streams()
    }

    fn leave(reason: &'static str) -> End {
        crate::metrics::METRICS.connections_ended.count(reason);
        End::Leave(reason)
    }

    /// Returns true if a call is in progress, other than an endless stream.
    pub(super) fn is_busy(&self) -> bool {
        self.account.is_busy()
    }

    /// Returns the longest time that a response may take to be read.
    pub(super) const fn unread(&self) -> Duration {
        self.unread
    }

    /// Returns true once a response was not read in time.
    pub(super) fn is_unread(&self) -> bool {
        self.is_unread.load(Relaxed)
    }

    /// Returns the memory that HTTP/2 keeps for the connection.
    pub(super) fn stream_memory(&self) -> Arc<StreamMemory> {
        Arc::clone(&self.stream_memory)
    }
}
