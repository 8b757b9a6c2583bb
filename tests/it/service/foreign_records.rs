//! Records in the database that the service did not write (AUDIT, the client record MAC): what
//! somebody with write access to the store and without the master key comes to. The lab's store is
//! such an access: it lies below the one that seals and checks.

use jeton::{
    crypto::passwords::Passwords,
    model::{
        Action, Client as Stored, ClientId, Digest, Principal, Scopes, Stamp, TenantId, Timestamp,
        event::{Filter, Outcome},
    },
    proto::admin::{
        Client, CreateClientRequest, DeleteClientRequest, GetClientRequest, ListClientsRequest,
        ListClientsResponse,
    },
    store::{AuditStore, ClientStore, Creation, Write},
};
use tokio::time::{Duration, Instant, timeout};

use crate::support::{
    faulty::Side,
    server::{Caller, TamperableServer, TestServer, bearer, reason, refreshing},
};

const KNOWN: &str = "a secret that the intruder knows";

fn id(text: &str) -> ClientId {
    text.parse().unwrap()
}

fn stamp() -> Stamp {
    Stamp::internal(Timestamp::from_seconds(crate::support::server::START))
}

async fn hash() -> String {
    Passwords::new(1, 1).hash(&TenantId::operator(), KNOWN.to_owned().into()).await.unwrap()
}

async fn stored(lab: &TamperableServer, name: &str) -> Stored {
    lab.store.client(&id(name)).await.unwrap().unwrap()
}

/// Writes a record past the service, over the one that is there.
async fn replace(lab: &TamperableServer, client: Stored) {
    let client = Stored { revision: client.revision + 1, ..client };
    let written = lab
        .store
        .replace_client(&client, stamp().done(Action::ClientUpdated, client.id.as_str()))
        .await
        .unwrap();
    assert_eq!(written, Write::Done);
}

async fn insert(lab: &TamperableServer, client: &Stored) {
    let event = stamp().done(Action::ClientCreated, client.id.as_str());
    assert_eq!(lab.store.create_client(client, event).await.unwrap(), Creation::Created);
}

async fn refusal(server: &TestServer, caller: &Caller) -> (tonic::Code, String, String) {
    let refused = server.token(caller, &[]).await.unwrap_err();
    (refused.code(), reason(&refused), refused.message().to_owned())
}

async fn list(server: &TestServer) -> ListClientsResponse {
    server
        .clients()
        .list_clients(server.as_admin(ListClientsRequest::default()).await)
        .await
        .unwrap()
        .into_inner()
}

/// The audit's backdoor: an administrator with a hash of a known secret, put into the database of a
/// running service.
#[tokio::test]
async fn a_client_put_into_the_database_is_unknown() {
    let lab = TamperableServer::start().await;
    let server = &lab.server;
    let honest = server.register(Client { client_id: "honest".to_owned(), ..refreshing() }).await;
    let unknown = Caller { id: "nobody".to_owned(), secret: KNOWN.to_owned() };
    let expected = refusal(server, &unknown).await;
    assert_eq!(expected.1, "INVALID_CLIENT");

    // A copy of the real administrator's record, code and all, with another name and secret.
    let mut forged =
        Stored { id: id("backdoor"), revision: 1, ..stored(&lab, &server.admin.id).await };
    forged.scopes = Scopes::parse(&["jeton:admin"]).unwrap();
    forged.secrets_mut().next().unwrap().digest = Digest::Argon2id { phc: hash().await };
    insert(&lab, &forged).await;
    let backdoor = Caller { id: "backdoor".to_owned(), secret: KNOWN.to_owned() };
    assert_eq!(refusal(server, &backdoor).await, expected);
    assert_eq!(
        refusal(server, &Caller { secret: server.admin.secret.clone(), ..backdoor.clone() }).await,
        expected
    );

    // It is no client of anybody's, and its name is taken.
    let message = server.as_admin(GetClientRequest { client_id: "backdoor".to_owned() }).await;
    assert_eq!(reason(&server.clients().get_client(message).await.unwrap_err()), "NOT_FOUND");
    let message = server
        .as_admin(DeleteClientRequest { client_id: "backdoor".to_owned(), ..Default::default() })
        .await;
    assert_eq!(reason(&server.clients().delete_client(message).await.unwrap_err()), "NOT_FOUND");
    let own = Client { client_id: "backdoor".to_owned(), ..refreshing() };
    let message = server.as_admin(CreateClientRequest { client: Some(own), secret: None }).await;
    assert_eq!(
        reason(&server.clients().create_client(message).await.unwrap_err()),
        "ALREADY_EXISTS"
    );

    // One forged record stops nobody else.
    let listed = list(server).await;
    let ids: Vec<_> = listed.clients.iter().map(|client| client.client_id.as_str()).collect();
    assert_eq!(
        (ids, listed.not_authentic),
        (vec!["bootstrap", "honest"], vec!["backdoor".to_owned()])
    );
    assert!(server.token(&honest, &[]).await.is_ok());
    let lab = lab.back_in_time().await;
    assert_eq!(refusal(&lab.server, &backdoor).await, expected, "nor after a start");
    assert!(lab.server.token(&honest, &[]).await.is_ok());
}

