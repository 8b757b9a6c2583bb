//! Tenants do not see, change or learn of each other.

use jeton::proto::{
    admin::{
        Client, EventFilter, ListClientsRequest, ListEventsRequest, revoke_all_request::Target,
    },
    token::{BatchIntrospectRequest, IntrospectRequest, RefreshRequest, RevokeRequest},
};
use tonic::Code;

use crate::support::server::{
    Caller, Rpc, RpcTarget, TestServer, bearer, client, client_of, reason, refreshing,
};

/// Everybody of one tenant.
struct Tenant {
    name: &'static str,
    admin: String,
    admin_caller: Caller,
    introspector: Caller,
    introspector_token: String,
    plain: RpcTarget,
    /// Targets of the others.
    marks: Vec<RpcTarget>,
}

async fn settle(server: &TestServer, name: &'static str) -> Tenant {
    let named = |what: &str| format!("of-{name}-{what}");
    let (admin_caller, admin) = server.client_with_token(name, &["jeton:admin"]).await;
    let all = ["jeton:introspect", "jeton:introspect:any"];
    let introspector = Client {
        client_id: named("introspector"),
        tenant: name.to_owned(),
        scopes: all.map(str::to_owned).to_vec(),
        serves: vec![crate::support::server::ISSUER.to_owned()],
        ..Client::default()
    };
    let introspector = server.register(introspector).await;
    let introspector_token = server.token(&introspector, &all).await.unwrap().access_token;
    let plain = server.rpc_target(&named("plain"), name).await;
    let marks = vec![
        server.rpc_target(&named("one"), name).await,
        server.rpc_target(&named("two"), name).await,
    ];
    Tenant { name, admin, admin_caller, introspector, introspector_token, plain, marks }
}

/// State that must not change: the records of a tenant's clients, and the validity of their tokens.
async fn state(server: &TestServer, tenant: &Tenant) -> (Vec<Client>, Vec<bool>) {
    let message = ListClientsRequest {
        tenant: tenant.name.to_owned(),
        page_size: 1_000,
        ..Default::default()
    };
    let mut clients = server
        .clients()
        .list_clients(server.as_admin(message).await)
        .await
        .unwrap()
        .into_inner()
        .clients;
    for secret in clients.iter_mut().flat_map(|client| &mut client.secrets) {
        // Noted from time to time, whoever asks.
        (secret.use_count, secret.last_used_time) = (0, None);
    }
    let mut stand = Vec::new();
    for mark in tenant.marks.iter().chain([&tenant.plain]) {
        stand.push(server.is_active(&mark.access_token).await);
        let message = IntrospectRequest {
            client_id: server.admin.id.clone(),
            client_secret: server.admin.secret.clone(),
            token: mark.refresh_token.clone(),
            token_type_hint: "refresh_token".to_owned(),
        };
        stand.push(server.tokens().introspect(message).await.unwrap().into_inner().active.unwrap());
    }
    (clients, stand)
}

/// True if a text names a tenant: its name or one of its clients' ids.
fn tells_of(text: &str, tenant: &Tenant) -> bool {
    text.contains(tenant.name) || text.contains(&tenant.admin_caller.id)
}

