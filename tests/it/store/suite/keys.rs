//! The keyset.

use jeton::{
    model::{Action, Keyset},
    store::{Change, Write},
};

use crate::store::{
    backend::Bench,
    fixtures::{Ear, NOW, event, keyset},
};

async fn replace(bench: &Bench, keyset: &Keyset) -> Write {
    bench.store().replace_keyset(keyset, event(Action::KeysRotated)).await.unwrap()
}

pub(crate) async fn the_keyset_reads_back_as_it_was_written(bench: &Bench) {
    let ear = Ear::new();
    bench.store().follow(NOW, ear.clone()).await.unwrap();
    assert_eq!(bench.store().keyset().await.unwrap(), None);
    assert_eq!(replace(bench, &keyset(1)).await, Write::Done);
    assert_eq!(bench.store().keyset().await.unwrap(), Some(keyset(1)));
    bench.assert_heard(&ear, &[Change::Keyset(keyset(1).into())]);
    assert_eq!(bench.reopen().await.keyset().await.unwrap(), Some(keyset(1)));
}

/// K: each step of a rotation is one conditional write.
pub(crate) async fn a_keyset_needs_the_revision_it_was_made_from(bench: &Bench) {
    for stale in [0, 2, 3] {
        assert_eq!(replace(bench, &keyset(stale)).await, Write::Stale, "{stale}: there is none");
    }
    assert_eq!(replace(bench, &keyset(1)).await, Write::Done);
    assert_eq!(replace(bench, &keyset(2)).await, Write::Done);
    for stale in [0, 1, 2, 4, u64::MAX] {
        assert_eq!(replace(bench, &keyset(stale)).await, Write::Stale, "{stale}");
    }
    assert_eq!(bench.store().keyset().await.unwrap(), Some(keyset(2)));
}

pub(crate) async fn of_fifty_that_write_a_keyset_one_succeeds(bench: &Bench) {
    let tasks: Vec<_> = (0..50)
        .map(|n| {
            let store = bench.store();
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
    assert_eq!(done, [bench.store().keyset().await.unwrap().unwrap().sealed_root]);
}
