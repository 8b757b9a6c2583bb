//! AUDIT AZ10: an audience belongs to a tenant, so no other gets tokens for its API.

use jeton::{
    model::{AudienceRecord, Mac, Stamp},
    proto::admin::{Client, DeleteClientRequest, ListAudiencesRequest},
    store::{AudienceStore, Creation, FoundAudience, Write},
};
use tokio::time::Duration;
use tonic::{Code, Status};

use crate::support::server::{
    ISSUER, TamperableServer, TestServer, bearer, on_mongodb, reason, refreshing, texts,
};

pub const PAY: &str = "https://pay.globex.example";

/// A client with tokens for these audiences.
pub fn aimed(id: &str, audiences: &[&str]) -> Client {
    Client { client_id: id.to_owned(), audiences: texts(audiences), ..refreshing() }
}

pub fn owner(audience: &str, tenant: &str) -> (String, String) {
    (audience.to_owned(), tenant.to_owned())
}

/// Refused for what belongs to another tenant: names the field and the audience, and not the
/// tenant.
pub fn assert_foreign(refused: &Status, field: &str, audience: &str) {
    assert_eq!(
        (refused.code(), reason(refused).as_str()),
        (Code::FailedPrecondition, "FAILED_PRECONDITION"),
        "{refused:?}"
    );
    let text = refused.message();
    assert!(text.contains(field) && text.contains(audience), "{refused:?}");
    assert!(
        !text.replace(audience, "").contains("globex")
            && !text.replace(audience, "").contains("acme"),
        "{refused:?}"
    );
}

/// AUDIT AZ10 as it was tried: an administrator of acme registers a client for globex's API, with
/// any roles.
#[tokio::test]
async fn a_tenant_gets_no_tokens_for_anothers_api() {
    let server = TestServer::start().await;
    let (acme, globex) =
        (server.tenant_admin_token("acme").await, server.tenant_admin_token("globex").await);
    let introspecting = Client {
        client_id: "pay".to_owned(),
        scopes: texts(&["jeton:introspect"]),
        serves: texts(&[PAY]),
        ..Client::default()
    };
    server.create_as(&globex, introspecting).await.unwrap();
    let evil = Client {
        roles: texts(&["payer", "admin"]),
        scopes: texts(&["pay:write"]),
        ..aimed("evil", &[PAY])
    };
    assert_foreign(
        &server.create_as(&acme, evil.clone()).await.unwrap_err(),
        "client.audiences",
        PAY,
    );
    let serving =
        Client { audiences: Vec::new(), serves: texts(&["urn:mine", PAY]), ..evil.clone() };
    assert_foreign(&server.create_as(&acme, serving).await.unwrap_err(), "client.serves", PAY);
    assert_eq!(reason(&server.try_get("evil").await.unwrap_err()), "NOT_FOUND");
    assert!(server.owners(&acme).await.is_empty(), "what was refused claimed nothing by half");

    let evil = server.create_as(&acme, Client { audiences: Vec::new(), ..evil }).await.unwrap();
    for (mask, field) in
        [("audiences", "client.audiences"), ("serves", "client.serves"), ("*", "client.audiences")]
    {
        let client = Client { serves: texts(&[PAY]), ..aimed("evil", &["urn:own", PAY]) };
        assert_foreign(&server.change_as(&acme, client, &[mask]).await.unwrap_err(), field, PAY);
    }
    assert_eq!(reason(&server.token_for(&evil, PAY).await.unwrap_err()), "INVALID_TARGET");
    let payer = server.create_as(&globex, aimed("payer", &[PAY])).await.unwrap();
    assert!(
        server.token_for(&payer, PAY).await.is_ok(),
        "its own tenant lists it as often as it likes"
    );
    assert_eq!(server.owners(&globex).await, [owner(PAY, "globex")]);
}

