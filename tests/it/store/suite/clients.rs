//! Clients and the uses of their secrets.

use std::time::Duration;

use jeton::{
    model::{
        Action, Client, ClientCredential, ClientId, Digest, EpochOf, Epochs, Family, TenantId,
    },
    store::{Change, Creation, Listed, SecretUse, Store, Write},
};

use crate::store::{
    backend::StoreCase,
    fixtures::{
        NOW, RecordingFollower, at, client, client_of, event, family, id, of_revision, secret,
        whole_chain,
    },
};

async fn create(store: &dyn Store, client: &Client) {
    assert_eq!(
        store.create_client(client, event(Action::ClientCreated)).await.unwrap(),
        Creation::Created
    );
}

fn used(client: &str, secret: &str, millis: i64, count: u64) -> SecretUse {
    SecretUse { client: id(client), secret: secret.parse().unwrap(), at: at(millis), count }
}

/// Longest and oddest values of every field; times to the millisecond.
pub(crate) async fn a_client_reads_back_as_it_was_written(case: &StoreCase) {
    let store = case.store();
    let mut full = client(&"x".repeat(128));
    full.display_name = format!("{}\u{1f680}", "é".repeat(199));
    full.default_scopes = full.scopes.clone();
    full.roles =
        vec!["a".repeat(128).parse().unwrap(), "$role.name/x:y".replace('$', "r").parse().unwrap()];
    full.audiences =
        vec![format!("https://{}", "a".repeat(248)).parse().unwrap(), "urn:a.b$c".parse().unwrap()];
    full.serves = full.audiences.clone();
    full.access_ttl = Some(Duration::from_millis(1));
    full.refresh_ttl = Some(Duration::from_secs(u64::from(u32::MAX)));
    full.refresh_idle = Some(Duration::ZERO);
    full.disabled = true;
    let (mut first, mut second) = (secret(&"s".repeat(32)), secret("s2"));
    first.expires_at = Some(at(1));
    second.digest = Digest::Argon2id { phc: "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA".into() };
    full.credentials = [first, second].map(ClientCredential::Secret).into();
    full.updated_at = at(7);
    let mut bare = client("b");
    bare.display_name = String::new();
    bare.credentials.clear();
    for client in [&full, &bare] {
        create(&*store, client).await;
        assert_eq!(store.client(&client.id).await.unwrap().as_ref(), Some(client));
    }
}

pub(crate) async fn an_unknown_client_is_absent(case: &StoreCase) {
    assert_eq!(case.store().client(&id("nobody")).await.unwrap(), None);
    assert!(case.store().clients(None, None, 10).await.unwrap().is_empty());
}

pub(crate) async fn an_id_is_registered_once(case: &StoreCase) {
    let store = case.store();
    create(&*store, &client("a")).await;
    // In another tenant it is the same id: it is unique in the whole service.
    let second = client_of("other", "a");
    assert_eq!(
        store.create_client(&second, event(Action::ClientCreated)).await.unwrap(),
        Creation::Taken
    );
    assert_eq!(store.client(&id("a")).await.unwrap(), Some(client("a")));
}

pub(crate) async fn of_fifty_that_register_one_id_one_succeeds(case: &StoreCase) {
    let tasks: Vec<_> = (0..50)
        .map(|n| {
            let store = case.store();
            let client = Client { display_name: n.to_string(), ..client("a") };
            tokio::spawn(async move {
                store.create_client(&client, event(Action::ClientCreated)).await.unwrap()
            })
        })
        .collect();
    let mut created = Vec::new();
    for (n, task) in tasks.into_iter().enumerate() {
        if task.await.unwrap() == Creation::Created {
            created.push(n.to_string());
        }
    }
    assert_eq!(created, [case.store().client(&id("a")).await.unwrap().unwrap().display_name]);
}

pub(crate) async fn ids_that_differ_only_in_case_are_two_clients(case: &StoreCase) {
    let store = case.store();
    create(&*store, &client("Svc")).await;
    assert_eq!(store.client(&id("svc")).await.unwrap(), None);
    create(&*store, &client("svc")).await;
    store.record_secret_uses(&[used("svc", "s1", 5, 1)]).await.unwrap();
    let upper = store.client(&id("Svc")).await.unwrap().unwrap();
    assert_eq!((upper.id.as_str(), upper.secrets().next().unwrap().use_count), ("Svc", 0));
    assert_eq!(store.clients(None, None, 9).await.unwrap().len(), 2);
}

