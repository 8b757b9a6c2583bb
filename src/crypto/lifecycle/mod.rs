//! Lifecycle of signing keys: prepared (published, not used) -> active (signs) -> retiring
//! (verifies) -> removed.
//!
//! Every step is a pure function from one keyset to the next, and one conditional write replaces
//! the old one: after a crash at any time the stored keyset is whole, with exactly one active key.
//! Times never decrease: a step at an earlier time than the newest of the keyset uses that newest
//! time (K08). Each result has its MAC. Check a keyset of a store first ([`Keyset::check`]): a step
//! would otherwise authenticate what another writer wrote.

use super::{root::Root, seal::Sealer};
use crate::model::{
    KeyState, Keyset, Kid, SigningKey, Timestamp,
    keyset::{Algorithm, KeyPolicy},
};

impl Keyset {
    /// Creates the keyset of a new service. Its first key signs at once, because no cache can
    /// contain an older set; the second is published from the start, so that a successor always
    /// exists.
    pub fn first(now: Timestamp, sealer: &Sealer, mut make: impl FnMut() -> SigningKey) -> Self {
        let active = SigningKey { state: KeyState::Active { since: now }, ..make() };
        let keys = vec![active, make()];
        Self { revision: 1, keys, sealed_root: Root::make(sealer), mac: String::new() }
            .with_mac(sealer)
    }

    /// Takes the steps that are due at `now`: removes keys whose last token has expired, replaces
    /// an active key that is older than `policy.rotate_every` or has a requested rotation, and adds
    /// a missing prepared key. `None` if nothing is due. A key signs only after it was published
    /// for `policy.publish_ahead` (K02). `make` is called at most once; it generates a prepared key
    /// created at `now`.
    pub fn advance(
        &self,
        now: Timestamp,
        policy: &KeyPolicy,
        sealer: &Sealer,
        make: impl FnMut() -> SigningKey,
    ) -> Option<Self> {
        let now = now.max(self.newest());
        let mut next = self.next();
        next.keys.retain(|key| match key.state {
            KeyState::Retiring { remove_at } | KeyState::Revoked { remove_at } => now < remove_at,
            KeyState::Prepared { .. } | KeyState::Active { .. } => true,
        });
        if next.is_due(now, policy) {
            next.schedule(policy);
        }
        next.activate_scheduled(now, policy);
        next.replenish(now, make);
        (next.keys != self.keys).then(|| next.with_mac(sealer))
    }

    /// Replaces the active key by the prepared one: now if that was published for
    /// `policy.publish_ahead`, otherwise as soon as it was, by [`Keyset::advance`]. A second
    /// request before that changes only the revision.
    pub fn rotate(
        &self,
        now: Timestamp,
        policy: &KeyPolicy,
        sealer: &Sealer,
        mut make: impl FnMut() -> SigningKey,
    ) -> Self {
        let now = now.max(self.newest());
        let mut next = self.next();
        next.replenish(now, &mut make);
        next.schedule(policy);
        next.activate_scheduled(now, policy);
        next.replenish(now, make);
        next.with_mac(sealer)
    }

    /// Begins to sign with another algorithm: a prepared key of any other one is replaced, since it
    /// never signed, and an active key of any other one is succeeded as soon as the prepared one was
    /// published for `policy.publish_ahead`. `None` if there is nothing to do. For a start, and not
    /// for each [`Keyset::advance`]: while nodes are restarted one after the other their settings
    /// differ, and they would replace each other's keys.
    pub fn adopt(
        &self,
        algorithm: Algorithm,
        now: Timestamp,
        policy: &KeyPolicy,
        sealer: &Sealer,
        mut make: impl FnMut() -> SigningKey,
    ) -> Option<Self> {
        let now = now.max(self.newest());
        let mut next = self.next();
        next.keys
            .retain(|key| key.alg == algorithm || !matches!(key.state, KeyState::Prepared { .. }));
        next.replenish(now, &mut make);
        if self.active().is_some_and(|key| key.alg != algorithm) {
            next.schedule(policy);
            next.activate_scheduled(now, policy);
            next.replenish(now, make);
        }
        (next.keys != self.keys).then(|| next.with_mac(sealer))
    }

    /// Returns the time from which a key of this algorithm signs; `None` if none is to.
    pub fn signs_from(&self, algorithm: Algorithm) -> Option<Timestamp> {
        let of_algorithm = self.keys.iter().filter(|key| key.alg == algorithm);
        let times = of_algorithm.filter_map(|key| match key.state {
            KeyState::Active { since } => Some(since),
            KeyState::Prepared { activate_at } => activate_at,
            KeyState::Retiring { .. } | KeyState::Revoked { .. } => None,
        });
        times.min()
    }

