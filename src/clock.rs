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

/// Step of the machine's clock above which it is logged and recorded.
pub const JUMP: Duration = Duration::from_secs(60);
/// Largest step forward that a running service follows: a larger one is rather an error than a
/// machine that was suspended, and would let everything expire.
pub const STEP_MAX: Duration = Duration::from_secs(24 * 3_600);
/// Part of the passed time that a clock that is ahead gives back, as a divisor: an hour in eight.
const GIVEN_BACK: u32 = 8;

/// Step of the machine's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Milliseconds; positive for forward.
    pub millis: i64,
    /// True if the service goes by it: a step forward of at most [`STEP_MAX`].
    pub is_followed: bool,
}

/// Source of the time.
pub trait Clock: Send + Sync {
    /// Returns the time; it never decreases.
    fn now(&self) -> Timestamp;
    /// Returns the largest step of the machine's clock beyond [`JUMP`] since the last call.
    fn jump(&self) -> Option<Step>;
    /// Returns the milliseconds by which this clock is ahead of the machine's; negative if a step of
    /// the machine's clock is not followed.
    fn ahead(&self) -> i64;
}

/// The system's time, which never decreases, so that an expired token never becomes valid again.
///
/// | machine's clock | time of the service |
/// |--|--|
/// | goes on, or is stepped forward by at most [`STEP_MAX`] | that of the machine |
/// | is stepped back, or is behind the store at a start | goes on, an eighth slower, until the machine's clock has caught up |
/// | is stepped forward by more than [`STEP_MAX`] | goes on by the monotonic clock; a restart takes the machine's |
pub struct SystemClock {
    state: Mutex<ClockState>,
}

/// Times since 1970, to the nanosecond: many readings within a millisecond must not lose time.
#[derive(Clone, Copy)]
struct ClockState {
    now: Duration,
    at: Instant,
    wall: Duration,
    jump: Option<Step>,
}

impl SystemClock {
    /// Creates a clock that starts at `newest` or later: the latest time that any operation used,
    /// from the store.
    pub fn starting_at(newest: Timestamp) -> Self {
        let (wall, at) = read();
        let now = wall.max(newest.since(Timestamp::EPOCH));
        Self { state: Mutex::new(ClockState { now, at, wall, jump: None }) }
    }

    fn advanced(&self) -> ClockState {
        let (wall, at) = read();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.advance(wall, at);
        *state
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::EPOCH + self.advanced().now
    }

    fn jump(&self) -> Option<Step> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).jump.take()
    }

    fn ahead(&self) -> i64 {
        let state = self.advanced();
        difference(state.now, state.wall)
    }
}

impl ClockState {
    fn advance(&mut self, wall: Duration, at: Instant) {
        let passed = at.saturating_duration_since(self.at);
        if passed.is_zero() && wall == self.wall {
            return;
        }
        let steady = self.now.saturating_add(passed);
        let is_followed = wall.saturating_sub(steady) <= STEP_MAX;
        let step = difference(wall, self.wall.saturating_add(passed));
        let known = self.jump.map_or(0, |jump| jump.millis.unsigned_abs());
        if step.unsigned_abs() > known.max(JUMP.as_millis() as u64) {
            self.jump = Some(Step { millis: step, is_followed: is_followed && step > 0 });
        }
        self.now = if wall < steady {
            steady.saturating_sub(passed / GIVEN_BACK).max(wall)
        } else if is_followed {
            wall
        } else {
            steady
        };
        self.at = self.at.max(at);
        self.wall = wall;
    }
}

/// Returns the milliseconds by which `a` is later than `b`.
fn difference(a: Duration, b: Duration) -> i64 {
    let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    if a >= b { millis(a - b) } else { millis(b - a).saturating_neg() }
}

#[expect(clippy::disallowed_methods, reason = "this is the clock")]
fn read() -> (Duration, Instant) {
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (wall, Instant::now())
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
    ahead: AtomicI64,
}

impl ManualClock {
    /// Creates a clock that reads `now`.
    pub const fn at(now: Timestamp) -> Self {
        Self { now: AtomicI64::new(now.millis()), ahead: AtomicI64::new(0) }
    }

