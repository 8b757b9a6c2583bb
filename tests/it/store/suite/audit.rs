//! The audit trail.

use std::{collections::BTreeSet, sync::Arc};

use jeton::{
    admin::tail::Tail,
    crypto::chain::Walk,
    model::{
        Action, AuthMethod, Client, Event, FamilyId, Place, Principal, Record, SecretId,
        event::{Filter, Outcome},
    },
    store::{AuditStore, Store},
};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::timeout,
};

use crate::store::{
    backend::StoreCase,
    fixtures::{
        NOW, at, chain_of, client, event, family, id, keyset, of_revision, stamp, whole_chain,
    },
};
use crate::support::until::HANG;

fn numbered(n: u64) -> Event {
    Event { target: n.to_string(), ..event(Action::TokenIssued) }
}

async fn append(store: &(impl AuditStore + ?Sized), count: u64) {
    for n in 1..=count {
        store.append(numbered(n)).await.unwrap();
    }
}

fn sequences(records: &[Record]) -> Vec<u64> {
    records.iter().map(|record| record.sequence).collect()
}

/// Next record of a tail; `None` is where MongoDB's stream of the other nodes' records begins.
async fn next(tail: &mut Receiver<Option<Arc<Record>>>) -> Result<Arc<Record>, RecvError> {
    loop {
        if let Some(record) = timeout(HANG, tail.recv()).await.unwrap()? {
            return Ok(record);
        }
    }
}

/// Walks the whole trail, a few records at a time, to its sealed head.
async fn verify(store: &dyn Store) -> u64 {
    let name = chain_of(store).await;
    let head = store.head(&name).await.unwrap();
    let mut walk = Walk::from_start();
    loop {
        let records = store.chain(&name, walk.sequence(), 7).await.unwrap();
        assert!(records.iter().all(|record| record.chain == name));
        if records.is_empty() {
            break;
        }
        records.iter().try_for_each(|record| walk.record(record)).unwrap();
    }
    walk.finish(&StoreCase::key(), head.as_ref()).unwrap();
    walk.sequence()
}

pub(crate) async fn an_event_reads_back_as_it_was_appended(case: &StoreCase) {
    let store = case.store();
    let mut full = stamp();
    full.at = at(7);
    full.tenant = Some("t".repeat(64).parse().unwrap());
    full.actor = Some(Principal::Client(id(&"x".repeat(128))));
    full.auth = Some(AuthMethod::Secret("s1".parse().unwrap()));
    let full = full
        .refused(Action::AccessRefused, "target", "insufficient_scope")
        .in_family(FamilyId::new());
    let bare = jeton::model::Stamp::internal(NOW).done(Action::ServerStarted, "");
    for event in [&full, &bare] {
        store.append(event.clone()).await.unwrap();
    }
    let records = whole_chain(&*case.reopen().await).await;
    assert_eq!(records.iter().map(|record| record.event.clone()).collect::<Vec<_>>(), [full, bare]);
    assert_eq!(records.iter().map(|record| &*record.node).collect::<Vec<_>>(), ["node", "node"]);
    assert_eq!(sequences(&records), [1, 2]);
}

/// O02: nothing in a text ends a record or starts another.
pub(crate) async fn odd_text_is_kept_as_it_is(case: &StoreCase) {
    let store = case.store();
    let odd =
        ["", "\r\n", "\u{1b}[31m", "\u{2028}", "\0", "\"}{\"", "\\", "é\u{202e}", "$where", "a.b"];
    for text in odd {
        store
            .append(
                Event { target: text.into(), ..event(Action::TokenIssued) }.because(text.into()),
            )
            .await
            .unwrap();
    }
    let long = "x".repeat(1 << 20);
    store.append(Event { target: long.clone(), ..event(Action::TokenIssued) }).await.unwrap();
    let records = whole_chain(&*store).await;
    for (record, text) in records.iter().zip(odd) {
        assert_eq!((record.event.target.as_str(), record.event.reason.as_ref()), (text, text));
    }
    assert_eq!(records.last().unwrap().event.target, long);
    verify(&*store).await;
}

