//! Estimate, from its frames, of the memory that HTTP/2 keeps for the streams of one connection: a
//! slot for each stream, from its HEADERS until it is closed on both sides, and one for each DATA
//! frame until the handler takes it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    frame::{DATA, HEADERS, Head, RST_STREAM},
    stream_memory::StreamMemory,
};

/// Bytes that h2 keeps for a stream, with the frames of its response: measured, 1.2 to 2 KB, the
/// less the more there are.
const STREAM: usize = 1_792;
/// Bytes that h2 keeps for a DATA frame: measured.
const FRAME: usize = 272;
/// Streams at once, and short DATA frames, that are free for every connection.
const FREE_STREAMS: usize = 16;
const FREE_FRAMES: usize = 64;
/// Length of a DATA frame above which the window of the connection bounds the number of such
/// frames.
const SHORT: usize = 2 * 1024;
/// Streams that h2 keeps for a while after it has reset them: a second, and until its next cleanup.
const RESETS: usize = 50;
const KEPT_RESET: Duration = Duration::from_secs(2);

const END_STREAM: u8 = 1;
const PADDED: u8 = 8;

/// Tracker of the streams of one connection.
pub(super) struct Streams {
    /// Open streams by number; the client opens them in this order.
    open: Vec<Open>,
    last: u32,
    /// Short DATA frames of open streams.
    frames: usize,
    /// Times of the last [`RESETS`] streams that the server reset; those older than [`KEPT_RESET`]
    /// are removed at the next frame.
    resets: VecDeque<Instant>,
    /// Most streams at once so far, and no less than are free.
    most_streams: usize,
    most_frames: usize,
    stream_memory: Arc<StreamMemory>,
}

struct Open {
    stream: u32,
    frames: u32,
    is_asked: bool,
    is_answered: bool,
}

impl Streams {
    pub(super) const fn new(stream_memory: Arc<StreamMemory>) -> Self {
        let (most_streams, most_frames) = (FREE_STREAMS, FREE_FRAMES);
        Self {
            open: Vec::new(),
            last: 0,
            frames: 0,
            resets: VecDeque::new(),
            most_streams,
            most_frames,
            stream_memory,
        }
    }

    /// Returns the last stream that the client opened.
    pub(super) const fn last(&self) -> u32 {
        self.last
    }

    /// Records a frame from the client. Returns true if there is room for the memory that HTTP/2
    /// keeps for it.
    pub(super) fn receive(&mut self, head: Head) -> bool {
        match head.kind {
            HEADERS if head.stream > self.last => {
                self.last = head.stream;
                self.open.push(Open {
                    stream: head.stream,
                    frames: 0,
                    is_asked: head.flags & END_STREAM != 0,
                    is_answered: false,
                });
            }
            HEADERS | DATA => self.follow(head, |open, frames| {
                if head.kind == DATA && (head.length < SHORT || head.flags & PADDED != 0) {
                    open.frames += 1;
                    *frames += 1;
                }
                open.is_asked |= head.flags & END_STREAM != 0;
            }),
            RST_STREAM => self.close(head.stream),
            _ => return true,
        }
        let streams = self.open.len() + self.resets();
        if streams <= self.most_streams && self.frames <= self.most_frames {
            return true;
        }
        let more = streams.saturating_sub(self.most_streams) * STREAM
            + self.frames.saturating_sub(self.most_frames) * FRAME;
        self.most_streams = self.most_streams.max(streams);
        self.most_frames = self.most_frames.max(self.frames);
        self.stream_memory.grow(more)
    }

    /// Records a frame to the client.
    pub(super) fn send(&mut self, head: Head) {
        match head.kind {
            HEADERS | DATA => self.follow(head, |open, frames| {
                // In a bidirectional stream, a response shows that the handler took a message.
                if head.kind == DATA && open.frames > 0 {
                    open.frames -= 1;
                    *frames -= 1;
                }
                open.is_answered |= head.flags & END_STREAM != 0;
            }),
            RST_STREAM => {
                if self.resets.len() == RESETS {
                    self.resets.pop_front();
                }
                self.resets.push_back(Instant::now());
                self.close(head.stream);
            }
            _ => {}
        }
    }

    /// Returns the number of streams that we reset and h2 may still keep.
    fn resets(&mut self) -> usize {
        if !self.resets.is_empty() {
            let now = Instant::now();
            while self
                .resets
                .pop_front_if(|at| now.saturating_duration_since(*at) > KEPT_RESET)
                .is_some()
            {}
        }
        self.resets.len()
    }

    fn follow(&mut self, head: Head, step: impl FnOnce(&mut Open, &mut usize)) {
        let Ok(index) = self.open.binary_search_by_key(&head.stream, |open| open.stream) else {
            return;
        };
        let Some(open) = self.open.get_mut(index) else { return };
        step(open, &mut self.frames);
        if open.is_asked && open.is_answered {
            self.close(head.stream);
        }
    }