/// N01: what is an operator to some database is a plain string here, in ids and in values.
pub(crate) async fn operators_are_plain_text(case: &StoreCase) {
    let store = case.store();
    for (n, text) in ["{\"$gt\":\"\"}", "$where", "a.b", "$set", "\0", "' OR 1=1 --", "%", "_"]
        .iter()
        .enumerate()
    {
        create(&*store, &Client { display_name: (*text).into(), ..client(&format!("c{n}")) }).await;
        assert_eq!(store.client(&id(&format!("c{n}"))).await.unwrap().unwrap().display_name, *text);
    }
    for text in ["a.b", "a_b", "_", "~", "..", "-"] {
        assert_eq!(store.client(&id(text)).await.unwrap(), None, "{text}");
        create(&*store, &client(text)).await;
        assert_eq!(store.client(&id(text)).await.unwrap().unwrap().id.as_str(), text);
    }
}

async fn page(store: &dyn Store, after: Option<&str>, limit: usize) -> Vec<String> {
    let after: Option<ClientId> = after.map(id);
    let clients = store.clients(None, after.as_ref(), limit).await.unwrap();
    clients.iter().map(|listed| listed.id().to_string()).collect()
}

pub(crate) async fn pages_follow_the_bytes_of_the_ids(case: &StoreCase) {
    let store = case.store();
    let mut ids = ["b", "a", "~", "B", "_", "10", "9", "a-", "a.b", "aa", "A", "-"];
    for name in ids {
        create(&*store, &client(name)).await;
    }
    ids.sort_unstable_by_key(|id| id.as_bytes());
    assert_eq!(page(&*store, None, 100).await, ids);
    assert_eq!(page(&*store, None, 5).await, ids[..5]);
    assert_eq!(page(&*store, Some(ids[4]), 5).await, ids[5..10]);
    assert_eq!(page(&*store, Some(ids[11]), 5).await, [""; 0]);
    assert_eq!(page(&*store, None, 0).await, [""; 0]);
}

pub(crate) async fn pages_stand_while_clients_come_and_go(case: &StoreCase) {
    let store = case.store();
    for name in ["b", "d", "f", "h"] {
        create(&*store, &client(name)).await;
    }
    assert_eq!(page(&*store, None, 2).await, ["b", "d"]);
    create(&*store, &client("a")).await;
    create(&*store, &client("e")).await;
    let gone = store
        .delete_client(&of_revision(1, client("d")), event(Action::ClientDeleted))
        .await
        .unwrap();
    assert_eq!(gone, Write::Done);
    assert_eq!(
        page(&*store, Some("d"), 2).await,
        ["e", "f"],
        "the place of a removed id is still a place"
    );
    assert_eq!(page(&*store, Some("f"), 2).await, ["h"]);
}

/// Z01: a tenant's list holds its own clients only, whatever their ids.
pub(crate) async fn pages_of_one_tenant_hold_nothing_of_another(case: &StoreCase) {
    let store = case.store();
    for n in 0..10 {
        create(&*store, &client_of(if n % 2 == 0 { "even" } else { "odd" }, &format!("c{n}")))
            .await;
    }
    let even: TenantId = "even".parse().unwrap();
    let first = store.clients(Some(&even), None, 3).await.unwrap();
    let rest = store.clients(Some(&even), Some(first[2].id()), 30).await.unwrap();
    let ids: Vec<_> = first.iter().chain(&rest).map(|listed| listed.id().to_string()).collect();
    assert_eq!(ids, ["c0", "c2", "c4", "c6", "c8"]);
    let nobody: TenantId = "eve".parse().unwrap();
    assert!(store.clients(Some(&nobody), None, 30).await.unwrap().is_empty());
}

pub(crate) async fn a_change_needs_the_revision_it_was_made_from(case: &StoreCase) {
    let store = case.store();
    let write = |revision| Client { revision, display_name: revision.to_string(), ..client("a") };
    let replace = async |revision| {
        store.replace_client(&write(revision), event(Action::ClientUpdated)).await.unwrap()
    };
    assert_eq!(replace(2).await, Write::Stale, "there is none");
    create(&*store, &client("a")).await;
    assert_eq!(replace(2).await, Write::Done);
    for stale in [0, 1, 2, 4, u64::MAX] {
        assert_eq!(replace(stale).await, Write::Stale, "{stale}");
    }
    assert_eq!(store.client(&id("a")).await.unwrap(), Some(write(2)));
    for stale in [0, 1, 3] {
        let gone = store
            .delete_client(&of_revision(stale, client("a")), event(Action::ClientDeleted))
            .await
            .unwrap();
        assert_eq!(gone, Write::Stale, "{stale}");
    }
    assert_eq!(
        store
            .delete_client(&of_revision(2, client("a")), event(Action::ClientDeleted))
            .await
            .unwrap(),
        Write::Done
    );
    assert_eq!(
        store
            .delete_client(&of_revision(2, client("a")), event(Action::ClientDeleted))
            .await
            .unwrap(),
        Write::Stale
    );
}