pub(crate) async fn newest_come_first_and_pages_stand(case: &StoreCase) {
    let store = case.store();
    append(&*store, 9).await;
    let name = chain_of(&*store).await;
    let page = async |before: Option<u64>, limit| {
        let before = before.map(|sequence| Place { at: NOW, chain: name.clone(), sequence });
        sequences(&store.events(&Filter::default(), before.as_ref(), limit).await.unwrap())
    };
    assert_eq!(page(None, 4).await, [9, 8, 7, 6]);
    append(&*store, 3).await;
    assert_eq!(page(Some(6), 4).await, [5, 4, 3, 2]);
    assert_eq!(page(Some(2), 4).await, [1]);
    assert_eq!(page(Some(1), 4).await, [0; 0]);
    assert_eq!(page(Some(u64::MAX), 1).await, [12]);
    assert_eq!(page(None, 0).await, [0; 0]);
    assert_eq!(sequences(&store.chain(&name, 3, 2).await.unwrap()), [4, 5]);
    assert_eq!(sequences(&store.chain(&name, u64::MAX, 2).await.unwrap()), [0; 0]);
}

/// O05: newest first goes by time, and by the place in the chain only within a millisecond; every
/// page begins where the one before it ended, whatever its length.
pub(crate) async fn events_follow_their_times_where_the_chain_does_not(case: &StoreCase) {
    let store = case.store();
    for (n, millis) in [5, 9, 7, 7, -3, 9, 0].into_iter().enumerate() {
        store.append(Event { at: at(millis), ..numbered(n as u64) }).await.unwrap();
    }
    for limit in 1..=8 {
        let (mut seen, mut before) = (Vec::new(), None);
        loop {
            let page = store.events(&Filter::default(), before.as_ref(), limit).await.unwrap();
            seen.extend(sequences(&page));
            match page.last() {
                Some(last) => before = Some(last.place()),
                None => break,
            }
        }
        assert_eq!(seen, [6, 2, 4, 3, 1, 7, 5], "{limit}");
    }
    // Places between records, and of chains that are not there.
    let name = chain_of(&*store).await;
    for (millis, chain, sequence, newest) in [
        (8, &*name, 1, 4),
        (7, &*name, 4, 3),
        (7, "", u64::MAX, 1),
        (7, "\u{10ffff}", 0, 4),
        (9, "\u{10ffff}", 0, 6),
    ] {
        let before = Place { at: at(millis), chain: chain.into(), sequence };
        let page = store.events(&Filter::default(), Some(&before), 1).await.unwrap();
        assert_eq!(sequences(&page), [newest], "{before:?}");
    }
}

/// A chain bears the name of the node that began it and keeps it over a restart; what is asked of
/// others is not there.
pub(crate) async fn a_chain_is_named_and_others_are_not_there(case: &StoreCase) {
    let store = case.store();
    assert_eq!(store.chains().await.unwrap(), []);
    append(&*store, 1).await;
    let name = chain_of(&*store).await;
    let first = whole_chain(&*store).await;
    assert_eq!((&first[0].node, &first[0].chain), (&name, &name));
    let store = case.reopen().await;
    append(&*store, 2).await;
    assert_eq!(store.chains().await.unwrap(), std::slice::from_ref(&name));
    assert_eq!(sequences(&whole_chain(&*store).await), [1, 2, 3]);
    for other in ["", "nod", "node2", "NODE", "node\0", "*", "%"] {
        assert_ne!(other, &*name);
        assert_eq!(store.chain(other, 0, 9).await.unwrap(), [], "{other}");
        assert_eq!(store.head(other).await.unwrap(), None, "{other}");
    }
}

