//! What a caller proved is asked again next to what it does: no call that is still under way has an
//! effect once that which its proof rested on has fallen and the fall was acknowledged.

use jeton::proto::admin::{
    Client, CreateClientRequest, DeleteClientRequest, RetireSecretRequest, create_client_request,
    revoke_all_request::Target,
};
use tokio::join;
use tonic::Status;

use crate::{
    service::{
        harness::{Caller, World, client_of, reason, refreshing},
        home::is_brief,
        lab::Lab,
        office::{Mark, Rpc, decoded, kid_of, seconds},
    },
    support::faulty::Side,
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

impl World {
    /// Lets an administrator fall, and returns when that is acknowledged.
    async fn fell(&self, fall: Fall, of: &Caller, token: &str) {
        let client_id = of.id.clone();
        match fall {
            Fall::Disabled => self.disable(of).await,
            Fall::Deleted => {
                let message = DeleteClientRequest { client_id, etag: String::new() };
                self.clients().delete_client(self.as_admin(message).await).await.map(drop).unwrap();
            }
            Fall::ScopeTaken => {
                let client = Client {
                    client_id,
                    scopes: vec!["jeton:admin:clients".to_owned()],
                    ..Client::default()
                };
                self.change(client, &["scopes"]).await.map(drop).unwrap();
            }
            Fall::ClientRevoked => self.end_all(Target::ClientId(client_id)).await.unwrap(),
            Fall::TenantRevoked => {
                self.end_all(Target::Tenant("default".to_owned())).await.unwrap()
            }
            Fall::SubjectRevoked => {
                self.end_all(Target::Subject(format!("client:{client_id}"))).await.unwrap()
            }
            Fall::TokenRevoked => {
                let jti = decoded(token).1["jti"].as_str().unwrap().to_owned();
                self.end_all(Target::Jti(jti)).await.unwrap();
            }
            Fall::KeyRevoked => {
                let own = self.admin_token().await;
                self.revoke_key(&kid_of(token), &own).await.map(drop).unwrap();
            }
        }
    }

    async fn retire_first(&self, caller: &Caller, overlap: Option<i64>) {
        let secret_id = self.get(&caller.id).await.secrets[0].secret_id.clone();
        let overlap = overlap.and_then(seconds);
        let message = RetireSecretRequest {
            client_id: caller.id.clone(),
            secret_id,
            overlap,
            ..Default::default()
        };
        self.clients().retire_secret(self.as_admin(message).await).await.unwrap();
    }

    /// Makes this node read the client from the store at its next call.
    async fn forgotten(&self, id: &str) {
        let client = Client {
            client_id: id.to_owned(),
            display_name: "again".to_owned(),
            ..Client::default()
        };
        self.change(client, &["display_name"]).await.unwrap();
    }
}

/// S03, V01 (AUDIT TL3): every change that an administrator can make, held right before its write,
/// while the administrator falls in every way there is: the call is refused, and nothing of it is
/// in the trail.
#[tokio::test]
async fn a_fallen_administrators_call_changes_nothing() {
    let Lab { world, store, .. } = Lab::start().await;
    for (n, rpc) in Rpc::ALL.into_iter().filter(|rpc| rpc.action().is_some()).enumerate() {
        for (m, fall) in FALLS.into_iter().enumerate() {
            // Each call and each fall, but not each pair of them.
            if is_brief() && m != n % FALLS.len() {
                continue;
            }
            let mark = world.mark(&format!("mark-{n}-{m}"), "shop").await;
            let (admin, token) = world.staff("default", &["jeton:admin"]).await;
            let held = store.hold("spend", Side::Before);
            let meanwhile = async {
                held.arrived().await;
                world.fell(fall, &admin, &token).await;
                held.release();
            };
            let (answer, ()) = join!(world.ask(rpc, &token, &mark), meanwhile);
            assert_eq!(reason(&answer.unwrap_err()), "INVALID_TOKEN", "{rpc:?} {fall:?}");
            let of_admin = |event: &&jeton::proto::admin::Event| client_of(event) == admin.id;
            let left = world.trail_of(rpc.action().unwrap()).await;
            assert_eq!(left.iter().find(of_admin), None, "{rpc:?} {fall:?}");
        }
    }
}

/// S03 (AUDIT TL3): the back door itself: the client that a disabled administrator was registering,
/// with a chosen secret that takes argon2id, is not there.
#[tokio::test]
async fn a_disabled_administrator_leaves_no_back_door() {
    let Lab { world, store, .. } = Lab::start().await;
    let (admin, token) = world.staff("default", &["jeton:admin"]).await;
    let held = store.hold("spend", Side::Before);
    let back = Caller { id: "back".to_owned(), secret: "correct horse battery".to_owned() };
    let client = Client {
        client_id: back.id.clone(),
        scopes: vec!["jeton:admin".to_owned()],
        ..Client::default()
    };
    let secret = Some(create_client_request::Secret::PlainSecret(back.secret.clone()));
    let request = crate::service::harness::bearer(
        CreateClientRequest { client: Some(client), secret },
        &token,
    );
    let meanwhile = async {
        held.arrived().await;
        world.disable(&admin).await;
        held.release();
    };
    let mut clients = world.clients();
    let (answer, ()) = join!(clients.create_client(request), meanwhile);
    assert_eq!(reason(&answer.unwrap_err()), "INVALID_TOKEN");
    assert_eq!(reason(&world.try_get("back").await.unwrap_err()), "NOT_FOUND");
    assert_eq!(reason(&world.token(&back, &[]).await.unwrap_err()), "INVALID_CLIENT");
}

/// An administrator that administers itself needs no second proof for what it began with the first.
#[tokio::test]
async fn an_administrator_may_end_itself() {
    let world = World::open_handed().await;
    for rpc in [Rpc::RetireSecret, Rpc::RevokeClient, Rpc::DisableClient, Rpc::DeleteClient] {
        let (admin, token) = world.staff("default", &["jeton:admin"]).await;
        let secret_id = world.get(&admin.id).await.secrets[0].secret_id.clone();
        let mark = Mark { client: admin.clone(), secret_id, ..Mark::default() };
        assert!(world.ask(rpc, &token, &mark).await.is_ok(), "{rpc:?}");
        let gone = world.try_get(&admin.id).await.is_err();
        assert_eq!(gone, rpc == Rpc::DeleteClient);
        if rpc != Rpc::RetireSecret {
            assert!(!world.is_active(&token).await, "{rpc:?}");
        }
    }
}

/// What a client does with its secret.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Token,
    Refresh,
    Introspect,
    RevokeAnothers,
}

