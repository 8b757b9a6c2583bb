//! Addresses of clients behind proxies: the header of the PROXY protocol, version 2, before the
//! first byte of a connection.
//!
//! Only a proxy in `proxy.trusted` is listened to; it must send a header. A client could otherwise
//! choose its own address, and with it whose limits it uses and what the audit trail records.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::{
    config::{Proxy, ProxyHeader, ProxyProtocol},
    model::Network,
};

/// First bytes of a header.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// First bytes of a header of version 1.
const VERSION_1: &[u8] = b"PROXY ";
/// Bytes of the fixed part: signature, version and command, family, length.
const FIXED_BYTES: usize = 16;
/// Maximum bytes of the rest, addresses and extensions. Proxies send a few hundred, more with the
/// client's certificate; they are not used.
const REST_MAX_BYTES: usize = 4096;
/// Bytes of the addresses and ports of two ends, by family.
const IPV4_BYTES: usize = 12;
const IPV6_BYTES: usize = 36;
const UNIX_BYTES: usize = 216;

/// Proxies in front of the port, and how they name their clients.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    trusted: Vec<Network>,
    protocol: ProxyProtocol,
    /// Header of HTTP.
    pub(super) header: ProxyHeader,
}

impl Proxies {
    /// Creates the proxies of a configuration.
    pub fn new(proxy: &Proxy) -> Self {
        Self { trusted: proxy.trusted.clone(), protocol: proxy.protocol, header: proxy.header }
    }

    /// Returns true if the address is a proxy's.
    pub(super) fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(address))
    }

    /// Returns true if a connection of this peer begins with a header.
    pub(super) fn announces(&self, peer: IpAddr) -> bool {
        self.protocol == ProxyProtocol::V2 && self.trusts(peer)
    }

    /// Returns true if the headers of this peer's requests name clients.
    pub(super) fn forwards(&self, peer: IpAddr) -> bool {
        self.header != ProxyHeader::Off && self.trusts(peer)
    }
}