    fn close(&mut self, stream: u32) {
        if let Ok(index) = self.open.binary_search_by_key(&stream, |open| open.stream) {
            self.frames -= self.open.remove(index).frames as usize;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::stream_memory::MAX_BYTES_PER_PEER, *};

    fn head(kind: u8, flags: u8, stream: u32) -> Head {
        Head { kind, flags, stream, length: 5 }
    }

    fn streams() -> Streams {
        Streams::new(Arc::default())
    }

    fn kept(streams: &Streams) -> (usize, usize, usize) {
        (streams.open.len(), streams.most_streams, streams.most_frames)
    }

    /// L02 (AUDIT TL1): calls one after the other keep no memory, whichever side ends them and in
    /// whatever order.
    #[test]
    fn streams_that_are_over_are_not_kept() {
        let mut streams = streams();
        let ends: [&[(bool, u8, u8)]; 5] = [
            &[
                (true, DATA, END_STREAM),
                (false, HEADERS, 0),
                (false, DATA, 0),
                (false, HEADERS, END_STREAM),
            ],
            &[(false, HEADERS, END_STREAM), (true, DATA, END_STREAM)],
            &[(false, HEADERS, 0), (true, HEADERS, END_STREAM), (false, DATA, END_STREAM)],
            &[(true, DATA, 0), (true, RST_STREAM, 0)],
            &[
                (true, DATA, END_STREAM),
                (false, HEADERS, END_STREAM),
                (true, RST_STREAM, 0),
                (true, RST_STREAM, 0),
            ],
        ];
        for number in 0..1_000 {
            let stream = number * 2 + 1;
            assert!(streams.receive(head(HEADERS, 0, stream)));
            for (received, kind, flags) in ends[number as usize % ends.len()] {
                let head = head(*kind, *flags, stream);
                if *received { assert!(streams.receive(head)) } else { streams.send(head) }
            }
            assert_eq!((streams.open.len(), streams.frames), (0, 0), "{number}");
        }
        assert_eq!((kept(&streams), streams.last()), ((0, FREE_STREAMS, FREE_FRAMES), 1_999));
        assert!(!streams.stream_memory.is_kept());
    }

    /// L02 (AUDIT TL1): the most streams at once count for as long as the connection lives, and no
    /// others do.
    #[test]
    fn the_most_streams_at_once_are_kept() {
        let mut streams = streams();
        for _ in 0..3 {
            let from = streams.last() + 2;
            for number in 0..200 {
                assert!(streams.receive(head(HEADERS, END_STREAM, from + number * 2)));
            }
            for number in 0..200 {
                streams.send(head(HEADERS, END_STREAM, from + number * 2));
            }
            assert_eq!(kept(&streams), (0, 200, FREE_FRAMES));
        }
        let rest = MAX_BYTES_PER_PEER - (200 - FREE_STREAMS) * STREAM;
        assert!(streams.stream_memory.grow(rest), "counted once");
        assert!(!streams.stream_memory.grow(1), "and not given back");
    }

    /// L02 (AUDIT TL1): streams that we reset are kept for a while, and count.
    #[test]
    fn streams_that_were_reset_count_for_a_while() {
        let mut streams = streams();
        for number in 0..200 {
            assert!(streams.receive(head(HEADERS, 0, number * 2 + 1)));
            streams.send(head(RST_STREAM, 0, number * 2 + 1));
        }
        assert_eq!(kept(&streams), (0, RESETS + 1, FREE_FRAMES));
    }

    /// L02 (AUDIT TL1): and no longer: a client whose calls are answered early, one after the
    /// other, keeps no memory.
    #[tokio::test(start_paused = true)]
    async fn streams_that_were_reset_long_ago_do_not_count() {
        let mut streams = streams();
        for number in 0..200 {
            assert!(streams.receive(head(HEADERS, 0, number * 2 + 1)));
            streams.send(head(RST_STREAM, 0, number * 2 + 1));
            tokio::time::advance(KEPT_RESET / 10).await;
        }
        assert_eq!(
            (kept(&streams), streams.stream_memory.is_kept()),
            ((0, FREE_STREAMS, FREE_FRAMES), false)
        );
        tokio::time::advance(KEPT_RESET).await;
        assert_eq!(streams.resets(), 0);
    }

    /// L02 (AUDIT TL1): one stream that sends its message in very many frames is counted like very
    /// many streams; frames that fill a window, and messages that are answered one by one, are not.
    #[test]
    fn short_frames_of_a_message_are_kept() {
        let mut streams = streams();
        assert!(streams.receive(head(HEADERS, 0, 1)));
        for _ in 0..1_000 {
            assert!(streams.receive(head(DATA, 0, 1)));
            streams.send(head(DATA, 0, 1));
            assert!(streams.receive(Head { length: SHORT, ..head(DATA, 0, 1) }));
        }
        assert_eq!(kept(&streams), (1, FREE_STREAMS, FREE_FRAMES));
        for (flags, length) in [(0, 1), (PADDED, 16_384)] {
            for _ in 0..500 {
                assert!(streams.receive(Head { length, ..head(DATA, flags, 1) }));
            }
        }
        assert_eq!(kept(&streams), (1, FREE_STREAMS, 1_000));
        let more = MAX_BYTES_PER_PEER / FRAME + FREE_FRAMES - 1_000;
        assert_eq!((0..).find(|_| !streams.receive(head(DATA, 0, 1))), Some(more));
    }
}
