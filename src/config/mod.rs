//! Configuration: what can be set, with units in the names. Read from defaults < file < environment
//! < flags.

use std::{
    collections::BTreeMap, io::Read, net::SocketAddr, os::unix::fs::MetadataExt, path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::model::keyset::Algorithm;

mod check;
mod load;
mod log;

pub use check::check;
pub use load::{ConfigError, DEFAULTS, Flag, Origins, Sources};
pub use log::log_filter;

/// Everything that can be set. `deploy/config.toml` is the commented default and holds exactly
/// these keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address of the one port, gRPC and HTTP.
    pub listen: SocketAddr,
    /// Address of the metrics listener; loopback unless `insecure`. Empty means none.
    pub metrics_listen: String,
    /// The `iss` of every token and the URL of the metadata; empty means `http(s)://` and the
    /// address listened on.
    pub issuer: String,
    /// Name of this node in the audit trail.
    pub node: String,
    /// Directory of the embedded store; empty means `$XDG_STATE_HOME/jeton`, or
    /// `~/.local/state/jeton`.
    pub data_dir: PathBuf,
    /// File with the master key (32 bytes, base64 or hex); empty means `master.key` beside the
    /// data, made in development only.
    pub master_key_file: PathBuf,
    /// Whether a public address without TLS, or public metrics, is accepted.
    pub insecure: bool,
    /// Whether gRPC reflection is served.
    pub reflection: bool,
    /// The store.
    pub store: Store,
    /// TLS of the port.
    pub tls: Tls,
    /// Lifetimes.
    pub token: Token,
    /// Signing keys.
    pub keys: Keys,
    /// Bounds.
    pub limits: Limits,
    /// The audit trail.
    pub audit: Audit,
    /// What is written to stderr.
    pub log: Log,
}

/// Where everything is kept: in the data directory, unless an address is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// Address of a MongoDB that nodes share; empty means the embedded store.
    pub uri: StoreUri,
    /// File with the address, where it holds a password; instead of `uri`.
    pub uri_file: PathBuf,
    /// How long a call waits for MongoDB, in milliseconds.
    pub call_timeout_ms: u64,
    /// How old a node's knowledge of what other nodes ended may be before it refuses to judge.
    pub max_staleness_seconds: u64,
}

impl Store {
    /// Whether nodes share the store.
    pub fn is_shared(&self) -> bool {
        !self.uri.is_empty() || !self.uri_file.as_os_str().is_empty()
    }

    /// The address itself, from where it is kept; [`Self::is_shared`] says whether there is one.
    ///
    /// # Errors
    /// The file cannot be read, or holds no address.
    pub fn address(&self) -> Result<String, ConfigError> {
        if self.uri_file.as_os_str().is_empty() {
            return Ok(self.uri.expose().to_owned());
        }
        let refused = |problem| ConfigError::new("store.uri_file", problem);
        let unread = |error| refused(format!("cannot read {}: {error}", self.uri_file.display()));
        let mut file = std::fs::File::open(&self.uri_file).map_err(unread)?;
        // Others would choose the store, and with it everybody's clients and tokens. Asked of the
        // file that is read.
        let mode = file.metadata().map_err(unread)?.mode() & 0o777;
        if mode & 0o022 != 0 {
            let shown = self.uri_file.display();
            return Err(refused(format!(
                "other users can write to {shown} (mode {mode:04o}): chmod 0600 {shown}"
            )));
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(unread)?;
        let address = text.trim();
        if address.starts_with("mongodb://") || address.starts_with("mongodb+srv://") {
            Ok(address.to_owned())
        } else {
            Err(refused(format!("{} contains no MongoDB address", self.uri_file.display())))
        }
    }

    /// How long a call waits.
    pub const fn call_timeout(&self) -> Duration {
        Duration::from_millis(self.call_timeout_ms)
    }

    /// How old a node's knowledge may be.
    pub const fn max_staleness(&self) -> Duration {
        Duration::from_secs(self.max_staleness_seconds)
    }
}

/// The address of a store. It may hold a password, and shows itself without.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct StoreUri(String);

impl StoreUri {
    /// The address with all there is in it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for StoreUri {
    fn from(uri: String) -> Self {
        Self(uri)
    }
}

impl std::fmt::Display for StoreUri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // What is no address with a user in it may be anything, a password included.
        match (self.0.split_once("://"), self.0.rsplit_once('@')) {
            (None, _) if self.0.is_empty() => Ok(()),
            (Some((scheme, _)), Some((_, rest))) => {
                write!(f, "{scheme}://***@{}", rest.split(['?']).next().unwrap_or_default())
            }
            (Some(_), None) => f.write_str(self.0.split(['?']).next().unwrap_or_default()),
            (None, _) => f.write_str("***"),
        }
    }
}

