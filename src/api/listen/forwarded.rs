//! Addresses of clients in headers of HTTP proxies: `x-forwarded-for` and `forwarded` (RFC 7239).
//!
//! A client may send these headers itself, and each proxy appends what it saw: so they are read
//! from the right, past trusted proxies, and only as far as the first address that is none.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, header::FORWARDED};

use super::Proxies;
use crate::config::ProxyHeader;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Result of reading the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forwarded {
    /// Address of the client.
    By(IpAddr),
    /// No header, or only trusted proxies in it.
    Nothing,
    /// The nearest proxy wrote something that is no address.
    Malformed,
}

/// Returns the client's address that trusted proxies vouch for.
pub(super) fn client(proxies: &Proxies, headers: &HeaderMap) -> Forwarded {
    let name = match proxies.header {
        ProxyHeader::Off => return Forwarded::Nothing,
        ProxyHeader::XForwardedFor => X_FORWARDED_FOR,
        ProxyHeader::Forwarded => FORWARDED,
    };
    let mut is_first = true;
    let lines: Vec<_> = headers.get_all(name).iter().collect();
    for line in lines.into_iter().rev() {
        // Bytes that are no text are in no address.
        let line = String::from_utf8_lossy(line.as_bytes());
        for element in split_from_right(&line, ',') {
            let address = match proxies.header {
                ProxyHeader::Forwarded => forwarded_for(element).and_then(node),
                ProxyHeader::Off | ProxyHeader::XForwardedFor => node(element),
            };
            match address {
                Some(address) if proxies.trusts(address) => is_first = false,
                Some(address) => return Forwarded::By(address),
                // Beyond a trusted proxy it is what that one accepted.
                None if is_first => return Forwarded::Malformed,
                None => return Forwarded::Nothing,
            }
        }
    }
    Forwarded::Nothing
}

/// Splits a text where it is not quoted, from the right: what the nearest proxy appended is whole,
/// and a quote that the client left open to the left of it changes nothing there.
fn split_from_right(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut rest, mut is_quoted) = (Vec::new(), text, false);
    for (at, character) in text.char_indices().rev() {
        let Some((before, _)) = text.split_at_checked(at) else { continue };
        if character == '"' {
            let escapes = before.bytes().rev().take_while(|byte| *byte == b'\\').count();
            if !is_quoted || escapes.is_multiple_of(2) {
                is_quoted = !is_quoted;
            }
        } else if character == separator
            && !is_quoted
            && let Some((_, part)) = rest.split_at_checked(at + separator.len_utf8())
        {
            parts.push(part.trim());
            rest = before;
        }
    }
    parts.push(rest.trim());
    parts
}

/// Returns the value of `for` in an element of `forwarded`.
fn forwarded_for(element: &str) -> Option<&str> {
    let pairs = split_from_right(element, ';').into_iter().filter_map(|pair| pair.split_once('='));
    let mut values = pairs.filter(|(name, _)| name.trim().eq_ignore_ascii_case("for"));
    let (_, value) = values.next()?;
    // Twice would be two answers.
    values.next().is_none().then(|| value.trim())
}

/// Parses an address with or without quotes, brackets and a port.
fn node(text: &str) -> Option<IpAddr> {
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let host = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            (port.is_empty() || port.strip_prefix(':').is_some_and(is_port)).then_some(host)?
        }
        None => match text.split_once(':') {
            Some((host, port)) if is_port(port) => host,
            _ => text,
        },
    };
    host.parse().ok().map(|address: IpAddr| address.to_canonical())
}

