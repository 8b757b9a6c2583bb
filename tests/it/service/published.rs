//! The rest of the port: pages over HTTP, health, reflection; and how errors are made up.

use std::net::SocketAddr;

use jeton::store::Store;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_stream::StreamExt;
use tonic::{Code, Request};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt;

use crate::support::{
    faulty::{Act, Kind},
    server::{ISSUER, Rpc, TestServer, bearer, prepare, reason},
};

/// One request of HTTP/1.1, written by hand: status, head and body.
pub async fn get(address: SocketAddr, path: &str) -> (u16, String, Vec<u8>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap().to_ascii_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head, answer[end + 4..].to_vec())
}

/// The keys of the JWK set as it is served.
pub async fn jwks(address: SocketAddr) -> Vec<Value> {
    let (status, _, body) = get(address, "/.well-known/jwks.json").await;
    assert_eq!(status, 200);
    let set: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(set.as_object().unwrap().len(), 1, "keys and nothing else");
    set["keys"].as_array().unwrap().clone()
}

/// RFC 8414: the metadata names what is served, where it is served, and nothing that is not.
#[tokio::test]
async fn the_metadata_says_what_is_served() {
    let server = TestServer::start().await;
    let (status, head, body) = get(server.address, "/.well-known/oauth-authorization-server").await;
    assert_eq!(status, 200);
    assert!(head.contains("content-type: application/json"), "{head}");
    let metadata: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(metadata["issuer"], ISSUER);
    assert_eq!(metadata["jwks_uri"], format!("{ISSUER}/.well-known/jwks.json"));
    assert_eq!(
        metadata["grant_types_supported"],
        serde_json::json!(["client_credentials", "refresh_token"])
    );
    let absent = [
        "token_endpoint",
        "authorization_endpoint",
        "introspection_endpoint",
        "registration_endpoint",
    ];
    assert!(absent.iter().all(|member| metadata.get(member).is_none()), "{metadata}");
    // Every service it names is one that reflection lists, and no service is kept quiet.
    let named: Vec<&str> = metadata["jeton_grpc_services"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    let listed = reflected(&server).await;
    for name in &named {
        assert!(listed.iter().any(|service| service == name), "{name}");
    }
    assert!(
        listed
            .iter()
            .filter(|service| service.starts_with("jeton."))
            .all(|service| named.contains(&service.as_str()))
    );
    // And the keys it points to verify what is issued.
    let kid = crate::support::server::kid_of(&server.admin_token().await);
    assert!(jwks(server.address).await.iter().any(|key| key["kid"] == kid.as_str()));
}

/// K04: the set may be kept for as long as a key is published before it signs, and no longer.
#[tokio::test]
async fn keys_may_be_kept_as_long_as_is_safe() {
    let server = TestServer::start_with(|config| config.keys.publish_ahead_seconds = 77).await;
    let (_, head, _) = get(server.address, "/.well-known/jwks.json").await;
    assert!(head.contains("cache-control: public, max-age=77"), "{head}");
}

/// A service that cannot write is alive and not ready; when it can again, it is ready again.
#[tokio::test]
async fn readiness_follows_the_store() {
    let (server, faulty) = prepare().await.served().await;
    let probes =
        async || (get(server.address, "/healthz").await.0, get(server.address, "/readyz").await.0);
    // An answer is shared for a moment of real time.
    let becomes = async |readiness: u16| {
        crate::service::keys::eventually("readiness", async || probes().await == (200, readiness))
            .await
    };
    becomes(200).await;
    faulty.always(Some(Act::FailBefore(Kind::Full)));
    becomes(503).await;
    let (_, head, body) = get(server.address, "/readyz").await;
    assert!(
        head.contains("cache-control: no-store")
            && !String::from_utf8(body).unwrap().contains("fault")
    );
    faulty.always(None);
    becomes(200).await;
}

#[tokio::test]
async fn health_is_told_over_grpc() {
    let server = TestServer::start().await;
    let check = async |service: &str| {
        let message = HealthCheckRequest { service: service.to_owned() };
        HealthClient::new(server.channel.clone())
            .check(message)
            .await
            .map(|answer| answer.into_inner().status())
    };
    assert_eq!(check("").await.unwrap(), ServingStatus::Serving);
    assert_eq!(check("no.such.Service").await.unwrap_err().code(), Code::NotFound);
}

/// T06: health may be asked by anybody; the stream of it says so when the server drains.
#[tokio::test]
async fn who_watches_health_hears_of_the_end() {
    let mut server = TestServer::start().await;
    let message = HealthCheckRequest { service: String::new() };
    let mut stream =
        HealthClient::new(server.channel.clone()).watch(message).await.unwrap().into_inner();
    assert_eq!(stream.next().await.unwrap().unwrap().status(), ServingStatus::Serving);
    server.end().await;
    let next = stream.next().await;
    assert!(next.is_none_or(|next| next.is_err() || next.unwrap().status() == ServingStatus::NotServing));
}

/// The services that version 1 of reflection lists.
async fn reflected(server: &TestServer) -> Vec<String> {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(server.channel.clone());
    let mut answers =
        client.server_reflection_info(tokio_stream::once(ask)).await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    list.service.into_iter().map(|service| service.name).collect()
}

const SERVICES: [&str; 6] = [
    "jeton.token.v1.TokenService",
    "jeton.admin.v1.ClientService",
    "jeton.admin.v1.AudienceService",
    "jeton.admin.v1.KeyService",
    "jeton.admin.v1.RevocationService",
    "jeton.admin.v1.AuditService",
];

#[tokio::test]
async fn both_versions_of_reflection_list_every_service() {
    use tonic_reflection::pb::v1alpha::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let server = TestServer::start().await;
    let v1 = reflected(&server).await;
    assert!(SERVICES.iter().all(|name| v1.iter().any(|listed| listed == name)), "{v1:?}");

    let ask =
        |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let asks = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("jeton.token.v1.TokenService.Refresh".to_owned())),
    ];
    let mut client = ServerReflectionClient::new(server.channel.clone());
    let mut answers =
        client.server_reflection_info(tokio_stream::iter(asks)).await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    assert!(SERVICES.iter().all(|name| list.service.iter().any(|service| service.name == *name)));
    let answer = answers.next().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::FileDescriptorResponse(file) = answer else { panic!("{answer:?}") };
    assert!(!file.file_descriptor_proto.is_empty());
}