impl std::fmt::Debug for StoreUri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StoreUri({self})")
    }
}

impl Serialize for StoreUri {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// TLS of the port; all empty means none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// PEM file with the certificate chain.
    pub cert_file: PathBuf,
    /// PEM file with the private key.
    pub key_file: PathBuf,
    /// PEM file with the authorities that client certificates must come from; empty means clients
    /// need none.
    pub client_ca_file: PathBuf,
}

/// Lifetimes of tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// Lifetime of an access token unless its client has another.
    pub access_lifetime_seconds: u64,
    /// The longest any client may have; also how long retired keys go on verifying.
    pub access_lifetime_max_seconds: u64,
    /// Absolute lifetime of a refresh family unless its client has another.
    pub refresh_lifetime_seconds: u64,
    /// How long a family lives unused unless its client has another.
    pub refresh_idle_seconds: u64,
    /// How long a spent refresh token still yields the same successor; 0 means not at all, at most
    /// 60.
    pub refresh_grace_seconds: u64,
}

/// Signing keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// Algorithm of new keys: EdDSA, ES256 or RS256.
    pub algorithm: Algorithm,
    /// How long a key signs before it is replaced; 0 means until it is rotated by hand.
    pub rotate_every_seconds: u64,
    /// How long a new key is published before it signs; also the max-age of the JWKS.
    pub publish_ahead_seconds: u64,
}

/// Bounds on what a caller can use up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Connections at once from one peer address (IPv6: /64, and four times as many from a /48).
    pub connections_per_peer: usize,
    /// Streams at once on one connection.
    pub streams_per_connection: u32,
    /// Time for a TLS handshake, and again for the first bytes of HTTP.
    pub handshake_seconds: u64,
    /// Deadline of a call that brings none, and the longest one may bring.
    pub deadline_seconds: u64,
    /// Time beyond the deadline in which an answer must be read.
    pub unread_seconds: u64,
    /// Time without a call after which an HTTP/2 connection is told to go away.
    pub connection_idle_seconds: u64,
    /// Age at which an HTTP/2 connection is told to go away.
    pub connection_age_seconds: u64,
    /// Time for calls in flight to finish when the server is told to stop.
    pub drain_seconds: u64,
    /// Worker threads; 0 means one per core.
    pub workers: usize,
    /// Calls from one peer address (IPv6: /64).
    pub per_peer: Rate,
    /// Wrong secrets from one peer address, and as many more from it at each existing client.
    pub failed_authentication: Rate,
    /// Peers and clients remembered by the limiters; new ones past it are refused until others are
    /// forgotten.
    pub tracked_keys: usize,
    /// Revocations of single tokens and families of one client, also of families ended by reuse,
    /// that a process makes and all remember; past it each further one, until these have expired,
    /// ends all tokens of the client.
    pub revocations_per_client: u32,
    /// Imported secrets compared by argon2id at once; one at a time for each peer address.
    pub argon2_parallel: usize,
    /// Imported secrets waiting to be compared; more are refused, and more than a quarter from one
    /// peer address.
    pub argon2_queue: usize,
    /// Rate plans that clients may be put on; "standard" must be among them.
    pub plans: BTreeMap<String, Rate>,
}

/// So many a second in the long run, so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// In the long run.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

/// The audit trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// Whether a token is answered only once its record is durable, or up to 50 ms before.
    pub issue: Issue,
}

/// When the record of an issued token is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Issue {
    /// Before the answer.
    Durable,
    /// At most 50 ms after it.
    Batched,
}

/// What is written to stderr.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`, or directives such as
    /// `info,jeton::store=debug`.
    pub level: String,
    /// `text` or `json`.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Token {
    /// Lifetime of an access token unless its client has another.
    pub const fn access_lifetime(&self) -> Duration {
        Duration::from_secs(self.access_lifetime_seconds)
    }

    /// Absolute lifetime of a refresh family unless its client has another.
    pub const fn refresh_lifetime(&self) -> Duration {
        Duration::from_secs(self.refresh_lifetime_seconds)
    }

    /// How long a family lives unused unless its client has another.
    pub const fn refresh_idle(&self) -> Duration {
        Duration::from_secs(self.refresh_idle_seconds)
    }

    /// How long a spent refresh token still yields the same successor.
    pub const fn refresh_grace(&self) -> Duration {
        Duration::from_secs(self.refresh_grace_seconds)
    }

    /// The longest lifetime of an access token.
    pub const fn access_lifetime_max(&self) -> Duration {
        Duration::from_secs(self.access_lifetime_max_seconds)
    }
}