/// Z01: for every pair of tenants and every administration RPC, aimed at each thing of the other:
/// nothing told, nothing changed.
#[tokio::test]
async fn no_administrator_reaches_into_another_tenant() {
    let server = TestServer::start().await;
    let tenants = [
        settle(&server, "tenant-a").await,
        settle(&server, "tenant-b").await,
        settle(&server, "tenant-c").await,
    ];
    for (of, other) in (0..3).flat_map(|a| (0..3).map(move |b| (a, b))).filter(|(a, b)| a != b) {
        let (of, other) = (&tenants[of], &tenants[other]);
        let before = state(&server, other).await;
        assert!(before.1.iter().all(|stands| *stands));
        for mark in &other.marks {
            for rpc in Rpc::ALL {
                let refused = server.call_rpc(rpc, &of.admin, mark).await.unwrap_err();
                let expected = match rpc {
                    // The operator's alone.
                    Rpc::ListKeys | Rpc::RotateKeys | Rpc::RevokeKey | Rpc::RevokeSigner => {
                        Code::PermissionDenied
                    }
                    Rpc::RevokeSubject | Rpc::RevokeToken | Rpc::VerifyChain | Rpc::VerifyTrail => {
                        Code::PermissionDenied
                    }
                    Rpc::AssignAudience => Code::PermissionDenied,
                    // What belongs to others does not exist.
                    Rpc::CreateClient
                    | Rpc::ReleaseAudience
                    | Rpc::GetClient
                    | Rpc::ListClients
                    | Rpc::ListAudiences
                    | Rpc::UpdateClient
                    | Rpc::AddSecret
                    | Rpc::RetireSecret
                    | Rpc::DisableClient
                    | Rpc::EnableClient
                    | Rpc::DeleteClient
                    | Rpc::RevokeClient
                    | Rpc::RevokeTenant
                    | Rpc::RevokeFamily
                    | Rpc::ListEvents
                    | Rpc::TailEvents => Code::NotFound,
                };
                assert_eq!(refused.code(), expected, "{rpc:?}");
                assert!(!tells_of(refused.message(), other), "{rpc:?} {refused:?}");
            }
        }
        assert_eq!(state(&server, other).await, before, "{} -> {}", of.name, other.name);
    }
}

/// Z01: what is not there and what is another's are told apart by nothing.
#[tokio::test]
async fn what_is_anothers_looks_like_what_is_not_there() {
    let server = TestServer::start().await;
    let (a, b) = (settle(&server, "tenant-a").await, settle(&server, "tenant-b").await);
    let mut nothing = b.marks[0].clone();
    nothing.client.id = "nobody".to_owned();
    nothing.family = "00000000-0000-7000-8000-000000000000".to_owned();
    for rpc in Rpc::ALL {
        if matches!(
            rpc,
            Rpc::CreateClient
                | Rpc::ListClients
                | Rpc::ListAudiences
                | Rpc::RevokeTenant
                | Rpc::ListEvents
                | Rpc::TailEvents
        ) {
            continue;
        }
        let theirs = server.call_rpc(rpc, &a.admin, &b.marks[0]).await.unwrap_err();
        let none = server.call_rpc(rpc, &a.admin, &nothing).await.unwrap_err();
        assert_eq!(
            (theirs.code(), theirs.message(), theirs.details()),
            (none.code(), none.message(), none.details()),
            "{rpc:?}"
        );
    }
}

/// Z01: lists that name no tenant show the asker's own alone; so does the stream.
#[tokio::test]
async fn lists_are_confined_to_the_askers_tenant() {
    let server = TestServer::start().await;
    let (a, b) = (settle(&server, "tenant-a").await, settle(&server, "tenant-b").await);
    let stream = server
        .audit()
        .tail_events(bearer(Default::default(), &a.admin))
        .await
        .unwrap()
        .into_inner();

    let clients = server
        .clients()
        .list_clients(bearer(ListClientsRequest::default(), &a.admin))
        .await
        .unwrap()
        .into_inner();
    assert!(
        clients.clients.len() >= 4
            && clients.clients.iter().all(|client| client.tenant == "tenant-a")
    );
    // Each action and each client of the other tenant asked for by name.
    let filters = [
        EventFilter::default(),
        EventFilter { actor: client(&b.plain.client.id), ..EventFilter::default() },
        EventFilter { target: b.plain.jti.clone(), ..EventFilter::default() },
        EventFilter { action: "token.".to_owned(), ..EventFilter::default() },
    ];
    for filter in filters {
        let message =
            ListEventsRequest { filter: Some(filter), page_size: 1_000, ..Default::default() };
        let events = server
            .audit()
            .list_events(bearer(message, &a.admin))
            .await
            .unwrap()
            .into_inner()
            .events;
        assert!(events.iter().all(|event| event.tenant == "tenant-a"), "{events:?}");
        assert!(!tells_of(&format!("{events:?}"), &b));
    }

    // The stream: things happen in both tenants, and to nobody in particular.
    server.token(&b.plain.client, &[]).await.unwrap();
    server
        .token(&Caller { secret: "jcs_no".to_owned(), ..b.plain.client.clone() }, &[])
        .await
        .unwrap_err();
    server.token(&a.plain.client, &[]).await.unwrap();
    let seen = crate::service::audit::take(stream, 1).await;
    assert_eq!(client_of(&seen[0]), a.plain.client.id);
}

