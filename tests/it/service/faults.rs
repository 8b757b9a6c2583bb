//! A store that fails at every call of every RPC: nothing is granted that should not be, nothing is
//! said that is not so, and afterwards everything works.

use jeton::{config::Config, proto::admin::Client, store::Store};
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::support::{
    faulty::{Act, FaultyStore, Kind},
    server::{
        Caller, PreparedServer, Rpc, RpcTarget, TestServer, prepare, reason, refreshing,
        samples_cases,
    },
};

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
    if samples_cases() { &ACTS[1..2] } else { &ACTS }
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
    let (server, faulty) = prepare().await.served().await;
    let (_, no_scope) = server.client_with_token("default", &["orders:read"]).await;
    let (_, of_tenant) = server.client_with_token("elsewhere", &["jeton:admin"]).await;
    let (_, clerk) = server.client_with_token("default", &["jeton:admin:clients"]).await;
    let ended = server.rpc_target("ended", "shop").await;
    server.revoke(&ended.client, &ended.access_token).await.unwrap();
    server.revoke(&ended.client, &ended.refresh_token).await.unwrap();
    let standing = server.rpc_target("standing", "shop").await;
    let mut count = 0;
    for &act in acts() {
        // A call that is refused makes few calls of its own.
        for nth in 1..=if samples_cases() { 1 } else { CALLS / 2 } {
            count += 1;
            let fresh = Client { client_id: format!("fresh-{count}"), ..refreshing() };
            let fresh = server.register(fresh).await;
            let wrong = Caller { secret: "jcs_000000000000_wrong".to_owned(), ..fresh.clone() };
            let chosen = Caller { secret: "a chosen secret".to_owned(), ..fresh.clone() };
            for caller in
                [&wrong, &chosen, &Caller { id: format!("nobody-{count}"), ..fresh.clone() }]
            {
                let (answer, _) = under(&faulty, nth, act, server.token(caller, &[])).await;
                let refused = answer.unwrap_err();
                assert!(
                    reason(&refused) == "INVALID_CLIENT" || is_failure(&refused),
                    "{refused:?}"
                );
                let (answer, _) =
                    under(&faulty, nth, act, server.introspect_as(caller, &standing.access_token))
                        .await;
                answer.unwrap_err();
                let (answer, _) =
                    under(&faulty, nth, act, server.revoke(caller, &standing.access_token)).await;
                answer.unwrap_err();
            }
            let (answer, _) =
                under(&faulty, nth, act, server.token(&fresh, &["jeton:admin"])).await;
            answer.unwrap_err();
            let (answer, _) =
                under(&faulty, nth, act, server.refresh(&fresh, &standing.refresh_token)).await;
            answer.unwrap_err();
            let (answer, _) =
                under(&faulty, nth, act, server.refresh(&ended.client, &ended.refresh_token)).await;
            answer.unwrap_err();
            let (answer, _) =
                under(&faulty, nth, act, server.introspect_as(&fresh, &standing.access_token))
                    .await;
            answer.unwrap_err();
            let (answer, _) =
                under(&faulty, nth, act, server.introspect_as(&server.admin, &ended.access_token))
                    .await;
            assert!(answer.is_err() || answer.unwrap().active == Some(false));
            for rpc in Rpc::ALL {
                for token in [&no_scope, &of_tenant, &ended.access_token] {
                    let (answer, _) =
                        under(&faulty, nth, act, server.call_rpc(rpc, token, &standing)).await;
                    answer.unwrap_err();
                }
                if rpc.admin_scope() != "jeton:admin:clients" {
                    let (answer, _) =
                        under(&faulty, nth, act, server.call_rpc(rpc, &clerk, &standing)).await;
                    answer.unwrap_err();
                }
            }
        }
        assert!(server.is_active(&standing.access_token).await, "nothing was ended either");
    }
    assert!(server.refresh(&standing.client, &standing.refresh_token).await.is_ok());
}

