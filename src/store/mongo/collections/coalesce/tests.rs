//! Who looks, and whom that serves. The clock is given.

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

async fn look(turns: &Turns, family: FamilyId) -> Look<'_> {
    match turns.turn(family, |_| true).await {
        Turn::Look(look) => look,
        Turn::Found(found) => panic!("{found:?}"),
    }
}

async fn after(time: Duration) {
    timeout(time, pending::<()>()).await.unwrap_err();
}

/// Callers whose looks take so long; how many looked until all were served, and how long that took.
async fn looks_of(callers: usize, time: Duration) -> (usize, Duration) {
    let (turns, family, looks) = (Turns::default(), FamilyId::new(), AtomicUsize::new(0));
    let caller = async || {
        if let Turn::Look(look) = turns.turn(family, |_| true).await {
            looks.fetch_add(1, SeqCst);
            let slow = async {
                after(time).await;
                Ok(Some(at(0)))
            };
            look.find(slow).await.unwrap();
        }
    };
    let begin = tokio::time::Instant::now();
    join_all((0..callers).map(|_| caller())).await;
    assert!(turns.lines().is_empty(), "nobody is in line, and nothing is kept");
    (looks.into_inner(), begin.elapsed())
}

/// Of many who ask at once the first one's look may be older than the others' asking, the second
/// one's is not.
#[tokio::test(start_paused = true)]
async fn what_one_finds_serves_all_who_asked_before() {
    let (looks, took) = looks_of(50, PATIENCE / 10).await;
    assert_eq!(looks, 2);
    assert!(took < PATIENCE / 4, "{took:?}");
}

/// Looks that take longer than the patience serve as many: a few more look, the last of them before
/// the first has ended.
#[tokio::test(start_paused = true)]
async fn slow_looks_serve_as_many() {
    for times in [1, 2, 4] {
        let (looks, took) = looks_of(500, PATIENCE * times).await;
        assert!(looks <= 6, "{looks}");
        assert!(took <= PATIENCE * (times * 2 + 1), "{took:?}");
    }
}

/// Who asked after a look had begun may know of a change that it did not see.
#[tokio::test(start_paused = true)]
async fn an_older_look_serves_nobody() {
    let (turns, family) = (Turns::default(), FamilyId::new());
    let mut late = pin!(turns.turn(family, |_| true));
    let first = look(&turns, family).await;
    let found = async {
        assert!(late.as_mut().now_or_never().is_none());
        Ok(Some(at(0)))
    };
    assert_eq!(*first.find(found).await.unwrap().unwrap(), at(0));
    assert!(late.as_mut().now_or_never().is_none(), "the first one is still at it");
    drop(first);
    let Turn::Look(late) = late.await else { panic!("it was served by an older look") };
    assert_eq!(late.seen().as_deref(), Some(&at(0)));
    // Nor does one that comes to its end late take the place of a newer one.
    let (before, newer) = (late.before(), at(1));
    late.find(ready(Ok(Some(newer)))).await.unwrap();
    late.found(before, Some(Arc::new(at(0))));
    assert_eq!(late.seen().as_deref(), Some(&at(1)));
}

/// One that failed says nothing to the next, one that gives up holds nobody up, and a family that
/// is not there is an answer.
#[tokio::test(start_paused = true)]
async fn failures_are_nobody_elses() {
    let (turns, family) = (Turns::default(), FamilyId::new());
    let first = look(&turns, family).await;
    let [mut second, mut third, mut last] =
        [(); 3].map(|()| Box::pin(turns.turn(family, |_| true)));
    for one in [&mut second, &mut third, &mut last] {
        assert!(one.now_or_never().is_none());
    }
    first.find(ready(Err(MongoError::Closed))).await.unwrap_err();
    drop(first);
    let Turn::Look(second) = second.await else { panic!("nobody has found anything") };
    drop(second.find(pending()));
    drop(second);
    let Turn::Look(third) = third.await else { panic!("nobody has found anything") };
    assert_eq!(third.find(ready(Ok(None))).await.unwrap(), None);
    drop(third);
    assert!(matches!(last.await, Turn::Found(None)));
    drop(look(&turns, family).await);
    assert!(turns.lines().is_empty());
}

/// Who is stuck is passed, once; who comes afterwards does not wait for it.
#[tokio::test(start_paused = true)]
async fn who_is_stuck_is_passed() {
    let (turns, family) = (Turns::default(), FamilyId::new());
    let stuck = look(&turns, family).await;
    let next = timeout(PATIENCE * 2, look(&turns, family)).await.unwrap();
    next.find(ready(Ok(Some(at(0))))).await.unwrap();
    drop(next);
    drop(look(&turns, family).now_or_never().unwrap());
    drop(stuck);
    assert!(turns.lines().is_empty());
}

/// How long somebody has looked counts, not what those who began earlier find meanwhile.
#[tokio::test(start_paused = true)]
async fn what_serves_nobody_does_not_delay_the_next_look() {
    let (turns, family) = (Turns::default(), FamilyId::new());
    let first = look(&turns, family).await;
    let before = first.before();
    let second = look(&turns, family).await;
    let late = async {
        after(PATIENCE / 2).await;
        first.found(before, None);
    };
    let (third, ()) = tokio::join!(timeout(PATIENCE * 5 / 4, look(&turns, family)), late);
    assert!(third.is_ok());
    drop((second, third));
}

/// Those whom nothing serves look themselves, one of them; what it finds serves the others.
#[tokio::test(start_paused = true)]
async fn who_is_not_served_looks_itself() {
    let (turns, family, serves) =
        (Turns::default(), FamilyId::new(), |found: Option<&Document>| found != Some(&at(0)));
    let first = look(&turns, family).await;
    let mut picky: Vec<_> = (0..50).map(|_| Box::pin(turns.turn(family, serves))).collect();
    assert!(picky.iter_mut().all(|one| one.now_or_never().is_none()));
    first.find(ready(Ok(Some(at(0))))).await.unwrap();
    assert!(picky.iter_mut().all(|one| one.now_or_never().is_none()), "while the first one looks");
    drop(first);
    let others = picky.split_off(1);
    let Turn::Look(next) = picky.pop().unwrap().await else { panic!("it was served all the same") };
    next.find(ready(Ok(Some(at(1))))).await.unwrap();
    drop(next);
    for other in join_all(others).await {
        assert!(matches!(other, Turn::Found(Some(found)) if *found == at(1)));
    }
}
