//! Many callers with one refresh token. On this node they go one after the other, and what one finds serves all who asked before
//! it began to look: a hundred cost the database what a few do. Between nodes the database decides.

use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use mongodb::bson::Document;
use tokio::{sync::OwnedMutexGuard, time::timeout};

use super::fault::Fault;
use crate::model::FamilyId;

/// How long the one ahead may take before those behind it go on without it: its connection may be dead.
const PATIENCE: Duration = Duration::from_millis(250);

/// The families that somebody is busy with.
#[derive(Default)]
pub(super) struct Turns {
    lines: Mutex<HashMap<FamilyId, Arc<Line>>>,
}

/// Those who want one family.
#[derive(Default)]
struct Line {
    /// How many have asked so far.
    asked: AtomicU64,
    /// How many are in it; changed only while the map is locked.
    length: AtomicUsize,
    seen: Arc<tokio::sync::Mutex<Seen>>,
}

/// What whoever had the last turn found.
#[derive(Default)]
struct Seen {
    /// How many had asked when that look began.
    before: u64,
    family: Option<Arc<Document>>,
}

impl Turns {
    /// Waits until nobody on this node is ahead.
    pub(super) async fn turn(&self, family: FamilyId) -> Turn<'_> {
        loop {
            let place = self.ask(family);
            if let Ok(seen) = timeout(PATIENCE, place.line.seen.clone().lock_owned()).await {
                return Turn { seen, place };
            }
            // Whoever comes from now on gets in another line, with those who waited here.
            let mut lines = self.lines();
            if lines.get(&family).is_some_and(|line| Arc::ptr_eq(line, &place.line)) {
                lines.remove(&family);
            }
        }
    }

    fn ask(&self, family: FamilyId) -> Place<'_> {
        let mut lines = self.lines();
        let line = lines.entry(family).or_default().clone();
        line.length.fetch_add(1, SeqCst);
        drop(lines);
        let number = line.asked.fetch_add(1, SeqCst);
        Place { turns: self, family, line, number }
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<FamilyId, Arc<Line>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in line; left when dropped.
struct Place<'a> {
    turns: &'a Turns,
    family: FamilyId,
    line: Arc<Line>,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut lines = self.turns.lines();
        let was_last = self.line.length.fetch_sub(1, SeqCst) == 1;
        if was_last && lines.get(&self.family).is_some_and(|line| Arc::ptr_eq(line, &self.line)) {
            lines.remove(&self.family);
        }
    }
}

/// The only one in its line that is busy with a family.
pub(super) struct Turn<'a> {
    // Before the place: who is next finds the line as long as anybody is in it.
    seen: OwnedMutexGuard<Seen>,
    place: Place<'a>,
}

