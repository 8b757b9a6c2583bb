//! The audit trail: what is recorded, who reads it how, and that it cannot be altered unnoticed.

use std::{collections::BTreeSet, path::Path, time::Duration};

use futures_util::StreamExt;
use jeton::{
    admin::audit::verify,
    config::Config,
    crypto::{chain::ChainKey, master, seal::Sealer},
    proto::admin::{
        ChainVerdict, Client, Event, EventFilter, KnownHead, ListEventsRequest, ListEventsResponse,
        TailEventsRequest, VerifyChainRequest, VerifyChainResponse,
    },
    store::{Store, embedded::Embedded},
};
use rusqlite::Connection;
use tonic::{Code, Status, Streaming};

use crate::support::server::{
    Caller, Rpc, START, TestServer, bearer, blamed, client, client_of, has_no_files, reason,
    refreshing,
};

/// Alters a database, given the newest sequence in it.
type Tamper = fn(&Connection, i64);
type Tail = Streaming<jeton::proto::admin::TailEventsResponse>;

/// Only a test that fails waits for this long.
const PATIENCE: Duration = Duration::from_secs(120);

/// So many events of a stream, or a failure if they do not come.
pub async fn take(stream: Tail, count: usize) -> Vec<Event> {
    let events = stream.take(count).map(|event| event.unwrap().event.unwrap()).collect::<Vec<_>>();
    tokio::time::timeout(PATIENCE, events).await.expect("the events come")
}

async fn page(
    server: &TestServer,
    filter: &EventFilter,
    size: i32,
    token: &str,
) -> Result<ListEventsResponse, Status> {
    let message = ListEventsRequest {
        filter: Some(filter.clone()),
        page_size: size,
        page_token: token.to_owned(),
    };
    server
        .audit()
        .list_events(server.as_admin(message).await)
        .await
        .map(tonic::Response::into_inner)
}

/// Some of everything, at different times.
async fn bustle(server: &TestServer) {
    for tenant in ["shop", "bank"] {
        let mark = server.rpc_target(&format!("orders-{tenant}"), tenant).await;
        server.advance(10);
        server
            .token(&Caller { secret: "jcs_wrong".to_owned(), ..mark.client.clone() }, &[])
            .await
            .unwrap_err();
        server.token(&mark.client, &["not:mine"]).await.unwrap_err();
        let refreshed = server.refresh(&mark.client, &mark.refresh_token).await.unwrap();
        server.advance(60);
        server.refresh(&mark.client, &mark.refresh_token).await.unwrap_err();
        server.refresh(&mark.client, &refreshed.refresh_token).await.unwrap_err();
        let token = server.admin_token().await;
        for rpc in [
            Rpc::UpdateClient,
            Rpc::AddSecret,
            Rpc::RetireSecret,
            Rpc::RevokeToken,
            Rpc::DisableClient,
        ] {
            server.call_rpc(rpc, &token, &mark).await.unwrap();
        }
        server
            .call_rpc(
                Rpc::ListKeys,
                &server.client_with_token(tenant, &["orders:read"]).await.1,
                &mark,
            )
            .await
            .unwrap_err();
    }
    // What was answered before its record was on disk is there after a write that waits.
    server.client_with_token("shop", &["orders:read"]).await;
}

fn admits(filter: &EventFilter, event: &Event) -> bool {
    let same = |want: &str, is: &str| want.is_empty() || want == is;
    let at = |time: &Option<prost_types::Timestamp>| {
        time.map(|time| (time.seconds, time.nanos)).unwrap()
    };
    let action = if filter.action.ends_with('.') {
        event.action.starts_with(&filter.action)
    } else {
        same(&filter.action, &event.action)
    };
    action
        && same(&filter.tenant, &event.tenant)
        && filter.actor.as_ref().is_none_or(|_| filter.actor == event.actor)
        && same(&filter.outcome, &event.outcome)
        && same(&filter.target, &event.target)
        && filter.start_time.is_none_or(|_| at(&event.time) >= at(&filter.start_time))
        && filter.end_time.is_none_or(|_| at(&event.time) < at(&filter.end_time))
}

