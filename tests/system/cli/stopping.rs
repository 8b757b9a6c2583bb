//! The end of a server behind a balancer.

use tonic::transport::Endpoint;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::cli::{
    home::{CliHome, Server},
    unread::{is_ok, page},
};

/// A server that serves on for so many seconds after the signal.
fn delayed(home: &CliHome, seconds: u64) -> Server {
    let mut command = home.command(&["serve", "--dev", "--json", "--listen", "127.0.0.1:0"]);
    let log = std::fs::File::create(home.path("log")).unwrap();
    command.env("JETON_LIMITS__SHUTDOWN_DELAY_SECONDS", seconds.to_string());
    home.serve_by(command.stderr(log))
}

/// B25: after the signal the port is open and calls are answered, but it is not ready, and its
/// health is NOT_SERVING under every name.
#[tokio::test]
async fn balancers_are_notified_before_the_port_closes() {
    let home = CliHome::new();
    let server = delayed(&home, 300);
    let address = server.address();
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let mut health = HealthClient::new(channel.connect().await.unwrap());
    let names = ["", "jeton.token.v1.TokenService", "jeton.admin.v1.AuditService"];
    let mut statuses = async || {
        let mut statuses = Vec::new();
        for name in names {
            let request = HealthCheckRequest { service: name.to_owned() };
            statuses.push(health.check(request).await.unwrap().into_inner().status());
        }
        statuses
    };
    assert_eq!(statuses().await, [ServingStatus::Serving; 3]);
    assert!(is_ok(address, "/readyz"));
    server.signal("TERM");
    while !home.log().contains("still serving") {
        tokio::task::yield_now().await;
    }
    assert!(page(address, "/readyz").starts_with("HTTP/1.1 503 "));
    assert!(is_ok(address, "/healthz"));
    assert_eq!(statuses().await, [ServingStatus::NotServing; 3]);
    home.jeton(&["token"]).ok();
    assert_eq!(server.signal_until_ended("INT").code(), Some(130));
}

/// B25: and then it drains and ends.
#[test]
fn the_server_ends_after_the_delay() {
    let home = CliHome::new();
    let server = delayed(&home, 1);
    server.stop();
    let log = home.log();
    let (serving, draining) = (log.find("still serving").unwrap(), log.find("draining").unwrap());
    assert!(serving < draining && draining < log.find("stopped").unwrap(), "{log}");
}
