//! Random verbs against a store and against a plain model of one, compared answer by answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jeton::{
    model::{
        Action, Client, ClientId, EpochOf, Family, FamilyId, Jti, Revoked, Stamp, TenantId,
        Timestamp, family::Answers, revocation::Revocation,
    },
    store::{Creation, Decision, LastRotation, Listed, Rotate, Rotation, SecretUse, Store, Write},
};
use proptest::prelude::*;

use crate::store::{
    backend::StoreCase,
    fixtures::{
        NOW, RecordingFollower, at, client_of, event, family, id, present, stamp, whole_chain,
    },
};

/// Few ids, so that verbs meet.
const CLIENTS: [&str; 4] = ["a", "A", "a.b", "b"];
const SLOTS: usize = 4;

#[derive(Clone, Debug)]
enum Verb {
    Create {
        client: usize,
        tenant: bool,
    },
    Replace {
        client: usize,
        ahead: u64,
        secrets: usize,
    },
    Finish {
        client: usize,
        ahead: u64,
    },
    Delete {
        client: usize,
        behind: u64,
    },
    Use {
        client: usize,
        secret: usize,
        millis: i64,
        count: u64,
    },
    Clients {
        tenant: Option<bool>,
        after: Option<usize>,
        limit: usize,
    },
    Open {
        client: usize,
        slot: usize,
        idle: u64,
        lifetime: i64,
    },
    Rotate {
        client: usize,
        slot: usize,
        behind: u32,
        grace: u64,
    },
    /// By the family's own client, within any grace: how two callers share a family.
    Again {
        slot: usize,
        behind: u32,
        site: usize,
    },
    End {
        slot: usize,
        remember: u64,
    },
    Revoke {
        slot: usize,
        remember: u64,
    },
    Raise {
        client: usize,
    },
    Count {
        key: usize,
        by: u64,
        window: i64,
    },
    Sweep,
    Pass {
        millis: i64,
    },
    Reopen,
}

fn verb() -> impl Strategy<Value = Verb> {
    let (client, slot) = (0..CLIENTS.len(), 0..SLOTS);
    prop_oneof![
        4 => (client.clone(), any::<bool>()).prop_map(|(client, tenant)| Verb::Create { client, tenant }),
        4 => (client.clone(), 0..3u64, 0..3usize)
            .prop_map(|(client, ahead, secrets)| Verb::Replace { client, ahead, secrets }),
        2 => (client.clone(), 0..3u64).prop_map(|(client, ahead)| Verb::Finish { client, ahead }),
        2 => (client.clone(), 0..2u64).prop_map(|(client, behind)| Verb::Delete { client, behind }),
        3 => (client.clone(), 0..2usize, 0..100i64, 0..5u64)
            .prop_map(|(client, secret, millis, count)| Verb::Use { client, secret, millis, count }),
        3 => (any::<Option<bool>>(), prop::option::of(client.clone()), 0..5usize)
            .prop_map(|(tenant, after, limit)| Verb::Clients { tenant, after, limit }),
        5 => (client.clone(), slot.clone(), 1..50u64, 1..200i64)
            .prop_map(|(client, slot, idle, lifetime)| Verb::Open { client, slot, idle, lifetime }),
        12 => (client.clone(), slot.clone(), prop_oneof![6 => Just(0u32), 3 => Just(1), 1 => Just(2), 1 => Just(u32::MAX)], 0..20u64)
            .prop_map(|(client, slot, behind, grace)| Verb::Rotate { client, slot, behind, grace }),
        24 => (0..2usize, prop_oneof![1 => Just(0u32), 1 => Just(1)], 0..3usize)
            .prop_map(|(slot, behind, site)| Verb::Again { slot, behind, site }),
        2 => (slot.clone(), 0..100u64).prop_map(|(slot, remember)| Verb::End { slot, remember }),
        3 => (slot, 0..100u64).prop_map(|(slot, remember)| Verb::Revoke { slot, remember }),
        2 => client.prop_map(|client| Verb::Raise { client }),
        2 => (0..3usize, 0..5u64, 0..3i64).prop_map(|(key, by, window)| Verb::Count { key, by, window }),
        2 => Just(Verb::Sweep),
        6 => (-20..60i64).prop_map(|millis| Verb::Pass { millis }),
        1 => Just(Verb::Reopen),
    ]
}

/// The reference: maps, and the rules as the traits' comments state them.
#[derive(Default)]
struct Model {
    clients: BTreeMap<ClientId, Client>,
    deleted: BTreeMap<ClientId, TenantId>,
    families: BTreeMap<FamilyId, Family>,
    revocations: BTreeMap<Revoked, Timestamp>,
    epochs: BTreeMap<EpochOf, u64>,
    counters: BTreeMap<(Timestamp, String), u64>,
    /// Windows that ended by then are over: nobody counts in them any more.
    swept: Timestamp,
    slots: [Option<FamilyId>; SLOTS],
    tokens: [Option<Jti>; SLOTS],
    records: u64,
    /// Families that were ended because they were shared.
    shared: u64,
}

