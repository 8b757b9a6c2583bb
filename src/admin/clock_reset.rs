//! Return of a store to the machine's clock, where a clock that was ahead once had been followed
//! (OPERATORS 3.2). What had ended by expiry under the false time must not live again, and what was
//! issued under it must not live until that time. So every token is revoked, with its key and with its
//! tenant's epoch, and secrets that had expired are ended, before the time is reset. A run that is cut
//! off is repeated: until its last step the time is the false one.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    crypto::{keys::make, seal::Sealer},
    error::{Error, Result},
    model::{Action, Client, EpochOf, Event, SecretId, Stamp, TenantId, Timestamp},
    oauth::Terms,
    store::{Listed, Store, Write, Writer},
};

/// Reason in the audit records.
const WHY: &str = "clock reset";
/// Clients read at a time.
const PAGE: usize = 200;
/// Tries of a write if another process writes in between.
const TRIES: usize = 8;

/// Result of a reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockResetDone {
    /// Tenants whose tokens were revoked.
    pub tenants: usize,
    /// Secrets that had expired by the false time and were ended.
    pub secrets: usize,
    /// Secrets that keep what was left of them by the false time.
    pub shortened: usize,
}

/// Return of a store to the machine's clock.
pub struct ClockReset {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) sealer: Arc<Sealer>,
    pub(crate) terms: Arc<Terms>,
}

impl ClockReset {
    /// Returns the time that the store lives in.
    pub async fn latest_time(&self) -> Result<Timestamp> {
        let keyset = self.store.keyset().await?;
        let keys = keyset.iter().flat_map(|keyset| &keyset.keys).map(|key| key.created_at);
        Ok(keys.max().unwrap_or_default().max(self.store.latest_time().await?))
    }

    /// Ends every token and what had expired by `ahead`, and returns the store to the time `now`.
    ///
    /// # Errors
    ///
    /// [`Error::Precondition`] if another node runs, or that of the store.
    pub async fn run(&self, now: Timestamp, ahead: Timestamp) -> Result<ClockResetDone> {
        self.must_be_alone().await?;
        self.replace_keys(now).await?;
        let mut done = ClockResetDone::default();
        let (mut epochs, mut after) = (BTreeSet::new(), None);
        loop {
            let page = self.store.clients(None, after.as_ref(), PAGE).await?;
            after = page.last().map(|last| last.id().clone());
            for listed in &page {
                match listed {
                    Listed::Client(client) => {
                        epochs.insert(client.tenant.clone());
                        self.bound_secrets(client, now, ahead, &mut done).await?;
                    }
                    // Its tenant is unknown.
                    Listed::NotAuthentic(id) => {
                        let event = at(now, Action::ClientRevoked, id.as_str(), None);
                        self.raise(&EpochOf::Client(id.clone()), event).await?;
                    }
                }
            }
            if page.len() < PAGE {
                break;
            }
        }
        done.tenants = epochs.len();
        for tenant in epochs {
            let event = at(now, Action::TenantRevoked, tenant.as_str(), Some(&tenant));
            self.raise(&EpochOf::Tenant(tenant), event).await?;
        }
        let event = at(now, Action::ClockReset, &format!("{ahead} to {now}"), None);
        self.store.reset_time(now, Event { reason: "".into(), ..event }).await?;
        Ok(done)
    }

    async fn must_be_alone(&self) -> Result<()> {
        for chain in self.store.chains().await? {
            if self.store.writer(&chain).await? == Writer::Another {
                return Err(Error::precondition(format!(
                    "node {chain} is running, or ended less than 30 s ago: stop every node first"
                )));
            }
        }
        Ok(())
    }

    async fn replace_keys(&self, now: Timestamp) -> Result<()> {
        for _ in 0..TRIES {
            let keyset = self.store.keyset().await?.ok_or(Error::NotFound("keyset"))?;
            keyset.check(&self.sealer).map_err(|error| Error::Internal(error.into()))?;
            let make = || make(self.terms.algorithm, &self.sealer, now);
            let next = keyset.replace_all(now, &self.terms.keys, &self.sealer, make);
            let event = at(now, Action::KeyRevoked, "all", None);
            if self.store.replace_keyset(&next, event).await? == Write::Done {
                return Ok(());
            }
        }
        Err(Error::Stale("keyset"))
    }

    /// Moves the ends of a client's secrets: see [`end_after`].
    async fn bound_secrets(
        &self,
        client: &Client,
        now: Timestamp,
        ahead: Timestamp,
        done: &mut ClockResetDone,
    ) -> Result<()> {
        let moved = |end| end_after(end, client.updated_at, now, ahead);
        let ends: Vec<(SecretId, Timestamp)> = client
            .secrets()
            .filter_map(|secret| Some((secret.id.clone(), moved(secret.expires_at?)?)))
            .collect();
        let mut client = client.clone();
        for (id, end) in ends {
            client.revision += 1;
            client.updated_at = now;
            for secret in client.secrets_mut().filter(|secret| secret.id == id) {
                secret.expires_at = Some(end);
            }
            let count = if end == now { &mut done.secrets } else { &mut done.shortened };
            *count += 1;
            let target = format!("{}/{id}", client.id);
            let event = at(now, Action::SecretRetired, &target, Some(&client.tenant));
            if self.store.replace_client(&client, event).await? == Write::Stale {
                return Err(Error::Stale("client"));
            }
        }
        Ok(())
    }

    async fn raise(&self, of: &EpochOf, event: Event) -> Result<()> {
        self.store.raise_epoch(of, event).await?;
        Ok(())
    }
}

/// End of a secret after a reset from `ahead` to `now`; `None` if it stays.
///
/// | end | after the reset |
/// |--|--|
/// | passed by both times | stays |
/// | passed by the false time | ends now |
/// | later, of a client that was changed by the false time | what was left of it by the false time: an overlap of an hour must not last a year |
/// | later, of another client | stays |
fn end_after(
    end: Timestamp,
    updated_at: Timestamp,
    now: Timestamp,
    ahead: Timestamp,
) -> Option<Timestamp> {
    if end <= now {
        None
    } else if end <= ahead {
        Some(now)
    } else {
        (updated_at > now).then(|| now + end.since(ahead))
    }
}

/// Record of a step.
fn at(now: Timestamp, action: Action, target: &str, tenant: Option<&TenantId>) -> Event {
    let stamp = Stamp { tenant: tenant.cloned(), ..Stamp::internal(now) };
    stamp.done(action, target).because(WHY.to_owned())
}
