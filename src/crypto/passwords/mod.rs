//! Secrets that people chose or brought along: argon2id (RFC 9106), behind a bounded pool, for each
//! hash costs a core 20 ms and 19 MiB.

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

/// Number of verified secrets that are remembered.
const REMEMBERED: usize = 10_000;

/// A caller as the pool sees it.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// Its network, for an IPv6 customer has 65,536 of the /64 that budgets go by; `None` for this
    /// process itself.
    pub network: Option<PeerKey>,
    /// True if a secret from there was wrong lately.
    pub failed_lately: bool,
}

/// A secret of a client as it is kept, to compare a presented one with.
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
    /// Its hash at our own cost, where the one that is kept has another.
    pub rehashed: Option<String>,
}

/// The bounded pool.
pub struct Passwords {
    lanes: Lanes<Option<PeerKey>>,
    /// Administration has a core of its own, and a queue: no caller that is not authenticated
    /// delays it. Tenants are its second class: they share half of the queue and no tenant has more
    /// than half of that; the operator comes first, and has room.
    administration: Lanes<TenantId>,
    remembered: Remembered,
    /// A hash of nothing anybody knows, to compare with where there is nothing.
    decoy: Arc<str>,
    /// Blocks of memory filled so far: what argon2id costs.
    work: Arc<AtomicU64>,
}

impl Passwords {
    /// Compares up to `parallel` secrets at once, at least one; up to `queue` more wait, and the
    /// next are refused at once.
    ///
    /// # Panics
    ///
    /// If the system cannot give the memory for a single hash.
    #[expect(clippy::expect_used, reason = "a service that cannot hash once must not start")]
    pub fn new(parallel: usize, queue: usize) -> Self {
        let decoy = argon::hash(&random::bytes::<32>()).expect("memory for one hash").into();
        Self {
            lanes: Lanes::new(parallel, queue),
            administration: Lanes::new(1, queue.saturating_add(1).saturating_mul(2)),
            remembered: Remembered::new(REMEMBERED),
            decoy,
            work: Arc::default(),
        }
    }

    /// Hashes a new secret for an administrator of a tenant under a fresh salt, into a PHC string.
    ///
    /// # Errors
    ///
    /// Too many administrators of that tenant, or of all tenants, are waiting, or there is no
    /// memory for it.
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

    /// The secret among `kept` that was verified before in this process with this very text. Costs
    /// the same, and next to nothing, however many there are (A02).
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

    /// Returns true if one of `kept` was verified before in this process: then [`Self::recall`] has
    /// compared with it. Costs the same however many there are (A02).
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

    /// Compares a presented secret with those kept of an account, by argon2id. A refusal costs as
    /// much as [`MAX_LIVE_SECRETS`] of our own hashes, also where there are fewer, cheaper or none
    /// to compare with (A02). A success is remembered: it is paid for once a process.
    ///
    /// # Errors
    ///
    /// When too many are waiting.
    pub async fn find(
        &self,
        origin: Origin,
        account: ClaimedAccount<'_>,
        kept: Vec<Kept>,
        presented: &SecretString,
    ) -> Result<Option<Match>, Busy> {
        let class = if origin.failed_lately { Class::Second } else { Class::First };
        let permit = self.lanes.enter(origin.network, class).await?;
        // Of many who bring the same secret at once, as after a start, the first one pays.
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

    /// Blocks of 1 KiB that argon2id has filled so far, in all passes: the measure of work that no
    /// machine changes.
    pub fn work(&self) -> u64 {
        self.work.load(Relaxed)
    }
}

/// The permit goes into the work itself: a caller who hangs up frees its core only when that is
/// free again.
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
        // The runtime is going down.
        Err(_) => Busy,
    })
}

#[cfg(test)]
mod tests;
