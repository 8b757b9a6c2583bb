//! The life of the signing keys, as administration and time move it on. Each step is one
//! conditional write of one record.

use std::sync::Arc;

use super::{AdminAuthenticator, Administrator};
use crate::{
    clock::Clock,
    crypto::{keys::make, seal::Sealer},
    error::{Error, Result},
    model::{
        Action, Call, Event, Keyset, Kid, SigningKey, Stamp, Timestamp,
        keyset::{Algorithm, KeyPolicy},
    },
    oauth::Terms,
    standing::NodeKeys,
    store::{ProvenWrite, Spent, Store, Write},
};

/// Tries of a step if other nodes write the keyset in between.
const TRIES: usize = 8;

/// The first keyset of a store: a root, a key that signs and one prepared.
pub fn first(sealer: &Sealer, terms: &Terms, now: Timestamp) -> (Keyset, Event) {
    let keyset = Keyset::first(now, sealer, || make(terms.algorithm, sealer, now));
    (keyset, Stamp::internal(now).done(Action::KeysCreated, ""))
}

/// Administration of the signing keys.
pub struct Keys {
    pub(crate) gate: Arc<AdminAuthenticator>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) node_keys: Arc<NodeKeys>,
    pub(crate) sealer: Arc<Sealer>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) terms: Arc<Terms>,
}

impl Keys {
    /// The keys, oldest first.
    pub async fn list(&self, admin: &Administrator) -> Result<Keyset> {
        admin.must_be_operator()?;
        self.keyset().await
    }

    /// Activates the prepared key as soon as it was published long enough for caches, and prepares
    /// another.
    pub async fn rotate(&self, call: &Call, admin: &Administrator) -> Result<Keyset> {
        admin.must_be_operator()?;
        let event = || admin.stamp(call).done(Action::KeysRotated, "");
        let rotate = |keyset: &Keyset, maker: &Maker| {
            keyset.rotate(maker.now, &maker.policy, &maker.sealer, || maker.key())
        };
        self.step(call.now, Some(admin), event, move |keyset, maker| Some(rotate(keyset, maker)))
            .await?;
        self.keyset().await
    }

    /// Revokes a key and every token it signed; an active one is replaced in the same write (K03).
    pub async fn revoke(
        &self,
        call: &Call,
        admin: &Administrator,
        kid: &Kid,
        reason: String,
    ) -> Result<Keyset> {
        admin.must_be_operator()?;
        let event =
            || admin.stamp(call).done(Action::KeyRevoked, kid.as_str()).because(reason.clone());
        let kid = kid.clone();
        let revoke = move |keyset: &Keyset, maker: &Maker| {
            keyset.revoke(&kid, maker.now, &maker.policy, &maker.sealer, || maker.key())
        };
        match self.step(call.now, Some(admin), event, revoke).await? {
            true => self.keyset().await,
            false => Err(Error::NotFound("key")),
        }
    }

    /// Takes the steps that time asks for: automatic rotation, removal of what has been retired for
    /// long enough.
    pub async fn advance(&self) -> Result<()> {
        let now = self.clock.now();
        let event = || Stamp::internal(now).done(Action::KeysRotated, "");
        let advance = |keyset: &Keyset, maker: &Maker| {
            keyset.advance(maker.now, &maker.policy, &maker.sealer, || maker.key())
        };
        self.step(now, None, event, advance).await.map(drop)
    }

    /// Begins to replace the keys if another algorithm is configured, and logs when it will sign. For
    /// a start.
    pub async fn adopt_algorithm(&self) -> Result<()> {
        let (now, algorithm) = (self.clock.now(), self.terms.algorithm);
        let event = || {
            let event = Stamp::internal(now).done(Action::KeysRotated, "");
            event.because("keys.algorithm".to_owned())
        };
        let adopt = |keyset: &Keyset, maker: &Maker| {
            let Maker { now, policy, algorithm, sealer } = maker;
            keyset.adopt(*algorithm, *now, policy, sealer, || maker.key())
        };
        self.step(now, None, event, adopt).await?;
        let keyset = self.keyset().await?;
        let signing = keyset.active().map(|key| key.alg).filter(|signing| *signing != algorithm);
        if let Some(signing) = signing {
            tracing::warn!(
                signing = signing.as_str(),
                configured = algorithm.as_str(),
                from = keyset.signs_from(algorithm).map(tracing::field::display),
                "keys.algorithm was changed: its key is published before it signs"
            );
        }
        Ok(())
    }

    /// Writes what `next` makes of the keys, if anything; whether it did. Making an RSA key takes a
    /// core a second, so it is done where no call waits for it, and before an administrator is
    /// asked for the proof of the write; no administrator is where time moves the keys on.
    async fn step(
        &self,
        now: Timestamp,
        admin: Option<&Administrator>,
        event: impl Fn() -> Event,
        next: impl Fn(&Keyset, &Maker) -> Option<Keyset> + Clone + Send + 'static,
    ) -> Result<bool> {
        for _ in 0..TRIES {
            let keyset = self.keyset().await?;
            let maker = Maker {
                now,
                policy: self.terms.keys,
                algorithm: self.terms.algorithm,
                sealer: self.sealer.clone(),
            };
            let next = next.clone();
            let made = tokio::task::spawn_blocking(move || next(&keyset, &maker)).await;
            let Some(next) = made.map_err(|error| Error::Internal(error.into()))? else {
                return Ok(false);
            };
            let revision = next.revision;
            let is_written = match admin {
                None => self.store.replace_keyset(&next, event()).await? == Write::Done,
                Some(admin) => {
                    let write = ProvenWrite::ReplaceKeyset { keyset: next, event: event() };
                    self.gate.write(admin, write).await? == Spent::Done
                }
            };
            if is_written {
                tracing::info!(revision, "signing keys changed");
                return Ok(true);
            }
        }
        Err(Error::Stale("keyset"))
    }

    /// The keyset in the store, once it is known to be genuine: a step writes it back under a new
    /// MAC.
    async fn keyset(&self) -> Result<Keyset> {
        let keyset = self
            .store
            .keyset()
            .await?
            .ok_or_else(|| Error::Internal("the keyset is missing from the store".into()))?;
        self.node_keys.admit(&keyset).map_err(|refused| Error::Internal(refused.into()))?;
        Ok(keyset)
    }
}

/// Input of a step of the key lifecycle.
struct Maker {
    now: Timestamp,
    policy: KeyPolicy,
    algorithm: Algorithm,
    sealer: Arc<Sealer>,
}

impl Maker {
    fn key(&self) -> SigningKey {
        make(self.algorithm, &self.sealer, self.now)
    }
}
