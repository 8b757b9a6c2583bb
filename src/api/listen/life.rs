//! How long a connection lives that its client does not close.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{Options, caps::Seat};
use crate::api::guard::Account;

/// The least time between two looks at a connection.
const LOOK: Duration = Duration::from_millis(100);
/// Ages are spread over their last tenth, so that what was opened together does not reconnect together.
const SPREAD: u32 = 10;

/// Reason to end a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// An answer was not read in time: there is nothing to wait for.
    Unread,
    /// The connection is told to go away, and its calls may finish: it is old, or idle, or makes room for another.
    Leave(&'static str),
}

/// What is known of a connection.
pub(super) struct Life {
    account: Arc<Account>,
    seat: Arc<Seat>,
    unread: Duration,
    idle: Duration,
    /// Sixteenths of the last tenth of its age that it does not live.
    early: u32,
}

impl Life {
    /// Of a connection that begins; `number` is any that differs from those of its neighbours.
    pub(super) fn new(account: Arc<Account>, seat: Arc<Seat>, options: &Options, number: u32) -> Self {
        Self { account, seat, unread: options.unread, idle: options.idle, early: number % 16 }
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
            let is_open = self.account.is_busy() || self.account.has_streams();
            let idle = if is_open { Duration::ZERO } else { self.seat.idle() };
            let look = Instant::now() + self.idle.saturating_sub(idle).max(LOOK);
            tokio::select! {
                () = self.seat.asked_to_leave() => return End::Leave("room"),
                () = sleep_until(look.min(turn).min(old)) => {}
            }
            let now = Instant::now();
            if now >= turn {
                if self.account.has_overdue() {
                    metrics::counter!("connections_cut_total", "reason" => "unread").increment(1);
                    return End::Unread;
                }
                turn = now + self.unread;
            }
            if now >= old {
                return Self::leave("age");
            }
            let is_open = self.account.is_busy() || self.account.has_streams();
            if !is_open && self.seat.idle() >= self.idle {
                return Self::leave("idle");
            }
        }
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
}