/// Pages count forged entries too, so that a page of nothing else is no last page.
#[tokio::test]
async fn a_listing_goes_on_behind_forged_records() {
    let lab = TamperableServer::start().await;
    let admin = stored(&lab, &lab.server.admin.id).await;
    for name in ["a1", "a2", "a3"] {
        insert(&lab, &Stored { id: id(name), ..admin.clone() }).await;
    }
    let (mut clients, mut forged, mut page_token) = (Vec::new(), Vec::new(), String::new());
    loop {
        let message = lab
            .server
            .as_admin(ListClientsRequest { page_size: 2, page_token, ..Default::default() })
            .await;
        let page = lab.server.clients().list_clients(message).await.unwrap().into_inner();
        clients.extend(page.clients.into_iter().map(|client| client.client_id));
        forged.extend(page.not_authentic);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(
        (clients, forged),
        (vec!["bootstrap".to_owned()], vec!["a1".to_owned(), "a2".to_owned(), "a3".to_owned()])
    );
}

/// Records that were real: with each other's secrets, with more scopes, with a disabling undone.
/// Nothing that they held works until what was written is there again. (An old record put back
/// whole is not noticed: it was real once.)
#[tokio::test]
async fn a_record_that_was_altered_is_refused_and_its_own_again_accepted() {
    let lab = TamperableServer::start().await;
    let server = &lab.server;
    let a = server.register(Client { client_id: "a".to_owned(), ..refreshing() }).await;
    let b = server.register(Client { client_id: "b".to_owned(), ..refreshing() }).await;
    let (of_a, of_b) = (stored(&lab, "a").await, stored(&lab, "b").await);

    let swapped = Stored { credentials: of_b.credentials.clone(), ..of_a.clone() };
    replace(&lab, swapped).await;
    for secret in [&a.secret, &b.secret] {
        let caller = Caller { id: "a".to_owned(), secret: secret.clone() };
        assert_eq!(refusal(server, &caller).await.1, "INVALID_CLIENT");
    }
    assert!(server.token(&b, &[]).await.is_ok());

    let more = Scopes::parse(&["orders:read", "orders:write", "jeton:admin"]).unwrap();
    replace(&lab, Stored { scopes: more, ..of_b.clone() }).await;
    assert_eq!(refusal(server, &b).await.1, "INVALID_CLIENT");
    assert_eq!(list(server).await.not_authentic, ["a", "b"]);

    // Put back whole, as far as the store's own counting of writes lets it be: the code covers the
    // revision, so not even that.
    replace(&lab, Stored { revision: 2, ..of_b }).await;
    assert_eq!(refusal(server, &b).await.1, "INVALID_CLIENT");
}

/// The record that a change's proof rests on is checked once more where the change is made, as it
/// is wherever it is read.
#[tokio::test]
async fn a_change_does_not_rest_on_a_record_that_was_altered() {
    let lab = TamperableServer::start().await;
    let (mut clients, token) = (lab.server.clients(), lab.server.admin_token().await);
    let held = lab.store.hold("spend", Side::Before);
    let new = Client { client_id: "made".to_owned(), ..refreshing() };
    let message = CreateClientRequest { client: Some(new), secret: None };
    let create = tokio::spawn(async move { clients.create_client(bearer(message, &token)).await });
    held.arrived().await;
    let admin = stored(&lab, &lab.server.admin.id).await;
    replace(&lab, Stored { display_name: "altered".to_owned(), ..admin }).await;
    held.release();
    assert_eq!(reason(&create.await.unwrap().unwrap_err()), "INVALID_TOKEN");
    assert!(lab.store.client(&id("made")).await.unwrap().is_none());
}

/// Once a record and minute, however often it is read.
#[tokio::test]
async fn a_forged_record_is_on_record() {
    let lab = TamperableServer::start().await;
    let admin = stored(&lab, &lab.server.admin.id).await;
    insert(&lab, &Stored { id: id("backdoor"), ..admin }).await;
    let recorded = async || {
        let filter =
            Filter { action: Some("client.not_authentic".to_owned()), ..Filter::default() };
        lab.store.events(&filter, None, 100).await.unwrap()
    };
    let reads_until = async |expected: usize| {
        let since = Instant::now();
        while recorded().await.len() < expected {
            assert!(since.elapsed() < Duration::from_secs(300), "it comes with the next second");
            list(&lab.server).await;
            timeout(Duration::from_millis(50), std::future::pending::<()>()).await.unwrap_err();
        }
    };
    reads_until(1).await;
    let event = recorded().await[0].event.clone();
    assert_eq!(
        (event.target.as_str(), event.outcome, event.actor),
        ("backdoor", Outcome::Refused, Some(Principal::Node))
    );
    list(&lab.server).await;
    lab.server.advance(61);
    reads_until(2).await;
    assert_eq!(recorded().await.len(), 2, "the reads in between are no further records");
}
