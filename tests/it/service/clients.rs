//! ClientService: what is registered, changed, listed and removed.

use jeton::proto::admin::{
    Client, DeleteClientRequest, DisableClientRequest, EnableClientRequest, GrantType,
    ListClientsRequest, ListClientsResponse,
};
use tonic::{Code, Status};

use crate::support::server::{START, TestServer, bearer, blamed, reason, refreshing, seconds};

/// A client with everything set.
fn full(id: &str) -> Client {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    Client {
        client_id: id.to_owned(),
        display_name: "Заказы 😀".to_owned(),
        tenant: "shop".to_owned(),
        scopes: texts(&["orders:read", "orders:write"]),
        default_scopes: texts(&["orders:read"]),
        roles: texts(&["svc.orders/reader"]),
        audiences: texts(&["https://orders", "urn:svc:bills"]),
        serves: texts(&["https://orders"]),
        grant_types: vec![GrantType::ClientCredentials.into(), GrantType::RefreshToken.into()],
        access_token_lifetime: seconds(120),
        refresh_token_lifetime: seconds(7_200),
        refresh_token_idle_lifetime: seconds(3_600),
        rate_plan: "bulk".to_owned(),
        ..Client::default()
    }
}

/// The fields a mask may name, and a value of each that differs from [`full`].
fn changes() -> Vec<(&'static str, Client)> {
    let change = |change: fn(&mut Client)| {
        let mut client = full("");
        change(&mut client);
        client
    };
    vec![
        ("display_name", change(|client| client.display_name = "Bills".to_owned())),
        ("scopes", change(|client| client.scopes.truncate(1))),
        ("default_scopes", change(|client| client.default_scopes.clear())),
        ("roles", change(|client| client.roles = vec!["other".to_owned()])),
        ("audiences", change(|client| client.audiences.reverse())),
        ("serves", change(|client| client.serves.clear())),
        ("grant_types", change(|client| client.grant_types.truncate(1))),
        ("access_token_lifetime", change(|client| client.access_token_lifetime = None)),
        ("refresh_token_lifetime", change(|client| client.refresh_token_lifetime = seconds(60))),
        (
            "refresh_token_idle_lifetime",
            change(|client| client.refresh_token_idle_lifetime = seconds(366 * 86_400)),
        ),
        ("rate_plan", change(|client| client.rate_plan = "standard".to_owned())),
    ]
}

/// Without what the server adds.
fn given(client: Client) -> Client {
    Client {
        client_id: String::new(),
        secrets: Vec::new(),
        etag: String::new(),
        create_time: None,
        update_time: None,
        ..client
    }
}

async fn page(
    server: &TestServer,
    token: &str,
    tenant: &str,
    size: i32,
    page: &str,
) -> Result<ListClientsResponse, Status> {
    let message = ListClientsRequest {
        tenant: tenant.to_owned(),
        page_size: size,
        page_token: page.to_owned(),
    };
    server.clients().list_clients(bearer(message, token)).await.map(tonic::Response::into_inner)
}

fn ids(page: &ListClientsResponse) -> Vec<&str> {
    page.clients.iter().map(|client| client.client_id.as_str()).collect()
}

#[tokio::test]
async fn what_is_registered_is_what_is_read() {
    let server = TestServer::start().await;
    let created = server.create(full("orders")).await.unwrap();
    let client = created.client.unwrap();
    assert!(created.client_secret.starts_with("jcs_"));
    assert_eq!(given(client.clone()), Client { client_id: String::new(), ..full("") });
    assert_eq!(client.etag, "1");
    assert_eq!(
        (client.create_time.unwrap().seconds, client.update_time.unwrap().seconds),
        (START, START)
    );
    assert_eq!(client.secrets.len(), 1);
    assert_eq!(server.get("orders").await, client);
    assert!(
        page(&server, &server.admin_token().await, "shop", 0, "")
            .await
            .unwrap()
            .clients
            .contains(&client)
    );
}