/// AUDIT AZ10: the first listing claims, in either field, with its record in the tenant's trail;
/// letters count.
#[tokio::test]
async fn the_first_to_list_an_audience_gets_it() {
    let server = TestServer::start().await;
    let (acme, globex) =
        (server.tenant_admin_token("acme").await, server.tenant_admin_token("globex").await);
    let client =
        Client { serves: texts(&["urn:s", "urn:both"]), ..aimed("a", &["urn:a", "urn:both"]) };
    server.create_as(&acme, client).await.unwrap();
    let expected = ["urn:a", "urn:both", "urn:s"].map(|audience| owner(audience, "acme"));
    assert_eq!(server.owners(&acme).await, expected);
    assert_eq!(server.owners(&globex).await, []);
    assert_eq!(server.owners(&server.admin_token().await).await, expected);
    for audience in ["urn:a", "urn:both", "urn:s"] {
        assert_eq!(
            server.actions_about(audience, &acme).await,
            [owner("audience.claimed", "acme")]
        );
        assert_eq!(server.actions_about(audience, &globex).await, []);
    }
    server.change_as(&acme, aimed("a", &["urn:a", "urn:later"]), &["audiences"]).await.unwrap();
    for audience in ["urn:later", "urn:both"] {
        let refused =
            server.create_as(&globex, aimed("g", &["urn:g", audience])).await.unwrap_err();
        assert_foreign(&refused, "client.audiences", audience);
    }
    server.create_as(&globex, aimed("g", &["urn:A", "urn:g"])).await.unwrap();
    assert_eq!(server.owners(&globex).await, [owner("urn:A", "globex"), owner("urn:g", "globex")]);
    // A deleted client leaves the audience with its tenant.
    let message = DeleteClientRequest { client_id: "g".to_owned(), ..Default::default() };
    server.clients().delete_client(bearer(message, &globex)).await.unwrap();
    assert_foreign(
        &server.create_as(&acme, aimed("b", &["urn:g"])).await.unwrap_err(),
        "client.audiences",
        "urn:g",
    );
    let server = server.restart().await;
    assert_foreign(
        &server.create_as(&acme, aimed("b", &["urn:g"])).await.unwrap_err(),
        "client.audiences",
        "urn:g",
    );
}

/// AUDIT AZ10: the operator shares an audience with another tenant's client, which may go on
/// writing that client and give it to no other; an audience of nobody that the operator lists
/// becomes the client's tenant's.
#[tokio::test]
async fn a_tenant_keeps_what_the_operator_gave() {
    let lab = TamperableServer::start().await;
    let server = &lab.server;
    let (acme, globex) =
        (server.tenant_admin_token("acme").await, server.tenant_admin_token("globex").await);
    server.create_as(&globex, aimed("pay", &[PAY])).await.unwrap();
    let given = Client { tenant: "acme".to_owned(), ..aimed("partner", &[PAY, "urn:new"]) };
    let partner = server.create_as(&server.admin_token().await, given).await.unwrap();
    assert_eq!(
        server.owners(&server.admin_token().await).await,
        [owner(PAY, "globex"), owner("urn:new", "acme")]
    );
    assert!(server.token_for(&partner, PAY).await.is_ok());

    let kept = server
        .change_as(&acme, aimed("partner", &["urn:more", PAY]), &["audiences", "display_name"])
        .await
        .unwrap();
    assert_eq!(kept.audiences, ["urn:more", PAY]);
    assert!(server.token_for(&partner, PAY).await.is_ok());
    // Not in another field, not on another client, and not again once it was dropped.
    let serving = Client { serves: texts(&[PAY]), ..aimed("partner", &[]) };
    assert_foreign(
        &server.change_as(&acme, serving, &["serves"]).await.unwrap_err(),
        "client.serves",
        PAY,
    );
    assert_foreign(
        &server.create_as(&acme, aimed("second", &[PAY])).await.unwrap_err(),
        "client.audiences",
        PAY,
    );
    // Nor does it matter whether there is a record of what is listed already, as after an import of
    // an older export.
    let more = "urn:more".parse().unwrap();
    let Some(FoundAudience::Owned(record)) = lab.store.audience(&more).await.unwrap() else {
        panic!("it was claimed")
    };
    let event =
        Stamp::internal(record.created_at).done(jeton::model::Action::AudienceReleased, "urn:more");
    assert_eq!(lab.store.release_audience(&record, event).await.unwrap(), Write::Done);
    server.change_as(&acme, aimed("partner", &["urn:more", PAY]), &["*"]).await.unwrap();
    assert_eq!(lab.store.audience(&more).await.unwrap(), None);

    server.change_as(&acme, aimed("partner", &["urn:new"]), &["audiences"]).await.unwrap();
    assert_foreign(
        &server.change_as(&acme, aimed("partner", &[PAY]), &["audiences"]).await.unwrap_err(),
        "client.audiences",
        PAY,
    );
    assert_eq!(reason(&server.token_for(&partner, PAY).await.unwrap_err()), "INVALID_TARGET");
}

