//! Heartbeats of the threads that serve. A probe is answered by one of them; it must not report that
//! the process is alive while another one is stuck.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval};

/// Interval between two heartbeats of a thread.
const BEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Age of the last heartbeat beyond which a thread is stuck: no call keeps one busy for so long.
const STUCK_AFTER: Duration = Duration::from_secs(10);
/// Heartbeat of a thread that has ended.
const ENDED: u64 = u64::MAX;

/// Heartbeats of all threads of a listener.
#[derive(Clone, Debug)]
pub struct Heartbeats {
    since: Instant,
    /// Last heartbeat of each thread, in milliseconds after `since`.
    beats: Arc<Mutex<Vec<Arc<AtomicU64>>>>,
}

impl Default for Heartbeats {
    fn default() -> Self {
        Self { since: Instant::now(), beats: Arc::default() }
    }
}

impl Heartbeats {
    /// Returns true if no thread is stuck.
    pub fn are_recent(&self) -> bool {
        let now = self.millis();
        let beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        beats
            .iter()
            .all(|beat| now.saturating_sub(beat.load(Relaxed)) <= STUCK_AFTER.as_millis() as u64)
    }

    /// Adds a thread.
    pub(super) fn register(&self) -> Heartbeat {
        let last = Arc::new(AtomicU64::new(self.millis()));
        let mut beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        beats.push(Arc::clone(&last));
        Heartbeat { all: self.clone(), last }
    }

    fn millis(&self) -> u64 {
        self.since.elapsed().as_millis() as u64
    }
}

/// Heartbeat of one thread, which ends when this is dropped.
pub(super) struct Heartbeat {
    all: Heartbeats,
    last: Arc<AtomicU64>,
}

impl Heartbeat {
    /// Beats now.
    pub(super) fn beat(&self) {
        self.last.store(self.all.millis(), Relaxed);
    }

    /// Beats for as long as the runtime of the thread runs.
    pub(super) async fn keep_beating(self) {
        let mut ticks = interval(BEAT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.beat();
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.last.store(ENDED, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 3.1: one thread that is stuck is enough; one that has ended is not stuck.
    #[tokio::test(start_paused = true)]
    async fn a_stuck_thread_is_noticed() {
        let all = Heartbeats::default();
        let (running, stuck) = (all.register(), all.register());
        let running = tokio::spawn(running.keep_beating());
        tokio::time::advance(STUCK_AFTER).await;
        assert!(all.are_recent());
        for _ in 0..2 {
            tokio::time::advance(BEAT_INTERVAL).await;
            tokio::task::yield_now().await;
        }
        assert!(!all.are_recent());
        stuck.beat();
        assert!(all.are_recent());
        running.abort();
        let _ = running.await;
        tokio::time::advance(STUCK_AFTER).await;
        stuck.beat();
        assert!(all.are_recent(), "it has ended");
    }
}
