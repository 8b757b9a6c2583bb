//! Restore policy: no token that an old export holds becomes valid again by its import (E9).
//!
//! An export does not show which tokens were issued, revoked or spent after it was made. So unless
//! the operator accepts the rollback, an import revokes and replaces every signing key, which ends
//! every access token, also those issued after the export, and ends every refresh family. All of it
//! is part of the import itself: a store does not open before its last record, so that no old token
//! is valid in between. The import records itself in the audit trail: as the last record of the
//! chain that has this node's name or, if the export has none, as the first of a new chain, in its
//! place in the order of names.

use std::sync::Arc;

use crate::{
    crypto::{
        chain::{self, ChainKey},
        keys,
        seal::Sealer,
    },
    model::{
        Action, KeyState, Keyset, Kid, Stamp, Timestamp,
        keyset::{Algorithm, KeyPolicy},
    },
    store::transfer::{Counts, ExportRecord, hex, unhex},
};

/// Result of the verification of a whole export.
#[derive(Clone, Copy, Debug)]
pub struct VerifiedExport {
    /// Numbers of its records.
    pub counts: Counts,
    /// SHA-256 of the file.
    pub sha256: [u8; 32],
    /// True if it ends in a MAC of the master key.
    pub signed: bool,
}

/// Filter that turns the records of an export into those to load.
pub struct RestoreFilter {
    policy: KeyPolicy,
    algorithm: Algorithm,
    node: Arc<str>,
    sealer: Arc<Sealer>,
    chain: ChainKey,
    checked: VerifiedExport,
    end_all: bool,
    replaced_keys: bool,
    audited: Audited,
    whole: bool,
    newest: Timestamp,
}

/// Place of the import in the audit trail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Audited {
    /// Not recorded yet.
    No,
    /// In a chain of the export.
    Continued,
    /// In a chain of its own.
    Begun,
}

impl RestoreFilter {
    /// Creates the filter of a verified export. `end_all` ends every token; without it the records
    /// pass unchanged.
    pub fn new(
        policy: KeyPolicy,
        algorithm: Algorithm,
        node: &str,
        sealer: Arc<Sealer>,
        chain: ChainKey,
        checked: VerifiedExport,
        end_all: bool,
    ) -> Self {
        let node = node.into();
        Self {
            policy,
            algorithm,
            node,
            sealer,
            chain,
            checked,
            end_all,
            replaced_keys: false,
            audited: Audited::No,
            whole: false,
            newest: Timestamp::EPOCH,
        }
    }

    /// Returns true if the export had keys, and they were replaced.
    pub const fn has_replaced_keys(&self) -> bool {
        self.replaced_keys
    }

    /// Returns the records to load for one record of the export.
    ///
    /// # Errors
    ///
    /// Returns the problem of the record.
    pub fn restore(
        &mut self,
        item: ExportRecord,
        now: Timestamp,
    ) -> Result<Vec<ExportRecord>, String> {
        if self.whole {
            return Err("data follows the last record".to_owned());
        }
        Ok(match item {
            ExportRecord::Keyset(keyset) => vec![ExportRecord::Keyset(self.keyset(keyset, now)?)],
            ExportRecord::Family(mut family) => {
                if self.end_all {
                    family.ended_at = family.ended_at.or(Some(now));
                }
                vec![ExportRecord::Family(family)]
            }
            ExportRecord::Record { ref chain, ref event, .. } => {
                let begun = if *chain > self.node { self.begin_chain(now)? } else { Vec::new() };
                self.newest = self.newest.max(event.at);
                begun.into_iter().chain([item]).collect()
            }
            ExportRecord::ChainStart { ref chain, .. } => {
                let begun = if *chain > self.node { self.begin_chain(now)? } else { Vec::new() };
                begun.into_iter().chain([item]).collect()
            }
            // Records that may be missing from this node's own chain are missing before that of the
            // import, which closes it.
            ExportRecord::ChainEnd { chain, sequence, hash, .. } if chain == self.node => {
                let previous =
                    unhex(&hash).ok_or("the hash of a chain's end is not 64 hexadecimal digits")?;
                let sequence =
                    sequence.checked_add(1).ok_or("the sequence of a chain's end is too large")?;
                self.audited = Audited::Continued;
                self.record(sequence, &previous, now)?.into()
            }
            ExportRecord::End { chains } => {
                self.whole = true;
                let mut items = self.begin_chain(now)?;
                let begun = u64::from(self.audited == Audited::Begun);
                items.push(ExportRecord::End { chains: chains.saturating_add(begun) });
                items
            }
            ExportRecord::Export { .. }
            | ExportRecord::Client(_)
            | ExportRecord::SecretUse { .. }
            | ExportRecord::DeletedClient { .. }
            | ExportRecord::Audience(_)
            | ExportRecord::Revocation(_)
            | ExportRecord::Epoch { .. }
            | ExportRecord::ChainEnd { .. } => vec![item],
        })
    }