impl Turn<'_> {
    /// What somebody found who began to look after this caller had asked. `Some(None)`: there is no such family.
    pub(super) fn found(&self) -> Option<Option<Arc<Document>>> {
        (self.place.number < self.seen.before).then(|| self.seen.family.clone())
    }

    /// The newest generation that anybody in this line saw.
    pub(super) fn generation(&self) -> Option<i64> {
        self.seen.family.as_ref().and_then(|family| family.get_i64("generation").ok())
    }

    /// What this finds, for this caller and all who asked before. Who failed has found nothing: the next one looks itself.
    pub(super) async fn look(
        &mut self,
        look: impl Future<Output = Result<Option<Document>, Fault>>,
    ) -> Result<Option<Arc<Document>>, Fault> {
        let before = self.before();
        let found = look.await?.map(Arc::new);
        self.saw(before, found.clone());
        Ok(found)
    }

    /// How many have asked so far; to be taken before a look begins, for [`saw`](Self::saw).
    pub(super) fn before(&self) -> u64 {
        self.place.line.asked.load(SeqCst)
    }

    /// What was found, by a look that so many had asked before.
    pub(super) fn saw(&mut self, before: u64, family: Option<Arc<Document>>) {
        *self.seen = Seen { before, family };
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, sync::atomic::AtomicUsize};

    use futures_util::{
        FutureExt,
        future::{join_all, pending, ready},
    };
    use mongodb::bson::doc;
    use tokio::{sync::Notify, task::yield_now};

    use super::*;

    fn at(generation: i64) -> Document {
        doc! { "generation": generation }
    }

    /// Fifty who ask at once: what the first one sees may be older than the others' asking, what the second one sees is not.
    #[tokio::test]
    async fn what_one_sees_serves_all_who_asked_before() {
        let (turns, family, looks, begin) = (Turns::default(), FamilyId::new(), AtomicUsize::new(0), Notify::new());
        let caller = async || {
            let mut turn = turns.turn(family).await;
            if let Some(found) = turn.found() {
                return found;
            }
            let look = async {
                let look = looks.fetch_add(1, SeqCst);
                begin.notified().await;
                Ok(Some(at(i64::try_from(look).unwrap())))
            };
            turn.look(look).await.unwrap()
        };
        let first = async {
            yield_now().await;
            begin.notify_one();
            yield_now().await;
            begin.notify_one();
        };
        let (one, others, ()) = tokio::join!(caller(), join_all((0..49).map(|_| caller())), first);
        assert_eq!(*one.unwrap(), at(0));
        assert!(others.into_iter().all(|other| *other.unwrap() == at(1)));
        assert_eq!(looks.into_inner(), 2);
        assert!(turns.lines().is_empty(), "nobody is in line, and nothing is kept");
    }

    /// Who asked after a look had begun may know of a change that it did not see.
    #[tokio::test]
    async fn an_older_look_serves_nobody() {
        let (turns, family) = (Turns::default(), FamilyId::new());
        let mut late = pin!(turns.turn(family));
        let mut turn = turns.turn(family).await;
        let look = async {
            assert!(late.as_mut().now_or_never().is_none());
            Ok(Some(at(0)))
        };
        assert_eq!(*turn.look(look).await.unwrap().unwrap(), at(0));
        drop(turn);
        let late = late.await;
        assert_eq!((late.found(), late.generation()), (None, Some(0)));
    }

    /// One that failed says nothing to the next, one that gives up holds nobody up, and a family that is not there is an answer.
    #[tokio::test]
    async fn failures_are_nobody_elses() {
        let (turns, family) = (Turns::default(), FamilyId::new());
        let mut turn = turns.turn(family).await;
        let [mut second, mut third, mut last] = [(); 3].map(|()| Box::pin(turns.turn(family)));
        for one in [&mut second, &mut third, &mut last] {
            assert!(one.now_or_never().is_none());
        }
        turn.look(ready(Err(Fault::Closed))).await.unwrap_err();
        drop(turn);
        let mut turn = second.await;
        assert_eq!(turn.found(), None);
        drop(turn.look(pending()));
        drop(turn);
        let mut turn = third.await;
        assert_eq!(turn.found(), None);
        assert_eq!(turn.look(ready(Ok(None))).await.unwrap(), None);
        drop(turn);
        assert_eq!(last.await.found(), Some(None));
        assert_eq!(turns.turn(family).await.found(), None, "the line has gone with the last who was in it");
        assert!(turns.lines().is_empty());
    }

    /// Who is stuck holds nobody up for long, and those who waited go on together.
    #[tokio::test(start_paused = true)]
    async fn who_is_stuck_is_passed() {
        let (turns, family, looks) = (Turns::default(), FamilyId::new(), AtomicUsize::new(0));
        let stuck = turns.turn(family).await;
        let caller = async || {
            let mut turn = turns.turn(family).await;
            if turn.found().is_some() {
                return;
            }
            let look = async {
                looks.fetch_add(1, SeqCst);
                timeout(PATIENCE / 5, pending::<()>()).await.unwrap_err();
                Ok(Some(at(0)))
            };
            turn.look(look).await.unwrap();
        };
        timeout(PATIENCE * 2, join_all((0..50).map(|_| caller()))).await.unwrap();
        assert_eq!(looks.into_inner(), 2);
        drop(stuck);
        assert!(turns.lines().is_empty());
    }
}