/// True if the effect of an RPC of administration is there.
async fn came_true(server: &TestServer, rpc: Rpc, mark: &RpcTarget) -> bool {
    let id = &mark.client.id;
    match rpc {
        Rpc::UpdateClient => server.get(id).await.display_name == "changed",
        Rpc::DisableClient => {
            server.get(id).await.disabled && !server.is_active(&mark.access_token).await
        }
        Rpc::EnableClient => !server.get(id).await.disabled,
        Rpc::DeleteClient => {
            server.try_get(id).await.is_err() && !server.is_active(&mark.access_token).await
        }
        Rpc::AddSecret => server.get(id).await.secrets.len() == 2,
        Rpc::RetireSecret => server.get(id).await.secrets.is_empty(),
        Rpc::RevokeKey | Rpc::RevokeSigner => {
            server.list_keys().await.iter().all(|key| key.kid != mark.kid || key.state == 4)
        }
        Rpc::RevokeClient
        | Rpc::RevokeTenant
        | Rpc::RevokeSubject
        | Rpc::RevokeFamily
        | Rpc::RevokeToken => !server.is_active(&mark.access_token).await,
        Rpc::AssignAudience => {
            let owners = server.owners(&server.admin_token().await).await;
            owners.contains(&(format!("{}:new", mark.audience), mark.tenant.clone()))
        }
        Rpc::ReleaseAudience => server
            .owners(&server.admin_token().await)
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
        | Rpc::VerifyChain
        | Rpc::VerifyTrail => true,
    }
}

