//! Chosen and imported secrets: argon2id (RFC 9106), in a bounded pool, because each hash takes a
//! core for 20 ms and 19 MiB.

mod argon;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use secrecy::{ExposeSecret, SecretString};
use tokio::task;

pub use self::argon::check_import;
pub use super::lanes::Busy;
use super::{
    lanes::{Class, Lanes},
    random,
    remembered::Remembered,
};
use crate::model::{ClaimedAccount, PeerKey, SecretId, TenantId, client::MAX_LIVE_SECRETS};

/// Maximum verified secrets that are remembered.
const REMEMBERED_MAX: usize = 10_000;

/// Origin of a caller, for the pool.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// Network of the caller, because an IPv6 customer has 65,536 of the /64 of rate limits; `None`
    /// for this process itself.
    pub network: Option<PeerKey>,
    /// True if a recent secret from this network was wrong.
    pub failed_lately: bool,
}

/// A stored secret of a client, to compare a presented one with.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its id.
    pub id: SecretId,
    /// Its argon2id hash in PHC form.
    pub phc: String,
}

/// Outcome of a comparison by argon2id that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// The secret that was presented.
    pub id: SecretId,
    /// Its hash with our own parameters, if the stored one has others.
    pub rehashed: Option<String>,
}

/// The bounded pool.
pub struct Passwords {
    lanes: Lanes<Option<PeerKey>>,
    /// Pool of administrators: a core and a queue of their own, so that unauthenticated callers
    /// cannot delay them. Tenants are the second class: they share half of the queue, and each gets
    /// at most half of that; the operator has priority.
    administration: Lanes<TenantId>,
    remembered: Remembered,
    /// Hash of an unknown secret, to compare with if there is no stored one.
    decoy: Arc<str>,
    /// Blocks of memory that argon2id has filled so far.
    work: Arc<AtomicU64>,
}

impl Passwords {
    /// Creates a pool that compares up to `parallel` secrets concurrently (at least one) and queues
    /// up to `queue`; more are refused at once.
    ///
    /// # Panics
    ///
    /// The system has no memory for a single hash.
    #[expect(clippy::expect_used, reason = "a service that cannot hash once must not start")]
    pub fn new(parallel: usize, queue: usize) -> Self {
        let decoy = argon::hash(&random::bytes::<32>()).expect("memory for one hash").into();
        Self {
            lanes: Lanes::new(parallel, queue),
            administration: Lanes::new(1, queue.saturating_add(1).saturating_mul(2)),
            remembered: Remembered::new(REMEMBERED_MAX),
            decoy,
            work: Arc::default(),
        }
    }

    /// Hashes a new secret for an administrator of a tenant with a random salt, into a PHC string.
    ///
    /// # Errors
    ///
    /// Too many administrators of that tenant, or of all tenants, are waiting, or memory is out.
    pub async fn hash(&self, tenant: &TenantId, secret: SecretString) -> Result<String, Busy> {
        let class = if tenant.is_operator() { Class::First } else { Class::Second };
        let core = self.administration.enter(tenant.clone(), class).await?;
        let work = Arc::clone(&self.work);
        let hashed = run(core, move || {
            work.fetch_add(argon::OWN_BLOCKS, Relaxed);
            argon::hash(secret.expose_secret().as_bytes())
        });
        hashed.await?.ok_or(Busy)
    }

    /// Returns the secret of `kept` that this process has verified before with this text. It is
    /// cheap and costs the same for any number of them (A02).
    pub fn recall(
        &self,
        account: ClaimedAccount<'_>,
        kept: &[Kept],
        presented: &SecretString,
    ) -> Option<SecretId> {
        let slots = (0..MAX_LIVE_SECRETS).map(|slot| kept.get(slot));
        let known: Vec<Option<SecretId>> = slots
            .map(|slot| {
                let (id, phc) =
                    slot.map_or(("", &*self.decoy), |kept| (kept.id.as_str(), kept.phc.as_str()));
                let digest = self.remembered.digest(account, id, phc, presented.expose_secret());
                slot.filter(|_| self.remembered.knows(&digest)).map(|kept| kept.id.clone())
            })
            .collect();
        known.into_iter().flatten().next()
    }