    /// Returns the keyset with all of its keys revoked. A key that was only prepared may have
    /// signed since, so it is revoked too.
    fn keyset(&mut self, keyset: Keyset, now: Timestamp) -> Result<Keyset, String> {
        // Again: a step authenticates what it makes.
        keyset.check(&self.sealer).map_err(|error| error.to_string())?;
        if !self.end_all {
            return Ok(keyset);
        }
        let mut next = keyset.clone();
        for key in &keyset.keys {
            let make = || keys::make(self.algorithm, &self.sealer, now);
            next = next.revoke(&key.kid, now, &self.policy, &self.sealer, make).unwrap_or(next);
        }
        let was = |kid: &Kid| keyset.keys.iter().any(|key| key.kid == *kid);
        if let Some(key) = next
            .keys
            .iter()
            .find(|key| was(&key.kid) && !matches!(key.state, KeyState::Revoked { .. }))
        {
            return Err(format!("key {} of the export would stay valid", key.kid));
        }
        self.replaced_keys = true;
        Ok(next)
    }

    /// Returns a whole chain of this node's name, unless the import is recorded already.
    fn begin_chain(&mut self, now: Timestamp) -> Result<Vec<ExportRecord>, String> {
        if self.audited != Audited::No {
            return Ok(Vec::new());
        }
        self.audited = Audited::Begun;
        Ok(self.record(1, &chain::START, now)?.into())
    }

