//! A bound on HTTP/2 frames that ask for work and carry none: SETTINGS, PING, PRIORITY, unknown ones, and more WINDOW_UPDATE or
//! RST_STREAM than calls bring. h2 cuts floods of streams that are opened and reset, of CONTINUATION and of empty DATA by itself,
//! but answers these for ever.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// Cost of a WINDOW_UPDATE beyond those that our data brings; the other costs are multiples of it.
const UPDATE: i64 = 1;
/// Cost of a PING.
const PING_COST: i64 = 10;
/// Cost of any other control frame: no client has reason to send many.
const OTHER: i64 = 100;
/// What a connection may send at once: ten thousand PINGs.
const BURST: i64 = 10_000 * PING_COST;
/// What it may go on sending each second: clients that measure the path send a PING a round trip for as long as data flows.
const PER_SECOND: f64 = 5_000.0 * PING_COST as f64;
/// What comes free with each frame of a call.
const PER_CALL_FRAME: i64 = 4 * PING_COST;
/// WINDOW_UPDATEs that come free with each DATA frame of ours: one for its stream and one for the connection.
const UPDATES_PER_DATA: u64 = 2;

const HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// Finds the frames of one direction.
#[derive(Default)]
struct Heads {
    head: [u8; HEAD],
    have: usize,
    skip: usize,
}

impl Heads {
    /// Calls `each` with the kind of every frame that begins in these further bytes, until one is too many.
    fn follow(&mut self, mut bytes: &[u8], mut each: impl FnMut(u8) -> bool) -> bool {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let taken = (HEAD - self.have).min(bytes.len());
            if let (Some(head), Some(from)) = (self.head.get_mut(self.have..self.have + taken), bytes.get(..taken)) {
                head.copy_from_slice(from);
            }
            self.have += taken;
            bytes = bytes.get(taken..).unwrap_or_default();
            if self.have == HEAD {
                self.have = 0;
                let [high, middle, low, kind, ..] = self.head;
                self.skip = u32::from_be_bytes([0, high, middle, low]) as usize;
                if !each(kind) {
                    return false;
                }
            }
        }
        true
    }
}

/// Follows the frames of one connection.
struct Meter {
    received: Heads,
    sent: Heads,
    budget: Budget,
}

struct Budget {
    left: i64,
    at: Instant,
    /// WINDOW_UPDATEs and RST_STREAMs that are still free.
    updates: u64,
    resets: u64,
}

impl Meter {
    fn new(now: Instant) -> Self {
        let budget = Budget { left: BURST, at: now, updates: 0, resets: 0 };
        Self { received: Heads::default(), sent: Heads::default(), budget }
    }

    /// Returns true if the connection is within its bounds after these further bytes from the client.
    fn receive(&mut self, bytes: &[u8]) -> bool {
        let budget = &mut self.budget;
        self.received.follow(bytes, |kind| budget.count(kind))
    }

    /// Counts bytes to the client.
    fn send(&mut self, bytes: &[u8]) {
        let updates = &mut self.budget.updates;
        self.sent.follow(bytes, |kind| {
            *updates += if kind == DATA { UPDATES_PER_DATA } else { 0 };
            true
        });
    }
}

impl Budget {
    fn count(&mut self, kind: u8) -> bool {
        let cost = match kind {
            DATA => -PER_CALL_FRAME,
            HEADERS => {
                self.resets += 1;
                -PER_CALL_FRAME
            }
            // h2 bounds it.
            CONTINUATION => 0,
            RST_STREAM => Self::unless_free(&mut self.resets, OTHER),
            WINDOW_UPDATE => Self::unless_free(&mut self.updates, UPDATE),
            PING => PING_COST,
            _ => OTHER,
        };
        self.left = (self.left - cost).min(BURST);
        if self.left < 0 {
            let now = Instant::now();
            let since = now.saturating_duration_since(self.at).as_secs_f64();
            self.at = now;
            self.left = self.left.saturating_add((since * PER_SECOND) as i64).min(BURST);
        }
        self.left >= 0
    }

    fn unless_free(free: &mut u64, cost: i64) -> i64 {
        match free.checked_sub(1) {
            Some(left) => {
                *free = left;
                0
            }
            None => cost,
        }
    }
}

/// An HTTP/2 connection whose control frames are counted.
pub(super) struct Counted<S> {
    stream: S,
    meter: Meter,
    /// Bytes of the preface still to come, which are no frame.
    preface: usize,
}

