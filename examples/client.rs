//! A client: it gets a token, asks whether the token is active, revokes it, and asks again.
//!
//! ```console
//! $ jeton serve --dev                                  # prints the first client's secret
//! $ CLIENT_SECRET=jcs_... cargo run --example client   # in another shell
//! active after Token: true
//! active after Revoke: false
//! ```

use std::error::Error;

use jeton::proto::token::{
    IntrospectRequest, RevokeRequest, TokenRequest, token_service_client::TokenServiceClient,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let (id, secret) = ("bootstrap".to_owned(), std::env::var("CLIENT_SECRET")?);
    let mut tokens = TokenServiceClient::connect("http://127.0.0.1:50051").await?;

    let request = TokenRequest {
        client_id: id.clone(),
        client_secret: secret.clone(),
        scopes: vec!["jeton:introspect:any".to_owned()],
        ..TokenRequest::default()
    };
    let token = tokens.token(request).await?.into_inner().access_token;

    let introspect = IntrospectRequest {
        client_id: id.clone(),
        client_secret: secret.clone(),
        token: token.clone(),
        ..IntrospectRequest::default()
    };
    let answer = tokens.introspect(introspect.clone()).await?.into_inner();
    println!("active after Token: {}", answer.active());

    let revoke =
        RevokeRequest { client_id: id, client_secret: secret, token, ..RevokeRequest::default() };
    tokens.revoke(revoke).await?;
    let answer = tokens.introspect(introspect).await?.into_inner();
    println!("active after Revoke: {}", answer.active());
    Ok(())
}
