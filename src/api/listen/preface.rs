//! Detection of a connection's HTTP version by its first bytes, which are then read again by HTTP.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// First bytes of an HTTP/2 client (RFC 9113 section 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// HTTP version of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HttpVersion {
    Http1,
    Http2,
}

/// Connection whose first bytes were read ahead.
pub(super) struct Replay<S> {
    ahead: [u8; PREFACE.len()],
    from: usize,
    to: usize,
    stream: S,
}

/// Reads until the preface is complete or cannot become one any more. At most 24 bytes are read.
pub(super) async fn detect_version<S: AsyncRead + Unpin>(
    mut stream: S,
) -> io::Result<(HttpVersion, Replay<S>)> {
    let mut ahead = [0; PREFACE.len()];
    let mut to = 0;
    let version = loop {
        let (said, rest) = ahead.split_at_mut(to);
        if !PREFACE.starts_with(said) {
            break HttpVersion::Http1;
        }
        if rest.is_empty() {
            break HttpVersion::Http2;
        }
        match stream.read(rest).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => to += read,
        }
    };
    Ok((version, Replay { ahead, from: 0, to, stream }))
}

impl<S: AsyncRead + Unpin> AsyncRead for Replay<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let said = this.ahead.get(this.from..this.to).unwrap_or_default();
        if said.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buffer);
        }
        let again = said.get(..buffer.remaining()).unwrap_or(said);
        buffer.put_slice(again);
        this.from += again.len();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replay<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
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
