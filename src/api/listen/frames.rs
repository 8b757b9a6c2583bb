//! A bound on HTTP/2 frames that ask for work and carry none: SETTINGS, PING, PRIORITY and unknown ones. h2 cuts floods of
//! resets, CONTINUATION and empty DATA by itself, but answers these for ever.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// PINGs a connection may send at once.
const BURST: f64 = 10_000.0;
/// PINGs it may go on sending each second: clients that measure the path send one a round trip for as long as data flows.
const PER_SECOND: f64 = 5_000.0;
/// PINGs that come free with each frame of a call.
const PER_CALL_FRAME: f64 = 4.0;
/// What any other control frame counts for, in PINGs: no client has reason to send many.
const OTHER: f64 = 10.0;

const HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// Follows the frames of one connection.
struct Meter {
    head: [u8; HEAD],
    have: usize,
    skip: usize,
    left: f64,
    at: Instant,
}

impl Meter {
    fn new(now: Instant) -> Self {
        Self { head: [0; HEAD], have: 0, skip: 0, left: BURST, at: now }
    }

    /// Whether the connection is within its bounds after these further bytes.
    fn take(&mut self, mut bytes: &[u8]) -> bool {
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
                if !self.count(kind) {
                    return false;
                }
            }
        }
        true
    }

    fn count(&mut self, kind: u8) -> bool {
        match kind {
            DATA | HEADERS => self.left = (self.left + PER_CALL_FRAME).min(BURST),
            RST_STREAM | WINDOW_UPDATE | CONTINUATION => {}
            _ => {
                self.left -= if kind == PING { 1.0 } else { OTHER };
                if self.left < 0.0 {
                    let now = Instant::now();
                    let since = now.saturating_duration_since(self.at).as_secs_f64();
                    self.at = now;
                    self.left = (self.left + since * PER_SECOND).min(BURST);
                }
            }
        }
        self.left >= 0.0
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
        if this.meter.take(read.get(preface..).unwrap_or_default()) {
            return Poll::Ready(Ok(()));
        }
        metrics::counter!("connections_cut_total", "reason" => "control_frames").increment(1);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "too many control frames")))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
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
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
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
        assert!(!meter.take(&flood));

        let mut meter = Meter::new(Instant::now());
        let calls = [frame(HEADERS, 40), frame(DATA, 100), frame(PING, 8), frame(PING, 8)].concat().repeat(100_000);
        assert!(meter.take(&calls));
    }

    proptest! {
        /// Frames are found wherever the reads happen to be cut.
        #[test]
        fn cuts_between_reads_change_nothing(kinds in prop::collection::vec((0_u8..12, 0_usize..40), 1..50), cut in 1_usize..30) {
            let bytes: Vec<u8> = kinds.iter().flat_map(|(kind, length)| frame(*kind, *length)).collect();
            let cost = |(kind, _): &(u8, usize)| match kind {
                0 | 1 => -PER_CALL_FRAME,
                3 | 8 | 9 => 0.0,
                6 => 1.0,
                _ => OTHER,
            };
            let mut meter = Meter::new(Instant::now());
            meter.left = 5_000.0;
            for part in bytes.chunks(cut) {
                prop_assert!(meter.take(part));
            }
            prop_assert_eq!(meter.left, 5_000.0 - kinds.iter().map(cost).sum::<f64>());
            prop_assert_eq!((meter.have, meter.skip), (0, 0));
        }
    }
}
