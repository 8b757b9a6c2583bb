//! Validation of settings, alone and together. Depends on nothing but the settings.

use std::net::{IpAddr, SocketAddr};

use super::{
    Config, ConfigError, Proxy, ProxyHeader, ProxyProtocol, Rate, Store, Tls, keep, log_filter,
};
use crate::model::{Audience, PlanName};

/// Maximum of every lifetime, in seconds: 366 days.
const LIFETIME_MAX: u64 = 366 * 24 * 60 * 60;

/// Rejects settings that must not run: a public port without TLS (T03), half of a TLS pair, an
/// issuer that no verifier can trust, a limit of zero. With `dev` only one rule differs: a listener
/// on all addresses needs no `issuer`.
///
/// # Errors
/// The first setting that is wrong, by its key.
pub fn check(config: &Config, dev: bool) -> Result<(), ConfigError> {
    addresses(config)?;
    tls(&config.tls)?;
    proxy(&config.proxy)?;
    issuer(config, dev)?;
    node(&config.node)?;
    store(&config.store)?;
    if config.data_dir.as_os_str().is_empty() {
        return Err(ConfigError::new(
            "data_dir",
            "must be set because neither XDG_STATE_HOME nor HOME is an absolute path",
        ));
    }
    lifetimes(config)?;
    keys(config)?;
    limits(config)?;
    keep::check(&config.audit)?;
    log_filter(&config.log.level).map_err(|problem| ConfigError::new("log.level", problem))?;
    Ok(())
}

/// Refuses half a setting, and one by which every client could name its own address.
fn proxy(proxy: &Proxy) -> Result<(), ConfigError> {
    let refused = |problem: &str| Err(ConfigError::new("proxy.trusted", problem));
    let is_named = proxy.protocol != ProxyProtocol::Off || proxy.header != ProxyHeader::Off;
    match (proxy.trusted.is_empty(), is_named) {
        (true, true) => refused("must name the proxies that proxy.protocol or proxy.header is for"),
        (false, false) => refused("has no effect without proxy.protocol or proxy.header"),
        _ if proxy.trusted.iter().any(|network| network.is_everything()) => {
            refused("must not contain every address: any client could choose its own")
        }
        _ => Ok(()),
    }
}

fn addresses(config: &Config) -> Result<(), ConfigError> {
    let tls = !config.tls.cert_file.as_os_str().is_empty();
    if !loopback(config.listen.ip()) && !tls && !config.insecure {
        return Err(ConfigError::new(
            "listen",
            format!(
                "{} is not a loopback address and TLS is off: set tls.cert_file and tls.key_file, \
                 or insecure = true",
                config.listen
            ),
        ));
    }
    let probes = match config.probe_listen.as_str() {
        "" => None,
        probes => Some(probes.parse::<SocketAddr>().map_err(|_| {
            ConfigError::new(
                "probe_listen",
                "must be empty or an address and port, such as 0.0.0.0:8081",
            )
        })?),
    };
    let is_same = |a: SocketAddr, b: SocketAddr| a == b && a.port() != 0;
    if probes.is_some_and(|probes| is_same(probes, config.listen)) {
        return Err(ConfigError::new("probe_listen", "must differ from listen"));
    }
    if config.metrics_listen.is_empty() {
        return Ok(());
    }
    let metrics: SocketAddr = config.metrics_listen.parse().map_err(|_| {
        ConfigError::new(
            "metrics_listen",
            "must be empty or an address and port, such as 127.0.0.1:9464",
        )
    })?;
    if !loopback(metrics.ip()) && !config.metrics_insecure && !config.insecure {
        return Err(ConfigError::new(
            "metrics_listen",
            format!(
                "{metrics} is not a loopback address: use a loopback address, or set \
                 metrics_insecure = true"
            ),
        ));
    }
    if is_same(metrics, config.listen) {
        return Err(ConfigError::new("metrics_listen", "must differ from listen"));
    }
    if probes.is_some_and(|probes| is_same(metrics, probes)) {
        return Err(ConfigError::new("metrics_listen", "must differ from probe_listen"));
    }
    Ok(())
}

