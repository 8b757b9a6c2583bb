//! Checks of the signing keys and the audit trail in a store.

use super::Finding;
use crate::{
    clock::JUMP,
    config::Config,
    crypto::{
        master,
        seal::Sealer,
        signing_keys::{SigningKeys, SigningKeysError},
    },
    model::{Keyset, Timestamp, keyset::Algorithm},
    store::{TrailSize, embedded::Embedded},
};

const SUBJECT: &str = "signing keys";

/// Checks the keys, the time and the audit trail in a data directory; empty if there is no store
/// yet.
pub(super) fn embedded(config: &Config, now: Timestamp) -> Vec<Finding> {
    let Ok(store) = Embedded::read_only(&config.data_dir, None) else { return Vec::new() };
    let keyset = store.keyset().ok().flatten();
    let keys = keyset.and_then(|keyset| signing_keys(config, &keyset));
    let free = rustix::fs::statvfs(&config.data_dir).ok();
    let free = free.map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    let trail = store.trail_size(now).ok().map(|size| audit_trail(config, &size, free));
    let clock = service_clock(store.newest_time(), now);
    keys.into_iter().chain(clock).chain(trail).collect()
}

/// Reports the size and growth of the audit trail. `free` is the space for it, if it is known.
pub(super) fn audit_trail(config: &Config, size: &TrailSize, free: Option<u64>) -> Finding {
    const SUBJECT: &str = "audit trail";
    let mut text = format!("{} records, about {}", size.records, bytes(size.bytes()));
    match size.records_a_day().zip(size.bytes_a_year()) {
        Some((records, year)) => {
            text +=
                &format!("; {records} records a day, about {} a year at this rate", bytes(year));
        }
        None => text += "; too young for a rate",
    }
    let is_unbounded = config.audit.keep.is_empty();
    if is_unbounded && size.bytes_a_year().zip(free).is_some_and(|(year, free)| year > free) {
        let advice =
            "the disk is full within a year: set audit.keep and audit.archive, or enlarge it";
        return Finding::note(SUBJECT, text, advice);
    }
    Finding::ok(SUBJECT, text)
}

/// Size in a unit of thousands, with one decimal.
fn bytes(bytes: u64) -> String {
    let units =
        [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    for (unit, name) in units {
        if bytes >= unit {
            return format!("{:.1} {name}", bytes as f64 / unit as f64);
        }
    }
    format!("{bytes} bytes")
}

/// Checks that a store does not live ahead of this machine's clock.
pub(super) fn service_clock(newest: Timestamp, now: Timestamp) -> Option<Finding> {
    let ahead = newest.since(now);
    (ahead > JUMP).then(|| {
        Finding::problem(
            "service clock",
            format!("the store lives at {newest}, {} s ahead of this machine", ahead.as_secs()),
            "the machine's clock was ahead once. If it is right now: the service gives back an \
             eighth of the time that passes; or stop it and run `jeton admin reset-clock`, which \
             revokes all tokens",
        )
    })
}

/// Checks that the master key opens the signing keys; `None` without a master key, which another
/// check reports.
pub(super) fn signing_keys(config: &Config, keyset: &Keyset) -> Option<Finding> {
    let master = master::load_or_make(&config.master_key_path(), false).ok()?;
    Some(match SigningKeys::open(keyset, &Sealer::new(master)) {
        Ok(_) => another_algorithm(config.keys.algorithm, keyset)
            .unwrap_or_else(|| Finding::ok(SUBJECT, "are authentic and open with this master key")),
        Err(error @ SigningKeysError::Keyset(_)) => {
            let advice = "running nodes keep the last authentic keyset: check who writes to the \
                          store, then restore a backup";
            Finding::problem(SUBJECT, error.to_string(), advice)
        }
        Err(error) => Finding::problem(
            SUBJECT,
            format!("cannot be opened: {error}"),
            "give this node the master key of the other nodes",
        ),
    })
}

/// Reports that the configured algorithm does not sign yet, and from when it does.
fn another_algorithm(configured: Algorithm, keyset: &Keyset) -> Option<Finding> {
    let signing = keyset.active().map(|key| key.alg).filter(|signing| *signing != configured)?;
    let (when, advice) = match keyset.signs_from(configured) {
        Some(at) => (
            format!("from {at} on"),
            "nothing to do: caches of the JWKS get the new key until then",
        ),
        None => ("after the next start".to_owned(), "restart the service with this setting"),
    };
    let (signing, configured) = (signing.as_str(), configured.as_str());
    let text = format!("sign with {signing}; keys.algorithm {configured} applies {when}");
    Some(Finding::note(SUBJECT, text, advice))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::doctor::Verdict, config::Sources};

    #[test]
    fn the_trail_is_reported_with_its_growth() {
        let size = TrailSize {
            records: 1_000_000,
            record_bytes: 333,
            recent: 100,
            recent_ms: 60 * 60 * 1_000,
        };
        let mut config = Config::load(&Sources::default()).unwrap().0;
        let text = audit_trail(&config, &size, None).text;
        assert_eq!(
            text,
            "1000000 records, about 333.0 MB; 2400 records a day, about 291.7 MB a year at this \
             rate"
        );
        let young = TrailSize { recent_ms: 1, ..size };
        assert!(audit_trail(&config, &young, Some(0)).text.ends_with("; too young for a rate"));
        let verdict = |config: &Config, free| audit_trail(config, &size, Some(free)).verdict;
        assert_eq!(verdict(&config, 292_000_000), Verdict::Ok);
        assert_eq!(verdict(&config, 291_000_000), Verdict::Note);
        config.audit.keep = "400d".to_owned();
        assert_eq!(verdict(&config, 0), Verdict::Ok);
        assert_eq!(bytes(999), "999 bytes");
    }
}