impl Model {
    fn end(&mut self, revoked: Revoked, until: Timestamp) {
        let kept = self.revocations.entry(revoked).or_insert(until);
        *kept = (*kept).max(until);
    }

    fn create(&mut self, client: &Client) -> Creation {
        let of_another =
            self.deleted.get(&client.id).is_some_and(|tenant| *tenant != client.tenant);
        if of_another || self.clients.contains_key(&client.id) {
            return Creation::Taken;
        }
        self.deleted.remove(&client.id);
        self.clients.insert(client.id.clone(), client.clone());
        self.records += 1;
        Creation::Created
    }

    fn replace(&mut self, client: &Client) -> Write {
        let Some(stored) = self.clients.get_mut(&client.id).filter(|stored| {
            stored.revision + 1 == client.revision && stored.tenant == client.tenant
        }) else {
            return Write::Stale;
        };
        let mut next = client.clone();
        for secret in next.secrets_mut() {
            if let Some(old) = stored.secrets().find(|old| old.id == secret.id) {
                (secret.last_used_at, secret.use_count) = (old.last_used_at, old.use_count);
            }
        }
        *stored = next;
        self.records += 1;
        Write::Done
    }

    fn finish(&mut self, client: &Client) -> Write {
        let written = self.replace(client);
        if written == Write::Done {
            *self.epochs.entry(EpochOf::Client(client.id.clone())).or_default() += 1;
            self.records += 1;
        }
        written
    }

    fn delete(&mut self, client: &Client) -> Write {
        if self.clients.get(&client.id).is_none_or(|stored| {
            stored.revision != client.revision || stored.tenant != client.tenant
        }) {
            return Write::Stale;
        }
        let gone = self.clients.remove(&client.id).unwrap();
        self.deleted.insert(gone.id, gone.tenant);
        self.records += 1;
        Write::Done
    }

    fn note(&mut self, used: &SecretUse) {
        let Some(client) = self.clients.get_mut(&used.client) else { return };
        if let Some(secret) = client.secrets_mut().find(|secret| secret.id == used.secret) {
            secret.use_count += used.count;
            secret.last_used_at = secret.last_used_at.max(Some(used.at));
        }
    }

    fn rotate(&mut self, rotate: &Rotate, peer: &str) -> Rotation {
        let Some(family) = self.families.get_mut(&rotate.family) else { return Rotation::Unknown };
        let verdict = rotate.decide(family, LastRotation { at: family.rotated_at, unanswered: 0 });
        self.records += u64::from(!matches!(verdict, Decision::Refuse | Decision::Unknown));
        match verdict {
            Decision::Rotate => {
                family.generation += 1;
                family.rotated_at = rotate.now;
                let running = if family.answers.given > 1 { family.answers.running + 1 } else { 0 };
                family.answers =
                    Answers { given: 1, running, rotated_by: peer.into(), repeated_by: "".into() };
                Rotation::Rotated
            }
            Decision::Repeat => {
                family.answers.given += 1;
                family.answers.repeated_by = peer.into();
                Rotation::Repeated(family.clone())
            }
            Decision::Reuse | Decision::Shared => {
                let Some(remember) = rotate.retain_for else { return Rotation::Unended(verdict) };
                let found = family.clone();
                family.ended_at = Some(rotate.now);
                self.end(Revoked::Family(rotate.family), rotate.now + remember);
                self.shared += u64::from(verdict == Decision::Shared);
                if verdict == Decision::Shared { Rotation::Shared(found) } else { Rotation::Reused }
            }
            Decision::Refuse => Rotation::Refused,
            Decision::Unknown => Rotation::Unknown,
        }
    }

    fn sweep(&mut self, now: Timestamp) -> usize {
        let before = self.revocations.len() + self.families.len() + self.counters.len();
        self.revocations.retain(|_, until| now < *until);
        self.families
            .retain(|_, family| now < family.expires_at && now < family.rotated_at + family.idle);
        self.counters.retain(|(until, _), _| now < *until);
        self.swept = self.swept.max(now);
        before - self.revocations.len() - self.families.len() - self.counters.len()
    }
}

