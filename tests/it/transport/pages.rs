//! The pages on the port, over HTTP/1.1 and HTTP/2.

use http::{Method, Version};
use jeton::{
    api::{
        guard::Methods,
        listen::{self, Heartbeats, permitted},
        metrics::{self, Exposition},
    },
    proto::DESCRIPTORS,
};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::transport::support::{
    Server,
    http::{ask, get, token},
};

const BOTH: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];

/// T02: without TLS the port speaks HTTP/1.1 and HTTP/2 by prior knowledge, on the same socket as
/// gRPC.
#[tokio::test]
async fn keys_and_metadata_are_served_in_both_versions() {
    let server = Server::start().await;
    for version in BOTH {
        let keys = ask(server.address, get("/.well-known/jwks.json", version)).await;
        assert_eq!(
            (keys.status.as_u16(), keys.header("cache-control")),
            (200, "public, max-age=300")
        );
        assert_eq!(serde_json::from_slice::<Value>(&keys.body).unwrap()["keys"][0]["kid"], "one");

        let metadata =
            ask(server.address, get("/.well-known/oauth-authorization-server", version)).await;
        let metadata: Value = serde_json::from_slice(&metadata.body).unwrap();
        assert_eq!(metadata["issuer"], "https://issuer.example");
        assert_eq!(metadata["jwks_uri"], "https://issuer.example/.well-known/jwks.json");
        assert_eq!(metadata["jeton_grpc_services"][0], "jeton.token.v1.TokenService");
        assert!(metadata.get("token_endpoint").is_none(), "nothing is promised that is not served");
    }
    token(server.address, "").await.token();
}

#[tokio::test]
async fn a_copy_that_still_holds_is_not_sent_again() {
    let server = Server::start().await;
    let path = "/.well-known/jwks.json";
    let first = ask(server.address, get(path, Version::HTTP_11)).await;
    let mut again = get(path, Version::HTTP_11);
    again.headers_mut().insert("if-none-match", first.headers["etag"].clone());
    let again = ask(server.address, again).await;
    assert_eq!((again.status.as_u16(), again.body.len()), (304, 0));
    let mut other = get(path, Version::HTTP_11);
    other.headers_mut().insert("if-none-match", "\"other\"".parse().unwrap());
    assert_eq!(ask(server.address, other).await.status, 200);
}

#[tokio::test]
async fn probes_tell_alive_from_ready() {
    let server = Server::start().await;
    for (ready, status) in [(true, 200), (false, 503)] {
        if !ready {
            server.puppet.make_unready();
        }
        assert_eq!(ask(server.address, get("/readyz", Version::HTTP_11)).await.status, status);
        assert_eq!(ask(server.address, get("/healthz", Version::HTTP_11)).await.status, 200);
    }
    server.puppet.make_stuck();
    assert_eq!(ask(server.address, get("/healthz", Version::HTTP_11)).await.status, 503);
}

#[tokio::test]
async fn what_is_no_page_is_not_found_and_no_page_is_written_to() {
    let server = Server::start().await;
    for version in BOTH {
        for path in ["/", "/healthz/", "/.well-known/jwks", "/metrics", "/%2e%2e/healthz"] {
            let answer = ask(server.address, get(path, version)).await;
            assert_eq!(
                (answer.status.as_u16(), answer.header("content-type")),
                (404, "application/json"),
                "{path}"
            );
            let body = std::str::from_utf8(&answer.body).unwrap();
            assert!(body.contains(r#""error":"not_found""#), "{body}");
        }
        let mut post = get("/healthz", version);
        *post.method_mut() = Method::POST;
        assert_eq!(ask(server.address, post).await.status, 405);
    }
}

/// T06: metrics are on a listener of their own and not on the port.
#[tokio::test]
async fn metrics_are_served_apart() {
    let server = Server::start().await;
    token(server.address, "denied").await;
    let listener = listen::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let shown = Exposition::new(server.methods);
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(metrics::serve(listener, shown, Heartbeats::default(), async {
        let _ = stopped.await;
    }));
    let page = ask(address, get("/metrics", Version::HTTP_11)).await;
    let text = std::str::from_utf8(&page.body).unwrap();
    let expected = "jeton_grpc_server_handled_total{grpc_service=\"jeton.token.v1.TokenService\",grpc_method=\"Token\",grpc_code=\"PermissionDenied\"} 1";
    assert!(text.lines().any(|line| line == expected), "{text}");
    assert_eq!(ask(address, get("/healthz", Version::HTTP_11)).await.status, 200);
    assert_eq!(ask(server.address, get("/metrics", Version::HTTP_11)).await.status, 404);
    drop(stop);
    serving.await.unwrap().unwrap();
}

/// T03: beyond loopback only under TLS, or where the operator insists.
#[test]
fn a_public_address_needs_tls() {
    for (address, tls, insecure, fine) in [
        ("127.0.0.1:1", false, false, true),
        ("[::1]:1", false, false, true),
        ("[::ffff:127.0.0.1]:1", false, false, true),
        ("0.0.0.0:1", false, false, false),
        ("[::]:1", false, false, false),
        ("192.0.2.1:1", false, false, false),
        ("0.0.0.0:1", true, false, true),
        ("0.0.0.0:1", false, true, true),
    ] {
        assert_eq!(
            permitted(address.parse().unwrap(), tls, insecure),
            fine,
            "{address} {tls} {insecure}"
        );
    }
}

#[test]
fn the_descriptors_name_every_method_once() {
    let methods = Methods::leaked(&[DESCRIPTORS, DESCRIPTORS]).unwrap();
    assert!(methods.find("/jeton.token.v1.TokenService/BatchIntrospect").is_some());
}
