//! What keeps an old export from bringing anything back to life (E9). An export knows nothing of what happened after it was made:
//! which tokens were issued, revoked or spent since. So unless that is accepted, no token of before stands after an import:
//! every signing key is revoked and replaced, which ends every access token, also those issued after the export was made; and
//! every refresh family is ended. All of it is part of the import itself: a store does not open before its last record, and so
//! there is no moment in which an old token could stand. The import is audited in the same breath.

use std::sync::Arc;

use crate::{
    crypto::{chain, keys, root::Root, seal::Sealer},
    model::{
        Action, Keyset, Stamp, Timestamp,
        keyset::{Algorithm, KeyPolicy},
    },
    store::transfer::Item,
};

/// Turns the records of an export into those to load.
pub(super) struct Restoring {
    policy: KeyPolicy,
    algorithm: Algorithm,
    node: Arc<str>,
    sealer: Sealer,
    end_all: bool,
    replaced_keys: bool,
    whole: bool,
    newest: Timestamp,
}

impl Restoring {
    /// `end_all` ends every token there is; else the records come through as they are.
    pub(super) fn new(policy: KeyPolicy, algorithm: Algorithm, node: &str, sealer: Sealer, end_all: bool) -> Self {
        let node = node.into();
        Self { policy, algorithm, node, sealer, end_all, replaced_keys: false, whole: false, newest: Timestamp::EPOCH }
    }

    /// Whether the last record has come by.
    pub(super) const fn is_whole(&self) -> bool {
        self.whole
    }

    /// Whether there were keys, and they were replaced.
    pub(super) const fn has_replaced_keys(&self) -> bool {
        self.replaced_keys
    }

    /// What to load for one record.
    pub(super) fn restore(&mut self, item: Item, now: Timestamp) -> Result<Vec<Item>, String> {
        if self.whole {
            return Err("there is something after the last record".to_owned());
        }
        Ok(match item {
            Item::Keyset(keyset) => vec![Item::Keyset(self.keyset(keyset, now)?)],
            Item::Family(mut family) if self.end_all => {
                family.ended_at = family.ended_at.or(Some(now));
                vec![Item::Family(family)]
            }
            Item::Record { sequence, node, event, hash } => {
                self.newest = self.newest.max(event.at);
                vec![Item::Record { sequence, node, event, hash }]
            }
            Item::End { sequence, hash } => {
                self.whole = true;
                self.audited_end(sequence, &hash, now)?.into()
            }
            Item::Export { .. }
            | Item::Client(_)
            | Item::SecretUse { .. }
            | Item::Family(_)
            | Item::Revocation(_)
            | Item::Epoch { .. } => vec![item],
        })
    }

    /// The keyset with none of its keys standing. A key that was only prepared may have signed since, so it goes too.
    fn keyset(&mut self, keyset: Keyset, now: Timestamp) -> Result<Keyset, String> {
        if Root::open(&keyset, &self.sealer).is_err() {
            return Err("the keys were sealed under another master key".to_owned());
        }
        if !self.end_all {
            return Ok(keyset);
        }
        let mut next = keyset.clone();
        for key in &keyset.keys {
            let make = || keys::make(self.algorithm, &self.sealer, now);
            next = next.revoke(&key.kid, now, &self.policy, make).unwrap_or(next);
        }
        self.replaced_keys = true;
        Ok(next)
    }

