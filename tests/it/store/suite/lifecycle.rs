//! Opening, closing, and opening again.

use jeton::{
    model::{Action, EpochOf, FamilyId, Jti, Revoked, event::Filter, revocation::Revocation},
    store::{Result, StoreError},
};

use crate::store::{
    backend::StoreCase,
    fixtures::{
        NOW, RecordingFollower, at, client, event, family, id, keyset, of_revision, present, stamp,
        whole_chain,
    },
};

pub(crate) async fn a_store_is_ready(case: &StoreCase) {
    case.store().ready().await.unwrap();
    case.store().append(event(Action::ServerStarted)).await.unwrap();
    case.store().ready().await.unwrap();
}

pub(crate) async fn everything_outlives_a_restart(case: &StoreCase) {
    let store = case.store();
    let family = family("a");
    store.create_client(&client("a"), event(Action::ClientCreated)).await.unwrap();
    store.open_family(&family, event(Action::TokenIssued)).await.unwrap();
    store.replace_keyset(&keyset(1), event(Action::KeysCreated)).await.unwrap();
    let before = whole_chain(&*store).await;
    let store = case.reopen().await;
    assert_eq!(store.client(&id("a")).await.unwrap(), Some(client("a")));
    assert_eq!(store.family(family.id, NOW).await.unwrap(), Some(family));
    assert_eq!(store.keyset().await.unwrap(), Some(keyset(1)));
    assert_eq!(whole_chain(&*store).await, before);
}

fn unavailable<T>(result: Result<T>) {
    assert!(matches!(result, Err(StoreError::Unavailable(_))));
}

/// Never a panic, never "not found", never a silent success. Closing again is the same.
pub(crate) async fn a_closed_store_answers_unavailable(case: &StoreCase) {
    let store = case.store();
    let family = family("a");
    store.append(event(Action::ServerStarted)).await.unwrap();
    store.close().await.unwrap();
    store.close().await.unwrap();
    let event = || event(Action::TokenIssued);
    unavailable(store.client(&id("a")).await);
    unavailable(store.clients(None, None, 1).await);
    unavailable(store.create_client(&client("a"), event()).await);
    unavailable(store.replace_client(&client("a"), event()).await);
    unavailable(store.end_client(&client("a"), vec![event()], event()).await);
    unavailable(store.delete_client(&of_revision(1, client("a")), event()).await);
    unavailable(store.record_secret_uses(&[]).await);
    unavailable(store.open_family(&family, event()).await);
    unavailable(store.family(family.id, NOW).await);
    unavailable(store.rotate(&present(&family, 0, 1), &stamp(), "jti").await);
    unavailable(store.end_family(FamilyId::new(), NOW, at(1), event()).await);
    unavailable(
        store
            .revoke(&Revocation { revoked: Revoked::Token(Jti::new()), until: at(1) }, event())
            .await,
    );
    unavailable(store.raise_epoch(&EpochOf::Client(id("a")), event()).await);
    unavailable(store.follow(NOW, RecordingFollower::new()).await);
    unavailable(store.sweep(NOW, 1).await);
    unavailable(store.append(event()).await);
    unavailable(store.append_soon(event()).await);
    unavailable(store.events(&Filter::default(), None, 1).await);
    unavailable(store.chains().await);
    unavailable(store.chain("node", 0, 1).await);
    unavailable(store.head("node").await);
    unavailable(store.keyset().await);
    unavailable(store.replace_keyset(&keyset(1), event()).await);
    unavailable(store.count(&[("a".into(), 1)], at(1)).await);
    unavailable(store.ready().await);
    assert_eq!(store.newest_time(), NOW);
    assert_eq!(whole_chain(&*case.reopen().await).await.len(), 1);
}
