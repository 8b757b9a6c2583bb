//! Query over the audit records of all chains, newest first.
//!
//! Records of one kind (action and outcome) are in the order of time in the index of kinds, and,
//! with one actor, tenant or target, in the index of keys. A list merges the kinds that its filter
//! admits: there are less than a hundred. With several keys it steps from the place in one index to
//! the next place in the other that is not newer, so that neither is read in whole.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rusqlite::{Connection, OptionalExtension};
use tokio::time::Instant;

use super::{chains, cuts, index, keyed, names, places, rows::StoredRecord};
use crate::{
    model::{Place, Record, Timestamp, event::Filter},
    store::{
        EventPage, Result,
        embedded::{Embedded, engine::error::SqliteError},
    },
};

/// Number of steps at a time, some milliseconds: other scans run in between, and a dropped caller
/// is noticed.
const STEPS_PER_SCAN: usize = 2_048;

/// Newest record of a kind that is not newer than a place, at its time, and before its time.
const OF_KIND: [&str; 2] = [
    "SELECT at, place FROM audit WHERE kind = ?1 AND at = ?2 AND place <= ?3
     ORDER BY place DESC LIMIT 1",
    "SELECT at, place FROM audit WHERE kind = ?1 AND at < ?2 ORDER BY at DESC, place DESC LIMIT 1",
];

/// As [`OF_KIND`], with a key.
const OF_KEY: [&str; 2] = [
    "SELECT at, place FROM audit_keys WHERE kind = ?1 AND at = ?2 AND place <= ?3 AND key = ?4
     ORDER BY place DESC LIMIT 1",
    "SELECT at, place FROM audit_keys WHERE kind = ?1 AND at < ?2 AND key = ?3
     ORDER BY at DESC, place DESC LIMIT 1",
];

const NEXT_KIND: &str = "SELECT kind FROM audit WHERE kind > ?1 ORDER BY kind LIMIT 1";

const NEXT_KIND_OF_KEY: &str =
    "SELECT kind FROM audit_keys WHERE key = ?2 AND kind > ?1 ORDER BY kind LIMIT 1";

/// Time and place of a record: the order of a list.
type Position = (i64, i64);

impl Embedded {
    pub(in crate::store::embedded) async fn query_newest(
        &self,
        filter: &Filter,
        before: Option<&Place>,
        limit: usize,
        patience: Duration,
    ) -> Result<EventPage> {
        let began = Instant::now();
        let mut page = EventPage { records: Vec::new(), next: before.cloned() };
        loop {
            let (filter, before) = (filter.clone(), page.next.take());
            let wanted = limit.saturating_sub(page.records.len());
            let part = move |connection: &Connection| {
                scan(connection, &filter, before.as_ref(), wanted, STEPS_PER_SCAN)
            };
            let part = self.scan(part).await?;
            page.records.extend(part.records);
            page.next = part.next;
            let is_done = page.next.is_none() || page.records.len() >= limit;
            if is_done || began.elapsed() >= patience {
                return Ok(page);
            }
        }
    }
}

/// Records of one kind, from the newest on.
struct Stream {
    kind: i64,
    /// Position after which nothing is left to read.
    bound: Position,
    /// True if the record at the bound has all keys.
    is_found: bool,
}

/// List in one view of the database.
struct Scan<'a> {
    connection: &'a Connection,
    filter: &'a Filter,
    keys: Vec<i64>,
    /// Chains by their ids; `None`: there is no such chain.
    chains: BTreeMap<i64, Option<Arc<str>>>,
    /// Places up to which chains are cut, by their ids.
    cuts: BTreeMap<i64, i64>,
}

/// Returns up to `limit` records after some `steps`, and the place from which to continue if there
/// may be more.
fn scan(
    connection: &Connection,
    filter: &Filter,
    before: Option<&Place>,
    limit: usize,
    steps: usize,
) -> Result<EventPage, SqliteError> {
    // The keys that are written, and those that are not, in one view.
    let transaction = connection.unchecked_transaction()?;
    let (chains, cuts) = (BTreeMap::new(), cuts::places(connection)?);
    let mut scan =
        Scan { connection: &transaction, filter, keys: index::of_filter(filter), chains, cuts };
    let newest = before.map_or(Ok((i64::MAX, i64::MAX)), |before| scan.position_before(before))?;
    scan.run(newest, limit, steps)
}

