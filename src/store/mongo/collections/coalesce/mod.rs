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
const LEAD_TIMEOUT: Duration = Duration::from_millis(250);

/// The families that somebody is busy with.
#[derive(Default)]
pub(crate) struct Coalescer {
    flights: Mutex<HashMap<FamilyId, Flight>>,
}

/// Those who want one family.
type Flight = Arc<watch::Sender<State>>;

#[derive(Default)]
struct State {
    /// How many have asked or looked, and how many of those who asked are still here.
    issued: u64,
    waiting: usize,
    /// How many began to look, and the last of them, while it looks: those it has passed are waited
    /// for no more.
    leads: u64,
    leading: Option<u64>,
    last: LastResult,
}

/// What the newest look found.
#[derive(Clone, Default)]
struct LastResult {
    /// Its number: whoever has a lower one asked before it began.
    sequence: u64,
    family: Option<Arc<Document>>,
}

/// What a caller has to do.
pub(super) enum Join<'a> {
    /// Nothing: somebody looked who had begun after this caller asked. `None`: there is no such
    /// family.
    Shared(Option<Arc<Document>>),
    /// Look itself.
    Lead(Lead<'a>),
}

impl Coalescer {
    /// Waits until somebody has found what `is_usable` this caller, or it has to look itself: it is
    /// the only one, or whoever looks takes too long.
    pub(super) async fn join(
        &self,
        family: FamilyId,
        is_usable: impl Fn(Option<&Document>) -> bool,
    ) -> Join<'_> {
        let ticket = self.take_ticket(family);
        let mut updates = ticket.flight.subscribe();
        let (mut judged_sequence, mut leads, mut is_late) = (0, 0, false);
        let mut lead_deadline = Instant::now() + LEAD_TIMEOUT;
        loop {
            updates.mark_unchanged();
            let mut found = None;
            let mut lead = None;
            ticket.flight.send_if_modified(|state| {
                if ticket.number < state.last.sequence && judged_sequence < state.last.sequence {
                    judged_sequence = state.last.sequence;
                    found = Some(state.last.family.clone());
                    return false;
                }
                if state.leading.is_none() || (is_late && state.leads == leads) {
                    state.leads += 1;
                    (state.leading, lead) = (Some(state.leads), Some(state.leads));
                }
                if state.leads != leads {
                    (leads, lead_deadline) = (state.leads, Instant::now() + LEAD_TIMEOUT);
                }
                lead.is_some()
            });
            match (found, lead) {
                (Some(found), _) if is_usable(found.as_deref()) => return Join::Shared(found),
                (Some(_), _) => {}
                (None, Some(number)) => return Join::Lead(Lead { ticket, number }),
                (None, None) => {
                    is_late = timeout_at(lead_deadline, updates.changed()).await.is_err()
                }
            }
        }
    }

    fn take_ticket(&self, family: FamilyId) -> Ticket<'_> {
        let mut flights = self.flights();
        let flight = flights.entry(family).or_default().clone();
        let mut number = 0;
        flight.send_if_modified(|state| {
            number = state.issued;
            state.issued += 1;
            state.waiting += 1;
            false
        });
        Ticket { coalescer: self, family, flight, number }
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<FamilyId, Flight>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in line; left when dropped, and the last one takes the line along.
struct Ticket<'a> {
    coalescer: &'a Coalescer,
    family: FamilyId,
    flight: Flight,
    number: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut flights = self.coalescer.flights();
        let mut is_last = false;
        self.flight.send_if_modified(|state| {
            state.waiting -= 1;
            is_last = state.waiting == 0;
            false
        });
        if is_last {
            flights.remove(&self.family);
        }
    }
}

/// Whoever looks at a family. Who is dropped without having found anything leaves it to the next.
pub(super) struct Lead<'a> {
    ticket: Ticket<'a>,
    number: u64,
}

impl Lead<'_> {
    /// The family as it was seen last.
    pub(crate) fn last_result(&self) -> Option<Arc<Document>> {
        self.ticket.flight.borrow().last.family.clone()
    }

    /// Finds this, for itself and all who asked before.
    pub(crate) async fn run(
        &self,
        query: impl Future<Output = Result<Option<Document>, MongoError>>,
    ) -> Result<Option<Arc<Document>>, MongoError> {
        let sequence = self.next_sequence();
        let found = query.await?.map(Arc::new);
        self.publish(sequence, found.clone());
        Ok(found)
    }

    /// A number between those who have asked so far and those who will; to be taken before looking,
    /// for [`found`](Self::found).
    pub(crate) fn next_sequence(&self) -> u64 {
        let mut number = 0;
        self.ticket.flight.send_if_modified(|state| {
            number = state.issued;
            state.issued += 1;
            false
        });
        number
    }

    /// This was found, by a look of that number.
    pub(crate) fn publish(&self, sequence: u64, family: Option<Arc<Document>>) {
        self.ticket.flight.send_if_modified(|state| {
            let is_newer = sequence > state.last.sequence;
            if is_newer {
                state.last = LastResult { sequence, family };
            }
            is_newer
        });
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        self.ticket.flight.send_if_modified(|state| {
            let was_current = state.leading == Some(self.number);
            if was_current {
                state.leading = None;
            }
            was_current
        });
    }
}

#[cfg(test)]
mod tests;
