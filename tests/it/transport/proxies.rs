//! Proxies in front of the port (OPERATORS 4.11): who is believed to speak for whom.

use std::time::Duration;

use http::Version;
use jeton::{
    api::listen::{Options, Proxies},
    config::{Proxy, ProxyHeader, ProxyProtocol},
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::transport::support::{
    Server, TOKEN, connect_from,
    frames::closes,
    http::{Answer, ask_over, get, grpc, play},
    options,
};

const PROXY: [u8; 4] = [127, 0, 0, 2];
const STRANGER: [u8; 4] = [127, 0, 0, 3];

fn proxies(trusted: &str, protocol: ProxyProtocol, header: ProxyHeader) -> Proxies {
    Proxies::new(&Proxy { trusted: vec![trusted.parse().unwrap()], protocol, header })
}

/// Proxies that send the header of the PROXY protocol.
pub(crate) fn announcing(trusted: &str) -> Proxies {
    proxies(trusted, ProxyProtocol::V2, ProxyHeader::Off)
}

/// A header of version 2.
pub(crate) fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family], &length, rest].concat()
}

/// Addresses of a client and of the port.
pub(crate) fn v4(client: [u8; 4]) -> Vec<u8> {
    [&client[..], &[10, 0, 0, 1], &[0x30, 0x39, 0xc3, 0x83]].concat()
}

async fn serve(proxies: Proxies) -> Server {
    serve_with(Options { proxies, ..options() }).await
}

async fn serve_with(options: Options) -> Server {
    Server::with(options, Duration::from_secs(60)).await
}

async fn call(stream: TcpStream) -> Result<Answer, hyper::Error> {
    ask_over(stream, grpc(TOKEN).body(play("")).unwrap()).await
}

fn last_peer(server: &Server) -> String {
    server.peers.lock().unwrap().last().cloned().unwrap_or_default()
}

#[tokio::test]
async fn a_trusted_proxy_announces_its_client() {
    let server = serve(announcing("127.0.0.2")).await;
    let v6 = [&[0x20, 0x01, 0x0d, 0xb8][..], &[0; 11], &[7], &[0; 20]].concat();
    for (header, peer) in [
        (header(0x21, 0x11, &v4([192, 0, 2, 7])), "192.0.2.7"),
        (header(0x21, 0x21, &v6), "2001:db8::7"),
        (header(0x20, 0x00, &[]), "127.0.0.2"),
        (header(0x21, 0x00, &[]), "127.0.0.2"),
        (header(0x21, 0x31, &[b'/'; 216]), "127.0.0.2"),
    ] {
        let mut stream = connect_from(PROXY, server.address).await;
        stream.write_all(&header).await.unwrap();
        call(stream).await.unwrap().token();
        assert_eq!(last_peer(&server), peer);
        let mut stream = connect_from(PROXY, server.address).await;
        for byte in &header {
            stream.write_all(&[*byte]).await.unwrap();
        }
        ask_over(stream, get("/healthz", Version::HTTP_11)).await.unwrap();
        assert_eq!(last_peer(&server), peer, "byte by byte, HTTP/1.1");
    }
}

#[tokio::test]
async fn a_connection_of_a_proxy_without_a_good_header_is_closed() {
    let server = serve(announcing("127.0.0.2")).await;
    let huge = [&header(0x21, 0x11, &[])[..14], &[0xff, 0xff]].concat();
    for sent in [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"GET /healthz HTTP/1.1\r\nhost: port\r\n\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.7 10.0.0.1 1 2\r\n".to_vec(),
        header(0x21, 0x11, &[192, 0, 2, 7]),
        header(0x31, 0x11, &v4([192, 0, 2, 7])),
        huge,
    ] {
        let mut stream = connect_from(PROXY, server.address).await;
        stream.write_all(&sent).await.unwrap();
        assert!(closes(&mut stream).await, "{sent:?}");
    }
    assert!(server.peers.lock().unwrap().is_empty(), "no request was read");
    assert!(refused() >= 6);
}

