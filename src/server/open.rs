//! Opening of everything that services need: master key, store, keys, token state.

use std::{
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    Options, StartError,
    retention::{self, Retention, RetentionError},
    stores,
};
use crate::{
    admin::keys,
    clock::{Clock, ClockOffset, SystemClock},
    config::Config,
    crypto::{
        chain::ChainKey, master, passwords::Passwords, records::RecordKey, seal::Sealer,
        verifying_keys::ClaimLimits,
    },
    limit::Limits,
    metrics::METRICS,
    model::{
        Action, Audience, Invalid, Keyset, Stamp, Timestamp, event::Filter, keyset::KeyPolicy,
    },
    oauth::Terms,
    services::{Parts, Services},
    standing::{NodeState, Opening, SLACK},
    store::{
        Change, Follower, KeyStore, RevocationStore, Store, StoreError, authentic::Authentic,
        embedded::Accept,
    },
};

/// Time that a stopping server waits for changes whose caller has disconnected.
const FINISH_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(3);
/// Time since the last write of a store above which a start warns about the clock.
const GAP_MAX: std::time::Duration = std::time::Duration::from_secs(30 * 86_400);
/// Time that the clock of a machine that issued a token may be ahead.
const CLOCK_TOLERANCE: std::time::Duration = std::time::Duration::from_secs(5);
/// The same among nodes that share a store: a node whose clock is behind must accept the tokens of
/// the others, and its revocations must cover them.
const SHARED_CLOCK_TOLERANCE: std::time::Duration = std::time::Duration::from_secs(90);

/// Purpose that a store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Serving: the first keyset of an empty store is created if that is asked for.
    Serve,
    /// Work on a store that has been served: an empty one is refused.
    Administer,
}

/// An opened store and the services over it.
pub(super) struct Opened {
    pub(super) services: Arc<Services>,
    pub(super) store: Arc<dyn Store>,
    pub(super) chain: Arc<ChainKey>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) clock_offset: Arc<ClockOffset>,
    /// True if the clock is the system's: the offset of a test's clock is not measured.
    pub(super) measured: bool,
    pub(super) data_dir: PathBuf,
    /// The data directory of an embedded store.
    pub(super) directory: Option<Arc<Path>>,
    pub(super) retention: Arc<Retention>,
}

impl Opened {
    /// Records the start in the audit trail: the clock of the service never reads an earlier time.
    pub(super) async fn record_start(
        &self,
        address: std::net::SocketAddr,
    ) -> Result<(), StartError> {
        let event =
            Stamp::internal(self.clock.now()).done(Action::ServerStarted, address.to_string());
        match self.store.append(event).await {
            // A full disk must not prevent introspection and revocation, which work without this
            // record.
            Err(error @ StoreError::Full(_)) => {
                tracing::error!(%error, "cannot record the start in the audit trail")
            }
            outcome => outcome.map_err(|error| StartError::failed("store")(error.into()))?,
        }
        Ok(())
    }

    /// Stores the counts that are still in memory and closes the store.
    pub(super) async fn close(self) {
        if !self.services.detached.finish(FINISH_TIMEOUT).await {
            tracing::warn!("shutdown timed out, left changes with unknown outcome");
        }
        if let Err(error) = self.services.clients.note_uses().await {
            tracing::warn!(%error, "cannot record secret uses of the last seconds");
        }
        if let Err(error) = self.services.clients.record_refusals(self.clock.now(), true).await {
            tracing::warn!(%error, "cannot record refusal counts of the last minute");
        }
        if let Err(error) = self.store.close().await {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot close the store");
        }
    }
}