    /// The end of the chain with one more record: that, and how, all this was imported.
    fn audited_end(&self, sequence: u64, hash: &str, now: Timestamp) -> Result<[Item; 2], String> {
        let previous = unhex(hash).ok_or("the last hash is no 64 hexadecimal digits")?;
        let how = if self.end_all { "all tokens ended" } else { "rollback accepted" };
        let at = now.max(self.newest);
        let event =
            Stamp::internal(at).done(Action::StoreImported, format!("{sequence} audit records")).because(how.to_owned());
        let body = serde_json::to_string(&event).map_err(|error| error.to_string())?;
        let sequence = sequence.checked_add(1).ok_or("the last sequence is no sequence")?;
        let hash = hex(&chain::link(&previous, sequence, &self.node, body.as_bytes()));
        let record = Item::Record { sequence, node: self.node.clone(), event, hash: hash.clone() };
        Ok([record, Item::End { sequence, hash }])
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let pairs = digits?;
    let bytes: Option<Vec<u8>> =
        pairs.chunks(2).map(|pair| if let [high, low] = pair { Some(high << 4 | low) } else { None }).collect();
    bytes?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        crypto::chain::Walk,
        model::{KeyState, Kid},
    };

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

    fn restoring(end_all: bool) -> Restoring {
        let hour = Duration::from_secs(3600);
        let policy = KeyPolicy { rotate_every: hour * 24, publish_ahead: hour, verify_after: hour };
        Restoring::new(policy, Algorithm::EdDsa, "node-1", Sealer::new([7; 32]), end_all)
    }

    fn keyset() -> Keyset {
        let sealer = Sealer::new([7; 32]);
        let before = NOW - Duration::from_secs(100);
        Keyset::first(before, Root::make(&sealer), || keys::make(Algorithm::EdDsa, &sealer, before))
    }

    fn only(items: Vec<Item>) -> Item {
        let [item] = <[Item; 1]>::try_from(items).unwrap();
        item
    }

    /// E9: no key that ever was in the export, or could have come to sign after it, signs or verifies again.
    #[test]
    fn every_key_of_the_export_is_revoked_and_new_ones_take_over() {
        let old = keyset();
        let Item::Keyset(new) = only(restoring(true).restore(Item::Keyset(old.clone()), NOW).unwrap()) else { panic!() };
        let was = |kid: &Kid| old.keys.iter().any(|key| &key.kid == kid);
        for key in &new.keys {
            assert_eq!(matches!(key.state, KeyState::Revoked { .. }), was(&key.kid), "{key:?}");
        }
        assert!(new.active().is_some());
        assert_eq!(new.sealed_root, old.sealed_root, "client secrets go on working");
    }

    #[test]
    fn an_accepted_rollback_leaves_the_keys_alone() {
        let old = keyset();
        let restored = only(restoring(false).restore(Item::Keyset(old.clone()), NOW).unwrap());
        assert_eq!(restored, Item::Keyset(old));
    }

    #[test]
    fn keys_of_another_master_key_are_refused_before_anything_can_use_them() {
        let mut other = restoring(true);
        other.sealer = Sealer::new([8; 32]);
        assert!(other.restore(Item::Keyset(keyset()), NOW).unwrap_err().contains("master key"));
    }

    /// E9, O04: the import is a record of the chain it continues.
    #[test]
    fn the_import_is_audited_in_the_chain_it_continues() {
        let mut restoring = restoring(true);
        let end = Item::End { sequence: 0, hash: hex(&chain::START) };
        let items = restoring.restore(end, NOW).unwrap();
        let [Item::Record { sequence, node, event, hash }, Item::End { sequence: last, hash: last_hash }] = items.as_slice()
        else {
            panic!("{items:?}")
        };
        let body = serde_json::to_string(event).unwrap();
        Walk::from_start().step(*sequence, node, body.as_bytes(), &unhex(hash).unwrap()).unwrap();
        assert_eq!((*sequence, hash), (*last, last_hash));
        assert_eq!((event.action, event.reason.as_ref()), (Action::StoreImported, "all tokens ended"));
        assert!(restoring.is_whole());
        assert!(restoring.restore(Item::Export { version: 1 }, NOW).is_err(), "nothing comes after the end");
    }

    #[test]
    fn hexadecimal_reads_back() {
        assert_eq!(unhex(&hex(&[0xa5; 32])), Some([0xa5; 32]));
        for bad in ["", "a", "zz", &"0".repeat(63), &"0".repeat(66)] {
            assert_eq!(unhex(bad), None, "{bad}");
        }
    }
}