/// AUDIT AZ10: the service's own audience is the operator's, without a record: no tenant lists it,
/// nobody is given it.
#[tokio::test]
async fn the_services_own_audience_is_the_operators() {
    let server = TestServer::start().await;
    let acme = server.tenant_admin_token("acme").await;
    assert_foreign(
        &server.create_as(&acme, aimed("a", &[ISSUER])).await.unwrap_err(),
        "client.audiences",
        ISSUER,
    );
    let serving = Client { serves: texts(&[ISSUER]), ..aimed("a", &[]) };
    assert_foreign(
        &server.create_as(&acme, serving.clone()).await.unwrap_err(),
        "client.serves",
        ISSUER,
    );
    server
        .create_as(&server.admin_token().await, Client { tenant: "acme".to_owned(), ..serving })
        .await
        .unwrap();
    for tenant in ["acme", "default"] {
        assert_eq!(
            server.assign(ISSUER, tenant).await.unwrap_err().code(),
            Code::FailedPrecondition
        );
    }
    assert_eq!(server.release(ISSUER).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(server.owners(&server.admin_token().await).await, []);
    // Every client may ask for it without listing it.
    let plain = server.create_as(&acme, aimed("plain", &["urn:a"])).await.unwrap();
    assert!(server.token_for(&plain, ISSUER).await.is_ok());
}

/// AUDIT AZ10: the operator gives an audience to a tenant that has no client yet.
#[tokio::test]
async fn an_audience_is_assigned_ahead_of_its_clients() {
    let server = TestServer::start().await;
    let first = server.assign(PAY, "globex").await.unwrap();
    assert_eq!(
        (first.audience.as_str(), first.tenant.as_str(), &first.claimed_by),
        (PAY, "globex", &server.admin.id)
    );
    server.advance(5);
    assert_eq!(server.assign(PAY, "globex").await.unwrap(), first, "again is the same");
    let (acme, globex) =
        (server.tenant_admin_token("acme").await, server.tenant_admin_token("globex").await);
    assert_foreign(
        &server.create_as(&acme, aimed("a", &[PAY])).await.unwrap_err(),
        "client.audiences",
        PAY,
    );
    server.create_as(&globex, aimed("g", &[PAY])).await.unwrap();
    assert_eq!(server.actions_about(PAY, &globex).await, [owner("audience.claimed", "globex")]);
    for (audience, tenant, field) in
        [("", "acme", "audience"), ("no uri", "acme", "audience"), (PAY, "", "tenant")]
    {
        let refused = server.assign(audience, tenant).await.unwrap_err();
        assert_eq!(
            (reason(&refused).as_str(), crate::support::server::blamed(&refused).as_str()),
            ("INVALID_REQUEST", field)
        );
    }
}

/// AUDIT AZ10: an assignment takes an audience from another tenant in one step, unless a client of
/// a third or of that tenant lists it.
#[tokio::test]
async fn an_audience_is_assigned_from_one_tenant_to_another() {
    let (TamperableServer { server, .. }, globex, acme) = scene().await;
    server.create_as(&globex, aimed("g", &[PAY])).await.unwrap();
    let shared = Client { tenant: "acme".to_owned(), ..aimed("shared", &[PAY]) };
    server.create_as(&server.admin_token().await, shared).await.unwrap();
    for (tenant, named) in [("acme", "client g "), ("initech", "client g ")] {
        let refused = server.assign(PAY, tenant).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains(named), "{refused:?}");
    }
    assert_eq!(server.owners(&globex).await, [owner(PAY, "globex")]);
    server.change_as(&globex, aimed("g", &[]), &["audiences"]).await.unwrap();
    let refused = server.assign(PAY, "initech").await.unwrap_err();
    assert!(refused.message().contains("client shared "), "{refused:?}");
    let moved = server.assign(PAY, "acme").await.unwrap();
    assert_eq!((moved.tenant.as_str(), &moved.claimed_by), ("acme", &server.admin.id));
    assert_eq!(server.owners(&acme).await, [owner(PAY, "acme")]);
    assert_foreign(
        &server.change_as(&globex, aimed("g", &[PAY]), &["audiences"]).await.unwrap_err(),
        "client.audiences",
        PAY,
    );
    let fate = ["audience.claimed", "audience.shared", "audience.releasing", "audience.released"]
        .map(|action| owner(action, "globex"));
    assert_eq!(server.actions_about(PAY, &globex).await, fate);
    assert_eq!(server.actions_about(PAY, &acme).await, [owner("audience.claimed", "acme")]);
    assert_eq!(server.verify_chain().await.intact, Some(true));
}

