//! A store that fails at every call of every RPC: nothing is granted that should not be, nothing is
//! said that is not so, and afterwards everything works.

use std::sync::{Arc, atomic::Ordering::SeqCst};

use base64::{Engine, engine::general_purpose::STANDARD};
use jeton::{
    config::Config,
    crypto::{chain::ChainKey, seal::Sealer},
    proto::admin::Client,
    store::Store,
};
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::{
    service::{
        harness::{Caller, World, reason, refreshing},
        home::{Home, is_brief, on_mongodb},
        office::{Mark, Rpc},
    },
    support::faulty::{Act, FaultyStore, Kind},
};

/// A store that can be told to fail, the configuration of a server over it, and where it is.
pub struct Kept<F: FnOnce(&mut Config)> {
    pub faulty: Arc<FaultyStore>,
    pub config: F,
    pub home: Arc<Home>,
}

impl<F: FnOnce(&mut Config)> Kept<F> {
    /// The server, and the store again.
    pub async fn served(self) -> (World, Arc<FaultyStore>) {
        (World::over(self.home, self.config, self.faulty.clone()).await, self.faulty)
    }
}

/// A store of its own, under a master key that the server is given too.
pub async fn kept_store() -> Kept<impl FnOnce(&mut Config)> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let home = Home::new();
    let mut master = [0; 32];
    aws_lc_rs::rand::fill(&mut master).unwrap();
    let file = home.master_key_file();
    let mut written =
        std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&file).unwrap();
    written.write_all(STANDARD.encode(master).as_bytes()).unwrap();
    let chain = ChainKey::new(Sealer::new(master).derive("audit head"));
    let faulty = Arc::new(FaultyStore::new(home.open_store(chain).await));
    Kept { faulty, config: move |config: &mut Config| config.master_key_file = file, home }
}

/// Every way to fail.
const ACTS: [Act; 5] = [
    Act::FailBefore(Kind::Unavailable),
    Act::FailAfter(Kind::Unavailable),
    Act::FailBefore(Kind::Full),
    Act::FailBefore(Kind::Corrupt),
    Act::FailAfter(Kind::Corrupt),
];

/// The ways to fail that are tried: where there is little time, the one that leaves something in the
/// store.
fn acts() -> &'static [Act] {
    if is_brief() { &ACTS[1..2] } else { &ACTS }
}

/// More calls than any RPC makes.
const CALLS: u64 = 8;

/// Plans a fault, does something, and takes the fault back if it was not met; whether it was met.
async fn under<T>(
    faulty: &FaultyStore,
    nth: u64,
    act: Act,
    deed: impl Future<Output = T>,
) -> (T, bool) {
    let planned = faulty.plan(nth, act);
    let done = deed.await;
    let met = faulty.calls() >= planned;
    while faulty.calls() < planned {
        let _ = faulty.ready().await;
    }
    (done, met)
}

/// A store's failure is answered as one, without its words (O06).
fn is_failure(status: &Status) -> bool {
    let words = format!("{status:?}");
    assert!(
        ["planned", "sqlite", "mongo", "/tmp"].iter().all(|leak| !words.contains(leak)),
        "{words}"
    );
    matches!(status.code(), Code::Unavailable | Code::Internal | Code::ResourceExhausted)
}

