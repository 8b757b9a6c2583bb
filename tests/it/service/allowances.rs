//! Rate plans and lifetimes that are the operator's to give (AUDIT AZ11).

use jeton::{
    config::Rate,
    proto::admin::{Client, CreateClientRequest, UpdateClientRequest},
};
use tonic::{Code, Status};

use crate::support::server::{TestServer, bearer, reason, refreshing, seconds};

/// Writes with the token of an administrator of one tenant.
async fn create(server: &TestServer, token: &str, client: Client) -> Result<Client, Status> {
    let message = CreateClientRequest { client: Some(client), secret: None };
    Ok(server.clients().create_client(bearer(message, token)).await?.into_inner().client.unwrap())
}

async fn update(
    server: &TestServer,
    token: &str,
    client: Client,
    mask: &[&str],
) -> Result<Client, Status> {
    let update_mask = Some(prost_types::FieldMask {
        paths: mask.iter().map(|path| (*path).to_owned()).collect(),
    });
    let message =
        UpdateClientRequest { client: Some(client), update_mask, allow_no_administrator: false };
    Ok(server.clients().update_client(bearer(message, token)).await?.into_inner().client.unwrap())
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, what: &str) {
    let status = answer.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::PermissionDenied, "INSUFFICIENT_SCOPE"),
        "{what}"
    );
}

fn named(id: &str) -> Client {
    Client { client_id: id.to_owned(), ..refreshing() }
}

/// The configured lifetimes are 900 s, 30 days and 7 days.
const DAY: i64 = 86_400;

/// Widens what a client may have.
type Widen = fn(Client) -> Client;

/// The case of the audit: a tenant's administrator of clients put itself on the plan "bulk" with
/// families of 366 days.
#[tokio::test]
async fn a_tenant_gives_itself_neither_a_plan_nor_a_longer_life() {
    let server = TestServer::start().await;
    for scope in ["jeton:admin:clients", "jeton:admin"] {
        let (own, token) = server.client_with_token("acme", &[scope]).await;
        let id = format!("plain-{}", scope.len());
        create(&server, &token, named(&id)).await.unwrap();
        let wider: [(&str, Widen); 4] = [
            ("rate_plan", |client| Client { rate_plan: "bulk".to_owned(), ..client }),
            ("access_token_lifetime", |client| Client {
                access_token_lifetime: seconds(901),
                ..client
            }),
            ("refresh_token_lifetime", |client| Client {
                refresh_token_lifetime: seconds(366 * DAY),
                ..client
            }),
            ("refresh_token_idle_lifetime", |client| Client {
                refresh_token_idle_lifetime: seconds(7 * DAY + 1),
                ..client
            }),
        ];
        for (field, widen) in wider {
            refused(create(&server, &token, widen(named("new"))).await, field);
            refused(update(&server, &token, widen(named(&id)), &[field]).await, field);
            refused(update(&server, &token, widen(named(&id)), &["*"]).await, field);
            let itself = Client { client_id: own.id.clone(), ..Client::default() };
            refused(update(&server, &token, widen(itself), &[field]).await, field);
            assert!(
                server.change(widen(named(&id)), &[field]).await.is_ok(),
                "the operator gives {field}"
            );
        }
        assert_eq!(server.try_get("new").await.unwrap_err().code(), Code::NotFound);
    }
}

/// An allowance of the operator stays while a tenant changes other things. The tenant may give it
/// up, not take it back.
#[tokio::test]
async fn what_the_operator_gave_stays_until_it_is_given_up() {
    let server = TestServer::start().await;
    let (_, token) = server.client_with_token("acme", &["jeton:admin:clients"]).await;
    let given = Client {
        tenant: "acme".to_owned(),
        rate_plan: "bulk".to_owned(),
        refresh_token_lifetime: seconds(60 * DAY),
        ..named("given")
    };
    server.register(given.clone()).await;
    let renamed = Client { display_name: "renamed".to_owned(), ..given.clone() };
    let kept = update(&server, &token, renamed.clone(), &["display_name"]).await.unwrap();
    assert_eq!((kept.rate_plan.as_str(), kept.refresh_token_lifetime), ("bulk", seconds(60 * DAY)));
    assert!(
        update(&server, &token, Client { tenant: String::new(), ..renamed }, &["*"]).await.is_ok(),
        "the same values again"
    );

    refused(
        update(
            &server,
            &token,
            Client { refresh_token_lifetime: seconds(61 * DAY), ..given.clone() },
            &["*"],
        )
        .await,
        "more",
    );
    for days in [45, 10] {
        let less = Client { refresh_token_lifetime: seconds(days * DAY), ..given.clone() };
        assert!(update(&server, &token, less, &["refresh_token_lifetime"]).await.is_ok(), "{days}");
    }
    refused(
        update(&server, &token, given.clone(), &["refresh_token_lifetime"]).await,
        "back to what it was",
    );
    let standard = Client { rate_plan: String::new(), ..given.clone() };
    assert_eq!(
        update(&server, &token, standard, &["rate_plan"]).await.unwrap().rate_plan,
        "standard"
    );
    refused(update(&server, &token, given, &["rate_plan"]).await, "back to the plan");

    // At and below what is configured, everything is the tenant's own.
    let own = Client {
        access_token_lifetime: seconds(900),
        refresh_token_lifetime: seconds(30 * DAY),
        refresh_token_idle_lifetime: seconds(7 * DAY),
        ..named("own")
    };
    assert!(create(&server, &token, own).await.is_ok());
}

/// AZ11: a plan below "standard" is the operator's means against a client that takes too much: its
/// tenant neither moves the client back nor to any plan above, and may give up what is more.
#[tokio::test]
async fn a_slower_plan_is_the_operators_to_take_back() {
    let server = TestServer::start_with(|config| {
        let rates = [("slow", 1, 1), ("slower-with-a-burst", 1, 1_000_000), ("slowest", 1, 1)];
        for (name, per_second, burst) in rates {
            config.limits.plans.insert(name.to_owned(), Rate { per_second, burst });
        }
    })
    .await;
    let (_, token) = server.client_with_token("acme", &["jeton:admin:clients"]).await;
    let slowed =
        Client { tenant: "acme".to_owned(), rate_plan: "slow".to_owned(), ..named("slowed") };
    server.register(slowed.clone()).await;
    let onto = async |client: &Client, plan: &str| {
        let client = Client { rate_plan: plan.to_owned(), ..client.clone() };
        update(&server, &token, client, &["rate_plan"]).await
    };
    for plan in ["standard", "", "bulk", "slower-with-a-burst"] {
        refused(onto(&slowed, plan).await, plan);
    }
    for plan in ["slow", "slowest"] {
        assert!(onto(&slowed, plan).await.is_ok(), "{plan}");
    }
    let renamed = Client { display_name: "renamed".to_owned(), ..slowed.clone() };
    assert!(update(&server, &token, renamed, &["display_name"]).await.is_ok());
    assert!(
        server
            .change(Client { rate_plan: "standard".to_owned(), ..slowed }, &["rate_plan"])
            .await
            .is_ok(),
        "the operator"
    );
    // A plan above may be given up in steps, and not taken back.
    let fast = Client { tenant: "acme".to_owned(), rate_plan: "bulk".to_owned(), ..named("fast") };
    server.register(fast.clone()).await;
    for plan in ["standard", "slow"] {
        assert!(onto(&fast, plan).await.is_ok(), "{plan}");
    }
    refused(onto(&fast, "standard").await, "back");
}
