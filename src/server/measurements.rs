//! Measurements of a running server for its metrics: what `jeton doctor` measures from outside.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use rustix::process::{Resource, getrlimit};

use crate::{
    api::listen,
    metrics::METRICS,
    model::Timestamp,
    services::Services,
    store::{StoreShape, TrailSize},
};

/// Sets what does not change while the server runs.
pub(super) fn take_once(now: Timestamp, listening: &listen::Options) {
    let readings = &METRICS.readings;
    readings.start.set(seconds(now));
    readings.connections_limit.set(listening.connections as f64);
}

/// Sets what is in memory.
pub(super) fn take(services: &Services, now: Timestamp) {
    let readings = &METRICS.readings;
    readings.clock.set(seconds(now));
    let keys = services.standing.tokens.verifying_keys();
    let published = keys.jwks().get("keys").and_then(|keys| keys.as_array());
    readings.published_keys.set(published.map_or(0.0, |keys| keys.len() as f64));
}

/// Sets what the file system knows; `directory` is that of an embedded store. A measurement that
/// fails leaves the last value.
pub(super) fn take_of_files(directory: Option<&Path>) {
    let readings = &METRICS.readings;
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        readings.open_files.set(open.count() as f64);
    }
    if let Some(limit) = getrlimit(Resource::Nofile).current {
        readings.open_files_limit.set(limit as f64);
    }
    let Some(directory) = directory else { return };
    if let Ok(metadata) = fs::metadata(directory) {
        readings.data_directory_private.set(if metadata.mode() & 0o077 == 0 { 1.0 } else { 0.0 });
    }
    if let Ok(files) = fs::read_dir(directory) {
        let sizes = files.flatten().filter_map(|file| file.metadata().ok());
        let size: u64 = sizes.filter(fs::Metadata::is_file).map(|file| file.len()).sum();
        readings.store_size.set(size as f64);
    }
    if let Ok(disk) = rustix::fs::statvfs(directory) {
        readings.store_free.set(disk.f_bavail as f64 * disk.f_frsize as f64);
    }
}

/// Sets the size and growth of the audit trail.
pub(super) fn take_of_trail(size: &TrailSize) {
    let readings = &METRICS.readings;
    readings.audit_records.set(size.records as f64);
    readings.audit_size.set(size.bytes() as f64);
    if let Some(records) = size.records_a_day() {
        readings.audit_records_per_day.set(records as f64);
    }
}

/// Sets the state of the servers of a shared store. What they do not report keeps its value.
pub(super) fn take_of_servers(shape: &StoreShape) {
    let readings = &METRICS.readings;
    readings.store_index_defects.set(shape.index_defects as f64);
    let reported = [
        (&readings.store_members, shape.members.map(|members| members as f64)),
        (&readings.store_lag, shape.lag_ms.map(|lag| lag as f64 / 1e3)),
        (&readings.store_election_term, shape.election_term.map(|term| term as f64)),
        (&readings.store_schema, shape.schema.map(|version| version as f64)),
    ];
    for (reading, value) in reported {
        if let Some(value) = value {
            reading.set(value);
        }
    }
}

fn seconds(at: Timestamp) -> f64 {
    at.millis() as f64 / 1e3
}