#[tokio::test]
async fn what_is_not_given_has_a_default() {
    let server = TestServer::start().await;
    let client = server.create(Client::default()).await.unwrap().client.unwrap();
    assert!((1..=128).contains(&client.client_id.len()));
    assert_eq!((client.tenant.as_str(), client.rate_plan.as_str()), ("default", "standard"));
    assert_eq!(client.grant_types, [i32::from(GrantType::ClientCredentials)]);
    assert!(client.scopes.is_empty() && client.access_token_lifetime.is_none() && !client.disabled);
    let other = server.create(Client::default()).await.unwrap().client.unwrap();
    assert_ne!(client.client_id, other.client_id);
}

/// Output only fields are the server's: what a caller says of them is ignored.
#[tokio::test]
async fn output_only_fields_are_ignored() {
    let server = TestServer::start().await;
    let secret = jeton::proto::admin::Secret {
        secret_id: "mine".to_owned(),
        use_count: 7,
        ..Default::default()
    };
    let time = Some(prost_types::Timestamp { seconds: 1, nanos: 0 });
    let client = Client {
        client_id: "orders".to_owned(),
        disabled: true,
        secrets: vec![secret],
        etag: "9".to_owned(),
        create_time: time,
        update_time: time,
        ..Client::default()
    };
    let created = server.create(client).await.unwrap().client.unwrap();
    assert!(
        !created.disabled && created.etag == "1" && created.create_time.unwrap().seconds == START
    );
    assert_ne!(created.secrets[0].secret_id, "mine");
}

#[tokio::test]
async fn an_id_is_taken_once_and_differs_by_case() {
    let server = TestServer::start().await;
    let named = |id: &str| Client { client_id: id.to_owned(), ..Client::default() };
    let first = server.create(named("orders")).await.unwrap();
    let refused =
        server.create(Client { tenant: "other".to_owned(), ..named("orders") }).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::AlreadyExists, "ALREADY_EXISTS")
    );
    assert_eq!(server.get("orders").await, first.client.unwrap());
    server.create(named("Orders")).await.unwrap();
}

/// S03: disabling ends what a client holds, and enabling does not bring it back.
#[tokio::test]
async fn a_disabled_client_is_refused_and_what_it_held_stays_ended() {
    let server = TestServer::start().await;
    let mark = server.rpc_target("orders", "shop").await;
    let message = DisableClientRequest {
        client_id: "orders".to_owned(),
        etag: String::new(),
        allow_no_administrator: false,
    };
    let disabled = server
        .clients()
        .disable_client(server.as_admin(message).await)
        .await
        .unwrap()
        .into_inner()
        .client
        .unwrap();
    assert!(disabled.disabled && disabled.etag == "2");
    assert_eq!(reason(&server.token(&mark.client, &[]).await.unwrap_err()), "INVALID_CLIENT");
    assert_eq!(
        reason(&server.refresh(&mark.client, &mark.refresh_token).await.unwrap_err()),
        "INVALID_CLIENT"
    );
    assert!(!server.is_active(&mark.access_token).await);

    let message = EnableClientRequest { client_id: "orders".to_owned(), etag: String::new() };
    let enabled = server
        .clients()
        .enable_client(server.as_admin(message).await)
        .await
        .unwrap()
        .into_inner()
        .client
        .unwrap();
    assert!(!enabled.disabled && enabled.etag == "3");
    assert!(!server.is_active(&mark.access_token).await);
    assert_eq!(
        reason(&server.refresh(&mark.client, &mark.refresh_token).await.unwrap_err()),
        "INVALID_GRANT"
    );
    let fresh = server.token(&mark.client, &[]).await.unwrap();
    assert!(server.is_active(&fresh.access_token).await);
    assert!(server.refresh(&mark.client, &fresh.refresh_token).await.is_ok());
}