impl<S> Counted<S> {
    /// `preface` bytes come before the first frame.
    pub(super) fn new(stream: S, preface: usize) -> Self {
        Self { stream, meter: Meter::new(Instant::now()), preface }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        let read = buffer.filled().get(before..).unwrap_or_default();
        let preface = this.preface.min(read.len());
        this.preface -= preface;
        if this.meter.receive(read.get(preface..).unwrap_or_default()) {
            return Poll::Ready(Ok(()));
        }
        metrics::counter!("connections_cut_total", "reason" => "control_frames").increment(1);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "too many control frames")))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.meter.send(bytes.get(..written).unwrap_or_default());
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices))?;
        let mut left = written;
        for slice in slices {
            let sent = left.min(slice.len());
            left -= sent;
            self.meter.send(slice.get(..sent).unwrap_or_default());
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let mut frame = (length as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, 0, 0, 0, 0, 0]);
        frame.resize(HEAD + length, 0xff);
        frame
    }

    /// L03: a flood of PINGs is cut, calls with a PING each are not.
    #[test]
    fn control_frames_beyond_what_calls_bring_are_too_many() {
        let mut meter = Meter::new(Instant::now());
        let flood = frame(PING, 8).repeat(200_000);
        assert!(!meter.receive(&flood));

        let mut meter = Meter::new(Instant::now());
        let calls = [frame(HEADERS, 40), frame(DATA, 100), frame(PING, 8), frame(PING, 8)].concat().repeat(100_000);
        assert!(meter.receive(&calls));
    }

    /// L03: updates of the window are free for data that was sent, and resets for streams that were opened; others are counted.
    #[test]
    fn updates_without_data_and_resets_without_streams_are_too_many() {
        let (update, reset) = (frame(WINDOW_UPDATE, 4), frame(RST_STREAM, 4));
        let mut meter = Meter::new(Instant::now());
        meter.budget.left = 0;
        for _ in 0..1_000 {
            meter.send(&frame(DATA, 300));
            meter.budget.left = 0;
            assert!(meter.receive(&update.repeat(2)), "one for the stream and one for the connection");
        }
        assert_eq!(meter.budget.left, 0);
        meter.budget.left = 10;
        assert!(meter.receive(&update.repeat(10)));
        assert_eq!(meter.budget.left, 0);

        meter.budget.left = OTHER;
        assert!(meter.receive(&frame(HEADERS, 40)));
        assert!(meter.receive(&reset));
        assert_eq!(meter.budget.left, OTHER + PER_CALL_FRAME, "a stream may be reset");
        assert!(meter.receive(&reset));
        assert_eq!(meter.budget.left, PER_CALL_FRAME, "once");

        for flood in [update.repeat(2_000_000), reset.repeat(200_000)] {
            assert!(!Meter::new(Instant::now()).receive(&flood));
        }
    }

    proptest! {
        /// Frames are found wherever the reads happen to be cut.
        #[test]
        fn cuts_between_reads_change_nothing(kinds in prop::collection::vec((0_u8..12, 0_usize..40), 1..50), cut in 1_usize..30) {
            let bytes: Vec<u8> = kinds.iter().flat_map(|(kind, length)| frame(*kind, *length)).collect();
            let mut resets = 0;
            let cost = |(kind, _): &(u8, usize)| match *kind {
                DATA => -PER_CALL_FRAME,
                HEADERS => {
                    resets += 1;
                    -PER_CALL_FRAME
                }
                RST_STREAM if resets > 0 => {
                    resets -= 1;
                    0
                }
                CONTINUATION => 0,
                WINDOW_UPDATE => UPDATE,
                PING => PING_COST,
                _ => OTHER,
            };
            let expected = BURST / 2 - kinds.iter().map(cost).sum::<i64>();
            let data = kinds.iter().filter(|(kind, _)| *kind == DATA).count() as u64;
            let mut meter = Meter::new(Instant::now());
            meter.budget.left = BURST / 2;
            for part in bytes.chunks(cut) {
                prop_assert!(meter.receive(part));
            }
            prop_assert_eq!(meter.budget.left, expected);
            for part in bytes.chunks(cut) {
                meter.send(part);
            }
            prop_assert_eq!(meter.budget.updates, data * UPDATES_PER_DATA);
            prop_assert_eq!((meter.received.have, meter.received.skip, meter.sent.have, meter.sent.skip), (0, 0, 0, 0));
        }
    }
}