/// F01: what must be refused is refused at whichever call the store fails: a fault is never a way
/// in.
#[tokio::test]
async fn a_fault_is_never_a_way_in() {
    let (world, faulty) = kept_store().await.served().await;
    let (_, no_scope) = world.staff("default", &["orders:read"]).await;
    let (_, of_tenant) = world.staff("elsewhere", &["jeton:admin"]).await;
    let (_, clerk) = world.staff("default", &["jeton:admin:clients"]).await;
    let ended = world.mark("ended", "shop").await;
    world.revoke(&ended.client, &ended.access_token).await.unwrap();
    world.revoke(&ended.client, &ended.refresh_token).await.unwrap();
    let standing = world.mark("standing", "shop").await;
    let mut count = 0;
    for &act in acts() {
        // A call that is refused makes few calls of its own.
        for nth in 1..=if is_brief() { 1 } else { CALLS / 2 } {
            count += 1;
            let fresh = Client { client_id: format!("fresh-{count}"), ..refreshing() };
            let fresh = world.register(fresh).await;
            let wrong = Caller { secret: "jcs_000000000000_wrong".to_owned(), ..fresh.clone() };
            let chosen = Caller { secret: "a chosen secret".to_owned(), ..fresh.clone() };
            for caller in
                [&wrong, &chosen, &Caller { id: format!("nobody-{count}"), ..fresh.clone() }]
            {
                let (answer, _) = under(&faulty, nth, act, world.token(caller, &[])).await;
                let refused = answer.unwrap_err();
                assert!(
                    reason(&refused) == "INVALID_CLIENT" || is_failure(&refused),
                    "{refused:?}"
                );
                let (answer, _) =
                    under(&faulty, nth, act, world.introspect_as(caller, &standing.access_token))
                        .await;
                answer.unwrap_err();
                let (answer, _) =
                    under(&faulty, nth, act, world.revoke(caller, &standing.access_token)).await;
                answer.unwrap_err();
            }
            let (answer, _) = under(&faulty, nth, act, world.token(&fresh, &["jeton:admin"])).await;
            answer.unwrap_err();
            let (answer, _) =
                under(&faulty, nth, act, world.refresh(&fresh, &standing.refresh_token)).await;
            answer.unwrap_err();
            let (answer, _) =
                under(&faulty, nth, act, world.refresh(&ended.client, &ended.refresh_token)).await;
            answer.unwrap_err();
            let (answer, _) =
                under(&faulty, nth, act, world.introspect_as(&fresh, &standing.access_token)).await;
            answer.unwrap_err();
            let (answer, _) =
                under(&faulty, nth, act, world.introspect_as(&world.admin, &ended.access_token))
                    .await;
            assert!(answer.is_err() || answer.unwrap().active == Some(false));
            for rpc in Rpc::ALL {
                for token in [&no_scope, &of_tenant, &ended.access_token] {
                    let (answer, _) =
                        under(&faulty, nth, act, world.ask(rpc, token, &standing)).await;
                    answer.unwrap_err();
                }
                if rpc.office() != "jeton:admin:clients" {
                    let (answer, _) =
                        under(&faulty, nth, act, world.ask(rpc, &clerk, &standing)).await;
                    answer.unwrap_err();
                }
            }
        }
        assert!(world.is_active(&standing.access_token).await, "nothing was ended either");
    }
    assert!(world.refresh(&standing.client, &standing.refresh_token).await.is_ok());
}

/// Whether what an RPC of administration asked for has come to be.
async fn came_true(world: &World, rpc: Rpc, mark: &Mark) -> bool {
    let id = &mark.client.id;
    match rpc {
        Rpc::UpdateClient => world.get(id).await.display_name == "changed",
        Rpc::DisableClient => {
            world.get(id).await.disabled && !world.is_active(&mark.access_token).await
        }
        Rpc::EnableClient => !world.get(id).await.disabled,
        Rpc::DeleteClient => {
            world.try_get(id).await.is_err() && !world.is_active(&mark.access_token).await
        }
        Rpc::AddSecret => world.get(id).await.secrets.len() == 2,
        Rpc::RetireSecret => world.get(id).await.secrets.is_empty(),
        Rpc::RevokeKey | Rpc::RevokeSigner => {
            world.list_keys().await.iter().all(|key| key.kid != mark.kid || key.state == 4)
        }
        Rpc::RevokeClient
        | Rpc::RevokeTenant
        | Rpc::RevokeSubject
        | Rpc::RevokeFamily
        | Rpc::RevokeToken => !world.is_active(&mark.access_token).await,
        Rpc::AssignAudience => {
            let owners = world.owners(&world.admin_token().await).await;
            owners.contains(&(format!("{}:new", mark.audience), mark.tenant.clone()))
        }
        Rpc::ReleaseAudience => world
            .owners(&world.admin_token().await)
            .await
            .iter()
            .all(|(audience, _)| *audience != mark.audience),
        Rpc::CreateClient
        | Rpc::GetClient
        | Rpc::ListClients
        | Rpc::ListAudiences
        | Rpc::ListKeys
        | Rpc::RotateKeys
        | Rpc::ListEvents
        | Rpc::TailEvents
        | Rpc::VerifyChain => true,
    }
}