/// S03: a client that is registered again under the same id does not inherit tokens or secrets.
#[tokio::test]
async fn a_deleted_client_is_gone_and_its_successor_inherits_nothing() {
    let server = TestServer::start().await;
    let mark = server.rpc_target("orders", "default").await;
    let message = DeleteClientRequest {
        client_id: "orders".to_owned(),
        etag: String::new(),
        allow_no_administrator: false,
    };
    server.clients().delete_client(server.as_admin(message.clone()).await).await.unwrap();
    assert_eq!(server.try_get("orders").await.unwrap_err().code(), Code::NotFound);
    let again = server.clients().delete_client(server.as_admin(message).await).await.unwrap_err();
    assert_eq!((again.code(), reason(&again).as_str()), (Code::NotFound, "NOT_FOUND"));
    assert_eq!(reason(&server.token(&mark.client, &[]).await.unwrap_err()), "INVALID_CLIENT");
    assert!(!server.is_active(&mark.access_token).await);

    let successor =
        server.register(Client { client_id: "orders".to_owned(), ..refreshing() }).await;
    assert!(!server.is_active(&mark.access_token).await);
    assert_eq!(reason(&server.token(&mark.client, &[]).await.unwrap_err()), "INVALID_CLIENT");
    assert_eq!(
        reason(&server.refresh(&successor, &mark.refresh_token).await.unwrap_err()),
        "INVALID_GRANT"
    );
    assert_eq!(server.get("orders").await.secrets[0].use_count, 0);
    let server = server.restart().await;
    assert!(!server.is_active(&mark.access_token).await);
    assert!(server.token(&successor, &[]).await.is_ok());
}

#[tokio::test]
async fn a_mask_changes_what_it_names_and_nothing_else() {
    let server = TestServer::start().await;
    for (n, (path, change)) in changes().into_iter().enumerate() {
        let id = format!("orders-{n}");
        let before = server.create(full(&id)).await.unwrap().client.unwrap();
        server.advance(1);
        // Everything that the mask does not name is rubbish, and is not looked at.
        let mut message = Client {
            client_id: id.clone(),
            tenant: "other".to_owned(),
            roles: vec!["no role".to_owned()],
            rate_plan: "NO PLAN".to_owned(),
            grant_types: vec![99],
            disabled: true,
            ..Client::default()
        };
        let mut expected = before.clone();
        copy(path, &change, &mut message);
        copy(path, &change, &mut expected);
        let updated = server.change(message, &[path]).await.unwrap();
        (expected.etag, expected.update_time) = (updated.etag.clone(), updated.update_time);
        assert_eq!(updated, expected, "{path}");
        assert_eq!(
            (updated.etag.as_str(), updated.update_time.unwrap().seconds),
            ("2", server.now()),
            "{path}"
        );
        assert_eq!(server.get(&id).await, updated, "{path}");
    }
}

fn copy(path: &str, from: &Client, to: &mut Client) {
    let from = from.clone();
    match path {
        "display_name" => to.display_name = from.display_name,
        "scopes" => to.scopes = from.scopes,
        "default_scopes" => to.default_scopes = from.default_scopes,
        "roles" => to.roles = from.roles,
        "audiences" => to.audiences = from.audiences,
        "serves" => to.serves = from.serves,
        "grant_types" => to.grant_types = from.grant_types,
        "access_token_lifetime" => to.access_token_lifetime = from.access_token_lifetime,
        "refresh_token_lifetime" => to.refresh_token_lifetime = from.refresh_token_lifetime,
        "refresh_token_idle_lifetime" => {
            to.refresh_token_idle_lifetime = from.refresh_token_idle_lifetime
        }
        "rate_plan" => to.rate_plan = from.rate_plan,
        other => panic!("no such field: {other}"),
    }
}

/// N05: a star means every field, and what is left out gets the value that creation would give it.
#[tokio::test]
async fn a_star_replaces_every_field() {
    let server = TestServer::start().await;
    server.create(full("orders")).await.unwrap();
    let bare = Client {
        client_id: "orders".to_owned(),
        grant_types: vec![GrantType::ClientCredentials.into()],
        ..Client::default()
    };
    let updated = server.change(bare.clone(), &["*"]).await.unwrap();
    let created = server
        .create(Client { client_id: "other".to_owned(), tenant: "shop".to_owned(), ..bare })
        .await
        .unwrap();
    assert_eq!(given(updated), given(created.client.unwrap()));
}

#[tokio::test]
async fn masks_that_name_nothing_or_what_is_not_to_be_set_are_refused() {
    let server = TestServer::start().await;
    let before = server.create(full("orders")).await.unwrap().client.unwrap();
    let masks: [&[&str]; 9] = [
        &[],
        &[""],
        &["client_id"],
        &["tenant"],
        &["disabled"],
        &["secrets"],
        &["display_name", "etag"],
        &["Display_Name"],
        &["display_name,scopes"],
    ];
    for mask in masks {
        let refused = server.change(full("orders"), mask).await.unwrap_err();
        assert_eq!(
            (reason(&refused).as_str(), blamed(&refused).as_str()),
            ("INVALID_REQUEST", "update_mask"),
            "{mask:?}"
        );
    }
    assert_eq!(server.get("orders").await, before);
}

