//! Configuration: all settings, with units in their names. Sources: defaults < file < environment <
//! flags.

use std::{
    collections::BTreeMap, io::Read, net::SocketAddr, os::unix::fs::MetadataExt, path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::model::{Network, keyset::Algorithm, text::unquoted};

mod check;
mod environment;
mod keep;
mod load;
mod log;

pub use check::check;
pub use keep::Keep;
pub use load::{ConfigError, DEFAULTS, Flag, Origins, Sources};
pub use log::log_filter;

/// All settings. `deploy/config.toml` is the commented default and contains exactly these keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address of the one port, gRPC and HTTP.
    pub listen: SocketAddr,
    /// Address of the metrics listener; loopback unless `metrics_insecure` or `insecure`. Empty means
    /// none.
    pub metrics_listen: String,
    /// Accepts metrics on an address other than loopback.
    pub metrics_insecure: bool,
    /// Address of a listener without TLS for probes and public documents alone. Empty means none.
    pub probe_listen: String,
    /// The `iss` of every token and the URL of the metadata; empty means `http(s)://` and the
    /// address listened on.
    pub issuer: String,
    /// Name of this node in the audit trail.
    pub node: String,
    /// Directory of the embedded store; empty means `$XDG_STATE_HOME/jeton`, or
    /// `~/.local/state/jeton`.
    pub data_dir: PathBuf,
    /// File with the master key (32 bytes, base64 or hex); empty means `master.key` beside the
    /// data, created in development only.
    pub master_key_file: PathBuf,
    /// Accepts a public address without TLS, and public metrics.
    pub insecure: bool,
    /// Serves gRPC reflection.
    pub reflection: bool,
    /// The store.
    pub store: Store,
    /// TLS of the port.
    pub tls: Tls,
    /// Proxies in front of the port.
    pub proxy: Proxy,
    /// Lifetimes.
    pub token: Token,
    /// Signing keys.
    pub keys: KeySettings,
    /// Bounds.
    pub limits: Limits,
    /// The audit trail.
    pub audit: Audit,
    /// Log on stderr.
    pub log: Log,
}

/// Store of all records: the data directory, unless an address is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// Address of a MongoDB that nodes share; empty means the embedded store.
    pub uri: StoreUri,
    /// File with the address, for an address with a password; instead of `uri`.
    pub uri_file: PathBuf,
    /// Timeout of a MongoDB operation, in milliseconds.
    pub call_timeout_ms: u64,
    /// Maximum age of a node's revocation data; with older data it refuses token calls.
    pub max_staleness_seconds: u64,
    /// Time that a start waits for a store that cannot be opened yet; 0 does not wait.
    pub start_patience_seconds: u64,
}

impl Store {
    /// Returns true if nodes share the store.
    pub fn is_shared(&self) -> bool {
        !self.uri.is_empty() || !self.uri_file.as_os_str().is_empty()
    }

    /// Refuses a shared store in a program that was built without MongoDB.
    ///
    /// # Errors
    /// The setting that names the store.
    pub fn supported(&self) -> Result<(), ConfigError> {
        if !self.is_shared() || cfg!(feature = "mongodb") {
            return Ok(());
        }
        let key = if self.uri.is_empty() { "store.uri_file" } else { "store.uri" };
        let problem = "must be empty because this jeton was built without MongoDB (Cargo feature \
                       `mongodb`)";
        Err(ConfigError::new(key, problem))
    }

    /// Returns the address, from the setting or the file; empty unless [`Self::is_shared`].
    ///
    /// # Errors
    /// The file cannot be read, or contains no address, or the program was built without MongoDB.
    pub fn address(&self) -> Result<String, ConfigError> {
        self.supported()?;
        if self.uri_file.as_os_str().is_empty() {
            return Ok(self.uri.expose().to_owned());
        }
        let refused = |problem| ConfigError::new("store.uri_file", problem);
        let unread = |error| refused(format!("cannot read {}: {error}", self.uri_file.display()));
        let mut file = std::fs::File::open(&self.uri_file).map_err(unread)?;
        // A user who can write to the file chooses the store, and with it all clients and tokens.
        // The mode is that of the open file, which is the file that is read.
        let mode = file.metadata().map_err(unread)?.mode() & 0o777;
        if mode & 0o022 != 0 {
            let shown = self.uri_file.display();
            return Err(refused(format!(
                "other users can write to {shown} (mode {mode:04o}): chmod 0600 {shown}; from a \
                 Kubernetes Secret, set defaultMode: 0400 and fsGroup"
            )));
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(unread)?;
        let address = unquoted(&text);
        if address.starts_with("mongodb://") || address.starts_with("mongodb+srv://") {
            Ok(address.to_owned())
        } else {
            Err(refused(format!("{} contains no MongoDB address", self.uri_file.display())))
        }
    }

    /// Timeout of a MongoDB operation.
    pub const fn call_timeout(&self) -> Duration {
        Duration::from_millis(self.call_timeout_ms)
    }

    /// Maximum age of a node's revocation data.
    pub const fn max_staleness(&self) -> Duration {
        Duration::from_secs(self.max_staleness_seconds)
    }
}

/// The address of a store. It may contain a password, which is never printed.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct StoreUri(String);

impl StoreUri {
    /// Returns the address with its password.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns true if no address is set.
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
        // A text that is not an address may be anything, a password included.
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
    /// PEM file with the CAs of client certificates; empty means that none is required.
    pub client_ca_file: PathBuf,
}

/// Proxies in front of the port, and how they name the client of a connection or request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proxy {
    /// Networks of the proxies. Empty: the peer of a connection is the client.
    pub trusted: Vec<Network>,
    /// Header before the first byte of a connection.
    pub protocol: ProxyProtocol,
    /// Header of HTTP.
    pub header: ProxyHeader,
}

