//! Keys by which a filtered list finds its records.
//!
//! | key | index | written |
//! |--|--|--|
//! | action and outcome (kind), time | `audit_by_kind` | with the record |
//! | actor, tenant, target or family, kind, time | `audit_keys` | some thousand at once, in their order |
//!
//! Written one by one, the keys of many clients would each touch a page of their own. The records
//! after `audit_keyed` have none yet: a list reads them by themselves, see `query`.
//!
//! A key is a hash, so a list compares the record as well. Texts hash to negative numbers of 31
//! bits, ids to positive ones that ascend with time, so that they go to the end of the index.

use uuid::Uuid;

use crate::model::{
    Action, Event, Principal,
    event::{Filter, Outcome},
};

/// Row of `audit_keys`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KeyRow {
    pub(crate) key: i64,
    pub(crate) kind: i64,
    pub(crate) at: i64,
    pub(crate) place: i64,
}

impl KeyRow {
    /// Returns a number by which sets of rows are compared: the sum over a set.
    pub(crate) fn mark(&self) -> u64 {
        let numbers = [self.key, self.kind, self.at, self.place];
        fnv(numbers.iter().flat_map(|number| number.to_be_bytes()))
    }

    /// Reads a row of `SELECT key, kind, at, place`.
    pub(crate) fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self { key: row.get(0)?, kind: row.get(1)?, at: row.get(2)?, place: row.get(3)? })
    }
}

/// FNV-1a: the stored keys must not change with the version of a library.
fn fnv(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// Kind of an event by the texts of its action and outcome.
pub(crate) fn kind_of(action: &str, outcome: &str) -> i64 {
    let hash = fnv(action.bytes());
    let folded = (hash ^ (hash >> 32)) & 0x3fff;
    i64::try_from(folded).unwrap_or(0) * 2 + i64::from(outcome != Outcome::Ok.as_str())
}

/// Kind of an event.
pub(crate) fn kind(event: &Event) -> i64 {
    kind_of(event.action.as_str(), event.outcome.as_str())
}

/// Kind of the event that a text holds, as a node writes it; `None` if it is none.
pub(crate) fn kind_in(text: &str) -> Option<i64> {
    let (_, rest) = text.split_once(",\"action\":\"")?;
    let (action, rest) = rest.split_once("\",\"outcome\":\"")?;
    Some(kind_of(action, rest.split_once('"')?.0))
}

fn text_key(field: char, text: &str) -> i64 {
    let hash = fnv(std::iter::once(field as u8).chain(text.bytes()));
    -1 - i64::try_from((hash ^ (hash >> 32)) & 0x7fff_ffff).unwrap_or(0)
}

/// Key of a target or family. One that is an id of version 7 begins with its time.
fn id_key(text: &str) -> i64 {
    match Uuid::try_parse(text) {
        Ok(id) if id.get_version_num() == 7 => {
            let (first, second) = id.as_u64_pair();
            // 48 bits of time, 12 of the counter behind the version, 3 behind the variant.
            let key = ((first >> 16) << 15) | ((first & 0xfff) << 3) | ((second >> 59) & 7);
            i64::try_from(key & (u64::MAX >> 1)).unwrap_or(0)
        }
        _ => text_key('t', text),
    }
}

fn actor_key(actor: &Principal) -> i64 {
    match actor {
        Principal::Client(client) => text_key('c', client.as_str()),
        Principal::Node => text_key('n', ""),
    }
}

/// Rows of an event, each key once.
pub(crate) fn rows_of(event: &Event, place: i64) -> Vec<KeyRow> {
    let mut keys = Vec::with_capacity(4);
    keys.extend(event.actor.as_ref().map(actor_key));
    keys.extend(event.tenant.as_ref().map(|tenant| text_key('o', tenant.as_str())));
    keys.push(id_key(&event.target));
    keys.extend(event.family.map(|family| id_key(&family.to_string())));
    keys.sort_unstable();
    keys.dedup();
    let (kind, at) = (kind(event), event.at.millis());
    keys.into_iter().map(|key| KeyRow { key, kind, at, place }).collect()
}

/// Keys of a filter: a record that it admits has all of them.
pub(crate) fn of_filter(filter: &Filter) -> Vec<i64> {
    let mut keys = Vec::new();
    keys.extend(filter.target.as_deref().map(id_key));
    keys.extend(filter.family.map(|family| id_key(&family.to_string())));
    keys.extend(filter.actor.as_ref().map(actor_key));
    keys.extend(filter.tenant.as_ref().map(|tenant| text_key('o', tenant.as_str())));
    keys
}

/// Kinds that a filter admits; `None`: all.
pub(crate) fn kinds_of(filter: &Filter) -> Option<Vec<i64>> {
    if filter.action.is_none() && filter.outcome.is_none() {
        return None;
    }
    let mut kinds: Vec<i64> = events()
        .filter(|(_, outcome)| filter.outcome.is_none_or(|wanted| wanted == *outcome))
        .filter(|(action, _)| filter.admits_action(*action))
        .map(|(action, outcome)| kind_of(action.as_str(), outcome.as_str()))
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    Some(kinds)
}

/// All kinds.
pub(crate) fn kinds() -> impl Iterator<Item = i64> {
    events().map(|(action, outcome)| kind_of(action.as_str(), outcome.as_str()))
}

fn events() -> impl Iterator<Item = (Action, Outcome)> {
    let of = |outcome| Action::ALL.iter().map(move |action| (*action, outcome));
    [Outcome::Ok, Outcome::Refused].into_iter().flat_map(of)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::model::{Stamp, Timestamp};

    /// Two actions of one kind would be read in vain for each other.
    #[test]
    fn every_action_has_a_kind_of_its_own() {
        let kinds: BTreeSet<i64> = Action::ALL
            .iter()
            .flat_map(|action| ["ok", "refused"].map(|outcome| kind_of(action.as_str(), outcome)))
            .collect();
        assert_eq!(kinds.len(), 2 * Action::ALL.len());
        assert!(kinds.iter().all(|kind| (0..1 << 15).contains(kind)));
    }

    #[test]
    fn the_kind_is_read_from_the_written_event() {
        let event = Stamp::internal(Timestamp::EPOCH).refused(Action::TokenIssued, "a", "b");
        assert_eq!(kind_in(&serde_json::to_string(&event).unwrap()), Some(kind(&event)));
        assert_eq!(kind_in("{}"), None);
    }

    #[test]
    fn keys_of_ids_ascend_and_those_of_texts_are_apart() {
        let ids: Vec<i64> = (0..100).map(|_| id_key(&Uuid::now_v7().to_string())).collect();
        assert!(ids.is_sorted() && ids.iter().all(|key| *key > 0), "{ids:?}");
        assert!(id_key("orders") < 0 && text_key('c', "orders") != text_key('t', "orders"));
        assert!(id_key(&Uuid::new_v4().to_string()) < 0);
    }
}
