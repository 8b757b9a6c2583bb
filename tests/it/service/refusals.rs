//! Refusals and alarms in the trail: none is lost where the store fails, and none fills it.

use futures_util::{StreamExt, stream};
use jeton::{
    admin::NewSecret,
    clock::Clock,
    model::{Action, Peer, Principal, Stamp},
    oauth::token_endpoint::Request,
    store::ClientStore,
};

use crate::{
    service::rules::{StoreCase, WRONG, caller, few, from, plenty},
    support::{
        faulty::{Act, Kind},
        server::{TestServer, reason, refreshing, unlimited},
    },
};

/// So many calls at once, so that a store that takes long is waited for a few times, not a
/// thousand.
const AT_ONCE: usize = 50;

/// One guess at a client from each of `count` addresses.
async fn guess(bench: &StoreCase, id: &str, count: u16) {
    let wrong = caller(id, "jcs_wrong");
    let guesses = stream::iter(0..count).map(async |n| {
        let [high, low] = n.to_be_bytes();
        bench.answer(Peer::Ip([10, 1, high, low].into()), &wrong).await
    });
    let mut answers = guesses.buffer_unordered(AT_ONCE);
    while let Some(answer) = answers.next().await {
        assert_eq!(answer, "invalid_client");
    }
}

/// AZ7: a refusal that the store does not take is answered as that failure, and recorded once it
/// can be.
#[tokio::test]
async fn a_guess_is_recorded_later_if_the_store_fails() {
    let bench = StoreCase::with(plenty).await;
    let made = bench.register("made", NewSecret::Generated).await;
    assert_eq!(bench.answer(from(1), &made).await, "ok");
    let wrong = caller("made", "jcs_wrong");
    // The record comes before the read that every refusal pays for.
    bench.store.plan_verb("append_soon", Act::FailBefore(Kind::Unavailable));
    assert_eq!(bench.answer(from(1), &wrong).await, "temporarily_unavailable");
    assert_eq!(bench.answer(from(1), &wrong).await, "invalid_client");
    bench.store.plan_verb("append", Act::FailBefore(Kind::Unavailable));
    assert!(bench.services.clients.record_refusals(bench.clock.now(), false).await.is_err());
    assert_eq!(
        bench.refusals().await,
        [
            ("made".to_owned(), "invalid_client".to_owned()),
            ("made".to_owned(), "invalid_client, 1 more".to_owned())
        ]
    );
    // While the store takes no record, no refusal of an authenticated client passes unrecorded
    // either, the first or a later one.
    let other = || Request { scopes: vec!["not:mine".to_owned()], ..Request::default() };
    bench.store.always(Some(Act::FailBefore(Kind::Unavailable)));
    for _ in 0..3 {
        assert_eq!(
            bench.asking(from(1), &made, other()).await.err().unwrap().code(),
            "temporarily_unavailable"
        );
    }
    bench.store.always(None);
    assert_eq!(bench.asking(from(1), &made, other()).await.err().unwrap().code(), "invalid_scope");
    let records = bench.records(Action::AccessRefused).await;
    let reasons: Vec<&str> = records.iter().map(|event| &*event.reason).collect();
    assert_eq!(reasons, ["invalid_scope", "invalid_scope, 3 more"]);
}

/// AZ7: guesses from many addresses stay below every budget and raise an alarm, once, that the
/// client's tenant sees.
#[tokio::test]
async fn guesses_from_many_addresses_raise_an_alarm() {
    let bench = StoreCase::with(few).await;
    bench.register("made", NewSecret::Generated).await;
    guess(&bench, "made", 999).await;
    assert!(bench.records(Action::ClientUnderAttack).await.is_empty());
    guess(&bench, "made", 10).await;
    let raised = bench.records(Action::ClientUnderAttack).await;
    assert_eq!(raised.len(), 1);
    assert_eq!(
        (raised[0].target.as_str(), raised[0].tenant.as_ref().unwrap().as_str()),
        ("made", "default")
    );
}

/// TL14: an authenticated client that is refused again and again is one record a minute, not
/// thousands a second.
#[tokio::test]
async fn equal_refusals_of_a_client_are_one_record() {
    let bench = StoreCase::with(plenty).await;
    let made = bench.register("made", NewSecret::Generated).await;
    for n in 0..500 {
        let request = Request { scopes: vec![format!("not:mine-{n}")], ..Request::default() };
        let refused = bench.asking(from(1), &made, request).await.err().unwrap();
        assert_eq!(refused.code(), "invalid_scope");
    }
    let records = bench.records(Action::AccessRefused).await;
    let reasons: Vec<&str> = records.iter().map(|event| &*event.reason).collect();
    assert_eq!(reasons, ["invalid_scope", "invalid_scope, 499 more"]);
    assert!(
        records.iter().all(|event| event.actor == Some(Principal::Client("made".parse().unwrap())))
    );
}