/// Carries one verb out on both sides.
async fn step(case: &StoreCase, model: &mut Model, now: &mut Timestamp, verb: &Verb) {
    if matches!(verb, Verb::Rotate { .. } | Verb::Again { .. }) {
        // The model has no answers on their way.
        case.settled().await;
    }
    let store = case.store();
    match *verb {
        Verb::Create { client, tenant } => {
            let client = client_of(if tenant { "one" } else { "two" }, CLIENTS[client]);
            let created = store.create_client(&client, event(Action::ClientCreated)).await.unwrap();
            assert_eq!(created, model.create(&client));
        }
        Verb::Replace { client, ahead, secrets } => {
            let revision =
                model.clients.get(&id(CLIENTS[client])).map_or(0, |stored| stored.revision) + ahead;
            let mut next = Client { revision, ..client_of("one", CLIENTS[client]) };
            next.credentials.truncate(secrets);
            let written = store.replace_client(&next, event(Action::ClientUpdated)).await.unwrap();
            assert_eq!(written, model.replace(&next));
        }
        Verb::Finish { client, ahead } => {
            let revision =
                model.clients.get(&id(CLIENTS[client])).map_or(0, |stored| stored.revision) + ahead;
            let next = Client { revision, disabled: true, ..client_of("one", CLIENTS[client]) };
            let events = (event(Action::ClientDisabled), event(Action::ClientRevoked));
            assert_eq!(
                store.end_client(&next, vec![events.0], events.1).await.unwrap(),
                model.finish(&next)
            );
        }
        Verb::Delete { client, behind } => {
            let id = id(CLIENTS[client]);
            let revision =
                model.clients.get(&id).map_or(0, |stored| stored.revision).saturating_sub(behind);
            let tenant =
                model.clients.get(&id).map_or("one", |stored| stored.tenant.as_str()).to_owned();
            let gone = Client { revision, ..client_of(&tenant, id.as_str()) };
            let deleted = store.delete_client(&gone, event(Action::ClientDeleted)).await.unwrap();
            assert_eq!(deleted, model.delete(&gone));
        }
        Verb::Use { client, secret, millis, count } => {
            let secret = ["s1", "s2"][secret].parse().unwrap();
            let used = SecretUse { client: id(CLIENTS[client]), secret, at: at(millis), count };
            store.record_secret_uses(std::slice::from_ref(&used)).await.unwrap();
            model.note(&used);
        }
        Verb::Clients { tenant, after, limit } => {
            let tenant = tenant.map(|one| if one { "one" } else { "two" }.parse().unwrap());
            let after = after.map(|client| id(CLIENTS[client]));
            let page = store.clients(tenant.as_ref(), after.as_ref(), limit).await.unwrap();
            let own =
                |client: &&Client| tenant.as_ref().is_none_or(|tenant| client.tenant == *tenant);
            let later = |client: &&Client| after.as_ref().is_none_or(|after| client.id > *after);
            let expected: Vec<_> =
                model.clients.values().filter(own).filter(later).take(limit).cloned().collect();
            assert_eq!(
                page,
                expected
                    .into_iter()
                    .map(|client| Listed::Client(Box::new(client)))
                    .collect::<Vec<_>>()
            );
        }
        Verb::Sweep => assert_eq!(store.sweep(*now, 1_000).await.unwrap(), model.sweep(*now)),
        Verb::Pass { millis } => *now = Timestamp::from_millis(now.millis() + millis),
        Verb::Reopen => {
            case.reopen().await;
        }
        Verb::Open { .. }
        | Verb::Rotate { .. }
        | Verb::Again { .. }
        | Verb::End { .. }
        | Verb::Revoke { .. }
        | Verb::Raise { .. }
        | Verb::Count { .. } => step_tokens(&*store, model, *now, verb).await,
    }
}

