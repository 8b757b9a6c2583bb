//! A proof of a caller is checked again next to the write: no call that is still under way has an
//! effect once the basis of its proof was taken away and that was acknowledged.

use jeton::proto::admin::{
    Client, CreateClientRequest, DeleteClientRequest, create_client_request,
    revoke_all_request::Target,
};
use tokio::join;
use tonic::Status;

use crate::support::{
    faulty::Side,
    server::{
        Caller, Rpc, RpcTarget, TamperableServer, TestServer, client_of, decoded, kid_of, reason,
        refreshing, samples_cases,
    },
};

/// A way in which an administrator stops being one.
#[derive(Clone, Copy, Debug)]
enum Fall {
    Disabled,
    Deleted,
    ScopeTaken,
    ClientRevoked,
    TenantRevoked,
    SubjectRevoked,
    TokenRevoked,
    KeyRevoked,
}

const FALLS: [Fall; 8] = [
    Fall::Disabled,
    Fall::Deleted,
    Fall::ScopeTaken,
    Fall::ClientRevoked,
    Fall::TenantRevoked,
    Fall::SubjectRevoked,
    Fall::TokenRevoked,
    Fall::KeyRevoked,
];

impl Fall {
    /// Lets an administrator fall, and returns when that is acknowledged.
    async fn happen(self, server: &TestServer, of: &Caller, token: &str) {
        let client_id = of.id.clone();
        match self {
            Self::Disabled => server.disable(of).await,
            Self::Deleted => {
                let message = DeleteClientRequest {
                    client_id,
                    etag: String::new(),
                    allow_no_administrator: false,
                };
                server
                    .clients()
                    .delete_client(server.as_admin(message).await)
                    .await
                    .map(drop)
                    .unwrap();
            }
            Self::ScopeTaken => {
                let client = Client {
                    client_id,
                    scopes: vec!["jeton:admin:clients".to_owned()],
                    ..Client::default()
                };
                server.change(client, &["scopes"]).await.map(drop).unwrap();
            }
            Self::ClientRevoked => server.revoke_all(Target::ClientId(client_id)).await.unwrap(),
            Self::TenantRevoked => {
                server.revoke_all(Target::Tenant("default".to_owned())).await.unwrap()
            }
            Self::SubjectRevoked => {
                server.revoke_all(Target::Subject(format!("client:{client_id}"))).await.unwrap()
            }
            Self::TokenRevoked => {
                let jti = decoded(token).1["jti"].as_str().unwrap().to_owned();
                server.revoke_all(Target::Jti(jti)).await.unwrap();
            }
            Self::KeyRevoked => {
                let own = server.admin_token().await;
                server.revoke_key(&kid_of(token), &own).await.map(drop).unwrap();
            }
        }
    }
}

/// S03, V01 (AUDIT TL3): every change that an administrator can make, held right before its write,
/// while the administrator falls in every way there is: the call is refused, and nothing of it is
/// in the trail.
#[tokio::test]
async fn a_fallen_administrators_call_changes_nothing() {
    let TamperableServer { server, store, .. } = TamperableServer::start().await;
    for (n, rpc) in Rpc::ALL.into_iter().filter(|rpc| rpc.action().is_some()).enumerate() {
        for (m, fall) in FALLS.into_iter().enumerate() {
            // Each call and each fall, but not each pair of them.
            if samples_cases() && m != n % FALLS.len() {
                continue;
            }
            let mark = server.rpc_target(&format!("mark-{n}-{m}"), "shop").await;
            let (admin, token) = server.client_with_token("default", &["jeton:admin"]).await;
            let held = store.hold("spend", Side::Before);
            let meanwhile = async {
                held.arrived().await;
                fall.happen(&server, &admin, &token).await;
                held.release();
            };
            let (answer, ()) = join!(server.call_rpc(rpc, &token, &mark), meanwhile);
            assert_eq!(reason(&answer.unwrap_err()), "INVALID_TOKEN", "{rpc:?} {fall:?}");
            let of_admin = |event: &&jeton::proto::admin::Event| client_of(event) == admin.id;
            let left = server.trail_of(rpc.action().unwrap()).await;
            assert_eq!(left.iter().find(of_admin), None, "{rpc:?} {fall:?}");
        }
    }
}

