//! The only reader of the system's clocks. All other code gets the time as an argument.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{
            AtomicI64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::{Duration, Instant, SystemTime},
};

use crate::model::Timestamp;

/// Step of the wall clock above which it is logged and recorded.
pub const JUMP: Duration = Duration::from_secs(60);

/// Source of the time.
pub trait Clock: Send + Sync {
    /// Returns the time; it never decreases.
    fn now(&self) -> Timestamp;
    /// Returns the largest step of the wall clock beyond [`JUMP`] since the last call, in
    /// milliseconds: positive for forward.
    fn jump(&self) -> Option<i64>;
}

/// The system's time, which never decreases: after a step back of the wall clock it follows the
/// monotonic clock until the wall clock has caught up, so that an expired token never becomes valid
/// again.
pub struct SystemClock {
    state: Mutex<ClockState>,
}

#[derive(Clone, Copy)]
struct ClockState {
    now: Timestamp,
    at: Instant,
    wall: Timestamp,
    jump: Option<i64>,
}

impl SystemClock {
    /// Creates a clock that starts at `newest` or later: the latest time that any operation used,
    /// from the store.
    pub fn starting_at(newest: Timestamp) -> Self {
        let (wall, at) = read();
        Self { state: Mutex::new(ClockState { now: wall.max(newest), at, wall, jump: None }) }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let (wall, at) = read();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.advance(wall, at);
        state.now
    }

    fn jump(&self) -> Option<i64> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).jump.take()
    }
}

impl ClockState {
    fn advance(&mut self, wall: Timestamp, at: Instant) {
        let passed = at.saturating_duration_since(self.at);
        if passed.is_zero() && wall == self.wall {
            return;
        }
        let step = wall.millis().saturating_sub((self.wall + passed).millis());
        let known = self.jump.map_or(0, i64::unsigned_abs);
        if step.unsigned_abs() > known.max(JUMP.as_millis() as u64) {
            self.jump = Some(step);
        }
        self.now = wall.max(self.now + passed);
        self.at = self.at.max(at);
        self.wall = wall;
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the clock")]
fn read() -> (Timestamp, Instant) {
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (Timestamp::EPOCH + wall, Instant::now())
}

/// Offset of the common clock of a store from this node's clock: positive if the common clock is
/// ahead. Times that nodes compare use the common clock: the grace window of a refresh and the
/// windows of rate limits. Times in tokens do not: a wrong clock of the store changes no token's
/// validity.
#[derive(Debug, Default)]
pub struct ClockOffset(AtomicI64);

impl ClockOffset {
    /// Maximum duration of a measurement: the result of a longer one is too uncertain.
    const MEASUREMENT_MAX: Duration = Duration::from_secs(1);

    /// Converts the time `now` of this node to the common clock.
    pub fn cluster_time(&self, now: Timestamp) -> Timestamp {
        Timestamp::from_millis(now.millis().saturating_add(self.millis()))
    }

    /// Returns the offset in milliseconds; negative if this node is ahead.
    pub fn millis(&self) -> i64 {
        self.0.load(Relaxed)
    }

    /// Sets the offset from a reading of the common clock, taken between these two times of this
    /// node.
    pub fn record(&self, before: Timestamp, common: Timestamp, after: Timestamp) {
        let took = after.since(before);
        if took <= Self::MEASUREMENT_MAX {
            let middle = before + took / 2;
            self.0.store(common.millis().saturating_sub(middle.millis()), Relaxed);
        }
    }
}

/// A clock that only tests move.
#[derive(Debug, Default)]
pub struct ManualClock {
    now: AtomicI64,
}

impl ManualClock {
    /// Creates a clock that reads `now`.
    pub const fn at(now: Timestamp) -> Self {
        Self { now: AtomicI64::new(now.millis()) }
    }

    /// Moves forward.
    pub fn advance(&self, by: Duration) {
        let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.now.fetch_add(by, SeqCst);
    }

    /// Sets the time, also back.
    pub fn set(&self, now: Timestamp) {
        self.now.store(now.millis(), SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.now.load(SeqCst))
    }

    fn jump(&self) -> Option<i64> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(now: i64) -> ClockState {
        let (_, at) = read();
        ClockState {
            now: Timestamp::from_millis(now),
            at,
            wall: Timestamp::from_millis(now),
            jump: None,
        }
    }

    /// C1: stepped back an hour, the time goes on from where it was.
    #[test]
    fn a_step_back_never_brings_an_earlier_time() {
        let mut state = state(10_000_000);
        let later = state.at + Duration::from_secs(5);
        state.advance(Timestamp::from_millis(10_005_000 - 3_600_000), later);
        assert_eq!(state.now.millis(), 10_005_000);
        assert_eq!(state.jump, Some(-3_600_000));
        state.advance(
            Timestamp::from_millis(10_006_000 - 3_600_000),
            later + Duration::from_secs(1),
        );
        assert_eq!(state.now.millis(), 10_006_000, "and it does not stand still either");
    }

    /// C1: a step forward is followed, so that expiry is honoured.
    #[test]
    fn a_step_forward_is_followed() {
        let mut state = state(10_000_000);
        let later = state.at + Duration::from_secs(5);
        state.advance(Timestamp::from_millis(10_005_000 + 3_600_000), later);
        assert_eq!(state.now.millis(), 13_605_000);
        assert_eq!(state.jump, Some(3_600_000));
    }

    /// C1: of several steps between two questions the largest is kept, whichever came last.
    #[test]
    fn the_largest_of_several_steps_is_kept() {
        for (steps, largest) in [
            ([3_600_000, -61_000], 3_600_000),
            ([61_000, -7_200_000], -7_200_000),
            ([-70_000, 65_000], -70_000),
        ] {
            let mut state = state(10_000_000);
            for step in steps {
                let (wall, at) = (state.wall, state.at);
                state.advance(
                    Timestamp::from_millis(wall.millis() + step + 10),
                    at + Duration::from_millis(10),
                );
            }
            assert_eq!(state.jump, Some(largest), "{steps:?}");
        }
    }

    /// C2: two nodes a minute apart agree on a moment, to within half of what a look takes.
    #[test]
    fn nodes_agree_by_the_clock_they_have_in_common() {
        let common = Timestamp::from_millis(10_000_000);
        let cluster_time = |ahead: i64| {
            let here = |at: i64| Timestamp::from_millis(at + ahead);
            let offset = ClockOffset::default();
            offset.record(here(9_999_980), common, here(10_000_040));
            // Much too slow to say anything.
            offset.record(here(10_000_100), common, here(10_005_000));
            offset.cluster_time(here(10_007_000)).millis()
        };
        assert_eq!((cluster_time(30_000), cluster_time(-30_000)), (10_006_990, 10_006_990));
    }

    /// C1: after a restart the newest time that was acted on is the floor.
    #[test]
    fn a_restart_does_not_go_back_before_what_was_recorded() {
        let far = Timestamp::from_millis(i64::MAX / 2);
        assert!(SystemClock::starting_at(far).now() >= far);
    }
}