    /// Returns true if this process has verified one of `kept` before: then [`Self::recall`] has
    /// compared with it. Costs the same for any number of them (A02).
    pub fn remembers(&self, account: ClaimedAccount<'_>, kept: &[Kept]) -> bool {
        let slots = (0..MAX_LIVE_SECRETS).map(|slot| kept.get(slot));
        let known = slots.filter(|slot| {
            let (id, phc) =
                slot.map_or(("", &*self.decoy), |kept| (kept.id.as_str(), kept.phc.as_str()));
            self.remembered.knows_one_of(account, id, phc) && slot.is_some()
        });
        known.count() > 0
    }

    /// Remembers that a secret of an account was verified, against another hash of it too.
    pub fn remember(&self, account: ClaimedAccount<'_>, kept: &Kept, presented: &SecretString) {
        self.remembered.learn(self.remembered.digest(
            account,
            kept.id.as_str(),
            &kept.phc,
            presented.expose_secret(),
        ));
    }

    /// Compares a presented secret with the stored ones of an account, by argon2id. A refusal costs
    /// as much as [`MAX_LIVE_SECRETS`] of our own hashes, even if there are fewer, cheaper or none
    /// (A02). A success is remembered, so it costs this once a process.
    ///
    /// # Errors
    ///
    /// Too many are waiting.
    pub async fn find(
        &self,
        origin: Origin,
        account: ClaimedAccount<'_>,
        kept: Vec<Kept>,
        presented: &SecretString,
    ) -> Result<Option<Match>, Busy> {
        let class = if origin.failed_lately { Class::Second } else { Class::First };
        let permit = self.lanes.enter(origin.network, class).await?;
        // Of many concurrent callers with the same secret, as after a start, only the first pays.
        if let Some(id) = self.recall(account, &kept, presented) {
            return Ok(Some(Match { id, rehashed: None }));
        }
        let (decoy, work, secret) =
            (Arc::clone(&self.decoy), Arc::clone(&self.work), presented.clone());
        let compared = run(permit, move || {
            let secret = secret.expose_secret().as_bytes();
            let spend = |blocks| work.fetch_add(blocks, Relaxed);
            for slot in 0..MAX_LIVE_SECRETS {
                let Some(kept) = kept.get(slot) else {
                    spend(argon::verify(&decoy, secret).blocks);
                    continue;
                };
                let verified = argon::verify(&kept.phc, secret);
                spend(verified.blocks);
                if verified.fits {
                    if argon::is_own_cost(&kept.phc) {
                        return Some((kept.clone(), None));
                    }
                    spend(argon::OWN_BLOCKS);
                    return Some((kept.clone(), argon::hash(secret)));
                }
                spend(argon::burn(
                    argon::OWN_BLOCKS.saturating_sub(verified.blocks),
                    &decoy,
                    secret,
                ));
            }
            None
        });
        let Some((kept, rehashed)) = compared.await? else { return Ok(None) };
        self.remember(account, &kept, presented);
        Ok(Some(Match { id: kept.id, rehashed }))
    }

    /// Returns the blocks of 1 KiB that argon2id has filled so far, in all passes: a measure of
    /// work that does not depend on the machine.
    pub fn work(&self) -> u64 {
        self.work.load(Relaxed)
    }
}

/// Runs work on a blocking thread. It owns the permit, so that a caller who disconnects does not
/// free its core before the work is done.
async fn run<P: Send + 'static, T: Send + 'static>(
    permit: P,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Busy> {
    let task = task::spawn_blocking(move || {
        let done = work();
        drop(permit);
        done
    });
    task.await.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        // The runtime is shutting down.
        Err(_) => Busy,
    })
}

#[cfg(test)]
mod tests;