async fn act(
    world: &World,
    deed: Deed,
    who: &Caller,
    mark: &Mark,
    other: &Mark,
) -> Result<(), Status> {
    match deed {
        Deed::Token => world.token(who, &[]).await.map(drop),
        Deed::Refresh => world.refresh(who, &mark.refresh_token).await.map(drop),
        Deed::Introspect => world.introspect_as(who, &other.access_token).await.map(drop),
        Deed::RevokeAnothers => world.revoke(who, &other.access_token).await,
    }
}

/// A05 (AUDIT TL5): a secret that is retired, or whose overlap ends, between the reading of its
/// client and the admission gives nothing: no token, no family, no answer, no end of another's
/// token.
#[tokio::test]
async fn a_secret_that_is_retired_while_it_is_proven_gives_nothing() {
    let Lab { world, store, .. } = Lab::start().await;
    let deeds = [Deed::Token, Deed::Refresh, Deed::Introspect, Deed::RevokeAnothers];
    for (n, deed) in deeds.into_iter().enumerate() {
        for overlap in [None, Some(10)] {
            let name = format!("client-{n}-{}", overlap.is_some());
            let other = world.mark(&format!("other-{name}"), "default").await;
            let scopes =
                ["orders:read", "jeton:admin", "jeton:introspect:any"].map(str::to_owned).to_vec();
            let caller =
                world.register(Client { client_id: name.clone(), scopes, ..refreshing() }).await;
            let issued = world.token(&caller, &[]).await.unwrap();
            let mark = Mark { refresh_token: issued.refresh_token, ..Mark::default() };
            world.forgotten(&name).await;
            let held = store.hold("client", Side::After);
            let meanwhile = async {
                held.arrived().await;
                world.retire_first(&caller, overlap).await;
                world.advance(overlap.map_or(0, i64::unsigned_abs));
                held.release();
            };
            let (answer, ()) = join!(act(&world, deed, &caller, &mark, &other), meanwhile);
            assert_eq!(reason(&answer.unwrap_err()), "INVALID_CLIENT", "{deed:?} {overlap:?}");
            assert!(world.is_active(&other.access_token).await, "{deed:?}");
        }
    }
}

