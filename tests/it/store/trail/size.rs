//! Size and growth of the trail.

use std::time::Duration;

use jeton::{
    model::{Action, Event, Jti, Timestamp},
    store::{AuditStore, Store, TrailSize, embedded::Embedded},
};

use crate::store::{backend::StoreCase, fixtures::event};

const HOUR_MS: i64 = 60 * 60 * 1_000;

/// Appends 30 records, one each hour, and returns the time of the last.
async fn hourly(store: &dyn Store) -> Timestamp {
    let start = Timestamp::from_seconds(1_790_000_000).millis();
    for hour in 0..30 {
        let at = Timestamp::from_millis(start + hour * HOUR_MS);
        store.append(Event { at, ..event(Action::TokenIssued) }).await.unwrap();
    }
    Timestamp::from_millis(start + 29 * HOUR_MS)
}

/// Growth over the last day, over less while the trail is younger, and none of a trail without
/// records.
async fn grows(store: &dyn Store) {
    let none = store.trail_size(Timestamp::from_seconds(1_790_000_000)).await.unwrap();
    assert_eq!((none.records, none.recent, none.records_a_day()), (0, 0, None));
    let last = hourly(store).await;
    let now = last + Duration::from_millis(1);
    let size = store.trail_size(now).await.unwrap();
    assert_eq!((size.records, size.recent, size.records_a_day()), (30, 24, Some(24)));
    let size = store.trail_size(now + Duration::from_secs(3 * 86_400)).await.unwrap();
    assert_eq!((size.recent, size.records_a_day()), (0, Some(0)));
    let early = store.trail_size(last - Duration::from_millis(19 * HOUR_MS as u64)).await.unwrap();
    assert_eq!(early.records_a_day(), Some(30 * 24 / 10));
}

#[tokio::test]
async fn the_embedded_trail_reports_its_growth() {
    let dir = tempfile::tempdir().unwrap();
    grows(&Embedded::open(dir.path(), "node", StoreCase::key()).unwrap()).await;
}

/// The estimate of a record is within a quarter of what the database takes.
#[tokio::test]
async fn the_estimate_is_near_the_size_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path(), "node", StoreCase::key()).unwrap();
    for n in 0..20_000_u64 {
        let target = Jti::new().to_string();
        let request_id = uuid_like(n).into();
        let issued = Event { target, request_id, ..event(Action::TokenIssued) };
        store.append_soon(issued).await.unwrap();
    }
    let size: TrailSize = store.trail_size(Timestamp::EPOCH).await.unwrap();
    store.close().await.unwrap();
    let raw = rusqlite::Connection::open(dir.path().join("jeton.db")).unwrap();
    let number = |sql| raw.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap().unsigned_abs();
    let file = number("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size");
    assert_eq!(number("SELECT count(*) FROM audit"), 20_000);
    assert!(size.records <= 20_000);
    let estimate = size.record_bytes * 20_000;
    assert!(estimate.abs_diff(file) < file / 4, "{estimate} {file}");
}

fn uuid_like(n: u64) -> String {
    format!("{n:08x}-0000-7000-8000-{n:012x}")
}

mod mongodb {
    use jeton::store::Store;

    use crate::{store::trail::mongodb::node, support::database::Database as Own};

    #[tokio::test]
    #[ignore = "needs a MongoDB: bash .ci/with-mongodb cargo t-mongo"]
    async fn the_shared_trail_reports_its_growth() {
        let own = Own::own();
        let store = node(own.uri(), "node").await;
        super::grows(&store).await;
        store.close().await.unwrap();
    }
}