/// AIP-154: a write over what was read since is refused, and one over what stands goes through.
#[tokio::test]
async fn a_write_over_an_older_version_is_refused() {
    let server = TestServer::start().await;
    let read = server.create(full("orders")).await.unwrap().client.unwrap();
    let named = |etag: &str| Client {
        etag: etag.to_owned(),
        display_name: "x".to_owned(),
        ..full("orders")
    };
    assert_eq!(server.change(named(&read.etag), &["display_name"]).await.unwrap().etag, "2");
    let id = || "orders".to_owned();
    for (etag, expected) in [
        ("1", "STALE"),
        ("3", "STALE"),
        ("0", "STALE"),
        ("abc", "INVALID_REQUEST"),
        ("-1", "INVALID_REQUEST"),
    ]
    .into_iter()
    .chain([("2 ", "INVALID_REQUEST"), ("+2", "INVALID_REQUEST"), ("02", "INVALID_REQUEST")])
    .chain([("99999999999999999999", "INVALID_REQUEST")])
    {
        let etag = || etag.to_owned();
        let refusals = [
            server.change(named(&etag()), &["display_name"]).await.unwrap_err(),
            server
                .clients()
                .disable_client(
                    server
                        .as_admin(DisableClientRequest {
                            client_id: id(),
                            etag: etag(),
                            allow_no_administrator: false,
                        })
                        .await,
                )
                .await
                .unwrap_err(),
            server
                .clients()
                .enable_client(
                    server.as_admin(EnableClientRequest { client_id: id(), etag: etag() }).await,
                )
                .await
                .unwrap_err(),
            server
                .clients()
                .delete_client(
                    server
                        .as_admin(DeleteClientRequest {
                            client_id: id(),
                            etag: etag(),
                            allow_no_administrator: false,
                        })
                        .await,
                )
                .await
                .unwrap_err(),
        ];
        for refused in refusals {
            assert_eq!(reason(&refused), expected, "{:?}", etag());
            let code = if expected == "STALE" { Code::Aborted } else { Code::InvalidArgument };
            assert_eq!(refused.code(), code, "{:?}", etag());
        }
    }
    assert_eq!(server.get("orders").await.etag, "2");
}

#[tokio::test]
async fn pages_come_in_the_order_of_ids_and_miss_nobody() {
    let server = TestServer::start().await;
    let token = server.admin_token().await;
    let mut all: Vec<String> =
        ["Z", "a", "B", "b", "~", "0", "_", ".", "-", "ab"].map(str::to_owned).to_vec();
    for id in &all {
        server
            .create(Client {
                client_id: id.clone(),
                tenant: "shop".to_owned(),
                ..Client::default()
            })
            .await
            .unwrap();
    }
    all.sort();
    for size in 1..=11 {
        let (mut seen, mut next) = (Vec::new(), String::new());
        loop {
            let page = page(&server, &token, "shop", size, &next).await.unwrap();
            assert!(page.clients.len() <= usize::try_from(size).unwrap());
            seen.extend(ids(&page).into_iter().map(str::to_owned));
            next = page.next_page_token;
            if next.is_empty() {
                break;
            }
        }
        assert_eq!(seen, all, "{size}");
    }
    // What is registered and removed between two pages moves nobody else.
    let first = page(&server, &token, "shop", 3, "").await.unwrap();
    server
        .create(Client {
            client_id: "!".replace('!', "-0"),
            tenant: "shop".to_owned(),
            ..Client::default()
        })
        .await
        .unwrap();
    let message = DeleteClientRequest {
        client_id: all[2].clone(),
        etag: String::new(),
        allow_no_administrator: false,
    };
    server.clients().delete_client(server.as_admin(message).await).await.unwrap();
    let second = page(&server, &token, "shop", 3, &first.next_page_token).await.unwrap();
    assert_eq!(ids(&second), all[3..6].iter().map(String::as_str).collect::<Vec<_>>());
    // Every tenant, for the operator alone.
    let every = page(&server, &token, "", 0, "").await.unwrap();
    assert!(ids(&every).contains(&"bootstrap") && ids(&every).contains(&"ab"));
    assert_eq!(
        reason(&page(&server, &token, "shop", -1, "").await.unwrap_err()),
        "INVALID_REQUEST"
    );
}