/// Revisions start at 1 again: a change of a client that was deleted meanwhile does not bring it
/// back over the next one of its id.
pub(crate) async fn a_change_reaches_no_later_client_of_the_same_id(case: &StoreCase) {
    let store = case.store();
    let first = client_of("one", "a");
    let successors = [
        Client { created_at: at(1), ..first.clone() },
        Client { created_at: first.created_at, ..client_of("other", "a") },
    ];
    for next in successors {
        assert_eq!(
            store.create_client_of_any(&first, event(Action::ClientCreated)).await.unwrap(),
            Creation::Created
        );
        assert_eq!(
            store.delete_client(&first, event(Action::ClientDeleted)).await.unwrap(),
            Write::Done
        );
        assert_eq!(
            store.create_client_of_any(&next, event(Action::ClientCreated)).await.unwrap(),
            Creation::Created
        );
        let late = of_revision(2, first.clone());
        assert_eq!(
            store.replace_client(&late, event(Action::ClientUpdated)).await.unwrap(),
            Write::Stale
        );
        let ended = store
            .end_client(&late, vec![event(Action::ClientUpdated)], event(Action::ClientRevoked))
            .await
            .unwrap();
        assert_eq!(ended, Write::Stale);
        assert_eq!(
            store.delete_client(&first, event(Action::ClientDeleted)).await.unwrap(),
            Write::Stale
        );
        assert_eq!(store.client(&id("a")).await.unwrap(), Some(next.clone()));
        assert_eq!(
            store.delete_client(&next, event(Action::ClientDeleted)).await.unwrap(),
            Write::Done
        );
    }
}

pub(crate) async fn of_fifty_that_change_one_revision_one_succeeds(case: &StoreCase) {
    create(&*case.store(), &client("a")).await;
    let tasks: Vec<_> = (0..50)
        .map(|n| {
            let store = case.store();
            let client = Client { revision: 2, display_name: n.to_string(), ..client("a") };
            tokio::spawn(async move {
                store.replace_client(&client, event(Action::ClientUpdated)).await.unwrap()
            })
        })
        .collect();
    let mut done = Vec::new();
    for (n, task) in tasks.into_iter().enumerate() {
        if task.await.unwrap() == Write::Done {
            done.push(n.to_string());
        }
    }
    assert_eq!(done, [case.store().client(&id("a")).await.unwrap().unwrap().display_name]);
}

/// Use counts do not pass to a later client of the same name.
pub(crate) async fn a_deleted_client_leaves_no_uses_to_a_successor(case: &StoreCase) {
    let store = case.store();
    create(&*store, &client("a")).await;
    store.record_secret_uses(&[used("a", "s1", 5, 3)]).await.unwrap();
    assert_eq!(
        store
            .delete_client(&of_revision(1, client("a")), event(Action::ClientDeleted))
            .await
            .unwrap(),
        Write::Done
    );
    assert_eq!(store.client(&id("a")).await.unwrap(), None);
    create(&*store, &client("a")).await;
    assert_eq!(store.client(&id("a")).await.unwrap(), Some(client("a")));
}

