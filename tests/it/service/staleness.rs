//! Two nodes on one store, one of which no longer hears what the other does: it says so, and
//! neither yes nor no.

use std::{sync::Arc, time::Duration};

use jeton::proto::{
    admin::{
        AddSecretRequest, Client, DisableClientRequest, RetireSecretRequest, TailEventsRequest,
        add_secret_request::Secret,
    },
    token::BatchIntrospectRequest,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, interval, timeout},
};
use tokio_stream::StreamExt;
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt;

use crate::{
    service::published::{get, jwks},
    support::{
        faulty::{Act, FaultyStore, Kind},
        server::{
            Caller, MAX_STALENESS, PreparedServer, Rpc, TestServer, bearer, kid_of, prepare,
            reason, refreshing, unlimited,
        },
    },
};

/// Longer than a node may be without hearing the others.
const TOO_LONG: Duration = Duration::from_secs(2 * MAX_STALENESS);
/// Only a test that fails waits for this long.
const PATIENCE: Duration = Duration::from_secs(120);

/// Nodes that share a store. What the far one hears is in the test's hand.
struct Pair {
    near: TestServer,
    far: TestServer,
    feed: Arc<FaultyStore>,
    hearing: Option<JoinHandle<()>>,
}

impl Pair {
    async fn start() -> Self {
        let PreparedServer { faulty, config, home } = prepare().await;
        let mut master_key_file = None;
        let configure = |given: &mut jeton::config::Config| {
            unlimited(given);
            config(given);
            master_key_file = Some(given.master_key_file.clone());
        };
        let near = TestServer::start_on(home.clone(), configure, faulty.clone()).await;
        let feed = Arc::new(FaultyStore::new(faulty));
        feed.say_by_hand();
        let configure = |given: &mut jeton::config::Config| {
            unlimited(given);
            given.master_key_file = master_key_file.unwrap();
        };
        let mut far = TestServer::start_on(home, configure, feed.clone()).await;
        far.admin = near.admin.clone();
        Self { near, far, feed, hearing: None }
    }

    /// From here on the far node hears nothing, and has not for too long.
    fn cut(&self) {
        self.feed.hold_changes();
        self.feed.say(Instant::now() - TOO_LONG);
    }

    /// The far node hears what it did not, and from here on everything.
    fn mend(&mut self) {
        self.feed.release_changes();
        self.hear();
    }

    fn hear(&mut self) {
        let feed = self.feed.clone();
        feed.say(Instant::now());
        self.hearing = Some(tokio::spawn(async move {
            let mut beats = interval(Duration::from_millis(100));
            loop {
                feed.say(beats.tick().await);
            }
        }));
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if let Some(hearing) = self.hearing.take() {
            hearing.abort();
        }
    }
}

/// That there is no judgement now, and when there may be one.
fn assert_behind<T: std::fmt::Debug>(what: &str, answer: Result<T, Status>) {
    let refused = answer.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::Unavailable, "NODE_BEHIND"),
        "{what}"
    );
    let retry = refused.get_details_retry_info().and_then(|retry| retry.retry_delay);
    assert_eq!(retry, Some(Duration::from_secs(1)), "{what}");
}

async fn introspect(
    server: &TestServer,
    caller: &Caller,
    token: &str,
    hint: &str,
) -> Result<Option<bool>, Status> {
    use jeton::proto::token::IntrospectRequest;
    let Caller { id, secret } = caller.clone();
    let (token, token_type_hint) = (token.to_owned(), hint.to_owned());
    let request =
        IntrospectRequest { client_id: id, client_secret: secret, token, token_type_hint };
    Ok(server.tokens().introspect(request).await?.into_inner().active)
}

async fn health(server: &TestServer) -> ServingStatus {
    let message = HealthCheckRequest { service: String::new() };
    HealthClient::new(server.channel.clone()).check(message).await.unwrap().into_inner().status()
}