/// N03: a page token works for its own question and as it was given out.
#[tokio::test]
async fn page_tokens_are_opaque_and_bound_to_their_question() {
    let server = TestServer::start().await;
    let token = server.admin_token().await;
    for id in ["a", "b", "c"] {
        server
            .create(Client {
                client_id: id.to_owned(),
                tenant: "shop".to_owned(),
                ..Client::default()
            })
            .await
            .unwrap();
    }
    let given = page(&server, &token, "shop", 1, "").await.unwrap().next_page_token;
    assert_eq!(
        ids(&page(&server, &token, "shop", 2, &given).await.unwrap()),
        ["b", "c"],
        "the size may change"
    );
    let mut forged: Vec<String> =
        ["a", "1", "' or 1=1--", "{\"$gt\":\"\"}", "\0", "AAAA"].map(str::to_owned).to_vec();
    forged.push(given[1..].to_owned());
    forged.push(format!("{given}AA"));
    forged.push(format!("{given}="));
    forged.push(given.to_lowercase());
    forged.push("A".repeat(60_000));
    for at in 0..given.len() {
        let mut bytes = given.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        forged.push(String::from_utf8(bytes).unwrap());
    }
    for bad in forged {
        let refused = page(&server, &token, "shop", 1, &bad).await.unwrap_err();
        assert_eq!(
            (reason(&refused).as_str(), blamed(&refused).as_str()),
            ("INVALID_REQUEST", "page_token"),
            "{bad}"
        );
    }
    for tenant in ["", "default", "sho", "shopp"] {
        assert_eq!(
            blamed(&page(&server, &token, tenant, 1, &given).await.unwrap_err()),
            "page_token",
            "{tenant}"
        );
    }
    let (_, other) = server.client_with_token("shop", &["jeton:admin"]).await;
    assert_eq!(blamed(&page(&server, &other, "shop", 1, &given).await.unwrap_err()), "page_token");
    let server = server.restart().await;
    assert_eq!(
        ids(&page(&server, &token, "shop", 1, &given).await.unwrap()),
        ["b"],
        "a restart keeps the key"
    );
}

/// Settings that no client may have, by the field to blame: a message and the path of its mask.
fn unfit() -> Vec<(&'static str, Client)> {
    let mut unfit = Vec::new();
    let mut add = |path: &'static str, change: &dyn Fn(&mut Client)| {
        let mut client = full("");
        change(&mut client);
        unfit.push((path, client));
    };
    for bad in ["x".repeat(201), "a\nb".to_owned(), "\u{1b}[31m".to_owned(), "\0".to_owned()] {
        add("display_name", &|client| client.display_name.clone_from(&bad));
    }
    let many =
        |count: usize, text: &str| (0..count).map(|n| format!("{text}{n}")).collect::<Vec<_>>();
    let lists: [(&str, Vec<Vec<String>>); 5] = [
        (
            "scopes",
            vec![
                vec![String::new()],
                vec!["a b".into()],
                vec!["*".into()],
                vec!["é".into()],
                vec!["a\\b".into()],
            ],
        ),
        ("scopes", vec![vec!["a".into(), "a".into()], vec!["x".repeat(129)], many(101, "s")]),
        (
            "roles",
            vec![vec![String::new()], vec!["a b".into()], vec!["x".repeat(129)], many(51, "r")],
        ),
        (
            "audiences",
            vec![
                vec!["orders".into()],
                vec!["https://a#b".into()],
                vec!["/x".into()],
                many(51, "https://a"),
            ],
        ),
        ("serves", vec![vec![String::new()], vec!["https://".into()], many(51, "https://a")]),
    ];
    for (path, values) in lists {
        for value in values {
            add(path, &|client| match path {
                "scopes" => (client.scopes, client.default_scopes) = (value.clone(), Vec::new()),
                "roles" => client.roles.clone_from(&value),
                "audiences" => client.audiences.clone_from(&value),
                _ => client.serves.clone_from(&value),
            });
        }
    }
    for bad in ["orders:delete", "orders", "orders:read ", "*"] {
        add("default_scopes", &|client| client.default_scopes = vec![bad.to_owned()]);
    }
    for bad in [0, 3, 99, -1, i32::MAX, i32::MIN] {
        add("grant_types", &|client| {
            client.grant_types = vec![GrantType::ClientCredentials.into(), bad]
        });
    }
    for bad in [0, 59, 3_601, -60, i64::MIN, i64::MAX] {
        add("access_token_lifetime", &|client| client.access_token_lifetime = seconds(bad));
    }
    add("access_token_lifetime", &|client| {
        client.access_token_lifetime = Some(prost_types::Duration { seconds: 60, nanos: 1 });
    });
    for bad in [0, 59, 366 * 86_400 + 1, -60] {
        add("refresh_token_lifetime", &|client| client.refresh_token_lifetime = seconds(bad));
        add("refresh_token_idle_lifetime", &|client| {
            client.refresh_token_idle_lifetime = seconds(bad)
        });
    }
    for bad in ["gone", "Standard", "no plan", "{\"$ne\":\"\"}"] {
        add("rate_plan", &|client| client.rate_plan = bad.to_owned());
    }
    unfit
}

