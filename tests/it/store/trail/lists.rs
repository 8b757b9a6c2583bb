//! In the embedded store, by its raw rows.

use jeton::{
    admin::{audit::verify, witness::Witness},
    model::{Action, Event, event::Filter},
    store::{AuditStore, Writer, embedded::Embedded},
};

use crate::store::{
    backend::StoreCase,
    fixtures::{NOW, at, event},
};

/// AZ6: a record that cannot be read is listed and verified as one, at its place, and the rest goes
/// on.
#[tokio::test]
async fn an_unreadable_record_is_shown_as_one_and_the_rest_goes_on() {
    for (damage, time) in [
        ("event = replace(event, 'token.issued', 'token.stolen')", Some(NOW)),
        ("event = 'nothing'", None),
        ("event = CAST(x'7b226174223affff' AS TEXT)", None),
        ("event = ''", None),
        ("node = 99, event = '{}'", None),
        ("hash = x'00', event = '{\"at\":1790000000123,'", Some(NOW)),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(dir.path(), "node", StoreCase::key()).unwrap();
        for n in 1..=5 {
            store
                .append(Event { target: n.to_string(), ..event(Action::TokenIssued) })
                .await
                .unwrap();
        }
        let raw = rusqlite::Connection::open(dir.path().join("jeton.db")).unwrap();
        raw.execute(&format!("UPDATE audit SET {damage} WHERE sequence = 3"), []).unwrap();
        let listed = store.events(&Filter::default(), None, 9).await.unwrap();
        let mut shown: Vec<_> =
            listed.iter().map(|record| (record.sequence, record.is_unreadable())).collect();
        shown.sort_unstable();
        assert_eq!(shown, [(1, false), (2, false), (3, true), (4, false), (5, false)], "{damage}");
        if let Some(time) = time {
            assert!(listed.iter().all(|record| record.event.at == time), "{damage}");
        }
        let chain = store.chain("node", 0, 9).await.unwrap();
        let in_order: Vec<_> =
            chain.iter().map(|record| (record.sequence, record.is_unreadable())).collect();
        assert_eq!(in_order, shown, "{damage}");
        let verdicts = verify(&store, &StoreCase::key(), None, &[]).await.unwrap();
        let flaws: Vec<_> = verdicts.into_iter().map(|verdict| verdict.flaw).collect();
        assert_eq!(flaws, [Some((3, "unreadable".to_owned()))], "{damage}");
    }
}

/// AZ3: the one chain of a store that no other node shares is its own, whose end is sure, and it
/// has nobody to witness.
#[tokio::test]
async fn a_store_of_one_node_is_sure_of_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path(), "node", StoreCase::key()).unwrap();
    store.append(event(Action::TokenIssued)).await.unwrap();
    assert_eq!(store.writer("node").await.unwrap(), Writer::This);
    assert_eq!(store.writer("other").await.unwrap(), Writer::NotRunning);
    let witness = Witness::default();
    for _ in 0..3 {
        assert_eq!(witness.record_moved(&store, &StoreCase::key(), at(1)).await.unwrap(), 0);
    }
    let verdicts = verify(&store, &StoreCase::key(), None, &[]).await.unwrap();
    assert_eq!(
        verdicts.iter().map(|verdict| (verdict.checked, verdict.is_end_sure)).collect::<Vec<_>>(),
        [(1, true)]
    );
}
