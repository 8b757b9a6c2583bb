//! Equal refusals and alarms, counted: the first of a kind is recorded at once, the others of the
//! same minute in one record that says how many they were. So a caller that is refused again and
//! again fills neither the trail nor a budget behind which it is silent.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::model::{Action, Event, FamilyId, PeerKey, Principal, Timestamp};

/// Time for which equal refusals are counted before they are recorded.
const WINDOW: Duration = Duration::from_secs(60);
/// Maximum kinds of refusals that are counted separately.
pub(super) const TRACKED: usize = 20_000;

/// Refusals that are one record: of the same origin, action, target and reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    /// The caller's key, where it is not authenticated.
    peer: Option<PeerKey>,
    actor: Option<Principal>,
    action: Action,
    target: String,
    family: Option<FamilyId>,
    reason: Cow<'static, str>,
}

impl Kind {
    fn of(peer: Option<PeerKey>, event: &Event) -> Self {
        Self {
            peer,
            actor: event.actor.clone(),
            action: event.action,
            target: event.target.clone(),
            family: event.family,
            reason: event.reason.clone(),
        }
    }
}

/// Counts since the last record of each kind.
pub(super) struct Refusals {
    counted: Mutex<Counted>,
    cap: usize,
}

#[derive(Default)]
struct Counted {
    by_kind: HashMap<Kind, RefusalCount>,
    /// Refusals for whose kind there was no room.
    untracked: Option<RefusalCount>,
}

impl Counted {
    fn untracked(&mut self, now: Timestamp) -> &mut RefusalCount {
        self.untracked.get_or_insert_with(|| RefusalCount::new(now))
    }
}

struct RefusalCount {
    since: Timestamp,
    /// Not recorded yet, with the last of them.
    more: Option<(Event, u64)>,
    /// True if the store failed to record one of these: until it succeeds, each is recorded at
    /// once, so that no refusal is answered without a record.
    refused: bool,
}

impl RefusalCount {
    const fn new(since: Timestamp) -> Self {
        Self { since, more: None, refused: false }
    }
}

/// A record that is due, for a number of refusals.
pub(super) struct Due {
    pub(super) event: Event,
    kind: Option<Kind>,
    count: u64,
}

impl Refusals {
    pub(super) fn new(cap: usize) -> Self {
        Self { counted: Mutex::default(), cap }
    }

    /// Counts a refusal, or hands it back to be recorded at once: the first of its kind.
    pub(super) fn count(&self, peer: Option<PeerKey>, event: Event) -> Option<Event> {
        let kind = Kind::of(peer, &event);
        let mut counted = self.counted();
        if let Some(count) = counted.by_kind.get_mut(&kind) {
            if count.refused {
                return Some(event);
            }
            if count.more.is_none() && event.at.since(count.since) >= WINDOW {
                count.since = event.at;
                return Some(event);
            }
            add(&mut count.more, event);
            return None;
        }
        if counted.by_kind.len() >= self.cap {
            add(&mut counted.untracked(event.at).more, event);
            return None;
        }
        counted.by_kind.insert(kind, RefusalCount::new(event.at));
        Some(event)
    }

    /// Counts a refusal that could not be recorded.
    pub(super) fn keep(&self, peer: Option<PeerKey>, event: Event) {
        let kind = Kind::of(peer, &event);
        let mut counted = self.counted();
        if counted.by_kind.len() >= self.cap && !counted.by_kind.contains_key(&kind) {
            add(&mut counted.untracked(event.at).more, event);
            return;
        }
        let count = counted.by_kind.entry(kind).or_insert_with(|| RefusalCount::new(event.at));
        count.refused = true;
        add(&mut count.more, event);
    }

    /// Records that are due at `now`, or all of them, and forgets kinds of which there was no more.
    /// A written one is reported by [`Self::written`]; until then it stays.
    pub(super) fn due(&self, now: Timestamp, all: bool) -> Vec<Due> {
        let mut counted = self.counted();
        counted.by_kind.retain(|_, count| count.more.is_some() || now.since(count.since) < WINDOW);
        let is_over =
            |count: &RefusalCount| all || count.refused || now.since(count.since) >= WINDOW;
        let tracked = counted.by_kind.iter().filter(|(_, count)| is_over(count)).filter_map(
            |(kind, count)| {
                let (last, more) = count.more.as_ref()?;
                Some(Due {
                    event: summary(last, now, &format!("{more} more")),
                    kind: Some(kind.clone()),
                    count: *more,
                })
            },
        );
        let untracked = counted
            .untracked
            .as_ref()
            .filter(|count| is_over(count))
            .and_then(|count| count.more.as_ref());
        let untracked = untracked.map(|(last, count)| {
            let last = Event {
                target: String::new(),
                actor: None,
                auth: None,
                family: None,
                tenant: None,
                ..last.clone()
            };
            Due {
                event: summary(&last, now, &format!("{count} of many kinds")),
                kind: None,
                count: *count,
            }
        });
        tracked.chain(untracked).collect()
    }