/// An error is made of a code, the OAuth word for it, the field to blame, and when to ask again;
/// each as its standard type.
#[tokio::test]
async fn errors_carry_standard_details() {
    let (server, faulty) = prepare().await.served().await;
    let mark = server.rpc_target("orders", "shop").await;
    let token = server.admin_token().await;

    let invalid = server.token(&mark.client, &["a b"]).await.unwrap_err();
    let info = invalid.get_details_error_info().unwrap();
    assert_eq!((info.reason.as_str(), info.domain.as_str()), ("INVALID_SCOPE", "jeton"));
    assert_eq!(info.metadata["oauth_error"], "invalid_scope");
    assert!(invalid.get_details_retry_info().is_none());

    let field = server
        .call_rpc(Rpc::GetClient, &token, &crate::support::server::RpcTarget::default())
        .await
        .unwrap_err();
    assert_eq!((field.code(), reason(&field).as_str()), (Code::InvalidArgument, "INVALID_REQUEST"));
    assert_eq!(field.get_details_bad_request().unwrap().field_violations[0].field, "client_id");

    for (kind, code, word) in [
        (Kind::Unavailable, Code::Unavailable, "TEMPORARILY_UNAVAILABLE"),
        (Kind::Full, Code::ResourceExhausted, "STORE_FULL"),
        (Kind::Corrupt, Code::Internal, "SERVER_ERROR"),
    ] {
        faulty.always(Some(Act::FailBefore(kind)));
        let failed = server.call_rpc(Rpc::GetClient, &token, &mark).await.unwrap_err();
        assert_eq!((failed.code(), reason(&failed).as_str()), (code, word));
        let retry = failed.get_details_retry_info().and_then(|retry| retry.retry_delay);
        assert_eq!(retry.is_some(), kind != Kind::Corrupt, "{kind:?}");
        // O06: nothing of what the store said.
        assert!(!format!("{failed:?}").contains("planned"), "{failed:?}");
    }
    faulty.always(None);
}

/// A request id that is fit is kept, any other replaced; it is in the answer and in the record.
#[tokio::test]
async fn a_request_id_is_answered_and_recorded() {
    let server = TestServer::start().await;
    let token = server.admin_token().await;
    let mark = server.rpc_target("orders", "shop").await;
    let ask = async |id: Option<&str>| {
        let message = jeton::proto::admin::AddSecretRequest {
            client_id: mark.client.id.clone(),
            ..Default::default()
        };
        let mut request: Request<_> = bearer(message, &token);
        if let Some(id) = id {
            request.metadata_mut().insert("x-request-id", id.parse().unwrap());
        }
        let answer = server.clients().add_secret(request).await;
        let metadata = answer
            .map_or_else(|status| status.metadata().clone(), |answer| answer.metadata().clone());
        metadata.get("x-request-id").unwrap().to_str().unwrap().to_owned()
    };
    assert_eq!(ask(Some("a.B-9_c")).await, "a.B-9_c");
    assert_eq!(server.trail_of("secret.added").await[0].request_id, "a.B-9_c");
    let long = "x".repeat(65);
    let fresh = [ask(None).await, ask(Some("a b")).await, ask(Some(&long)).await];
    assert!(fresh.iter().all(|id| id.len() == 36), "{fresh:?}");
}

/// The store that a server was given is what it serves from: nothing is kept beside it.
#[tokio::test]
async fn a_store_that_is_given_is_the_one_that_is_used() {
    let (server, store) = prepare().await.served().await;
    let mark = server.rpc_target("orders", "shop").await;
    let kept = jeton::store::ClientStore::client(store.as_ref(), &mark.client.id.parse().unwrap())
        .await
        .unwrap();
    assert_eq!(kept.unwrap().tenant.as_str(), "shop");
    assert!(store.ready().await.is_ok());
}