/// `::ffff:127.0.0.1` is 127.0.0.1.
const fn loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

fn tls(tls: &Tls) -> Result<(), ConfigError> {
    let (cert, key) = (!tls.cert_file.as_os_str().is_empty(), !tls.key_file.as_os_str().is_empty());
    let client_ca = !tls.client_ca_file.as_os_str().is_empty();
    match (cert, key) {
        (true, false) => {
            Err(ConfigError::new("tls.key_file", "must be set because tls.cert_file is set"))
        }
        (false, true) => {
            Err(ConfigError::new("tls.cert_file", "must be set because tls.key_file is set"))
        }
        (false, false) if client_ca => {
            Err(ConfigError::new("tls.cert_file", "must be set because tls.client_ca_file is set"))
        }
        (true, true) | (false, false) => Ok(()),
    }
}

/// RFC 8414 section 2: a URL with `https`, without query or fragment. It is also the audience of
/// tokens for this service.
fn issuer(config: &Config, dev: bool) -> Result<(), ConfigError> {
    let refused = |problem: &str| Err(ConfigError::new("issuer", problem));
    let issuer = &config.issuer;
    if issuer.is_empty() {
        if config.listen.ip().is_unspecified() && !dev {
            return refused("must be set because listen is a wildcard address");
        }
        return Ok(());
    }
    if issuer.contains(['?', '#', '@']) || issuer.parse::<Audience>().is_err() {
        return refused("must be a URL without user, query and fragment, at most 256 characters");
    }
    let Ok(url) = issuer.parse::<http::Uri>() else { return refused("must be a URL") };
    // The documents are served under it.
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '~' | '-');
    let path = url.path().trim_end_matches('/');
    let mut segments = path.split('/').skip(1);
    if segments.any(|part| part.is_empty() || part.starts_with('.') || !part.chars().all(plain)) {
        return refused(
            "must have a path of letters, digits, `.`, `_`, `~` and `-` between slashes, no part \
             of which is empty or begins with a dot",
        );
    }
    let host = url.host().unwrap_or_default();
    let here = host == "localhost" || host.trim_matches(['[', ']']).parse().is_ok_and(loopback);
    match url.scheme_str() {
        Some("https") if !host.is_empty() => Ok(()),
        Some("http") if here || (config.insecure && !host.is_empty()) => Ok(()),
        Some("http") => {
            refused("must begin with https:// unless its host is loopback or insecure = true")
        }
        _ => refused("must be an https:// URL"),
    }
}

fn store(store: &Store) -> Result<(), ConfigError> {
    store.supported()?;
    let address = store.uri.expose();
    if !address.is_empty() && !store.uri_file.as_os_str().is_empty() {
        return Err(ConfigError::new("store.uri_file", "must be empty because store.uri is set"));
    }
    if !address.is_empty()
        && !address.starts_with("mongodb://")
        && !address.starts_with("mongodb+srv://")
    {
        return Err(ConfigError::new(
            "store.uri",
            "must be a MongoDB address, such as mongodb://host:27017/jeton?replicaSet=rs0",
        ));
    }
    within("store.call_timeout_ms", store.call_timeout_ms, 100, 60_000)?;
    within("store.max_staleness_seconds", store.max_staleness_seconds, 1, 60)?;
    within("store.start_patience_seconds", store.start_patience_seconds, 0, 86_400)
}

fn node(node: &str) -> Result<(), ConfigError> {
    let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if node.is_empty() || node.len() > 64 || !node.bytes().all(valid) {
        return Err(ConfigError::new("node", "must be 1 to 64 of [A-Za-z0-9._-]"));
    }
    Ok(())
}

fn lifetimes(config: &Config) -> Result<(), ConfigError> {
    let token = &config.token;
    within(
        "token.access_lifetime_max_seconds",
        token.access_lifetime_max_seconds,
        1,
        LIFETIME_MAX,
    )?;
    within(
        "token.access_lifetime_seconds",
        token.access_lifetime_seconds,
        1,
        token.access_lifetime_max_seconds,
    )?;
    within("token.refresh_lifetime_seconds", token.refresh_lifetime_seconds, 1, LIFETIME_MAX)?;
    within(
        "token.refresh_idle_seconds",
        token.refresh_idle_seconds,
        1,
        token.refresh_lifetime_seconds,
    )?;
    within("token.refresh_grace_seconds", token.refresh_grace_seconds, 0, 60)
}