/// V04, I01, I04: a node that has not heard the others for too long answers no question about any
/// token, not even about a text that is none, and issues nothing; who is not who it says is told
/// that all the same. When it hears again, it answers again, and what was revoked meanwhile is not
/// active for a moment.
#[tokio::test]
async fn a_node_that_hears_nothing_says_neither_yes_nor_no() {
    let mut pair = Pair::start().await;
    let (near, far) = (&pair.near, &pair.far);
    let (stands, ended) =
        (near.rpc_target("stands", "shop").await, near.rpc_target("ended", "shop").await);
    let pass = near.admin_token().await;
    let viewer = near.token(&near.admin, &["jeton:introspect:any"]).await.unwrap().access_token;
    assert!(far.is_active(&stands.access_token).await && far.is_active(&ended.access_token).await);
    pair.cut();
    near.revoke(&ended.client, &ended.refresh_token).await.unwrap();
    assert!(!near.is_active(&ended.access_token).await);

    for token in [
        &stands.access_token,
        &ended.access_token,
        &stands.refresh_token,
        &ended.refresh_token,
        "nonsense",
    ] {
        for hint in ["", "refresh_token"] {
            assert_behind(
                &format!("{token} {hint}"),
                introspect(far, &far.admin, token, hint).await,
            );
        }
    }
    let Caller { id: client_id, secret: client_secret } = far.admin.clone();
    let batch = |tokens: &[&str]| BatchIntrospectRequest {
        tokens: tokens.iter().map(|token| (*token).to_owned()).collect(),
        ..BatchIntrospectRequest::default()
    };
    let asked = BatchIntrospectRequest {
        client_id,
        client_secret,
        ..batch(&["nonsense", &ended.access_token])
    };
    assert_behind("batch", far.tokens().batch_introspect(asked).await);
    assert_behind(
        "batch by token",
        far.tokens().batch_introspect(bearer(batch(&["x"]), &viewer)).await,
    );
    assert_behind("token", far.token(&stands.client, &[]).await);
    assert_behind(
        "token without a family",
        far.token(&far.admin, &["jeton:introspect:any"]).await.map(drop),
    );
    assert_behind("refresh", far.refresh(&stands.client, &stands.refresh_token).await);
    assert_behind("refresh of what ended", far.refresh(&ended.client, &ended.refresh_token).await);
    for rpc in Rpc::ALL {
        assert_behind(&format!("{rpc:?}"), far.call_rpc(rpc, &pass, &stands).await);
    }
    let wrong = Caller { secret: "jcs_000000000000_wrong".to_owned(), ..stands.client.clone() };
    assert_eq!(reason(&far.token(&wrong, &[]).await.unwrap_err()), "INVALID_CLIENT");
    assert_eq!(
        reason(&introspect(far, &wrong, &stands.access_token, "").await.unwrap_err()),
        "INVALID_CLIENT"
    );
    // The other node goes on, and no token was spent here.
    assert!(near.is_active(&stands.access_token).await);
    let next = near.refresh(&stands.client, &stands.refresh_token).await.unwrap();

    pair.mend();
    let far = &pair.far;
    for token in [&ended.access_token, &ended.refresh_token] {
        for hint in ["", "refresh_token"] {
            assert_eq!(introspect(far, &far.admin, token, hint).await.unwrap(), Some(false));
        }
    }
    assert_eq!(introspect(far, &far.admin, "nonsense", "").await.unwrap(), Some(false));
    assert!(far.is_active(&stands.access_token).await && far.is_active(&next.access_token).await);
    assert_eq!(
        introspect(far, &far.admin, &next.refresh_token, "refresh_token").await.unwrap(),
        Some(true)
    );
    far.refresh(&stands.client, &next.refresh_token).await.unwrap();
    assert_eq!(
        reason(&far.refresh(&ended.client, &ended.refresh_token).await.unwrap_err()),
        "INVALID_GRANT"
    );
    far.call_rpc(Rpc::ListKeys, &pass, &stands).await.unwrap();
}

/// A node that is behind is alive and not ready, over HTTP and over gRPC, until it has caught up.
/// Its keys can be fetched.
#[tokio::test]
async fn a_node_that_is_behind_is_not_ready() {
    let mut pair = Pair::start().await;
    let address = pair.far.address;
    let message = HealthCheckRequest { service: String::new() };
    let mut told =
        HealthClient::new(pair.far.channel.clone()).watch(message).await.unwrap().into_inner();
    let mut next =
        async || timeout(PATIENCE, told.next()).await.unwrap().unwrap().unwrap().status();
    // Only where the store works: one that is slow for a moment, on a busy machine, is asked again.
    let is_ready = async |address| {
        crate::service::keys::eventually("readiness", async || {
            get(address, "/readyz").await.0 == 200
        })
        .await
    };
    assert_eq!(next().await, ServingStatus::Serving);
    is_ready(address).await;
    let keys = jwks(address).await;
    pair.cut();
    assert_eq!((get(address, "/readyz").await.0, get(address, "/healthz").await.0), (503, 200));
    assert_eq!(next().await, ServingStatus::NotServing);
    assert_eq!(health(&pair.far).await, ServingStatus::NotServing);
    is_ready(pair.near.address).await;
    assert_eq!(health(&pair.near).await, ServingStatus::Serving);
    assert_eq!(jwks(address).await, keys);
    pair.mend();
    is_ready(address).await;
    assert_eq!(next().await, ServingStatus::Serving);
}