    /// Returns the record of the import, and the end of this node's chain, whose last record it is.
    fn record(
        &self,
        sequence: u64,
        previous: &[u8; 32],
        now: Timestamp,
    ) -> Result<[ExportRecord; 2], String> {
        let how = if self.end_all { "all tokens revoked" } else { "rollback accepted" };
        let how = if self.checked.signed {
            how.to_owned()
        } else {
            format!("{how}, unsigned export accepted")
        };
        let at = now.max(self.newest);
        let VerifiedExport { counts, sha256, .. } = self.checked;
        let file = hex(&sha256);
        let what = format!(
            "{} clients, {} refresh families, {} records, sha256 {file}",
            counts.clients, counts.families, counts.records
        );
        let event = Stamp::internal(at).done(Action::StoreImported, what).because(how);
        let body = serde_json::to_string(&event).map_err(|error| error.to_string())?;
        let hash = chain::link(previous, sequence, &self.node, body.as_bytes());
        let seal = Some(hex(&self.chain.seal_exported(&self.node, sequence, &hash, false)));
        let hash = hex(&hash);
        let (chain, node) = (self.node.clone(), self.node.clone());
        let end = ExportRecord::ChainEnd {
            chain: chain.clone(),
            sequence,
            hash: hash.clone(),
            open: false,
            seal,
        };
        Ok([ExportRecord::Record { chain, sequence, node, event, hash }, end])
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::crypto::chain::Walk;

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

    fn restoring(end_all: bool) -> RestoreFilter {
        let hour = Duration::from_secs(3600);
        let policy = KeyPolicy { rotate_every: hour * 24, publish_ahead: hour, verify_after: hour };
        let checked = VerifiedExport {
            counts: Counts { clients: 3, families: 2, records: 1 },
            sha256: [0xab; 32],
            signed: true,
        };
        let (sealer, chain) = (Arc::new(Sealer::new([7; 32])), ChainKey::new([9; 32]));
        RestoreFilter::new(policy, Algorithm::EdDsa, "node-1", sealer, chain, checked, end_all)
    }

    fn keyset() -> Keyset {
        let sealer = Sealer::new([7; 32]);
        let before = NOW - Duration::from_secs(100);
        Keyset::first(before, &sealer, || keys::make(Algorithm::EdDsa, &sealer, before))
    }

    fn only(items: Vec<ExportRecord>) -> ExportRecord {
        let [item] = <[ExportRecord; 1]>::try_from(items).unwrap();
        item
    }

    /// E9: no key that ever was in the export, or could have come to sign after it, signs or
    /// verifies again.
    #[test]
    fn every_key_of_the_export_is_revoked_and_new_ones_take_over() {
        let old = keyset();
        let ExportRecord::Keyset(new) =
            only(restoring(true).restore(ExportRecord::Keyset(old.clone()), NOW).unwrap())
        else {
            panic!()
        };
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
        let restored =
            only(restoring(false).restore(ExportRecord::Keyset(old.clone()), NOW).unwrap());
        assert_eq!(restored, ExportRecord::Keyset(old));
    }

    #[test]
    fn keys_of_another_master_key_are_refused_before_anything_can_use_them() {
        let mut other = restoring(true);
        other.sealer = Arc::new(Sealer::new([8; 32]));
        assert!(
            other.restore(ExportRecord::Keyset(keyset()), NOW).unwrap_err().contains("master key")
        );
    }

    /// The records and ends of chains of these names and lengths, and the end of their export.
    fn export(chains: &[(&str, u64)]) -> Vec<ExportRecord> {
        let mut items = Vec::new();
        for (name, length) in chains {
            let (chain, mut previous): (Arc<str>, _) = ((*name).into(), chain::START);
            for sequence in 1..=*length {
                let event = Stamp::internal(NOW).done(Action::TokenIssued, "");
                previous =
                    chain::link(&previous, sequence, name, &serde_json::to_vec(&event).unwrap());
                let (chain, node, hash) = (chain.clone(), chain.clone(), hex(&previous));
                items.push(ExportRecord::Record { chain, sequence, node, event, hash });
            }
            items.push(ExportRecord::ChainEnd {
                chain,
                sequence: *length,
                hash: hex(&previous),
                open: false,
                seal: None,
            });
        }
        items.push(ExportRecord::End { chains: chains.len() as u64 });
        items
    }

    /// Chains after a restore: name, length and whether its last record is of the import; each is
    /// walked over.
    fn restored(chains: &[(&str, u64)]) -> Vec<(String, u64, bool)> {
        let mut restoring = restoring(true);
        let (mut told, mut walk, mut imported) = (Vec::new(), Walk::from_start(), false);
        for item in export(chains) {
            for item in restoring.restore(item, NOW).unwrap() {
                if let ExportRecord::Record { chain, sequence, node, event, hash } = item {
                    assert_eq!(chain, node);
                    let body = serde_json::to_string(&event).unwrap();
                    walk.step(sequence, &node, body.as_bytes(), &unhex(&hash).unwrap()).unwrap();
                    imported = (event.action, event.reason.as_ref())
                        == (Action::StoreImported, "all tokens revoked");
                } else if let ExportRecord::ChainEnd { chain, sequence, hash, seal, .. } = item {
                    assert_eq!(seal.is_some(), imported, "the import's own end has its seal");
                    let end = Walk::after(sequence, unhex(&hash).unwrap());
                    assert_eq!(format!("{walk:?}"), format!("{end:?}"));
                    told.push((chain.as_ref().to_owned(), sequence, imported));
                    (walk, imported) = (Walk::from_start(), false);
                } else {
                    assert_eq!(item, ExportRecord::End { chains: told.len() as u64 });
                }
            }
        }
        assert!(restoring.whole);
        assert!(
            restoring.restore(ExportRecord::Export { version: 1 }, NOW).is_err(),
            "nothing comes after the end"
        );
        told
    }

    /// E9, O04: the import is on record once, in the chain of this node, and every chain stays one
    /// and in its place.
    #[test]
    fn the_import_is_audited_in_the_chain_of_this_node() {
        for chains in [
            &[][..],
            &[("node-1", 3)],
            &[("a", 2), ("b", 1)],
            &[("x", 2), ("y", 1)],
            &[("a", 2), ("x", 1)],
            &[("a", 2), ("node-1", 1), ("x", 1)],
            &[("node-0", 1), ("node-10", 1), ("node-2", 2)],
        ] {
            let mut expected: Vec<_> =
                chains.iter().map(|(name, length)| ((*name).to_owned(), *length, false)).collect();
            match expected.iter_mut().find(|(name, ..)| name == "node-1") {
                Some(own) => *own = (own.0.clone(), own.1 + 1, true),
                None => expected.push(("node-1".to_owned(), 1, true)),
            }
            expected.sort_unstable();
            assert_eq!(restored(chains), expected);
        }
    }

    /// AZ4: the trail says which file was imported, how much there was in it, and that nothing
    /// showed it to be genuine.
    #[test]
    fn the_record_of_the_import_names_the_file() {
        for (signed, end_all, reason) in [
            (true, true, "all tokens revoked"),
            (true, false, "rollback accepted"),
            (false, true, "all tokens revoked, unsigned export accepted"),
            (false, false, "rollback accepted, unsigned export accepted"),
        ] {
            let mut restoring = restoring(end_all);
            restoring.checked.signed = signed;
            let restored = restoring.restore(ExportRecord::End { chains: 0 }, NOW).unwrap();
            let ExportRecord::Record { event, .. } = &restored[0] else { panic!("{restored:?}") };
            let what =
                format!("3 clients, 2 refresh families, 1 records, sha256 {}", "ab".repeat(32));
            assert_eq!((event.target.as_str(), &*event.reason), (what.as_str(), reason));
        }
    }

    /// The record is not older than what came before it in the export.
    #[test]
    fn the_import_is_not_recorded_before_what_it_imports() {
        let mut restoring = restoring(false);
        let [record, end, last] = <[ExportRecord; 3]>::try_from(export(&[("node-1", 1)])).unwrap();
        restoring.restore(record, NOW).unwrap();
        let earlier = NOW - Duration::from_secs(60);
        let restored = restoring.restore(end, earlier).unwrap();
        let ExportRecord::Record { event, .. } = &restored[0] else { panic!("no record") };
        assert_eq!((event.at, &*event.reason), (NOW, "rollback accepted"));
        assert_eq!(restoring.restore(last.clone(), earlier).unwrap(), [last]);
    }
}
