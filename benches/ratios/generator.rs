//! A load of calls that differ from each other, which h2load cannot make. One thread, frames made
//! by hand: it takes no more of the cores than h2load does, and both servers get it alike.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{report::Run, talk::Talk};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// The preface, and settings without server push and with stream windows of 16 MiB.
const OPENING: &[u8] =
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x0c\x04\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x04\x01\x00\x00\x00";
/// How much is read before the server is allowed as much again.
const WINDOW: u32 = 1 << 30;

/// Connections, and calls in flight on each.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) connections: usize,
    pub(crate) streams: usize,
}

/// Puts the load on a server until `talk` has nothing more to say or the time is up.
pub(crate) fn run(
    address: SocketAddr,
    shape: Shape,
    time: Duration,
    talk: &mut (impl Talk + 'static),
) -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let method = talk.method();
    let load = Load {
        talk: RefCell::new(talk),
        micros: RefCell::default(),
        end: Instant::now() + time,
        failed: RefCell::default(),
    };
    let began = Instant::now();
    runtime.block_on(async {
        let drives = (0..shape.connections).map(|_| load.drive(address, method, shape.streams));
        futures_util::future::join_all(drives).await;
    });
    let seconds = began.elapsed().as_secs_f64();
    let micros = load.micros.into_inner();
    let (calls, failed) = (micros.len() as u64, load.failed.into_inner());
    Run { calls, per_second: calls as f64 / seconds, failed, micros, ..Run::default() }
}

struct Load<'t, T> {
    talk: RefCell<&'t mut T>,
    micros: RefCell<Vec<u32>>,
    failed: RefCell<u64>,
    end: Instant,
}

struct Call {
    sent: Instant,
    answer: Vec<u8>,
}

impl<T: Talk> Load<'_, T> {
    async fn drive(&self, address: SocketAddr, method: &str, streams: usize) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut wire = Wire::new(address, method);
        let mut input = Vec::with_capacity(1 << 16);
        loop {
            while wire.open.len() < streams && Instant::now() < self.end {
                let Some(message) = self.talk.borrow_mut().next() else { break };
                wire.call(&message);
            }
            stream.write_all(&wire.output).await.unwrap();
            wire.output.clear();
            if wire.open.is_empty() {
                return;
            }
            assert!(
                stream.read_buf(&mut input).await.unwrap() > 0,
                "the server closed a connection"
            );
            let mut rest = input.as_slice();
            while let Some((frame, after)) = Frame::split(rest) {
                rest = after;
                if let Some(call) = wire.take(&frame) {
                    self.ended(&call);
                }
            }
            let taken = input.len() - rest.len();
            input.drain(..taken);
        }
    }

    fn ended(&self, call: &Call) {
        // An error is all trailers; every answer has at least the prefix of its message.
        match call.answer.split_at_checked(5) {
            Some((_, message)) => {
                self.micros
                    .borrow_mut()
                    .push(u32::try_from(call.sent.elapsed().as_micros()).unwrap());
                self.talk.borrow_mut().answered(message);
            }
            None => *self.failed.borrow_mut() += 1,
        }
    }
}

struct Frame<'i> {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &'i [u8],
}

impl<'i> Frame<'i> {
    fn split(input: &'i [u8]) -> Option<(Self, &'i [u8])> {
        let (head, rest) = input.split_at_checked(9)?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (payload, rest) = rest.split_at_checked(length)?;
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        Some((Self { kind: head[3], flags: head[4], stream, payload }, rest))
    }
}

/// One connection's state.
struct Wire {
    open: HashMap<u32, Call>,
    output: Vec<u8>,
    next: u32,
    read: u32,
    /// The headers of the first request; those after it refer to them.
    headers: Vec<u8>,
}

impl Wire {
    fn new(address: SocketAddr, method: &str) -> Self {
        let mut headers = vec![0x83, 0x86];
        let path = format!("/jeton.token.v1.TokenService/{method}");
        let named: [(&[u8], &str); 4] = [
            (&[0x44], &path),
            (&[0x41], &address.to_string()),
            (&[0x5f], "application/grpc"),
            (b"\x40\x02te", "trailers"),
        ];
        for (name, value) in named {
            headers.extend_from_slice(name);
            headers.push(u8::try_from(value.len()).unwrap());
            headers.extend_from_slice(value.as_bytes());
        }
        let mut wire =
            Self { open: HashMap::new(), output: OPENING.to_vec(), next: 1, read: 0, headers };
        wire.frame(WINDOW_UPDATE, 0, 0, &WINDOW.to_be_bytes());
        wire
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.output.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes()[1..]);
        self.output.extend_from_slice(&[kind, flags]);
        self.output.extend_from_slice(&stream.to_be_bytes());
        self.output.extend_from_slice(payload);
    }

    fn call(&mut self, message: &[u8]) {
        let stream = self.next;
        self.next += 2;
        let headers = if stream == 1 {
            std::mem::take(&mut self.headers)
        } else {
            vec![0x83, 0x86, 0xc1, 0xc0, 0xbf, 0xbe]
        };
        self.frame(HEADERS, END_HEADERS, stream, &headers);
        let prefixed =
            [&[0], u32::try_from(message.len()).unwrap().to_be_bytes().as_slice(), message]
                .concat();
        self.frame(DATA, END_STREAM, stream, &prefixed);
        self.open.insert(stream, Call { sent: Instant::now(), answer: Vec::new() });
    }

    /// Follows a frame; a call that it ended comes back.
    fn take(&mut self, frame: &Frame<'_>) -> Option<Call> {
        match frame.kind {
            DATA => {
                self.read += u32::try_from(frame.payload.len()).unwrap();
                if self.read > WINDOW / 2 {
                    let read = std::mem::take(&mut self.read);
                    self.frame(WINDOW_UPDATE, 0, 0, &read.to_be_bytes());
                }
                self.open.get_mut(&frame.stream)?.answer.extend_from_slice(frame.payload);
            }
            SETTINGS if frame.flags & ACK == 0 => self.frame(SETTINGS, ACK, 0, &[]),
            PING if frame.flags & ACK == 0 => self.frame(PING, ACK, 0, frame.payload),
            RST_STREAM | GOAWAY => {
                panic!("the server refused a stream: frame {} {:?}", frame.kind, frame.payload)
            }
            _ => {}
        }
        let ended = matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0;
        if ended { self.open.remove(&frame.stream) } else { None }
    }
}