/// AUDIT AZ10: what a client lists without a record, as after an import, is not another tenant's to
/// be given.
#[tokio::test]
async fn what_a_client_lists_without_a_record_is_assigned_to_its_tenant_only() {
    let lab = TamperableServer::start().await;
    let server = &lab.server;
    let acme = server.tenant_admin_token("acme").await;
    server.create_as(&acme, aimed("a", &["urn:a"])).await.unwrap();
    let Some(FoundAudience::Owned(record)) =
        lab.store.audience(&"urn:a".parse().unwrap()).await.unwrap()
    else {
        panic!("it was claimed")
    };
    let event =
        Stamp::internal(record.created_at).done(jeton::model::Action::AudienceReleased, "urn:a");
    assert_eq!(lab.store.release_audience(&record, event).await.unwrap(), Write::Done);
    let refused = server.assign("urn:a", "globex").await.unwrap_err();
    assert!(refused.message().contains("client a lists"), "{refused:?}");
    server.assign("urn:a", "acme").await.unwrap();
}

/// AUDIT AZ10: another spelling is another audience to verifiers, and no way to one like another
/// tenant's.
#[tokio::test]
async fn http_audiences_are_listed_and_assigned_in_normal_form() {
    let server = TestServer::start().await;
    let acme = server.tenant_admin_token("acme").await;
    for spelled in [
        "HTTPS://pay.globex.example",
        "https://Pay.globex.example",
        "https://pay.globex.example:443",
        "https://me@pay.globex.example",
    ] {
        let serving = Client { serves: texts(&[spelled]), ..aimed("a", &[]) };
        let attempts = [
            server.create_as(&acme, aimed("a", &[spelled])).await.map(drop),
            server.create_as(&acme, serving).await.map(drop),
            server.assign(spelled, "acme").await.map(drop),
        ];
        for refused in attempts.map(Result::unwrap_err) {
            assert_eq!(reason(&refused), "INVALID_REQUEST");
            assert!(refused.message().contains(&format!("write {PAY}")), "{refused:?}");
        }
    }
    server
        .create_as(&acme, aimed("a", &["https://pay.globex.example/", "https://a:8443/X"]))
        .await
        .unwrap();
}

