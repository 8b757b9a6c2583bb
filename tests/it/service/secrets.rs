//! Secrets of clients: made here, brought along, replaced, counted.

use jeton::{
    crypto::passwords::Passwords,
    model::TenantId,
    proto::admin::{
        AddSecretRequest, AddSecretResponse, Client, CreateClientRequest, EventFilter,
        RetireSecretRequest, SecretKind, add_secret_request, create_client_request,
    },
};
use tonic::{Code, Status};

use crate::support::server::{Caller, TestServer, blamed, client, reason, seconds, secret_of};

async fn add(
    server: &TestServer,
    id: &str,
    secret: Option<add_secret_request::Secret>,
) -> Result<AddSecretResponse, Status> {
    let message =
        AddSecretRequest { client_id: id.to_owned(), secret, ..AddSecretRequest::default() };
    server
        .clients()
        .add_secret(server.as_admin(message).await)
        .await
        .map(tonic::Response::into_inner)
}

async fn retire(
    server: &TestServer,
    id: &str,
    secret: &str,
    overlap: Option<i64>,
) -> Result<Client, Status> {
    let message = RetireSecretRequest {
        client_id: id.to_owned(),
        secret_id: secret.to_owned(),
        overlap: overlap.and_then(seconds),
        ..Default::default()
    };
    Ok(server
        .clients()
        .retire_secret(server.as_admin(message).await)
        .await?
        .into_inner()
        .client
        .unwrap())
}

async fn import(
    server: &TestServer,
    id: &str,
    secret: create_client_request::Secret,
) -> Result<Client, Status> {
    let client = Client { client_id: id.to_owned(), ..Client::default() };
    let message = CreateClientRequest { client: Some(client), secret: Some(secret) };
    let created =
        server.clients().create_client(server.as_admin(message).await).await?.into_inner();
    assert_eq!(created.client_secret, "", "what was brought along is not told again");
    Ok(created.client.unwrap())
}

fn with(caller: &Caller, secret: &str) -> Caller {
    Caller { secret: secret.to_owned(), ..caller.clone() }
}

/// A05: during an overlap both secrets work, afterwards the new one alone; every use names its
/// secret in the trail.
#[tokio::test]
async fn a_secret_is_replaced_with_an_overlap() {
    let server = TestServer::start().await;
    let old = server.register(Client { client_id: "orders".to_owned(), ..Client::default() }).await;
    let old_id = server.get("orders").await.secrets[0].secret_id.clone();
    let added = add(&server, "orders", None).await.unwrap();
    let new = with(&old, &added.client_secret);
    assert_ne!(
        (old_id.as_str(), old.secret.as_str()),
        (added.secret_id.as_str(), new.secret.as_str())
    );
    assert!(server.token(&old, &[]).await.is_ok() && server.token(&new, &[]).await.is_ok());

    let retired = retire(&server, "orders", &old_id, Some(100)).await.unwrap();
    assert_eq!(retired.secrets[0].expire_time.unwrap().seconds, server.now() + 100);
    server.advance(99);
    assert!(server.token(&old, &[]).await.is_ok() && server.token(&new, &[]).await.is_ok());
    server.advance(1);
    assert_eq!(reason(&server.token(&old, &[]).await.unwrap_err()), "INVALID_CLIENT");
    assert!(server.token(&new, &[]).await.is_ok());

    let filter = EventFilter {
        actor: client("orders"),
        action: "token.issued".to_owned(),
        ..EventFilter::default()
    };
    let used: Vec<String> = server
        .trail(filter)
        .await
        .into_iter()
        .map(|event| secret_of(&event).to_owned())
        .rev()
        .collect();
    let (old_id, new_id) = (old_id.as_str(), added.secret_id.as_str());
    assert_eq!(used, [old_id, new_id, old_id, new_id, new_id]);
}

