//! Text that people type is stored and shown to others: no secret and nothing hidden gets in by it.

use jeton::proto::admin::{Client, RevokeAllRequest, revoke_all_request::Target};

use crate::support::server::{TestServer, bearer, blamed, reason, refreshing};

/// O01 (AUDIT TL13, AZ16): a secret, a token or an invisible character in a text is refused by the
/// name of the field, never with the value, and is nowhere in the store; as a request id it is
/// replaced.
#[tokio::test]
async fn secrets_and_hidden_characters_are_refused_in_text() {
    let server = TestServer::start_unlimited().await;
    let caller = server.register(refreshing()).await;
    let issued = server.token(&caller, &[]).await.unwrap();
    let secrets =
        [caller.secret.clone(), issued.refresh_token.clone(), issued.access_token.clone()];
    let hidden = ["a\u{202e}b", "a\u{2028}b", "a\u{200b}b", "a\nb"].map(str::to_owned);
    for text in secrets.iter().map(|secret| format!("see:{secret}")).chain(hidden) {
        let (target, reason_given) = (Some(Target::ClientId("nobody".to_owned())), text.clone());
        let request = server.as_admin(RevokeAllRequest { target, reason: reason_given }).await;
        let refused = server.revocations().revoke_all(request).await.unwrap_err();
        assert_eq!(
            (reason(&refused).as_str(), blamed(&refused).as_str()),
            ("INVALID_REQUEST", "reason")
        );
        assert!(!format!("{refused:?}").contains(&text));
        let refused = server.revoke_all(Target::Subject(text.clone())).await.unwrap_err();
        assert_eq!(blamed(&refused), "subject");
        let named = Client { display_name: text.clone(), ..refreshing() };
        assert_eq!(blamed(&server.create(named.clone()).await.unwrap_err()), "client.display_name");
        let named = Client { client_id: caller.id.clone(), ..named };
        assert_eq!(
            blamed(&server.change(named, &["display_name"]).await.unwrap_err()),
            "client.display_name"
        );
    }
    let short = &secrets[0];
    let fields = [
        ("client.client_id", Client { client_id: short.clone(), ..refreshing() }),
        ("client.roles", Client { roles: vec![short.clone()], ..refreshing() }),
        ("client.scopes", Client { scopes: vec![short.clone()], ..refreshing() }),
        (
            "client.audiences",
            Client { audiences: vec![format!("https://{short}")], ..refreshing() },
        ),
        ("client.serves", Client { serves: vec![format!("urn:x:{short}")], ..refreshing() }),
    ];
    for (field, client) in fields {
        assert_eq!(blamed(&server.create(client).await.unwrap_err()), field);
    }
    let mut request = bearer(
        RevokeAllRequest {
            target: Some(Target::ClientId(caller.id.clone())),
            ..Default::default()
        },
        &server.pass().await,
    );
    request.metadata_mut().insert("x-request-id", short.parse().unwrap());
    let answer = server.revocations().revoke_all(request).await.unwrap();
    assert_ne!(answer.metadata().get("x-request-id").unwrap().to_str().unwrap(), short);
    for secret in secrets {
        assert!(!server.home.holds(&secret).await);
    }
}
