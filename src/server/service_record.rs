//! File `service.json` in the data directory: what a probe on the same machine needs to ask the
//! process that runs, whatever configuration the probe itself was given.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::PathBuf,
    process,
};

use serde::{Deserialize, Serialize};

use crate::config::Config;

/// Addresses of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRecord {
    /// Address of the port, with the real port number.
    pub address: SocketAddr,
    /// True if the port uses TLS.
    pub tls: bool,
    /// True if the port requires client certificates.
    pub client_certificates: bool,
    /// Address of the listener for probes.
    pub probe_address: Option<SocketAddr>,
    /// Id of the process; 0 in a record that was made from the configuration.
    pub pid: u32,
}

impl ServiceRecord {
    /// Returns what the configuration says; the real port may differ.
    pub fn of(config: &Config) -> Self {
        Self {
            address: config.listen,
            tls: !config.tls.cert_file.as_os_str().is_empty(),
            client_certificates: !config.tls.client_ca_file.as_os_str().is_empty(),
            probe_address: config.probe_listen.parse().ok(),
            pid: 0,
        }
    }

    /// Reads what a running service left; `None` if there is none, or it is unreadable.
    pub fn read(config: &Config) -> Option<Self> {
        serde_json::from_slice(&fs::read(path(config)).ok()?).ok()
    }

    /// Leaves the record of this process, complete or not at all.
    pub(super) fn write(&self, config: &Config) -> io::Result<()> {
        let path = path(config);
        // A node of a shared store has no other file here.
        DirBuilder::new().recursive(true).mode(0o700).create(&config.data_dir)?;
        let draft = path.with_extension(format!("{}.new", process::id()));
        // Of a process that died here; in a container the next one has the same id.
        let _ = fs::remove_file(&draft);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        let record = Self { pid: process::id(), ..self.clone() };
        let written = serde_json::to_writer(&mut file, &record)
            .map_err(io::Error::from)
            .and_then(|()| file.write_all(b"\n"))
            .and_then(|()| fs::rename(&draft, &path));
        if written.is_err() {
            let _ = fs::remove_file(&draft);
        }
        written
    }

    /// Removes the record of this process.
    pub(super) fn remove(config: &Config) {
        if Self::read(config).is_some_and(|record| record.pid == process::id()) {
            // A record that stays names a port that nothing answers on.
            let _ = fs::remove_file(path(config));
        }
    }
}

/// Returns an address to connect to from this machine: loopback for a listener on all addresses.
pub fn connectable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V4(_) | IpAddr::V6(_) => listen.ip(),
    };
    SocketAddr::new(ip, listen.port())
}

/// Nodes of a shared store may share a data directory that they do not use.
fn path(config: &Config) -> PathBuf {
    let name = if config.store.is_shared() {
        format!("service.{}.json", config.node)
    } else {
        "service.json".to_owned()
    };
    config.data_dir.join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// B20: a probe with other settings finds the real address.
    #[test]
    fn a_probe_reads_what_the_service_left() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config { data_dir: dir.path().join("data"), ..Config::default() };
        assert_eq!(ServiceRecord::read(&config), None);
        config.listen = "127.0.0.1:18445".parse().unwrap();
        ServiceRecord::of(&config).write(&config).unwrap();
        let probe = Config { data_dir: config.data_dir.clone(), ..Config::default() };
        let found = ServiceRecord::read(&probe).unwrap();
        assert_eq!((found.address, found.pid), (config.listen, process::id()));
        ServiceRecord::of(&config).write(&config).unwrap();
        ServiceRecord::remove(&probe);
        assert_eq!(fs::read_dir(&config.data_dir).unwrap().count(), 0);
    }

    /// A process that died between the creation and the renaming does not keep its successor of the
    /// same id, as containers have it, from leaving a record.
    #[test]
    fn a_draft_that_was_left_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { data_dir: dir.path().join("data"), ..Config::default() };
        fs::create_dir(&config.data_dir).unwrap();
        let draft = path(&config).with_extension(format!("{}.new", process::id()));
        fs::write(&draft, "half").unwrap();
        ServiceRecord::of(&config).write(&config).unwrap();
        assert_eq!(ServiceRecord::read(&config).unwrap().pid, process::id());
    }

    #[test]
    fn a_listener_on_all_addresses_is_asked_here() {
        for (listen, here) in
            [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("10.0.0.1:1", "10.0.0.1:1")]
        {
            assert_eq!(connectable(listen.parse().unwrap()), here.parse().unwrap());
        }
    }
}