pub(crate) async fn filters_admit_what_they_say(case: &StoreCase) {
    let store = case.store();
    let stamp = |tenant: &str, client: &str, millis| jeton::model::Stamp {
        at: at(millis),
        tenant: Some(tenant.parse().unwrap()),
        actor: Some(Principal::Client(id(client))),
        ..stamp()
    };
    store.append(stamp("t", "a", 0).done(Action::TokenIssued, "one")).await.unwrap();
    store.append(stamp("t", "A", 10).done(Action::TokenRevoked, "two")).await.unwrap();
    store
        .append(stamp("u", "a", 20).refused(Action::RefreshRefused, "t", "invalid_grant"))
        .await
        .unwrap();
    store.append(event(Action::ServerStarted)).await.unwrap();
    let found = async |filter: Filter| sequences(&store.events(&filter, None, 99).await.unwrap());
    let none = Filter::default;
    assert_eq!(found(none()).await, [3, 2, 4, 1]);
    assert_eq!(found(Filter { tenant: Some("t".parse().unwrap()), ..none() }).await, [2, 1]);
    let of_a = || Some(Principal::Client(id("a")));
    assert_eq!(found(Filter { actor: of_a(), ..none() }).await, [3, 1]);
    assert_eq!(found(Filter { actor: Some(Principal::Node), ..none() }).await, [4]);
    assert_eq!(found(Filter { action: Some("token.".into()), ..none() }).await, [2, 1]);
    assert_eq!(found(Filter { action: Some("token.issued".into()), ..none() }).await, [1]);
    assert_eq!(found(Filter { action: Some("token".into()), ..none() }).await, [0; 0]);
    assert_eq!(found(Filter { outcome: Some(Outcome::Refused), ..none() }).await, [3]);
    assert_eq!(found(Filter { target: Some("two".into()), ..none() }).await, [2]);
    assert_eq!(found(Filter { from: Some(at(10)), to: Some(at(20)), ..none() }).await, [2]);
    let both = Filter { tenant: Some("u".parse().unwrap()), actor: of_a(), ..none() };
    assert_eq!(found(both).await, [3]);
    let page = Filter { actor: of_a(), ..none() };
    let third = Place { at: at(20), chain: chain_of(&*store).await, sequence: 3 };
    assert_eq!(sequences(&store.events(&page, Some(&third), 1).await.unwrap()), [1]);
}

/// OPERATORS 4.10: filters about a client, a secret and a family admit what the events say, and so do
/// their alternatives together.
pub(crate) async fn filters_name_clients_secrets_and_families(case: &StoreCase) {
    let store = case.store();
    let secret: SecretId = "s1".parse().unwrap();
    let stamp = |client: &str, auth: Option<&str>, millis| jeton::model::Stamp {
        at: at(millis),
        actor: (!client.is_empty()).then(|| Principal::Client(id(client))),
        auth: auth.map(|id| AuthMethod::Secret(id.parse().unwrap())),
        ..stamp()
    };
    let family = FamilyId::new();
    let failed = Action::AuthenticationFailed;
    let events = [
        stamp("admin", None, 1).done(Action::SecretAdded, "a/s1"),
        stamp("admin", None, 2).done(Action::SecretAdded, "ab/s1"),
        stamp("a", Some("s1"), 3).done(Action::TokenIssued, "one").in_family(family),
        stamp("a", Some("s2"), 4).done(Action::TokenRefreshed, "two").in_family(family),
        stamp("admin", None, 5).done(Action::ClientUpdated, "a"),
        stamp("admin", None, 6).done(Action::ClientUpdated, "ab"),
        stamp("admin", None, 7).done(Action::FamilyRevoked, "a").in_family(family),
        stamp("admin", None, 8).done(Action::SecretRetired, "a/s1"),
        stamp("", Some("s1"), 9).refused(failed, "a", "invalid_client"),
        stamp("", Some("s1"), 10).refused(failed, "ab", "invalid_client"),
        stamp("b", Some("s1"), 11).done(Action::TokenIssued, "a/s1"),
        stamp("admin", None, 12).done(Action::SubjectRevoked, "client:a"),
    ];
    for event in &events {
        store.append(event.clone()).await.unwrap();
    }
    let of = Filter::default;
    let about = |client: &str| Some(id(client));
    let refused = Some(Outcome::Refused);
    for (filter, expected) in [
        (Filter { about: about("a"), ..of() }, &[12, 9, 8, 7, 5, 4, 3, 1][..]),
        (Filter { about: about("ab"), ..of() }, &[10, 6, 2]),
        (Filter { about: about("c"), ..of() }, &[]),
        (Filter { about: about("a"), action: Some("secret.".into()), ..of() }, &[8, 1]),
        (Filter { about: about("a"), action: Some("secret.added".into()), ..of() }, &[1]),
        (Filter { about: about("a"), action: Some("client.updated".into()), ..of() }, &[5]),
        (Filter { about: about("a"), outcome: refused, ..of() }, &[9]),
        (Filter { about: about("a"), target: Some("a".into()), ..of() }, &[9, 7, 5]),
        (
            Filter { about: about("a"), actor: Some(Principal::Client(id("admin"))), ..of() },
            &[12, 8, 7, 5, 1],
        ),
        (Filter { secret: Some((id("a"), secret.clone())), ..of() }, &[9, 8, 3, 1]),
        (Filter { secret: Some((id("ab"), secret)), ..of() }, &[10, 2]),
        (Filter { family: Some(family), ..of() }, &[7, 4, 3]),
        (Filter { family: Some(family), about: about("b"), ..of() }, &[]),
        (Filter { family: Some(FamilyId::new()), ..of() }, &[]),
    ] {
        let found = store.events(&filter, None, 99).await.unwrap();
        assert_eq!(sequences(&found), expected, "{filter:?}");
        let mut merged = std::collections::BTreeSet::new();
        for alternative in filter.alternatives() {
            assert!(alternative.about.is_none() && alternative.secret.is_none());
            let part = store.events(&alternative, None, 99).await.unwrap();
            let admitted = part.iter().filter(|record| filter.admits(&record.event));
            merged.extend(admitted.map(|record| record.sequence));
        }
        assert_eq!(merged.into_iter().rev().collect::<Vec<_>>(), expected, "{filter:?}");
    }
}

