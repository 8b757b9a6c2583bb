//! Single-flight access to a refresh family on this node: one task queries MongoDB, and its result
//! is given to every caller that was waiting before the query began. A hundred callers cost the
//! database what a few do. Between nodes the database decides.
//!
//! | state of a family | event | next |
//! |--|--|--|
//! | no flight | a caller joins | flight; the caller leads |
//! | led | a caller joins | led; the caller waits with a numbered ticket |
//! | led | the lead publishes a result | led; waiting callers with a lower number may use it |
//! | led | the lead changes the family | led; the next lead reads it first |
//! | led | the lead is dropped | a waiting caller leads, if no result is usable to it |
//! | led | [`LEAD_TIMEOUT`] passes | a second caller leads as well |
//! | any | the last ticket is dropped | no flight |

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

/// Time after which a second caller queries as well: the first one's connection may be dead.
const LEAD_TIMEOUT: Duration = Duration::from_millis(250);

/// Families with callers in flight.
#[derive(Default)]
pub(crate) struct Coalescer {
    flights: Mutex<HashMap<FamilyId, Flight>>,
}

/// Callers that want one family.
type Flight = Arc<watch::Sender<FlightState>>;

#[derive(Default)]
struct FlightState {
    /// Numbers given out, to callers and to queries; and callers that are still waiting.
    issued: u64,
    waiting: usize,
    /// Number of leads so far, and the latest of them while it runs: earlier ones are no longer
    /// waited for.
    leads: u64,
    leading: Option<u64>,
    last: LastResult,
    /// True if a lead has changed the family since.
    is_outdated: bool,
}

/// Result of the newest query.
#[derive(Clone, Default)]
struct LastResult {
    /// Number of the query: callers with a lower one joined before it began.
    sequence: u64,
    family: Option<Arc<Document>>,
}

/// Family as a lead finds it in its flight.
pub(super) enum LastSeen {
    /// No query has found it.
    Nothing,
    /// A lead has changed it since.
    Outdated,
    /// As the newest query found it.
    Family(Arc<Document>),
}

/// Role of a caller.
pub(super) enum Join<'a> {
    /// Another caller's query, which began after this caller joined, has the result. `None`: there
    /// is no such family.
    Shared(Option<Arc<Document>>),
    /// The caller queries itself.
    Lead(Lead<'a>),
}

impl Coalescer {
    /// Waits until another caller's result `is_usable` to this one, or until it must query itself:
    /// no query is running, or the running one exceeds [`LEAD_TIMEOUT`].
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

/// Number of a caller in a flight; the last one to be dropped ends the flight.
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

/// Right to query a family. Dropped without a result, it passes to the next caller.
pub(super) struct Lead<'a> {
    ticket: Ticket<'a>,
    number: u64,
}

impl Lead<'_> {
    /// Family in the newest result.
    pub(super) fn last_seen(&self) -> LastSeen {
        let state = self.ticket.flight.borrow();
        match &state.last.family {
            _ if state.is_outdated => LastSeen::Outdated,
            Some(family) => LastSeen::Family(family.clone()),
            None => LastSeen::Nothing,
        }
    }

    /// Notes that this lead has changed the family. Callers that joined before may still use the
    /// newest result: it was true while they waited.
    pub(super) fn outdate(&self) {
        self.ticket.flight.send_if_modified(|state| {
            state.is_outdated = true;
            false
        });
    }

    /// Runs a query for itself and all callers that joined before.
    pub(crate) async fn run(
        &self,
        query: impl Future<Output = Result<Option<Document>, MongoError>>,
    ) -> Result<Option<Arc<Document>>, MongoError> {
        let sequence = self.next_sequence();
        let found = query.await?.map(Arc::new);
        self.publish(sequence, found.clone());
        Ok(found)
    }

    /// Returns a number between the callers so far and later ones; taken before a query.
    fn next_sequence(&self) -> u64 {
        let mut number = 0;
        self.ticket.flight.send_if_modified(|state| {
            number = state.issued;
            state.issued += 1;
            false
        });
        number
    }

    /// Publishes the result of the query with this number.
    fn publish(&self, sequence: u64, family: Option<Arc<Document>>) {
        self.ticket.flight.send_if_modified(|state| {
            let is_newer = sequence > state.last.sequence;
            if is_newer {
                state.last = LastResult { sequence, family };
                state.is_outdated = false;
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
