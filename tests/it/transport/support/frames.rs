//! HTTP/2 by hand: frames as bytes, so that they can be wrong (RFC 9113, RFC 7541).

use crate::support::until::HANG;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;

/// Payload of the PING that comes after a flood.
const LAST: &[u8; 8] = b"the last";

/// A setting.
const INITIAL_WINDOW_SIZE: u8 = 4;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const ACK: u8 = 1;

pub(crate) const REFUSED_STREAM: u32 = 7;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

/// A frame as it came.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The error code of a GOAWAY.
    pub(crate) fn goaway(&self) -> Option<u32> {
        (self.kind == GOAWAY).then(|| u32::from_be_bytes(self.payload[4..8].try_into().unwrap()))
    }

    /// The error code of a RST_STREAM.
    pub(crate) fn reset(&self) -> Option<u32> {
        (self.kind == RST_STREAM).then(|| u32::from_be_bytes(self.payload[..4].try_into().unwrap()))
    }
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A header block of literals that touch no table.
pub(crate) fn block<'a>(headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        for text in [name, value] {
            integer(&mut block, text.len());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// With a prefix of seven bits, and no Huffman coding.
fn integer(block: &mut Vec<u8>, value: usize) {
    if value < 127 {
        return block.push(value as u8);
    }
    block.push(127);
    let mut rest = value - 127;
    while rest >= 128 {
        block.push((rest % 128 + 128) as u8);
        rest /= 128;
    }
    block.push(rest as u8);
}

/// The headers of a gRPC call.
pub(crate) fn call(path: &str) -> Vec<(&str, &str)> {
    vec![
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "port"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
}

/// A connection on which both sides have said hello.
pub(crate) struct Raw {
    pub(crate) reader: OwnedReadHalf,
    pub(crate) writer: OwnedWriteHalf,
}

impl Raw {
    pub(crate) async fn open(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap()).await
    }

    pub(crate) async fn over(stream: TcpStream) -> Self {
        Self::with_settings(stream, &[]).await
    }

    /// That lets so many bytes of each answer through.
    pub(crate) async fn with_window(stream: TcpStream, window: u32) -> Self {
        Self::with_settings(
            stream,
            &[&[0, INITIAL_WINDOW_SIZE][..], &window.to_be_bytes()].concat(),
        )
        .await
    }

    async fn with_settings(stream: TcpStream, settings: &[u8]) -> Self {
        Self::try_with_settings(stream, settings).await.expect("the server says hello")
    }

    /// Nothing if the server closes.
    pub(crate) async fn try_over(stream: TcpStream) -> Option<Self> {
        Self::try_with_settings(stream, &[]).await
    }

    async fn try_with_settings(stream: TcpStream, settings: &[u8]) -> Option<Self> {
        stream.set_nodelay(true).unwrap();
        let (reader, mut writer) = stream.into_split();
        writer.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, settings)].concat()).await.ok()?;
        let mut raw = Self { reader, writer };
        assert_eq!(raw.next().await?.kind, SETTINGS);
        raw.writer.write_all(&frame(SETTINGS, ACK, 0, &[])).await.ok()?;
        Some(raw)
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.writer.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> Option<Frame> {
        read_frame(&mut self.reader).await
    }

    /// The first frame that is as asked; panics if the connection ends without one, or a minute
    /// passes.
    pub(crate) async fn expect(&mut self, mut is: impl FnMut(&Frame) -> bool) -> Frame {
        let found = async {
            loop {
                let frame = self
                    .next()
                    .await
                    .expect("the connection ended without the frame that was expected");
                if is(&frame) {
                    return frame;
                }
            }
        };
        tokio::time::timeout(HANG, found).await.expect("the frame did not come")
    }

    /// Sends `bytes`. Once the server has taken all of it, `None`; if it ends the connection
    /// instead, the code of its GOAWAY, or 0 if there came none.
    pub(crate) async fn taken(&mut self, bytes: &[u8]) -> Option<u32> {
        let all = [bytes, &frame(PING, 0, 0, b"taken it")].concat();
        let mut code = 0;
        let taking = async {
            // If it is cut in the middle, what came before is still there to be read.
            let _ = self.writer.write_all(&all).await;
            while let Some(frame) = self.next().await {
                if frame.kind == PING && frame.flags & ACK != 0 {
                    return None;
                }
                code = frame.goaway().unwrap_or(code);
            }
            Some(code)
        };
        tokio::time::timeout(HANG, taking).await.expect("the server neither takes it nor closes")
    }

    /// Stays as it is while the test goes on, for however long: says that it is there whenever it
    /// is asked. `gone` counts those that were told to go away without an error.
    pub(crate) fn keep(mut self, gone: &Arc<AtomicUsize>) -> Kept {
        let gone = Arc::clone(gone);
        Kept(tokio::spawn(async move {
            let mut was_told = false;
            while let Some(got) = self.next().await {
                if got.goaway() == Some(0) && !std::mem::replace(&mut was_told, true) {
                    gone.fetch_add(1, Relaxed);
                }
                if got.kind == PING && got.flags & ACK == 0 {
                    let _ = self.writer.write_all(&frame(PING, ACK, 0, &got.payload)).await;
                }
            }
        }))
    }

    /// Sends `bytes` while reading, and reads on until the server has taken all or closes, for at
    /// most a minute. What came, but for the headers and data of answers.
    pub(crate) async fn flood(
        mut self,
        bytes: impl Iterator<Item = Vec<u8>> + Send + 'static,
    ) -> Vec<Frame> {
        let writing = tokio::spawn(async move {
            for part in bytes {
                if self.writer.write_all(&part).await.is_err() {
                    return self.writer;
                }
            }
            let _ = self.writer.write_all(&frame(PING, 0, 0, LAST)).await;
            self.writer
        });
        let mut frames = Vec::new();
        let reading = async {
            while let Some(frame) = read_frame(&mut self.reader).await {
                match frame.kind {
                    GOAWAY | RST_STREAM => frames.push(frame),
                    PING if frame.payload == LAST => break,
                    _ => {}
                }
            }
        };
        tokio::time::timeout(HANG, reading).await.expect("the server neither takes it nor closes");
        writing.abort();
        frames
    }
}

/// A connection that stays open until this is dropped.
pub(crate) struct Kept(JoinHandle<()>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn read_frame(reader: &mut (impl AsyncRead + Unpin)) -> Option<Frame> {
    let mut head = [0; 9];
    reader.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let mut payload = vec![0; length];
    reader.read_exact(&mut payload).await.ok()?;
    let stream = u32::from_be_bytes(head[5..9].try_into().unwrap()) & (u32::MAX >> 1);
    Some(Frame { kind: head[3], flags: head[4], stream, payload })
}

/// Returns true if the other side has closed, or closes within a minute.
pub(crate) async fn closes(reader: &mut (impl AsyncRead + Unpin)) -> bool {
    let mut rest = Vec::new();
    tokio::time::timeout(HANG, reader.read_to_end(&mut rest)).await.is_ok()
}
