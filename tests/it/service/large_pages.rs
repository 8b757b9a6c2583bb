//! OPERATORS 3.4: pages of the largest entries fit into the 4 MiB that every gRPC client takes, and
//! none is left out.

use jeton::{
    model::{Action, Stamp, Timestamp},
    proto::admin::{
        Client, GrantType, ListAudiencesRequest, ListClientsRequest, ListEventsRequest,
    },
    store::AuditStore,
};
use prost::Message as _;

use crate::support::server::{START, TestServer, prepare};

/// Greatest message of a client that was not configured for larger ones.
const MESSAGE_MAX: usize = 4 << 20;

fn long(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}{n:03}{}", "x".repeat(124))).collect()
}

#[tokio::test]
async fn a_page_of_the_largest_clients_fits_into_a_message() {
    let server = TestServer::start().await;
    for n in 0..150 {
        let client = Client {
            client_id: format!("large-{n:03}"),
            scopes: long("s", 100),
            default_scopes: long("s", 100),
            roles: long("r", 50),
            grant_types: vec![GrantType::ClientCredentials.into()],
            ..Client::default()
        };
        server.create(client).await.unwrap();
    }
    let (mut seen, mut pages, mut page_token) = (Vec::new(), 0, String::new());
    loop {
        let message = ListClientsRequest { page_size: 1_000, page_token, ..Default::default() };
        let message = server.as_admin(message).await;
        let page = server.clients().list_clients(message).await.unwrap().into_inner();
        assert!(page.encoded_len() <= MESSAGE_MAX, "{}", page.encoded_len());
        pages += 1;
        seen.extend(page.clients.into_iter().map(|client| client.client_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert!(pages > 1);
    assert!(seen.is_sorted());
    assert_eq!(seen.iter().filter(|id| id.starts_with("large-")).count(), 150);
}

/// Records of witnessed heads, each with as many as one record takes.
#[tokio::test]
async fn a_page_of_the_largest_events_fits_into_a_message() {
    let (server, store) = prepare().await.served().await;
    let target = vec![format!("{}:1234567:{}", "n".repeat(64), "f".repeat(64)); 32].join(" ");
    for _ in 0..1_100 {
        let at = Timestamp::from_seconds(START);
        let witnessed = Stamp::internal(at).done(Action::HeadsWitnessed, target.clone());
        store.append_soon(witnessed).await.unwrap();
    }
    store
        .append(Stamp::internal(Timestamp::from_seconds(START)).done(Action::ClockJumped, ""))
        .await
        .unwrap();
    let (mut seen, mut page_token) = (Vec::new(), String::new());
    loop {
        let message = ListEventsRequest { page_size: 1_000, page_token, ..Default::default() };
        let message = server.as_admin(message).await;
        let page = server.audit().list_events(message).await.unwrap().into_inner();
        assert!(page.encoded_len() <= MESSAGE_MAX, "{}", page.encoded_len());
        seen.extend(page.events.into_iter().map(|event| (event.sequence, event.target)));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen.iter().filter(|(_, of)| *of == target).count(), 1_100);
    let (before, sequences) = (seen.len(), seen.into_iter().map(|(sequence, _)| sequence));
    assert_eq!(sequences.collect::<std::collections::BTreeSet<_>>().len(), before);
}

/// A thousand audiences of the greatest length fit: the bound is for all lists alike.
#[tokio::test]
async fn a_page_of_audiences_fits_into_a_message() {
    let server = TestServer::start().await;
    for n in 0..3 {
        let audience = format!("https://{n}.{}", "a".repeat(240));
        server.assign(&audience, "acme").await.unwrap();
    }
    let message = ListAudiencesRequest { page_size: 1_000, ..Default::default() };
    let message = server.as_admin(message).await;
    let page = server.audiences().list_audiences(message).await.unwrap().into_inner();
    assert!(page.next_page_token.is_empty());
    let largest = page.audiences.iter().map(prost::Message::encoded_len).max().unwrap();
    assert!((largest + 128) * 1_000 < MESSAGE_MAX, "{largest}");
}