    /// Moves forward.
    pub fn advance(&self, by: Duration) {
        let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.now.fetch_add(by, SeqCst);
    }

    /// Sets the milliseconds by which it is ahead of the machine's clock.
    pub fn set_ahead(&self, millis: i64) {
        self.ahead.store(millis, SeqCst);
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

    fn jump(&self) -> Option<Step> {
        None
    }

    fn ahead(&self) -> i64 {
        self.ahead.load(SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);
    const DAY: Duration = Duration::from_secs(86_400);
    const START: Duration = Duration::from_secs(1_800_000_000);

    fn state() -> ClockState {
        let (_, at) = read();
        ClockState { now: START, at, wall: START, jump: None }
    }

    /// C1, OPERATORS 3.2: stepped back an hour, the time goes on, and gives the hour back.
    #[test]
    fn a_step_back_never_brings_an_earlier_time_and_heals() {
        let (mut state, began) = (state(), read().1);
        state.at = began;
        let wall = |passed: Duration| START - HOUR + passed;
        state.advance(wall(Duration::from_secs(8)), began + Duration::from_secs(8));
        assert_eq!(state.now, START + Duration::from_secs(7));
        assert_eq!(state.jump, Some(Step { millis: -3_600_000, is_followed: false }));
        let (mut last, mut passed) = (state.now, Duration::from_secs(8));
        while state.now > state.wall {
            passed += Duration::from_secs(60);
            state.advance(wall(passed), began + passed);
            assert!(state.now > last);
            last = state.now;
            assert!(passed <= 8 * HOUR + Duration::from_secs(60), "an hour in eight");
        }
        assert_eq!(state.now, wall(passed));
    }

    /// Many readings within a millisecond lose no time.
    #[test]
    fn a_clock_that_is_ahead_goes_on_however_often_it_is_read() {
        let (mut state, began) = (state(), read().1);
        state.at = began;
        state.wall = START - HOUR;
        for reading in 1..=80_000_u32 {
            let passed = Duration::from_micros(100) * reading;
            state.advance(START - HOUR + passed, began + passed);
        }
        assert_eq!(difference(state.now, START), 7_000);
        assert_eq!(state.jump, None);
    }

    /// C1: a step forward is followed, so that expiry is honoured.
    #[test]
    fn a_step_forward_is_followed() {
        for step in [HOUR, DAY] {
            let mut state = state();
            let later = state.at + Duration::from_secs(5);
            let wall = START + Duration::from_secs(5) + step;
            state.advance(wall, later);
            assert_eq!(state.now, wall);
            let millis = step.as_millis() as i64;
            assert_eq!(state.jump, Some(Step { millis, is_followed: true }));
        }
    }

    /// OPERATORS 3.2: a running service does not follow a clock into another year, and follows it
    /// again once it is right.
    #[test]
    fn a_step_far_ahead_is_not_followed() {
        let (mut state, began) = (state(), read().1);
        state.at = began;
        let seconds = Duration::from_secs;
        for passed in 1..=20 {
            state.advance(START + 365 * DAY + seconds(passed), began + seconds(passed));
            assert_eq!(state.now, START + seconds(passed));
        }
        let jump = state.jump.take();
        assert_eq!(jump.map(|jump| jump.is_followed), Some(false));
        assert_eq!(difference(state.now, state.wall), -(365 * 86_400_000));
        state.advance(START + seconds(30), began + seconds(30));
        assert_eq!((state.now, state.wall), (START + seconds(30), START + seconds(30)));
    }

    /// C1: of several steps between two questions the largest is kept, whichever came last.
    #[test]
    fn the_largest_of_several_steps_is_kept() {
        for (steps, largest) in [
            ([3_600_000, -61_000], 3_600_000),
            ([61_000, -7_200_000], -7_200_000),
            ([-70_000, 65_000], -70_000),
        ] {
            let mut state = state();
            for step in steps {
                let (wall, at) = (state.wall, state.at);
                let wall = Timestamp::EPOCH + wall;
                let wall = Timestamp::from_millis(wall.millis() + step + 10);
                state.advance(wall.since(Timestamp::EPOCH), at + Duration::from_millis(10));
            }
            assert_eq!(state.jump.map(|jump| jump.millis), Some(largest), "{steps:?}");
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