/// AUDIT AZ10: a tenant claims a thousand audiences and no more, the operator assigns it any
/// number, and a refused registration claims none.
#[tokio::test]
async fn a_tenant_claims_a_thousand_audiences() {
    if on_mongodb() {
        // The rule is not the store's, and a thousand claims take minutes there.
        return;
    }
    let server = TamperableServer::start().await.server;
    let (acme, operator) = (server.tenant_admin_token("acme").await, server.admin_token().await);
    let claims = (0..20).map(|n| {
        let many: Vec<String> = (0..50).map(|m| format!("urn:{n}:{m}")).collect();
        let many =
            many.iter().map(String::as_str).take(if n == 19 { 49 } else { 50 }).collect::<Vec<_>>();
        let client = Client { tenant: "acme".to_owned(), ..aimed(&format!("c{n}"), &many) };
        let (server, operator) = (&server, &operator);
        async move { server.create_as(operator, client).await.unwrap() }
    });
    futures_util::future::join_all(claims).await;
    let taken = server.create_as(&acme, aimed("c1", &["urn:last"])).await.unwrap_err();
    assert_eq!(reason(&taken), "ALREADY_EXISTS");
    let refused =
        server.create_as(&acme, aimed("two", &["urn:last", "urn:more"])).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("999 of at most 1000 audiences"), "{refused:?}");
    server.create_as(&acme, aimed("one", &["urn:last"])).await.unwrap();
    assert_eq!(
        server.create_as(&acme, aimed("more", &["urn:more"])).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    server.create_as(&acme, aimed("listed", &["urn:last", "urn:0:0"])).await.unwrap();
    server.assign("urn:more", "acme").await.unwrap();
    server.create_as(&acme, aimed("more", &["urn:more"])).await.unwrap();
    let message = DeleteClientRequest { client_id: "c0".to_owned(), ..Default::default() };
    server.clients().delete_client(bearer(message, &acme)).await.unwrap();
    server.release_as(&acme, "urn:0:1").await.unwrap();
}

/// AUDIT AZ10: an audience is released by the operator or its tenant, once no client lists it in
/// any way; then it is the next one's.
#[tokio::test]
async fn an_audience_is_released_once_no_client_lists_it() {
    let server = TestServer::start().await;
    let (acme, globex) =
        (server.tenant_admin_token("acme").await, server.tenant_admin_token("globex").await);
    assert_eq!(reason(&server.release(PAY).await.unwrap_err()), "NOT_FOUND");
    let asking = server.create_as(&globex, aimed("asks", &[PAY])).await.unwrap();
    server
        .create_as(&globex, Client { serves: texts(&[PAY]), ..aimed("serves", &[]) })
        .await
        .unwrap();
    server.disable(&asking).await;
    for lists in ["asks", "serves"] {
        let refused = server.release(PAY).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains(&format!("client {lists} ")), "{refused:?}");
        let own = server.release_as(&globex, PAY).await.unwrap_err();
        assert_eq!(
            (own.code(), reason(&server.release_as(&acme, PAY).await.unwrap_err()).as_str()),
            (Code::FailedPrecondition, "NOT_FOUND")
        );
        let message = DeleteClientRequest { client_id: lists.to_owned(), ..Default::default() };
        server.clients().delete_client(bearer(message, &globex)).await.unwrap();
    }
    server.release_as(&globex, PAY).await.unwrap();
    assert_eq!(reason(&server.release(PAY).await.unwrap_err()), "NOT_FOUND");
    let fate = ["audience.claimed", "audience.releasing", "audience.released"]
        .map(|action| owner(action, "globex"));
    assert_eq!(server.actions_about(PAY, &globex).await, fate);
    server.create_as(&acme, aimed("a", &[PAY])).await.unwrap();
    assert_foreign(
        &server.create_as(&globex, aimed("g", &[PAY])).await.unwrap_err(),
        "client.audiences",
        PAY,
    );
}

