//! A client that keeps to the protocol, and shows all of an answer.

use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Method, Request, StatusCode, Version, request::Builder};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tonic::Code;

use jeton::proto::token::{TokenRequest, TokenResponse};

use super::TOKEN;

/// An answer, whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) trailers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// The gRPC status, wherever it is.
    pub(crate) fn code(&self) -> Option<Code> {
        let status =
            self.headers.get("grpc-status").or_else(|| self.trailers.get("grpc-status"))?;
        Some(Code::from_bytes(status.as_bytes()))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn token(&self) -> TokenResponse {
        assert_eq!(self.code(), Some(Code::Ok), "{self:?}");
        TokenResponse::decode(&self.body[5..]).unwrap()
    }
}

/// One request over a connection of its own.
pub(crate) async fn ask(address: SocketAddr, request: Request<Full<Bytes>>) -> Answer {
    ask_over(TcpStream::connect(address).await.unwrap(), request).await.unwrap()
}

/// One request over `io`, in the version the request says.
pub(crate) async fn ask_over<S>(
    io: S,
    mut request: Request<Full<Bytes>>,
) -> Result<Answer, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let io = TokioIo::new(io);
    let response = if request.version() == Version::HTTP_2 {
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        sender.send_request(request).await?
    } else {
        // HTTP/1.1 asks for the path alone.
        *request.uri_mut() = request.uri().path_and_query().unwrap().as_str().parse().unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
        tokio::spawn(connection);
        sender.send_request(request).await?
    };
    let (parts, body) = response.into_parts();
    let body = body.collect().await?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    Ok(Answer { status: parts.status, headers: parts.headers, trailers, body: body.to_bytes() })
}

pub(crate) fn get(path: &str, version: Version) -> Request<Full<Bytes>> {
    Request::get(format!("http://port{path}"))
        .version(version)
        .header("host", "port")
        .body(Full::default())
        .unwrap()
}

/// A request like a gRPC one, to be bent.
pub(crate) fn grpc(path: &str) -> Builder {
    Request::builder()
        .method(Method::POST)
        .uri(format!("http://port{path}"))
        .version(Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

/// A message with its length before it.
pub(crate) fn message(bytes: &[u8]) -> Full<Bytes> {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(bytes.len()).unwrap());
    framed.put_slice(bytes);
    Full::new(framed.freeze())
}

/// The message that has the puppet do something.
pub(crate) fn play(part: &str) -> Full<Bytes> {
    message(&TokenRequest { client_id: part.to_owned(), ..TokenRequest::default() }.encode_to_vec())
}

/// Has the puppet do something.
pub(crate) async fn token(address: SocketAddr, part: &str) -> Answer {
    ask(address, grpc(TOKEN).body(play(part)).unwrap()).await
}