/// A05 (AUDIT TL5): a secret that leaked is retired together with everything that was issued so
/// far, by either secret; without that, what was issued lives on.
#[tokio::test]
async fn a_leaked_secret_takes_along_what_was_issued() {
    let server = TestServer::start().await;
    for revoke_issued in [false, true] {
        let client = Client {
            client_id: format!("orders-{revoke_issued}"),
            ..crate::support::server::refreshing()
        };
        let leaked = server.register(client).await;
        let secret_id = server.get(&leaked.id).await.secrets[0].secret_id.clone();
        let new = with(&leaked, &add(&server, &leaked.id, None).await.unwrap().client_secret);
        let issued = server.token(&leaked, &[]).await.unwrap();
        let client_id = leaked.id.clone();
        let message = RetireSecretRequest {
            client_id,
            secret_id,
            revoke_issued,
            ..RetireSecretRequest::default()
        };
        let overlapping = RetireSecretRequest { overlap: seconds(1), ..message.clone() };
        if revoke_issued {
            let refused = server
                .clients()
                .retire_secret(server.as_admin(overlapping).await)
                .await
                .unwrap_err();
            assert_eq!(blamed(&refused), "revoke_issued");
        }
        server.clients().retire_secret(server.as_admin(message).await).await.unwrap();
        assert_eq!(server.is_active(&issued.access_token).await, !revoke_issued);
        assert_eq!(server.refresh(&new, &issued.refresh_token).await.is_err(), revoke_issued);
        assert!(server.token(&new, &[]).await.is_ok());
    }
}

#[tokio::test]
async fn two_secrets_live_at_most() {
    let server = TestServer::start().await;
    let caller =
        server.register(Client { client_id: "orders".to_owned(), ..Client::default() }).await;
    let second = add(&server, "orders", None).await.unwrap();
    let refused = add(&server, "orders", None).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::FailedPrecondition, "FAILED_PRECONDITION")
    );
    assert_eq!(server.get("orders").await.secrets.len(), 2);
    // One that is retired, but still works, counts.
    retire(&server, "orders", &second.secret_id, Some(10)).await.unwrap();
    assert!(add(&server, "orders", None).await.is_err());
    server.advance(10);
    let third = add(&server, "orders", None).await.unwrap();
    assert_eq!(third.client.unwrap().secrets.len(), 2, "what has expired is dropped");
    assert!(server.token(&with(&caller, &third.client_secret), &[]).await.is_ok());
    assert!(server.token(&caller, &[]).await.is_ok());
}

/// Two at once: never a third secret, whoever comes first.
#[tokio::test]
async fn secrets_added_at_once_do_not_exceed_the_bound() {
    let server = TestServer::start().await;
    server.register(Client { client_id: "orders".to_owned(), ..Client::default() }).await;
    let adding = (0..8).map(|_| add(&server, "orders", None));
    let added = futures_util::future::join_all(adding).await;
    assert_eq!(added.iter().filter(|added| added.is_ok()).count(), 1);
    assert_eq!(server.get("orders").await.secrets.len(), 2);
}

#[tokio::test]
async fn retiring_never_makes_a_secret_live_longer() {
    let server = TestServer::start().await;
    let caller =
        server.register(Client { client_id: "orders".to_owned(), ..Client::default() }).await;
    let id = server.get("orders").await.secrets[0].secret_id.clone();
    retire(&server, "orders", &id, Some(50)).await.unwrap();
    let again = retire(&server, "orders", &id, Some(90 * 86_400)).await.unwrap();
    assert_eq!(again.secrets[0].expire_time.unwrap().seconds, server.now() + 50);
    for (overlap, field) in [(90 * 86_400 + 1, "overlap"), (-1, "overlap"), (i64::MAX, "overlap")] {
        assert_eq!(
            blamed(&retire(&server, "orders", &id, Some(overlap)).await.unwrap_err()),
            field,
            "{overlap}"
        );
    }
    assert!(retire(&server, "orders", &id, None).await.unwrap().secrets.is_empty());
    assert_eq!(reason(&server.token(&caller, &[]).await.unwrap_err()), "INVALID_CLIENT");
    assert_eq!(reason(&retire(&server, "orders", &id, None).await.unwrap_err()), "NOT_FOUND");
    assert_eq!(blamed(&retire(&server, "orders", "no/id", None).await.unwrap_err()), "secret_id");
}

#[tokio::test]
async fn a_secret_ends_when_it_was_said_to() {
    let server = TestServer::start().await;
    let caller =
        server.register(Client { client_id: "orders".to_owned(), ..Client::default() }).await;
    let until = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    let message = |at| AddSecretRequest {
        client_id: "orders".to_owned(),
        expire_time: at,
        ..AddSecretRequest::default()
    };
    for at in [until(server.now()), until(server.now() - 1), until(-1), until(253_402_300_800)] {
        let refused =
            server.clients().add_secret(server.as_admin(message(at)).await).await.unwrap_err();
        assert_eq!(blamed(&refused), "expire_time", "{at:?}");
    }
    let added = server
        .clients()
        .add_secret(server.as_admin(message(until(server.now() + 60))).await)
        .await
        .unwrap()
        .into_inner();
    let short = with(&caller, &added.client_secret);
    server.advance(59);
    assert!(server.token(&short, &[]).await.is_ok());
    server.advance(1);
    assert_eq!(reason(&server.token(&short, &[]).await.unwrap_err()), "INVALID_CLIENT");
    assert!(server.token(&caller, &[]).await.is_ok());
}

