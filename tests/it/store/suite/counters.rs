//! Shared counters.

use crate::store::{backend::StoreCase, fixtures::at};

fn hit(id: &str, by: u64) -> (String, u64) {
    (id.to_owned(), by)
}

pub(crate) async fn counters_add_up(case: &StoreCase) {
    let store = case.store();
    assert_eq!(
        store.count(&[hit("a", 1), hit("A", 5), hit("a", 2)], at(0)).await.unwrap(),
        [1, 5, 3]
    );
    assert_eq!(
        store.count(&[hit("a", 0), hit("$a.b", 1), hit("", 1)], at(0)).await.unwrap(),
        [3, 1, 1]
    );
    let most = store.count(&[hit("a", u64::MAX)], at(0)).await.unwrap()[0];
    assert!(most >= 1 << 53, "it does not wrap: {most}");
    assert_eq!(store.count(&[], at(0)).await.unwrap(), [0; 0]);
}

pub(crate) async fn no_hit_is_lost_among_many(case: &StoreCase) {
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let store = case.store();
            tokio::spawn(async move {
                for _ in 0..20 {
                    store.count(&[hit("a", 1), hit("b", 2)], at(0)).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(
        case.store().count(&[hit("a", 0), hit("b", 0)], at(0)).await.unwrap(),
        [1_000, 2_000]
    );
}

pub(crate) async fn windows_count_apart(case: &StoreCase) {
    let store = case.store();
    assert_eq!(store.count(&[hit("a", 7)], at(1_000)).await.unwrap(), [7]);
    assert_eq!(store.count(&[hit("a", 1)], at(2_000)).await.unwrap(), [1]);
    assert_eq!(
        store.count(&[hit("a", 1)], at(1_000)).await.unwrap(),
        [8],
        "also after a step back of the clock"
    );
}

pub(crate) async fn counters_outlive_a_restart(case: &StoreCase) {
    case.store().count(&[hit("a", 7)], at(1_000)).await.unwrap();
    let store = case.reopen().await;
    assert_eq!(store.count(&[hit("a", 1)], at(1_000)).await.unwrap(), [8]);
    assert_eq!(case.reopen().await.count(&[hit("a", 1)], at(1_000)).await.unwrap(), [9]);
}
