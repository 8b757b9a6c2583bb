//! Secrets that people chose or brought along: argon2id (RFC 9106), behind a bounded pool, for each hash costs a core 20 ms
//! and 19 MiB.

use std::sync::Arc;

use argon2::{
    Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version,
    password_hash::phc::{PasswordHash, Salt},
};
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task,
};

use super::{random, remembered::Remembered};
use crate::model::{ClientId, Invalid, SecretId};

/// Memory of new hashes in KiB, passes and lanes: OWASP's choice for argon2id.
const MEMORY: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// How many verified secrets are remembered.
const REMEMBERED: usize = 10_000;

/// More hashes are waiting than may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many password hashes at once")]
pub struct Busy;

/// The bounded pool.
pub struct Passwords {
    /// A place for every hash that runs or waits.
    places: Arc<Semaphore>,
    /// A permit for every hash that runs.
    running: Arc<Semaphore>,
    remembered: Remembered,
    /// A hash of nothing anybody knows, for [`Passwords::burn`].
    decoy: Arc<str>,
}

impl Passwords {
    /// Runs up to `parallel` hashes at once, at least one; up to `queue` more wait, and the next are refused at once.
    ///
    /// # Panics
    ///
    /// If the system cannot give the memory for a single hash.
    #[expect(clippy::expect_used, reason = "a service that cannot hash once must not start")]
    pub fn new(parallel: usize, queue: usize) -> Self {
        let parallel = parallel.max(1);
        let decoy = hash(&random::bytes::<32>()).expect("memory for one hash").into();
        Self {
            places: Arc::new(Semaphore::new(parallel.saturating_add(queue).min(Semaphore::MAX_PERMITS))),
            running: Arc::new(Semaphore::new(parallel.min(Semaphore::MAX_PERMITS))),
            remembered: Remembered::new(REMEMBERED),
            decoy,
        }
    }

    /// Hashes a secret under a fresh salt, into a PHC string.
    ///
    /// # Errors
    ///
    /// When too many are waiting, or there is no memory for it.
    pub async fn hash(&self, secret: SecretString) -> Result<String, Busy> {
        self.permits().await?.run(move || hash(secret.expose_secret().as_bytes())).await?.ok_or(Busy)
    }

    /// Whether `secret` is the one hashed into `phc`; a hash that [`check_import`] refuses fits nothing.
    ///
    /// # Errors
    ///
    /// When too many are waiting.
    pub async fn verify(&self, phc: &str, secret: SecretString) -> Result<bool, Busy> {
        self.permits().await?.verify(phc.into(), secret).await
    }

    /// Whether this secret of a client was verified before in this process; costs next to nothing.
    pub fn remembers(&self, client: &ClientId, id: &SecretId, phc: &str, secret: &SecretString) -> bool {
        self.remembered.knows(&self.remembered.digest(client, id, phc, secret.expose_secret()))
    }

    /// [`Passwords::verify`] for the secret of a client, paid for once a process: what was verified is remembered.
    ///
    /// # Errors
    ///
    /// When too many are waiting.
    pub async fn verify_client(&self, client: &ClientId, id: &SecretId, phc: &str, secret: SecretString) -> Result<bool, Busy> {
        let digest = self.remembered.digest(client, id, phc, secret.expose_secret());
        if self.remembered.knows(&digest) {
            return Ok(true);
        }
        let permits = self.permits().await?;
        // Of many who bring the same secret at once, as after a start, the first one pays.
        if self.remembered.knows(&digest) {
            return Ok(true);
        }
        let verified = permits.verify(phc.into(), secret).await?;
        if verified {
            self.remembered.learn(digest);
        }
        Ok(verified)
    }

    /// The work of [`Passwords::verify`] where there is nothing to compare with (A02).
    ///
    /// # Errors
    ///
    /// When too many are waiting: as for a client that exists.
    pub async fn burn(&self, secret: SecretString) -> Result<(), Busy> {
        self.permits().await?.verify(Arc::clone(&self.decoy), secret).await.map(drop)
    }

    /// Waits for a core, if there is room to wait.
    async fn permits(&self) -> Result<Permits, Busy> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| Busy)?;
        let running = Arc::clone(&self.running).acquire_owned().await.map_err(|_| Busy)?;
        Ok(Permits { place, running })
    }
}

/// What a hash needs.
struct Permits {
    place: OwnedSemaphorePermit,
    running: OwnedSemaphorePermit,
}

impl Permits {
    async fn verify(self, phc: Arc<str>, secret: SecretString) -> Result<bool, Busy> {
        self.run(move || verify(&phc, secret.expose_secret().as_bytes())).await
    }

    /// Both go into the work itself: a caller who hangs up frees its place only when the core is free again.
    async fn run<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Busy> {
        let task = task::spawn_blocking(move || {
            let done = work();
            drop((self.place, self.running));
            done
        });
        task.await.map_err(|error| match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going down.
            Err(_) => Busy,
        })
    }
}

fn hash(secret: &[u8]) -> Option<String> {
    let params = Params::new(MEMORY, PASSES, LANES, None).ok()?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2.hash_password_with_salt(secret, &random::bytes::<16>()).ok().map(|phc| phc.to_string())
}

/// The parameters come from the hash, and a hash from a damaged or foreign row may ask for gigabytes: bounded here once more.
fn verify(phc: &str, secret: &[u8]) -> bool {
    let Ok(phc) = checked(phc) else { return false };
    Argon2::default().verify_password(secret, &phc).is_ok()
}

/// Whether a hash may be brought along: argon2id, version 19, not cheaper than OWASP's weakest choice (7 MiB and five passes,
/// or more memory and fewer), not dearer than 64 MiB, 10 passes and 4 lanes; salt of at least 8 bytes, hash of 16 to 64.
///
/// # Errors
///
/// Says what is wrong, never what was given.
pub fn check_import(phc: &str) -> Result<(), Invalid> {
    checked(phc).map(drop)
}

fn checked(text: &str) -> Result<PasswordHash, Invalid> {
    let phc = PasswordHash::new(text).map_err(|_| Invalid("the hash must be a PHC string"))?;
    if phc.algorithm != argon2::ARGON2ID_IDENT || phc.version != Some(19) {
        return Err(Invalid("the hash must be argon2id, version 19"));
    }
    let named =
        |name| phc.params.get_decimal(name).ok_or(Invalid("the hash must have the parameters m, t and p, and no others"));
    let [m, t, p] = [named("m")?, named("t")?, named("p")?];
    if phc.params.iter().count() != 3 {
        return Err(Invalid("the hash must have the parameters m, t and p, and no others"));
    }
    if m < 7_168 || u64::from(m) * u64::from(t) < 5 * 7_168 {
        return Err(Invalid("the hash is too cheap to make: at least m=7168,t=5 or more memory"));
    }
    if m > 65_536 || t > 10 || p == 0 || p > 4 {
        return Err(Invalid("the hash is too dear to check: at most m=65536,t=10,p=4"));
    }
    if phc.salt.as_ref().is_none_or(|salt: &Salt| salt.len() < 8) {
        return Err(Invalid("the hash must have a salt of at least 8 bytes"));
    }
    if !phc.hash.as_ref().is_some_and(|hash| (16..=64).contains(&hash.len())) {
        return Err(Invalid("the hash must have 16 to 64 bytes"));
    }
    Ok(phc)
}

#[cfg(test)]
mod tests;