#[tokio::test]
async fn secrets_that_were_brought_along_authenticate() {
    let server = TestServer::start().await;
    let plain = "correct horse battery staple";
    let phc = Passwords::new(1, 1)
        .hash(&TenantId::operator(), "hashed elsewhere, long ago".into())
        .await
        .unwrap();
    let client =
        import(&server, "plain", create_client_request::Secret::PlainSecret(plain.to_owned()))
            .await
            .unwrap();
    assert_eq!(client.secrets[0].kind(), SecretKind::Argon2id);
    import(&server, "hashed", create_client_request::Secret::Argon2idHash(phc.clone()))
        .await
        .unwrap();
    let caller = |id: &str, secret: &str| Caller { id: id.to_owned(), secret: secret.to_owned() };
    for _ in 0..2 {
        assert!(server.token(&caller("plain", plain), &[]).await.is_ok());
        assert!(server.token(&caller("hashed", "hashed elsewhere, long ago"), &[]).await.is_ok());
        assert_eq!(
            reason(
                &server
                    .token(&caller("plain", "hashed elsewhere, long ago"), &[])
                    .await
                    .unwrap_err()
            ),
            "INVALID_CLIENT"
        );
        assert_eq!(
            reason(&server.token(&caller("hashed", &phc), &[]).await.unwrap_err()),
            "INVALID_CLIENT"
        );
    }
    // The same as a further secret, beside one that was made here.
    let made = server.register(Client { client_id: "made".to_owned(), ..Client::default() }).await;
    let added =
        add(&server, "made", Some(add_secret_request::Secret::PlainSecret(plain.to_owned())))
            .await
            .unwrap();
    assert_eq!(added.client_secret, "");
    assert!(
        server.token(&with(&made, plain), &[]).await.is_ok()
            && server.token(&made, &[]).await.is_ok()
    );
    // What was remembered as verified is forgotten with the secret.
    retire(&server, "made", &added.secret_id, None).await.unwrap();
    assert_eq!(
        reason(&server.token(&with(&made, plain), &[]).await.unwrap_err()),
        "INVALID_CLIENT"
    );
    assert!(!server.home.holds(plain).await && !server.home.holds(&made.secret).await);
}

/// A04: lengths have a floor and a ceiling, and within them every byte counts.
#[tokio::test]
async fn chosen_secrets_have_a_shortest_and_a_longest_length() {
    let server = TestServer::start().await;
    let plain = |secret: String| create_client_request::Secret::PlainSecret(secret);
    for bad in [
        "x".repeat(15),
        "x".repeat(1_025),
        String::new(),
        "jcs_this-looks-like-one-of-ours".to_owned(),
    ] {
        let refused = import(&server, "orders", plain(bad.clone())).await.unwrap_err();
        assert_eq!(
            (reason(&refused).as_str(), blamed(&refused).as_str()),
            ("INVALID_REQUEST", "plain_secret")
        );
        assert!(bad.is_empty() || !refused.message().contains(&bad));
    }
    let longest = "y".repeat(1_024);
    import(&server, "orders", plain(longest.clone())).await.unwrap();
    let caller = |secret: String| Caller { id: "orders".to_owned(), secret };
    for at in [72, 128, 1_023] {
        let mut wrong = longest.clone();
        wrong.replace_range(at..=at, "z");
        assert_eq!(
            reason(&server.token(&caller(wrong), &[]).await.unwrap_err()),
            "INVALID_CLIENT",
            "{at}"
        );
        assert_eq!(
            reason(&server.token(&caller(longest[..at].to_owned()), &[]).await.unwrap_err()),
            "INVALID_CLIENT",
            "{at}"
        );
    }
    assert!(server.token(&caller(longest.clone()), &[]).await.is_ok());
    let refused = server.token(&caller(longest + "y"), &[]).await.unwrap_err();
    assert_eq!(
        (reason(&refused).as_str(), blamed(&refused).as_str()),
        ("INVALID_REQUEST", "client_secret")
    );
}