/// Z01: a viewer of any token sees any token of its tenant; a client ends, refreshes and judges its
/// own.
#[tokio::test]
async fn tokens_of_another_tenant_do_not_stand_and_are_not_touched() {
    let server = TestServer::start().await;
    let tenants = [settle(&server, "tenant-a").await, settle(&server, "tenant-b").await];
    for (of, other) in [(&tenants[0], &tenants[1]), (&tenants[1], &tenants[0])] {
        let before = state(&server, other).await;
        let mark = &other.marks[0];
        let nothing =
            jeton::proto::token::IntrospectResponse { active: Some(false), ..Default::default() };
        for (token, hint) in [
            (&mark.access_token, ""),
            (&mark.refresh_token, "refresh_token"),
            (&mark.refresh_token, ""),
        ] {
            let message = |caller: Caller| IntrospectRequest {
                client_id: caller.id,
                client_secret: caller.secret,
                token: token.clone(),
                token_type_hint: hint.to_owned(),
            };
            let by_secret = server
                .tokens()
                .introspect(message(of.introspector.clone()))
                .await
                .unwrap()
                .into_inner();
            assert_eq!(by_secret, nothing);
            let by_token = bearer(message(Caller::default()), &of.introspector_token);
            assert_eq!(server.tokens().introspect(by_token).await.unwrap().into_inner(), nothing);
        }
        let message = BatchIntrospectRequest {
            client_id: of.introspector.id.clone(),
            client_secret: of.introspector.secret.clone(),
            tokens: vec![
                mark.access_token.clone(),
                of.plain.access_token.clone(),
                mark.refresh_token.clone(),
            ],
        };
        let judged = server.tokens().batch_introspect(message).await.unwrap().into_inner().results;
        assert_eq!((&judged[0], judged[1].active, &judged[2]), (&nothing, Some(true), &nothing));

        for caller in [&of.plain.client, &of.admin_caller, &of.introspector] {
            for token in [&mark.access_token, &mark.refresh_token] {
                for hint in ["", "access_token", "refresh_token"] {
                    let message = RevokeRequest {
                        client_id: caller.id.clone(),
                        client_secret: caller.secret.clone(),
                        token: token.clone(),
                        token_type_hint: hint.to_owned(),
                    };
                    server.tokens().revoke(message).await.unwrap();
                }
            }
            let message = RefreshRequest {
                client_id: caller.id.clone(),
                client_secret: caller.secret.clone(),
                refresh_token: mark.refresh_token.clone(),
                scopes: Vec::new(),
            };
            assert!(server.tokens().refresh(message).await.is_err());
            let crossed = Caller { id: mark.client.id.clone(), secret: caller.secret.clone() };
            assert_eq!(reason(&server.token(&crossed, &[]).await.unwrap_err()), "INVALID_CLIENT");
        }
        assert_eq!(state(&server, other).await, before);
        assert!(
            server.refresh(&other.marks[1].client, &other.marks[1].refresh_token).await.is_ok()
        );
    }
}

