//! E4: no room left.

use std::path::Path;

use jeton::{
    crypto::chain::Walk,
    model::{Action, Client, Event},
    store::{
        AuditStore, ClientStore, CounterStore, RevocationStore, Store, StoreError,
        embedded::Embedded,
    },
};

use crate::store::{
    backend::StoreCase,
    fixtures::{NOW, RecordingFollower, at, client, event, id},
    prepared,
};

fn open(dir: &Path) -> Embedded {
    Embedded::open(dir, "node", StoreCase::key()).unwrap()
}

fn large(n: usize) -> Event {
    Event { target: n.to_string(), ..event(Action::TokenIssued) }.because("x".repeat(3_000))
}

/// Appends until there is no room; how many were acknowledged.
async fn fill_up(store: &Embedded) -> usize {
    for n in 0.. {
        match store.append(large(n)).await {
            Ok(()) => {}
            Err(StoreError::Full(_)) => return n,
            Err(other) => panic!("{other:?}"),
        }
        assert!(n < 10_000, "it never fills up");
    }
    unreachable!()
}

/// Refused and nothing half done; reading goes on; with room again, so does writing, without a
/// restart.
#[tokio::test]
async fn a_full_disk_refuses_writes_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    prepared::fill(&store, 1).await;
    store.bound_pages(60).await.unwrap();
    let (ear, mut tail) = (RecordingFollower::new(), store.tail());
    store.follow(NOW, ear.clone()).await.unwrap();
    let written = fill_up(&store).await;
    assert!(written > 0);
    let head = store.head("node").await.unwrap().unwrap();
    for _ in 0..written {
        tail.recv().await.unwrap();
    }

    let refused = store
        .create_client(&Client { display_name: "x".repeat(8_000), ..client("b") }, large(0))
        .await;
    assert!(matches!(refused, Err(StoreError::Full(_))));
    assert_eq!(store.client(&id("b")).await.unwrap(), None);
    assert_eq!(ear.heard(), [], "what did not happen is not heard");
    assert!(tail.try_recv().is_err());
    assert!(store.client(&id("client-00000")).await.unwrap().is_some());
    assert_eq!(store.head("node").await.unwrap(), Some(head.clone()));
    assert_eq!(store.count(&[("k".into(), 1)], at(1)).await.unwrap(), [1]);

    store.bound_pages(100_000).await.unwrap();
    store.append(large(0)).await.unwrap();
    assert_eq!(store.head("node").await.unwrap().unwrap().sequence, head.sequence + 1);
    verify(&store).await;
    store.close().await.unwrap();
    let store = open(dir.path());
    verify(&store).await;
    assert!(store.check().await.unwrap().is_intact());
    assert_eq!(store.count(&[("k".into(), 1)], at(1)).await.unwrap(), [2]);
}

/// Of those that were in one commit with what did not fit, none is told that it was done.
#[tokio::test]
async fn nobody_in_a_failed_batch_is_told_it_was_done() {
    let dir = tempfile::tempdir().unwrap();
    let store = std::sync::Arc::new(open(dir.path()));
    store.bound_pages(120).await.unwrap();
    let tasks: Vec<_> = (0..400)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move { store.append(large(n)).await })
        })
        .collect();
    let (mut done, mut full) = (Vec::new(), 0);
    for (n, task) in tasks.into_iter().enumerate() {
        match task.await.unwrap() {
            Ok(()) => done.push(n.to_string()),
            Err(StoreError::Full(_)) => full += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(full > 0);
    let records = store.chain("node", 0, 1_000).await.unwrap();
    let mut kept: Vec<_> = records.into_iter().map(|record| record.event.target).collect();
    kept.sort_unstable();
    done.sort_unstable();
    assert_eq!(kept, done);
    verify(&store).await;
}

/// E4: no answer may rest on a record that will not be written; and nothing but such records brings
/// writing back.
#[tokio::test]
async fn a_full_disk_promises_no_record_ahead() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.bound_pages(60).await.unwrap();
    fill_up(&store).await;
    let written = store.head("node").await.unwrap().unwrap().sequence;
    for n in 0..3 {
        assert!(matches!(store.append_soon(large(n)).await, Err(StoreError::Full(_))));
        store.ready().await.unwrap();
    }
    store.bound_pages(100_000).await.unwrap();
    for n in 0..3 {
        store.append_soon(large(n)).await.unwrap();
    }
    store.close().await.unwrap();
    let store = open(dir.path());
    assert_eq!(store.head("node").await.unwrap().unwrap().sequence, written + 3);
    verify(&store).await;
}

async fn verify(store: &Embedded) {
    let mut walk = Walk::from_start();
    store
        .chain("node", 0, 100_000)
        .await
        .unwrap()
        .iter()
        .try_for_each(|record| walk.record(record))
        .unwrap();
    walk.finish(&StoreCase::key(), store.head("node").await.unwrap().as_ref()).unwrap();
}