async fn step_tokens(store: &dyn Store, model: &mut Model, now: Timestamp, verb: &Verb) {
    match *verb {
        Verb::Open { client, slot, idle, lifetime } => {
            let expires_at = Timestamp::from_millis(now.millis() + lifetime);
            let idle = Duration::from_millis(idle);
            let opened = Family {
                opened_at: now,
                rotated_at: now,
                expires_at,
                idle,
                ..family(CLIENTS[client])
            };
            assert_eq!(
                store.open_family(&opened, event(Action::TokenIssued)).await.unwrap(),
                Creation::Created
            );
            model.slots[slot] = Some(opened.id);
            model.families.insert(opened.id, opened);
            model.records += 1;
        }
        Verb::Rotate { client, slot, behind, grace } => {
            let family = model.slots[slot].unwrap_or_default();
            let generation = model.families.get(&family).map_or(0, |family| family.generation);
            let presented =
                if behind == u32::MAX { generation + 1 } else { generation.saturating_sub(behind) };
            let (grace, retain_for) =
                (Duration::from_millis(grace), Some(Duration::from_millis(50)));
            let rotate = Rotate {
                family,
                presented,
                client: id(CLIENTS[client]),
                now,
                cluster_now: now,
                was_acceptable_on_arrival: true,
                grace,
                retain_for,
            };
            assert_eq!(
                store.rotate(&rotate, &stamp(), "jti").await.unwrap(),
                model.rotate(&rotate, &stamp().peer)
            );
        }
        Verb::Again { slot, behind, site } => {
            let Some(family) = model.slots[slot].and_then(|id| model.families.get(&id)).cloned()
            else {
                return;
            };
            let rotate = Rotate {
                now,
                cluster_now: now,
                ..present(&family, family.generation.saturating_sub(behind), 0)
            };
            let stamp =
                Stamp { peer: ["192.0.2.1", "2001:db8::1", "local"][site].into(), ..stamp() };
            assert_eq!(
                store.rotate(&rotate, &stamp, "jti").await.unwrap(),
                model.rotate(&rotate, &stamp.peer)
            );
        }
        Verb::End { slot, remember } => {
            let family = model.slots[slot].unwrap_or_default();
            let until = now + Duration::from_millis(remember);
            store.end_family(family, now, until, event(Action::FamilyRevoked)).await.unwrap();
            if let Some(family) = model.families.get_mut(&family) {
                family.ended_at = family.ended_at.or(Some(now));
            }
            model.end(Revoked::Family(family), until);
            model.records += 1;
        }
        Verb::Revoke { slot, remember } => {
            let revoked = Revoked::Token(*model.tokens[slot].get_or_insert_with(Jti::new));
            let until = now + Duration::from_millis(remember);
            store
                .revoke(&Revocation { revoked, until }, event(Action::TokenRevoked))
                .await
                .unwrap();
            model.end(revoked, until);
            model.records += 1;
        }
        Verb::Raise { client } => {
            let of = EpochOf::Client(id(CLIENTS[client]));
            let value = store.raise_epoch(&of, event(Action::ClientRevoked)).await.unwrap();
            let expected = model.epochs.entry(of).or_default();
            *expected += 1;
            assert_eq!(value, *expected);
            model.records += 1;
        }
        Verb::Count { key, by, window } => {
            let (key, until) = (format!("k{key}"), at(window * 100));
            if until <= model.swept {
                return;
            }
            let values = store.count(&[(key.clone(), by)], until).await.unwrap();
            let expected = model.counters.entry((until, key)).or_default();
            *expected += by;
            assert_eq!(values, [*expected]);
        }
        Verb::Create { .. }
        | Verb::Replace { .. }
        | Verb::Finish { .. }
        | Verb::Delete { .. }
        | Verb::Use { .. }
        | Verb::Clients { .. }
        | Verb::Sweep
        | Verb::Pass { .. }
        | Verb::Reopen => panic!("not about tokens: {verb:?}"),
    }
}

/// Everything that can be read equals the model.
async fn compare(store: &dyn Store, model: &Model, now: Timestamp) {
    for name in CLIENTS {
        assert_eq!(store.client(&id(name)).await.unwrap().as_ref(), model.clients.get(&id(name)));
    }
    for family in model.slots.iter().flatten() {
        let stands =
            |family: &&Family| now < family.expires_at && now < family.rotated_at + family.idle;
        assert_eq!(
            store.family(*family, now).await.unwrap().as_ref(),
            model.families.get(family).filter(stands)
        );
    }
    let snapshot = store.follow(now, RecordingFollower::new()).await.unwrap();
    let revocations: BTreeSet<_> =
        snapshot.revocations.iter().map(|it| (it.revoked, it.until)).collect();
    let stands = |(_, until): &(&Revoked, &Timestamp)| now < **until;
    assert_eq!(
        revocations,
        model
            .revocations
            .iter()
            .filter(stands)
            .map(|(revoked, until)| (*revoked, *until))
            .collect()
    );
    assert_eq!(snapshot.epochs.into_iter().collect::<BTreeMap<_, _>>(), model.epochs);
    let records = whole_chain(store).await;
    assert_eq!(records.len() as u64, model.records, "one record a change");
}

async fn run(case: StoreCase, verbs: &[Verb]) {
    let (mut model, mut now) = (Model::default(), NOW);
    for verb in verbs {
        step(&case, &mut model, &mut now, verb).await;
    }
    compare(&*case.store(), &model, now).await;
    compare(&*case.reopen().await, &model, now).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_verbs_answers_as_the_model(verbs in prop::collection::vec(verb(), 1..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(StoreCase::embedded(), &verbs));
    }
}

mod mongodb {
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 20, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
        fn any_sequence_of_verbs_answers_as_the_model(verbs in prop::collection::vec(verb(), 1..80)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { run(StoreCase::mongodb().await, &verbs).await });
        }
    }
}