/// Ending a whole tenant ends that tenant alone; its own administrator may do so.
#[tokio::test]
async fn a_tenant_is_ended_without_the_others() {
    let server = TestServer::start().await;
    let tenants = [settle(&server, "tenant-a").await, settle(&server, "tenant-b").await];
    server.call_rpc(Rpc::RevokeTenant, &tenants[0].admin, &tenants[0].marks[0]).await.unwrap();
    assert!(state(&server, &tenants[0]).await.1.iter().all(|stands| !stands));
    assert!(state(&server, &tenants[1]).await.1.iter().all(|stands| *stands));
    assert_eq!(
        reason(
            &server
                .call_rpc(Rpc::GetClient, &tenants[0].admin, &tenants[0].marks[0])
                .await
                .unwrap_err()
        ),
        "INVALID_TOKEN"
    );
    assert!(
        server.revoke_all(Target::Tenant("tenant-b".to_owned())).await.is_ok(),
        "the operator may end any"
    );
    assert!(state(&server, &tenants[1]).await.1.iter().all(|stands| !stands));
    let again = server.token(&tenants[0].plain.client, &[]).await.unwrap();
    assert!(server.is_active(&again.access_token).await, "what is issued afterwards stands");
}

/// The operator's administrators act in every tenant; a tenant's own act in theirs as the
/// operator's do.
#[tokio::test]
async fn administrators_reach_what_they_govern() {
    let server = TestServer::start().await;
    for (name, by_operator) in [("tenant-a", true), ("tenant-b", false)] {
        let tenant = settle(&server, name).await;
        let token = if by_operator { server.admin_token().await } else { tenant.admin.clone() };
        for rpc in Rpc::ALL {
            if rpc == Rpc::RevokeTenant {
                // Ends the tenant's administrator too: see above.
                continue;
            }
            let mark = server.rpc_target(&format!("{name}-{rpc:?}"), name).await;
            let answer = server.call_rpc(rpc, &token, &mark).await;
            let operators = matches!(
                rpc,
                Rpc::ListKeys
                    | Rpc::RotateKeys
                    | Rpc::RevokeKey
                    | Rpc::RevokeSigner
                    | Rpc::RevokeSubject
                    | Rpc::RevokeToken
                    | Rpc::VerifyChain
                    | Rpc::VerifyTrail
                    | Rpc::AssignAudience
            );
            if operators && !by_operator {
                assert_eq!(answer.unwrap_err().code(), Code::PermissionDenied, "{rpc:?}");
            } else if rpc == Rpc::RevokeKey {
                assert!(answer.is_ok(), "{rpc:?} {answer:?}");
                break;
            } else {
                assert!(answer.is_ok(), "{rpc:?} {answer:?}");
            }
        }
    }
}

/// A client never moves to another tenant: neither its registration nor an update takes it there.
#[tokio::test]
async fn a_client_stays_in_its_tenant() {
    let server = TestServer::start().await;
    let (a, b) = (settle(&server, "tenant-a").await, settle(&server, "tenant-b").await);
    let message = jeton::proto::admin::CreateClientRequest {
        client: Some(Client { client_id: "mine".to_owned(), ..refreshing() }),
        secret: None,
    };
    let created = server
        .clients()
        .create_client(bearer(message, &a.admin))
        .await
        .unwrap()
        .into_inner()
        .client
        .unwrap();
    assert_eq!(created.tenant, "tenant-a", "no tenant means the caller's");
    let moved =
        Client { client_id: "mine".to_owned(), tenant: "tenant-b".to_owned(), ..refreshing() };
    assert_eq!(
        reason(&server.change(moved.clone(), &["tenant"]).await.unwrap_err()),
        "INVALID_REQUEST"
    );
    let grants = ["display_name", "scopes"];
    assert_eq!(server.change(moved, &grants).await.unwrap().tenant, "tenant-a");
    // An id of another tenant's cannot be taken over.
    let theirs = Client { client_id: b.plain.client.id.clone(), ..refreshing() };
    let message = jeton::proto::admin::CreateClientRequest { client: Some(theirs), secret: None };
    let refused = server.clients().create_client(bearer(message, &a.admin)).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert!(server.token(&b.plain.client, &[]).await.is_ok());
}