/// AUDIT AZ10: pages are of the asker's tenant, in order, and none is left out.
#[tokio::test]
async fn audiences_are_listed_in_pages() {
    let server = TestServer::start().await;
    let acme = server.tenant_admin_token("acme").await;
    let all: Vec<String> = (0..5).map(|n| format!("urn:{n}")).collect();
    for (n, audience) in all.iter().enumerate() {
        server.assign(audience, if n == 2 { "globex" } else { "acme" }).await.unwrap();
    }
    let operator = server.admin_token().await;
    for (token, expected) in [(&operator, vec![0, 1, 2, 3, 4]), (&acme, vec![0, 1, 3, 4])] {
        let (mut paged, mut page_token) = (Vec::new(), String::new());
        loop {
            let message = ListAudiencesRequest { page_size: 2, page_token, ..Default::default() };
            let page = server
                .audiences()
                .list_audiences(bearer(message, token))
                .await
                .unwrap()
                .into_inner();
            assert!(page.audiences.len() <= 2);
            paged.extend(page.audiences.into_iter().map(|audience| audience.audience));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
            let message =
                ListAudiencesRequest { page_token: page_token.clone(), ..Default::default() };
            let other = if *token == operator { &acme } else { &operator };
            let refused =
                server.audiences().list_audiences(bearer(message, other)).await.unwrap_err();
            assert_eq!(reason(&refused), "INVALID_REQUEST", "a page token is its asker's");
        }
        assert_eq!(paged, expected.into_iter().map(|n| all[n].clone()).collect::<Vec<_>>());
    }
    let message = ListAudiencesRequest { tenant: "globex".to_owned(), ..Default::default() };
    let listed = server
        .audiences()
        .list_audiences(bearer(message, &operator))
        .await
        .unwrap()
        .into_inner()
        .audiences;
    assert_eq!(listed.len(), 1);
}

/// AUDIT AZ10: of tenants that list one audience at once exactly one gets it, and no other has a
/// client that lists it.
#[tokio::test]
async fn of_tenants_that_list_one_audience_at_once_one_gets_it() {
    let lab = TamperableServer::start().await;
    let server = &lab.server;
    let mut roots = Vec::new();
    for n in 0..8 {
        roots.push(server.tenant_admin_token(&format!("tenant-{n}")).await);
    }
    for round in 0..4 {
        let audience = format!("urn:{round}");
        let attempts = roots.iter().enumerate().map(|(n, root)| {
            let client = aimed(&format!("of-{n}-{round}"), &[&audience]);
            async move { server.create_as(root, client).await }
        });
        let answers = futures_util::future::join_all(attempts).await;
        let won: Vec<usize> = (0..8).filter(|n| answers[*n].is_ok()).collect();
        assert_eq!(won.len(), 1, "{answers:?}");
        for (n, answer) in answers.iter().enumerate().filter(|(n, _)| *n != won[0]) {
            assert_foreign(answer.as_ref().unwrap_err(), "client.audiences", &audience);
            assert_eq!(
                reason(&server.try_get(&format!("of-{n}-{round}")).await.unwrap_err()),
                "NOT_FOUND"
            );
        }
        assert_eq!(
            server.owners(&roots[won[0]]).await.last(),
            Some(&owner(&audience, &format!("tenant-{}", won[0])))
        );
    }
}

/// A lab with an audience of globex, and administrators of globex and acme.
pub async fn scene() -> (TamperableServer, String, String) {
    let lab = TamperableServer::start().await;
    lab.server.assign(PAY, "globex").await.unwrap();
    let (globex, acme) = (
        lab.server.tenant_admin_token("globex").await,
        lab.server.tenant_admin_token("acme").await,
    );
    (lab, globex, acme)
}