/// F01, I7: an administration RPC that meets a fault fails as one or has done what it says; asked
/// again it does it.
#[tokio::test]
async fn administration_fails_clean_at_every_call_and_works_again() {
    let (world, faulty) = kept_store().await.served().await;
    let mut met_by = std::collections::HashMap::new();
    for rpc in Rpc::ALL {
        for &act in acts() {
            for nth in 1..=CALLS {
                let label = format!("{rpc:?} {nth} {act:?}");
                let mut mark = world
                    .mark(&format!("{rpc:?}-{}", met_by.len()), &format!("t{}", met_by.len()))
                    .await;
                if matches!(rpc, Rpc::RevokeKey | Rpc::RevokeSigner) {
                    mark.kid =
                        world.list_keys().await.into_iter().find(|key| key.state == 1).unwrap().kid;
                }
                let token = world.admin_token().await;
                let (answer, met) = under(&faulty, nth, act, world.ask(rpc, &token, &mark)).await;
                met_by.insert(label.clone(), met);
                match answer {
                    Ok(_) => assert!(
                        came_true(&world, rpc, &mark).await,
                        "{label}: said to be done, and is not"
                    ),
                    Err(refused) => {
                        assert!(met && is_failure(&refused), "{label}: {refused:?}");
                        let again = world.ask(rpc, &token, &mark).await;
                        let done = again.is_ok()
                            // It had been done, and its answer was lost.
                            || (matches!(act, Act::FailAfter(_)) && matches!(again.as_ref().unwrap_err().code(), Code::NotFound | Code::FailedPrecondition))
                            // The key that was revoked, or the client that was only disabled before
                            // it failed to be deleted.
                            || came_true(&world, rpc, &mark).await;
                        assert!(done, "{label}: {again:?}");
                        if !matches!(rpc, Rpc::AddSecret) {
                            assert!(
                                came_true(&world, rpc, &mark).await,
                                "{label}: asked again, and not done"
                            );
                        }
                    }
                }
                if !met {
                    break;
                }
            }
        }
    }
    // Every RPC that has a store behind it met at least one fault.
    for rpc in Rpc::ALL.into_iter().filter(|rpc| *rpc != Rpc::TailEvents) {
        assert!(
            met_by.iter().any(|(label, met)| *met && label.starts_with(&format!("{rpc:?} 1 "))),
            "{rpc:?}"
        );
    }
    assert_eq!(world.verify_chain().await.intact, Some(true));
}

/// F01, I3, I7: the same for what clients ask for themselves.
#[tokio::test]
async fn token_calls_fail_clean_at_every_call_and_work_again() {
    let (world, faulty) = kept_store().await.served().await;
    let mut count = 0;
    for &act in acts() {
        for nth in 1..=CALLS {
            count += 1;
            let label = format!("{nth} {act:?}");
            let mark = world.mark(&format!("m{count}"), "shop").await;
            let caller = &mark.client;

            let (issued, met) = under(&faulty, nth, act, world.token(caller, &[])).await;
            match issued {
                Ok(issued) => assert!(world.is_active(&issued.access_token).await, "{label}"),
                Err(refused) => assert!(met && is_failure(&refused), "{label}: {refused:?}"),
            }
            // A refresh whose outcome is unknown is asked again inside the grace window: one
            // successor, and only one.
            let (refreshed, met) =
                under(&faulty, nth, act, world.refresh(caller, &mark.refresh_token)).await;
            let again = world.refresh(caller, &mark.refresh_token).await.unwrap();
            match refreshed {
                Ok(refreshed) => {
                    assert_eq!(refreshed.refresh_token, again.refresh_token, "{label}")
                }
                Err(refused) => assert!(met && is_failure(&refused), "{label}: {refused:?}"),
            }
            let next = world.refresh(caller, &again.refresh_token).await.unwrap();

            // A revocation that was answered is one.
            for token in [&next.access_token, &next.refresh_token] {
                let (revoked, met) = under(&faulty, nth, act, world.revoke(caller, token)).await;
                if let Err(refused) = revoked {
                    assert!(met && is_failure(&refused), "{label}: {refused:?}");
                    world.revoke(caller, token).await.unwrap();
                }
            }
            assert!(!world.is_active(&next.access_token).await, "{label}");
            assert_eq!(
                reason(&world.refresh(caller, &next.refresh_token).await.unwrap_err()),
                "INVALID_GRANT",
                "{label}"
            );

            // A judgement is right, or there is none.
            let fresh = world.token(caller, &[]).await.unwrap().access_token;
            for (token, stands) in [(&fresh, true), (&next.access_token, false)] {
                let (judged, met) =
                    under(&faulty, nth, act, world.introspect_as(&world.admin, token)).await;
                match judged {
                    Ok(judged) => assert_eq!(judged.active, Some(stands), "{label}"),
                    Err(refused) => assert!(met && is_failure(&refused), "{label}: {refused:?}"),
                }
            }
        }
    }
    assert_eq!(world.verify_chain().await.intact, Some(true));
}