/// Each field of a filter alone, and some together.
fn filters(all: &[Event]) -> Vec<EventFilter> {
    let at = |seconds: i64| Some(prost_types::Timestamp { seconds, nanos: 0 });
    let none = EventFilter::default;
    let mut filters = vec![none()];
    filters.extend(
        ["shop", "bank", "default", "nobody"]
            .map(|tenant| EventFilter { tenant: tenant.to_owned(), ..none() }),
    );
    filters.extend(
        ["bootstrap", "orders-shop", "orders"]
            .map(|id| EventFilter { actor: client(id), ..none() }),
    );
    filters.extend(
        ["ok", "refused"].map(|outcome| EventFilter { outcome: outcome.to_owned(), ..none() }),
    );
    let actions: BTreeSet<&str> = all.iter().map(|event| event.action.as_str()).collect();
    filters.extend(
        actions.iter().map(|action| EventFilter { action: (*action).to_owned(), ..none() }),
    );
    filters.extend(
        ["token.", "client.", "c", "client", ".", "token.issue"]
            .map(|action| EventFilter { action: action.to_owned(), ..none() }),
    );
    filters.extend(
        ["orders-shop", "", "\"", "%"]
            .map(|target| EventFilter { target: target.to_owned(), ..none() }),
    );
    filters.push(EventFilter { target: all[3].target.clone(), ..none() });
    filters.push(EventFilter { start_time: at(START + 10), ..none() });
    filters.push(EventFilter { end_time: at(START + 10), ..none() });
    filters.push(EventFilter { start_time: at(START + 10), end_time: at(START + 70), ..none() });
    filters.push(EventFilter { start_time: at(START + 70), end_time: at(START + 70), ..none() });
    filters.push(EventFilter {
        tenant: "shop".to_owned(),
        actor: client("orders-shop"),
        action: "refresh_token.".to_owned(),
        outcome: "refused".to_owned(),
        start_time: at(START + 70),
        ..none()
    });
    filters
}

#[tokio::test]
async fn events_are_listed_newest_first_by_every_filter_in_pages() {
    let server = TestServer::start().await;
    bustle(&server).await;
    let all = server.trail(EventFilter::default()).await;
    let head = all[0].sequence;
    assert_eq!(
        all.iter().map(|event| event.sequence).collect::<Vec<_>>(),
        (1..=head).rev().collect::<Vec<_>>()
    );
    for filter in filters(&all) {
        // What is asked here is itself not in the list: it came later.
        let expected: Vec<&Event> = all.iter().filter(|event| admits(&filter, event)).collect();
        // Page by page where there are few, so that every end is met.
        for size in [if expected.len() < 8 { 1 } else { 7 }, 1_000] {
            let (mut seen, mut next) = (Vec::new(), String::new());
            loop {
                let page = page(&server, &filter, size, &next).await.unwrap();
                assert!(page.events.len() <= usize::try_from(size).unwrap());
                seen.extend(page.events);
                next = page.next_page_token;
                if next.is_empty() {
                    break;
                }
            }
            let old: Vec<&Event> = seen.iter().filter(|event| event.sequence <= head).collect();
            assert_eq!(old, expected, "{filter:?}");
        }
    }
}

/// N03, for this list; and filters are held to their form.
#[tokio::test]
async fn page_tokens_and_filters_of_events_are_checked() {
    let server = TestServer::start().await;
    bustle(&server).await;
    let filter = EventFilter { tenant: "shop".to_owned(), ..EventFilter::default() };
    let given = page(&server, &filter, 1, "").await.unwrap().next_page_token;
    assert_eq!(page(&server, &filter, 1, &given).await.unwrap().events.len(), 1);
    for bad in ["1", "AAAA", &given[1..], &format!("{given}A"), "0 or 1=1"] {
        assert_eq!(
            blamed(&page(&server, &filter, 1, bad).await.unwrap_err()),
            "page_token",
            "{bad}"
        );
    }
    let others = [
        EventFilter::default(),
        EventFilter { tenant: "bank".to_owned(), ..EventFilter::default() },
        EventFilter { outcome: "ok".to_owned(), ..filter.clone() },
    ];
    for other in others {
        assert_eq!(
            blamed(&page(&server, &other, 1, &given).await.unwrap_err()),
            "page_token",
            "{other:?}"
        );
    }
    let at = |seconds, nanos| Some(prost_types::Timestamp { seconds, nanos });
    let none = EventFilter::default;
    let unfit = [
        ("filter.tenant", EventFilter { tenant: "{\"$ne\":\"\"}".to_owned(), ..none() }),
        ("filter.actor.client_id", EventFilter { actor: client("a b"), ..none() }),
        ("filter.outcome", EventFilter { outcome: "OK".to_owned(), ..none() }),
        ("filter.action", EventFilter { action: "x".repeat(257), ..none() }),
        ("filter.target", EventFilter { target: "x".repeat(257), ..none() }),
        ("filter.start_time", EventFilter { start_time: at(-1, 0), ..none() }),
        ("filter.start_time", EventFilter { start_time: at(0, 1_000_000_000), ..none() }),
        ("filter.end_time", EventFilter { end_time: at(i64::MAX, 0), ..none() }),
    ];
    for (field, filter) in unfit {
        assert_eq!(blamed(&page(&server, &filter, 1, "").await.unwrap_err()), field);
        let tailed = server
            .audit()
            .tail_events(
                server
                    .as_admin(TailEventsRequest { filter: Some(filter), ..Default::default() })
                    .await,
            )
            .await;
        assert_eq!(blamed(&tailed.unwrap_err()), field);
    }
    assert_eq!(blamed(&page(&server, &none(), -1, "").await.unwrap_err()), "page_size");
}