/// A record that was put into the database past the service, or one of the service's that was
/// altered there.
#[tokio::test]
async fn a_record_that_the_service_did_not_write_gives_an_audience_to_nobody() {
    let (lab, globex, acme) = scene().await;
    let TamperableServer { server, store, .. } = &lab;
    let pay = PAY.parse().unwrap();
    server.create_as(&globex, aimed("before", &[PAY])).await.unwrap();
    let Some(FoundAudience::Owned(real)) = store.audience(&pay).await.unwrap() else {
        panic!("it was assigned")
    };
    let event =
        || Stamp::internal(real.created_at).done(jeton::model::Action::AudienceClaimed, "forged");
    let put = AudienceRecord {
        audience: "urn:put".parse().unwrap(),
        tenant: "acme".parse().unwrap(),
        ..real.clone()
    };
    assert_eq!(store.claim_audience(&put, event()).await.unwrap(), Creation::Created);
    let altered = AudienceRecord { revision: 2, ..real.clone() };
    assert_eq!(store.replace_audience(&altered, event()).await.unwrap(), Write::Done);
    let bare = AudienceRecord {
        audience: "urn:bare".parse().unwrap(),
        mac: Mac::default(),
        ..put.clone()
    };
    assert_eq!(store.claim_audience(&bare, event()).await.unwrap(), Creation::Created);

    let operator = server.admin_token().await;
    for audience in [PAY, "urn:put", "urn:bare"] {
        for token in [&acme, &globex, &operator] {
            let refused = server.create_as(token, aimed("late", &[audience])).await.unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition);
            let text = refused.message();
            assert!(
                text.contains(audience) && text.contains("was not written by this service"),
                "{refused:?}"
            );
        }
        assert_eq!(server.release(audience).await.unwrap_err().code(), Code::FailedPrecondition);
    }
    assert_eq!(reason(&server.try_get("late").await.unwrap_err()), "NOT_FOUND");
    let listed = server
        .audiences()
        .list_audiences(bearer(ListAudiencesRequest::default(), &operator))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (listed.audiences.len(), listed.not_authentic),
        (0, texts(&[PAY, "urn:bare", "urn:put"]))
    );
    // A client that lists it already goes on.
    let kept = Client { display_name: "kept".to_owned(), ..aimed("before", &[PAY]) };
    server.change_as(&globex, kept, &["display_name", "audiences"]).await.unwrap();

    let since = tokio::time::Instant::now();
    let mut recorded = Vec::new();
    while recorded.len() < 3 {
        assert!(
            since.elapsed() < Duration::from_secs(300),
            "it comes with the next second: {recorded:?}"
        );
        tokio::time::timeout(Duration::from_millis(50), std::future::pending::<()>())
            .await
            .unwrap_err();
        recorded = server.trail_of("audience.not_authentic").await;
    }
    let mut targets: Vec<_> = recorded.iter().map(|event| event.target.as_str()).collect();
    targets.sort_unstable();
    assert_eq!(targets, [PAY, "urn:bare", "urn:put"]);

    // The operator puts them right, to no tenant but that of the clients that list one.
    let refused = server.assign(PAY, "acme").await.unwrap_err();
    assert!(refused.message().contains("client before lists"), "{refused:?}");
    for (audience, tenant) in [(PAY, "globex"), ("urn:put", "acme"), ("urn:bare", "globex")] {
        assert_eq!(server.assign(audience, tenant).await.unwrap().tenant, tenant);
    }
    let expected = [owner(PAY, "globex"), owner("urn:bare", "globex"), owner("urn:put", "acme")];
    assert_eq!(server.owners(&operator).await, expected);
    server.create_as(&globex, aimed("late", &[PAY, "urn:bare"])).await.unwrap();
    assert_foreign(
        &server.create_as(&acme, aimed("a", &["urn:bare"])).await.unwrap_err(),
        "client.audiences",
        "urn:bare",
    );
}