    /// Revokes a key and every token it signed (K03), and destroys its private part. An active key
    /// is replaced at once by the prepared one, however short that was published. `None` if there
    /// is no such key, or it is already revoked.
    pub fn revoke(
        &self,
        kid: &Kid,
        now: Timestamp,
        policy: &KeyPolicy,
        sealer: &Sealer,
        mut make: impl FnMut() -> SigningKey,
    ) -> Option<Self> {
        let now = now.max(self.newest());
        let mut next = self.next();
        let revoked = next.keys.iter_mut().find(|key| key.kid == *kid)?;
        let was_active = matches!(revoked.state, KeyState::Active { .. });
        let remove_at = match revoked.state {
            KeyState::Prepared { .. } | KeyState::Active { .. } => now + policy.verify_after,
            KeyState::Retiring { remove_at } => remove_at,
            KeyState::Revoked { .. } => return None,
        };
        revoked.state = KeyState::Revoked { remove_at };
        revoked.sealed = String::new();
        next.replenish(now, &mut make);
        if was_active {
            next.activate(now, policy);
            next.replenish(now, make);
        }
        Some(next.with_mac(sealer))
    }

    /// Revokes every key and creates new ones, at a time that may lie before those of the keyset:
    /// for a clock that was ahead and is right again. The new keys live by `now`.
    pub fn replace_all(
        &self,
        now: Timestamp,
        policy: &KeyPolicy,
        sealer: &Sealer,
        mut make: impl FnMut() -> SigningKey,
    ) -> Self {
        let mut next = self.next();
        for key in &mut next.keys {
            key.created_at = key.created_at.min(now);
            key.state = KeyState::Revoked { remove_at: now + policy.verify_after };
            key.sealed = String::new();
        }
        let state = KeyState::Active { since: now };
        next.keys.push(SigningKey { state, created_at: now, ..make() });
        next.keys.push(SigningKey { created_at: now, ..make() });
        next.with_mac(sealer)
    }

    /// Returns the key that signs.
    pub fn active(&self) -> Option<&SigningKey> {
        self.keys.iter().find(|key| matches!(key.state, KeyState::Active { .. }))
    }

    /// Returns the latest time in the keyset: no step is taken at an earlier one.
    fn newest(&self) -> Timestamp {
        let times = self.keys.iter().flat_map(|key| match key.state {
            KeyState::Active { since } => [key.created_at, since],
            KeyState::Prepared { .. } | KeyState::Retiring { .. } | KeyState::Revoked { .. } => {
                [key.created_at; 2]
            }
        });
        times.max().unwrap_or_default()
    }

    fn next(&self) -> Self {
        Self { revision: self.revision + 1, ..self.clone() }
    }

    fn is_due(&self, now: Timestamp, policy: &KeyPolicy) -> bool {
        let due = |since| now.since(since) >= policy.rotate_every;
        !policy.rotate_every.is_zero()
            && self
                .keys
                .iter()
                .any(|key| matches!(key.state, KeyState::Active { since } if due(since)))
    }

    fn prepared(&mut self) -> Option<&mut SigningKey> {
        self.keys.iter_mut().find(|key| matches!(key.state, KeyState::Prepared { .. }))
    }

    /// Sets the activation time of the prepared key: when it was published long enough.
    fn schedule(&mut self, policy: &KeyPolicy) {
        if let Some(key) = self.prepared() {
            let activate_at = Some(key.created_at + policy.publish_ahead);
            key.state = KeyState::Prepared { activate_at };
        }
    }

    fn activate_scheduled(&mut self, now: Timestamp, policy: &KeyPolicy) {
        let published = |key: &SigningKey| now >= key.created_at + policy.publish_ahead;
        let due = |at: Option<Timestamp>| at.is_some_and(|at| now >= at);
        if self.prepared().is_some_and(|key| {
            matches!(key.state, KeyState::Prepared { activate_at } if due(activate_at))
                && published(key)
        }) {
            self.activate(now, policy);
        }
    }

    /// Activates the prepared key and retires the active one, if it still is active: there is
    /// always exactly one active key.
    fn activate(&mut self, now: Timestamp, policy: &KeyPolicy) {
        let Some(kid) = self.prepared().map(|key| key.kid.clone()) else { return };
        for key in &mut self.keys {
            if key.kid == kid {
                key.state = KeyState::Active { since: now };
            } else if matches!(key.state, KeyState::Active { .. }) {
                key.state = KeyState::Retiring { remove_at: now + policy.verify_after };
            }
        }
    }

    /// Adds a prepared key if there is none. Its publication never precedes its creation, whatever
    /// the clock of its creator read.
    fn replenish(&mut self, now: Timestamp, mut make: impl FnMut() -> SigningKey) {
        if self.prepared().is_none() {
            let made = make();
            self.keys.push(SigningKey { created_at: made.created_at.max(now), ..made });
        }
    }
}

#[cfg(test)]
mod tests;