/// V05: a node that is behind ends what it is asked to end, for every node; what it cannot
/// recognise it does not say it ended.
#[tokio::test]
async fn a_node_that_is_behind_still_revokes() {
    let mut pair = Pair::start().await;
    let (near, far) = (&pair.near, &pair.far);
    let mark = near.rpc_target("orders", "shop").await;
    let single = near.token(&mark.client, &[]).await.unwrap().access_token;
    pair.cut();
    far.revoke(&mark.client, &single).await.unwrap();
    assert!(!near.is_active(&single).await && near.is_active(&mark.access_token).await);
    far.revoke(&mark.client, &mark.refresh_token).await.unwrap();
    assert!(!near.is_active(&mark.access_token).await);
    assert_eq!(
        reason(&near.refresh(&mark.client, &mark.refresh_token).await.unwrap_err()),
        "INVALID_GRANT"
    );
    // Until a key signs that the far node has never heard of.
    let known = jwks(far.address).await;
    let unknown = loop {
        let issued = near.token(&mark.client, &[]).await.unwrap();
        let kid = kid_of(&issued.access_token);
        if known.iter().all(|key| key["kid"] != kid.as_str()) {
            break issued.access_token;
        }
        near.revoke_key(&kid, &near.admin_token().await).await.unwrap();
    };
    assert_behind("a key it does not know", far.revoke(&mark.client, &unknown).await);
    assert!(near.is_active(&unknown).await);
    pair.mend();
    pair.far.revoke(&mark.client, &unknown).await.unwrap();
    assert!(!pair.near.is_active(&unknown).await && !pair.far.is_active(&unknown).await);
}

/// A01, A05: while a node is behind it goes by the client's record in the store, also where it
/// remembers another one and has verified the secret before; nothing is remembered of that, and
/// where the store fails, so does the call.
#[tokio::test]
async fn a_node_that_is_behind_reads_clients_from_the_store() {
    let mut pair = Pair::start().await;
    let (near, far) = (&pair.near, &pair.far);
    let (disabled, spare) = (near.register(refreshing()).await, near.register(refreshing()).await);
    let chosen = Caller {
        secret: "a secret of somebody's choice".to_owned(),
        ..near.register(Client::default()).await
    };
    let added = near
        .clients()
        .add_secret(
            near.as_admin(AddSecretRequest {
                client_id: chosen.id.clone(),
                secret: Some(Secret::PlainSecret(chosen.secret.clone())),
                ..AddSecretRequest::default()
            })
            .await,
        )
        .await
        .unwrap()
        .into_inner();
    // Each is known to the far node, and the chosen secret is verified there.
    for caller in [&disabled, &spare, &chosen] {
        far.revoke(caller, "nothing").await.unwrap();
    }
    pair.cut();
    let (client_id, etag) = (disabled.id.clone(), String::new());
    near.clients()
        .disable_client(
            near.as_admin(DisableClientRequest { client_id, etag, allow_no_administrator: false })
                .await,
        )
        .await
        .unwrap();
    let (client_id, secret_id) = (chosen.id.clone(), added.secret_id);
    let retire = RetireSecretRequest { client_id, secret_id, ..RetireSecretRequest::default() };
    near.clients().retire_secret(near.as_admin(retire).await).await.unwrap();

    let anothers = pair.near.rpc_target("other", "shop").await.access_token;
    far.revoke(&spare, &anothers).await.unwrap();
    for caller in [&disabled, &chosen] {
        assert_eq!(reason(&far.revoke(caller, &anothers).await.unwrap_err()), "INVALID_CLIENT");
    }
    pair.feed.always(Some(Act::FailBefore(Kind::Unavailable)));
    for caller in [&disabled, &spare, &chosen] {
        assert_eq!(reason(&far.token(caller, &[]).await.unwrap_err()), "TEMPORARILY_UNAVAILABLE");
    }
    pair.feed.always(None);
    pair.mend();
    for caller in [&disabled, &chosen] {
        assert_eq!(reason(&pair.far.token(caller, &[]).await.unwrap_err()), "INVALID_CLIENT");
    }
    assert!(pair.far.token(&spare, &[]).await.is_ok());
}

/// A node's cache of clients is worth nothing once changes may have been missed, and is
/// read again.
#[tokio::test]
async fn after_a_gap_clients_are_read_again() {
    let mut pair = Pair::start().await;
    let (near, far) = (&pair.near, &pair.far);
    let (disabled, spare) = (near.register(refreshing()).await, near.register(refreshing()).await);
    for caller in [&disabled, &spare] {
        far.token(caller, &[]).await.unwrap();
    }
    pair.cut();
    let (client_id, etag) = (disabled.id.clone(), String::new());
    near.clients()
        .disable_client(
            near.as_admin(DisableClientRequest { client_id, etag, allow_no_administrator: false })
                .await,
        )
        .await
        .unwrap();
    pair.feed.lose_changes();
    pair.hear();
    assert_eq!(reason(&pair.far.token(&disabled, &[]).await.unwrap_err()), "INVALID_CLIENT");
    assert!(pair.far.token(&spare, &[]).await.is_ok());
}

/// A reader of the audit trail as it grows gets the reason for which the stream ends: it may have
/// lost the right to read meanwhile.
#[tokio::test]
async fn a_stream_ends_when_its_node_is_behind() {
    let pair = Pair::start().await;
    let request = pair.near.as_admin(TailEventsRequest::default()).await;
    let mut stream = pair.far.audit().tail_events(request).await.unwrap().into_inner();
    pair.cut();
    let ended = timeout(PATIENCE, async {
        loop {
            pair.near.token(&pair.near.admin, &[]).await.unwrap();
            // What was on its way before is still delivered.
            if let Err(ended) = stream.message().await {
                return ended;
            }
        }
    });
    assert_behind("tail", Err::<(), _>(ended.await.unwrap()));
}