/// O03: while no record can be written, nothing is changed and nothing is issued; judging goes on
/// from memory.
#[tokio::test]
async fn without_a_trail_nothing_is_changed() {
    let (world, faulty) = kept_store().await.served().await;
    let mark = world.mark("orders", "shop").await;
    let ended = world.mark("ended", "shop").await;
    world.revoke(&ended.client, &ended.access_token).await.unwrap();
    let token = world.admin_token().await;
    let before = (world.get("orders").await, world.list_keys().await);
    for kind in [Kind::Unavailable, Kind::Full, Kind::Corrupt] {
        // A client of its own, so that its refusal is the first of its kind. An equal one is only
        // counted, once the server has recorded the first: which it does by itself as soon as the
        // store takes records again.
        let stranger = world
            .register(Client { client_id: format!("stranger-{kind:?}"), ..refreshing() })
            .await;
        faulty.always(Some(Act::FailBefore(kind)));
        for rpc in Rpc::ALL.into_iter().filter(|rpc| rpc.action().is_some()) {
            let refused = world.ask(rpc, &token, &mark).await.unwrap_err();
            assert!(is_failure(&refused), "{rpc:?} {refused:?}");
        }
        for refused in [
            world.token(&mark.client, &[]).await.map(drop).unwrap_err(),
            world.token(&stranger, &["not:mine"]).await.map(drop).unwrap_err(),
            world
                .token(&Caller { secret: "jcs_wrong".to_owned(), ..mark.client.clone() }, &[])
                .await
                .map(drop)
                .unwrap_err(),
            world.refresh(&mark.client, &mark.refresh_token).await.map(drop).unwrap_err(),
            world.revoke(&mark.client, &mark.access_token).await.unwrap_err(),
            world.revoke(&mark.client, &mark.refresh_token).await.unwrap_err(),
        ] {
            assert!(is_failure(&refused), "{refused:?}");
        }
        let judged = world
            .judged_from_memory(
                &faulty,
                Act::FailBefore(kind),
                [&mark.access_token, &ended.access_token],
            )
            .await;
        assert_eq!(judged, [true, false], "{kind:?}");
        let after = (world.get("orders").await, world.list_keys().await);
        assert_eq!(without_uses(after), without_uses(before.clone()), "{kind:?}");
    }
    assert!(world.refresh(&mark.client, &mark.refresh_token).await.is_ok());
}

impl World {
    /// Judgements of tokens that the administrator is answered while every call of the store meets
    /// `act`; none does afterwards.
    ///
    /// Nodes that share a store forget every client once a minute, and when they may have missed a
    /// change: then the administrator itself has to be read from the store, and asks again.
    pub async fn judged_from_memory<const N: usize>(
        &self,
        faulty: &FaultyStore,
        act: Act,
        tokens: [&str; N],
    ) -> [bool; N] {
        loop {
            faulty.always(None);
            self.introspect("x").await;
            let reads = faulty.reads.load(SeqCst);
            faulty.always(Some(act));
            let mut judged = [false; N];
            let mut refused = None;
            for (token, is_active) in tokens.iter().zip(&mut judged) {
                match self.introspect_as(&self.admin, token).await {
                    Ok(answer) => *is_active = answer.active.unwrap(),
                    Err(status) => refused = Some(status),
                }
            }
            faulty.always(None);
            let Some(refused) = refused else { return judged };
            assert!(on_mongodb() && faulty.reads.load(SeqCst) > reads, "{refused:?}");
        }
    }
}

fn without_uses<T>((mut client, rest): (Client, T)) -> (Client, T) {
    for secret in &mut client.secrets {
        (secret.use_count, secret.last_used_time) = (0, None);
    }
    (client, rest)
}

/// A server without a working store does not start, and says so in one line.
#[tokio::test]
async fn a_start_over_a_store_that_fails_is_refused() {
    let Kept { faulty, home: _home, .. } = kept_store().await;
    faulty.always(Some(Act::FailBefore(Kind::Unavailable)));
    let dir = TempDir::new().unwrap();
    let config = Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        metrics_listen: String::new(),
        data_dir: dir.path().join("data"),
        ..Config::default()
    };
    let options = jeton::server::Options {
        config,
        dev: true,
        bootstrap: true,
        accept_rollback: false,
        store: Some(faulty),
        clock: None,
    };
    let error = jeton::server::run(options, |_| panic!("it serves"), std::future::pending())
        .await
        .unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(!error.to_string().contains('\n'));
}