/// Checks the intervals of key rotation: a key that signs before it was published long enough signs
/// tokens that verifiers cannot verify yet (K02).
fn keys(config: &Config) -> Result<(), ConfigError> {
    let keys = &config.keys;
    within("keys.publish_ahead_seconds", keys.publish_ahead_seconds, 0, LIFETIME_MAX)?;
    if keys.rotate_every_seconds == 0 {
        return Ok(());
    }
    let least = keys.publish_ahead_seconds.saturating_add(1);
    within("keys.rotate_every_seconds", keys.rotate_every_seconds, least, 10 * LIFETIME_MAX)
}

fn limits(config: &Config) -> Result<(), ConfigError> {
    let limits = &config.limits;
    let million = 1_000_000;
    within("limits.connections", limits.connections as u64, 1, million)?;
    within("limits.connections_per_peer", limits.connections_per_peer as u64, 1, million)?;
    within("limits.streams_per_connection", u64::from(limits.streams_per_connection), 1, 10_000)?;
    within("limits.handshake_seconds", limits.handshake_seconds, 1, 60)?;
    within("limits.deadline_seconds", limits.deadline_seconds, 1, 300)?;
    within("limits.unread_seconds", limits.unread_seconds, 1, 300)?;
    within("limits.connection_idle_seconds", limits.connection_idle_seconds, 10, 86_400)?;
    within("limits.connection_age_seconds", limits.connection_age_seconds, 10, 30 * 86_400)?;
    within("limits.shutdown_delay_seconds", limits.shutdown_delay_seconds, 0, 300)?;
    within("limits.drain_seconds", limits.drain_seconds, 0, 300)?;
    within("limits.workers", limits.workers as u64, 0, 1024)?;
    within("limits.tracked_keys", limits.tracked_keys as u64, 1, 10 * million)?;
    within("limits.revocations_per_client", limits.revocations_per_client.into(), 1, 10 * million)?;
    within("limits.argon2_parallel", limits.argon2_parallel as u64, 1, 64)?;
    within("limits.argon2_queue", limits.argon2_queue as u64, 0, 10_000)?;
    rate("limits.per_peer", limits.per_peer)?;
    rate("limits.failed_authentication", limits.failed_authentication)?;
    if !limits.plans.contains_key("standard") {
        return Err(ConfigError::new("limits.plans", "must have the plan \"standard\""));
    }
    for (name, plan) in &limits.plans {
        let key = format!("limits.plans.{name}");
        name.parse::<PlanName>().map_err(|invalid| ConfigError::new(&key, invalid.0))?;
        rate(&key, *plan)?;
    }
    Ok(())
}

fn rate(key: &str, rate: Rate) -> Result<(), ConfigError> {
    within(&format!("{key}.per_second"), u64::from(rate.per_second), 1, u64::from(u32::MAX))?;
    within(&format!("{key}.burst"), u64::from(rate.burst), 1, u64::from(u32::MAX))
}

fn within(key: &str, value: u64, least: u64, most: u64) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::new(key, format!("must be {least} to {most}, not {value}")))
}

#[cfg(all(test, not(feature = "mongodb")))]
mod tests {
    use super::*;
    use crate::config::Sources;

    #[test]
    fn a_build_without_mongodb_refuses_a_shared_store() {
        let mut config = Config::load(&Sources::default()).unwrap().0;
        config.data_dir = "/data".into();
        check(&config, false).unwrap();
        config.store.uri = "mongodb://host/jeton".to_owned().into();
        let refused = check(&config, false).unwrap_err();
        assert!(refused.to_string().contains("built without MongoDB"), "{refused}");
        assert_eq!(config.store.address().unwrap_err().to_string(), refused.to_string());
        config.store.uri = String::new().into();
        config.store.uri_file = "/address".into();
        let refused = check(&config, false).unwrap_err().to_string();
        assert!(refused.starts_with("store.uri_file"), "{refused}");
    }
}