/// B23: the stream carries exactly the new records that its filter admits, in order, and ends with
/// the server, by an error.
#[tokio::test]
async fn the_tail_carries_what_is_new_until_the_server_stops() {
    let mut server = TestServer::start().await;
    bustle(&server).await;
    let head = server.trail(EventFilter::default()).await[0].sequence;
    let token = server.admin_token().await;
    let filters = [
        EventFilter::default(),
        EventFilter { tenant: "store".to_owned(), ..EventFilter::default() },
        EventFilter { action: "client.".to_owned(), ..EventFilter::default() },
        EventFilter { outcome: "refused".to_owned(), ..EventFilter::default() },
    ];
    let mut streams = Vec::new();
    for filter in &filters {
        let message = TailEventsRequest { filter: Some(filter.clone()), ..Default::default() };
        streams
            .push(server.audit().tail_events(bearer(message, &token)).await.unwrap().into_inner());
    }
    let mark = server.rpc_target("later", "store").await;
    for rpc in [Rpc::UpdateClient, Rpc::DisableClient, Rpc::EnableClient, Rpc::DeleteClient] {
        server.call_rpc(rpc, &token, &mark).await.unwrap();
    }
    server.token(&mark.client, &[]).await.unwrap_err();
    server.client_with_token("shop", &["orders:read"]).await;
    let message = ListEventsRequest { page_size: 1_000, ..ListEventsRequest::default() };
    let mut new =
        server.audit().list_events(bearer(message, &token)).await.unwrap().into_inner().events;
    new.retain(|event| event.sequence > head + 1);
    new.reverse();
    server.end().await;
    for (filter, stream) in filters.iter().zip(streams) {
        let rest = stream.map(|event| event.map(|event| event.event.unwrap())).collect::<Vec<_>>();
        let seen = tokio::time::timeout(PATIENCE, rest).await.expect("the stream ends");
        let end = seen.last().unwrap().as_ref().unwrap_err();
        assert_eq!((end.code(), reason(end).as_str()), (Code::Unavailable, "SERVER_STOPPING"));
        let seen: Vec<Event> = seen.into_iter().filter_map(Result::ok).collect();
        let expected: Vec<&Event> = new.iter().filter(|event| admits(filter, event)).collect();
        assert!(!expected.is_empty());
        assert_eq!(seen.iter().collect::<Vec<_>>(), expected, "{filter:?}");
    }
}