/// A05, S03 (AUDIT TL5): a client that loses its secret, or is disabled, after it was admitted and
/// before what it asked for is recorded is not given it; a family that was opened by then is ended.
#[tokio::test]
async fn what_is_issued_in_flight_is_not_given_out() {
    let Lab { world, store, .. } = Lab::start().await;
    for (n, is_disabled) in [true, false].into_iter().enumerate() {
        for (verb, side) in
            [("open_family", Side::Before), ("open_family", Side::After), ("rotate", Side::Before)]
        {
            let name = format!("client-{n}-{verb}-{side:?}");
            let caller = world.register(Client { client_id: name.clone(), ..refreshing() }).await;
            let issued = world.token(&caller, &[]).await.unwrap();
            let held = store.hold(verb, side);
            let meanwhile = async {
                held.arrived().await;
                if is_disabled {
                    world.disable(&caller).await
                } else {
                    world.retire_first(&caller, None).await
                }
                held.release();
            };
            let mark = Mark { refresh_token: issued.refresh_token, ..Mark::default() };
            let deed = if verb == "rotate" { Deed::Refresh } else { Deed::Token };
            let (answer, ()) = join!(act(&world, deed, &caller, &mark, &mark), meanwhile);
            assert_eq!(reason(&answer.unwrap_err()), "INVALID_CLIENT", "{name} {is_disabled}");
            let of_client = |event: &jeton::proto::admin::Event| client_of(event) == name;
            let issued = world.trail_of("token.issued").await.into_iter().find(of_client).unwrap();
            let ended = world
                .trail_of("token.revoked")
                .await
                .into_iter()
                .find(|event| event.family == issued.family);
            assert_eq!(ended.is_some(), verb == "open_family", "{name} {is_disabled}");
        }
    }
    // An access token by itself.
    let caller =
        world.register(Client { client_id: "plain".to_owned(), ..Client::default() }).await;
    let held = store.hold("append", Side::Before);
    let meanwhile = async {
        held.arrived().await;
        world.retire_first(&caller, None).await;
        held.release();
    };
    let (answer, ()) = join!(world.token(&caller, &[]), meanwhile);
    assert_eq!(reason(&answer.unwrap_err()), "INVALID_CLIENT");
}

/// S03 (AUDIT TL3): a client that ends another's token by its office, and loses the office before
/// the write, ends nothing; one that ends its own token needs no office.
#[tokio::test]
async fn an_office_that_was_lost_ends_no_other_clients_token() {
    let Lab { world, store, .. } = Lab::start().await;
    let mark = world.mark("mark", "default").await;
    for (n, token) in [&mark.access_token, &mark.refresh_token].into_iter().enumerate() {
        let scopes = vec!["jeton:admin".to_owned()];
        let caller = world
            .register(Client { client_id: format!("officer-{n}"), scopes, ..Client::default() })
            .await;
        world.token(&caller, &[]).await.unwrap();
        let held = store.hold("spend", Side::Before);
        let meanwhile = async {
            held.arrived().await;
            let client = Client { client_id: caller.id.clone(), ..Client::default() };
            world.change(client, &["scopes"]).await.unwrap();
            held.release();
        };
        let (answer, ()) = join!(world.revoke(&caller, token), meanwhile);
        assert_eq!(reason(&answer.unwrap_err()), "INVALID_CLIENT");
        assert!(world.is_active(&mark.access_token).await);
    }
    world.revoke(&mark.client, &mark.refresh_token).await.unwrap();
    assert!(!world.is_active(&mark.access_token).await);
}
