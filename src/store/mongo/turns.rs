//! Many callers with one refresh token. On this node they go one after the other, and what one finds serves all who asked before
//! it began to look: a hundred cost the database what a few do. Between nodes the database decides.

use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use mongodb::bson::Document;

use super::fault::Fault;
use crate::model::FamilyId;

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
    seen: tokio::sync::Mutex<Seen>,
}

/// What whoever had the last turn found.
#[derive(Default)]
struct Seen {
    /// How many had asked when that look began.
    before: u64,
    family: Option<Arc<Document>>,
}

impl Turns {
    /// Gets in line for a family.
    pub(super) fn ask(&self, family: FamilyId) -> Place<'_> {
        let line = self.lines().entry(family).or_default().clone();
        let number = line.asked.fetch_add(1, SeqCst);
        Place { turns: self, family, line, number }
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<FamilyId, Arc<Line>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in line; left when dropped.
pub(super) struct Place<'a> {
    turns: &'a Turns,
    family: FamilyId,
    line: Arc<Line>,
    number: u64,
}

impl Place<'_> {
    /// Waits until nobody on this node is ahead.
    pub(super) async fn turn(&self) -> Turn<'_> {
        Turn { seen: self.line.seen.lock().await, place: self }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut lines = self.turns.lines();
        // The map's and this one; others are only made under the same lock.
        if Arc::strong_count(&self.line) == 2 {
            lines.remove(&self.family);
        }
    }
}

/// The only one on this node that is busy with a family.
pub(super) struct Turn<'a> {
    place: &'a Place<'a>,
    seen: tokio::sync::MutexGuard<'a, Seen>,
}

impl Turn<'_> {
    /// What somebody found who began to look after this caller had asked. `Some(None)`: there is no such family.
    pub(super) fn found(&self) -> Option<Option<Arc<Document>>> {
        (self.place.number < self.seen.before).then(|| self.seen.family.clone())
    }

    /// Whether somebody saw a later generation than this. There is no way back from it.
    pub(super) fn is_past(&self, generation: u32) -> bool {
        let seen = self.seen.family.as_ref().and_then(|family| family.get_i64("generation").ok());
        seen.is_some_and(|seen| seen > i64::from(generation))
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
    use std::sync::atomic::AtomicUsize;

    use futures_util::future::{join_all, pending, ready};
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
            let place = turns.ask(family);
            let mut turn = place.turn().await;
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
        let (early, mut late) = (turns.ask(family), None);
        let mut turn = early.turn().await;
        let look = async {
            late = Some(turns.ask(family));
            Ok(Some(at(0)))
        };
        assert_eq!(*turn.look(look).await.unwrap().unwrap(), at(0));
        drop(turn);
        assert!(late.unwrap().turn().await.found().is_none());
    }

    /// One that failed says nothing to the next, one that gives up holds nobody up, and a family that is not there is an answer.
    #[tokio::test]
    async fn failures_are_nobody_elses() {
        let (turns, family) = (Turns::default(), FamilyId::new());
        let places = [turns.ask(family), turns.ask(family), turns.ask(family), turns.ask(family)];
        places[0].turn().await.look(ready(Err(Fault::Closed))).await.unwrap_err();
        let mut turn = places[1].turn().await;
        assert!(turn.found().is_none());
        drop(turn.look(pending()));
        drop(turn);
        let mut turn = places[2].turn().await;
        assert!(turn.found().is_none());
        assert_eq!(turn.look(ready(Ok(None))).await.unwrap(), None);
        drop(turn);
        assert_eq!(places[3].turn().await.found(), Some(None));
        let [_, _, _, last] = places;
        assert_eq!(last.turn().await.found(), Some(None), "as long as anybody is in line");
        drop(last);
        assert_eq!(turns.ask(family).turn().await.found(), None);
    }

    #[tokio::test]
    async fn a_generation_that_was_seen_is_not_tried_again() {
        let (turns, family) = (Turns::default(), FamilyId::new());
        let place = turns.ask(family);
        let mut turn = place.turn().await;
        assert!(!turn.is_past(0));
        let before = turn.before();
        turn.saw(before, Some(Arc::new(at(3))));
        assert!(turn.is_past(2) && !turn.is_past(3) && !turn.is_past(u32::MAX));
    }
}