/// Reason that a connection of a trusted proxy is closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyError {
    /// The connection begins with something else.
    #[error("the proxy sent no header of the PROXY protocol")]
    Missing,
    /// The header is one of version 1.
    #[error("the proxy speaks version 1 of the PROXY protocol: configure version 2")]
    Version1,
    /// The header is not as the specification has it.
    #[error("the proxy's header is malformed: {0}")]
    Malformed(&'static str),
    /// The connection ended or timed out before the header was complete.
    #[error("the proxy's header is incomplete: {0}")]
    Incomplete(#[from] io::Error),
    /// The connection ended before its first byte, as that of a health check does.
    #[error("the proxy closed the connection")]
    Closed,
}

/// Logs a refused connection of a proxy: the first one for the operator, since all of them are
/// likely to be refused then.
pub(super) fn report(peer: IpAddr, error: &ProxyError) {
    static IS_REPORTED: AtomicBool = AtomicBool::new(false);
    if IS_REPORTED.swap(true, Relaxed) {
        tracing::debug!(%peer, %error, "connection of a proxy refused");
    } else {
        tracing::warn!(%peer, %error, "connection of a proxy refused, further ones are counted only");
    }
}

/// Reads a header and not a byte more. Returns the client's address; `None` if the connection is
/// the proxy's own, or its client has no IP address.
pub(super) async fn read_header<S: AsyncRead + Unpin>(
    stream: &mut S,
) -> Result<Option<IpAddr>, ProxyError> {
    let mut fixed = [0; FIXED_BYTES];
    let mut to = 0;
    while to < FIXED_BYTES {
        let (said, rest) = fixed.split_at_mut(to);
        // As early as possible: something else may be shorter than a header.
        check_start(said)?;
        match stream.read(rest).await? {
            0 if to == 0 => return Err(ProxyError::Closed),
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            read => to += read,
        }
    }
    check_start(&fixed)?;
    let [.., command, family, high, low] = fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    let is_local = match command {
        0x20 => true,
        0x21 => false,
        _ if command >> 4 != 2 => return Err(ProxyError::Malformed("unknown version")),
        _ => return Err(ProxyError::Malformed("unknown command")),
    };
    if length > REST_MAX_BYTES {
        return Err(ProxyError::Malformed("longer than 4096 bytes"));
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await?;
    if is_local {
        // A health check of the proxy itself: addresses are to be ignored, of any family.
        return Ok(None);
    }
    source(family, &rest)
}

/// Refuses what cannot be the start of a header.
fn check_start(said: &[u8]) -> Result<(), ProxyError> {
    let common = said.len().min(SIGNATURE.len());
    if said.get(..common) == SIGNATURE.get(..common) {
        return Ok(());
    }
    if said.starts_with(VERSION_1) {
        return Err(ProxyError::Version1);
    }
    // Version 1 in pieces: its reason is known once it is whole.
    if VERSION_1.starts_with(said) { Ok(()) } else { Err(ProxyError::Missing) }
}

/// Returns the address of the client, the first of a block of addresses.
fn source(family: u8, rest: &[u8]) -> Result<Option<IpAddr>, ProxyError> {
    let short = || ProxyError::Malformed("too short for its addresses");
    let (address, bytes) = match family {
        0x00 => return Ok(None),
        0x11 => {
            let octets: [u8; 4] = *rest.first_chunk().ok_or_else(short)?;
            (Some(IpAddr::from(Ipv4Addr::from(octets))), IPV4_BYTES)
        }
        0x21 => {
            let octets: [u8; 16] = *rest.first_chunk().ok_or_else(short)?;
            (Some(IpAddr::from(Ipv6Addr::from(octets)).to_canonical()), IPV6_BYTES)
        }
        0x31 => (None, UNIX_BYTES),
        _ => return Err(ProxyError::Malformed("unknown family, or not a stream")),
    };
    let Some(extensions) = rest.get(bytes..) else { return Err(short()) };
    check_extensions(extensions)?;
    Ok(address)
}

/// Checks that extensions are whole: type, length of two bytes, value. None is used.
fn check_extensions(mut rest: &[u8]) -> Result<(), ProxyError> {
    while !rest.is_empty() {
        let length = match rest {
            [_, high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])),
            _ => return Err(ProxyError::Malformed("cut extension")),
        };
        rest = rest.get(3 + length..).ok_or(ProxyError::Malformed("cut extension"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use tokio::io::AsyncWriteExt;

    use super::*;

    /// A header of this command and family.
    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    fn v4(source: [u8; 4]) -> Vec<u8> {
        [&source[..], &[10, 0, 0, 1], &[0x30, 0x39, 0xc3, 0x83]].concat()
    }

    /// Reads `sent` in pieces of `piece` bytes, then the end; returns what was left unread too.
    async fn read(sent: &[u8], piece: usize) -> (Result<Option<IpAddr>, String>, Vec<u8>) {
        let (mut client, mut server) = tokio::io::duplex(piece);
        let sent = sent.to_vec();
        let writing = async move {
            // The reader may have refused it.
            let _ = client.write_all(&sent).await;
            drop(client);
        };
        let reading = async move {
            let read = read_header(&mut server).await.map_err(|error| error.to_string());
            let mut left = Vec::new();
            Pin::new(&mut server).read_to_end(&mut left).await.unwrap();
            (read, left)
        };
        tokio::join!(writing, reading).1
    }

    #[tokio::test]
    async fn the_client_of_a_header_is_found_and_nothing_else_is_read() {
        let v6: IpAddr = "2001:db8::7".parse().unwrap();
        let IpAddr::V6(octets) = v6 else { unreachable!() };
        let v6_block = [&octets.octets()[..], &[0; 20]].concat();
        let mapped = [&[0; 10][..], &[0xff, 0xff, 192, 0, 2, 9], &[0; 20]].concat();
        let extended = [&v4([192, 0, 2, 7])[..], &[0x04, 0, 2, 1, 1], &[0xea, 0, 0]].concat();
        let ip = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        for (header, found) in [
            (header(0x21, 0x11, &v4([192, 0, 2, 7])), ip("192.0.2.7")),
            (header(0x21, 0x11, &extended), ip("192.0.2.7")),
            (header(0x21, 0x21, &v6_block), Some(v6)),
            (header(0x21, 0x21, &mapped), ip("192.0.2.9")),
            (header(0x21, 0x31, &[b'/'; UNIX_BYTES]), None),
            (header(0x21, 0x00, &[]), None),
            (header(0x21, 0x00, &[1, 2, 3]), None),
            (header(0x20, 0x00, &[]), None),
            (header(0x20, 0x11, &v4([192, 0, 2, 7])), None),
            (header(0x20, 0x77, &[1; REST_MAX_BYTES]), None),
        ] {
            for piece in [1, 7, 16, 10_000] {
                let sent = [&header[..], b"PRI * HTTP/2.0"].concat();
                let (read, left) = read(&sent, piece).await;
                assert_eq!(read, Ok(found), "{header:?} by {piece}");
                assert_eq!(left, b"PRI * HTTP/2.0", "{header:?} by {piece}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_named() {
        let whole = header(0x21, 0x11, &v4([192, 0, 2, 7]));
        let cut_extension = [&v4([192, 0, 2, 7])[..], &[0x04, 0, 9, 1]].concat();
        let too_long = [&SIGNATURE[..], &[0x21, 0x11, 0x10, 0x01]].concat();
        for (sent, problem) in [
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), "no header"),
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "no header"),
            (vec![0x16, 3, 1], "no header"),
            (b"\r\n\r\n\0\r\nQUIT!".to_vec(), "no header"),
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 1 2\r\n".to_vec(), "configure version 2"),
            (header(0x11, 0x11, &v4([192, 0, 2, 7])), "unknown version"),
            (header(0x22, 0x11, &v4([192, 0, 2, 7])), "unknown command"),
            (header(0x21, 0x12, &v4([192, 0, 2, 7])), "not a stream"),
            (header(0x21, 0x41, &v4([192, 0, 2, 7])), "unknown family"),
            (header(0x21, 0x11, &[192, 0, 2]), "too short"),
            (header(0x21, 0x11, &[192, 0, 2, 7]), "too short"),
            (header(0x21, 0x21, &v4([192, 0, 2, 7])), "too short"),
            (header(0x21, 0x31, b"/run/x"), "too short"),
            (header(0x21, 0x11, &cut_extension), "cut extension"),
            (too_long, "longer than"),
            (whole[..5].to_vec(), "incomplete"),
            (whole[..20].to_vec(), "incomplete"),
            (Vec::new(), "closed"),
        ] {
            for piece in [1, 5, 10_000] {
                let (read, _) = read(&sent, piece).await;
                let error = read.unwrap_err();
                assert!(error.contains(problem), "{sent:?} by {piece}: {error}");
            }
        }
    }
}
