//! The budget of a peer, whatever it is spent on.

use jeton::config::Rate;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt;

use crate::support::server::{TestServer, reason};

/// A page as it comes over HTTP/1.1.
async fn page(server: &TestServer, path: &str) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: jeton.test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// L11: pages and health checks draw on the budget that calls draw on.
#[tokio::test]
async fn pages_and_health_checks_draw_on_the_budget_of_calls() {
    let server =
        TestServer::start_with(|config| config.limits.per_peer = Rate { per_second: 1, burst: 3 })
            .await;
    let mut health = HealthClient::new(server.channel.clone());
    assert!(page(&server, "/healthz").await.starts_with("HTTP/1.1 200 "));
    assert!(page(&server, "/.well-known/jwks.json").await.starts_with("HTTP/1.1 200 "));
    assert!(health.check(HealthCheckRequest::default()).await.is_ok());

    let refused = page(&server, "/healthz").await;
    assert!(
        refused.starts_with("HTTP/1.1 429 ") && refused.contains("retry-after: 1\r\n"),
        "{refused}"
    );
    for refused in [
        health.check(HealthCheckRequest::default()).await.unwrap_err(),
        server.token(&server.admin, &[]).await.unwrap_err(),
    ] {
        assert_eq!(reason(&refused), "SLOW_DOWN");
        assert!(refused.get_details_retry_info().is_some());
    }
    server.advance(3);
    assert!(health.check(HealthCheckRequest::default()).await.is_ok());
    assert!(server.token(&server.admin, &[]).await.is_ok(), "and a call draws once");
    assert!(page(&server, "/healthz").await.starts_with("HTTP/1.1 200 "));
}