/// AZ10: in the same write as the deletion, so that no moment is anybody's in between; only the
/// operator's verb is free of it.
pub(crate) async fn a_deleted_id_is_taken_for_every_other_tenant(case: &StoreCase) {
    let store = case.store();
    let created = || event(Action::ClientCreated);
    create(&*store, &client_of("one", "a")).await;
    let other = client_of("other", "a");
    assert_eq!(
        store.create_client_of_any(&other, created()).await.unwrap(),
        Creation::Taken,
        "it lives"
    );
    let of_one = client_of("one", "a");
    assert_eq!(
        store.delete_client(&of_one, event(Action::ClientDeleted)).await.unwrap(),
        Write::Done
    );
    assert_eq!(store.create_client(&other, created()).await.unwrap(), Creation::Taken);
    // Nor does an epoch that is raised meanwhile free it, nor a restart.
    store.raise_epoch(&EpochOf::Client(id("a")), event(Action::ClientRevoked)).await.unwrap();
    let store = case.reopen().await;
    assert_eq!(store.create_client(&other, created()).await.unwrap(), Creation::Taken);
    assert_eq!(store.client(&id("a")).await.unwrap(), None);
    for again in 0..2 {
        assert_eq!(
            store.create_client(&of_one, created()).await.unwrap(),
            Creation::Created,
            "{again}"
        );
        assert_eq!(
            store.delete_client(&of_one, event(Action::ClientDeleted)).await.unwrap(),
            Write::Done
        );
    }
    assert_eq!(store.create_client_of_any(&other, created()).await.unwrap(), Creation::Created);
    assert_eq!(
        store.delete_client(&other, event(Action::ClientDeleted)).await.unwrap(),
        Write::Done
    );
    assert_eq!(
        store.create_client(&of_one, created()).await.unwrap(),
        Creation::Taken,
        "now it is the other's"
    );
    assert_eq!(store.create_client(&other, created()).await.unwrap(), Creation::Created);
    // An epoch alone keeps no id from anybody: it is of no tenant.
    store.raise_epoch(&EpochOf::Client(id("b")), event(Action::ClientRevoked)).await.unwrap();
    create(&*store, &client_of("other", "b")).await;
}

/// The race of the audit's kind: fifty of another tenant ask for the id while it is deleted, and
/// none gets it.
pub(crate) async fn a_deletion_leaves_no_moment_to_another_tenant(case: &StoreCase) {
    create(&*case.store(), &client_of("one", "a")).await;
    let claims: Vec<_> = (0..50)
        .map(|_| {
            let store = case.store();
            tokio::spawn(async move {
                store
                    .create_client(&client_of("other", "a"), event(Action::ClientCreated))
                    .await
                    .unwrap()
            })
        })
        .collect();
    let store = case.store();
    let gone =
        store.delete_client(&client_of("one", "a"), event(Action::ClientDeleted)).await.unwrap();
    assert_eq!(gone, Write::Done);
    for claim in claims {
        assert_eq!(claim.await.unwrap(), Creation::Taken);
    }
}

/// However many they are, the deletion does not wait for them. Their epoch is behind the client's;
/// see `end_client`.
pub(crate) async fn families_of_a_deleted_client_go_with_the_sweep(case: &StoreCase) {
    let store = case.store();
    create(&*store, &client("a")).await;
    let own = Family { epochs: Epochs::default(), ..family("a") };
    store.open_family(&own, event(Action::TokenIssued)).await.unwrap();
    let disabled = Client { disabled: true, revision: 2, ..client("a") };
    store
        .end_client(&disabled, vec![event(Action::ClientDisabled)], event(Action::ClientRevoked))
        .await
        .unwrap();
    assert_eq!(
        store
            .delete_client(&of_revision(2, client("a")), event(Action::ClientDeleted))
            .await
            .unwrap(),
        Write::Done
    );
    create(&*store, &client("a")).await;
    let epochs = store.follow(NOW, RecordingFollower::new()).await.unwrap().epochs;
    assert_eq!(epochs, [(EpochOf::Client(id("a")), 1)], "the epoch outlives the client");
    let kept = store.family(own.id, NOW).await.unwrap().unwrap();
    assert!(!kept.epochs.covers(Epochs { client: 1, ..Epochs::default() }));
    assert_eq!(store.sweep(at(599_999), 10).await.unwrap(), 0);
    assert_eq!(store.sweep(at(600_000), 10).await.unwrap(), 1);
    assert_eq!(store.family(own.id, NOW).await.unwrap(), None);
}

pub(crate) async fn uses_of_secrets_add_up_and_never_go_back(case: &StoreCase) {
    let store = case.store();
    create(&*store, &client("a")).await;
    store
        .record_secret_uses(&[
            used("a", "s1", 50, 3),
            used("a", "s2", 10, 1),
            used("a", "s1", 40, 2),
        ])
        .await
        .unwrap();
    store.record_secret_uses(&[used("a", "s1", 30, 4)]).await.unwrap();
    store.record_secret_uses(&[]).await.unwrap();
    let read = store.client(&id("a")).await.unwrap().unwrap();
    let uses: Vec<_> =
        read.secrets().map(|secret| (secret.last_used_at, secret.use_count)).collect();
    assert_eq!(uses, [(Some(at(50)), 9), (Some(at(10)), 1)]);
    assert_eq!(
        store.clients(None, None, 1).await.unwrap(),
        [Listed::Client(Box::new(read))],
        "a list says the same"
    );
}