fn is_port(text: &str) -> bool {
    (1..=5).contains(&text.len()) && text.bytes().all(|digit| digit.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::config::{Proxy, ProxyProtocol};

    fn client_of(header: ProxyHeader, lines: &[&str]) -> Forwarded {
        let trusted = ["10.0.0.0/8", "2001:db8:aaaa::/48"].map(|network| network.parse().unwrap());
        let proxy = Proxy { trusted: trusted.to_vec(), protocol: ProxyProtocol::Off, header };
        let mut headers = HeaderMap::new();
        for line in lines {
            for name in [X_FORWARDED_FOR, FORWARDED] {
                headers.append(name, HeaderValue::from_bytes(&bytes(line)).unwrap());
            }
        }
        client(&Proxies::new(&proxy), &headers)
    }

    /// Writes `~` as a byte that is no UTF-8.
    fn bytes(line: &str) -> Vec<u8> {
        line.bytes().map(|byte| if byte == b'~' { 0xff } else { byte }).collect()
    }

    fn by(text: &str) -> Forwarded {
        Forwarded::By(text.parse().unwrap())
    }

    #[test]
    fn the_last_address_that_is_no_proxy_is_the_client() {
        for (lines, expected) in [
            (&["192.0.2.7"][..], by("192.0.2.7")),
            (&["192.0.2.7:4711"], by("192.0.2.7")),
            (&["2001:db8::7"], by("2001:db8::7")),
            (&["[2001:db8::7]"], by("2001:db8::7")),
            (&["[2001:db8::7]:443"], by("2001:db8::7")),
            (&["\"[2001:db8::7]:443\""], by("2001:db8::7")),
            (&["::ffff:192.0.2.7"], by("192.0.2.7")),
            // The client's own claims are to the left.
            (&["203.0.113.1, 192.0.2.7"], by("192.0.2.7")),
            (&["203.0.113.1", "192.0.2.7"], by("192.0.2.7")),
            (&["\"x, 192.0.2.7"], by("192.0.2.7")),
            (&["\"x\", 192.0.2.7"], by("192.0.2.7")),
            (&["~, 192.0.2.7"], by("192.0.2.7")),
            (&["~, 10.1.2.3"], Forwarded::Nothing),
            (&["~"], Forwarded::Malformed),
            (&["192.0.2.7, 10.1.2.3, 2001:db8:aaaa::1"], by("192.0.2.7")),
            (&["192.0.2.7,10.1.2.3", "10.9.9.9"], by("192.0.2.7")),
            (&["unknown, 10.1.2.3"], Forwarded::Nothing),
            (&["10.1.2.3"], Forwarded::Nothing),
            (&[], Forwarded::Nothing),
            (&[""], Forwarded::Malformed),
            (&["unknown"], Forwarded::Malformed),
            (&["192.0.2.7,"], Forwarded::Malformed),
            (&["192.0.2.7 203.0.113.1"], Forwarded::Malformed),
            (&["192.0.2.7:x"], Forwarded::Malformed),
            (&["[2001:db8::7"], Forwarded::Malformed),
            (&["[2001:db8::7]443"], Forwarded::Malformed),
        ] {
            assert_eq!(client_of(ProxyHeader::XForwardedFor, lines), expected, "{lines:?}");
            assert_eq!(client_of(ProxyHeader::Off, lines), Forwarded::Nothing);
        }
    }

    #[test]
    fn forwarded_is_read_by_its_grammar() {
        for (lines, expected) in [
            (&["for=192.0.2.7"][..], by("192.0.2.7")),
            (&["For=\"192.0.2.7:4711\";proto=http;by=203.0.113.43"], by("192.0.2.7")),
            (&["proto=https; for=\"[2001:db8::7]:4711\""], by("2001:db8::7")),
            (&["for=203.0.113.1, for=192.0.2.7"], by("192.0.2.7")),
            (&["for=192.0.2.7, for=10.0.0.1;host=\"a,b;for=203.0.113.1\""], by("192.0.2.7")),
            (&["for=_hidden, for=10.0.0.1"], Forwarded::Nothing),
            (&["for=unknown"], Forwarded::Malformed),
            (&["by=192.0.2.7"], Forwarded::Malformed),
            (&["for=192.0.2.7;for=203.0.113.1"], Forwarded::Malformed),
            (&["for=\"192.0.2.7\\\""], Forwarded::Malformed),
            // A client that tries to quote what the proxy appends.
            (&["for=\"x, for=192.0.2.7"], by("192.0.2.7")),
            (&["for=\"x, for=\"[2001:db8::7]:1\""], by("2001:db8::7")),
            (&["for=\"x\\\", for=192.0.2.7"], by("192.0.2.7")),
            // And one whose name of the host, which the proxy quotes, has an element.
            (&["\", for=192.0.2.7;host=\"a,for=203.0.113.1;x=\""], by("192.0.2.7")),
            (&["192.0.2.7"], Forwarded::Malformed),
        ] {
            assert_eq!(client_of(ProxyHeader::Forwarded, lines), expected, "{lines:?}");
        }
    }
}