/// N05, N06: what creation refuses, every update refuses for the same field; nothing is written.
#[tokio::test]
async fn updates_are_validated_like_creation() {
    let server = TestServer::start().await;
    let before = server.create(full("orders")).await.unwrap().client.unwrap();
    for (path, client) in unfit() {
        let field = format!("client.{path}");
        let refused = server
            .create(Client { client_id: "new".to_owned(), ..client.clone() })
            .await
            .unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::InvalidArgument, "INVALID_REQUEST"),
            "{client:?}"
        );
        assert_eq!(blamed(&refused), field, "{client:?}");
        for mask in [path, "*"] {
            let client = Client { client_id: "orders".to_owned(), ..client.clone() };
            let refused = server.change(client.clone(), &[mask]).await.unwrap_err();
            assert_eq!(
                (reason(&refused).as_str(), blamed(&refused)),
                ("INVALID_REQUEST", field.clone()),
                "{client:?}"
            );
        }
    }
    assert_eq!(server.get("orders").await, before);
    assert_eq!(server.try_get("new").await.unwrap_err().code(), Code::NotFound);
    // A change of one field must fit the fields that stay.
    let narrower = Client { scopes: vec!["orders:write".to_owned()], ..full("orders") };
    assert_eq!(
        blamed(&server.change(narrower, &["scopes"]).await.unwrap_err()),
        "client.default_scopes"
    );
}

