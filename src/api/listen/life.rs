//! How long a connection lives that its client does not close.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::{Options, caps::Seat, room::Room};
use crate::api::guard::Account;

/// The least time between two looks at a connection.
const LOOK: Duration = Duration::from_millis(100);
/// Time between two looks at a connection that keeps room others may want.
const LOOK_FOR_ROOM: Duration = Duration::from_secs(1);
/// Ages are spread over their last tenth, so that what was opened together does not reconnect
/// together.
const SPREAD: u32 = 10;

/// Reason to end a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// An answer was not read in time: there is nothing to wait for.
    Unread,
    /// The connection is told to go away, and its calls may finish: it is old, or idle, or makes
    /// room for another.
    Leave(&'static str),
}

/// What is known of a connection.
pub(super) struct Life {
    account: Arc<Account>,
    seat: Arc<Seat>,
    room: Arc<Room>,
    unread: Duration,
    idle: Duration,
    /// Sixteenths of the last tenth of its age that it does not live.
    early: u32,
    is_unread: AtomicBool,
}

impl Life {
    /// Of a connection that begins; `number` is any that differs from those of its neighbours.
    pub(super) fn new(
        account: Arc<Account>,
        seat: Arc<Seat>,
        room: Room,
        options: &Options,
        number: u32,
    ) -> Self {
        let (unread, idle) = (options.unread, options.idle);
        Self {
            account,
            seat,
            room: room.into(),
            unread,
            idle,
            early: number % 16,
            is_unread: AtomicBool::new(false),
        }
    }

    /// Says that a call begins.
    pub(super) fn touch(&self) {
        self.seat.touch();
    }

    /// Waits for the end, which comes at this age at the latest.
    pub(super) async fn end(&self, age: Duration) -> End {
        let began = Instant::now();
        let old = began + age - age / SPREAD * self.early / 16;
        let mut turn = began + self.unread;
        loop {
            let idle = if self.is_open() { Duration::ZERO } else { self.seat.idle() };
            let mut pause = self.idle.saturating_sub(idle).max(LOOK);
            if self.room.is_kept() {
                pause = pause.min(LOOK_FOR_ROOM);
            }
            tokio::select! {
                () = self.seat.asked_to_leave() => return End::Leave("room"),
                () = self.room.grown() => {}
                () = sleep_until((Instant::now() + pause).min(turn).min(old)) => {}
            }
            let now = Instant::now();
            if now >= turn {
                if self.account.has_overdue() {
                    metrics::counter!("connections_cut_total", "reason" => "unread").increment(1);
                    self.is_unread.store(true, Relaxed);
                    return End::Unread;
                }
                turn = now + self.unread;
            }
            if now >= old {
                return Self::leave("age");
            }
            if !self.is_open() && self.seat.idle() >= self.idle {
                return Self::leave("idle");
            }
            // Calls in progress finish, and the next open a connection that keeps less. Beyond the
            // bound it would be cut.
            if self.room.is_wanted() {
                self.room.leave();
                return Self::leave("memory");
            }
        }
    }

    fn is_open(&self) -> bool {
        self.account.is_busy() || self.account.has_streams()
    }

    fn leave(reason: &'static str) -> End {
        metrics::counter!("connections_ended_total", "reason" => reason).increment(1);
        End::Leave(reason)
    }

    /// Returns true if a call is in progress, other than a stream without an end.
    pub(super) fn is_busy(&self) -> bool {
        self.account.is_busy()
    }

    /// The longest that an answer may be on its way.
    pub(super) const fn unread(&self) -> Duration {
        self.unread
    }

    /// Returns true once an answer was not read in time.
    pub(super) fn is_unread(&self) -> bool {
        self.is_unread.load(Relaxed)
    }

    /// Memory that HTTP/2 keeps for the connection.
    pub(super) fn room(&self) -> Arc<Room> {
        Arc::clone(&self.room)
    }
}