pub(crate) async fn uses_outlive_a_change_and_end_with_their_secret(case: &StoreCase) {
    let store = case.store();
    create(&*store, &client("a")).await;
    store.record_secret_uses(&[used("a", "s1", 5, 1), used("a", "s2", 6, 2)]).await.unwrap();
    // Written back as it was read, uses and all, as an administrator's change does.
    let mut read = store.client(&id("a")).await.unwrap().unwrap();
    read.revision = 2;
    read.credentials.remove(1);
    assert_eq!(
        store.replace_client(&read, event(Action::SecretRetired)).await.unwrap(),
        Write::Done
    );
    let kept = store.client(&id("a")).await.unwrap().unwrap();
    assert_eq!(
        kept.secrets().next().map(|secret| (secret.last_used_at, secret.use_count)),
        Some((Some(at(5)), 1)),
        "not counted twice"
    );
    let again = Client { revision: 3, ..client("a") };
    assert_eq!(
        store.replace_client(&again, event(Action::SecretAdded)).await.unwrap(),
        Write::Done
    );
    let fresh = store.client(&id("a")).await.unwrap().unwrap();
    assert_eq!(
        fresh.secrets().nth(1).map(|secret| (secret.last_used_at, secret.use_count)),
        Some((None, 0)),
        "a new secret of an old name"
    );
}

pub(crate) async fn uses_of_what_is_not_there_are_dropped(case: &StoreCase) {
    let store = case.store();
    create(&*store, &client("a")).await;
    store
        .record_secret_uses(&[
            used("nobody", "s1", 5, 1),
            used("a", "s9", 5, 1),
            used("a", "s1", 5, 1),
        ])
        .await
        .unwrap();
    assert_eq!(
        store.client(&id("a")).await.unwrap().unwrap().secrets().next().unwrap().use_count,
        1
    );
    create(&*store, &client("nobody")).await;
    assert_eq!(store.client(&id("nobody")).await.unwrap(), Some(client("nobody")));
}

pub(crate) async fn a_change_of_a_client_is_heard(case: &StoreCase) {
    let (store, ear) = (case.store(), RecordingFollower::new());
    store.follow(NOW, ear.clone()).await.unwrap();
    create(&*store, &client("a")).await;
    store.create_client(&client("a"), event(Action::ClientCreated)).await.unwrap();
    store
        .replace_client(&Client { revision: 2, ..client("a") }, event(Action::ClientUpdated))
        .await
        .unwrap();
    store
        .replace_client(&Client { revision: 2, ..client("a") }, event(Action::ClientUpdated))
        .await
        .unwrap();
    store.delete_client(&of_revision(2, client("a")), event(Action::ClientDeleted)).await.unwrap();
    store.delete_client(&of_revision(2, client("a")), event(Action::ClientDeleted)).await.unwrap();
    let change = Change::Client(id("a"));
    // What changed nothing is not heard.
    case.assert_heard(&ear, &[change.clone(), change.clone(), change]);
}

/// R10, S03: one commit for both, so that no cut between them leaves tokens behind; a stale one
/// does neither.
pub(crate) async fn ending_a_client_writes_it_and_raises_its_epoch_at_once(case: &StoreCase) {
    let (store, ear) = (case.store(), RecordingFollower::new());
    create(&*store, &client("a")).await;
    store.record_secret_uses(&[used("a", "s1", 5, 3)]).await.unwrap();
    store.follow(NOW, ear.clone()).await.unwrap();
    let end = async |revision| {
        let disabled = Client { disabled: true, revision, ..client("a") };
        store
            .end_client(
                &disabled,
                vec![event(Action::ClientDisabled)],
                event(Action::ClientRevoked),
            )
            .await
            .unwrap()
    };
    for stale in [0, 1, 3] {
        assert_eq!(end(stale).await, Write::Stale, "{stale}");
    }
    assert_eq!(ear.heard(), []);
    assert_eq!(end(2).await, Write::Done);
    let of = EpochOf::Client(id("a"));
    // The record before the epoch.
    case.assert_heard(&ear, &[Change::Client(id("a")), Change::Epoch(of.clone(), 1)]);
    let store = case.reopen().await;
    let kept = store.client(&id("a")).await.unwrap().unwrap();
    assert!(kept.disabled && kept.revision == 2 && kept.secrets().next().unwrap().use_count == 3);
    assert_eq!(store.follow(NOW, RecordingFollower::new()).await.unwrap().epochs, [(of, 1)]);
    let told: Vec<_> =
        whole_chain(&*store).await.iter().skip(1).map(|record| record.event.action).collect();
    assert_eq!(told, [Action::ClientDisabled, Action::ClientRevoked]);
}
