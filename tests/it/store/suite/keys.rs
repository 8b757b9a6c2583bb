//! The keyset.

use jeton::{
    model::{Action, Keyset},
    store::{Change, Write},
};

use crate::store::{
    backend::StoreCase,
    fixtures::{NOW, RecordingFollower, event, keyset},
};

async fn replace(case: &StoreCase, keyset: &Keyset) -> Write {
    case.store().replace_keyset(keyset, event(Action::KeysRotated)).await.unwrap()
}

pub(crate) async fn the_keyset_reads_back_as_it_was_written(case: &StoreCase) {
    let ear = RecordingFollower::new();
    case.store().follow(NOW, ear.clone()).await.unwrap();
    assert_eq!(case.store().keyset().await.unwrap(), None);
    assert_eq!(replace(case, &keyset(1)).await, Write::Done);
    assert_eq!(case.store().keyset().await.unwrap(), Some(keyset(1)));
    case.assert_heard(&ear, &[Change::Keyset(keyset(1).into())]);
    assert_eq!(case.reopen().await.keyset().await.unwrap(), Some(keyset(1)));
}

/// K: each step of a rotation is one conditional write.
pub(crate) async fn a_keyset_needs_the_revision_it_was_made_from(case: &StoreCase) {
    for stale in [0, 2, 3] {
        assert_eq!(replace(case, &keyset(stale)).await, Write::Stale, "{stale}: there is none");
    }
    assert_eq!(replace(case, &keyset(1)).await, Write::Done);
    assert_eq!(replace(case, &keyset(2)).await, Write::Done);
    for stale in [0, 1, 2, 4, u64::MAX] {
        assert_eq!(replace(case, &keyset(stale)).await, Write::Stale, "{stale}");
    }
    assert_eq!(case.store().keyset().await.unwrap(), Some(keyset(2)));
}

pub(crate) async fn of_fifty_that_write_a_keyset_one_succeeds(case: &StoreCase) {
    let tasks: Vec<_> = (0..50)
        .map(|n| {
            let store = case.store();
            let keyset = Keyset { sealed_root: n.to_string(), ..keyset(1) };
            tokio::spawn(async move {
                store.replace_keyset(&keyset, event(Action::KeysCreated)).await.unwrap()
            })
        })
        .collect();
    let mut done = Vec::new();
    for (n, task) in tasks.into_iter().enumerate() {
        if task.await.unwrap() == Write::Done {
            done.push(n.to_string());
        }
    }
    assert_eq!(done, [case.store().keyset().await.unwrap().unwrap().sealed_root]);
}
