//! Check that the service answers on its address.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{net::TcpStream, time::timeout};
use tonic::transport::Endpoint;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::Finding;
use crate::config::Config;

/// Timeout of a connection attempt and of a health call.
const REPLY_TIMEOUT: Duration = Duration::from_secs(3);

/// Connects to the port and, without TLS, checks its health.
pub(super) async fn service(config: &Config) -> Vec<Finding> {
    const SUBJECT: &str = "service";
    if config.listen.port() == 0 {
        return vec![Finding::note(
            SUBJECT,
            "listens on a random port (port 0)",
            "set listen to a fixed port to check the service",
        )];
    }
    let address = probe_address(config.listen);
    if !matches!(timeout(REPLY_TIMEOUT, TcpStream::connect(address)).await, Ok(Ok(_))) {
        let advice = "start it with `jeton serve`; if it is running, check its log and `listen`";
        return vec![Finding::problem(SUBJECT, format!("does not answer on {address}"), advice)];
    }
    if !config.tls.cert_file.as_os_str().is_empty() {
        return vec![Finding::ok(
            SUBJECT,
            format!("accepts connections on {address} (health not checked: TLS)"),
        )];
    }
    vec![match timeout(REPLY_TIMEOUT, health(address)).await {
        Ok(Ok(ServingStatus::Serving)) => Finding::ok(SUBJECT, format!("is healthy on {address}")),
        Ok(Ok(status)) => {
            let text = format!("reports {} on {address}", status.as_str_name());
            Finding::problem(
                SUBJECT,
                text,
                "see its log: it may be draining, or its store may not be writable",
            )
        }
        Ok(Err(_)) | Err(_) => {
            let text = format!(
                "no valid health reply on {address}: another program, or a jeton that is failing"
            );
            Finding::problem(SUBJECT, text, "check which process listens there: `ss -ltnp`")
        }
    }]
}

async fn health(
    address: SocketAddr,
) -> Result<ServingStatus, Box<dyn std::error::Error + Send + Sync>> {
    let channel = Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
    let answer =
        HealthClient::new(channel).check(HealthCheckRequest { service: String::new() }).await?;
    Ok(answer.into_inner().status())
}

/// Returns the address to connect to: loopback for a listener on all addresses.
fn probe_address(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V4(_) | IpAddr::V6(_) => listen.ip(),
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::doctor::Verdict, config::Sources};

    async fn probe(listen: SocketAddr) -> Finding {
        let mut config = Config::load(&Sources::default()).unwrap().0;
        config.listen = listen;
        service(&config).await.remove(0)
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
    fn a_listener_on_all_addresses_is_asked_here() {
        assert_eq!(probe_address("0.0.0.0:1".parse().unwrap()), "127.0.0.1:1".parse().unwrap());
        assert_eq!(probe_address("[::]:1".parse().unwrap()), "[::1]:1".parse().unwrap());
        assert_eq!(probe_address("10.0.0.1:1".parse().unwrap()), "10.0.0.1:1".parse().unwrap());
    }
}