/// AZ10: the id of a client that was deleted stays its tenant's. Another tenant is told what it is
/// told of a living one; the tenant itself may use the id again, and the operator may give it to
/// anybody.
#[tokio::test]
async fn a_deleted_id_stays_its_tenants() {
    async fn create(server: &TestServer, token: &str, tenant: &str) -> Result<(), tonic::Status> {
        let client =
            Client { client_id: "billing".to_owned(), tenant: tenant.to_owned(), ..refreshing() };
        let message =
            jeton::proto::admin::CreateClientRequest { client: Some(client), secret: None };
        server.clients().create_client(bearer(message, token)).await.map(drop)
    }
    async fn delete(server: &TestServer, token: &str) {
        let message = jeton::proto::admin::DeleteClientRequest {
            client_id: "billing".to_owned(),
            ..Default::default()
        };
        server.clients().delete_client(bearer(message, token)).await.unwrap();
    }
    let server = TestServer::start().await;
    let (a, b) = (settle(&server, "tenant-a").await, settle(&server, "tenant-b").await);
    create(&server, &a.admin, "").await.unwrap();
    let of_a_living_one = create(&server, &b.admin, "").await.unwrap_err();
    delete(&server, &server.admin_token().await).await;
    let refused = create(&server, &b.admin, "").await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::AlreadyExists, "ALREADY_EXISTS")
    );
    assert_eq!(refused.message(), of_a_living_one.message());

    let server = server.restart().await;
    assert_eq!(
        create(&server, &b.admin, "").await.unwrap_err().code(),
        Code::AlreadyExists,
        "also after a start"
    );
    create(&server, &a.admin, "").await.unwrap();
    delete(&server, &a.admin).await;
    create(&server, &server.admin_token().await, "tenant-b").await.unwrap();
    delete(&server, &b.admin).await;
    assert_eq!(
        create(&server, &a.admin, "").await.unwrap_err().code(),
        Code::AlreadyExists,
        "now it is the other's"
    );
    create(&server, &b.admin, "").await.unwrap();
}

/// Z01 (AUDIT AZ12): a tenant sees what is done to its clients and tokens, whoever does it, and of
/// a caller of another tenant only its id.
#[tokio::test]
async fn a_tenant_sees_what_is_done_to_its_own() {
    let server = TestServer::start_unlimited().await;
    let (of, other) = (settle(&server, "acme").await, settle(&server, "globex").await);
    let thief = &of.plain.client;
    let mark = &other.plain;
    server
        .token(&Caller { secret: "jcs_000000000000_wrong".to_owned(), ..mark.client.clone() }, &[])
        .await
        .unwrap_err();
    server.refresh(thief, &mark.refresh_token).await.unwrap_err();
    server.revoke(thief, &mark.access_token).await.unwrap();
    server.revoke(thief, &mark.refresh_token).await.unwrap();
    let (first, second) = (&other.marks[0], &other.marks[1]);
    server.revoke(&server.admin, &first.access_token).await.unwrap();
    server.revoke(&server.admin, &second.refresh_token).await.unwrap();
    server.revoke_all(Target::Subject(format!("client:{}", mark.client.id))).await.unwrap();
    server.token(&server.admin, &[]).await.unwrap();

    let message = ListEventsRequest { page_size: 1_000, ..ListEventsRequest::default() };
    let seen = server
        .audit()
        .list_events(bearer(message, &other.admin))
        .await
        .unwrap()
        .into_inner()
        .events;
    let count = |action: &str, by: &str| {
        let fits =
            |event: &&jeton::proto::admin::Event| event.action == action && client_of(event) == by;
        let events: Vec<_> = seen.iter().filter(fits).collect();
        assert!(
            events.iter().all(|event| event.tenant == "globex" && event.auth.is_none()),
            "{events:?}"
        );
        events.len()
    };
    assert_eq!(count("client.authentication_failed", ""), 1);
    assert_eq!(count("refresh_token.refused", &thief.id), 1);
    assert_eq!(count("token.revoke_refused", &thief.id), 2);
    assert_eq!(count("token.revoked", &server.admin.id), 2);
    assert_eq!(count("revocation.subject", &server.admin.id), 1);
}
