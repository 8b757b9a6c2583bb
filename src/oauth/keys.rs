//! The life of the signing keys, as administration and time move it on. Each step is one conditional write of one record.

use super::{Administrator, Authority, Terms};
use crate::{
    crypto::{keys::make, root::Root, seal::Sealer},
    error::{Error, Result},
    model::{Action, Call, Event, Keyset, Kid, SigningKey, Stamp, Timestamp},
    store::Write,
};

/// How often a step is tried again when another node took one in between.
const TRIES: usize = 8;

/// The first keyset of a store: a root, a key that signs and one prepared.
pub fn first(sealer: &Sealer, terms: &Terms, now: Timestamp) -> (Keyset, Event) {
    let keyset = Keyset::first(now, Root::make(sealer), || make(terms.algorithm, sealer, now));
    (keyset, Stamp::internal(now).done(Action::KeysCreated, ""))
}

impl Authority {
    /// The keys, oldest first.
    pub async fn keys(&self, admin: &Administrator) -> Result<Keyset> {
        admin.must_govern_all()?;
        self.keyset().await
    }

    /// Makes the prepared key the signing one, as soon as caches can have heard of it, and prepares another.
    pub async fn rotate_keys(&self, call: &Call, admin: &Administrator) -> Result<Keyset> {
        admin.must_govern_all()?;
        let event = || admin.stamp(call).done(Action::KeysRotated, "");
        self.step(event, |keyset| Ok(Some(keyset.rotate(call.now, &self.terms.keys, || self.new_key(call.now))))).await
    }

    /// Ends a key and every token it signed; an active one is replaced in the same write (K03).
    pub async fn revoke_key(&self, call: &Call, admin: &Administrator, kid: &Kid, reason: String) -> Result<Keyset> {
        admin.must_govern_all()?;
        let event = || admin.stamp(call).done(Action::KeyRevoked, kid.as_str()).because(reason.clone());
        self.step(event, |keyset| {
            let revoked = keyset.revoke(kid, call.now, &self.terms.keys, || self.new_key(call.now));
            revoked.map(Some).ok_or(Error::NotFound("key"))
        })
        .await
    }

    /// Takes the steps that time asks for: automatic rotation, removal of what has been retired for long enough.
    pub async fn advance_keys(&self) -> Result<()> {
        let now = self.clock.now();
        let event = || Stamp::internal(now).done(Action::KeysRotated, "");
        self.step(event, |keyset| Ok(keyset.advance(now, &self.terms.keys, || self.new_key(now)))).await.map(drop)
    }

    async fn step(&self, event: impl Fn() -> Event, next: impl Fn(&Keyset) -> Result<Option<Keyset>>) -> Result<Keyset> {
        for _ in 0..TRIES {
            let keyset = self.keyset().await?;
            let Some(next) = next(&keyset)? else { return Ok(keyset) };
            if self.store.replace_keyset(&next, event()).await? == Write::Done {
                tracing::info!(revision = next.revision, "keys changed");
                return Ok(next);
            }
        }
        Err(Error::Stale("keyset"))
    }

    async fn keyset(&self) -> Result<Keyset> {
        self.store.keyset().await?.ok_or_else(|| Error::Internal("the keyset is gone".into()))
    }

    fn new_key(&self, now: Timestamp) -> SigningKey {
        make(self.terms.algorithm, &self.sealer, now)
    }
}
