//! Tests of which callers query and which share a result. The clock is given.

use std::{
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

use futures_util::{
    FutureExt,
    future::{join_all, pending, ready},
};
use mongodb::bson::doc;
use tokio::time::timeout;

use super::*;

fn at(generation: i64) -> Document {
    doc! { "generation": generation }
}

async fn lead(coalescer: &Coalescer, family: FamilyId) -> Lead<'_> {
    match coalescer.join(family, |_| true).await {
        Join::Lead(lead) => lead,
        Join::Shared(found) => panic!("{found:?}"),
    }
}

async fn after(time: Duration) {
    timeout(time, pending::<()>()).await.unwrap_err();
}

/// Number of queries that this many callers need if a query takes this long, and the time until all
/// have a result.
async fn leads_of(callers: usize, time: Duration) -> (usize, Duration) {
    let (coalescer, family, leads_taken) =
        (Coalescer::default(), FamilyId::new(), AtomicUsize::new(0));
    let caller = async || {
        if let Join::Lead(lead) = coalescer.join(family, |_| true).await {
            leads_taken.fetch_add(1, SeqCst);
            let slow = async {
                after(time).await;
                Ok(Some(at(0)))
            };
            lead.run(slow).await.unwrap();
        }
    };
    let begin = tokio::time::Instant::now();
    join_all((0..callers).map(|_| caller())).await;
    assert!(coalescer.flights().is_empty(), "nobody is in line, and nothing is kept");
    (leads_taken.into_inner(), begin.elapsed())
}

/// Of many callers at once, the first one's query may be older than the others' calls, the second
/// one's is not.
#[tokio::test(start_paused = true)]
async fn one_query_serves_all_earlier_callers() {
    let (leads_taken, took) = leads_of(50, LEAD_TIMEOUT / 10).await;
    assert_eq!(leads_taken, 2);
    assert!(took < LEAD_TIMEOUT / 4, "{took:?}");
}

/// Queries longer than the timeout serve as many callers: a few more query, the last of them before
/// the first has ended.
#[tokio::test(start_paused = true)]
async fn slow_queries_serve_as_many() {
    for times in [1, 2, 4] {
        let (leads_taken, took) = leads_of(500, LEAD_TIMEOUT * times).await;
        assert!(leads_taken <= 6, "{leads_taken}");
        assert!(took <= LEAD_TIMEOUT * (times * 2 + 1), "{took:?}");
    }
}

/// A caller that joined after a query began may know of a change that the query did not see.
#[tokio::test(start_paused = true)]
async fn an_older_query_is_not_shared() {
    let (coalescer, family) = (Coalescer::default(), FamilyId::new());
    let mut late = pin!(coalescer.join(family, |_| true));
    let first = lead(&coalescer, family).await;
    let found = async {
        assert!(late.as_mut().now_or_never().is_none());
        Ok(Some(at(0)))
    };
    assert_eq!(*first.run(found).await.unwrap().unwrap(), at(0));
    assert!(late.as_mut().now_or_never().is_none(), "the first one is still at it");
    drop(first);
    let Join::Lead(late) = late.await else { panic!("it was served by an older look") };
    assert!(saw(&late, &at(0)));
    // Nor does a query that ends late replace a newer result.
    let (sequence, newer) = (late.next_sequence(), at(1));
    late.run(ready(Ok(Some(newer)))).await.unwrap();
    late.publish(sequence, Some(Arc::new(at(0))));
    assert!(saw(&late, &at(1)));
    // After a change only a new query counts.
    late.outdate();
    assert!(matches!(late.last_seen(), LastSeen::Outdated));
    late.run(ready(Ok(Some(at(2))))).await.unwrap();
    assert!(saw(&late, &at(2)));
}

fn saw(lead: &Lead<'_>, family: &Document) -> bool {
    matches!(lead.last_seen(), LastSeen::Family(seen) if *seen == *family)
}

/// A failure is not shared, a cancelled query blocks no caller, and a missing family is a result.
#[tokio::test(start_paused = true)]
async fn failures_are_not_shared() {
    let (coalescer, family) = (Coalescer::default(), FamilyId::new());
    let first = lead(&coalescer, family).await;
    let [mut second, mut third, mut last] =
        [(); 3].map(|()| Box::pin(coalescer.join(family, |_| true)));
    for one in [&mut second, &mut third, &mut last] {
        assert!(one.now_or_never().is_none());
    }
    first.run(ready(Err(MongoError::Closed))).await.unwrap_err();
    drop(first);
    let Join::Lead(second) = second.await else { panic!("nobody has found anything") };
    drop(second.run(pending()));
    drop(second);
    let Join::Lead(third) = third.await else { panic!("nobody has found anything") };
    assert_eq!(third.run(ready(Ok(None))).await.unwrap(), None);
    drop(third);
    assert!(matches!(last.await, Join::Shared(None)));
    drop(lead(&coalescer, family).await);
    assert!(coalescer.flights().is_empty());
}

/// A query that hangs is passed once; later callers do not wait for it.
#[tokio::test(start_paused = true)]
async fn a_hanging_lead_is_passed() {
    let (coalescer, family) = (Coalescer::default(), FamilyId::new());
    let stuck = lead(&coalescer, family).await;
    let next = timeout(LEAD_TIMEOUT * 2, lead(&coalescer, family)).await.unwrap();
    next.run(ready(Ok(Some(at(0))))).await.unwrap();
    drop(next);
    drop(lead(&coalescer, family).now_or_never().unwrap());
    drop(stuck);
    assert!(coalescer.flights().is_empty());
}

/// Only the age of the latest query counts, not results of earlier ones.
#[tokio::test(start_paused = true)]
async fn an_unusable_result_does_not_delay_the_next_query() {
    let (coalescer, family) = (Coalescer::default(), FamilyId::new());
    let first = lead(&coalescer, family).await;
    let sequence = first.next_sequence();
    let second = lead(&coalescer, family).await;
    let late = async {
        after(LEAD_TIMEOUT / 2).await;
        first.publish(sequence, None);
    };
    let (third, ()) = tokio::join!(timeout(LEAD_TIMEOUT * 5 / 4, lead(&coalescer, family)), late);
    assert!(third.is_ok());
    drop((second, third));
}

/// Callers to which a result is not usable query themselves, one at a time; its result serves the
/// others.
#[tokio::test(start_paused = true)]
async fn a_caller_without_a_usable_result_queries_itself() {
    let (coalescer, family, is_usable) =
        (Coalescer::default(), FamilyId::new(), |found: Option<&Document>| found != Some(&at(0)));
    let first = lead(&coalescer, family).await;
    let mut picky: Vec<_> = (0..50).map(|_| Box::pin(coalescer.join(family, is_usable))).collect();
    assert!(picky.iter_mut().all(|one| one.now_or_never().is_none()));
    first.run(ready(Ok(Some(at(0))))).await.unwrap();
    assert!(picky.iter_mut().all(|one| one.now_or_never().is_none()), "while the first one looks");
    drop(first);
    let others = picky.split_off(1);
    let Join::Lead(next) = picky.pop().unwrap().await else { panic!("it was served all the same") };
    next.run(ready(Ok(Some(at(1))))).await.unwrap();
    drop(next);
    for other in join_all(others).await {
        assert!(matches!(other, Join::Shared(Some(found)) if *found == at(1)));
    }
}