impl Scan<'_> {
    fn run(
        &mut self,
        newest: Position,
        limit: usize,
        steps: usize,
    ) -> Result<EventPage, SqliteError> {
        let newest = match self.filter.to {
            Some(to) => newest.min((to.millis().saturating_sub(1), i64::MAX)),
            None => newest,
        };
        let oldest = (self.filter.from.map_or(i64::MIN, Timestamp::millis), i64::MIN);
        let kinds = index::kinds_of(self.filter).map_or_else(|| self.all_kinds(), Ok)?;
        let mut unkeyed = self.unkeyed(&kinds, newest)?;
        let mut streams: Vec<Stream> =
            kinds.into_iter().map(|kind| Stream { kind, bound: newest, is_found: false }).collect();
        // Enough for each stream to move.
        let mut steps = steps.max(streams.len().saturating_add(1).saturating_mul(4));
        let mut records = Vec::new();
        loop {
            let next = unkeyed.last().map(|(position, _)| *position);
            // Of two at one bound first the one that only may have a record there: a page that ends
            // after the other's record begins after it.
            let stream = streams.iter_mut().max_by_key(|stream| (stream.bound, !stream.is_found));
            let stream = stream.filter(|stream| next.is_none_or(|next| next <= stream.bound));
            let bound = stream.as_ref().map(|stream| stream.bound).max(next);
            let Some(bound) = bound.filter(|bound| *bound >= oldest) else {
                return Ok(EventPage { records, next: None });
            };
            if records.len() >= limit || steps == 0 {
                let next = Some(self.place_after(bound)?);
                return Ok(EventPage { records, next });
            }
            steps = steps.saturating_sub(1);
            match stream {
                None => records.extend(unkeyed.pop().map(|(_, record)| record)),
                Some(stream) if stream.is_found => {
                    records.extend(self.record(bound.1)?);
                    (stream.bound, stream.is_found) = (below(bound), false);
                }
                Some(stream) => match self.step(stream.kind, bound)? {
                    Some(found) => {
                        // With one index the first place found is a record of the list.
                        stream.is_found = self.keys.len() < 2 || found == bound;
                        stream.bound = found;
                    }
                    None => {
                        let kind = stream.kind;
                        streams.retain(|stream| stream.kind != kind);
                    }
                },
            }
        }
    }

    /// Returns the newest position that is not after `bound` in any of the indexes; each starts
    /// where the one before it arrived.
    fn step(&self, kind: i64, bound: Position) -> Result<Option<Position>, SqliteError> {
        if self.keys.is_empty() {
            let (at, place) = bound;
            let found = self.position(OF_KIND[0], (kind, at, place))?;
            return found
                .map_or_else(|| self.position(OF_KIND[1], (kind, at)), |found| Ok(Some(found)));
        }
        let mut bound = bound;
        for key in &self.keys {
            let (at, place) = bound;
            let found = self.position(OF_KEY[0], (kind, at, place, key))?;
            let found = found.map_or_else(
                || self.position(OF_KEY[1], (kind, at, key)),
                |found| Ok(Some(found)),
            )?;
            let Some(found) = found else { return Ok(None) };
            bound = found;
        }
        Ok(Some(bound))
    }

    fn position(
        &self,
        sql: &str,
        parameters: impl rusqlite::Params,
    ) -> Result<Option<Position>, SqliteError> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let found = statement.query_row(parameters, |row| Ok((row.get(0)?, row.get(1)?)));
        Ok(found.optional()?)
    }

    /// Returns all kinds that there are, of the first key or of all records.
    fn all_kinds(&self) -> Result<Vec<i64>, SqliteError> {
        let (mut kinds, mut after) = (Vec::new(), -1);
        loop {
            let next = match self.keys.first() {
                Some(key) => {
                    let mut statement = self.connection.prepare_cached(NEXT_KIND_OF_KEY)?;
                    statement.query_row((after, key), |row| row.get(0)).optional()?
                }
                None => {
                    let mut statement = self.connection.prepare_cached(NEXT_KIND)?;
                    statement.query_row([after], |row| row.get(0)).optional()?
                }
            };
            let Some(kind) = next else { return Ok(kinds) };
            kinds.push(kind);
            after = kind;
        }
    }

    /// Returns the records whose keys are not written and that the filter admits, the newest last.
    fn unkeyed(
        &mut self,
        kinds: &[i64],
        newest: Position,
    ) -> Result<Vec<(Position, Record)>, SqliteError> {
        let own = match chains::own(self.connection)? {
            Some(own) if !self.keys.is_empty() => names::id_of(self.connection, &own)?,
            _ => None,
        };
        let Some(own) = own else { return Ok(Vec::new()) };
        let is_any_kind = self.filter.action.is_none() && self.filter.outcome.is_none();
        let (mut places, hints) = (Vec::new(), hints(self.filter));
        keyed::unkeyed(self.connection, own, |place, row| {
            let (kind, at) = (row.get(1)?, row.get(5)?);
            let text = row.get_ref(4)?.as_str().unwrap_or_default();
            if (is_any_kind || kinds.contains(&kind))
                && (at, place) <= newest
                && hints.iter().all(|hint| text.contains(hint))
            {
                places.push((at, place));
            }
            Ok(())
        })?;
        places.sort_unstable();
        let mut records = Vec::new();
        for position in places {
            records.extend(self.record(position.1)?.map(|record| (position, record)));
        }
        Ok(records)
    }

    /// Returns the record at a place if the filter admits it.
    fn record(&mut self, place: i64) -> Result<Option<Record>, SqliteError> {
        let (sequence, id) = (places::sequence_of(place), places::chain_of(place));
        let is_cut = self.cuts.get(&id).is_some_and(|cut| place <= *cut);
        let Some(chain) = self.chain(id)?.filter(|_| sequence > 0 && !is_cut) else {
            return Ok(None);
        };
        let sql = "SELECT place, kind, node, hash, event, at FROM audit WHERE place = ?1";
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query([place])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        // The index has the time also of an event that cannot be decoded.
        let at = Timestamp::from_millis(row.get(5)?);
        let record = StoredRecord::read(self.connection, &chain, row)?
            .record(&chain)
            .unwrap_or_else(|_| Record::unreadable(Place { at, chain, sequence }));
        Ok(self.filter.admits(&record.event).then_some(record))
    }

    fn chain(&mut self, id: i64) -> Result<Option<Arc<str>>, SqliteError> {
        if let Some(known) = self.chains.get(&id) {
            return Ok(known.clone());
        }
        let name = names::name_of(self.connection, id)?;
        self.chains.insert(id, name.clone());
        Ok(name)
    }

    /// Returns the newest position before a place, whether or not there is a record.
    fn position_before(&self, before: &Place) -> Result<Position, SqliteError> {
        let at = before.at.millis();
        Ok(match names::id_of(self.connection, &before.chain)? {
            Some(id) => below((at, places::place_of(id, before.sequence))),
            // Everything of the chains whose names are before it.
            None => {
                let id = names::id_before(self.connection, &before.chain)?;
                (at, places::last_place(id))
            }
        })
    }

    /// Returns the place directly after a position: a list that continues before it begins there.
    fn place_after(&mut self, (at, place): Position) -> Result<Place, SqliteError> {
        let id = places::chain_of(place);
        let at = Timestamp::from_millis(at);
        Ok(match self.chain(id)? {
            Some(chain) => {
                Place { at, chain, sequence: places::sequence_of(place).saturating_add(1) }
            }
            // Behind all chains.
            None => Place { at, chain: "\u{10ffff}".into(), sequence: u64::MAX },
        })
    }
}

