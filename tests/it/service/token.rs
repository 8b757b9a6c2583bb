//! Token: what is issued, and to whom.

use crate::support::server::{TestServer, reason, refreshing};

/// J22: everything RFC 9068 section 2.2 asks for is in an access token.
#[tokio::test]
async fn an_access_token_stands_and_says_what_the_rfc_asks_for() {
    let server = TestServer::start().await;
    let caller = server.register(refreshing()).await;
    let issued = server.token(&caller, &["orders:read"]).await.unwrap();
    assert_eq!((issued.token_type.as_str(), issued.expires_in), ("Bearer", 900));
    let judged = server.introspect(&issued.access_token).await;
    assert_eq!(judged.active, Some(true));
    assert_eq!(judged.client_id, caller.id);
    assert_eq!(judged.sub, format!("client:{}", caller.id));
    assert_eq!(judged.scopes, ["orders:read"]);
    assert_eq!((judged.iat, judged.exp), (server.now() - 10, server.now() + 900));
    assert!(!judged.jti.is_empty() && !judged.aud.is_empty() && !judged.iss.is_empty());
}

#[tokio::test]
async fn a_token_does_not_stand_at_the_second_it_expires() {
    let server = TestServer::start().await;
    let token = server.token(&server.admin, &[]).await.unwrap().access_token;
    server.advance(899);
    assert!(server.is_active(&token).await);
    server.advance(1);
    assert!(!server.is_active(&token).await);
}

#[tokio::test]
async fn a_wrong_secret_is_invalid_client() {
    let server = TestServer::start().await;
    let mut caller = server.register(refreshing()).await;
    caller.secret.push('x');
    assert_eq!(reason(&server.token(&caller, &[]).await.unwrap_err()), "INVALID_CLIENT");
}

#[tokio::test]
async fn a_server_goes_on_where_it_was() {
    let server = TestServer::start().await;
    let caller = server.register(refreshing()).await;
    let issued = server.token(&caller, &[]).await.unwrap();
    server.revoke(&caller, &issued.access_token).await.unwrap();
    let server = server.restart().await;
    assert!(!server.is_active(&issued.access_token).await);
    let refreshed = server.refresh(&caller, &issued.refresh_token).await.unwrap();
    assert!(server.is_active(&refreshed.access_token).await);
}