/// AZ7: what is not compared says nothing about a secret, and may be the right one: it is on record
/// as that, and raises no alarm.
#[tokio::test]
async fn secrets_that_are_not_compared_raise_no_alarm() {
    let bench = StoreCase::with(few).await;
    let made = bench.register("made", NewSecret::Generated).await;
    for _ in 0..6 {
        bench.answer(from(9), &caller("made", &made.secret.replace("jcs_", "jcs_x"))).await;
    }
    let chosen = bench.chosen("chosen").await;
    let mut answers =
        stream::iter(0..1_500).map(|_| bench.answer(from(9), &chosen)).buffer_unordered(AT_ONCE);
    while let Some(answer) = answers.next().await {
        assert_eq!(answer, "slow_down", "the right one");
    }
    drop(answers);
    assert!(bench.records(Action::ClientUnderAttack).await.is_empty());
    let refusals = bench.refusals().await;
    let of: Vec<&str> = refusals
        .iter()
        .filter(|(of, _)| of == "chosen")
        .map(|(_, reason)| reason.as_str())
        .collect();
    assert_eq!(of, ["slow_down", "slow_down, 1499 more"]);
}

/// AZ7: where an address has used up its budget, a guess at a secret that is in use is compared
/// with what is remembered: it counts for the alarm, as every other does.
#[tokio::test]
async fn guesses_that_are_compared_with_what_is_remembered_raise_the_alarm() {
    let bench = StoreCase::with(few).await;
    let chosen = bench.chosen("chosen").await;
    assert_eq!(bench.answer(from(1), &chosen).await, "ok");
    guess(&bench, "chosen", 998).await;
    assert!(bench.records(Action::ClientUnderAttack).await.is_empty());
    for n in 0..4 {
        bench.answer(from(9), &caller(&format!("junk-{n}"), "jcs_junk")).await;
    }
    for n in 0..2 {
        let (answer, work, _) = bench.cost(bench.answer(from(9), &caller("chosen", WRONG))).await;
        assert_eq!((answer, work), ("slow_down", 0), "{n}");
    }
    assert_eq!(bench.records(Action::ClientUnderAttack).await.len(), 1);
}

/// AZ7: an alarm that the store does not take is recorded as soon as it can be.
#[tokio::test]
async fn an_alarm_is_recorded_later_if_the_store_fails() {
    let bench = StoreCase::with(few).await;
    bench.register("made", NewSecret::Generated).await;
    guess(&bench, "made", 999).await;
    bench.store.always(Some(Act::FailBefore(Kind::Unavailable)));
    assert_eq!(
        bench.answer(from(1), &caller("made", "jcs_wrong")).await,
        "temporarily_unavailable"
    );
    bench.store.always(None);
    guess(&bench, "made", 5).await;
    let raised = bench.records(Action::ClientUnderAttack).await;
    let raised: Vec<_> =
        raised.iter().map(|event| (event.target.as_str(), event.reason.as_ref())).collect();
    assert_eq!(raised, [("made", "1 more")]);
}

/// AZ9: so is each report of a record that was put into the store, whichever of them failed first.
#[tokio::test]
async fn reports_of_forged_records_are_recorded_later_if_the_store_fails() {
    let bench = StoreCase::with(plenty).await;
    bench.register("made", NewSecret::Generated).await;
    let genuine = bench.store.client(&"made".parse().unwrap()).await.unwrap().unwrap();
    for name in ["forged-1", "forged-2", "forged-3"] {
        let mut forged = genuine.clone();
        forged.id = name.parse().unwrap();
        let event = Stamp::internal(bench.clock.now()).done(Action::ClientCreated, name);
        bench.store.create_client(&forged, event).await.unwrap();
        assert_eq!(bench.answer(from(1), &caller(name, "jcs_x")).await, "invalid_client");
    }
    bench.store.always(Some(Act::FailBefore(Kind::Unavailable)));
    assert!(bench.services.admin.forged_records.report().await.is_err());
    bench.store.always(None);
    assert!(bench.services.admin.forged_records.report().await.is_ok());
    let mut reported: Vec<String> = bench
        .records(Action::ClientNotAuthentic)
        .await
        .into_iter()
        .map(|event| event.target)
        .collect();
    reported.sort();
    assert_eq!(reported, ["forged-1", "forged-2", "forged-3"]);
}

/// AUDIT TL7: repetitions of a spent token that are refused, and tokens of a family that has ended,
/// are one record a minute and family; the first is there at once, and no number is lost.
#[tokio::test]
async fn refused_refreshes_of_a_family_are_one_record() {
    let server = TestServer::start_with(unlimited).await;
    let owner = server.register(refreshing()).await;
    let (spent, other) =
        (server.token(&owner, &[]).await.unwrap(), server.token(&owner, &[]).await.unwrap());
    let refuse = async |token: &str, count: usize| {
        for _ in 0..count {
            assert_eq!(reason(&server.refresh(&owner, token).await.unwrap_err()), "INVALID_GRANT");
        }
    };
    for _ in 0..4 {
        server.refresh(&owner, &spent.refresh_token).await.unwrap();
    }
    refuse(&spent.refresh_token, 50).await;
    server.revoke(&owner, &other.refresh_token).await.unwrap();
    refuse(&other.refresh_token, 20).await;
    let reasons = async |server: &TestServer| {
        let events = server.trail_of("refresh_token.refused").await;
        let mut reasons: Vec<String> = events.into_iter().map(|event| event.reason).collect();
        reasons.sort();
        reasons
    };
    assert_eq!(reasons(&server).await, ["invalid_grant", "repeated_too_often"]);
    let server = server.restart().await;
    assert_eq!(
        reasons(&server).await,
        [
            "invalid_grant",
            "invalid_grant, 19 more",
            "repeated_too_often",
            "repeated_too_often, 49 more"
        ]
    );
}
