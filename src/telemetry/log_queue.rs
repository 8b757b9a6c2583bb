//! Bounded queue of log lines between the threads that log and the one that writes stderr. A
//! stderr that is not read blocks that one thread only: no call, probe or signal waits for it.
//!
//! | state | event | next |
//! |--|--|--|
//! | flowing | a line fits | flowing |
//! | flowing | a line does not fit | dropping: it is counted |
//! | dropping | any line | dropping: it is counted |
//! | dropping | all waiting lines are written | flowing: the count is logged |

use std::{
    io::{self, Write},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use crate::metrics::METRICS;

/// Maximum bytes that wait while others are being written.
const WAITING_MAX_BYTES: usize = 1024 * 1024;
/// Pause before the retry of a write to a stderr that is set to non-blocking and full.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// Queue of log lines; a writer that never blocks.
#[derive(Clone)]
pub struct LogQueue(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Notified when there is work for the writing thread.
    filled: Condvar,
    /// Notified when the writing thread has none.
    emptied: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// Lines dropped since the last report. While there are any, all lines are dropped, so that the
    /// report is where the gap is.
    dropped: u64,
    is_writing: bool,
}

impl State {
    const fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.dropped == 0 && !self.is_writing
    }
}

impl LogQueue {
    /// Starts the thread that writes to `to`. It calls `report` with the number of dropped lines
    /// once all lines before them are written.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(super) fn start(
        to: impl Write + Send + 'static,
        report: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
        });
        let writing = Arc::clone(&shared);
        thread::Builder::new().name("log".to_owned()).spawn(move || writing.write(to, report))?;
        Ok(Self(shared))
    }

    /// Waits until all lines are written, at most for `timeout`. Returns true if they are.
    pub fn flush_within(&self, timeout: Duration) -> bool {
        let waited = self.0.emptied.wait_timeout_while(self.0.lock(), timeout, |s| !s.is_idle());
        waited.unwrap_or_else(PoisonError::into_inner).0.is_idle()
    }
}

impl Write for LogQueue {
    /// Queues one line, or drops and counts it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        if state.dropped > 0 || state.waiting.len() + line.len() > WAITING_MAX_BYTES {
            state.dropped += 1;
            drop(state);
            METRICS.log_lines_dropped.inc();
        } else {
            state.waiting.extend_from_slice(line);
            drop(state);
            self.0.filled.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes lines for as long as the process runs.
    fn write(&self, mut to: impl Write, report: impl Fn(u64)) {
        loop {
            let mut state = self.lock();
            state.is_writing = false;
            while state.is_idle() {
                self.emptied.notify_all();
                state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.is_writing = true;
            let lines = mem::take(&mut state.waiting);
            let dropped = if lines.is_empty() { mem::take(&mut state.dropped) } else { 0 };
            drop(state);
            if dropped > 0 {
                report(dropped);
            } else if write_all(&mut to, &lines).is_err() {
                // Its reader is gone. There is no other place to report it.
                let lost = lines.iter().filter(|byte| **byte == b'\n').count();
                METRICS.log_lines_dropped.inc_by(lost as u64);
            }
        }
    }
}

/// Writes all bytes; waits for room in a file that is set to non-blocking, as another process that
/// shares it may have done.
fn write_all(to: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                thread::park_timeout(RETRY_PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const HANG: Duration = Duration::from_secs(60);

    /// Writer of a pipe whose reader reads when the test says so.
    struct Gate {
        open: Receiver<()>,
        is_open: bool,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if !self.is_open {
                let _ = self.open.recv();
                self.is_open = true;
            }
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    type Gated = (LogQueue, Sender<()>, Arc<Mutex<Vec<u8>>>, Receiver<u64>);

    fn gated() -> Gated {
        let (open, opened) = channel();
        let (reported, reports) = channel();
        let written = Arc::<Mutex<Vec<u8>>>::default();
        let gate = Gate { open: opened, is_open: false, written: written.clone() };
        let report = move |dropped| {
            let _ = reported.send(dropped);
        };
        (LogQueue::start(gate, report).unwrap(), open, written, reports)
    }

    /// 3.1: lines beyond the bound are dropped while nobody reads, and counted once when the lines
    /// before them are written.
    #[test]
    fn lines_that_do_not_fit_are_dropped_and_reported_once() {
        let (mut queue, open, written, reports) = gated();
        let line = [&[b'x'; 1_023][..], b"\n"].concat();
        let lines = 5 * WAITING_MAX_BYTES / line.len();
        for _ in 0..lines {
            assert_eq!(queue.write(&line).unwrap(), line.len());
        }
        assert!(!queue.flush_within(Duration::ZERO), "nothing was read yet");
        open.send(()).unwrap();
        let dropped = reports.recv_timeout(HANG).unwrap();
        assert!(queue.flush_within(HANG));
        let kept = written.lock().unwrap().len() / line.len();
        assert_eq!(kept + usize::try_from(dropped).unwrap(), lines);
        // At most what is being written and what waits.
        assert!(kept <= 2 * WAITING_MAX_BYTES / line.len(), "{kept}");
        queue.write_all(b"again\n").unwrap();
        assert!(queue.flush_within(HANG));
        assert!(written.lock().unwrap().ends_with(b"\nagain\n"));
        assert!(reports.try_recv().is_err(), "reported once");
    }

    /// 3.1: a stderr that is full and non-blocking is waited for; one whose reader is gone is not.
    #[test]
    fn writes_are_retried_until_there_is_room() {
        struct Full(u32);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 += 1;
                match self.0 {
                    1 => Err(io::ErrorKind::WouldBlock.into()),
                    2 => Err(io::ErrorKind::Interrupted.into()),
                    3 => Ok(1),
                    4 => Ok(bytes.len()),
                    _ => Err(io::ErrorKind::BrokenPipe.into()),
                }
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut full = Full(0);
        write_all(&mut full, b"line\n").unwrap();
        assert_eq!(full.0, 4);
        assert!(write_all(&mut full, b"line\n").is_err());
    }
}