/// O03: whoever changes something leaves a record of it under the call's own id, made before the
/// answer.
#[tokio::test]
async fn every_change_that_is_answered_is_on_record() {
    let server = TestServer::start().await;
    let mut token = server.admin_token().await;
    for rpc in Rpc::ALL {
        let mut mark = server.rpc_target(&format!("for-{rpc:?}"), "shop").await;
        if matches!(rpc, Rpc::RevokeKey | Rpc::RevokeSigner) {
            // The prepared key: nothing was signed with it yet.
            mark.kid = server.list_keys().await.into_iter().find(|key| key.state == 1).unwrap().kid;
        }
        let id = format!("o03-{rpc:?}");
        let head = server.trail(EventFilter::default()).await[0].sequence;
        let dress = |request: &mut tonic::Request<()>| {
            request
                .metadata_mut()
                .insert("authorization", format!("Bearer {token}").parse().unwrap());
            request.metadata_mut().insert("x-request-id", id.parse().unwrap()).map(drop)
        };
        server.call_rpc_with(rpc, &mark, dress).await.unwrap();
        token = server.admin_token().await;
        let events: Vec<Event> = server
            .trail(EventFilter::default())
            .await
            .into_iter()
            .filter(|event| event.request_id == id)
            .collect();
        let Some(action) = rpc.action() else {
            assert!(events.is_empty(), "{rpc:?} {events:?}");
            continue;
        };
        let found: Vec<&Event> = events.iter().filter(|event| event.action == action).collect();
        assert_eq!(found.len(), 1, "{rpc:?} {events:?}");
        let event = found[0];
        assert!(
            event.sequence > head
                && event.outcome == "ok"
                && client_of(event) == "bootstrap"
                && event.peer == "127.0.0.1"
        );
        // Another tenant learns the administrator's id and no more.
        let token = event.auth.as_ref().filter(|auth| auth.method == "access_token");
        let is_own = event.tenant == "default";
        assert_eq!(token.is_some_and(|token| token.id.len() == 36), is_own, "{rpc:?} {event:?}");
        assert_eq!(event.auth.is_some(), is_own, "{rpc:?} {event:?}");
        let target = match rpc {
            Rpc::CreateClient => continue,
            Rpc::RetireSecret => format!("{}/{}", mark.client.id, mark.secret_id),
            Rpc::AddSecret => {
                assert!(event.target.starts_with(&format!("{}/", mark.client.id)));
                continue;
            }
            Rpc::RevokeTenant => "shop".to_owned(),
            Rpc::RevokeSubject => format!("client:{}", mark.client.id),
            Rpc::RotateKeys => String::new(),
            Rpc::RevokeKey | Rpc::RevokeSigner => mark.kid.clone(),
            Rpc::RevokeToken => mark.jti.clone(),
            Rpc::AssignAudience => format!("{}:new", mark.audience),
            Rpc::ReleaseAudience => mark.audience.clone(),
            Rpc::UpdateClient
            | Rpc::DisableClient
            | Rpc::EnableClient
            | Rpc::DeleteClient
            | Rpc::RevokeFamily
            | Rpc::RevokeClient => mark.client.id.clone(),
            Rpc::GetClient
            | Rpc::ListClients
            | Rpc::ListAudiences
            | Rpc::ListKeys
            | Rpc::ListEvents
            | Rpc::TailEvents
            | Rpc::VerifyChain
            | Rpc::VerifyTrail => {
                unreachable!("they leave no record")
            }
        };
        assert_eq!(event.target, target, "{rpc:?}");
        if rpc == Rpc::RevokeFamily {
            assert_eq!(event.family, mark.family);
        }
        if rpc.admin_scope() == "jeton:admin:revocations" {
            assert_eq!(event.reason, "asked", "{rpc:?}");
        }
    }
}

/// O03, for the callers' own RPCs; refusals that matter are on record too.
#[tokio::test]
async fn every_token_and_every_refusal_is_on_record() {
    let server = TestServer::start().await;
    let mark = server.rpc_target("orders", "shop").await;
    let other = server.register(Client { client_id: "other".to_owned(), ..refreshing() }).await;
    let spent = mark.refresh_token.clone();
    let refreshed = server.refresh(&mark.client, &spent).await.unwrap();
    server.refresh(&mark.client, &spent).await.unwrap();
    server.revoke(&other, &refreshed.access_token).await.unwrap();
    server.revoke(&other, &refreshed.refresh_token).await.unwrap();
    server.revoke(&mark.client, &refreshed.access_token).await.unwrap();
    server.refresh(&other, &refreshed.refresh_token).await.unwrap_err();
    server.advance(60);
    server.refresh(&mark.client, &spent).await.unwrap_err();
    server.introspect_as(&mark.client, &mark.access_token).await.unwrap_err();
    server.token(&mark.client, &["not:mine"]).await.unwrap_err();
    server
        .token(&Caller { secret: "jcs_wrong".to_owned(), ..mark.client.clone() }, &[])
        .await
        .unwrap_err();
    server
        .token(&Caller { id: "nobody".to_owned(), ..mark.client.clone() }, &[])
        .await
        .unwrap_err();
    server.register(Client::default()).await;
    for (action, outcome, reasons) in [
        ("token.refreshed", "ok", &[""][..]),
        ("refresh_token.repeated", "ok", &[""]),
        ("token.revoke_refused", "refused", &["other_client", "other_client"]),
        ("token.revoked", "ok", &[""]),
        ("refresh_token.refused", "refused", &["invalid_grant"]),
        ("refresh_token.reused", "refused", &["invalid_grant"]),
        ("access.refused", "refused", &["invalid_scope", "insufficient_scope"]),
        ("client.authentication_failed", "refused", &["invalid_client", "invalid_client"]),
    ] {
        let events = server.trail_of(action).await;
        let found: Vec<&str> = events.iter().map(|event| event.reason.as_str()).collect();
        assert_eq!(found, reasons, "{action}");
        assert!(
            events.iter().all(|event| event.outcome == outcome && !event.request_id.is_empty()),
            "{events:?}"
        );
    }
    let failed = server.trail_of("client.authentication_failed").await;
    // There is no calling client: the claim is the target where it names a client, whose tenant
    // sees it (AUDIT AZ12).
    assert!(failed.iter().all(|event| client_of(event).is_empty()));
    let seen: Vec<_> =
        failed.iter().map(|event| (event.target.as_str(), event.tenant.as_str())).collect();
    assert_eq!(seen, [("", ""), ("orders", mark.tenant.as_str())]);
}