/// S03 (AUDIT TL3): the back door itself: the client that a disabled administrator was registering,
/// with a chosen secret that takes argon2id, is not there.
#[tokio::test]
async fn a_disabled_administrator_leaves_no_back_door() {
    let TamperableServer { server, store, .. } = TamperableServer::start().await;
    let (admin, token) = server.client_with_token("default", &["jeton:admin"]).await;
    let held = store.hold("spend", Side::Before);
    let back = Caller { id: "back".to_owned(), secret: "correct horse battery".to_owned() };
    let client = Client {
        client_id: back.id.clone(),
        scopes: vec!["jeton:admin".to_owned()],
        ..Client::default()
    };
    let secret = Some(create_client_request::Secret::PlainSecret(back.secret.clone()));
    let request = crate::support::server::bearer(
        CreateClientRequest { client: Some(client), secret },
        &token,
    );
    let meanwhile = async {
        held.arrived().await;
        server.disable(&admin).await;
        held.release();
    };
    let mut clients = server.clients();
    let (answer, ()) = join!(clients.create_client(request), meanwhile);
    assert_eq!(reason(&answer.unwrap_err()), "INVALID_TOKEN");
    assert_eq!(reason(&server.try_get("back").await.unwrap_err()), "NOT_FOUND");
    assert_eq!(reason(&server.token(&back, &[]).await.unwrap_err()), "INVALID_CLIENT");
}

/// An administrator that administers itself needs no second proof for what it began with the first.
#[tokio::test]
async fn an_administrator_may_end_itself() {
    let server = TestServer::start_unlimited().await;
    for rpc in [Rpc::RetireSecret, Rpc::RevokeClient, Rpc::DisableClient, Rpc::DeleteClient] {
        let (admin, token) = server.client_with_token("default", &["jeton:admin"]).await;
        let secret_id = server.get(&admin.id).await.secrets[0].secret_id.clone();
        let mark = RpcTarget { client: admin.clone(), secret_id, ..RpcTarget::default() };
        assert!(server.call_rpc(rpc, &token, &mark).await.is_ok(), "{rpc:?}");
        let gone = server.try_get(&admin.id).await.is_err();
        assert_eq!(gone, rpc == Rpc::DeleteClient);
        if rpc != Rpc::RetireSecret {
            assert!(!server.is_active(&token).await, "{rpc:?}");
        }
    }
}

/// Calls that a client makes with its secret.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Token,
    Refresh,
    Introspect,
    RevokeAnothers,
}

async fn act(
    server: &TestServer,
    deed: Deed,
    who: &Caller,
    mark: &RpcTarget,
    other: &RpcTarget,
) -> Result<(), Status> {
    match deed {
        Deed::Token => server.token(who, &[]).await.map(drop),
        Deed::Refresh => server.refresh(who, &mark.refresh_token).await.map(drop),
        Deed::Introspect => server.introspect_as(who, &other.access_token).await.map(drop),
        Deed::RevokeAnothers => server.revoke(who, &other.access_token).await,
    }
}

/// A05 (AUDIT TL5): a secret that is retired, or whose overlap ends, between the reading of its
/// client and the admission gives nothing: no token, no family, no answer, no end of another's
/// token.
#[tokio::test]
async fn a_secret_that_is_retired_while_it_is_proven_gives_nothing() {
    let TamperableServer { server, store, .. } = TamperableServer::start().await;
    let deeds = [Deed::Token, Deed::Refresh, Deed::Introspect, Deed::RevokeAnothers];
    for (n, deed) in deeds.into_iter().enumerate() {
        for overlap in [None, Some(10)] {
            let name = format!("client-{n}-{}", overlap.is_some());
            let other = server.rpc_target(&format!("other-{name}"), "default").await;
            let scopes =
                ["orders:read", "jeton:admin", "jeton:introspect:any"].map(str::to_owned).to_vec();
            let caller =
                server.register(Client { client_id: name.clone(), scopes, ..refreshing() }).await;
            let issued = server.token(&caller, &[]).await.unwrap();
            let mark = RpcTarget { refresh_token: issued.refresh_token, ..RpcTarget::default() };
            server.evict(&name).await;
            let held = store.hold("client", Side::After);
            let meanwhile = async {
                held.arrived().await;
                server.retire_first(&caller, overlap).await;
                server.advance(overlap.map_or(0, i64::unsigned_abs));
                held.release();
            };
            let (answer, ()) = join!(act(&server, deed, &caller, &mark, &other), meanwhile);
            assert_eq!(reason(&answer.unwrap_err()), "INVALID_CLIENT", "{deed:?} {overlap:?}");
            assert!(server.is_active(&other.access_token).await, "{deed:?}");
        }
    }
}

