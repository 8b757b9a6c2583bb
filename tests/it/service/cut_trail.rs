//! The trail after a cut by `audit.keep`, as administrators read it.

use std::time::Duration;

use jeton::{
    config::Keep,
    crypto::{chain::ChainKey, master, seal::Sealer},
    model::{Action, Stamp, Timestamp},
    proto::admin::{EventFilter, ListEventsRequest},
    server::retention::Retention,
    store::AuditStore,
};

use crate::support::{
    server::{START, prepare},
    until::until,
};

/// The last page of a list has the time up to which records were cut, if the filter admits records
/// of that time.
#[tokio::test]
async fn the_last_page_has_the_time_of_a_cut() {
    let prepared = prepare().await;
    let master = master::load_or_make(&prepared.home.master_key_file(), false).unwrap();
    let key = ChainKey::new(Sealer::new(*master).derive("audit head"));
    let (server, store) = prepared.served().await;
    let time = |seconds: i64| Timestamp::from_seconds(START + seconds);
    for n in 0..4_500 {
        let issued = Stamp::internal(time(n)).done(Action::TokenIssued, n.to_string());
        store.append_soon(issued).await.unwrap();
    }
    let chain = store.chains().await.unwrap().remove(0);
    until(async || store.head(&chain).await.unwrap().unwrap().sequence >= 4_500).await;
    // The time of the cut on each page.
    let list = async |start: Option<i64>| {
        let start_time = start.map(|millis| prost_types::Timestamp {
            seconds: millis.div_euclid(1_000),
            nanos: i32::try_from(millis.rem_euclid(1_000)).unwrap() * 1_000_000,
        });
        let filter = EventFilter { start_time, ..EventFilter::default() };
        let (mut cuts, mut page_token) = (Vec::new(), String::new());
        loop {
            let message =
                ListEventsRequest { filter: Some(filter.clone()), page_size: 1_000, page_token };
            let message = server.as_admin(message).await;
            let page = server.audit().list_events(message).await.unwrap().into_inner();
            cuts.push(page.cut_time.map(|at| at.seconds * 1_000 + i64::from(at.nanos) / 1_000_000));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return cuts;
            }
        }
    };
    let whole = list(None).await;
    assert!(whole.len() > 2 && whole.iter().all(Option::is_none), "{whole:?}");
    let retention = Retention { keep: Keep::Age(Duration::from_secs(2_000)), archive: None };
    assert!(retention.pass(store.as_ref(), &key, time(4_500)).await.unwrap() > 0);
    let (_, mark) = store.cut_marks().await.unwrap().remove(0);
    let cut = mark.place.at.millis();
    for (start, expected) in [(None, Some(cut)), (Some(cut), Some(cut)), (Some(cut + 1), None)] {
        let mut pages = list(start).await;
        assert_eq!(pages.pop().unwrap(), expected, "{start:?}");
        assert!(pages.iter().all(Option::is_none), "{start:?}");
    }
}
