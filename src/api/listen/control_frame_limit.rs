//! Limit on control frames of HTTP/2, followed below it. Frames that cause work and carry none are
//! bounded: SETTINGS, PING, PRIORITY, unknown ones, and more WINDOW_UPDATE or RST_STREAM than calls
//! need. h2 cuts floods of streams that are opened and reset, of CONTINUATION and of empty DATA by
//! itself, but answers these for ever. Streams are bounded by the memory that h2 keeps for them.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{
    frame::{DATA, HEADERS, Head, RST_STREAM},
    life::Life,
    stream_memory::StreamMemory,
    streams::Streams,
};

/// Cost of a WINDOW_UPDATE beyond those that our data causes; the other costs are multiples of it.
const UPDATE: i64 = 1;
/// Cost of a PING.
const PING_COST: i64 = 10;
/// Cost of any other control frame: no client has reason to send many.
const OTHER: i64 = 100;
/// Budget of a connection: ten thousand PINGs at once.
const BURST: i64 = 10_000 * PING_COST;
/// Refill of the budget each second: clients that measure the path send a PING a round trip for as
/// long as data flows.
const PER_SECOND: f64 = 5_000.0 * PING_COST as f64;
/// Refill of the budget with each frame of a call.
const PER_CALL_FRAME: i64 = 4 * PING_COST;
/// Free WINDOW_UPDATEs with each DATA frame of ours: one for its stream and one for the connection.
const UPDATES_PER_DATA: u64 = 2;

const HEAD: usize = 9;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// Code of a GOAWAY to a client that asks for too much (RFC 9113 section 7).
const ENHANCE_YOUR_CALM: u32 = 11;

/// Parser of frame heads in one direction.
#[derive(Default)]
struct FrameParser {
    head: [u8; HEAD],
    have: usize,
    skip: usize,
}

impl FrameParser {
    /// Calls `each` with the head of every frame that begins in these further bytes, until one is
    /// too many.
    fn follow(&mut self, mut bytes: &[u8], mut each: impl FnMut(Head) -> bool) -> bool {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let taken = (HEAD - self.have).min(bytes.len());
            if let (Some(head), Some(from)) =
                (self.head.get_mut(self.have..self.have + taken), bytes.get(..taken))
            {
                head.copy_from_slice(from);
            }
            self.have += taken;
            bytes = bytes.get(taken..).unwrap_or_default();
            if self.have == HEAD {
                self.have = 0;
                let [high, middle, low, kind, flags, stream @ ..] = self.head;
                self.skip = u32::from_be_bytes([0, high, middle, low]) as usize;
                let stream = u32::from_be_bytes(stream) & (u32::MAX >> 1);
                if !each(Head { kind, flags, stream, length: self.skip }) {
                    return false;
                }
            }
        }
        true
    }

    /// Returns true if no frame is incomplete.
    const fn is_between_frames(&self) -> bool {
        self.have == 0 && self.skip == 0
    }
}

/// Meter of the frames of one connection.
pub(super) struct Meter {
    received: FrameParser,
    sent: FrameParser,
    budget: Budget,
    streams: Streams,
    /// The last stream that the client opened in data passed to HTTP/2.
    last: u32,
}

struct Budget {
    left: i64,
    at: Instant,
    /// Free WINDOW_UPDATEs and RST_STREAMs that are left.
    updates: u64,
    resets: u64,
}

impl Meter {
    pub(super) fn new(now: Instant, stream_memory: Arc<StreamMemory>) -> Self {
        let budget = Budget { left: BURST, at: now, updates: 0, resets: 0 };
        Self {
            received: FrameParser::default(),
            sent: FrameParser::default(),
            budget,
            streams: Streams::new(stream_memory),
            last: 0,
        }
    }