/// A05, S03 (AUDIT TL5): a client that loses its secret, or is disabled, after it was admitted and
/// before what it asked for is recorded is not given it; a family that was opened by then is ended.
#[tokio::test]
async fn what_is_issued_in_flight_is_not_given_out() {
    let TamperableServer { server, store, .. } = TamperableServer::start().await;
    for (n, is_disabled) in [true, false].into_iter().enumerate() {
        for (verb, side) in
            [("open_family", Side::Before), ("open_family", Side::After), ("rotate", Side::Before)]
        {
            let name = format!("client-{n}-{verb}-{side:?}");
            let caller = server.register(Client { client_id: name.clone(), ..refreshing() }).await;
            let issued = server.token(&caller, &[]).await.unwrap();
            let held = store.hold(verb, side);
            let meanwhile = async {
                held.arrived().await;
                if is_disabled {
                    server.disable(&caller).await
                } else {
                    server.retire_first(&caller, None).await
                }
                held.release();
            };
            let mark = RpcTarget { refresh_token: issued.refresh_token, ..RpcTarget::default() };
            let deed = if verb == "rotate" { Deed::Refresh } else { Deed::Token };
            let (answer, ()) = join!(act(&server, deed, &caller, &mark, &mark), meanwhile);
            assert_eq!(reason(&answer.unwrap_err()), "INVALID_CLIENT", "{name} {is_disabled}");
            let of_client = |event: &jeton::proto::admin::Event| client_of(event) == name;
            let issued = server.trail_of("token.issued").await.into_iter().find(of_client).unwrap();
            let ended = server
                .trail_of("token.revoked")
                .await
                .into_iter()
                .find(|event| event.family == issued.family);
            assert_eq!(ended.is_some(), verb == "open_family", "{name} {is_disabled}");
        }
    }
    // An access token by itself.
    let caller =
        server.register(Client { client_id: "plain".to_owned(), ..Client::default() }).await;
    let held = store.hold("append", Side::Before);
    let meanwhile = async {
        held.arrived().await;
        server.retire_first(&caller, None).await;
        held.release();
    };
    let (answer, ()) = join!(server.token(&caller, &[]), meanwhile);
    assert_eq!(reason(&answer.unwrap_err()), "INVALID_CLIENT");
}

/// S03 (AUDIT TL3): a client that ends another's token by its office, and loses the office before
/// the write, ends nothing; one that ends its own token needs no office.
#[tokio::test]
async fn an_office_that_was_lost_ends_no_other_clients_token() {
    let TamperableServer { server, store, .. } = TamperableServer::start().await;
    let mark = server.rpc_target("mark", "default").await;
    for (n, token) in [&mark.access_token, &mark.refresh_token].into_iter().enumerate() {
        let scopes = vec!["jeton:admin".to_owned()];
        let caller = server
            .register(Client { client_id: format!("officer-{n}"), scopes, ..Client::default() })
            .await;
        server.token(&caller, &[]).await.unwrap();
        let held = store.hold("spend", Side::Before);
        let meanwhile = async {
            held.arrived().await;
            let client = Client { client_id: caller.id.clone(), ..Client::default() };
            server.change(client, &["scopes"]).await.unwrap();
            held.release();
        };
        let (answer, ()) = join!(server.revoke(&caller, token), meanwhile);
        assert_eq!(reason(&answer.unwrap_err()), "INVALID_CLIENT");
        assert!(server.is_active(&mark.access_token).await);
    }
    server.revoke(&mark.client, &mark.refresh_token).await.unwrap();
    assert!(!server.is_active(&mark.access_token).await);
}
