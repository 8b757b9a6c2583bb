//! Many callers with one refresh token. On this node one of them looks at the family, and what it
//! finds serves all who asked before it began: a hundred cost the database what a few do. Between
//! nodes the database decides.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mongodb::bson::Document;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{model::FamilyId, store::mongo::driver::error::MongoError};

/// How long whoever looks may take before another one looks as well: its connection may be dead.
const PATIENCE: Duration = Duration::from_millis(250);

/// The families that somebody is busy with.
#[derive(Default)]
pub(crate) struct Turns {
    lines: Mutex<HashMap<FamilyId, Line>>,
}

/// Those who want one family.
type Line = Arc<watch::Sender<State>>;

#[derive(Default)]
struct State {
    /// How many have asked or looked, and how many of those who asked are still here.
    asked: u64,
    here: usize,
    /// How many began to look, and the last of them, while it looks: those it has passed are waited
    /// for no more.
    began: u64,
    looking: Option<u64>,
    seen: Seen,
}

/// What the newest look found.
#[derive(Clone, Default)]
struct Seen {
    /// Its number: whoever has a lower one asked before it began.
    before: u64,
    family: Option<Arc<Document>>,
}

/// What a caller has to do.
pub(super) enum Turn<'a> {
    /// Nothing: somebody looked who had begun after this caller asked. `None`: there is no such
    /// family.
    Found(Option<Arc<Document>>),
    /// Look itself.
    Look(Look<'a>),
}

impl Turns {
    /// Waits until somebody has found what `serves` this caller, or it has to look itself: it is
    /// the only one, or whoever looks takes too long.
    pub(super) async fn turn(
        &self,
        family: FamilyId,
        serves: impl Fn(Option<&Document>) -> bool,
    ) -> Turn<'_> {
        let place = self.ask(family);
        let mut news = place.line.subscribe();
        let (mut judged, mut began, mut is_late) = (0, 0, false);
        let mut patience = Instant::now() + PATIENCE;
        loop {
            news.mark_unchanged();
            let mut found = None;
            let mut look = None;
            place.line.send_if_modified(|state| {
                if place.number < state.seen.before && judged < state.seen.before {
                    judged = state.seen.before;
                    found = Some(state.seen.family.clone());
                    return false;
                }
                if state.looking.is_none() || (is_late && state.began == began) {
                    state.began += 1;
                    (state.looking, look) = (Some(state.began), Some(state.began));
                }
                if state.began != began {
                    (began, patience) = (state.began, Instant::now() + PATIENCE);
                }
                look.is_some()
            });
            match (found, look) {
                (Some(found), _) if serves(found.as_deref()) => return Turn::Found(found),
                (Some(_), _) => {}
                (None, Some(number)) => return Turn::Look(Look { place, number }),
                (None, None) => is_late = timeout_at(patience, news.changed()).await.is_err(),
            }
        }
    }

    fn ask(&self, family: FamilyId) -> Place<'_> {
        let mut lines = self.lines();
        let line = lines.entry(family).or_default().clone();
        let mut number = 0;
        line.send_if_modified(|state| {
            number = state.asked;
            state.asked += 1;
            state.here += 1;
            false
        });
        Place { turns: self, family, line, number }
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<FamilyId, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in line; left when dropped, and the last one takes the line along.
struct Place<'a> {
    turns: &'a Turns,
    family: FamilyId,
    line: Line,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut lines = self.turns.lines();
        let mut is_last = false;
        self.line.send_if_modified(|state| {
            state.here -= 1;
            is_last = state.here == 0;
            false
        });
        if is_last {
            lines.remove(&self.family);
        }
    }
}

/// Whoever looks at a family. Who is dropped without having found anything leaves it to the next.
pub(super) struct Look<'a> {
    place: Place<'a>,
    number: u64,
}

impl Look<'_> {
    /// The family as it was seen last.
    pub(crate) fn seen(&self) -> Option<Arc<Document>> {
        self.place.line.borrow().seen.family.clone()
    }

    /// Finds this, for itself and all who asked before.
    pub(crate) async fn find(
        &self,
        look: impl Future<Output = Result<Option<Document>, MongoError>>,
    ) -> Result<Option<Arc<Document>>, MongoError> {
        let before = self.before();
        let found = look.await?.map(Arc::new);
        self.found(before, found.clone());
        Ok(found)
    }

    /// A number between those who have asked so far and those who will; to be taken before looking,
    /// for [`found`](Self::found).
    pub(crate) fn before(&self) -> u64 {
        let mut number = 0;
        self.place.line.send_if_modified(|state| {
            number = state.asked;
            state.asked += 1;
            false
        });
        number
    }

    /// This was found, by a look of that number.
    pub(crate) fn found(&self, before: u64, family: Option<Arc<Document>>) {
        self.place.line.send_if_modified(|state| {
            let is_newer = before > state.seen.before;
            if is_newer {
                state.seen = Seen { before, family };
            }
            is_newer
        });
    }
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        self.place.line.send_if_modified(|state| {
            let was_last = state.looking == Some(self.number);
            if was_last {
                state.looking = None;
            }
            was_last
        });
    }
}

#[cfg(test)]
mod tests;