pub(super) async fn open(
    options: &Options,
    issuer: &str,
    purpose: Purpose,
) -> Result<Opened, StartError> {
    let config = &options.config;
    let data_dir = config.data_dir.clone();
    let (retention, archive_problem) = retention(config, purpose).await?;
    if purpose == Purpose::Serve && !creates(options) {
        stores::must_exist(config)?;
    }
    let sealer = Arc::new(Sealer::new(master_key(config, options.dev)?));
    let chain = Arc::new(ChainKey::new(sealer.derive("audit head")));
    let accept = Accept { rollback: options.accept_rollback, open_directory: options.dev };
    let stores::OpenedStore { store, rollback } = match &options.store {
        Some(store) => store.clone().into(),
        None => stores::open(config, (*chain).clone(), accept).await?,
    };
    let store = Arc::new(Authentic::new(store, RecordKey::new(sealer.derive("client record"))));
    let clock = options
        .clock
        .clone()
        .unwrap_or_else(|| Arc::new(SystemClock::starting_at(store.newest_time())));
    warn_of_gap(store.newest_time(), clock.now());
    if options.accept_rollback {
        accept_rollback(store.as_ref(), clock.as_ref(), rollback).await?;
    }

    let (clock_offset, measured) = (Arc::new(ClockOffset::default()), options.clock.is_none());
    if measured {
        // The first measurement opens connections and may be too slow to be used.
        for _ in 0..3 {
            measure(store.as_ref(), clock.as_ref(), &clock_offset).await.map_err(stores::failed)?;
        }
    }

    let terms = terms(config, issuer)?;
    let first = match (purpose, creates(options)) {
        (Purpose::Serve, true) => First::Create,
        (Purpose::Serve, false) => First::Await,
        (Purpose::Administer, _) => First::Refuse,
    };
    let keyset = match keyset(store.as_ref(), &sealer, &terms, clock.as_ref(), first).await {
        Ok(keyset) => keyset,
        Err(StartError::Transient { reason, detail }) => {
            // The next attempt opens it again.
            if let Err(error) = store.close().await {
                tracing::debug!(%error, "cannot close the store");
            }
            return Err(StartError::Transient { reason, detail });
        }
        Err(error) => return Err(error),
    };
    let tolerance = if config.store.is_shared() { SHARED_CLOCK_TOLERANCE } else { CLOCK_TOLERANCE };
    let claim_limits =
        ClaimLimits { max_lifetime: terms.token.access_lifetime_max(), skew: tolerance };
    let opening = Opening { sealer: sealer.clone(), issuer: terms.issuer.clone(), claim_limits };
    let standing =
        NodeState::new(&keyset, opening, config.store.max_staleness()).map_err(|error| {
            let place = if config.store.is_shared() {
                "the shared store".to_owned()
            } else {
                data_dir.display().to_string()
            };
            StartError::Configuration(format!(
                "cannot open the keys in {place}: {error}; check that master_key_file is the key \
                 of this store"
            ))
        })?;
    let standing = Arc::new(standing);
    let snapshot = store.follow(clock.now(), standing.clone()).await.map_err(stores::failed)?;
    standing.load(snapshot);
    // Another node may have written keys after they were read and before the change feed began.
    if let Some(keyset) = store.keyset().await.map_err(stores::failed)? {
        standing.apply(&Change::Keyset(Arc::new(keyset)));
    }

    let parts = Parts {
        store: store.clone(),
        standing,
        limits: Arc::new(Limits::new(&config.limits)),
        passwords: Arc::new(Passwords::new(
            config.limits.argon2_parallel,
            config.limits.argon2_queue,
        )),
        sealer,
        chain: chain.clone(),
        issue: config.audit.issue,
        clock: clock.clone(),
        clock_offset: clock_offset.clone(),
        list_patience: Duration::from_secs(config.limits.deadline_seconds) / 2,
        terms,
        runtime: tokio::runtime::Handle::current(),
    };
    let services = Arc::new(Services::new(parts));
    // Once, not at each attempt of a start.
    if let Some(error) = archive_problem {
        tracing::error!(
            error = super::with_sources(&error),
            "cannot write audit.archive, the audit trail is not cut until it can be written"
        );
    }
    let directory =
        (options.store.is_none() && !config.store.is_shared()).then(|| data_dir.as_path().into());
    Ok(Opened {
        services,
        store,
        chain,
        clock,
        clock_offset,
        measured,
        data_dir,
        directory,
        retention,
    })
}

/// Returns true if a start creates the first keyset of an empty store. Another one serves no client
/// there: the address is wrong, or a mount is late.
const fn creates(options: &Options) -> bool {
    options.dev || options.bootstrap || options.store.is_some()
}

/// Reads the bound of the audit trail, and prepares the directory of its archive for a server. One that
/// cannot be written is returned as a problem: nothing is cut until it can.
async fn retention(
    config: &Config,
    purpose: Purpose,
) -> Result<(Arc<Retention>, Option<RetentionError>), StartError> {
    let wrong = |error: &dyn std::fmt::Display| StartError::Configuration(error.to_string());
    let keep = config.audit.keep().map_err(|error| wrong(&error))?;
    let archive = config.audit.archive().map(Path::to_owned);
    let prepared = match (purpose, &archive) {
        (Purpose::Serve, Some(archive)) => retention::prepare(archive.clone()).await,
        (Purpose::Serve | Purpose::Administer, _) => Ok(()),
    };
    if let Err(error @ RetentionError::Exposed(_)) = &prepared {
        return Err(wrong(error));
    }
    Ok((Arc::new(Retention { keep, archive }), prepared.err()))
}

/// Warns if the clock is far after the last write: if it is wrong, everything expires, and the store
/// lives in the future from now on.
fn warn_of_gap(newest: Timestamp, now: Timestamp) {
    if newest > Timestamp::EPOCH && now.since(newest) > GAP_MAX {
        tracing::warn!(
            last_write = %newest, now = %now,
            "the machine's clock is far after the last write; if it is wrong, stop the service, \
             correct it and run `jeton admin reset-clock`"
        );
    }
}

