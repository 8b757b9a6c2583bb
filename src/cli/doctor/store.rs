//! Checks of the signing keys in a store.

use super::Finding;
use crate::{
    config::Config,
    crypto::{
        master,
        seal::Sealer,
        signing_keys::{SigningKeys, SigningKeysError},
    },
    model::Keyset,
    store::embedded::Embedded,
};

/// Checks the keys in a data directory; `None` if there are none yet.
pub(super) fn embedded(config: &Config) -> Option<Finding> {
    let keyset = Embedded::read_only(&config.data_dir, None).ok()?.keyset().ok()??;
    signing_keys(config, &keyset)
}

/// Checks that the master key opens the signing keys; `None` without a master key, which another
/// check reports.
pub(super) fn signing_keys(config: &Config, keyset: &Keyset) -> Option<Finding> {
    const SUBJECT: &str = "signing keys";
    let master = master::load_or_make(&config.master_key_path(), false).ok()?;
    Some(match SigningKeys::open(keyset, &Sealer::new(master)) {
        Ok(_) => Finding::ok(SUBJECT, "are authentic and open with this master key"),
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
