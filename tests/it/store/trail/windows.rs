//! Lists by several fields, returned as far as they are.

mod mongodb {
    use std::time::Duration;

    use jeton::{
        model::{Action, Event, event::Filter},
        store::{AuditStore, Store},
    };

    use crate::{
        store::{
            fixtures::{at, event},
            trail::mongodb::node,
        },
        support::database::Database as Own,
    };

    /// B05: without any patience each window is a page of its own, possibly an empty one. None of
    /// the records is left out or repeated, also where many have one time.
    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn a_list_that_is_cut_short_continues_where_it_was() {
        let own = Own::own();
        let store = node(own.uri(), "node").await;
        for n in 0..9_000_i64 {
            let is_rare = n % 3_000 == 7;
            let action = if is_rare { Action::TokenRevoked } else { Action::TokenIssued };
            let issued = Event { at: at(n / 10), target: "one".into(), ..event(action) };
            store.append_soon(issued).await.unwrap();
        }
        let target = Some("one".to_owned());
        let filter =
            Filter { action: Some("token.revoked".to_owned()), target, ..Filter::default() };
        store.append(event(Action::TokenIssued)).await.unwrap();
        let whole = store.page(&filter, None, 10, Duration::MAX).await.unwrap();
        assert_eq!((whole.records.len(), whole.next), (3, None));
        let (mut seen, mut next, mut empty) = (Vec::new(), None, 0);
        loop {
            let page = store.page(&filter, next.as_ref(), 10, Duration::ZERO).await.unwrap();
            empty += usize::from(page.records.is_empty());
            seen.extend(page.records);
            next = page.next;
            if next.is_none() {
                break;
            }
        }
        assert_eq!(seen, whole.records);
        assert!(empty > 0);
        store.close().await.unwrap();
    }
}