/// A hash that costs too little, or so much that checking it would be an attack, is not taken in.
#[tokio::test]
async fn hashes_that_are_weak_or_dear_are_refused() {
    let server = TestServer::start().await;
    server.register(Client { client_id: "made".to_owned(), ..Client::default() }).await;
    let good = Passwords::new(1, 1)
        .hash(&TenantId::operator(), "a secret of somebody".into())
        .await
        .unwrap();
    let (_, tail) = good.split_once("p=1$").unwrap();
    let with = |head: &str| format!("{head}${tail}");
    let (salt, hash) = tail.split_once('$').unwrap();
    let unfit = [
        with("$argon2id$v=19$m=4096,t=3,p=1"),
        with("$argon2id$v=19$m=19456,t=1,p=1"),
        with("$argon2id$v=19$m=19457,t=2,p=1"),
        with("$argon2id$v=19$m=65536,t=10,p=1"),
        with("$argon2id$v=19$m=47104,t=1,p=1"),
        with("$argon2id$v=19$m=4294967295,t=1,p=1"),
        with("$argon2id$v=19$m=19456,t=3,p=1"),
        with("$argon2id$v=19$m=19456,t=2,p=5"),
        with("$argon2id$v=19$m=19456,t=2,p=0"),
        with("$argon2id$v=16$m=19456,t=2,p=1"),
        with("$argon2i$v=19$m=19456,t=2,p=1"),
        with("$argon2d$v=19$m=19456,t=2,p=1"),
        with("$argon2id$v=19$m=19456,t=2"),
        with("$argon2id$v=19$m=19456,t=2,p=1,data=AAAA"),
        format!("$argon2id$v=19$m=19456,t=2,p=1${salt}"),
        format!("$argon2id$v=19$m=19456,t=2,p=1${}${hash}", &salt[..4]),
        format!("$argon2id$v=19$m=19456,t=2,p=1${salt}$AAAAAAAA"),
        "$2b$12$abcdefghijklmnopqrstuuQGc7bJvTN7s2nUK0oO5cS1nVDxVz8bS".to_owned(),
        "plain text".to_owned(),
        String::new(),
    ];
    for phc in unfit {
        let refused =
            import(&server, "orders", create_client_request::Secret::Argon2idHash(phc.clone()))
                .await
                .unwrap_err();
        assert_eq!(
            (reason(&refused).as_str(), blamed(&refused).as_str()),
            ("INVALID_REQUEST", "argon2id_hash"),
            "{phc}"
        );
        let refused =
            add(&server, "made", Some(add_secret_request::Secret::Argon2idHash(phc.clone())))
                .await
                .unwrap_err();
        assert_eq!(blamed(&refused), "argon2id_hash", "{phc}");
    }
    assert_eq!(server.try_get("orders").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(server.get("made").await.secrets.len(), 1);
}

/// Uses are counted per secret, in memory and from time to time on disk; stopping loses none.
#[tokio::test]
async fn uses_of_each_secret_are_counted_across_a_restart() {
    let server = TestServer::start().await;
    let first =
        server.register(Client { client_id: "orders".to_owned(), ..Client::default() }).await;
    let second = with(&first, &add(&server, "orders", None).await.unwrap().client_secret);
    for _ in 0..3 {
        server.token(&first, &[]).await.unwrap();
    }
    server.advance(7);
    server.token(&first, &[]).await.unwrap();
    let first_at = server.now();
    server.advance(5);
    server.token(&second, &[]).await.unwrap();
    let second_at = server.now();
    let wrong = Caller { secret: format!("{}x", first.secret), ..first.clone() };
    server.token(&wrong, &[]).await.unwrap_err();

    let server = server.restart().await;
    let uses = |client: &Client| -> Vec<(i64, Option<i64>)> {
        client
            .secrets
            .iter()
            .map(|secret| (secret.use_count, secret.last_used_time.map(|at| at.seconds)))
            .collect()
    };
    let counted = server.get("orders").await;
    assert_eq!(uses(&counted), [(4, Some(first_at)), (1, Some(second_at))]);
    server.advance(1);
    server.token(&first, &[]).await.unwrap();
    let at = server.now();
    let server = server.restart().await;
    assert_eq!(uses(&server.get("orders").await), [(5, Some(at)), (1, Some(second_at))]);
}

/// A secret is told once: by the answer that made it, and by nothing else.
#[tokio::test]
async fn a_secret_is_never_told_again() {
    let server = TestServer::start().await;
    let caller =
        server.register(Client { client_id: "orders".to_owned(), ..Client::default() }).await;
    let second = add(&server, "orders", None).await.unwrap();
    assert!(!format!("{:?}", second.client).contains(&second.client_secret));
    let read =
        format!("{:?}{:?}", server.get("orders").await, server.trail(EventFilter::default()).await);
    for secret in [&caller.secret, &second.client_secret] {
        assert!(!read.contains(secret.as_str()));
        assert!(!server.home.holds(secret).await);
    }
}