/// Position directly before another.
const fn below((at, place): Position) -> Position {
    (at, place.saturating_sub(1))
}

/// Texts that occur in every event the filter admits: most others are skipped without being parsed.
fn hints(filter: &Filter) -> Vec<String> {
    let tenant = filter.tenant.as_ref().map(|tenant| format!("\"{tenant}\""));
    let actor = filter.actor.as_ref().and_then(|actor| serde_json::to_string(actor).ok());
    let target = filter.target.as_ref().and_then(|target| serde_json::to_string(target).ok());
    let family = filter.family.map(|family| format!("\"{family}\""));
    tenant.into_iter().chain(actor).chain(target).chain(family).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{
        crypto::chain::ChainKey,
        model::{Action, Event, FamilyId, Principal, Stamp, event::Outcome},
        store::{AuditStore, Store},
    };

    fn open(dir: &std::path::Path) -> Embedded {
        Embedded::open(dir, "node", ChainKey::new([1; 32])).unwrap()
    }

    /// Event of which each field repeats with another period.
    fn event(n: u64) -> Event {
        let action = match n % 7 {
            0 => Action::TokenRevoked,
            1 | 2 => Action::TokenRefreshed,
            _ => Action::TokenIssued,
        };
        let stamp = Stamp {
            tenant: (!n.is_multiple_of(5)).then(|| format!("t{}", n % 3).parse().unwrap()),
            actor: (!n.is_multiple_of(4)).then(|| match n % 11 {
                0 => Principal::Node,
                _ => Principal::Client(format!("c{}", n % 6).parse().unwrap()),
            }),
            // Forward and back, several at one time.
            ..Stamp::internal(Timestamp::from_millis(i64::try_from(n / 3 + n % 2).unwrap()))
        };
        let target = format!("x{}", n % 9);
        let event = match n % 8 {
            0 => stamp.refused(action, target, "invalid_grant"),
            _ => stamp.done(action, target),
        };
        if n.is_multiple_of(10) { event.in_family(FamilyId::new()) } else { event }
    }

    fn filters() -> Vec<Filter> {
        let of = Filter::default;
        let one = |text: &str| Some(text.to_owned());
        let actor = |n: u64| Some(Principal::Client(format!("c{n}").parse().unwrap()));
        let tenant = |n: u64| Some(format!("t{n}").parse().unwrap());
        let at = |millis| Some(Timestamp::from_millis(millis));
        let (refused, ok) = (Some(Outcome::Refused), Some(Outcome::Ok));
        vec![
            of(),
            Filter { tenant: tenant(1), ..of() },
            Filter { actor: actor(1), ..of() },
            Filter { actor: Some(Principal::Node), ..of() },
            Filter { action: one("token.revoked"), ..of() },
            Filter { action: one("token."), ..of() },
            Filter { action: one("keys."), ..of() },
            Filter { outcome: refused, ..of() },
            Filter { target: one("x4"), ..of() },
            Filter { from: at(40), to: at(60), ..of() },
            Filter { tenant: tenant(2), actor: actor(5), ..of() },
            Filter { actor: actor(5), action: one("token.revoked"), ..of() },
            Filter { tenant: tenant(1), target: one("x1"), outcome: ok, ..of() },
            Filter { tenant: tenant(1), actor: actor(1), target: one("x7"), ..of() },
            Filter { actor: actor(2), from: at(30), to: at(90), outcome: refused, ..of() },
            Filter { target: one("none"), ..of() },
            Filter { about: Some("x4".parse().unwrap()), ..of() },
            Filter { about: Some("c2".parse().unwrap()), outcome: refused, ..of() },
        ]
    }

    /// B05: parts of any length together are the whole list, with every filter, and whether or not
    /// the keys are written.
    #[tokio::test]
    async fn short_pages_neither_skip_nor_repeat() {
        for number in [200, 3_000] {
            let dir = tempfile::tempdir().unwrap();
            let store = open(dir.path());
            let mut all = Vec::new();
            for n in 1..=number {
                store.append_soon(event(n)).await.unwrap();
                all.push((event(n).at, n));
            }
            store.ready().await.unwrap();
            all.sort_unstable();
            for filter in filters() {
                let expected: Vec<u64> = all
                    .iter()
                    .rev()
                    .filter_map(|(_, n)| filter.admits(&event(*n)).then_some(*n))
                    .collect();
                for (steps, limit) in [(0, 3), (0, 1_000), (7, 5), (90, 10_000), (10_000, 10_000)] {
                    let (mut found, mut before, mut pages) = (Vec::new(), None::<Place>, 0);
                    loop {
                        let (of, from) = (filter.clone(), before.clone());
                        let part = store
                            .scan(move |connection| {
                                scan(connection, &of, from.as_ref(), limit, steps)
                            })
                            .await
                            .unwrap();
                        assert!(part.records.len() <= limit);
                        found.extend(part.records.iter().map(|record| record.sequence));
                        pages += 1;
                        let Some(next) = part.next else { break };
                        assert!(before.is_none_or(|before| next < before), "{filter:?}");
                        before = Some(next);
                        if limit == 3 && pages == 30 {
                            break;
                        }
                    }
                    let wanted = expected.get(..found.len()).unwrap_or(&expected);
                    assert_eq!(found, wanted, "{filter:?}, {steps}");
                    assert!(limit == 3 || found.len() == expected.len(), "{filter:?}, {steps}");
                }
            }
        }
    }

    /// B05: a page that gets no time has what was found, and goes on where it was.
    #[tokio::test]
    async fn a_page_without_patience_moves_on() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        for n in 1..=12_000 {
            // Each key is frequent, and no record has both.
            let (client, target) = if n % 2 == 0 { ("c0", "x1") } else { ("c1", "x0") };
            let actor = Some(Principal::Client(client.parse().unwrap()));
            let stamp = Stamp { actor, ..Stamp::internal(Timestamp::from_millis(n)) };
            store.append_soon(stamp.done(Action::TokenIssued, target)).await.unwrap();
        }
        store.ready().await.unwrap();
        let actor = Some(Principal::Client("c0".parse().unwrap()));
        let filter = Filter { actor, target: Some("x0".into()), ..Filter::default() };
        let (mut before, mut pages) = (None::<Place>, 0);
        loop {
            let page = store.page(&filter, before.as_ref(), 10, Duration::ZERO).await.unwrap();
            assert_eq!(page.records, []);
            pages += 1;
            let Some(next) = page.next else { break };
            assert!(before.is_none_or(|before| next < before));
            before = Some(next);
        }
        assert!((2..100).contains(&pages), "{pages}");
        assert_eq!(store.events(&filter, None, 10).await.unwrap(), []);
    }

    /// B05: a list is entered at its place and never sorted: the indexes have the order.
    #[tokio::test]
    async fn pages_are_read_from_indexes_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let plans = store.read(|connection| {
            let mut plans = Vec::new();
            for sql in OF_KIND.into_iter().chain(OF_KEY).chain([NEXT_KIND, NEXT_KIND_OF_KEY]) {
                let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
                let parameters = rusqlite::params_from_iter(vec![1; statement.parameter_count()]);
                let rows = statement.query_map(parameters, |row| row.get(3))?;
                plans.extend(rows.collect::<rusqlite::Result<Vec<String>>>()?);
            }
            Ok(plans)
        });
        let by_kind = "SEARCH audit USING INDEX audit_by_kind";
        let next_kind = "SEARCH audit USING COVERING INDEX audit_by_kind (kind>?)";
        let by_key = "SEARCH audit_keys USING PRIMARY KEY";
        assert_eq!(
            plans.await.unwrap(),
            [
                format!("{by_kind} (kind=? AND at=? AND rowid<?)"),
                format!("{by_kind} (kind=? AND at<?)"),
                format!("{by_key} (key=? AND kind=? AND at=? AND place<?)"),
                format!("{by_key} (key=? AND kind=? AND at<?)"),
                next_kind.to_owned(),
                format!("{by_key} (key=? AND kind>?)"),
            ]
        );
    }

    /// A store that ended without writing the gathered keys lists all the same, and writes them
    /// later.
    #[tokio::test]
    async fn gathered_keys_outlive_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let filter = Filter {
            target: Some("x4".into()),
            tenant: Some("t1".parse().unwrap()),
            ..Filter::default()
        };
        let mut expected = BTreeSet::new();
        for part in 0..10_u64 {
            let store = open(dir.path());
            for n in part * 300 + 1..=(part + 1) * 300 {
                store.append_soon(event(n)).await.unwrap();
                expected.extend(filter.admits(&event(n)).then_some(n));
            }
            store.ready().await.unwrap();
            let found = store.events(&filter, None, 10_000).await.unwrap();
            let found: BTreeSet<u64> = found.iter().map(|record| record.sequence).collect();
            assert_eq!(found, expected, "{part}");
            assert!(store.check().await.unwrap().is_intact(), "{part}");
            store.close().await.unwrap();
        }
        let store = open(dir.path());
        let keyed = store.read(keyed::keyed).await.unwrap();
        assert!(keyed > 1 << 40, "{keyed}");
    }
}
