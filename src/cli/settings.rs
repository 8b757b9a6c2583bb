//! Flags that set the configuration.

use std::{collections::BTreeMap, path::PathBuf};

use clap::Args;

use super::output;
use crate::config::{Flag, Sources};

/// Warning about a password in a flag.
const EXPOSED_PASSWORD: &str = "other users of this machine can see the password in --store: write \
                                the address to a file and use --store-file (store.uri_file)";

/// Flags that name a store and its configuration.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct StoreSettings {
    /// Configuration file [default: $XDG_CONFIG_HOME/jeton/config.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Data directory of the embedded store
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Address of a MongoDB that nodes share, instead of the embedded store
    #[arg(long, value_name = "URI")]
    store: Option<String>,
    /// File with the MongoDB address, for an address with a password
    #[arg(long, value_name = "FILE", conflicts_with = "store")]
    store_file: Option<String>,
}

/// Flags that set the configuration, for `serve`, `doctor`, `config show`, `export` and `import`.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct Settings {
    #[command(flatten)]
    store: StoreSettings,
    /// Address to listen on; port 0 picks a free port
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Name of this node; unique among the nodes that share a store
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Allow an address other than loopback without TLS
    #[arg(long)]
    insecure: bool,
}

impl StoreSettings {
    /// Returns true if a flag names a store or its configuration.
    pub(super) const fn is_given(&self) -> bool {
        self.config.is_some()
            || self.data_dir.is_some()
            || self.store.is_some()
            || self.store_file.is_some()
    }
}

impl From<StoreSettings> for Settings {
    fn from(store: StoreSettings) -> Self {
        Self { store, ..Self::default() }
    }
}

impl Settings {
    /// Returns true if the address of the port is given by a flag.
    pub(super) const fn names_a_port(&self) -> bool {
        self.listen.is_some()
    }

    /// Returns the sources in this environment. Warns about a password in a flag.
    pub(super) fn sources(&self, environment: &BTreeMap<String, String>) -> Sources {
        if let Some(warning) = self.warning() {
            output::warn(&format!("warning: {warning}"));
        }
        self.silent_sources(environment)
    }

    /// Returns the warning about a password in a flag.
    pub(super) fn warning(&self) -> Option<&'static str> {
        self.store.store.as_deref().is_some_and(holds_a_password).then_some(EXPOSED_PASSWORD)
    }

    /// Returns the sources in this environment.
    pub(super) fn silent_sources(&self, environment: &BTreeMap<String, String>) -> Sources {
        let mut flags = Vec::new();
        let mut flag = |name, key, value: Option<String>| {
            flags.extend(value.map(|value| Flag { name, key, value }))
        };
        flag("--listen", "listen", self.listen.clone());
        flag("--data-dir", "data_dir", self.store.data_dir.clone());
        flag("--store", "store.uri", self.store.store.clone());
        flag("--store-file", "store.uri_file", self.store.store_file.clone());
        flag("--node", "node", self.node.clone());
        flag("--insecure", "insecure", self.insecure.then(|| "true".to_owned()));
        Sources { file: self.store.config.clone(), environment: environment.clone(), flags }
    }
}

/// Returns true if an address has a password before its hosts.
fn holds_a_password(address: &str) -> bool {
    let authority = address.split_once("://").map_or(address, |(_, rest)| rest);
    authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn flags_become_settings_with_their_names() {
        let settings = Settings {
            listen: Some("127.0.0.1:0".to_owned()),
            insecure: true,
            ..Settings::default()
        };
        let (config, origins) = Config::load(&settings.sources(&BTreeMap::new())).unwrap();
        assert_eq!((config.listen.port(), config.insecure), (0, true));
        assert_eq!(origins.of("insecure"), Some("flag --insecure"));
    }

    /// AZ16: an address with a password is told from one without.
    #[test]
    fn a_password_in_an_address_is_noticed() {
        for (address, expected) in [
            ("mongodb://me:secret@host/db", true),
            ("mongodb+srv://me:p%40ss@host", true),
            ("mongodb://me:@b@host/", true),
            ("mongodb://me@host:27017/db", false),
            ("mongodb://host:27017,other:27018/db?replicaSet=r", false),
        ] {
            assert_eq!(holds_a_password(address), expected, "{address}");
        }
    }
}