/// O04: every kind of change links into one chain, over a restart.
pub(crate) async fn the_chain_verifies_against_the_sealed_head(case: &StoreCase) {
    let store = case.store();
    append(&*store, 20).await;
    store.create_client(&client("a"), event(Action::ClientCreated)).await.unwrap();
    store.open_family(&family("a"), event(Action::TokenIssued)).await.unwrap();
    store.replace_keyset(&keyset(1), event(Action::KeysCreated)).await.unwrap();
    assert_eq!(verify(&*store).await, 23);
    let store = case.reopen().await;
    append(&*store, 2).await;
    assert_eq!(verify(&*store).await, 25);
}

pub(crate) async fn concurrent_appends_leave_no_gap(case: &StoreCase) {
    let tasks: Vec<_> = (0..500)
        .map(|n| {
            let store = case.store();
            tokio::spawn(async move { store.append(numbered(n)).await.unwrap() })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(verify(&*case.store()).await, 500);
    let records = whole_chain(&*case.store()).await;
    let targets: BTreeSet<u64> =
        records.iter().map(|record| record.event.target.parse().unwrap()).collect();
    assert_eq!(targets, (0..500).collect());
}

pub(crate) async fn an_empty_trail_has_no_head(case: &StoreCase) {
    assert_eq!(case.store().chains().await.unwrap(), []);
    assert_eq!(case.store().head(&chain_of(&*case.store()).await).await.unwrap(), None);
    assert_eq!(verify(&*case.store()).await, 0);
    assert_eq!(verify(&*case.reopen().await).await, 0);
}

pub(crate) async fn records_that_nobody_waits_for_arrive_soon(case: &StoreCase) {
    let store = case.store();
    let mut tail = store.tail();
    for n in 1..=5 {
        store.append_soon(numbered(n)).await.unwrap();
    }
    for n in 1..=5 {
        // 50 ms are promised; the bound here is for a busy machine.
        assert_eq!(next(&mut tail).await.unwrap().sequence, n);
    }
    for n in 6..=9 {
        store.append_soon(numbered(n)).await.unwrap();
    }
    assert_eq!(verify(&*case.reopen().await).await, 9, "closing waits for them");
}

pub(crate) async fn the_tail_hears_every_record_in_order(case: &StoreCase) {
    let store = case.store();
    append(&*store, 2).await;
    let mut tail = store.tail();
    append(&*store, 3).await;
    store.create_client(&client("a"), event(Action::ClientCreated)).await.unwrap();
    for record in whole_chain(&*store).await.into_iter().skip(2) {
        assert_eq!(*next(&mut tail).await.unwrap(), record);
    }
    store.close().await.unwrap();
    assert_eq!(next(&mut tail).await, Err(RecvError::Closed));
    assert_eq!(store.tail().recv().await, Err(RecvError::Closed));
}

pub(crate) async fn a_listener_that_lags_is_told(case: &StoreCase) {
    let store = case.store();
    let mut tail = store.tail();
    for n in 0..1_500 {
        store.append_soon(numbered(n)).await.unwrap();
    }
    store.append(numbered(1_500)).await.unwrap();
    assert!(matches!(next(&mut tail).await, Err(RecvError::Lagged(1..))));
    let next = next(&mut tail).await.unwrap().sequence;
    assert!(next <= 1_501 - 1_023, "at least the last 1,024 are still there: {next}");
}

/// B23: a reader that is too slow for the live records reads those that it missed from the store,
/// each once and in order.
pub(crate) async fn a_slow_reader_misses_nothing(case: &StoreCase) {
    let store = case.store();
    append(&*store, 3).await;
    let mut tail = Tail::begin(store.clone(), Filter::default(), [].into()).await.unwrap();
    for n in 0..1_500 {
        store.append_soon(numbered(n)).await.unwrap();
    }
    store.append(numbered(1_500)).await.unwrap();
    let mut seen = Vec::new();
    for last in [1_504, 1_505] {
        while seen.last().is_none_or(|seen| *seen < last) {
            let records = timeout(HANG, tail.next()).await.unwrap().unwrap();
            seen.extend(records.iter().map(|record| record.sequence));
        }
        store.append(numbered(last)).await.unwrap();
    }
    assert_eq!(seen, (4..=1_505).collect::<Vec<_>>());
}

/// C1: the clock's floor after a restart.
pub(crate) async fn the_newest_time_never_goes_back(case: &StoreCase) {
    let store = case.store();
    assert_eq!(store.newest_time(), jeton::model::Timestamp::EPOCH);
    for (millis, newest) in [(5, 5), (9, 9), (7, 9)] {
        store.append(Event { at: at(millis), ..numbered(1) }).await.unwrap();
        assert_eq!(store.newest_time(), at(newest));
    }
    assert_eq!(case.reopen().await.newest_time(), at(9));
}

/// C1: what was forgotten because it had expired must not stand again under a clock that starts
/// before that.
pub(crate) async fn the_newest_time_covers_what_was_swept(case: &StoreCase) {
    let store = case.store();
    append(&*store, 1).await;
    store.sweep(at(60_000), 10).await.unwrap();
    assert_eq!(store.newest_time(), at(60_000));
    store.sweep(at(50_000), 10).await.unwrap();
    assert_eq!(store.newest_time(), at(60_000));
    assert_eq!(case.reopen().await.newest_time(), at(60_000));
    assert_eq!(verify(&*case.store()).await, 1);
}

/// C1: a time that was only judged by is kept on closing; also where there is no record yet.
pub(crate) async fn the_newest_time_covers_what_was_read(case: &StoreCase) {
    assert_eq!(case.store().family(FamilyId::new(), at(70_000)).await.unwrap(), None);
    assert_eq!(case.reopen().await.newest_time(), at(70_000));
    append(&*case.store(), 1).await;
    assert_eq!(case.reopen().await.newest_time(), at(70_000));
}

/// O03 the other way round: what did not happen is not in the trail.
pub(crate) async fn a_refused_change_leaves_no_record(case: &StoreCase) {
    let store = case.store();
    store.create_client(&client("a"), event(Action::ClientCreated)).await.unwrap();
    store.create_client(&client("a"), event(Action::ClientCreated)).await.unwrap();
    let stale = Client { revision: 9, ..client("a") };
    store.replace_client(&stale, event(Action::ClientUpdated)).await.unwrap();
    store.delete_client(&of_revision(9, client("a")), event(Action::ClientDeleted)).await.unwrap();
    store.replace_keyset(&keyset(2), event(Action::KeysRotated)).await.unwrap();
    assert_eq!(verify(&*store).await, 1);
}
