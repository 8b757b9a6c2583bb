//! The audit trail of a client, a secret and a refresh family, and what its records say (OPERATORS
//! 4.10).

use jeton::proto::admin::{
    Client, Event, EventFilter, ListEventsRequest, revoke_all_request::Target,
};

use crate::support::server::{Caller, TestServer, bearer, blamed, decoded, refreshing, secret_of};

/// Every event that a filter admits, newest first, by pages of a size.
async fn listed(server: &TestServer, filter: &EventFilter, size: i32) -> Vec<Event> {
    let pass = server.pass().await;
    let (mut events, mut page_token) = (Vec::new(), String::new());
    loop {
        let filter = Some(filter.clone());
        let message = ListEventsRequest { filter, page_size: size, page_token };
        let page = server.audit().list_events(bearer(message, &pass)).await.unwrap().into_inner();
        assert!(page.events.len() <= usize::try_from(size).unwrap());
        events.extend(page.events);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return events;
        }
    }
}

fn actions(events: &[Event]) -> Vec<(&str, &str)> {
    events.iter().map(|event| (event.action.as_str(), event.reason.as_str())).collect()
}

async fn named(server: &TestServer, id: &str) -> Caller {
    server.register(Client { client_id: id.to_owned(), ..refreshing() }).await
}

#[tokio::test]
async fn the_trail_of_a_client_a_secret_and_a_family_is_listed() {
    let server = TestServer::start().await;
    let (orders, other) = (named(&server, "orders").await, named(&server, "orders-2").await);
    let secret = server.secret_id(&orders).await;
    let issued = server.token(&orders, &[]).await.unwrap();
    server.token(&other, &[]).await.unwrap();
    let family = decoded(&issued.access_token).1["fam"].as_str().unwrap().to_owned();
    let scopes = vec!["orders:read".to_owned(), "orders:write".to_owned(), "new".to_owned()];
    let next = Client { client_id: "orders".to_owned(), scopes, ..Client::default() };
    server.change(next, &["scopes"]).await.unwrap();
    server.revoke(&server.admin, &issued.access_token).await.unwrap();
    server.revoke_all(Target::Family(family.clone())).await.unwrap();
    server.add_secret(&orders, None, None).await;
    server.retire(&orders, &secret, 0).await;
    server.token(&orders, &[]).await.unwrap_err();
    server.token(&other, &[]).await.unwrap();
    for size in [1, 2, 1_000] {
        let about = EventFilter { about: "orders".to_owned(), ..EventFilter::default() };
        let expected = [
            ("client.authentication_failed", "invalid_client"),
            ("secret.retired", ""),
            ("secret.added", ""),
            ("revocation.family", "because"),
            ("client.updated", "scopes: +new"),
            ("token.issued", ""),
            ("client.created", ""),
        ];
        assert_eq!(actions(&listed(&server, &about, size).await), expected);
        let secret = format!("orders/{secret}");
        let of_secret = EventFilter { secret, ..EventFilter::default() };
        let events = listed(&server, &of_secret, size).await;
        let expected = [
            ("client.authentication_failed", "invalid_client"),
            ("secret.retired", ""),
            ("token.issued", ""),
        ];
        assert_eq!(actions(&events), expected);
        let of_family = EventFilter { family: family.clone(), ..EventFilter::default() };
        let events = listed(&server, &of_family, size).await;
        assert_eq!(actions(&events), [("revocation.family", "because"), ("token.issued", "")]);
        assert_eq!(events[0].target, "orders");
    }
    let revoked = &server.trail_of("token.revoked").await[0];
    assert_eq!(revoked.reason, "of client:orders");
    let failed = &server.trail_of("client.authentication_failed").await[0];
    assert_eq!((failed.target.as_str(), secret_of(failed)), ("orders", secret.as_str()));
    assert!(failed.actor.is_none());
}

/// What is no id is refused by its field, and a tenant's administrator sees its own tenant alone.
#[tokio::test]
async fn a_filter_is_checked_and_confined_to_the_tenant() {
    let server = TestServer::start().await;
    named(&server, "orders").await;
    let pass = server.tenant_admin_token("shop").await;
    let ask = async |filter: EventFilter, pass: &str| {
        let message = ListEventsRequest { filter: Some(filter), ..ListEventsRequest::default() };
        server.audit().list_events(bearer(message, pass)).await
    };
    let about = |id: &str| EventFilter { about: id.to_owned(), ..EventFilter::default() };
    let seen = ask(about("orders"), &pass).await.unwrap().into_inner();
    assert_eq!((seen.events, seen.next_page_token.as_str()), (Vec::new(), ""));
    let own = server.admin_token().await;
    assert_eq!(ask(about("orders"), &own).await.unwrap().into_inner().events.len(), 1);
    let secret = |text: &str| EventFilter { secret: text.to_owned(), ..EventFilter::default() };
    let family = EventFilter { family: "x".to_owned(), ..EventFilter::default() };
    for (filter, field) in [
        (about("a b"), "filter.about"),
        (secret("orders"), "filter.secret"),
        (secret("orders/"), "filter.secret"),
        (secret("/s1"), "filter.secret"),
        (family, "filter.family"),
    ] {
        assert_eq!(blamed(&ask(filter, &own).await.unwrap_err()), field);
    }
}