/// N01, N02: ids are plain bytes of a small alphabet; nothing in them is understood, folded or
/// trimmed.
#[tokio::test]
async fn odd_ids_are_refused_and_name_nobody() {
    let server = TestServer::start().await;
    server.create(Client { client_id: "svc".to_owned(), ..Client::default() }).await.unwrap();
    let long = "x".repeat(129);
    let longer = "x".repeat(60_000);
    let odd = [
        "{\"$gt\":\"\"}",
        "$where",
        "a/b",
        "svc\0",
        "\0",
        " svc",
        "svc ",
        "svc\n",
        "ѕvc",
        "s\u{200b}vc",
        "\u{202e}svc",
        "ｓvc",
    ]
    .into_iter()
    .chain([
        "' or '1'='1",
        "sv%63",
        "svc;",
        "é",
        "e\u{301}",
        "*",
        "%",
        long.as_str(),
        longer.as_str(),
    ]);
    for id in odd {
        let refused = server
            .create(Client { client_id: id.to_owned(), ..Client::default() })
            .await
            .unwrap_err();
        assert_eq!(
            (reason(&refused).as_str(), blamed(&refused).as_str()),
            ("INVALID_REQUEST", "client.client_id"),
            "{id:?}"
        );
        assert!(!refused.message().contains(id), "{id:?}");
        assert_eq!(blamed(&server.try_get(id).await.unwrap_err()), "client_id", "{id:?}");
        let update = server
            .change(Client { client_id: id.to_owned(), ..full("") }, &["*"])
            .await
            .unwrap_err();
        assert_eq!(blamed(&update), "client.client_id", "{id:?}");
        let caller =
            crate::support::server::Caller { id: id.to_owned(), secret: "jcs_x".to_owned() };
        assert_eq!(
            reason(&server.token(&caller, &[]).await.unwrap_err()),
            "INVALID_CLIENT",
            "{id:?}"
        );
    }
    for tenant in
        ["Shop", "sh op", "shop\0", "ѕhop", "{\"$gt\":\"\"}", "a.b", "x".repeat(65).as_str()]
    {
        let refused = server
            .create(Client { tenant: tenant.to_owned(), ..Client::default() })
            .await
            .unwrap_err();
        assert_eq!(blamed(&refused), "client.tenant", "{tenant}");
        let refused = page(&server, &server.admin_token().await, tenant, 0, "").await.unwrap_err();
        assert_eq!(blamed(&refused), "tenant", "{tenant}");
    }
    assert_eq!(blamed(&server.try_get("").await.unwrap_err()), "client_id");
    assert_eq!(server.try_get("SVC").await.unwrap_err().code(), Code::NotFound);
    let all = page(&server, &server.admin_token().await, "", 0, "").await.unwrap();
    assert_eq!(ids(&all), ["bootstrap", "svc"]);
}

#[tokio::test]
async fn a_message_without_a_client_is_refused() {
    let server = TestServer::start().await;
    let message = jeton::proto::admin::CreateClientRequest::default();
    assert_eq!(
        blamed(&server.clients().create_client(server.as_admin(message).await).await.unwrap_err()),
        "client"
    );
    let message = jeton::proto::admin::UpdateClientRequest::default();
    assert_eq!(
        blamed(&server.clients().update_client(server.as_admin(message).await).await.unwrap_err()),
        "client"
    );
}

#[tokio::test]
async fn lifetimes_are_the_clients_own_or_the_configured_ones() {
    let server = TestServer::start_with(|config| {
        config.token.access_lifetime_seconds = 300;
        config.token.refresh_lifetime_seconds = 1_000;
        config.token.refresh_idle_seconds = 600;
    })
    .await;
    let plain = server.register(refreshing()).await;
    let own = Client {
        client_id: "own".to_owned(),
        access_token_lifetime: seconds(60),
        refresh_token_lifetime: seconds(150),
        refresh_token_idle_lifetime: seconds(100),
        ..refreshing()
    };
    let own = server.register(own).await;
    for (caller, lifetime, idle, absolute) in [(&plain, 300_u32, 600, 1_000), (&own, 60, 100, 150)]
    {
        let issued = server.token(caller, &[]).await.unwrap();
        assert_eq!(issued.expires_in, i64::from(lifetime));
        server.advance(u64::from(lifetime) - 1);
        assert!(server.is_active(&issued.access_token).await);
        server.advance(1);
        assert!(!server.is_active(&issued.access_token).await);

        let unused = server.token(caller, &[]).await.unwrap();
        let used = server.token(caller, &[]).await.unwrap();
        server.advance(idle - 1);
        let refreshed = server.refresh(caller, &used.refresh_token).await.unwrap();
        server.advance(1);
        assert_eq!(
            reason(&server.refresh(caller, &unused.refresh_token).await.unwrap_err()),
            "INVALID_GRANT"
        );
        server.advance(absolute - idle - 1);
        let last = server.refresh(caller, &refreshed.refresh_token).await.unwrap();
        assert_eq!(last.expires_in, 1, "cut at the end of the family");
        server.advance(1);
        assert_eq!(
            reason(&server.refresh(caller, &last.refresh_token).await.unwrap_err()),
            "INVALID_GRANT"
        );
        assert!(!server.is_active(&last.access_token).await);
    }
    // A change holds for what is issued from then on.
    let changed = Client { client_id: "own".to_owned(), ..Client::default() };
    server.change(changed, &["access_token_lifetime"]).await.unwrap();
    assert_eq!(
        server.token(&own, &[]).await.unwrap().expires_in,
        100,
        "the default, cut where the family ends unused"
    );
}