/// Records that a rollback was accepted, before all other records: without it nothing is served.
async fn accept_rollback(
    store: &dyn Store,
    clock: &dyn Clock,
    rollback: Option<String>,
) -> Result<(), StartError> {
    let Some(rollback) = rollback else {
        tracing::warn!("--accept-rollback is not needed; remove it");
        return Ok(());
    };
    tracing::warn!(
        rollback,
        "rollback accepted, tokens revoked since this copy was made are valid again"
    );
    let event = Stamp::internal(clock.now()).done(Action::RollbackAccepted, rollback);
    store.append(event).await.map_err(stores::failed)
}

/// C2: measures the offset of this node's clock from the common clock of the store.
pub(super) async fn measure(
    store: &dyn Store,
    clock: &dyn Clock,
    clock_offset: &ClockOffset,
) -> Result<(), StoreError> {
    let before = clock.now();
    let Some(common) = store.time().await? else { return Ok(()) };
    clock_offset.record(before, common, clock.now());
    let apart = clock_offset.millis();
    METRICS.readings.clock_offset.set(apart as f64 / 1e3);
    if apart.unsigned_abs() > SHARED_CLOCK_TOLERANCE.as_millis() as u64 {
        tracing::error!(
            apart_ms = apart,
            "system clock differs from MongoDB's, other nodes may reject tokens of this node; \
             synchronize both with NTP"
        );
    }
    Ok(())
}

fn master_key(config: &Config, dev: bool) -> Result<zeroize::Zeroizing<[u8; 32]>, StartError> {
    let beside = config.data_dir.join("master.key");
    let path = if config.master_key_file.as_os_str().is_empty() {
        &beside
    } else {
        &config.master_key_file
    };
    if dev && path == &beside {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.data_dir).map_err(
            |error| {
                StartError::Configuration(format!(
                    "cannot create {}: {error}",
                    config.data_dir.display()
                ))
            },
        )?;
    }
    let key = if path == &beside {
        master::load_or_make_beside_data(path, dev)
    } else {
        master::load_or_make(path, false)
    };
    key.map_err(|error| StartError::Configuration(error.to_string()))
}

fn terms(config: &Config, issuer: &str) -> Result<Terms, StartError> {
    let own_audience: Audience = issuer
        .parse()
        .map_err(|invalid: Invalid| StartError::Configuration(format!("issuer: {invalid}")))?;
    let seconds = std::time::Duration::from_secs;
    Ok(Terms {
        issuer: issuer.into(),
        own_audience,
        token: config.token.clone(),
        keys: KeyPolicy {
            rotate_every: seconds(config.keys.rotate_every_seconds),
            publish_ahead: seconds(config.keys.publish_ahead_seconds),
            verify_after: config.token.access_lifetime_max() + SLACK,
        },
        algorithm: config.keys.algorithm,
    })
}

/// Treatment of a store without a keyset and without records.
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    /// The first keyset is created.
    Create,
    /// A later attempt may find one.
    Await,
    /// Refused.
    Refuse,
}

/// Reads the keyset, or creates the first one; if another process creates one meanwhile, that is
/// used. A store with other records had keys once: it is not served without them, so that a
/// deletion cannot replace the signing keys. New keys would not help either: the generated secrets
/// of all clients, administrators included, are checked under the lost root key.
async fn keyset(
    store: &dyn Store,
    sealer: &Sealer,
    terms: &Terms,
    clock: &dyn Clock,
    first: First,
) -> Result<Keyset, StartError> {
    if let Some(keyset) = store.keyset().await.map_err(stores::failed)? {
        return Ok(keyset);
    }
    if !has_records(store).await.map_err(stores::failed)? {
        let problem = STORE_IS_EMPTY.to_owned();
        match first {
            First::Create => {}
            First::Await => {
                return Err(StartError::Transient { reason: stores::EMPTY, detail: problem });
            }
            First::Refuse => return Err(StartError::Configuration(problem)),
        }
        let (first, event) = keys::first(sealer, terms, clock.now());
        store.replace_keyset(&first, event).await.map_err(stores::failed)?;
    }
    // If there was a record already, another process that starts too created the keys before it.
    store
        .keyset()
        .await
        .map_err(stores::failed)?
        .ok_or_else(|| StartError::Configuration(KEYS_ARE_GONE.to_owned()))
}

const STORE_IS_EMPTY: &str = "the store is empty: check the address of the store, or run \
                              `jeton serve --bootstrap`";

const KEYS_ARE_GONE: &str = "the store has records but no signing keys. Restore a backup that \
                             contains them, or `jeton import` an export into an empty store";

async fn has_records(store: &dyn Store) -> Result<bool, StoreError> {
    Ok(!store.events(&Filter::default(), None, 1).await?.is_empty()
        || !store.clients(None, None, 1).await?.is_empty())
}