/// Header before the first byte of a proxy's connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProxyProtocol {
    /// None.
    #[default]
    Off,
    /// PROXY protocol, version 2; every connection of a proxy must have it.
    V2,
}

/// Header in which proxies of HTTP append the address of their client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyHeader {
    /// None.
    #[default]
    Off,
    /// `x-forwarded-for`.
    XForwardedFor,
    /// `forwarded` (RFC 7239).
    Forwarded,
}

/// Lifetimes of tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// Lifetime of an access token, unless its client has one of its own.
    pub access_lifetime_seconds: u64,
    /// Maximum lifetime of any client's access tokens; retired keys verify for this time too.
    pub access_lifetime_max_seconds: u64,
    /// Absolute lifetime of a refresh family, unless its client has one of its own.
    pub refresh_lifetime_seconds: u64,
    /// Idle lifetime of a refresh family, unless its client has one of its own.
    pub refresh_idle_seconds: u64,
    /// Time for which a used refresh token still yields the same successor, at most 60; 0 disables
    /// it.
    pub refresh_grace_seconds: u64,
}

/// Signing keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySettings {
    /// Algorithm of new keys: EdDSA, ES256 or RS256.
    pub algorithm: Algorithm,
    /// Time for which a key signs before it is replaced; 0 means until it is rotated by hand.
    pub rotate_every_seconds: u64,
    /// Time for which a new key is published before it signs; also the max-age of the JWKS.
    pub publish_ahead_seconds: u64,
}

/// Limits on the resources that callers can use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Maximum open connections.
    pub connections: usize,
    /// Maximum open connections of one peer address (IPv6: /64, and four times as many of a /48).
    pub connections_per_peer: usize,
    /// Maximum concurrent streams on one connection.
    pub streams_per_connection: u32,
    /// Time for a TLS handshake, and again for the first bytes of HTTP.
    pub handshake_seconds: u64,
    /// Deadline of a call without one, and the longest that a call may set.
    pub deadline_seconds: u64,
    /// Time beyond the deadline in which the client must read a response.
    pub unread_seconds: u64,
    /// Time without a call after which an HTTP/2 connection gets a GOAWAY.
    pub connection_idle_seconds: u64,
    /// Age at which an HTTP/2 connection gets a GOAWAY.
    pub connection_age_seconds: u64,
    /// Time after a stop signal for which the port serves on and is not ready.
    pub shutdown_delay_seconds: u64,
    /// Time for calls in flight to finish after it.
    pub drain_seconds: u64,
    /// Worker threads; 0 means one per core.
    pub workers: usize,
    /// Calls from one peer address (IPv6: /64).
    pub per_peer: Rate,
    /// Wrong secrets of one peer address, and as many more of it at each existing client.
    pub failed_authentication: Rate,
    /// Maximum peers and clients that the limiters track; beyond it new ones are refused until
    /// others expire.
    pub tracked_keys: usize,
    /// Maximum revocations of single tokens and families of one client, reuse included, that a
    /// process keeps. Beyond it each further one revokes all tokens of the client, until these
    /// expire.
    pub revocations_per_client: u32,
    /// Imported secrets that argon2id compares concurrently; one at a time for each peer address.
    pub argon2_parallel: usize,
    /// Queue of imported secrets to compare; more are refused, as is more than a quarter from one
    /// peer address.
    pub argon2_queue: usize,
    /// Rate plans of clients; "standard" must be among them.
    pub plans: BTreeMap<String, Rate>,
}

/// A rate limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Sustained rate.
    pub per_second: u32,
    /// Maximum at one moment.
    pub burst: u32,
}

/// The audit trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// Durability of the record of an issued token.
    pub issue: Issue,
    /// Part of the trail that is kept, an age or a size; empty means all of it.
    pub keep: String,
    /// Directory to which records are archived before they are cut, or `none`.
    pub archive: String,
}

/// Durability of the record of an issued token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Issue {
    /// Durable before the response.
    Durable,
    /// Durable at most 50 ms after the response.
    Batched,
}

/// Log on stderr.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`, or directives such as
    /// `info,jeton::store=debug`.
    pub level: String,
    /// `text` or `json`.
    pub format: LogFormat,
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
}

impl Token {
    /// Lifetime of an access token, unless its client has one of its own.
    pub const fn access_lifetime(&self) -> Duration {
        Duration::from_secs(self.access_lifetime_seconds)
    }

    /// Absolute lifetime of a refresh family, unless its client has one of its own.
    pub const fn refresh_lifetime(&self) -> Duration {
        Duration::from_secs(self.refresh_lifetime_seconds)
    }

    /// Idle lifetime of a refresh family, unless its client has one of its own.
    pub const fn refresh_idle(&self) -> Duration {
        Duration::from_secs(self.refresh_idle_seconds)
    }

    /// Time for which a used refresh token still yields the same successor.
    pub const fn refresh_grace(&self) -> Duration {
        Duration::from_secs(self.refresh_grace_seconds)
    }

    /// Maximum lifetime of an access token.
    pub const fn access_lifetime_max(&self) -> Duration {
        Duration::from_secs(self.access_lifetime_max_seconds)
    }
}