    /// Removes the refusals of a written record. Their kind is counted for another minute.
    pub(super) fn written(&self, due: &Due, now: Timestamp) {
        let mut counted = self.counted();
        let Some(kind) = &due.kind else {
            if let Some(untracked) = &mut counted.untracked {
                take(&mut untracked.more, due.count);
            }
            counted.untracked = counted.untracked.take().filter(|count| count.more.is_some());
            return;
        };
        if let Some(count) = counted.by_kind.get_mut(kind) {
            take(&mut count.more, due.count);
            (count.since, count.refused) = (now, false);
        }
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn add(more: &mut Option<(Event, u64)>, event: Event) {
    let before = more.as_ref().map_or(0, |(_, count)| *count);
    *more = Some((event, before.saturating_add(1)));
}

fn take(more: &mut Option<(Event, u64)>, written: u64) {
    *more = more
        .take()
        .filter(|(_, count)| *count > written)
        .map(|(event, count)| (event, count - written));
}

fn summary(last: &Event, now: Timestamp, count: &str) -> Event {
    let reason =
        if last.reason.is_empty() { count.to_owned() } else { format!("{}, {count}", last.reason) };
    Event { at: now, reason: Cow::Owned(reason), ..last.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Stamp;

    const NOW: Timestamp = Timestamp::from_seconds(1_000_000);

    fn at(now: Timestamp, target: &str) -> Event {
        Stamp::internal(now).refused(Action::AuthenticationFailed, target, "slow_down")
    }

    /// The records that are due, and written.
    fn flush(refusals: &Refusals, now: Timestamp) -> Vec<(String, String)> {
        let due = refusals.due(now, false);
        due.iter().for_each(|due| refusals.written(due, now));
        let mut records: Vec<_> =
            due.into_iter().map(|due| (due.event.target, due.event.reason.into_owned())).collect();
        records.sort();
        records
    }

    fn record(target: &str, reason: &str) -> (String, String) {
        (target.to_owned(), reason.to_owned())
    }

    /// AZ7, TL14: the first at once, the others in one record a minute, and nothing is lost.
    #[test]
    fn equal_refusals_of_a_minute_are_one_record() {
        let refusals = Refusals::new(10);
        let recorded = |now: Timestamp, count: u32| {
            (0..count).filter(|_| refusals.count(None, at(now, "a")).is_some()).count()
        };
        assert_eq!(recorded(NOW, 5_000), 1);
        assert_eq!(flush(&refusals, NOW + WINDOW / 2), []);
        assert_eq!(recorded(NOW + WINDOW / 2, 1), 0);
        // Late housekeeping records nothing twice.
        assert_eq!(recorded(NOW + WINDOW, 1), 0);
        assert_eq!(flush(&refusals, NOW + WINDOW), [record("a", "slow_down, 5001 more")]);
        assert_eq!(flush(&refusals, NOW + WINDOW), []);
        assert_eq!(recorded(NOW + WINDOW, 3), 0, "one record a minute while it goes on");
        assert_eq!(flush(&refusals, NOW + WINDOW * 2), [record("a", "slow_down, 3 more")]);
        // After a quiet minute the next one is the first of its kind again.
        assert_eq!(recorded(NOW + WINDOW * 3, 2), 1);
        assert_eq!(flush(&refusals, NOW + WINDOW * 4), [record("a", "slow_down, 1 more")]);
        assert_eq!(flush(&refusals, NOW + WINDOW * 5), []);
        assert!(refusals.counted().by_kind.is_empty());
    }

    #[test]
    fn kinds_are_counted_apart() {
        let refusals = Refusals::new(10);
        let [here, there] =
            ["10.0.0.1", "10.0.0.2"].map(|ip| Some(ip.parse::<std::net::IpAddr>().unwrap().into()));
        for _ in 0..3 {
            refusals.count(here, at(NOW, "a"));
            refusals.count(here, at(NOW, "b"));
            refusals.count(there, at(NOW, "a"));
        }
        let more = "slow_down, 2 more";
        assert_eq!(
            flush(&refusals, NOW + WINDOW),
            [record("a", more), record("a", more), record("b", more)]
        );
    }

    /// A summary that could not be written stays, with the refusals of the meantime; nor is a
    /// refusal lost that could not be recorded at once.
    #[test]
    fn a_store_that_fails_loses_no_count() {
        let refusals = Refusals::new(10);
        for _ in 0..2 {
            let first = refusals.count(None, at(NOW, "a")).expect("it is tried again");
            refusals.keep(None, first);
        }
        assert_eq!(refusals.due(NOW, false).len(), 1, "as soon as it can be");
        let due = refusals.due(NOW, false);
        refusals.keep(None, at(NOW, "a"));
        refusals.written(&due[0], NOW);
        assert!(refusals.count(None, at(NOW, "a")).is_none());
        assert_eq!(due[0].event.reason, "slow_down, 2 more");
        let rest = refusals.due(NOW, true);
        assert_eq!(rest[0].event.reason, "slow_down, 2 more", "at the end of the process too");
    }

    /// A full table counts what it cannot tell apart.
    #[test]
    fn the_table_is_bounded_and_drops_no_count() {
        let refusals = Refusals::new(2);
        for n in 0..100 {
            refusals.count(None, at(NOW, &format!("client-{n}")));
        }
        refusals.keep(None, at(NOW, "client-100"));
        assert_eq!(refusals.counted().by_kind.len(), 2);
        assert_eq!(flush(&refusals, NOW), []);
        assert_eq!(flush(&refusals, NOW + WINDOW), [record("", "slow_down, 99 of many kinds")]);
        assert_eq!(flush(&refusals, NOW + WINDOW), []);
        assert!(
            refusals.count(None, at(NOW + WINDOW, "client-200")).is_some(),
            "there is room again"
        );
    }
}