    /// Parses further bytes from the client; returns the kind of excess if the connection exceeds
    /// its limits.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> Option<&'static str> {
        let (budget, streams) = (&mut self.budget, &mut self.streams);
        let mut excess = None;
        self.received.follow(bytes, |head| {
            if !budget.count(head.kind) {
                excess = Some("control_frames");
            } else if !streams.receive(head) {
                excess = Some("streams");
            }
            excess.is_none()
        });
        // HTTP/2 sees nothing of a read that is cut.
        if excess.is_none() {
            self.last = streams.last();
        }
        excess
    }

    /// Parses bytes to the client.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        let (updates, streams) = (&mut self.budget.updates, &mut self.streams);
        self.sent.follow(bytes, |head| {
            *updates += if head.kind == DATA { UPDATES_PER_DATA } else { 0 };
            streams.send(head);
            true
        });
    }

    /// Builds a last frame with the reason of the end.
    pub(super) fn goaway(&self, reason: &str) -> Vec<u8> {
        let length = (8 + reason.len()) as u32;
        let (last, code) = (self.last.to_be_bytes(), ENHANCE_YOUR_CALM.to_be_bytes());
        let head = (length << 8 | u32::from(GOAWAY)).to_be_bytes();
        [&head[..], &[0; 5], &last, &code, reason.as_bytes()].concat()
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

/// HTTP/2 connection whose frames are counted.
pub(super) struct FrameLimited<S> {
    stream: S,
    meter: Meter,
    life: Arc<Life>,
    /// Bytes of the preface still to come, which are no frame.
    preface: usize,
}

impl<S> FrameLimited<S> {
    /// Wraps a stream that begins with `preface` bytes before the first frame.
    pub(super) fn new(stream: S, preface: usize, life: Arc<Life>) -> Self {
        Self { stream, meter: Meter::new(Instant::now(), life.stream_memory()), life, preface }
    }
}

impl<S: AsyncWrite + Unpin> FrameLimited<S> {
    /// Ends the connection from below. hyper can send GOAWAY only if it may finish the calls, so it
    /// is sent here, unless a frame of hyper's is half written: then it would not be understood.
    /// Bytes that the client has sent and that were not read may make the system reset the
    /// connection, and the GOAWAY is lost.
    fn cut(&mut self, cx: &mut Context<'_>, reason: &'static str) -> io::Error {
        if self.meter.sent.is_between_frames() {
            let goaway = self.meter.goaway(reason);
            let _ = Pin::new(&mut self.stream).poll_write(cx, &goaway);
            let _ = Pin::new(&mut self.stream).poll_flush(cx);
        }
        io::Error::new(io::ErrorKind::InvalidData, reason)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for FrameLimited<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.life.is_unread() {
            return Poll::Ready(Err(this.cut(cx, "unread")));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        let read = buffer.filled().get(before..).unwrap_or_default();
        let preface = this.preface.min(read.len());
        this.preface -= preface;
        match this.meter.receive(read.get(preface..).unwrap_or_default()) {
            None => Poll::Ready(Ok(())),
            Some(excess) => {
                crate::metrics::METRICS.connections_cut.count(excess);
                Poll::Ready(Err(this.cut(cx, excess)))
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FrameLimited<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
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

    fn meter() -> Meter {
        Meter::new(Instant::now(), Arc::default())
    }

    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let mut frame = (length as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, 0, 0, 0, 0, 0]);
        frame.resize(HEAD + length, 0xff);
        frame
    }

    /// L03: a flood of PINGs is cut, calls with a PING each are not.
    #[test]
    fn control_frames_beyond_what_calls_bring_are_too_many() {
        let flood = frame(PING, 8).repeat(200_000);
        assert_eq!(meter().receive(&flood), Some("control_frames"));

        let mut meter = meter();
        let calls = [frame(HEADERS, 40), frame(DATA, 100), frame(PING, 8), frame(PING, 8)]
            .concat()
            .repeat(100_000);
        assert_eq!(meter.receive(&calls), None);
    }

    /// L03: window updates are free for data that was sent, and resets for streams that were
    /// opened; others are counted.
    #[test]
    fn updates_without_data_and_resets_without_streams_are_too_many() {
        let (update, reset) = (frame(WINDOW_UPDATE, 4), frame(RST_STREAM, 4));
        let mut meter = meter();
        meter.budget.left = 0;
        for _ in 0..1_000 {
            meter.send(&frame(DATA, 300));
            meter.budget.left = 0;
            assert_eq!(
                meter.receive(&update.repeat(2)),
                None,
                "one for the stream and one for the connection"
            );
        }
        assert_eq!(meter.budget.left, 0);
        meter.budget.left = 10;
        assert_eq!(meter.receive(&update.repeat(10)), None);
        assert_eq!(meter.budget.left, 0);

        meter.budget.left = OTHER;
        assert_eq!(meter.receive(&frame(HEADERS, 40)), None);
        assert_eq!(meter.receive(&reset), None);
        assert_eq!(meter.budget.left, OTHER + PER_CALL_FRAME, "a stream may be reset");
        assert_eq!(meter.receive(&reset), None);
        assert_eq!(meter.budget.left, PER_CALL_FRAME, "once");

        for flood in [update.repeat(2_000_000), reset.repeat(200_000)] {
            assert_eq!(self::meter().receive(&flood), Some("control_frames"));
        }
    }

    /// L02, L03: a GOAWAY names the last stream that may have been processed, and none of the read
    /// that is cut.
    #[test]
    fn a_goaway_names_no_stream_that_was_not_passed_on() {
        let headers = |from: u32| {
            let head = |number| {
                [&[0, 0, 1, HEADERS, 0][..], &u32::to_be_bytes(number * 2 + 1), &[0]].concat()
            };
            (from..from + 16).flat_map(head).collect::<Vec<_>>()
        };
        let named = |meter: &Meter| {
            u32::from_be_bytes(meter.goaway("")[HEAD..HEAD + 4].try_into().unwrap())
        };
        for (excess, what) in [
            (headers(16), "streams"),
            ([headers(16), frame(PING, 8).repeat(20_000)].concat(), "control_frames"),
        ] {
            let stream_memory = Arc::<StreamMemory>::default();
            let mut meter = Meter::new(Instant::now(), Arc::clone(&stream_memory));
            assert_eq!((named(&meter), meter.receive(&headers(0)), named(&meter)), (0, None, 31));
            if what == "streams" {
                stream_memory.grow(usize::MAX / 4);
            }
            assert_eq!((meter.receive(&excess), named(&meter)), (Some(what), 31));
        }
    }

    proptest! {
        /// Frames are found wherever the reads are cut.
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
            let mut meter = meter();
            meter.budget.left = BURST / 2;
            for part in bytes.chunks(cut) {
                prop_assert_eq!(meter.receive(part), None);
            }
            prop_assert_eq!(meter.budget.left, expected);
            for part in bytes.chunks(cut) {
                meter.send(part);
            }
            prop_assert_eq!(meter.budget.updates, data * UPDATES_PER_DATA);
            prop_assert!(meter.received.is_between_frames() && meter.sent.is_between_frames());
        }
    }
}