/// O05: times are those of the calls, to the millisecond, and the order is the sequence's.
#[tokio::test]
async fn records_carry_the_time_of_the_call_and_a_sequence_without_gaps() {
    let server = TestServer::start().await;
    server.clock.advance(Duration::from_millis(1_234));
    server.create(Client { client_id: "orders".to_owned(), ..Client::default() }).await.unwrap();
    let event = &server.trail_of("client.created").await[0];
    let time = event.time.unwrap();
    assert_eq!((time.seconds, time.nanos), (START + 1, 234_000_000));
    let all = server.trail(EventFilter::default()).await;
    let times: Vec<_> =
        all.iter().map(|event| event.time.map(|time| (time.seconds, time.nanos))).collect();
    assert!(times.is_sorted_by(|newer, older| newer >= older));
    assert!(all.iter().all(|event| event.hash.len() == 64 && event.node == all[0].node));
}

#[tokio::test]
async fn an_untouched_chain_is_intact_and_holds_against_a_head_noted_elsewhere() {
    let server = TestServer::start().await;
    bustle(&server).await;
    let first = only(server.verify_chain().await);
    assert_eq!(
        (first.intact, first.first_bad_sequence, first.problem.as_str()),
        (Some(true), 0, "")
    );
    assert_eq!(first.checked, first.head_sequence);
    assert_eq!(first.chain, server.trail(EventFilter::default()).await[0].chain);
    let server = server.restart().await;
    let verify = async |sequence: i64, hash: &str| {
        let known = vec![KnownHead { chain: first.chain.clone(), sequence, hash: hash.to_owned() }];
        let message = VerifyChainRequest { chain: String::new(), known };
        server
            .audit()
            .verify_chain(server.as_admin(message).await)
            .await
            .map(|answer| only(answer.into_inner()))
    };
    let held = verify(first.head_sequence, &first.head_hash).await.unwrap();
    assert!(held.intact == Some(true) && held.head_sequence > first.head_sequence);
    let differs = verify(first.head_sequence - 1, &first.head_hash).await.unwrap();
    assert_eq!(
        (differs.intact, differs.first_bad_sequence),
        (Some(false), first.head_sequence - 1)
    );
    let cut = verify(held.head_sequence + 1_000, &first.head_hash).await.unwrap();
    assert_eq!(cut.intact, Some(false));
    assert!(cut.first_bad_sequence > held.head_sequence, "{cut:?}");
    for (sequence, hash) in [
        (1, ""),
        (0, first.head_hash.as_str()),
        (-1, &first.head_hash),
        (1, "abc"),
        (1, &"é".repeat(32)),
    ] {
        assert_eq!(
            reason(&verify(sequence, hash).await.unwrap_err()),
            "INVALID_REQUEST",
            "{sequence} {hash}"
        );
    }
    let (_, tenant) = server.client_with_token("shop", &["jeton:admin"]).await;
    let refused = server
        .audit()
        .verify_chain(bearer(VerifyChainRequest::default(), &tenant))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

/// The verdict on the only chain, which must agree with the whole.
fn only(verdict: VerifyChainResponse) -> ChainVerdict {
    let [chain] = <[ChainVerdict; 1]>::try_from(verdict.chains).unwrap();
    assert_eq!((verdict.intact, verdict.checked), (chain.intact, chain.checked));
    chain
}

/// O04: a chain that is not there is missed if a head of it was noted, and only then; one chain can
/// be asked for alone.
#[tokio::test]
async fn a_chain_that_is_gone_is_missed_by_whoever_noted_its_head() {
    let server = TestServer::start().await;
    let own = only(server.verify_chain().await).chain;
    let verify = async |chain: &str, known: &[(&str, i64)]| {
        let hash = "ab".repeat(32);
        let head = |(chain, sequence): &(&str, i64)| KnownHead {
            chain: (*chain).to_owned(),
            sequence: *sequence,
            hash: hash.clone(),
        };
        let message =
            VerifyChainRequest { chain: chain.to_owned(), known: known.iter().map(head).collect() };
        server
            .audit()
            .verify_chain(server.as_admin(message).await)
            .await
            .map(tonic::Response::into_inner)
    };
    let missing = verify("", &[("zz-gone", 3), ("gone", 7)]).await.unwrap();
    assert_eq!(missing.intact, Some(false));
    let told: Vec<_> = missing
        .chains
        .iter()
        .map(|it| (it.chain.as_str(), it.intact.unwrap(), it.first_bad_sequence))
        .collect();
    assert_eq!(told, [("gone", false, 1), (own.as_str(), true, 0), ("zz-gone", false, 1)]);
    assert_eq!(missing.chains[0].problem, "the whole chain is missing");
    assert_eq!(missing.checked, missing.chains[1].checked);
    assert_eq!(only(verify("gone", &[("gone", 7)]).await.unwrap()).intact, Some(false));
    assert_eq!(only(verify(&own, &[]).await.unwrap()).intact, Some(true));
    assert_eq!(reason(&verify("gone", &[]).await.unwrap_err()), "NOT_FOUND");
    // What is known must be of what is read, and bounded.
    assert_eq!(blamed(&verify(&own, &[("gone", 7)]).await.unwrap_err()), "known.chain");
    assert_eq!(blamed(&verify("", &[("", 7)]).await.unwrap_err()), "known.chain");
    assert_eq!(blamed(&verify("", &[(own.as_str(), 0)]).await.unwrap_err()), "known.sequence");
    assert_eq!(blamed(&verify("", &vec![("gone", 1); 10_001]).await.unwrap_err()), "known");
    assert_eq!(verify("", &vec![("gone", 1); 10_000]).await.unwrap().chains.len(), 2);
}

/// A stopped server's database after `tamper`.
async fn tampered(tamper: impl FnOnce(&Connection, i64)) -> TestServer {
    let mut server = TestServer::start().await;
    bustle(&server).await;
    server.end().await;
    let connection = Connection::open(server.data_dir().join("jeton.db")).unwrap();
    let head =
        connection.query_row("SELECT max(sequence) FROM audit", [], |row| row.get(0)).unwrap();
    tamper(&connection, head);
    connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    server
}

/// The store's own finding about a directory: where the chain is broken, or why it does not even
/// open.
async fn judged(data_dir: &Path) -> Result<Option<(u64, String)>, String> {
    let master = master::load_or_make(&data_dir.join("master.key"), false).unwrap();
    let key = ChainKey::new(Sealer::new(*master).derive("audit head"));
    let store = Embedded::open(data_dir, &Config::default().node, key.clone())
        .map_err(|error| error.to_string())?;
    let verdicts = verify(&store, &key, None, &[]).await.unwrap();
    store.close().await.unwrap();
    Ok(verdicts.into_iter().find_map(|verdict| verdict.flaw))
}

/// O04: one record deleted, altered or moved, far from the end: the server starts, and verification
/// names the first bad one. Nearer to the end, which opening reads, it does not even start and
/// names it then: that counts.
#[tokio::test]
async fn a_record_tampered_with_in_the_middle_is_named() {
    if has_no_files() {
        return;
    }
    let cases: [(&str, i64); 8] = [
        ("DELETE FROM audit WHERE sequence = 5", 5),
        ("DELETE FROM audit WHERE sequence = 1", 1),
        ("UPDATE audit SET event = replace(event, 'bootstrap', 'bootstrop') WHERE sequence = 4", 4),
        ("UPDATE audit SET event = 'not json' WHERE sequence = 6", 6),
        ("UPDATE audit SET node = 99 WHERE sequence = 3", 3),
        ("UPDATE audit SET hash = zeroblob(32) WHERE sequence = 7", 7),
        (
            "UPDATE audit SET place = -1 WHERE sequence = 5; UPDATE audit SET place = place - 1 WHERE sequence = 6;
             UPDATE audit SET place = (SELECT max(id) << 40 | 6 FROM audit_chains) WHERE place = -1",
            5,
        ),
        ("DELETE FROM audit WHERE sequence = 5; UPDATE audit SET place = place - 1 WHERE \
          sequence BETWEEN 6 AND 9", 5),
    ];
    for (sql, bad) in cases {
        let server = tampered(|connection, _| connection.execute_batch(sql).unwrap()).await;
        let refused =
            judged(&server.data_dir()).await.expect_err("a short chain is read to its beginning");
        assert!(refused.contains(&format!("audit record {bad}:")), "{sql}: {refused}");
    }

    let mut server = TestServer::start().await;
    bustle(&server).await;
    // Past what opening reads.
    for _ in 0..11 {
        let load = (0..100).map(|_| server.token(&server.admin, &[]));
        futures_util::future::join_all(load)
            .await
            .into_iter()
            .for_each(|issued| drop(issued.unwrap()));
    }
    server.end().await;
    let tamper = |dir: &Path, sql: &str| {
        let connection = Connection::open(dir.join("jeton.db")).unwrap();
        connection.execute_batch(sql).unwrap();
        connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    };
    for (sql, bad) in cases {
        let copy = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(server.data_dir()).unwrap() {
            let from = entry.unwrap().path();
            std::fs::copy(&from, copy.path().join(from.file_name().unwrap())).unwrap();
        }
        crate::support::server::adopt(copy.path());
        tamper(copy.path(), sql);
        let flaw = judged(copy.path()).await.expect("it opens").expect("and is broken");
        assert_eq!(flaw.0, u64::try_from(bad).unwrap(), "{sql}: {}", flaw.1);
    }
    // And as an administrator is told.
    let (sql, bad) = cases[0];
    tamper(&server.data_dir(), sql);
    let server = server.restart().await;
    let verdict = only(server.verify_chain().await);
    assert_eq!(
        (verdict.intact, verdict.first_bad_sequence, verdict.checked),
        (Some(false), bad, bad - 1),
        "{verdict:?}"
    );
    assert!(!verdict.problem.is_empty());
}

/// O04: the end of the chain cut off, its last record altered, its head forged. Opening compares
/// the end with what was last acknowledged, so the server does not even start: that counts.
#[tokio::test]
async fn an_end_that_was_tampered_with_is_refused_or_named() {
    if has_no_files() {
        return;
    }
    let cases: [(&str, Tamper); 5] = [
        ("the last record is gone", |connection, head| {
            connection.execute("DELETE FROM audit WHERE sequence = ?1", [head]).unwrap();
        }),
        ("the last ten are gone, the head is not", |connection, head| {
            connection.execute("DELETE FROM audit WHERE sequence > ?1", [head - 10]).unwrap();
        }),
        ("the last ten are gone, and the head says so", |connection, head| {
            connection.execute("DELETE FROM audit WHERE sequence > ?1", [head - 10]).unwrap();
            let sql = "UPDATE head SET sequence = ?1, hash = (SELECT hash FROM audit WHERE \
                       sequence = ?1)";
            connection.execute(sql, [head - 10]).unwrap();
        }),
        ("the last record is altered", |connection, head| {
            let sql = "UPDATE audit SET event = replace(event, '\"ok\"', '\"refused\"') WHERE \
                       sequence = ?1";
            assert_eq!(connection.execute(sql, [head]).unwrap(), 1);
        }),
        ("everything is gone", |connection, _| {
            connection.execute_batch("DELETE FROM audit").unwrap()
        }),
    ];
    for (what, tamper) in cases {
        let server = tampered(tamper).await;
        match judged(&server.data_dir()).await {
            Err(refused) => assert!(!refused.is_empty(), "{what}"),
            Ok(flaw) => assert!(flaw.is_some(), "{what}"),
        }
    }
    let server = tampered(|_, _| {}).await;
    assert_eq!(
        judged(&server.data_dir()).await,
        Ok(None),
        "a database that was only read is whole"
    );
}