/// Connections of proxies that were refused, of all tests of this process.
fn refused() -> u64 {
    let mut text = String::new();
    let registry = jeton::metrics::METRICS.registry();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let line = text.lines().find(|line| line.contains("refused_total{reason=\"proxy\"}"));
    line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn headers_of_other_peers_are_ignored() {
    let server = serve(announcing("127.0.0.2")).await;
    let mut stream = connect_from(STRANGER, server.address).await;
    stream.write_all(&header(0x21, 0x11, &v4([192, 0, 2, 7]))).await.unwrap();
    assert!(call(stream).await.is_err());
    assert!(!server.peers.lock().unwrap().contains(&"192.0.2.7".to_owned()));
    call(connect_from(STRANGER, server.address).await).await.unwrap().token();
    assert_eq!(last_peer(&server), "127.0.0.3");
    let off = Server::start().await;
    let mut stream = connect_from(PROXY, off.address).await;
    stream.write_all(&header(0x21, 0x11, &v4([192, 0, 2, 7]))).await.unwrap();
    assert!(call(stream).await.is_err());
}

/// The clients of a proxy have the limits, not the proxy.
#[tokio::test]
async fn connections_count_for_the_announced_client() {
    let proxies = announcing("127.0.0.2");
    let server = serve_with(Options { connections_per_peer: 1, proxies, ..options() }).await;
    let connect = async |client: u8| {
        let mut stream = connect_from(PROXY, server.address).await;
        stream.write_all(&header(0x21, 0x11, &v4([192, 0, 2, client]))).await.unwrap();
        stream
    };
    let mut first = connect(7).await;
    first.write_all(b"GET /healthz HTTP/1.1\r\nhost: port\r\n\r\n").await.unwrap();
    first.readable().await.unwrap();
    assert!(closes(&mut connect(7).await).await, "a second one of the same client");
    call(connect(8).await).await.unwrap().token();
    assert_eq!(last_peer(&server), "192.0.2.8");
}

#[tokio::test]
async fn a_silent_proxy_is_not_waited_for() {
    let proxies = announcing("127.0.0.2");
    let handshake = Duration::from_secs(1);
    let server = serve_with(Options { handshake, proxies, ..options() }).await;
    for begun in [0, 5, 20] {
        let mut stream = connect_from(PROXY, server.address).await;
        let header = header(0x21, 0x11, &v4([192, 0, 2, 7]));
        stream.write_all(&header[..begun]).await.unwrap();
        assert!(closes(&mut stream).await, "after {begun} bytes");
    }
}

#[tokio::test]
async fn headers_of_http_are_those_of_trusted_proxies() {
    for (kind, name, value) in [
        (ProxyHeader::XForwardedFor, "x-forwarded-for", "203.0.113.9, 192.0.2.7"),
        (ProxyHeader::Forwarded, "forwarded", "for=203.0.113.9, for=\"192.0.2.7:4711\""),
    ] {
        let server = serve(proxies("127.0.0.2", ProxyProtocol::Off, kind)).await;
        let request = |value: &str| grpc(TOKEN).header(name, value).body(play("")).unwrap();
        let ask = async |from, value: &str| {
            let stream = connect_from(from, server.address).await;
            ask_over(stream, request(value)).await.unwrap().token();
            last_peer(&server)
        };
        assert_eq!(ask(PROXY, value).await, "192.0.2.7");
        assert_eq!(ask(STRANGER, value).await, "127.0.0.3");
        assert_eq!(ask(PROXY, "nonsense").await, "127.0.0.2");
        call(connect_from(PROXY, server.address).await).await.unwrap().token();
        assert_eq!(last_peer(&server), "127.0.0.2");
    }
}

/// A balancer of TCP in front of proxies of HTTP.
#[tokio::test]
async fn both_ways_are_followed_one_after_the_other() {
    let proxies = proxies("127.0.0.0/8", ProxyProtocol::V2, ProxyHeader::XForwardedFor);
    let server = serve(proxies).await;
    let forwarded = || {
        let request = grpc(TOKEN).header("x-forwarded-for", "192.0.2.7");
        request.body(play("")).unwrap()
    };
    for (announced, peer) in [([127, 0, 0, 9], "192.0.2.7"), ([198, 51, 100, 1], "198.51.100.1")] {
        let mut stream = connect_from(PROXY, server.address).await;
        stream.write_all(&header(0x21, 0x11, &v4(announced))).await.unwrap();
        ask_over(stream, forwarded()).await.unwrap().token();
        assert_eq!(last_peer(&server), peer);
    }
}
