//! Check that the service answers, on the address that it really has.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{Finding, any_certificate::connect};
use crate::{
    config::Config,
    server::{ServiceRecord, connectable},
};

/// Timeout of a connection attempt and of a reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum length of a reply in bytes.
const REPLY_MAX: u64 = 16 * 1_024;

const SUBJECT: &str = "service";

/// Result of a question to a listener.
#[derive(Debug)]
enum Reply {
    /// Status and body of a response in HTTP.
    Http(u16, String),
    /// TLS answered, and requires a client certificate.
    CertificateWanted,
    /// Nothing accepts connections.
    Closed,
    /// No valid response in time.
    Invalid,
}

/// Asks the running service for its readiness. Its address is what the process left in the data
/// directory, else what is configured; a port that is `named` by a flag is asked as it is.
pub(super) async fn service(config: &Config, named: bool) -> Vec<Finding> {
    let left = if named { None } else { ServiceRecord::read(config) };
    let record = left.unwrap_or_else(|| ServiceRecord::of(config));
    if record.address.port() == 0 {
        return vec![Finding::note(
            SUBJECT,
            "listens on a random port (port 0)",
            "set listen to a fixed port to check the service",
        )];
    }
    let address = connectable(record.address);
    let reply = match (record.client_certificates, record.probe_address) {
        (false, _) => ask(address, record.tls).await,
        (true, probes) => match (shake_hands(address).await, probes) {
            (Reply::CertificateWanted, Some(probes)) => ask(connectable(probes), false).await,
            (reply, _) => reply,
        },
    };
    vec![judge(address, &reply)]
}

fn judge(address: SocketAddr, reply: &Reply) -> Finding {
    match reply {
        Reply::Http(200, _) => Finding::ok(SUBJECT, format!("is healthy on {address}")),
        Reply::Http(503, body) => {
            let reason = serde_json::from_str::<serde_json::Value>(body).ok();
            let reason = reason
                .as_ref()
                .and_then(|body| body.get("reason")?.as_str())
                .unwrap_or("it may be draining, or its store may not be writable");
            Finding::problem(SUBJECT, format!("is not ready on {address}: {reason}"), "see its log")
        }
        Reply::CertificateWanted => Finding::ok(
            SUBJECT,
            format!(
                "accepts TLS on {address} (readiness not checked: it requires a client certificate \
                 and left no address for probes; set probe_listen)"
            ),
        ),
        Reply::Closed => Finding::problem(
            SUBJECT,
            format!("does not answer on {address}"),
            "start it with `jeton serve`; if it is running, check its log and `listen`",
        ),
        Reply::Http(..) | Reply::Invalid => Finding::problem(
            SUBJECT,
            format!(
                "no valid health reply on {address}: another program, or a jeton that is failing"
            ),
            "check which process listens there: `ss -ltnp`",
        ),
    }
}

/// Completes a TLS handshake with a port that requires client certificates: the refusal follows
/// it.
async fn shake_hands(address: SocketAddr) -> Reply {
    let Ok(Ok(stream)) = timeout(REPLY_TIMEOUT, TcpStream::connect(address)).await else {
        return Reply::Closed;
    };
    match timeout(REPLY_TIMEOUT, connect(address.ip(), stream)).await {
        Ok(Ok(_)) => Reply::CertificateWanted,
        Ok(Err(_)) | Err(_) => Reply::Invalid,
    }
}

/// Requests `/readyz`. The name in a certificate is not checked: this is the same machine.
async fn ask(address: SocketAddr, tls: bool) -> Reply {
    let Ok(Ok(stream)) = timeout(REPLY_TIMEOUT, TcpStream::connect(address)).await else {
        return Reply::Closed;
    };
    let asked = async {
        if tls {
            read_reply(connect(address.ip(), stream).await?, address).await
        } else {
            read_reply(stream, address).await
        }
    };
    match timeout(REPLY_TIMEOUT, asked).await {
        Ok(Ok(text)) => parsed(&text),
        Ok(Err(_)) | Err(_) => Reply::Invalid,
    }
}

async fn read_reply(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    address: SocketAddr,
) -> io::Result<String> {
    let request = format!("GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut reply = Vec::new();
    match stream.take(REPLY_MAX).read_to_end(&mut reply).await {
        // A server may close without TLS's own goodbye.
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
        Ok(_) | Err(_) => {}
    }
    Ok(String::from_utf8_lossy(&reply).into_owned())
}

fn parsed(text: &str) -> Reply {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    status.map_or(Reply::Invalid, |status| Reply::Http(status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::doctor::Verdict, config::Sources};

    async fn probe(listen: SocketAddr) -> Finding {
        let mut config = Config::load(&Sources::default()).unwrap().0;
        config.listen = listen;
        service(&config, true).await.remove(0)
    }

    #[tokio::test]
    async fn no_service_is_a_problem_and_so_is_another_program() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stranger = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                drop(stream);
            }
        });
        let found = probe(address).await;
        assert_eq!(found.verdict, Verdict::Problem);
        assert!(found.text.starts_with("no valid health reply"), "{}", found.text);
        stranger.abort();
        let _ = stranger.await;
        assert!(probe(address).await.text.starts_with("does not answer"));
    }

    #[test]
    fn a_node_that_is_not_ready_says_why() {
        let text = "HTTP/1.1 503 Service Unavailable\r\nx: y\r\n\r\n{\"status\":\"not ready\",\
                    \"reason\":\"the store cannot be reached\"}";
        let found = judge("127.0.0.1:1".parse().unwrap(), &parsed(text));
        assert_eq!(found.verdict, Verdict::Problem);
        assert!(found.text.ends_with("the store cannot be reached"), "{}", found.text);
    }
}
