//! Token: what is issued, and to whom.

use crate::service::harness::{World, reason, refreshing};

/// J22: everything RFC 9068 section 2.2 asks for is in an access token.
#[tokio::test]
async fn an_access_token_stands_and_says_what_the_rfc_asks_for() {
    let world = World::start().await;
    let caller = world.register(refreshing()).await;
    let issued = world.token(&caller, &["orders:read"]).await.unwrap();
    assert_eq!((issued.token_type.as_str(), issued.expires_in), ("Bearer", 900));
    let judged = world.introspect(&issued.access_token).await;
    assert_eq!(judged.active, Some(true));
    assert_eq!(judged.client_id, caller.id);
    assert_eq!(judged.sub, format!("client:{}", caller.id));
    assert_eq!(judged.scopes, ["orders:read"]);
    assert_eq!((judged.iat, judged.exp), (world.now(), world.now() + 900));
    assert!(!judged.jti.is_empty() && !judged.aud.is_empty() && !judged.iss.is_empty());
}

#[tokio::test]
async fn a_token_does_not_stand_at_the_second_it_expires() {
    let world = World::start().await;
    let token = world.token(&world.admin, &[]).await.unwrap().access_token;
    world.advance(899);
    assert!(world.is_active(&token).await);
    world.advance(1);
    assert!(!world.is_active(&token).await);
}

#[tokio::test]
async fn a_wrong_secret_is_invalid_client() {
    let world = World::start().await;
    let mut caller = world.register(refreshing()).await;
    caller.secret.push('x');
    assert_eq!(reason(&world.token(&caller, &[]).await.unwrap_err()), "INVALID_CLIENT");
}

#[tokio::test]
async fn a_server_goes_on_where_it_was() {
    let world = World::start().await;
    let caller = world.register(refreshing()).await;
    let issued = world.token(&caller, &[]).await.unwrap();
    world.revoke(&caller, &issued.access_token).await.unwrap();
    let world = world.restart().await;
    assert!(!world.is_active(&issued.access_token).await);
    let refreshed = world.refresh(&caller, &issued.refresh_token).await.unwrap();
    assert!(world.is_active(&refreshed.access_token).await);
}