/// F01, I7: an administration RPC that meets a fault fails as one or has done what it says; asked
/// again it does it.
#[tokio::test]
async fn administration_fails_clean_at_every_call_and_works_again() {
    let (server, faulty) = prepare().await.served().await;
    let mut met_by = std::collections::HashMap::new();
    for rpc in Rpc::ALL {
        for &act in acts() {
            for nth in 1..=CALLS {
                let label = format!("{rpc:?} {nth} {act:?}");
                let mut mark = server
                    .rpc_target(&format!("{rpc:?}-{}", met_by.len()), &format!("t{}", met_by.len()))
                    .await;
                if matches!(rpc, Rpc::RevokeKey | Rpc::RevokeSigner) {
                    mark.kid = server
                        .list_keys()
                        .await
                        .into_iter()
                        .find(|key| key.state == 1)
                        .unwrap()
                        .kid;
                }
                let token = server.admin_token().await;
                let (answer, met) =
                    under(&faulty, nth, act, server.call_rpc(rpc, &token, &mark)).await;
                met_by.insert(label.clone(), met);
                match answer {
                    Ok(_) => assert!(
                        came_true(&server, rpc, &mark).await,
                        "{label}: said to be done, and is not"
                    ),
                    Err(refused) => {
                        assert!(met && is_failure(&refused), "{label}: {refused:?}");
                        let again = server.call_rpc(rpc, &token, &mark).await;
                        let done = again.is_ok()
                            // It had been done, and its answer was lost.
                            || (matches!(act, Act::FailAfter(_)) && matches!(again.as_ref().unwrap_err().code(), Code::NotFound | Code::FailedPrecondition))
                            // The key that was revoked, or the client that was only disabled before
                            // it failed to be deleted.
                            || came_true(&server, rpc, &mark).await;
                        assert!(done, "{label}: {again:?}");
                        if !matches!(rpc, Rpc::AddSecret) {
                            assert!(
                                came_true(&server, rpc, &mark).await,
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
    assert_eq!(server.verify_chain().await.intact, Some(true));
}

/// F01, I3, I7: the same for what clients ask for themselves.
#[tokio::test]
async fn token_calls_fail_clean_at_every_call_and_work_again() {
    let (server, faulty) = prepare().await.served().await;
    let mut count = 0;
    for &act in acts() {
        for nth in 1..=CALLS {
            count += 1;
            let label = format!("{nth} {act:?}");
            let mark = server.rpc_target(&format!("m{count}"), "shop").await;
            let caller = &mark.client;

            let (issued, met) = under(&faulty, nth, act, server.token(caller, &[])).await;
            match issued {
                Ok(issued) => assert!(server.is_active(&issued.access_token).await, "{label}"),
                Err(refused) => assert!(met && is_failure(&refused), "{label}: {refused:?}"),
            }
            // A refresh whose outcome is unknown is asked again inside the grace window: one
            // successor, and only one.
            let (refreshed, met) =
                under(&faulty, nth, act, server.refresh(caller, &mark.refresh_token)).await;
            let again = server.refresh(caller, &mark.refresh_token).await.unwrap();
            match refreshed {
                Ok(refreshed) => {
                    assert_eq!(refreshed.refresh_token, again.refresh_token, "{label}")
                }
                Err(refused) => assert!(met && is_failure(&refused), "{label}: {refused:?}"),
            }
            let next = server.refresh(caller, &again.refresh_token).await.unwrap();

            // A revocation that was answered is one.
            for token in [&next.access_token, &next.refresh_token] {
                let (revoked, met) = under(&faulty, nth, act, server.revoke(caller, token)).await;
                if let Err(refused) = revoked {
                    assert!(met && is_failure(&refused), "{label}: {refused:?}");
                    server.revoke(caller, token).await.unwrap();
                }
            }
            assert!(!server.is_active(&next.access_token).await, "{label}");
            assert_eq!(
                reason(&server.refresh(caller, &next.refresh_token).await.unwrap_err()),
                "INVALID_GRANT",
                "{label}"
            );

            // A judgement is right, or there is none.
            let fresh = server.token(caller, &[]).await.unwrap().access_token;
            for (token, stands) in [(&fresh, true), (&next.access_token, false)] {
                let (judged, met) =
                    under(&faulty, nth, act, server.introspect_as(&server.admin, token)).await;
                match judged {
                    Ok(judged) => assert_eq!(judged.active, Some(stands), "{label}"),
                    Err(refused) => assert!(met && is_failure(&refused), "{label}: {refused:?}"),
                }
            }
        }
    }
    assert_eq!(server.verify_chain().await.intact, Some(true));
}

/// O03: while no record can be written, nothing is changed and nothing is issued; judging goes on
/// from memory.
#[tokio::test]
async fn without_a_trail_nothing_is_changed() {
    let (server, faulty) = prepare().await.served().await;
    let mark = server.rpc_target("orders", "shop").await;
    let ended = server.rpc_target("ended", "shop").await;
    server.revoke(&ended.client, &ended.access_token).await.unwrap();
    let token = server.admin_token().await;
    let before = (server.get("orders").await, server.list_keys().await);
    for kind in [Kind::Unavailable, Kind::Full, Kind::Corrupt] {
        // A client of its own, so that its refusal is the first of its kind. An equal one is only
        // counted, once the server has recorded the first: which it does by itself as soon as the
        // store takes records again.
        let stranger = server
            .register(Client { client_id: format!("stranger-{kind:?}"), ..refreshing() })
            .await;
        faulty.always(Some(Act::FailBefore(kind)));
        for rpc in Rpc::ALL.into_iter().filter(|rpc| rpc.action().is_some()) {
            let refused = server.call_rpc(rpc, &token, &mark).await.unwrap_err();
            assert!(is_failure(&refused), "{rpc:?} {refused:?}");
        }
        for refused in [
            server.token(&mark.client, &[]).await.map(drop).unwrap_err(),
            server.token(&stranger, &["not:mine"]).await.map(drop).unwrap_err(),
            server
                .token(&Caller { secret: "jcs_wrong".to_owned(), ..mark.client.clone() }, &[])
                .await
                .map(drop)
                .unwrap_err(),
            server.refresh(&mark.client, &mark.refresh_token).await.map(drop).unwrap_err(),
            server.revoke(&mark.client, &mark.access_token).await.unwrap_err(),
            server.revoke(&mark.client, &mark.refresh_token).await.unwrap_err(),
        ] {
            assert!(is_failure(&refused), "{refused:?}");
        }
        let judged = server
            .active_from_memory(
                &faulty,
                Act::FailBefore(kind),
                [&mark.access_token, &ended.access_token],
            )
            .await;
        assert_eq!(judged, [true, false], "{kind:?}");
        let after = (server.get("orders").await, server.list_keys().await);
        assert_eq!(without_uses(after), without_uses(before.clone()), "{kind:?}");
    }
    assert!(server.refresh(&mark.client, &mark.refresh_token).await.is_ok());
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
    let PreparedServer { faulty, home: _home, .. } = prepare().await;
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
